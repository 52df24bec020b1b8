# SPDX-License-Identifier: GPL-2.0-only
"""What the tests of the monitor share: the recorded consoles, and how to show a text."""

from __future__ import annotations

import json
from pathlib import Path

from harness.monitor import Finding, Monitor, Severity

CONSOLES = Path(__file__).parent.parent / "data" / "console"
BENIGN, SPLAT, CRASH = Severity.BENIGN, Severity.SPLAT, Severity.CRASH

Seen = tuple[str, str, str, str, str]
"""Of one finding: severity, kind, process, title, fingerprint."""


def recorded() -> dict[str, list[Seen]]:
    """What each recording must give; README.md beside them says how they were made."""
    table = json.loads((CONSOLES / "expected.json").read_text())
    return {name: [tuple(row) for row in rows] for name, rows in table.items()}


def read(name: str) -> bytes:
    return (CONSOLES / f"{name}.log").read_bytes()


def run(data: bytes, *expected: str) -> tuple[Finding, ...]:
    seen = Monitor(expected)
    seen.feed(data)
    seen.finish()
    return seen.findings


def one(text: str, *expected: str) -> Finding:
    (finding,) = run(text.encode(), *expected)
    return finding


def stamped(text: str, start: float = 10.0, caller: str = "") -> str:
    """The text as the console shows it, one microsecond a line."""
    shown = (
        f"[{start + number / 1e6:12.6f}]{caller} {line}\r\n"
        for number, line in enumerate(text.strip("\n").split("\n"))
    )
    return "".join(shown)
