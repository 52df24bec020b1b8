# SPDX-License-Identifier: GPL-2.0-only
"""A comparison as one self-contained HTML page without a script: compare.html.j2 filled in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from harness.report import comparetext
from harness.report.compare import KINDS, Comparison, Surprise, exit_status, grouped
from harness.report.words import printable

#: A kind of changes to the CSS class that colours it.
TONES = {
    "broken": "bad", "untested": "lost", "fixed": "ok", "differs": "known", "message": "known",
    "gone": "skip", "new": "skip", "still": "crash",
}  # fmt: skip


def render(comparison: Comparison, surprise: Surprise | None = None) -> str:
    """The page; ``surprise``: what came of an expectation, where there was one."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        finalize=_printable,
    )
    items = [*comparison.items, *grouped(comparison.still)]
    page = environment.get_template("compare.html.j2").render(
        comparison=comparison,
        surprise=surprise,
        fine=exit_status(comparison, surprise) == 0,
        summary=comparetext.summary(comparison),
        heading=lambda kind: comparetext.heading(comparison, kind),
        kinds=[(k, [i for i in items if i.kind == k]) for k in (*KINDS, "still")],
        tones=TONES,
        about="\n".join(comparetext.environment(comparison)),
    )
    return page.strip() + "\n"


def _printable(value: Any) -> Any:
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value
