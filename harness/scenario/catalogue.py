# SPDX-License-Identifier: GPL-2.0-only
"""The scenarios that cohabit knows, generated from attachers and functions."""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Iterator, Sequence

from harness.errors import UsageError
from harness.policy.attachers import ATTACHERS

from .functions import FUNCTIONS, Function
from .steps import FTRACE_ENABLED, Attach, Detach, Scenario, Step, Write

#: Where a pair meets unless a scenario's name says otherwise: a function of
#: vmlinux whose text is the witness, or the one that takes fmod_ret.
PLAIN_FUNCTION = "cmdline_proc_show"
FMOD_RET_FUNCTION = "security_task_getpgid"


def _home(*attachers: str) -> str:
    return FMOD_RET_FUNCTION if "fmod_ret" in attachers else PLAIN_FUNCTION


def _takes(function: Function, *attachers: str) -> bool:
    return function.fmod_ret or "fmod_ret" not in attachers


def _suffix(function: str, *attachers: str) -> str:
    return "" if function == _home(*attachers) else f"/on:{function}"


def _pair(first: str, second: str, function: str) -> Iterator[Scenario]:
    """Both attach orders and both detach orders of two attachers.

    Where the second attach is refused, ``detach`` of it is left out, and after
    the first has left it is attached again: the refusal must have left no trace.
    """
    for attach in ("ab",) if first == second else ("ab", "ba"):
        for detach in ("ab", "ba"):
            kinds = {"a": first, "b": second}
            early, late = attach[0], attach[1]
            steps: list[Step] = [Attach(x, kinds[x], function) for x in attach]
            steps.append(Detach(detach[0]))
            if detach[0] == early:
                steps.append(Attach(late, kinds[late], function, unless_attached=True))
            steps.append(Detach(detach[1]))
            yield Scenario(
                f"{first}+{second}/attach:{attach}/detach:{detach}"
                + _suffix(function, first, second),
                (function,),
                tuple(steps),
                (kinds[early], kinds[late]),
            )


def pairs(function: str | None = None) -> Iterator[Scenario]:
    """All ordered pairs on one function, or each on its home function."""
    for first, second in itertools.combinations_with_replacement(ATTACHERS, 2):
        where = function or _home(first, second)
        if _takes(FUNCTIONS[where], first, second):
            yield from _pair(first, second, where)


def singles(function: str) -> Iterator[Scenario]:
    """Each attacher alone."""
    for attacher in ATTACHERS:
        if not _takes(FUNCTIONS[function], attacher):
            continue
        yield Scenario(
            f"{attacher}/alone" + _suffix(function, attacher),
            (function,),
            (Attach("a", attacher, function), Detach("a")),
        )


def ftrace_enabled() -> Iterator[Scenario]:
    """kernel.ftrace_enabled turned off and on around each attacher."""
    off, on = Write(FTRACE_ENABLED, "0"), Write(FTRACE_ENABLED, "1")
    for attacher in ATTACHERS:
        function = _home(attacher)
        attach, detach = Attach("a", attacher, function), Detach("a")
        again = Attach("a", attacher, function, unless_attached=True)
        for name, steps in (
            ("off-on", (attach, off, on, detach)),
            ("attach-while-off", (off, attach, on, again, detach)),
            # Back at once on the same function: see stale_regs below.
            ("detach-while-off", (attach, off, detach, on, again, detach)),
        ):
            yield Scenario(f"{attacher}/ftrace_enabled:{name}", (function,), steps)


def stale_regs() -> Iterator[Scenario]:
    """docs/findings/stale-regs.md: detached while off, then another function is used."""
    first, other = PLAIN_FUNCTION, "version_proc_show"
    yield Scenario(
        "ops-regs/ftrace_enabled:detach-while-off/then:ops",
        (first, other),
        (
            Attach("a", "ops-regs", first),
            Write(FTRACE_ENABLED, "0"),
            Detach("a"),
            Write(FTRACE_ENABLED, "1"),
            Attach("b", "ops", other),
            Detach("b"),
        ),
    )


def default() -> tuple[Scenario, ...]:
    """What ``cohabit run`` runs when nothing is named.

    Of the pairs those in which the first to come is the first to go: the harder
    half, with the second attach tried again where it was refused.  The last
    scenario costs its VM, so nothing comes after it.
    """
    return (
        *(s for s in pairs() if _first_goes_first(s)),
        *ftrace_enabled(),
        *(s for name in FUNCTIONS for s in singles(name)),
        *stale_regs(),
    )


def _first_goes_first(scenario: Scenario) -> bool:
    first = next(s.id for s in scenario.steps if isinstance(s, Attach))
    return first == next(s.id for s in scenario.steps if isinstance(s, Detach))


def everything() -> tuple[Scenario, ...]:
    """The whole catalogue: the default, the other detach orders, all pairs on every function."""
    chosen = default()
    names = {s.name for s in chosen}
    rest = (
        *pairs(),
        *(s for name in FUNCTIONS for s in pairs(name) if s.name.endswith(f":{name}")),
    )
    return (*(s for s in rest if s.name not in names), *chosen)


def select(names: Sequence[str], whole: bool = False) -> tuple[Scenario, ...]:
    """Scenarios by name or glob, in the catalogue's order; all where none is named.

    A name is looked for among the default ones, and where it matches none of them
    (or ``whole``) in the whole catalogue.  Raises UsageError for one that matches
    nothing.
    """
    known = everything()
    first = known if whole else default()
    chosen: set[str] = set()
    for name in names or ["*"]:
        matching = _matching(first, name) or _matching(known, name)
        if not matching:
            close = [s.name for s in known if name.strip("*?") in s.name][:5]
            raise UsageError(
                f"no scenario is called {name!r}",
                f"near it: {', '.join(close)}" if close else "`cohabit list` shows them all",
            )
        chosen |= matching
    return tuple(s for s in known if s.name in chosen)


def _matching(scenarios: Sequence[Scenario], name: str) -> set[str]:
    return {s.name for s in scenarios if fnmatch.fnmatchcase(s.name, name)}
