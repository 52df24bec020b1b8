# SPDX-License-Identifier: GPL-2.0-only
"""One self-contained HTML page without a script: report.html.j2 filled in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from harness.report import differences, matrix, timeline, words
from harness.report.matrix import LEGEND, Matrix, mark_of
from harness.report.model import RunModel
from harness.report.views import HARMLESS, Kernel, Scenario, Vm

#: The letter of a mark to the CSS class that colours it.
TONES = {
    "P": "ok", "r": "promise", "F": "bad", "!": "crash", "?": "lost", "x": "known", "S": "skip",
    "·": "none",
}  # fmt: skip

#: Pixels of a matrix cell with its gap, and of a letter of its labels.
_CELL, _LETTER = 34, 7.3


@dataclass(frozen=True)
class _KernelView:
    """A kernel with everything that the page says about it."""

    kernel: Kernel
    vms: tuple[Vm, ...]
    matrix: Matrix | None
    scenarios: tuple[Scenario, ...]
    summary: str


def render(model: RunModel) -> str:
    """The page.  Everything that came from a guest is escaped and printable."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        finalize=_printable,
    )
    anchors = {scenario: f"s{n}" for n, scenario in enumerate(model.attempts)}
    kernels = [_view(model, k) for k in model.kernels.values()]
    matrices = [k.matrix for k in kernels if k.matrix is not None]
    environment.globals.update(
        anchor=lambda s: anchors[s.id],
        tone=lambda s: TONES[mark_of(s)],
        tones=TONES,
        mark_of=mark_of,
        legend=LEGEND,
        timeline=timeline.build,
        row_height=timeline.ROW,
        head_height=timeline.HEAD,
        words=words,
        harmless=HARMLESS,
        cell=_CELL,
    )
    failures = model.failures()
    page = environment.get_template("report.html.j2").render(
        model=model,
        title=headline(model),
        state=words.state_of_run(model),
        kernels=kernels,
        matrices=matrices,
        marks=matrix.marks_used(matrices),
        label_width=round(
            24 + _LETTER * max((len(a) for m in matrices for a in m.attachers), default=0)
        ),
        differences=differences.find(model),
        failures=failures,
        vm_failures=model.vm_failures(),
        consoles=[vm for vm in model.vms.values() if vm.console_tail or vm.backtraces],
    )
    return page.strip() + "\n"


def headline(model: RunModel) -> str:
    """The result in one line."""
    counts = model.counts()
    total = sum(counts.values())
    bad = sum(n for verdict, n in counts.items() if verdict not in HARMLESS)
    bad_vms = len(model.vm_failures())
    if bad or bad_vms:
        vms = f" and {words.plural(bad_vms, 'VM')}" if bad_vms else ""
        result = f"Failed: {bad} of {words.plural(total, 'scenario')}{vms}"
    elif model.cut_short or model.not_started():
        result = f"Incomplete: {total} of {words.plural(model.run.planned, 'scenario')} ran"
    elif counts.get("PASS"):
        result = f"Passed: {counts['PASS']} of {words.plural(total, 'scenario')}"
    else:
        result = f"Nothing passed: {words.plural(total, 'scenario')}"
    return f"Interrupted. {result}" if model.run.interrupted else result


def _view(model: RunModel, kernel: Kernel) -> _KernelView:
    scenarios = tuple(model.of_kernel(kernel.id))
    found = [s.verdict for s in scenarios]
    counts = [f"{found.count(v)} {v}" for v in model.counts() if v in found]
    return _KernelView(
        kernel,
        tuple(model.vms_of(kernel.id)),
        matrix.build(model, kernel.id),
        scenarios,
        ", ".join(counts),
    )


def _printable(value: Any) -> Any:
    return words.printable(value) if isinstance(value, str) and type(value) is not Markup else value
