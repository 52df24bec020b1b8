# SPDX-License-Identifier: GPL-2.0-only
"""The matrices: all orders in which two or three attachers come to a function and leave it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from harness.policy.attachers import ATTACHERS, CORE

from .functions import FUNCTIONS
from .steps import ANY, Attach, Detach, Scenario, Step

#: A triple has one of each: what redirects the function, and what takes its call.
_REDIRECTING = ("livepatch", "ipmodify")
_CALLED = tuple(name for name in CORE if ATTACHERS[name].direct)


def takes(function: str, attachers: Sequence[str]) -> bool:
    """Whether these attachers can all be on a function."""
    if function == ANY or FUNCTIONS[function].fmod_ret:
        return True
    return "fmod_ret" not in attachers


def _suffix(function: str) -> str:
    return "" if function == ANY else f"/on:{function}"


def orders(attachers: Sequence[str], function: str) -> Iterator[Scenario]:
    """All orders of arrival and departure of some attachers.

    Where an attach is refused, its ``detach`` is left out, and after each departure
    what was refused is attached again: the refusal must have left no trace.
    """
    letters = "abc"[: len(attachers)]
    kinds = dict(zip(letters, attachers, strict=True))
    for arrival in itertools.permutations(letters):
        # Two of a kind cannot be told apart: one order of arrival is enough.
        if any(
            kinds[x] == kinds[y] and arrival.index(x) > arrival.index(y)
            for x, y in itertools.combinations(letters, 2)
        ):
            continue
        for departure in itertools.permutations(letters):
            steps: list[Step] = [Attach(x, kinds[x], (function,)) for x in arrival]
            for gone, letter in enumerate(departure):
                steps.append(Detach(letter))
                steps += [
                    Attach(x, kinds[x], (function,), unless_attached=True)
                    for x in arrival[1:]
                    if x in departure[gone + 1 :]
                ]
            yield Scenario(
                f"{'+'.join(attachers)}/attach:{''.join(arrival)}/detach:{''.join(departure)}"
                + _suffix(function),
                (function,),
                tuple(steps),
                tuple(kinds[x] for x in arrival),
                ends_vm=breaks_kprobes(tuple(kinds[x] for x in arrival)),
            )


def breaks_kprobes(arrival: Sequence[str]) -> bool:
    """Whether a kprobe with a post_handler joins one without (docs/findings/kprobe-post.md).

    The kernel then loses count of its kprobes for good.
    """
    kprobes = [name for name in arrival if ATTACHERS[name].ops == "kprobe"]
    return bool(kprobes) and kprobes[0] != "kprobe-post" and "kprobe-post" in kprobes


def pairs(function: str = ANY) -> Iterator[Scenario]:
    """All pairs on one function."""
    for first, second in itertools.combinations_with_replacement(CORE, 2):
        twice = first != second or ATTACHERS[first].twice
        if twice and takes(function, (first, second)):
            yield from orders((first, second), function)


def triples() -> Iterator[Scenario]:
    """All triples with one that redirects and one that takes the function's call."""
    for three in itertools.combinations(CORE, 3):
        if set(three) & set(_REDIRECTING) and set(three) & set(_CALLED):
            yield from orders(three, ANY)


def first_goes_first(scenario: Scenario) -> bool:
    """Whether the first to come is the first to go: the harder half of the pairs."""
    first = next(s.id for s in scenario.steps if isinstance(s, Attach))
    return first == next(s.id for s in scenario.steps if isinstance(s, Detach))
