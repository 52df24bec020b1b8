# SPDX-License-Identifier: GPL-2.0-only
"""Pairs and triples of attachers as data: who came in which order, who left in which."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from harness.policy.attachers import ATTACHERS
from harness.report.model import RunModel
from harness.report.views import ACCIDENTS, HARMLESS, NO_RESULT, Scenario

#: The letter of a cell and what it means, worst first.  The letter alone
#: carries the meaning; colours only repeat it.
LEGEND = {
    "!": "splat, crash or hang",
    "F": "failed",
    "?": "no result (lost, or the host at fault)",
    "x": "known difference (xfail)",
    "S": "skipped",
    "r": "passed: an attach refused as promised",
    "P": "passed: all attached",
    "·": "not run",
}
_RANK = {letter: rank for rank, letter in enumerate(LEGEND)}

#: Positions in the order of arrival, in the order of departure.
Departure = tuple[int, ...]


@dataclass(frozen=True)
class Cell:
    """The scenarios of one order of arrival and one of departure, and their worst mark."""

    arrival: tuple[str, ...]
    departure: Departure
    scenarios: tuple[Scenario, ...]

    @property
    def mark(self) -> str:
        """A letter of LEGEND."""
        return worst(self.scenarios)

    @property
    def meaning(self) -> str:
        """The cell in words."""
        return (
            f"{', then '.join(self.arrival)}; {departure_words(self.departure)}: "
            f"{LEGEND[self.mark]}"
        )


@dataclass(frozen=True)
class Matrix:
    """The pairs of one kernel.

    ``rows[i][j]`` has ``attachers[i]`` then ``attachers[j]``, one cell for each of
    ``departures``.
    """

    kernel: str
    attachers: tuple[str, ...]
    departures: tuple[Departure, ...]
    rows: tuple[tuple[tuple[Cell, ...], ...], ...]

    @property
    def cells(self) -> tuple[Cell, ...]:
        """All of them, row by row."""
        return tuple(cell for row in self.rows for pair in row for cell in pair)


@dataclass(frozen=True)
class Triple:
    """Three attachers, in the policy's order, in all orders that were run.

    ``rows[i][j]`` has ``arrivals[i]`` and ``departures[j]``.
    """

    attachers: tuple[str, ...]
    arrivals: tuple[tuple[str, ...], ...]
    departures: tuple[Departure, ...]
    rows: tuple[tuple[Cell, ...], ...]

    @property
    def cells(self) -> tuple[Cell, ...]:
        """All of them, row by row."""
        return tuple(cell for row in self.rows for cell in row)

    @property
    def scenarios(self) -> tuple[Scenario, ...]:
        """The scenarios of all cells."""
        return tuple(s for cell in self.cells for s in cell.scenarios)

    @property
    def mark(self) -> str:
        """The worst mark of its cells."""
        return worst(self.scenarios)

    @property
    def troubles(self) -> int:
        """How many of its scenarios need a look."""
        return sum(s.verdict not in HARMLESS for s in self.scenarios)


def mark_of(scenario: Scenario) -> str:
    """The letter of one scenario: its verdict, and for a pass whether the kernel refused."""
    verdict = scenario.verdict
    if verdict == "PASS":
        return "r" if scenario.refused else "P"
    if verdict in ACCIDENTS:
        return "!"
    if verdict in NO_RESULT:
        return "?"
    return {"SKIP": "S", "XFAIL": "x"}.get(verdict, "F")


def worst(scenarios: Iterable[Scenario]) -> str:
    """The worst letter among scenarios; that of ``not run`` for none."""
    return min(map(mark_of, scenarios), key=_RANK.__getitem__, default="·")


def departure_words(departure: Departure) -> str:
    """``the second leaves, then the first``."""
    ordinals = ("first", "second", "third")
    first, *rest = (ordinals[n] if n < len(ordinals) else f"{n + 1}th" for n in departure)
    return ", then the ".join([f"the {first} leaves", *rest])


def build(model: RunModel, kernel: str) -> Matrix | None:
    """The pair matrix of a kernel; None if it ran no pair.

    Attachers are in the policy's order, those it does not know at the end, and both
    they and the orders of departure are those of all kernels, so the matrices of
    several kernels can be laid side by side.
    """
    pairs = [s for s in model.scenarios if s.matrix is not None and len(s.matrix) == 2]
    cells = _by_orders(s for s in pairs if s.kernel == kernel)
    if not cells:
        return None
    titles = _sorted({name for s in pairs for name in s.matrix or ()})
    departures = tuple(sorted({_departure(s) for s in pairs}))
    rows = tuple(
        tuple(tuple(_cell(cells, (a, b), d) for d in departures) for b in titles) for a in titles
    )
    return Matrix(kernel, titles, departures, rows)


def triples(model: RunModel, kernel: str) -> list[Triple]:
    """The triples of a kernel by their three attachers, those with a failure first."""
    sets: dict[tuple[str, ...], list[Scenario]] = {}
    for s in model.of_kernel(kernel):
        if s.matrix is not None and len(s.matrix) == 3:
            sets.setdefault(_sorted(s.matrix), []).append(s)
    found = []
    for names in sorted(sets, key=lambda names: [*map(_place, names)]):
        cells = _by_orders(sets[names])
        arrivals = sorted(
            {arrival for arrival, _ in cells}, key=lambda a: [names.index(name) for name in a]
        )
        departures = tuple(sorted({departure for _, departure in cells}))
        rows = tuple(tuple(_cell(cells, a, d) for d in departures) for a in arrivals)
        found.append(Triple(names, tuple(arrivals), departures, rows))
    return sorted(found, key=lambda t: _RANK[t.mark] if t.troubles else len(_RANK))


def marks_used(cells: Iterable[Cell]) -> list[str]:
    """The letters that occur, in the order of LEGEND."""
    used = {cell.mark for cell in cells}
    return [letter for letter in LEGEND if letter in used]


_Cells = dict[tuple[tuple[str, ...], Departure], list[Scenario]]


def _by_orders(scenarios: Iterable[Scenario]) -> _Cells:
    found: _Cells = {}
    for s in scenarios:
        found.setdefault((s.matrix or (), _departure(s)), []).append(s)
    return found


def _cell(cells: _Cells, arrival: tuple[str, ...], departure: Departure) -> Cell:
    return Cell(arrival, departure, tuple(cells.get((arrival, departure), ())))


def _departure(scenario: Scenario) -> Departure:
    """Of those that the matrix names; a scenario may have more attachments, or fewer."""
    size = len(scenario.matrix or ())
    known = [place for place in scenario.departure if place < size]
    return tuple(dict.fromkeys([*known, *range(size)]))


def _place(name: str) -> tuple[int, str]:
    order = list(ATTACHERS)
    return (order.index(name) if name in order else len(order), name)


def _sorted(names: Iterable[str]) -> tuple[str, ...]:
    """In the policy's order, those it does not know at the end."""
    return tuple(sorted(names, key=_place))
