# SPDX-License-Identifier: GPL-2.0-only
"""The pair matrix as data: attacher by attacher, the first one to attach as the row."""

from __future__ import annotations

from dataclasses import dataclass

from harness.policy.attachers import ATTACHERS
from harness.report.model import RunModel
from harness.report.views import ACCIDENTS, NO_RESULT, Scenario

#: The letter of a cell and what it means, worst first.  The letter alone
#: carries the meaning; colours only repeat it.
LEGEND = {
    "!": "splat, crash or hang",
    "F": "failed",
    "?": "no result (lost, or the host at fault)",
    "x": "known difference (xfail)",
    "S": "skipped",
    "r": "passed: second attach refused as promised",
    "P": "passed: both attached",
    "·": "not run",
}
_RANK = {letter: rank for rank, letter in enumerate(LEGEND)}


@dataclass(frozen=True)
class Cell:
    """The scenarios of one ordered pair, and the worst mark among them."""

    first: str
    second: str
    scenarios: tuple[Scenario, ...]

    @property
    def mark(self) -> str:
        """A letter of LEGEND."""
        return min((mark_of(s) for s in self.scenarios), key=_RANK.__getitem__, default="·")

    @property
    def meaning(self) -> str:
        """The mark in words."""
        return LEGEND[self.mark]


@dataclass(frozen=True)
class Matrix:
    """The cells of one kernel, ``rows[i][j]`` for ``attachers[i]`` then ``attachers[j]``."""

    kernel: str
    attachers: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


def mark_of(scenario: Scenario) -> str:
    """The letter of one scenario: its verdict, and for a pass whether the kernel refused."""
    verdict = scenario.verdict
    if verdict == "PASS":
        second = scenario.second_attach()
        return "r" if second is not None and second.refused else "P"
    if verdict in ACCIDENTS:
        return "!"
    if verdict in NO_RESULT:
        return "?"
    return {"SKIP": "S", "XFAIL": "x"}.get(verdict, "F")


def build(model: RunModel, kernel: str) -> Matrix | None:
    """The matrix of a kernel; None if it ran no pair.

    Attachers are in the policy's order, those it does not know at the end, over all
    kernels, so the matrices of several kernels can be laid side by side.
    """
    cells: dict[tuple[str, str], list[Scenario]] = {}
    names: dict[str, None] = {}
    for scenario in model.scenarios:
        if scenario.matrix is None:
            continue
        names.update(dict.fromkeys(scenario.matrix))
        if scenario.kernel == kernel:
            cells.setdefault(scenario.matrix, []).append(scenario)
    if not cells:
        return None
    order = list(ATTACHERS)
    # Sorting is stable: strangers keep the order in which the run came to them.
    titles = sorted(names, key=lambda n: order.index(n) if n in order else len(order))
    rows = tuple(
        tuple(Cell(a, b, tuple(cells.get((a, b), ()))) for b in titles) for a in titles
    )  # fmt: skip
    return Matrix(kernel, tuple(titles), rows)


def marks_used(matrices: list[Matrix]) -> list[str]:
    """The letters that occur, in the order of LEGEND."""
    used = {cell.mark for m in matrices for row in m.rows for cell in row}
    return [letter for letter in LEGEND if letter in used]
