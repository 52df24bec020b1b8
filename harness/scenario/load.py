# SPDX-License-Identifier: GPL-2.0-only
"""Livepatch transitions while tasks sleep, spin and fork in the function.

They are named load/<what>.  A task is switched where it is seen not to be in a function
that changes (kernel/livepatch/transition.c): asleep by its stack, running when it comes to
a safe place, and one that was forked like the one it was forked from.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

from .races import CMDLINE, CPUS, GETPGID, HOT, cycle, scenario, toggle, turned
from .steps import Attach, Call, Detach, Hammer, Hold, Release, Scenario, Stir

HOLD = "cohabit_hold"
SPIN, READ, FORK = Hammer(HOT, "kernel"), Hammer(CMDLINE, "user"), Hammer(GETPGID, "fork")
#: Seconds that a transition which must not end is given to end.
_PENDING = 10
#: Rounds of what takes a transition; calls, as a fork for each takes its time.
_ROUNDS, _CALLS = 5, 100
#: Seconds that one lasts at least.
_SECONDS = 30


#: Calls stay asleep in the function until they are let go.
_HELD = cycle("hold", Hold("hold", HOLD), Release("hold"))


def _transitions() -> Iterator[Scenario]:
    for what, hammers in (
        ("spinning", (SPIN,)),
        ("reading", (READ,)),
        ("forking", (FORK,)),
        ("all", (SPIN, READ, FORK)),
    ):
        functions = tuple(dict.fromkeys(hammer.function for hammer in hammers))
        for name, patch in (
            ("", toggle("livepatch", *functions)),
            ("/reversal", turned(*functions)),
        ):
            yield scenario(f"load/{what}{name}", (patch,), hammers, rounds=_ROUNDS, calls=_CALLS)


def _sleeping() -> Iterator[Scenario]:
    """Calls are asleep in the function that is patched, and come back meanwhile."""
    for name, patch in (("", toggle("livepatch", HOT, HOLD)), ("/reversal", turned(HOT, HOLD))):
        yield scenario(
            f"load/sleeping{name}", (patch, _HELD), (SPIN,), rounds=_ROUNDS, seconds=_SECONDS
        )


def _pending() -> Iterator[Scenario]:
    """A call sleeps in the old function: the transition is pending until it has left."""
    for name, hammers in (("spinning", (SPIN,)), ("forking", (SPIN, FORK))):
        functions = tuple(dict.fromkeys(hammer.function for hammer in hammers))
        patch = Attach("p", "livepatch", (HOLD, *functions))
        # A user of a function that may still be the old one, and may be the new one.
        stir = Stir(
            hammers,
            (toggle("ops", HOT),),
            calls=_CALLS,
            patches=0,
            rounds=_ROUNDS,
            at_least=_PENDING,
        )
        steps = (Hold("h", HOLD), patch, stir, Call(), Release("h"), Call(), Detach("p"))
        yield Scenario(f"load/pending/{name}", (HOLD, *functions), steps, cpus=CPUS)


@functools.cache
def scenarios() -> tuple[Scenario, ...]:
    """All of them."""
    return (*_transitions(), *_sleeping(), *_pending())
