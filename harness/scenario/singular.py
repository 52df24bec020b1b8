# SPDX-License-Identifier: GPL-2.0-only
"""Scenarios about one thing each: what the matrices do not come to."""

from __future__ import annotations

from collections.abc import Iterator

from harness.policy.attachers import ATTACHERS, CORE

from .functions import FUNCTIONS
from .matrix import takes
from .steps import (
    ANY,
    FTRACE_ENABLED,
    MISUSES,
    Attach,
    Call,
    Detach,
    Disable,
    Enable,
    Force,
    Hold,
    Load,
    Misuse,
    Modify,
    Release,
    Scenario,
    Step,
    Unload,
    Write,
)

_LANES = tuple(f.name for f in FUNCTIONS.values() if f.lane is not None)[:4]
_HOLD = next(f.name for f in FUNCTIONS.values() if f.holds)
#: One that BPF programs go on whether or not modules have BTF.
_VMLINUX = "cmdline_proc_show"


def _on(identity: str, attacher: str, *functions: str, again: bool = False) -> Attach:
    return Attach(identity, attacher, functions, unless_attached=again)


def _scenario(name: str, *steps: Step, ends_vm: bool = False, watch: bool = False) -> Scenario:
    functions = dict.fromkeys(
        f
        for step in steps
        for f in (
            step.functions
            if isinstance(step, Attach)
            else (step.function,)
            if isinstance(step, Hold | Misuse)
            else ()
        )
    )
    return Scenario(name, tuple(functions), steps, watch=watch, ends_vm=ends_vm)


def singles(function: str) -> Iterator[Scenario]:
    """Each attacher alone."""
    for attacher in CORE:
        if takes(function, (attacher,)):
            where = "" if function == ANY else f"/on:{function}"
            yield _scenario(f"{attacher}/alone{where}", _on("a", attacher, function), Detach("a"))


def ftrace_enabled() -> Iterator[Scenario]:
    """kernel.ftrace_enabled turned off and on around each attacher."""
    off, on = Write(FTRACE_ENABLED, "0"), Write(FTRACE_ENABLED, "1")
    for attacher in CORE:
        attach, detach = _on("a", attacher, ANY), Detach("a")
        again = _on("a", attacher, ANY, again=True)
        for name, steps in (
            ("off-on", (attach, off, on, detach)),
            ("attach-while-off", (off, attach, on, again, detach)),
            # Back at once on the same function: see stale_regs below.
            ("detach-while-off", (attach, off, detach, on, again, detach)),
        ):
            yield _scenario(f"{attacher}/ftrace_enabled:{name}", *steps)


def stale_regs() -> Iterator[Scenario]:
    """docs/findings/stale-regs.md: detached while off, then another function is used."""
    yield _scenario(
        "ops-regs/ftrace_enabled:detach-while-off/then:ops",
        _on("a", "ops-regs", _VMLINUX),
        Write(FTRACE_ENABLED, "0"),
        Detach("a"),
        Write(FTRACE_ENABLED, "1"),
        _on("b", "ops", "version_proc_show"),
        Detach("b"),
        ends_vm=True,
    )


def livepatches() -> Iterator[Scenario]:
    """Stacks, atomic replacement, and what /sys/kernel/livepatch takes."""
    one, two, three = _LANES[:3]
    a = _on("a", "livepatch", ANY)
    yield _scenario(
        "livepatch/stack-of-four",
        a,
        *(_on(x, "livepatch", ANY) for x in "bcd"),
        Detach("b"),
        Detach("d"),
        Detach("a"),
        Detach("c"),
    )
    for attacher in ("livepatch", "ipmodify"):
        yield _scenario(
            f"{attacher}/as-third",
            # A record of which nobody knows that it was ever modified.
            Unload(),
            Load(),
            _on("a", "ops", "cohabit_f1"),
            _on("b", "ops", "cohabit_f1"),
            _on("c", attacher, "cohabit_f1"),
            Detach("a"),
            Detach("b"),
            Detach("c"),
        )
    replaced = (_on("a", "livepatch", one), _on("b", "livepatch-replace", one))
    yield _scenario("livepatch/replace", *replaced, Detach("a"), Detach("b"))
    yield _scenario(
        "livepatch/replace-stack",
        a,
        _on("b", "livepatch", ANY),
        _on("c", "livepatch-replace", ANY),
        Enable("a"),
        _on("d", "livepatch", ANY),
        Detach("c"),
        Detach("a"),
        Detach("b"),
        Detach("d"),
    )
    cumulative = (
        _on("a", "livepatch", one, two),
        _on("b", "livepatch", three),
        _on("r", "livepatch-replace", one, three),
    )
    leave = (Detach("a"), Detach("b"), Detach("r"))
    yield _scenario("livepatch/replace-cumulative", *cumulative, *leave)
    for watcher in ("fentry", "fexit", "direct-share", "ops", "kretprobe"):
        yield _scenario(
            f"livepatch/replace-cumulative/under:{watcher}",
            _on("w", watcher, two),
            *cumulative,
            *leave,
            Detach("w"),
        )
    # Whoever comes at once finds the trampoline of the program that left.
    yield _scenario(
        "livepatch+fexit/last-program-leaves-first",
        _on("x", "fexit", ANY),
        a,
        Detach("x"),
        Detach("a"),
        _on("y", "fexit", ANY),
        Detach("y"),
    )
    yield _scenario("livepatch/disable-enable", a, Disable("a"), Enable("a"), Detach("a"))
    yield _scenario("livepatch/enable-twice", a, Enable("a"), Detach("a"))
    yield _scenario("livepatch/force-nothing", a, Force("a"), Detach("a"))
    yield _scenario(
        "livepatch/disable-lower", a, _on("b", "livepatch", ANY), Disable("a"), Detach("b"),
        Detach("a"),
    )  # fmt: skip


def pending() -> Iterator[Scenario]:
    """Transitions that a sleeping call keeps from ending."""
    hold, release = Hold("h", _HOLD), Release("h")
    a, b = _on("a", "livepatch", _HOLD), _on("b", "livepatch", "cohabit_f1")
    yield _scenario("livepatch/pending", hold, a, Call(), release, Detach("a"))
    yield _scenario("livepatch/pending/reverse", hold, a, Disable("a"), release, Detach("a"))
    yield _scenario(
        "livepatch/pending/reverse-again",
        hold, a, Disable("a"), Detach("a"), _on("c", "livepatch", _HOLD), release, Detach("c"),
    )  # fmt: skip
    yield _scenario(
        "livepatch/pending/second-waits",
        hold,
        a,
        b,
        release,
        _on("b", "livepatch", "cohabit_f1", again=True),
        Detach("a"),
        Detach("b"),
    )
    yield _scenario(
        "livepatch/pending/other-cannot-leave",
        b,
        hold,
        a,
        Disable("b"),
        release,
        Disable("b"),
        Detach("a"),
        Detach("b"),
    )
    yield _scenario(
        "livepatch/pending/force", hold, a, Force("a"), release, Detach("a"), ends_vm=True
    )
    # The sleeping call is in the trampoline's first image, which so outlives its program.
    yield _scenario(
        "fexit+ipmodify/held-call/program-leaves-first",
        _on("x", "fexit", _HOLD),
        hold,
        _on("i", "ipmodify", _HOLD),
        Detach("x"),
        Detach("i"),
        _on("y", "fexit", _HOLD),
        release,
        Detach("y"),
    )
    for attacher in CORE:
        if attacher == "fmod_ret":
            continue
        x = _on("x", attacher, _HOLD)
        yield _scenario(f"{attacher}/held-call", x, hold, Detach("x"), release)
        if attacher != "livepatch":
            yield _scenario(
                f"livepatch+{attacher}/held-call", x, hold, a, release, Detach("a"), Detach("x")
            )


def several_functions() -> Iterator[Scenario]:
    """One attachment over several functions, and what a refusal on one of them leaves."""
    lanes = _LANES[:3]
    for attacher in CORE:
        if ATTACHERS[attacher].single:
            continue
        all_of_them = _on("a", attacher, *lanes)
        yield _scenario(f"{attacher}/many", all_of_them, Detach("a"))
        if attacher == "kprobe-post":
            continue
        for blocker in ("ipmodify", "direct", "direct-refuse"):
            wants = ATTACHERS[attacher].ipmodify or ATTACHERS[attacher].direct
            if not wants:
                continue
            # What comes before the one that refuses has to be rolled back.
            for place, lane in ((1, lanes[0]), (len(lanes), lanes[-1])):
                others = [f for f in lanes if f != lane]
                yield _scenario(
                    f"{attacher}/many/{blocker}-on:{place}",
                    _on("x", blocker, lane),
                    all_of_them,
                    # What the refusal left behind on the others would show now.
                    *(_on(f"y{i}", attacher, f) for i, f in enumerate(others)),
                    *(Detach(f"y{i}") for i in range(len(others))),
                    Detach("a"),
                    Detach("x"),
                    _on("a", attacher, *lanes, again=True),
                    Detach("a"),
                )


def filter_changes() -> Iterator[Scenario]:
    """One function leaves an ops that stays for another: what its record keeps."""
    one, two = _LANES[:2]
    for attacher in ("kprobe", "kretprobe", "fentry", "fexit", "direct", "fprobe"):
        yield _scenario(
            f"{attacher}/filter-change",
            _on("a", attacher, one),
            _on("b", attacher, two),
            _on("o", "ops", one),
            Detach("a"),
            _on("r", "ops-regs", one),
            Detach("r"),
            Detach("b"),
            Detach("o"),
        )
    yield _scenario(
        "kprobe-post/second-skips-direct",
        _on("p", "kprobe-post", one),
        _on("d", "direct", two),
        _on("q", "kprobe-post", two),
        Detach("q"),
        Detach("d"),
        Detach("p"),
    )
    # All BPF trampolines may share one ftrace_ops (docs/findings/share-asked-unlocked.md): to
    # change one of them is no business of another's.
    yield _scenario(
        "livepatch+fentry/beside",
        _on("a", "livepatch", one),
        _on("b", "fentry", one),
        _on("c", "fentry", two),
        _on("d", "fexit", two),
        Detach("d"),
        Detach("c"),
        Detach("b"),
        Detach("a"),
    )
    # The kernel gives users of the function graph 16 numbers in turn, and a fault hangs on
    # the first (docs/findings/fgraph-bit-zero.md): whoever has it in the first round, the
    # tracer has another one in the second.
    steps: list[Step] = []
    for tracer in ("g", "h"):
        steps.append(_on(tracer, "function-graph", two))
        for number in range(15):
            probe = f"{tracer}{number}"
            steps += [_on(probe, "fprobe-exit", one), Detach(probe)]
        steps.append(Detach(tracer))
    yield _scenario("fprobe-exit+function-graph/apart", *steps)


def modules() -> Iterator[Scenario]:
    """The module that holds the function goes, with something on it or not, and comes back."""
    for attacher in CORE:
        where = _LANES[0] if attacher == "fmod_ret" else "cohabit_f1"
        kprobe = ATTACHERS[attacher].ops == "kprobe"
        # Whether the kernel still counts a kprobe that it should have forgotten is to be
        # seen on another function, from what a filter change leaves there.
        counted = (
            _on("k", attacher, _VMLINUX),
            _on("o", "ops", _VMLINUX),
            Detach("k"),
            Detach("o"),
        )
        # The second unload is for those that had to leave first.
        yield _scenario(
            f"{attacher}/module-gone",
            _on("a", attacher, where),
            Unload(),
            Detach("a"),
            Unload(),
            *(counted if kprobe else ()),
            Load(),
            _on("b", attacher, where),
            Detach("b"),
            # What some kernels keep of these is in the way of whatever comes next.
            ends_vm=kprobe or attacher == "direct",
        )
    yield _scenario(
        "livepatch/module-reload",
        _on("a", "livepatch", "cohabit_f1"),
        Unload(),
        Load(),
        Detach("a"),
    )


def contexts() -> Iterator[Scenario]:
    """Calls from softirq context."""
    for attacher in CORE:
        where = _LANES[0] if attacher == "fmod_ret" else "cohabit_f3"
        yield _scenario(
            f"{attacher}/softirq", _on("a", attacher, where), Call("softirq"), Detach("a")
        )


def modifying() -> Iterator[Scenario]:
    """A direct call is pointed at another trampoline."""
    for attacher in ("direct", "direct-share"):
        d = _on("d", attacher, ANY)
        yield _scenario(f"{attacher}/modify", d, Modify("d", 1), Modify("d", 0), Detach("d"))
        yield _scenario(
            f"{attacher}/modify-and-leave",
            d, Modify("d", 1), Detach("d"), _again(d), Detach("d"),
        )  # fmt: skip
        for peer in ("livepatch", "ipmodify", "ops", "kprobe", "function-graph"):
            p = _on("p", peer, ANY)
            yield _scenario(
                f"{attacher}+{peer}/modify",
                d, p, Modify("d", 1), Detach("p"), Modify("d", 0), Detach("d"),
            )  # fmt: skip
            yield _scenario(
                f"{peer}+{attacher}/modify",
                p, d, Modify("d", 1), Modify("d", 0), Detach("p"), Detach("d"),
            )  # fmt: skip


def _again(attach: Attach) -> Attach:
    """The same attachment once more, if it is gone."""
    return Attach(attach.id, attach.attacher, attach.functions, unless_attached=True)


def limits() -> Iterator[Scenario]:
    """As many BPF programs as a function takes, and more."""
    # Of one kind, and of that which takes the least room: 38 of another do not fit into the
    # one page that a trampoline has (kernel/bpf/trampoline.c: bpf_trampoline_update).
    yield _scenario(
        "fentry/up-to-the-limit",
        *(_on(f"n{number}", "fentry", _VMLINUX) for number in range(40)),
        _on("x", "fexit", _VMLINUX),
        Detach("n0"),
        _on("n39", "fentry", _VMLINUX, again=True),
        _on("x", "fexit", _VMLINUX, again=True),
    )
    yield _scenario("fmod_ret/where-it-must-not-be", _on("a", "fmod_ret", _VMLINUX), Detach("a"))


def unwilling() -> Iterator[Scenario]:
    """A direct ops whose ops_func refuses to share."""
    for peer in ("livepatch", "ipmodify", "kprobe-post", "ops"):
        d, p = _on("d", "direct-refuse", ANY), _on("p", peer, ANY)
        for name, steps in (("first", (d, p)), ("last", (p, d))):
            yield _scenario(
                f"direct-refuse+{peer}/{name}", *steps, Detach(steps[0].id),
                _again(steps[1]), Detach(steps[1].id),
            )  # fmt: skip


_WATCHED = ("livepatch", "direct-share", "fexit", "kprobe")


def watched() -> Iterator[Scenario]:
    """The registry is read all the time while attachers come and go."""
    for first in _WATCHED:
        for second in _WATCHED:
            if first != second:
                yield _scenario(
                    f"{first}+{second}/watched",
                    _on("a", first, ANY),
                    _on("b", second, ANY),
                    Detach("a"),
                    _on("b", second, ANY, again=True),
                    Detach("b"),
                    watch=True,
                )


#: Misuses that the kernel answers with a warning, or that end ftrace.
_ENDING = ("ops-register-twice", "ipmodify-and-direct", "kill-ftrace")


def misuses() -> Iterator[Scenario]:
    """Calls that no user should make, and that nothing is left of them."""
    where = _LANES[0]
    for what in MISUSES:
        if what not in _ENDING:
            yield _scenario(
                f"misuse/{what}", Misuse(what, where), _on("a", "direct", where), Detach("a"),
                _on("b", "ipmodify", where), Detach("b"),
            )  # fmt: skip


def endings() -> Iterator[Scenario]:
    """Misuses that cost their VM."""
    where = _LANES[0]
    for what in _ENDING[:2]:
        yield _scenario(f"misuse/{what}", Misuse(what, where), ends_vm=True)
    dead = Misuse("kill-ftrace", where)
    yield _scenario(
        "misuse/kill-ftrace",
        dead,
        _on("a", "ops", where),
        _on("c", "direct", where),
        _on("d", "livepatch", where),
        Write(FTRACE_ENABLED, "0"),
        ends_vm=True,
    )
    # Where kprobes are breakpoints this one comes and goes all the same.
    yield _scenario(
        "misuse/kill-ftrace/kprobe",
        dead,
        _on("b", "kprobe", where),
        _on("a", "ops", where),
        _on("c", "direct", where),
        Detach("b"),
        ends_vm=True,
    )
