# SPDX-License-Identifier: GPL-2.0-only
"""What stirrers that run at the same time allow: bodies that calls meet, errnos that steps give."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.scenario.steps import (
    Attach,
    Detach,
    Disable,
    Enable,
    Force,
    Hold,
    Release,
    Stirrer,
    Write,
)

from .attachers import ATTACHERS
from .interleave import Interleavings, TooManyError, redirects
from .opsjudge import OpMismatch, OpsJudge
from .profile import Profile
from .slots import stirred_slots
from .state import State

__all__ = ["OpMismatch", "OpsJudge", "Phase", "allowed", "phases"]


def allowed(
    state: State, stirrers: Sequence[Stirrer], function: str, profile: Profile
) -> frozenset[str]:
    """The bodies that a call of a function may meet in any interleaving.

    ``state``: before the stirrers begin.  Of a livepatch in transition both the body
    before it and the one after it.  Where there are too many interleavings to go through,
    whatever one stirrer or two of them can bring: a body is always one attachment's, or
    the original where none is, and whatever of ``state`` nobody takes away stays in all.
    """
    given = stirred_slots(state, stirrers)
    here = frozenset({function})
    try:
        return _bodies(Interleavings(state, stirrers, profile, here, given), function)
    except TooManyError:
        found: frozenset[str] = frozenset()
        for some in itertools.combinations(stirrers, min(2, len(stirrers))):
            found |= _few(state, some, profile, function, given)
        return found


def _few(
    state: State,
    some: Sequence[Stirrer],
    profile: Profile,
    function: str,
    given: dict[str, int],
) -> frozenset[str]:
    """The bodies that two stirrers bring, or each of the two where even they are too many."""
    here = frozenset({function})
    try:
        return _bodies(Interleavings(state, some, profile, here, given), function)
    except TooManyError:
        alone = [Interleavings(state, [one], profile, here, given) for one in some]
        return frozenset().union(*(_bodies(one, function) for one in alone))


def _bodies(all_of_them: Interleavings, function: str) -> frozenset[str]:
    return frozenset(b for n in all_of_them.nodes for b in all_of_them.bodies(n, function))


@dataclass(frozen=True)
class Phase:
    """Bodies of a function that are right ``during`` a stirrer's step, and ``after`` it.

    ``monotonic``: a task that met the new one during the step never meets the old one
    again (a livepatch's transition: kernel/livepatch/transition.c: klp_update_patch_state).
    """

    during: frozenset[str]
    after: frozenset[str]
    monotonic: bool = False


def phases(
    state: State, stirrers: Sequence[Stirrer], profile: Profile, functions: Sequence[str]
) -> tuple[tuple[Mapping[str, Phase], ...], ...]:
    """For each stirrer and each of its steps: what is right on each of the functions.

    A function is left out where the stirrer is not the only one who may change its body:
    only ``allowed`` holds then.  ``during`` is all that may be while the step is done;
    ``after`` what may be until the stirrer's next step, whoever else is at work.
    """
    given = stirred_slots(state, stirrers)
    found: list[list[dict[str, Phase]]] = [[{} for _ in s.steps] for s in stirrers]
    for function in functions:
        changing = [
            i for i, s in enumerate(stirrers) if _changes(state, stirrers, s, function, profile)
        ]
        if len(changing) != 1:
            continue
        number = changing[0]
        for at, phase in enumerate(_phases(state, stirrers, number, function, profile, given)):
            found[number][at][function] = phase
    return tuple(tuple(steps) for steps in found)


def _changes(
    state: State, stirrers: Sequence[Stirrer], one: Stirrer, function: str, profile: Profile
) -> bool:
    """Whether a stirrer has a step that may change the function's body."""
    attaches = [s for x in stirrers for s in x.steps if isinstance(s, Attach)]
    there = [(a.id, a.kind, a.functions) for a in state.attached]
    there += [(s.id, ATTACHERS[s.attacher], s.functions) for s in attaches]
    patched = any(kind.ops == "livepatch" and function in where for _, kind, where in there)
    redirecting = {
        identity
        for identity, kind, where in there
        if (redirects(kind) and function in where)
        # A replacing livepatch takes others away from functions that it does not patch.
        or (kind.name == "livepatch-replace" and patched)
    }
    for step in one.steps:
        if isinstance(step, Attach | Detach | Disable | Enable | Force):
            if step.id in redirecting:
                return True
        elif isinstance(step, Write) and redirecting:
            if not profile.semantics.disabling:
                return True
        elif isinstance(step, Hold | Release) and patched:
            return True
    return False


def _phases(
    state: State,
    stirrers: Sequence[Stirrer],
    number: int,
    function: str,
    profile: Profile,
    given: dict[str, int],
) -> list[Phase]:
    """The phases of the one stirrer that changes a function's body."""
    here = frozenset({function})
    steps: Sequence[Any] = stirrers[number].steps
    try:
        everything = Interleavings(state, stirrers, profile, here, given)
        at = number
    except TooManyError:
        # What others do is then that they may refuse whatever it attaches.
        mine = [stirrers[number]]
        everything, at = Interleavings(state, mine, profile, here, given, True), 0
    before: dict[int, frozenset[str]] = {}
    within: dict[int, frozenset[str]] = {}
    for node in everything.nodes:
        index, inside = everything.position(node, at)
        bodies = everything.bodies(node, function)
        kept = within if inside else before
        kept[index] = kept.get(index, frozenset()) | bodies
    # A step that decides no body leaves what was right before it.
    known = sorted(before)
    spread = {i: before[next((k for k in known if k >= i), known[0])] for i in range(len(steps))}
    found = []
    for index, step in enumerate(steps):
        first, last = spread[index], spread[(index + 1) % len(steps)]
        during = first | last | within.get(index, frozenset())
        patch = isinstance(step, Attach) and ATTACHERS[step.attacher].ops == "livepatch"
        one_way = patch or isinstance(step, Detach | Disable)
        monotonic = one_way and len(first) == len(last) == 1 and len(during) == 2
        found.append(Phase(during, last, monotonic))
    return found
