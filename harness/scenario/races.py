# SPDX-License-Identifier: GPL-2.0-only
"""Scenarios in which attachers of all kinds come to the same few functions and leave them at once.

They are named races/<who>.  Each stirrer does a number of rounds; what is refused must be
refused for a reason that the policy allows (harness/policy/opsjudge.py), and at the end the
registry must be as if nothing had been.  They are meant for kernels that look for trouble
themselves (``--flavour debug`` and ``kasan``), and run on any.

What is known to go wrong without a race is left out: kprobes with a post_handler
(docs/findings/kprobe-post.md), BPF programs on two functions of which one has a livepatch
(share-asked-unlocked.md), users of the function graph on two functions
(fgraph-bit-zero.md), and who asks for registers and is the last to leave a function while
ftrace is off (stale-regs.md).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

from . import check
from .steps import (
    FTRACE_ENABLED,
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
    Write,
)

#: Functions that stirrers share: a module's, hammered by kernel threads, and one of vmlinux,
#: read through /proc; BPF programs for functions of modules need more of a kernel.
HOT, CMDLINE, VERSION = "cohabit_hot", "cmdline_proc_show", "version_proc_show"
GETPGID, LINK = "security_task_getpgid", "rtnl_getlink"
_KERNEL, _USER = Hammer(HOT, "kernel"), Hammer(CMDLINE, "user")
CPUS = 2
#: Rounds of each stirrer, of one that has all functions traced, and where nothing takes long:
#: a livepatch that others are in the way of has some a minute under emulation.
_ROUNDS, _ROUNDS_OF_ALL, _QUICK = 2, 1, 20
#: Calls of all hammers, seconds that it lasts at least and at most; and at most where all
#: functions are traced, which takes minutes under emulation.
_CALLS, _SECONDS, _LIMIT, _LIMIT_OF_ALL = 1000, 60, 240, 600


def cycle(name: str, *steps: Step | TraceAll) -> Stirrer:
    """A stirrer that repeats these steps."""
    return Stirrer(name, steps)


OFF_ON = cycle("ftrace_enabled", Write(FTRACE_ENABLED, "0"), Write(FTRACE_ENABLED, "1"))


def toggle(attacher: str, *functions: str, number: int = 0) -> Stirrer:
    """It comes and goes; ``number`` tells several of a kind apart."""
    name = f"{attacher}-{number}" if number else attacher
    return cycle(name, Attach(name, attacher, functions), Detach(name))


def _several(attacher: str, *places: str) -> tuple[Stirrer, ...]:
    """One for each place."""
    return tuple(toggle(attacher, place, number=n) for n, place in enumerate(places, 1))


def _modified(attacher: str, function: str) -> Stirrer:
    name = f"{attacher}-modified"
    return cycle(
        name,
        Attach(name, attacher, (function,)),
        Modify(name, 1),
        Modify(name, 0),
        Modify(name, 1),
        Detach(name),
    )


def turned(*functions: str) -> Stirrer:
    """A livepatch whose transition is turned round before it has ended."""
    return cycle(
        "reversal",
        Attach("reversal", "livepatch", functions, wait=False),
        Disable("reversal", wait=False),
        Detach("reversal"),
    )


def scenario(
    name: str,
    stirrers: Iterable[Stirrer],
    hammers: tuple[Hammer, ...] = (_KERNEL,),
    there: tuple[Attach, ...] = (),
    rounds: int = _ROUNDS,
    calls: int = _CALLS,
    patches: int = 0,
    seconds: int = _SECONDS,
    limit: int = _LIMIT,
) -> Scenario:
    """One that stirs; ``there`` comes first and leaves last.

    ``seconds`` that it lasts at least, ``limit``: at most.
    """
    calls = calls if hammers else 0
    stir = Stir(
        hammers,
        tuple(stirrers),
        calls=calls,
        patches=patches,
        rounds=rounds,
        seconds=limit,
        at_least=seconds,
    )
    leaving = (Detach(attach.id) for attach in reversed(there))
    steps: tuple[Step, ...] = (*there, stir, *leaving)
    functions = dict.fromkeys(f for step in steps for f in check.functions_of(step))
    return Scenario(name, tuple(functions), steps, cpus=CPUS)


def _stay(*functions: str) -> tuple[Attach, ...]:
    """A plain user of each function for all the time."""
    return tuple(Attach(f"stays{n}", "ops", (f,)) for n, f in enumerate(functions, 1))


@functools.cache
def scenarios() -> tuple[Scenario, ...]:
    """All of them."""
    both = (_KERNEL, _USER)
    return (
        # One of everything; direct calls and livepatches are in each other's way.
        scenario(
            "races/attachers",
            (
                toggle("ops", HOT, CMDLINE),
                toggle("ops-regs", HOT),
                toggle("fentry", CMDLINE),
                toggle("fexit", CMDLINE),
                toggle("direct", HOT),
                toggle("direct-share", HOT),
                toggle("kprobe", HOT, CMDLINE),
                toggle("kretprobe", CMDLINE),
                toggle("fprobe", HOT, CMDLINE),
                toggle("livepatch", HOT, CMDLINE),
            ),
            both,
        ),
        # The trampoline is made anew for each program, and for each livepatch.
        scenario(
            "races/livepatch-bpf",
            (
                toggle("livepatch", CMDLINE),
                turned(CMDLINE),
                toggle("ipmodify", CMDLINE),
                *_several("fentry", CMDLINE, CMDLINE),
                *_several("fexit", CMDLINE, CMDLINE),
                toggle("ops", CMDLINE),
            ),
            (_USER,),
        ),
        scenario(
            "races/fmod_ret",
            (
                toggle("livepatch", GETPGID),
                *_several("fmod_ret", GETPGID, GETPGID),
                toggle("fexit", GETPGID),
                toggle("fentry", GETPGID),
                toggle("function-tracer", GETPGID),
            ),
            (Hammer(GETPGID, "user"),),
        ),
        # BPF programs come to several functions, so that their one ops changes its hash.
        scenario(
            "races/bpf",
            (
                *_several("fentry", CMDLINE, VERSION, GETPGID),
                *_several("fexit", CMDLINE, VERSION, GETPGID),
                toggle("kprobe-multi", CMDLINE, VERSION),
                toggle("ops-regs", CMDLINE, VERSION, GETPGID),
            ),
            (_USER,),
        ),
        scenario(
            "races/direct",
            (
                *_several("direct", HOT, CMDLINE),
                _modified("direct", HOT),
                _modified("direct-share", HOT),
                toggle("fentry", CMDLINE),
                toggle("fexit", CMDLINE),
                toggle("ops", HOT, CMDLINE),
                toggle("ipmodify", HOT),
            ),
            both,
        ),
        # One direct call is always there; who shares its function comes and goes.
        scenario(
            "races/modify",
            (
                cycle("modify", Modify("direct", 1), Modify("direct", 0)),
                *_several("ops", HOT, HOT),
                toggle("kprobe", HOT),
                toggle("function-tracer", HOT),
                toggle("livepatch", HOT),
            ),
            there=(Attach("direct", "direct-share", (HOT,)),),
        ),
        scenario(
            "races/kprobes",
            (
                *_several("kprobe", HOT, CMDLINE, HOT),
                toggle("kprobe", HOT, CMDLINE),
                *_several("kretprobe", HOT, CMDLINE),
                toggle("fprobe", HOT, CMDLINE),
                toggle("ops", HOT),
                toggle("livepatch", CMDLINE),
            ),
            both,
        ),
        scenario(
            "races/tracers",
            (
                toggle("function-tracer", HOT),
                *_several("instance", HOT, CMDLINE),
                toggle("instance", HOT, CMDLINE),
                *_several("ops", HOT, CMDLINE),
                toggle("ops-regs", HOT),
                toggle("fprobe", CMDLINE),
                toggle("livepatch", HOT),
            ),
            both,
        ),
        scenario(
            "races/graph",
            (
                toggle("function-graph", HOT),
                toggle("instance", HOT),
                *_several("ops", HOT, HOT),
                toggle("kprobe", HOT),
                toggle("direct-share", HOT),
                toggle("livepatch", HOT),
            ),
        ),
        scenario(
            "races/returns",
            (
                *_several("fprobe-exit", CMDLINE, CMDLINE),
                *_several("kretprobe", CMDLINE, CMDLINE),
                *_several("fexit", CMDLINE, CMDLINE),
                toggle("livepatch", CMDLINE),
            ),
            (_USER,),
        ),
        scenario(
            "races/livepatches",
            (
                toggle("livepatch", HOT),
                toggle("livepatch", HOT, CMDLINE, number=2),
                turned(CMDLINE),
                toggle("ipmodify", HOT),
                *_several("ops", HOT, CMDLINE),
            ),
            both,
        ),
        # A module's records come and go beside changes to those of vmlinux.
        scenario(
            "races/modules",
            (
                cycle("module", Unload(), Load()),
                toggle("function-tracer", CMDLINE),
                toggle("instance", VERSION),
                toggle("livepatch", CMDLINE),
                toggle("kprobe", CMDLINE, VERSION),
                toggle("fentry", CMDLINE),
                toggle("direct-share", VERSION),
                toggle("ops", CMDLINE, VERSION),
            ),
            (_USER,),
        ),
        scenario(
            "races/all-functions",
            (
                cycle("function-tracer-all", TraceAll("function"), TraceAll("nop")),
                cycle("module", Unload(), Load()),
                toggle("livepatch", CMDLINE),
                toggle("fexit", CMDLINE),
                toggle("kprobe", CMDLINE),
            ),
            (_USER,),
            rounds=_ROUNDS_OF_ALL,
            limit=_LIMIT_OF_ALL,
        ),
        scenario(
            "races/ftrace_enabled",
            (
                OFF_ON,
                toggle("function-tracer", HOT),
                *_several("ops", HOT, CMDLINE),
                toggle("kprobe", HOT),
                toggle("direct", HOT),
                toggle("fentry", CMDLINE),
                toggle("livepatch", CMDLINE),
            ),
            both,
            _stay(HOT, CMDLINE),
        ),
        # Who stays has the same ops as those that come to another function, and counts exactly.
        scenario(
            "races/elsewhere",
            (
                *_several("kprobe", VERSION, VERSION),
                toggle("kretprobe", VERSION),
                *_several("direct", VERSION, "cohabit_f1", "cohabit_f6"),
                _modified("direct-share", GETPGID),
                toggle("fentry", LINK),
                toggle("fexit", LINK),
                toggle("ops", VERSION, LINK),
            ),
            both,
            (
                Attach("ops-1", "ops", (HOT,)),
                Attach("kprobe-stays", "kprobe", (HOT,)),
                Attach("direct-stays", "direct", (HOT,)),
                Attach("ops-2", "ops", (CMDLINE,)),
                Attach("fentry-stays", "fentry", (CMDLINE,)),
            ),
        ),
        # Nobody calls: only who attaches is there, and each function is empty again and again.
        scenario(
            "races/nobody-calls",
            (
                *_several("ops", HOT, CMDLINE),
                toggle("kprobe", HOT, CMDLINE),
                toggle("direct", HOT),
                toggle("ipmodify", CMDLINE),
                toggle("fprobe", HOT, CMDLINE),
                toggle("fentry", CMDLINE),
            ),
            (),
            rounds=_QUICK,
        ),
    )
