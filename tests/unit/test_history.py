# SPDX-License-Identifier: GPL-2.0-only
"""What depends on how a state came about: what arrivals and departures leave behind."""

from __future__ import annotations

import errno

import pytest
from policy_help import V5_10, V6_1, V6_12, V7_2, V7_3, F, attach, on, run, shown

from harness.policy import rules
from harness.policy.predict import Prediction
from harness.policy.profile import Profile, choose
from harness.policy.state import State
from harness.scenario.steps import (
    FTRACE_ENABLED,
    MISUSES,
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
    Step,
    Unload,
    Write,
)

ONE, TWO, THREE = LANES = ("security_cohabit_000", "security_cohabit_001", "security_cohabit_002")
HOLD, IN_MODULE, IN_VMLINUX = "cohabit_hold", "cohabit_f1", "cmdline_proc_show"


def answers(profile: Profile, *steps: Step, functions: tuple[str, ...] = (F,)) -> list[str]:
    """Each step's answer: the errno's name (0: nothing), and the rule behind it."""
    found, _ = run(profile, *steps, functions=functions)
    return [answer(p) for p in found]


def answer(prediction: Prediction) -> str:
    (number,) = prediction.errno
    name = errno.errorcode[number] if number else "0"
    return f"{name} {prediction.rule.name}"


def record(profile: Profile, function: str, *steps: Step) -> tuple[int, str] | None:
    """What is shown of a function after the steps, M left out."""
    found, _ = run(profile, *steps, functions=(function,))
    seen = shown(found[-1].registry[function])
    return seen and (seen[0], seen[1].replace("M", ""))


# --- a function that leaves an ops which stays ----------------------------------------------


@pytest.mark.parametrize(
    ("attacher", "keeps"),
    [
        # One ops for all functions: its filter changes after the record was looked at.
        ("kprobe", ("v5.10", "v6.1", "v6.12", "v7.2", "v7.3")),
        ("kretprobe", ("v5.10", "v6.1", "v6.12", "v7.2", "v7.3")),
        ("kprobe-post", ("v5.10", "v6.1", "v6.12", "v7.2", "v7.3")),
        ("direct", ("v5.10",)),
        ("fentry", ("v5.10", "v7.2", "v7.3")),
        ("fexit", ("v5.10", "v7.2", "v7.3")),
        # An ops of its own, or one that asks for no registers.
        ("ops-regs", ()),
        ("fprobe", ()),
        ("livepatch", ()),
    ],
)
@pytest.mark.parametrize("profile", [V5_10, V6_1, V6_12, V7_2, V7_3], ids=lambda p: p.name)
def test_filter_change_keeps_regs(profile: Profile, attacher: str, keeps: tuple[str, ...]) -> None:
    first: list[Step] = [on("a", attacher, ONE), on("o", "ops", ONE)]
    other: list[Step] = [on("b", attacher, TWO)]
    kept = (1, "R") if profile.name in keeps else (1, "")
    assert record(profile, ONE, *other, *first, Detach("a")) == kept
    # Where the ops is unregistered with its last function, nothing is kept.
    assert record(profile, ONE, *first, Detach("a")) == (1, "")
    # One that asks for registers and leaves takes R along; so does the last of all.
    gone: list[Step] = [*other, *first, Detach("a"), on("r", "ops-regs", ONE), Detach("r")]
    assert record(profile, ONE, *gone) == (1, "")
    assert record(profile, ONE, *other, *first, Detach("a"), Detach("o")) is None


def test_one_attachment_leaves_all_its_functions_at_once() -> None:
    """Its ops is unregistered: there is no filter change."""
    steps: list[Step] = [on("a", "kprobe-multi", ONE, TWO), on("o", "ops", ONE), Detach("a")]
    assert record(V6_12, ONE, *steps) == (1, "")
    # A kprobe is unregistered function by function: the last takes its R along.
    steps = [on("a", "kprobe", ONE, TWO), on("o", "ops", TWO), Detach("a")]
    assert record(V6_12, TWO, *steps) == (1, "")


# --- tracers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second"),
    [("function-tracer", "function-graph"), ("function-graph", "function-tracer")],
)
def test_one_tracer(first: str, second: str) -> None:
    steps: list[Step] = [on("a", first, ONE, TWO), on("i", "instance", ONE), on("b", second, TWO)]
    found, state = run(V6_12, *steps, Detach("a"), Detach("b"), functions=LANES)
    assert [p.rule.name for p in found] == ["welcome"] * 3 + ["detach-always"]
    assert found[2].behaviour[ONE].hits == {"i": 1}
    assert found[2].behaviour[TWO].hits == {"b": 1}
    assert shown(found[2].registry[ONE]) == (1, "")
    assert [a.id for a in state.attached] == ["i"]


def test_one_tracer_on_several_functions() -> None:
    """Two attachments of it are two functions of one ops."""
    steps: list[Step] = [on("a", "function-tracer", ONE), on("b", "function-tracer", TWO)]
    found, _ = run(V6_12, *steps, functions=LANES)
    assert found[1].behaviour[ONE].hits == {"a": 1}
    assert found[1].behaviour[TWO].hits == {"b": 1}


# --- livepatches ----------------------------------------------------------------------------


def test_replace_displaces_and_gives_back_the_original() -> None:
    steps: list[Step] = [on("a", "livepatch", ONE, TWO), on("b", "livepatch", THREE),
             on("r", "livepatch-replace", ONE, THREE)]  # fmt: skip
    found, _ = run(V6_12, *steps, Detach("a"), Detach("b"), Detach("r"), functions=LANES)
    bodies = [[p.behaviour[f].body.removeprefix("livepatch-") for f in LANES] for p in found]
    assert bodies == [
        ["a", "a", "original"], ["a", "a", "b"], ["c", "original", "c"],
        ["c", "original", "c"], ["c", "original", "c"], ["original"] * 3,
    ]  # fmt: skip
    assert {p.errno for p in found} == {(0,)}
    assert [sorted(p.livepatch) for p in found[1:5]] == [
        ["cohabit_klp_a", "cohabit_klp_b"], *[["cohabit_klp_c"]] * 3,
    ]  # fmt: skip
    assert [shown(found[2].registry[f]) for f in LANES] == [(1, "IM"), None, (1, "IM")]


def test_who_was_replaced_keeps_its_slot_until_it_is_unloaded() -> None:
    steps: list[Step] = [on("a", "livepatch", ONE), on("r", "livepatch-replace", ONE)]
    _, state = run(V6_12, *steps, on("c", "livepatch", ONE))
    assert [(a.id, a.slot, a.phase) for a in state.attached] == [
        ("a", 0, "off"), ("r", 1, "on"), ("c", 2, "on"),
    ]  # fmt: skip
    _, state = run(V6_12, Detach("a"), on("d", "livepatch", ONE), state=state)
    assert [(a.id, a.slot) for a in state.attached] == [("r", 1), ("c", 2), ("d", 0)]


def test_the_newest_of_a_stack_is_on_top() -> None:
    steps: list[Step] = [on(i, "livepatch", ONE) for i in "abcd"]
    leave: list[Step] = [Detach("b"), Detach("d"), Detach("a"), Detach("c")]
    found, _ = run(V6_12, *steps, *leave, functions=(ONE,))
    assert [p.behaviour[ONE].body[-1] for p in found] == ["a", "b", "c", "d", "d", "c", "c", "l"]
    assert {shown(p.registry[ONE]) for p in found[:-1]} == {(1, "IM")}


PENDING: list[Step] = [Hold("h", HOLD), on("a", "livepatch", HOLD)]


def test_pending_until_the_call_returns() -> None:
    assert [a.phase for a in run(V6_12, *PENDING)[1].attached] == ["enabling"]
    assert [a.phase for a in run(V6_12, *PENDING, Release("h"))[1].attached] == ["on"]
    # A call in another function, or in a body that never waits, is in nobody's way.
    for before in (on("x", "ops", HOLD), on("x", "livepatch", HOLD)):
        _, state = run(V6_12, before, Hold("h", HOLD), on("a", "livepatch", IN_MODULE))
        assert not state.pending()
    _, state = run(V6_12, on("x", "livepatch", HOLD), Hold("h", HOLD), on("a", "livepatch", HOLD))
    assert not state.pending()


def test_two_calls_hold_until_both_return() -> None:
    steps: list[Step] = [Hold("g", HOLD), *PENDING, Release("g")]
    assert run(V6_12, *steps)[1].pending()
    assert not run(V6_12, *steps, Release("h"))[1].pending()


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        # Nobody else comes or goes meanwhile.
        ([on("b", "livepatch", IN_MODULE)], "EBUSY one-transition"),
        ([on("b", "livepatch-replace", IN_MODULE)], "EBUSY one-transition"),
        ([on("b", "ops", HOLD)], "0 welcome"),
        ([on("b", "ipmodify", HOLD)], "EBUSY one-ipmodify"),
        ([Release("h"), on("b", "livepatch", IN_MODULE)], "0 welcome"),
        # Its own way back, and by force.
        ([Disable("a")], "0 transition-reverses"),
        ([Enable("a")], "EINVAL no-change-is-invalid"),
        ([Force("a")], "0 force-ends-transition"),
        ([Force("a"), Force("a")], "EINVAL force-ends-transition"),
        ([Force("a"), on("b", "livepatch", IN_MODULE)], "0 welcome"),
        ([Disable("a"), Enable("a")], "ENOENT disabled-is-gone"),
        ([Disable("a"), on("b", "livepatch", IN_MODULE)], "0 welcome"),
    ],
    ids=lambda v: "+".join(str(s) for s in v) if isinstance(v, list) else None,
)
def test_while_a_transition_is_pending(steps: list[Step], expected: str) -> None:
    assert answers(V6_12, *PENDING, *steps)[-1] == expected


@pytest.mark.parametrize("step", [Disable("b"), Detach("b")], ids=str)
def test_another_cannot_leave_meanwhile(step: Step) -> None:
    steps: list[Step] = [on("b", "livepatch", IN_MODULE), *PENDING, step, Release("h"), step]
    assert answers(V6_12, *steps)[3:] == ["EBUSY one-transition", "0 each-sees-each-call",
                                          "0 detach-always"]  # fmt: skip


def test_a_reversed_transition_is_as_if_it_never_was() -> None:
    found, state = run(V6_12, *PENDING, Disable("a"), Release("h"), Detach("a"), functions=(HOLD,))
    assert found[-1].registry == {HOLD: None}
    assert found[3].held == "original"
    assert state.attached == ()


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([Disable("a"), Enable("a")], ["0 detach-always", "ENOENT disabled-is-gone"]),
        ([Disable("a"), Disable("a")], ["0 detach-always", "ENOENT disabled-is-gone"]),
        ([Disable("a"), Force("a")], ["0 detach-always", "ENOENT disabled-is-gone"]),
        ([Disable("a"), Detach("a")], ["0 detach-always", "0 detach-always"]),
        ([Enable("a")], ["EINVAL no-change-is-invalid"]),
        ([Force("a")], ["EINVAL force-ends-transition"]),
        # Since 5.1 they leave in any order.
        ([on("b", "livepatch"), Disable("a")], ["0 welcome", "0 detach-always"]),
    ],
    ids=lambda v: "+".join(str(s) for s in v) if isinstance(v, list) else None,
)
def test_the_files_of_a_livepatch(steps: list[Step], expected: list[str]) -> None:
    assert answers(V6_12, on("a", "livepatch"), *steps)[1:] == expected


def test_disabled_is_as_good_as_gone() -> None:
    found, state = run(V6_12, *attach("livepatch"), Disable("a"), on("i", "ipmodify"))
    assert shown(found[1].registry[F]) is None
    assert found[1].behaviour[F].body == "original"
    assert found[1].livepatch == {}
    assert found[2].errno == (0,)
    assert [a.id for a in state.attached] == ["a", "i"]


def test_forced_before_5_12_stays_for_good() -> None:
    forced: list[Step] = [*PENDING, Force("a"), Release("h"), Detach("a"), Detach("a")]
    assert answers(V5_10, *forced)[4:] == ["EAGAIN forced-stays"] * 2
    assert answers(V6_1, *forced)[4:] == ["0 detach-always"]
    found, state = run(V5_10, *forced, functions=(HOLD,))
    # It is disabled all the same, and the slot stays taken.
    assert found[-1].behaviour[HOLD].body == "original"
    assert found[-1].registry == {HOLD: None}
    assert state.free_slot("livepatch", (HOLD,)) == 1


# --- direct calls ---------------------------------------------------------------------------


def told(profile: Profile, *steps: Step) -> list[tuple[int, int, int] | None]:
    """After each step, how often the direct call ``d`` was asked as SELF, as PEER, and told."""
    found, _ = run(profile, *steps)
    return [p.behaviour[F].shares.get("d") for p in found]


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([on("d", "direct-share")], (0, 0, 0)),
        ([on("d", "direct-share"), on("i", "ipmodify")], (0, 1, 0)),
        ([on("d", "direct-share"), on("i", "ipmodify"), Detach("i")], (0, 1, 1)),
        ([on("i", "ipmodify"), on("d", "direct-share")], (1, 0, 0)),
        ([on("i", "ipmodify"), on("d", "direct-share"), Detach("i")], (1, 0, 1)),
        ([on("d", "direct-share"), on("o", "ops"), on("k", "kprobe")], (0, 0, 0)),
        # A kprobe with a post_handler is an IPMODIFY ops, unless it joins one without.
        ([on("d", "direct-share"), on("p", "kprobe-post")], (0, 1, 0)),
        ([on("d", "direct-share"), on("p", "kprobe-post"), Detach("p")], (0, 1, 1)),
        ([on("d", "direct-share"), on("k", "kprobe"), on("p", "kprobe-post")], (0, 0, 0)),
        # A second livepatch joins the first one's ops, and the last takes it along.
        ([on("d", "direct-share"), *(on(x, "livepatch") for x in "kl")], (0, 1, 0)),
        ([on("d", "direct-share"), *(on(x, "livepatch") for x in "kl"), Detach("k")], (0, 1, 0)),
        ([on("d", "direct-share"), *(on(x, "livepatch") for x in "kl"), Detach("k"), Detach("l")],
         (0, 1, 1)),
        ([on("d", "direct-share"), on("k", "livepatch"), Disable("k"), Detach("k")], (0, 1, 1)),
        # It is asked before the other IPMODIFY ops is seen, and nobody takes that back.
        ([on("d", "direct-share"), on("i", "ipmodify"), on("j", "ipmodify")], (0, 2, 0)),
        ([on("d", "direct-share"), on("i", "ipmodify"), on("k", "livepatch")], (0, 2, 0)),
        # A new trampoline is a new question, if there is somebody to share with.
        ([on("d", "direct-share"), Modify("d", 1)], (0, 0, 0)),
        ([on("d", "direct-share"), on("i", "ipmodify"), Modify("d", 1)], (1, 1, 0)),
        ([on("i", "ipmodify"), on("d", "direct-share"), Modify("d", 1), Modify("d", 0)],
         (3, 0, 0)),
    ],
    ids=lambda v: "+".join(str(s) for s in v) if isinstance(v, list) else None,
)  # fmt: skip
def test_whom_the_core_asks_and_tells(steps: list[Step], expected: tuple[int, int, int]) -> None:
    assert told(V6_12, *steps)[-1] == expected


def test_replaced_livepatch_leaves_the_function_that_the_new_one_has_not() -> None:
    for patched, expected in (((F,), (0, 1, 0)), ((ONE,), (0, 1, 1))):
        steps: list[Step] = [on("d", "direct-share"), on("a", "livepatch"),
                 on("r", "livepatch-replace", *patched), Detach("a")]  # fmt: skip
        assert told(V6_12, *steps)[2:] == [expected, expected]


def test_shares_are_of_attachments_on_one_function() -> None:
    """Before 7.0 an ops_func is not told which function it is asked about."""
    steps: list[Step] = [on("d", "direct-share", ONE, TWO), on("i", "ipmodify", ONE)]
    found, _ = run(V6_12, *steps, functions=(ONE, TWO))
    assert found[1].behaviour[ONE].shares == {}


@pytest.mark.parametrize("profile", [V6_1, V6_12, V7_2], ids=lambda p: p.name)
def test_peers_are_asked_when_an_ops_is_registered(profile: Profile) -> None:
    """docs/findings/filter-skips-direct.md"""
    steps: list[Step] = [
        on("p", "kprobe-post", ONE),
        on("d", "direct", TWO),
        on("q", "kprobe-post", TWO),
    ]
    assert answers(profile, *steps)[2] == "0 welcome"
    assert answers(profile, *steps[1:])[1] == "EBUSY peer-must-agree"
    # And told when it is unregistered, that is, when its last function leaves.
    steps = [
        on("d", "direct-share"),
        on("p", "kprobe-post", ONE),
        on("q", "kprobe-post"),
    ]
    assert told(profile, *steps, Detach("q"))[-1] == (0, 0, 0)
    assert told(profile, *steps, Detach("p"), Detach("q"))[-1] == (0, 0, 1)


def test_modify_moves() -> None:
    steps: list[Step] = [on("d", "direct"), Modify("d", 1), Call(), Modify("d", 0)]
    found, _ = run(V6_12, *steps)
    assert [p.behaviour[F].via for p in found] == [{"d": 0}, {"d": 1}, {"d": 1}, {"d": 0}]
    targets = [record.direct for p in found if (record := p.registry[F])]
    assert targets == [f"cohabit_direct_tramp_{n}" for n in (0, 8, 8, 0)]
    assert {p.rule for p in found} == {rules.WELCOME, rules.MODIFY_MOVES, rules.CALLS}


# --- the module goes ------------------------------------------------------------------------


@pytest.mark.parametrize("function", [IN_MODULE, IN_VMLINUX])
@pytest.mark.parametrize(
    ("attacher", "holds"),
    [
        ("", ""),
        *((a, "") for a in ("livepatch", "direct", "ipmodify", "ops", "kprobe", "kprobe-post",
                            "kretprobe", "fprobe", "fprobe-exit", "function-tracer",
                            "function-graph", "instance")),
        ("fentry", "v5.10 v6.1 v6.12 v7.2"),
        ("fexit", "v5.10 v6.1 v6.12 v7.2"),
        # Since 6.3 (get_modules_for_addrs).
        ("kprobe-multi", "v6.12 v7.2"),
    ],
)  # fmt: skip
def test_who_holds_the_module(attacher: str, holds: str, function: str) -> None:
    for profile in (V5_10, V6_1, V6_12, V7_2):
        if profile is V5_10 and attacher in ("fentry", "fexit"):
            continue  # before 5.11 there were no BPF programs on modules' functions
        steps = [on("a", attacher, function)] if attacher else []
        kept = profile.name in holds.split() and function == IN_MODULE
        found, state = run(profile, *steps, Unload(), functions=(IN_MODULE, IN_VMLINUX))
        assert answer(found[-1]) == ("EAGAIN bpf-holds-module" if kept else "0 module-goes")
        assert state.unloaded is not kept
        there = [f for f in (IN_MODULE, IN_VMLINUX) if found[-1].registry[f]]
        assert there == ([function] if attacher and (kept or function == IN_VMLINUX) else [])


def test_whatever_was_on_a_module_can_leave_after_it() -> None:
    steps: list[Step] = [
        on("a", "ops", IN_MODULE),
        Unload(),
        Detach("a"),
        Load(),
        on("b", "ops", IN_MODULE),
    ]
    found, _ = run(V6_12, *steps, functions=(IN_MODULE,))
    assert {p.errno for p in found} == {(0,)}
    assert found[-1].behaviour[IN_MODULE].hits == {"b": 1}
    assert [p.behaviour[IN_MODULE].body for p in found] == ["original", "absent", "absent",
                                                            "original", "original"]  # fmt: skip


# --- calls that no user should make ---------------------------------------------------------


@pytest.mark.parametrize("what", MISUSES)
def test_what_a_misuse_gives(what: str) -> None:
    before: list[Step] = [on("o", "ops", ONE)]
    found, state = run(V6_12, *before, Misuse(what, ONE), functions=(ONE,))
    rule, error, report = rules.MISUSES[what]
    assert (found[1].errno, found[1].rule, found[1].report) == ((error,), rule, report)
    dies = what == "kill-ftrace"
    assert state.dead is dies
    if not dies:
        # Nothing is left of it.
        assert found[1].registry == found[0].registry
        assert found[1].behaviour == found[0].behaviour


def test_each_misuse_has_an_answer() -> None:
    assert set(rules.MISUSES) == set(MISUSES)
    assert {w for w, (_, error, _) in rules.MISUSES.items() if not error} == {
        "ipmodify-and-direct", "kill-ftrace",
    }  # fmt: skip
    assert {w for w, (_, _, report) in rules.MISUSES.items() if report} == {
        "ops-register-twice", "ipmodify-and-direct",
    }  # fmt: skip


def test_dead_ftrace() -> None:
    kill: list[Step] = [on("o", "ops", ONE), on("l", "livepatch", ONE), Misuse("kill-ftrace", ONE)]
    steps: list[Step] = [
        *(on(a, a, ONE) for a in ("ops", "kprobe", "direct", "fentry", "livepatch", "ipmodify")),
        Write(FTRACE_ENABLED, "0"), Write(FTRACE_ENABLED, "1"), Detach("o"),
    ]  # fmt: skip
    found, state = run(V6_12, *kill, *steps, functions=(ONE,))
    assert {answer(p) for p in found[3:]} == {"ENODEV dead-ftrace"}
    for prediction in found[2:]:
        assert prediction.registry == {ONE: None}
        assert prediction.behaviour[ONE].body == "original"
        assert not any(prediction.behaviour[ONE].hits.values())
        assert prediction.ftrace_enabled == -1
        assert prediction.log == ()
    assert [a.id for a in state.attached] == ["o", "l"]


# --- M --------------------------------------------------------------------------------------


def modified(*steps: Step, functions: tuple[str, ...] = (ONE,)) -> frozenset[str]:
    return run(V6_12, *steps, functions=functions)[1].modified


def test_m_is_set_when_the_call_site_is_rewritten() -> None:
    third = [on("a", "ops", ONE), on("b", "ops", ONE), on("c", "livepatch", ONE)]
    assert modified(*third) == frozenset()
    assert modified(*third, Detach("a"), Detach("b")) == {ONE}
    assert modified(*third[1:]) == {ONE}
    # SAVE_REGS is another caller: the site is rewritten whoever it is for.
    assert modified(*third, on("d", "ops-regs", ONE)) == {ONE}
    assert modified(on("a", "ops", ONE), on("b", "ops-regs", ONE)) == frozenset()


def test_m_of_many_functions_is_of_each_alone() -> None:
    steps: list[Step] = [on("a", "ops", ONE), on("b", "ops", ONE), on("c", "livepatch", *LANES)]
    assert modified(*steps) == {TWO, THREE}
    assert modified(*steps, Detach("c")) == {TWO, THREE}


def test_m_comes_where_a_displaced_tracer_leaves_too() -> None:
    steps: list[Step] = [
        on("o", "ops", TWO), on("t", "function-tracer", TWO), on("c", "livepatch", TWO),
        Detach("o"),
    ]  # fmt: skip
    assert modified(*steps) == frozenset()
    # The livepatch is alone now, and its own trampoline is called.
    assert modified(*steps, on("g", "function-graph", ONE)) == {TWO}
    # A livepatch that is displaced leaves nothing that would set M.
    steps = [on("o", "ops", TWO), on("p", "ops", TWO), on("a", "livepatch", ONE, TWO)]
    assert modified(*steps, Detach("o"), on("r", "livepatch-replace", ONE)) == {ONE}


def test_no_m_before_6_4() -> None:
    assert run(V6_1, *attach("livepatch"))[1].modified == frozenset()
    assert run(choose("6.4.0", {}), *attach("livepatch"))[1].modified == {F}


def test_m_while_off_waits_for_the_call_site() -> None:
    off, back = Write(FTRACE_ENABLED, "0"), Write(FTRACE_ENABLED, "1")
    assert modified(off, on("a", "fentry", ONE)) == frozenset()
    assert modified(off, on("a", "fentry", ONE), back) == {ONE}
    assert run(V6_12, off)[1] == State(ftrace_enabled=False)
