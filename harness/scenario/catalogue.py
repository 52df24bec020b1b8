# SPDX-License-Identifier: GPL-2.0-only
"""The scenarios that cohabit knows, generated from attachers and functions."""

from __future__ import annotations

import fnmatch
import functools
from collections.abc import Callable, Iterable, Sequence

from harness.errors import UsageError

from . import consistency, load, matrix, races, reach, singular, soak
from .functions import FUNCTIONS
from .steps import ANY, Scenario

#: Each attacher is tried alone on these, and each pair with a livepatch.
_PLACES = tuple(f.name for f in FUNCTIONS.values() if f.lane is None and not f.holds and not f.hot)


def _singular() -> tuple[Scenario, ...]:
    return (
        *singular.ftrace_enabled(),
        *(s for name in (ANY, *_PLACES) for s in singular.singles(name)),
        *singular.livepatches(),
        *singular.pending(),
        *singular.several_functions(),
        *singular.filter_changes(),
        *singular.modules(),
        *singular.contexts(),
        *singular.modifying(),
        *singular.limits(),
        *singular.unwilling(),
        *singular.watched(),
        *singular.misuses(),
        *singular.stale_regs(),
        *reach.reaches(),
        *singular.endings(),
    )


@functools.cache
def default() -> tuple[Scenario, ...]:
    """What ``cohabit run`` runs when nothing is named.

    Of the pairs those in which the first to come is the first to go: the harder
    half, with the second attach tried again where it was refused.  Those that cost
    their VM come last.
    """
    return _endings_last(
        (
            *(s for s in matrix.pairs() if matrix.first_goes_first(s)),
            *_singular(),
        )
    )


@functools.cache
def everything() -> tuple[Scenario, ...]:
    """The whole catalogue: the default, all orders of pairs and triples, and all places."""
    named = {s.name: s for s in default()}
    for more in (
        matrix.pairs(),
        matrix.triples(),
        (
            s
            for name in _PLACES
            for s in matrix.pairs(name)
            if "livepatch" in (s.matrix or ()) and matrix.first_goes_first(s)
        ),
    ):
        named.update({s.name: s for s in more if s.name not in named})
    return _endings_last(tuple(named.values()))


def _endings_last(scenarios: Sequence[Scenario]) -> tuple[Scenario, ...]:
    return tuple(sorted(scenarios, key=lambda s: s.ends_vm))


#: Sets that are not part of the catalogue's whole: each of their scenarios takes minutes, and
#: a VM of its own.
BESIDE: dict[str, Callable[[], Iterable[Scenario]]] = {
    "consistency": consistency.scenarios,
    "races": races.scenarios,
    "load": load.scenarios,
    "soak": soak.scenarios,
}

#: Whole sets, by a name that no scenario has.
SETS: dict[str, Callable[[], Iterable[Scenario]]] = {
    "pairs": matrix.pairs,
    "triples": matrix.triples,
    **BESIDE,
}


@functools.cache
def beside() -> tuple[Scenario, ...]:
    """What is run only where it is named: by name, by glob or as a set."""
    return tuple(scenario for scenarios in BESIDE.values() for scenario in scenarios())


def select(names: Sequence[str], whole: bool = False) -> tuple[Scenario, ...]:
    """Scenarios by name or glob, or by the name of a set, in the catalogue's order; all where
    none is named.

    A name is looked for among the default ones, and where it matches none of them
    (or ``whole``) in the whole catalogue, and then beside it.  Raises UsageError for one
    that matches nothing.
    """
    known = everything()
    first = known if whole else default()
    chosen: set[str] = set()
    for name in names or ["*"]:
        if name in SETS:
            chosen |= {s.name for s in SETS[name]()}
            continue
        matching = _matching(first, name) or _matching(known, name) or _matching(beside(), name)
        if not matching:
            close = [s.name for s in (*known, *beside()) if name.strip("*?") in s.name][:5]
            raise UsageError(
                f"no scenario is called {name!r}",
                f"near it: {', '.join(close)}"
                if close
                else f"`cohabit list` shows them all; whole sets are {', '.join(SETS)}",
            )
        chosen |= matching
    return tuple(s for s in (*known, *beside()) if s.name in chosen)


def _matching(scenarios: Sequence[Scenario], name: str) -> set[str]:
    return {s.name for s in scenarios if fnmatch.fnmatchcase(s.name, name)}
