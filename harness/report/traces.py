# SPDX-License-Identifier: GPL-2.0-only
"""How the kernel's own reports are shown: where each came, and what of it is worth reading."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from harness.monitor import parse_lines
from harness.report.model import RunModel
from harness.report.views import LogLine, Report, Scenario, Step
from harness.report.words import short_title

LIMIT = 40
"""Lines of a report in a text; the record has them all."""

_WHEN = {
    "boot": "while it booted",
    "begin": "before the first step",
    "clean": "while what was left was removed",
}
#: Registers, what stands in every report of a kernel, and frames that the unwinder only
#: guesses (kernel/panic.c, arch/x86/kernel/dumpstack.c and process_64.c).
_NOISE = re.compile(
    r"-+\[ (?:cut here|end trace)|={20,}$|Modules linked in:|Unloaded tainted modules:"
    r"|\[last unloaded|Hardware name:|Tainted: \[|Code: |RIP: 0033:|R(?!IP)[A-Z0-9]{2}: "
    r"|(?:FS|CS|CR2|DR\d|PKRU|ORIG_RAX): |\s+\? |\s*$"
    # arch/arm64/kernel/process.c: __show_regs()
    r"|(?:pstate|sp|x\d+) *: "
    # kernel/locking/lockdep.c: print_irqtrace_events(), with every warning.
    r"|irq event stamp: |(?:hard|soft)irqs last +(?:en|dis)abled at "
)


@dataclass(frozen=True)
class Known:
    """A report that is a known difference; ``more`` is in how many other scenarios it came."""

    scenario: Scenario
    report: Report
    more: int


def where(model: RunModel, report: Report) -> str:
    """What was being done when a report came: ``in step 3 (detach a)``."""
    if report.index is None:
        return _WHEN.get(report.when, "")
    first = model.attempts.get(report.scenarios[0]) if report.scenarios else None
    if first is None or report.index >= len(first.planned):
        return f"in step {report.index + 1}"
    return f"in step {report.index + 1} ({short_title(first.planned[report.index])})"


def shown(report: Report, limit: int | None = None) -> list[str]:
    """A report without stamps, registers and guesses, ``limit`` lines at most.

    The last line then says how many more there are.
    """
    lines = [parse_lines(line)[-1].text for line in report.text]
    kept = [line for line in lines if not _NOISE.match(line)]
    if limit is None or len(kept) <= limit:
        return kept
    return [*kept[:limit], f"({len(kept) - limit} more lines in the record, report {report.id})"]


def other_lines(step: Step, reports: Iterable[Report]) -> list[LogLine]:
    """A step's log without the lines that are in its reports."""
    told = {line for report in reports for line in report.lines}
    return [line for line in step.log if line.plain not in told]


def known(model: RunModel) -> list[Known]:
    """The decoded reports of scenarios that are XFAIL, those of one fault together."""
    found: dict[tuple[str, str, str], list[tuple[Scenario, Report]]] = {}
    for scenario in model.scenarios:
        if scenario.verdict != "XFAIL":
            continue
        for report in model.reports_of(scenario):
            if report.decoded:
                key = (scenario.kernel, scenario.xfail, report.fingerprint)
                found.setdefault(key, []).append((scenario, report))
    return [Known(*same[0], _others(same)) for same in found.values()]


def _others(same: Sequence[tuple[Scenario, Report]]) -> int:
    return len({scenario.id for scenario, _ in same}) - 1
