# SPDX-License-Identifier: GPL-2.0-only
"""Scenarios in which all that stirs does so at once, for half an hour and more.

They are named soak/<what stays>/on:<function>, and promise what those of
harness/scenario/consistency.py do.  What is known to go wrong without a race is left out
(see harness/scenario/races.py).
"""

from __future__ import annotations

import functools
from dataclasses import replace

from .consistency import replacing
from .races import CMDLINE, HOT, OFF_ON, VERSION, cycle, scenario, toggle, turned
from .steps import (
    Attach,
    Detach,
    Hammer,
    Load,
    Modify,
    Scenario,
    Stirrer,
    TraceAll,
    Unload,
)

_READ = (Hammer(CMDLINE, "kernel"), Hammer(CMDLINE, "user"))
#: Patches of the call site: only who asks for registers changes one that has two users already.
_ROUNDS, _CALLS, _PATCHES = 2, 1_000_000, 100
#: Seconds that it lasts at least and at most.
_SECONDS, _LIMIT = 1800, 2400
#: How much longer a tracer of all functions rests than it takes.
_REST = 2


def _stay(attacher: str, *functions: str) -> Attach:
    return Attach("stays", attacher, functions)


def _livepatches(*functions: str) -> Stirrer:
    """All that livepatches do, in turns: there is one transition at a time."""
    return cycle(
        "livepatch",
        *toggle("livepatch", *functions).steps,
        *turned(*functions).steps,
        *replacing(*functions, other="next").steps,
    )


def _modified(function: str) -> Stirrer:
    """A direct call that may be beside a livepatch."""
    return cycle(
        "direct",
        Attach("direct", "direct-share", (function,)),
        Modify("direct", 1),
        Modify("direct", 0),
        Detach("direct"),
    )


#: An exit program that is the first on a livepatched function is
#: docs/findings/listed-before-asked.md; one that comes to another program's trampoline is not.
#: So nothing else may be there for which the other program would be refused.
_PROGRAMS = cycle(
    "programs",
    *(Attach(name, name, (CMDLINE,)) for name in ("fentry", "fexit")),
    Detach("fexit"),
    Detach("fentry"),
)


def _everywhere(*tracers: str) -> Stirrer:
    """Tracers on all functions, one after the other; others have time of their own between."""
    steps = (TraceAll(step) for tracer in tracers for step in (tracer, "nop"))
    return replace(cycle("tracers-all", *steps), rest=_REST)


@functools.cache
def scenarios() -> tuple[Scenario, ...]:
    """All of them."""
    hot = scenario(
        f"soak/livepatch/on:{HOT}",
        (
            toggle("function-tracer", HOT),
            _everywhere("function"),
            toggle("ops", HOT),
            toggle("kprobe", HOT),
            _modified(HOT),
            toggle("fentry", CMDLINE),
            toggle("fexit", CMDLINE),
            OFF_ON,
            _livepatches(HOT),
        ),
        (Hammer(HOT, "kernel"), *_READ),
        (
            Attach("anchor", "function-tracer", (VERSION,)),
            _stay("livepatch-replace", HOT),
            Attach("also", "ops", (HOT,)),
            Attach("program", "fentry", (CMDLINE,)),
        ),
        _ROUNDS, _CALLS, _PATCHES, _SECONDS, _LIMIT,
    )  # fmt: skip
    # The module comes and goes, so only functions of vmlinux are called; function_graph has the
    # top, so the function tracer comes in an instance.  No program stays, for with one nobody
    # else would change the call site.
    cmdline = scenario(
        f"soak/livepatch/on:{CMDLINE}",
        (
            toggle("function-graph", CMDLINE),
            toggle("instance", CMDLINE),
            _everywhere("function", "function_graph"),
            toggle("ops", CMDLINE),
            toggle("kprobe", CMDLINE),
            _modified(VERSION),
            _PROGRAMS,
            OFF_ON,
            _livepatches(CMDLINE, "cohabit_f1"),
            cycle("module", Unload(), Load()),
        ),
        (*_READ, Hammer(VERSION, "user")),
        (
            Attach("anchor", "function-graph", (VERSION,)),
            _stay("livepatch-replace", CMDLINE, "cohabit_f1"),
            Attach("also", "ops", (CMDLINE,)),
        ),
        _ROUNDS, _CALLS, _PATCHES, _SECONDS, _LIMIT,
    )  # fmt: skip
    return hot, cmdline
