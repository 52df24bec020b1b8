# SPDX-License-Identifier: GPL-2.0-only
"""Scenarios in which functions are called without a pause while their code changes.

They are named consistency/<what is stirred>/<what stays>/on:<function>.  What stays is
there throughout, and is what the promise is about: under a ``livepatch`` a call never
meets the original body; ``fentry``, ``fexit`` and ``ops`` count each call exactly
(docs/consistency.md).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace

from harness.arch import X86_64

from . import check
from .races import OFF_ON, cycle
from .steps import (
    Attach,
    Detach,
    Disable,
    Hammer,
    Load,
    Modify,
    Scenario,
    Step,
    Stir,
    Stirrer,
    TraceAll,
    Unload,
)
from .stir import PATCHES, ROUNDS

#: Called by its address, through /proc, and by netlink.
HOT, CMDLINE, LINK = "cohabit_hot", "cmdline_proc_show", "rtnl_getlink"
_HAMMERS = {
    HOT: (Hammer(HOT, "kernel"),),
    CMDLINE: (Hammer(CMDLINE, "kernel"), Hammer(CMDLINE, "user")),
    LINK: (Hammer(LINK, "user"),),
}
#: A tracer stays on this one, so that to toggle it on another is only a change of its filter.
_ANCHOR = "version_proc_show"
_CPUS = 2
#: Rounds of what takes long by itself: a tracer on all functions (which it may be for more
#: than a minute on a busy host), and how much longer it rests than it takes, so that the
#: number of patches can be reached.
_ROUNDS_OF_ALL, _REST = 1, 2
#: Rounds of what comes and goes beside patches: a module; a transition, for which from 6.4 to
#: 6.15 each cond_resched() is patched, and back (kernel/sched/core.c: sched_dynamic_klp_enable).
_ROUNDS = 2
#: Each is two changes.
_MODIFIED = PATCHES // 2
#: Rounds of an exit program that is asked whether it shares.
_ASKED = 400
_WIDE_US = 2000
_BESIDE = "function-tracer"


def _on_and_off(attacher: str, function: str) -> Stirrer:
    """Attached and detached, over and over."""
    return cycle(attacher, Attach("s", attacher, (function,)), Detach("s"))


def _anchor(tracer: str) -> Attach:
    return Attach("anchor", tracer, (_ANCHOR,))


def _toggle(function: str, tracer: str = _BESIDE) -> Stirrer:
    """The tracer goes to the function and leaves it; it never stops."""
    return cycle(tracer, Attach("t", tracer, (function,)), Detach("t"))


def _trace_all(name: str, tracer: str) -> Stirrer:
    """A tracer on all functions: tens of thousands of call sites, under one lock."""
    return Stirrer(name, (TraceAll(tracer), TraceAll("nop")), rest=_REST)


def _scenario(
    name: str, stays: tuple[Attach, ...], stirrers: tuple[Stirrer, ...], function: str,
    rounds: int = ROUNDS, patches: int = PATCHES,
) -> Scenario:  # fmt: skip
    """What stays comes first and leaves last, in between it is stirred."""
    stir = Stir(_HAMMERS[function], stirrers, rounds=rounds, patches=patches)
    leaving = (Detach(attach.id) for attach in reversed(stays))
    steps: tuple[Step, ...] = (*stays, stir, *leaving)
    named = (function, *(f for step in steps for f in check.functions_of(step)))
    functions = tuple(dict.fromkeys(named))
    return Scenario(f"consistency/{name}/on:{function}", functions, steps, cpus=_CPUS)


def _stay(attacher: str, *functions: str) -> Attach:
    return Attach("stays", attacher, functions)


def _counting(function: str) -> str:
    """What counts exactly there; BPF programs for a module's function need more of a kernel."""
    return "ops" if function == HOT else "fentry"


def _places() -> Iterator[tuple[str, str]]:
    """Functions, each with what may stay there."""
    for function in (HOT, CMDLINE):
        yield function, "livepatch"
        yield function, _counting(function)


def _tracers() -> Iterator[Scenario]:
    for tracer in ("function-tracer", "function-graph"):
        for function, stays in (*_places(), (LINK, "livepatch"), (LINK, "fentry")):
            yield _scenario(
                f"{tracer}/{stays}",
                (_anchor(tracer), _stay(stays, function)),
                (_toggle(function, tracer),),
                function,
            )
    for function, stays in _places():
        yield _scenario(
            f"function-tracer-all/{stays}",
            (_anchor(_BESIDE), _stay(stays, function)),
            (_toggle(function), _trace_all("function-tracer-all", "function")),
            function,
            _ROUNDS_OF_ALL,
        )
        # Before tracing instances had it, function_graph took the top instance's tracer away:
        # so what brings the patches is none.
        yield _scenario(
            f"function-graph-all/{stays}",
            (_stay(stays, function),),
            (
                _on_and_off("ops", function),
                _trace_all("function-graph-all", "function_graph"),
            ),
            function,
            _ROUNDS_OF_ALL,
        )


def _attachers() -> Iterator[Scenario]:
    for attacher in ("ops", "kprobe"):
        for function, stays in _places():
            stirrers = (_on_and_off(attacher, function),)
            yield _scenario(f"{attacher}/{stays}", (_stay(stays, function),), stirrers, function)
    for attacher in ("fentry", "fexit"):
        for function, stays in (
            (HOT, "livepatch"), (CMDLINE, "livepatch"), (CMDLINE, "fentry"), (LINK, "livepatch"),
        ):  # fmt: skip
            stirrers = (_on_and_off(attacher, function),)
            yield _scenario(f"{attacher}/{stays}", (_stay(stays, function),), stirrers, function)
    # Somebody who wants all registers: so whoever comes is called as soon as he is on ftrace's
    # list, and no call site is patched (docs/findings/listed-before-asked.md).
    yield _scenario(
        "fexit/livepatch+ops-regs",
        (_stay("livepatch", CMDLINE), Attach("also", "ops-regs", (CMDLINE,))),
        (_on_and_off("fexit", CMDLINE),),
        CMDLINE,
        _ASKED,
        patches=0,
    )


def _direct() -> Iterator[Scenario]:
    """A direct call comes and goes; and one that stays is modified."""
    for function in (HOT, CMDLINE):
        # Only one that agrees to share may be beside a livepatch.
        for stays, attacher in (("livepatch", "direct-share"), ("ops", "direct")):
            stirrer = cycle(
                attacher,
                Attach("s", attacher, (function,)),
                Modify("s", 1),
                Modify("s", 0),
                Detach("s"),
            )
            yield _scenario(f"direct/{stays}", (_stay(stays, function),), (stirrer,), function)
        modify = cycle("modify", Modify("d", 1), Modify("d", 0))
        yield _scenario(
            "direct-modify/direct", (Attach("d", "direct", (function,)),), (modify,), function
        )
        # Beside a livepatch ftrace_caller goes to the trampoline: to modify it patches nothing.
        yield _scenario(
            "direct-modify/livepatch",
            (_stay("livepatch", function), Attach("d", "direct-share", (function,))),
            (modify,),
            function,
            _MODIFIED,
            patches=0,
        )


def _patch(function: str) -> Stirrer:
    return cycle("livepatch", Attach("p", "livepatch", (function,)), Detach("p"))


def _reversal(function: str) -> Stirrer:
    """A transition is turned back before it has ended."""
    return cycle(
        "reversal",
        Attach("r", "livepatch", (function,), wait=False),
        Disable("r", wait=False),
        Detach("r"),
    )


def replacing(*functions: str, other: str = "p") -> Stirrer:
    """What stays is replaced by another and replaces that again: one of them is always there."""
    return cycle(
        "replace",
        Attach(other, "livepatch-replace", functions),
        Detach("stays"),
        Attach("stays", "livepatch-replace", functions),
        Detach(other),
    )


def _slow() -> Iterator[Scenario]:
    """What takes long by itself, beside a tracer's filter, which patches all the time."""
    for function, stays in _places():
        there = (_anchor(_BESIDE), _stay(stays, function))
        # Of two users a call site does not tell, so that a third changes nothing in it.  Where a
        # livepatch comes to another user, x86-64 has another ftrace_caller for who wants all
        # registers; and where that is wanted all the time (by a direct call), patches are for
        # when the livepatch is away.
        quick = (_toggle(function), *((_on_and_off("kprobe", function),) if stays == "ops" else ()))
        rest = _REST if stays == "fentry" else 0
        for stirrer in (_patch(function), _reversal(function)):
            yield _scenario(
                f"{stirrer.name}/{stays}",
                there,
                (*quick, replace(stirrer, rest=rest)),
                function,
                _ROUNDS,
            )
        yield _scenario(
            f"ftrace_enabled/{stays}", there, (_toggle(function), OFF_ON), function, _ROUNDS
        )
        if stays == "livepatch":
            yield _scenario(
                "replace/livepatch",
                (_anchor(_BESIDE), _stay("livepatch-replace", function)),
                (_toggle(function), replacing(function)),
                function,
                _ROUNDS,
            )
    module = cycle("module", Unload(), Load())
    for kept in (_stay("livepatch", CMDLINE, "cohabit_f1"), _stay("fentry", CMDLINE)):
        yield _scenario(
            f"module/{kept.attacher}",
            (_anchor(_BESIDE), kept),
            (_toggle(CMDLINE), module),
            CMDLINE,
            _ROUNDS,
        )


def _widened() -> Iterator[Scenario]:
    """The window between two steps of a patch held open; arm64 patches in one step."""
    for function in (HOT, CMDLINE):
        usual = _scenario(
            "function-tracer/livepatch",
            (_anchor(_BESIDE), _stay("livepatch", function)),
            (_toggle(function),),
            function,
        )
        assert usual.stir is not None
        wide = replace(usual.stir, widen_us=_WIDE_US)
        steps = tuple(wide if isinstance(s, Stir) else s for s in usual.steps)
        yield replace(usual, name=f"{usual.name}/widened", steps=steps, arch=X86_64.name)


@functools.cache
def scenarios() -> tuple[Scenario, ...]:
    """All of them."""
    return (
        *_tracers(),
        *_attachers(),
        *_direct(),
        *_slow(),
        *_widened(),
    )
