# SPDX-License-Identifier: GPL-2.0-only
"""One self-contained HTML page without a script: report.html.j2 filled in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from harness.report import differences, matrix, sites, stirred, timeline, traces, words
from harness.report.matrix import LEGEND, Cell, Matrix, Triple, mark_of
from harness.report.model import RunModel
from harness.report.views import HARMLESS, Kernel, Scenario, Vm, tally

#: The letter of a mark to the CSS class that colours it.
TONES = {
    "P": "ok", "r": "promise", "F": "bad", "!": "crash", "?": "lost", "x": "known", "S": "skip",
    "·": "none",
}  # fmt: skip

#: A list of at most so many scenarios is unfolded.
_SHORT = 30


@dataclass(frozen=True)
class _Block:
    """Scenarios that belong together."""

    title: str
    mark: str
    summary: str
    scenarios: tuple[Scenario, ...]
    triple: Triple | None


@dataclass(frozen=True)
class _Chapter:
    """All pairs, all triples or all other scenarios of a kernel; ``open``: not folded."""

    title: str
    mark: str
    summary: str
    blocks: tuple[_Block, ...]
    open: bool


@dataclass(frozen=True)
class _KernelView:
    """A kernel with everything that the page says about it."""

    kernel: Kernel
    vms: tuple[Vm, ...]
    matrix: Matrix | None
    triples: _Chapter
    chapters: tuple[_Chapter, ...]
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
    failures = model.failures()
    failed = {scenario.id for scenario in failures}

    def target(cell: Cell) -> str:
        """Where a cell leads: its scenario, or the first of several in the list."""
        first = cell.scenarios[0]
        listed = len(cell.scenarios) > 1 and first.id in failed
        return f"l{anchors[first.id]}" if listed else anchors[first.id]

    environment.globals.update(
        anchor=lambda s: anchors[s.id],
        target=target,
        tone=lambda s: TONES[mark_of(s)],
        tones=TONES,
        departure_words=matrix.departure_words,
        legend=LEGEND,
        timeline=timeline.build,
        stirred=stirred,
        traces=traces,
        words=words,
    )
    matrices = [k.matrix for k in kernels if k.matrix is not None]
    page = environment.get_template("report.html.j2").render(
        model=model,
        title=headline(model),
        state=words.state_of_run(model),
        kernels=kernels,
        matrices=matrices,
        marks=matrix.marks_used(cell for m in matrices for cell in m.cells),
        triple_marks=matrix.marks_used(
            cell for k in kernels for b in k.triples.blocks if b.triple for cell in b.triple.cells
        ),
        differences=differences.find(model),
        sites=[(k.kernel.release, w) for k in kernels if (w := sites.ways(model, k.kernel.id))],
        accounts=[
            (k.kernel.release, a) for k in kernels if (a := stirred.accounts(model, k.kernel.id))
        ],
        failures=failures,
        failed=failed,
        group_failures=model.group_failures(),
        vm_failures=model.vm_failures(),
        consoles=[vm for vm in model.vms.values() if vm.console_tail or vm.backtraces],
    )
    return page.strip() + "\n"


def headline(model: RunModel) -> str:
    """The result in one line."""
    counts = model.counts()
    total = sum(counts.values())
    bad = sum(n for verdict, n in counts.items() if verdict not in HARMLESS)
    others = [
        words.plural(number, noun)
        for number, noun in (
            (len(model.group_failures()), "group"), (len(model.vm_failures()), "VM"),
        )
        if number
    ]  # fmt: skip
    if bad or others:
        more = "".join(f" and {other}" for other in others)
        result = f"Failed: {bad} of {words.plural(total, 'scenario')}{more}"
    elif model.cut_short or model.not_started():
        result = f"Incomplete: {total} of {words.plural(model.run.planned, 'scenario')} ran"
    elif counts.get("PASS"):
        result = f"Passed: {counts['PASS']} of {words.plural(total, 'scenario')}"
    else:
        result = f"Nothing passed: {words.plural(total, 'scenario')}"
    return f"Interrupted. {result}" if model.run.interrupted else result


def _view(model: RunModel, kernel: Kernel) -> _KernelView:
    scenarios = model.of_kernel(kernel.id)
    pairs = matrix.build(model, kernel.id)
    rows = pairs.rows if pairs is not None else ()
    # A short run has everything in sight.
    shown = len(model.scenarios) <= _SHORT
    first = [_block(f"{row[0][0].arrival[0]} first", _of(row)) for row in rows]
    threes = [
        _block(" + ".join(t.attachers), t.scenarios, t) for t in matrix.triples(model, kernel.id)
    ]
    placed = {s.id for b in (*first, *threes) for s in b.scenarios}
    others = _block("", tuple(s for s in scenarios if s.id not in placed))
    chapters = (
        _chapter("Pairs", shown, first),
        _chapter("Other scenarios" if placed else "All", shown, [others]),
    )
    return _KernelView(
        kernel,
        tuple(model.vms_of(kernel.id)),
        pairs,
        _chapter("Triples", shown, threes),
        tuple(c for c in chapters if c.blocks),
        _summary(scenarios),
    )


def _of(row: Sequence[Sequence[Cell]]) -> tuple[Scenario, ...]:
    return tuple(s for pair in row for cell in pair for s in cell.scenarios)


def _block(title: str, scenarios: tuple[Scenario, ...], triple: Triple | None = None) -> _Block:
    return _Block(title, matrix.worst(scenarios), _summary(scenarios), scenarios, triple)


def _chapter(title: str, shown: bool, blocks: Sequence[_Block]) -> _Chapter:
    found = [s for block in blocks for s in block.scenarios]
    filled = tuple(block for block in blocks if block.scenarios)
    return _Chapter(title, matrix.worst(found), _summary(found), filled, shown)


def _summary(scenarios: Sequence[Scenario]) -> str:
    """``2 FAIL, 34 PASS``."""
    return ", ".join(f"{n} {verdict}" for verdict, n in tally(scenarios).items())


def _printable(value: Any) -> Any:
    return words.printable(value) if isinstance(value, str) and type(value) is not Markup else value
