# SPDX-License-Identifier: GPL-2.0-only
"""Binary search for the first bad one of a row, where some cannot be tested.  Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Answer = Literal["good", "bad", "skip"]


@dataclass(frozen=True)
class Found:
    """The outcome: the first bad one is one of ``candidates``, which are indices in order.

    There is more than one only where those between cannot be tested; ``answers`` has
    what each tested index gave.
    """

    candidates: tuple[int, ...]
    answers: dict[int, Answer]


def search(count: int, probe: Callable[[int], Answer]) -> Found:
    """The first bad one of ``count``, of which 0 is known to be good and the last to be bad.

    ``probe`` is asked once an index at most, and for neither end.  Raises ValueError for
    fewer than two.
    """
    if count < 2:
        raise ValueError("a search needs a good one and a bad one")
    good, bad = 0, count - 1
    answers: dict[int, Answer] = {}
    while untested := [n for n in range(good + 1, bad) if n not in answers]:
        middle = (good + bad) // 2
        # Beside what cannot be tested there is often something that can.
        at = min(untested, key=lambda n: (abs(n - middle), n))
        answers[at] = probe(at)
        if answers[at] == "good":
            good = at
        elif answers[at] == "bad":
            bad = at
    return Found(tuple(range(good + 1, bad + 1)), answers)


def steps(count: int) -> int:
    """How many probes a search among ``count`` takes at most if none has to be skipped."""
    return max(0, count - 2).bit_length()
