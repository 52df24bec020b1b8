# SPDX-License-Identifier: GPL-2.0-only
"""The step ``stir`` from its JSON form (docs/writing-scenarios.md)."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from harness.errors import UsageError

from .fields import Data, number, one_of, text
from .steps import (
    Attach,
    Call,
    Detach,
    Disable,
    Enable,
    Hold,
    Load,
    Modify,
    Release,
    Step,
    Unload,
    Write,
)
from .stir import (
    ALL_TRACERS,
    CALLS,
    FAULTS,
    HAMMERED,
    PATCHES,
    ROUNDS,
    SECONDS,
    Hammer,
    Stir,
    Stirrer,
    TraceAll,
)

#: What a stirrer may do.
_STEPS = (
    Attach,
    Detach,
    Modify,
    Disable,
    Enable,
    Write,
    Load,
    Unload,
    Hold,
    Release,
    Call,
    TraceAll,
)
_KEYS = frozenset(
    {
        "do", "hammers", "stirrers", "calls", "patches", "rounds", "seconds", "at_least", "seed",
        "widen_us", "fault",
    }
)  # fmt: skip
#: The most that a window can be held open: a hammer is not to look stalled.
WIDEST_US = 100_000


def stir(data: Data, step: Callable[[object], Step]) -> Stir:
    """The step; ``step`` reads an ordinary one.  Raises UsageError for what there is not."""
    if unknown := sorted(set(data) - _KEYS):
        # A misspelt number would silently be the usual one.
        raise UsageError(f"a stir has no {unknown[0]!r}", f"known: {', '.join(sorted(_KEYS))}")
    hammers = tuple(_hammer(one) for one in _list(data, "hammers"))
    if len(set(hammers)) < len(hammers):
        raise UsageError(f"a stir names a hammer twice: {json.dumps(data['hammers'])}")
    stirrers = tuple(_stirrer(one, step) for one in _list(data, "stirrers"))
    names = [stirrer.name for stirrer in stirrers]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"two stirrers are called {twice[0]!r}", "give each a name of its own")
    if not stirrers:
        raise UsageError("a stir needs stirrers, at least one")
    made = Stir(
        hammers,
        stirrers,
        calls=number(data, "calls", CALLS if hammers else 0),
        patches=number(data, "patches", PATCHES if hammers else 0),
        rounds=number(data, "rounds", ROUNDS, 1),
        seconds=number(data, "seconds", SECONDS, 1),
        at_least=number(data, "at_least", 0),
        seed=number(data, "seed", 1),
        widen_us=number(data, "widen_us", 0),
        fault=one_of(data, "fault", FAULTS, ""),
    )
    if not hammers and (made.calls or made.patches or made.fault):
        raise UsageError("a stir without hammers has no calls, patches or fault", "leave them out")
    if made.at_least > made.seconds:
        raise UsageError("a stir's 'at_least' is more than its 'seconds'", "raise 'seconds'")
    if made.widen_us > WIDEST_US:
        raise UsageError(f"'widen_us' is {WIDEST_US} at most (microseconds)")
    return made


def _list(data: Data, key: str) -> list[Any]:
    value = data.get(key, [])
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise UsageError(f"a stir's {key!r} is a list of objects")
    return value


def _hammer(data: Data) -> Hammer:
    by = one_of(data, "by", tuple(HAMMERED))
    function = text(data, "function")
    if function not in HAMMERED[by]:
        raise UsageError(
            f"{function!r} cannot be hammered by {by}", f"known: {', '.join(HAMMERED[by])}"
        )
    return Hammer(function, by)


def _stirrer(data: Data, step: Callable[[object], Step]) -> Stirrer:
    steps = data.get("steps")
    if not isinstance(steps, list) or not steps:
        raise UsageError(f"a stirrer needs steps: {json.dumps(dict(data))}")
    found = tuple(_step(one, step) for one in steps)
    for one in found:
        if not isinstance(one, _STEPS):
            raise UsageError(f"a stirrer cannot do this: {one}")
    return Stirrer(text(data, "name"), found, number(data, "rest", 0))


def _step(data: object, step: Callable[[object], Step]) -> Step | TraceAll:
    if isinstance(data, dict) and data.get("do") == "trace-all":
        return TraceAll(one_of(data, "tracer", ALL_TRACERS))
    return step(data)
