# SPDX-License-Identifier: GPL-2.0-only
"""What the model says of a record, of a call, and of what is left to the agent."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from policy_help import (
    OFF,
    OTHER,
    PROFILES,
    V5_10,
    V6_1,
    V6_12,
    V7_2,
    V7_3,
    F,
    attach,
    on,
    run,
    shown,
)

from harness.agent import abi
from harness.agent.attachers import KMOD_KINDS
from harness.policy.acts import planned, transition
from harness.policy.attachers import ATTACHERS, BPF_SLOTS, CORE
from harness.policy.predict import applies
from harness.policy.profile import Profile
from harness.policy.state import Attached, State
from harness.scenario.functions import FUNCTIONS
from harness.scenario.steps import (
    Call,
    Detach,
    Disable,
    Enable,
    Force,
    Hold,
    Load,
    Modify,
    Release,
    Step,
    Unload,
)

# --- the record -----------------------------------------------------------------------------

#: Attachers on one function, then count and flags by release; a "/" means as the release before.
RELEASES = ("v5.10", "v6.1", "v6.12", "v7.2", "v7.3")
RECORDS: dict[str, str] = {
    # An IPMODIFY ops asked for all registers before 5.11.
    "livepatch": "1:RI 1:I 1:IM / /",
    "livepatch livepatch": "1:RI 1:I 1:IM / /",
    "livepatch livepatch-replace": "1:RI 1:I 1:IM / /",
    "ipmodify": "1:RI 1:I 1:IM / /",
    # Before 6.0 the ops of direct calls was IPMODIFY itself.
    "direct": "1:RID 1:RD 1:RDM / /",
    "direct-share": "1:RID 1:RD 1:RDM / /",
    "fentry": "1:RID 1:RD 1:RDM / /",
    "fentry fexit fmod_ret": "1:RID 1:RD 1:RDM / /",
    "ops": "1: / / / /",
    "ops-regs": "1:R / / / /",
    "ops ops": "2: / / / /",
    "ops ops-regs ops": "3:R / / / /",
    "livepatch ops": "2:RI 2:I 2:IM / /",
    "livepatch fexit": "- 2:RID 2:RIDM / /",
    "direct-share ipmodify ops": "- 3:RID 3:RIDM / /",
    # All kprobes of a function are one ops, which asks for all registers.
    "kprobe": "1:R / / / /",
    "kprobe kprobe kretprobe": "1:R / / / /",
    "kprobe-post": "1:RI / 1:RIM / /",
    "kprobe-post kprobe": "1:RI / 1:RIM / /",
    "kprobe kprobe-post": "1:R / / / /",
    "livepatch kprobe": "2:RI / 2:RIM / /",
    "fexit kprobe-post": "- 2:RID 2:RIDM / /",
    # An fprobe had an ops of its own, with all registers, until 6.14.
    "fprobe": "- 1:R / 1: /",
    "fprobe fprobe": "- 2:R / 1: /",
    "fprobe kprobe-multi": "- 2:R / 1: /",
    "fprobe fprobe-exit": "- 2:R / 2: /",
    "fprobe-exit fprobe-exit": "- 2:R / 1: /",
    "fprobe-exit function-graph": "- 2:R / 1: /",
    "fprobe function-graph": "- 2:R / 2: /",
    "function-tracer": "1: / / / /",
    "function-graph": "1: / / / /",
    "instance instance": "2: / / / /",
    "function-tracer instance ops": "3: / / / /",
    # The second tracer takes the first one's place.
    "function-tracer function-graph": "1: / / / /",
    "livepatch function-tracer fexit": "- 3:RID 3:RIDM / /",
}


def expectations() -> list[Any]:
    found = []
    for attachers, row in RECORDS.items():
        expected = ""
        for name, column in zip(RELEASES, row.split(), strict=True):
            expected = expected if column == "/" else column
            if expected != "-":
                found.append(
                    pytest.param(attachers, expected, PROFILES[name], id=f"{attachers}-{name}")
                )
    return found


@pytest.mark.parametrize(("attachers", "expected", "profile"), expectations())
def test_record(attachers: str, expected: str, profile: Profile) -> None:
    found, _ = run(profile, *attach(*attachers.split()))
    assert {p.errno for p in found} == {(0,)}
    count, flags = shown(found[-1].registry[F]) or (0, "")
    assert f"{count}:{flags}" == expected


def test_every_attacher_has_a_record() -> None:
    assert {a for row in RECORDS for a in row.split()} == set(ATTACHERS) - {"direct-refuse"}


def test_one_ops_may_serve_several_functions() -> None:
    """Records count ops; an ops counts once on each of its functions."""
    both = (F, OTHER)
    for attacher in CORE:
        if ATTACHERS[attacher].single:
            continue
        found, _ = run(V7_2, on("a", attacher, *both), functions=both)
        assert found[0].registry[F] == found[0].registry[OTHER], attacher
        assert found[0].registry[F] is not None


def test_m_stays_and_is_set_only_when_the_call_site_is_rewritten() -> None:
    found, state = run(V6_12, *attach("fentry"), Detach("a"), on("b", "ops"))
    record = found[-1].registry[F]
    assert record is not None
    assert record.flags == frozenset("M")
    assert state.modified == {F}
    # As the third ops, an IPMODIFY ops changes nothing about the call site.
    found, state = run(V6_12, *attach("ops", "ops", "ipmodify"))
    record = found[-1].registry[F]
    assert record is not None
    assert record.flags == frozenset("I")
    # When it is alone, its own trampoline is called: rewritten.
    found, state = run(V6_12, Detach("a"), Detach("b"), state=state)
    record = found[-1].registry[F]
    assert record is not None
    assert record.flags == frozenset("IM")


def test_m_of_one_function_says_nothing_of_another() -> None:
    steps: list[Step] = [on("a", "fentry"), on("b", "ops", OTHER)]
    found, state = run(V6_12, *steps, functions=(F, OTHER))
    assert state.modified == {F}
    record = found[-1].registry[OTHER]
    assert record is not None
    assert record.flags == frozenset()


@pytest.mark.parametrize(
    ("attacher", "target"),
    [("direct", "cohabit_direct_tramp_0"), ("direct-share", "cohabit_direct_tramp_0"),
     ("fentry", "bpf_trampoline_"), ("fexit", "bpf_trampoline_"), ("fmod_ret", "bpf_trampoline_"),
     ("livepatch", None), ("ipmodify", None), ("ops", None), ("ops-regs", None)],
)  # fmt: skip
def test_direct_target(attacher: str, target: str | None) -> None:
    found, _ = run(V6_12, *attach(attacher))
    record = found[0].registry[F]
    assert record is not None
    assert record.direct == target


def test_direct_target_names_the_slot() -> None:
    steps: list[Step] = [on("a", "direct", OTHER), on("b", "direct-share")]
    found, _ = run(V6_12, *steps, functions=(F, OTHER))
    targets = [r.direct for f in (OTHER, F) if (r := found[-1].registry[f])]
    assert targets == ["cohabit_direct_tramp_0", "cohabit_direct_tramp_1"]


@pytest.mark.parametrize(
    ("attachers", "jmp"),
    [(("fentry",), False), (("fexit",), True), (("fmod_ret",), True), (("direct",), False),
     (("fentry", "fexit"), True), (("livepatch", "fentry"), False), (("livepatch", "fexit"), False),
     (("fexit", "livepatch"), False), (("fexit", "ops"), True), (("ipmodify", "fmod_ret"), False)],
    ids=lambda v: "+".join(v) if isinstance(v, tuple) else None,
)  # fmt: skip
def test_jmp(attachers: tuple[str, ...], jmp: bool) -> None:
    for profile in (V5_10, V6_1, V6_12, V7_2, V7_3):
        if profile is V5_10 and {"livepatch", "ipmodify"} & set(attachers):
            continue
        found, _ = run(profile, *attach(*attachers))
        record = found[-1].registry[F]
        assert record is not None
        assert record.jmp is (jmp and profile in (V7_2, V7_3)), profile.name


def jmp_of(profile: Profile, *steps: Step) -> bool | None:
    record = run(profile, *steps)[0][-1].registry[F]
    assert record is not None
    return record.jmp


@pytest.mark.parametrize("modifier", ["livepatch", "ipmodify"])
def test_jmp_of_a_trampoline_that_may_be_the_old_one(modifier: str) -> None:
    """docs/findings/stale-share.md: then both are right, and the reason is given."""
    both: list[Step] = [on("k", modifier), on("a", "fexit")]
    stale: list[Step] = [*both, Detach("a"), Detach("k"), on("b", "fexit")]
    assert jmp_of(V7_2, *stale) is None
    found, state = run(V7_2, *stale)
    record = found[-1].registry[F]
    assert record is not None
    assert record.to_json()["why_either"] == {"jmp": record.why_either}
    assert record.why_either
    # Once the IPMODIFY ops leaves while a program is there, it has been told.
    told: list[Step] = [on("l", modifier), Detach("l")]
    assert jmp_of(V7_2, *stale, *told) is True
    # Nothing of the kind where the program is there to be told, or no jump at all.
    assert jmp_of(V7_2, *both, Detach("k")) is True
    assert jmp_of(V7_2, *both, on("b", "fentry"), Detach("a"), Detach("k"),
                  on("c", "fexit")) is True  # fmt: skip
    assert jmp_of(V6_12, *stale) is False
    assert state.stale_share == {F}
    assert "why_either" not in (run(V7_2, *both)[0][-1].to_json()["registry"][F])


# --- behaviour ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attachers", "body", "hits"),
    [
        ((), "original", {}),
        (("livepatch",), "livepatch-a", {}),
        (("livepatch", "livepatch"), "livepatch-b", {}),
        (("ipmodify",), "ipmodify-0", {"a": 1}),
        (("ops", "ops-regs"), "original", {"a": 1, "b": 1}),
        (("direct",), "original", {"a": 1}),
        (("livepatch", "direct-share"), "livepatch-a", {"b": 1}),
        (("fentry", "livepatch", "fexit"), "livepatch-a", {"a": 1, "c": 1}),
        (("kprobe", "kretprobe", "livepatch"), "livepatch-a", {"a": 1, "b": 1}),
        (("kprobe-post", "fprobe", "fprobe-exit"), "original", {"a": 1, "b": 1, "c": 1}),
        (("kprobe-multi", "instance", "function-tracer"), "original", {"a": 1, "b": 1, "c": 1}),
        # The tracer of before is gone, and nobody asks for its hits.
        (("function-tracer", "function-graph"), "original", {"b": 1}),
        (("fmod_ret",), "fmod_ret-0", {"a": 1}),
        # The newest fmod_ret program runs first, and its error ends the row.
        (("fmod_ret", "fmod_ret"), "fmod_ret-1", {"a": 0, "b": 1}),
        (("fmod_ret", "livepatch", "fexit"), "fmod_ret-0", {"a": 1, "c": 1}),
        (("ipmodify", "fmod_ret", "ops"), "fmod_ret-0", {"a": 1, "b": 1, "c": 1}),
    ],
    ids=lambda v: "+".join(v) if isinstance(v, tuple) else None,
)
def test_behaviour(attachers: tuple[str, ...], body: str, hits: dict[str, int]) -> None:
    found, _ = run(V6_12, *attach(*attachers), Call())
    assert (found[-1].behaviour[F].body, found[-1].behaviour[F].hits) == (body, hits)


@pytest.mark.parametrize("other", ["livepatch", "ipmodify", "direct", "fexit", "ops", "kprobe"])
def test_the_graph_tracer_once_followed_the_call(other: str) -> None:
    """Before 5.16 it hooked in where the call goes on, which is not this function then."""
    for profile in (V5_10, V6_1, V7_2):
        found, _ = run(profile, *attach(other, "function-graph"))
        misses = profile is V5_10 and other not in ("ops", "kprobe")
        assert found[1].behaviour[F].hits["b"] == (not misses)


def test_the_newest_livepatch_is_on_top_however_they_leave() -> None:
    steps: list[Step] = [on(i, "livepatch") for i in "ab"]
    bodies = [p.behaviour[F].body for p in run(V6_12, *steps, Detach("a"), Detach("b"))[0]]
    assert bodies == ["livepatch-a", "livepatch-b", "livepatch-b", "original"]
    # A patch that comes back is the newest, although its slot is the lower one.
    again: list[Step] = [*steps, Detach("a"), on("c", "livepatch")]
    assert run(V6_12, *again)[0][-1].behaviour[F].body == "livepatch-a"


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("attacher", ["", "livepatch", "ipmodify"])
def test_return_value_and_arguments(attacher: str, function: str) -> None:
    steps: list[Step] = attach(attacher, function=function) if attacher else [Call()]
    call = run(V6_12, *steps, functions=(function,))[0][-1].behaviour[function]
    tag = {"": 1, "livepatch": 2, "ipmodify": 8}[attacher]
    kind = FUNCTIONS[function].witnessed
    if kind == "tag":
        assert call.args is not None
        assert call.ret is not None
        assert len(call.args) == FUNCTIONS[function].nr_args
        assert call.ret >> 32 == tag
        assert call.ret & 0xFFFFFFFF == sum(i * a for i, a in enumerate(call.args, 1)) % 2**32
        assert abi.body_of_tag(call.ret >> 32) == call.body
    else:
        assert call.args is None
        assert call.ret == (-200 - tag if kind == "errno" and attacher else 0)


def test_livepatch_sysfs() -> None:
    steps: list[Step] = [*attach("livepatch", "livepatch", "ops"), Detach("a"), Detach("b")]
    ready = {"enabled": 1, "transition": 0}
    both = {"cohabit_klp_a": ready, "cohabit_klp_b": ready}
    shown: list[Mapping[str, object]] = [p.livepatch for p in run(V6_12, *steps)[0]]
    assert shown == [{"cohabit_klp_a": ready}, both, both, {"cohabit_klp_b": ready}, {}]


# --- steps that do not apply, slots ---------------------------------------------------------


def test_applies() -> None:
    here = State(attached=(Attached("a", "ops", (F,), 0),))
    assert not applies(State(), Detach("a"))
    assert applies(here, Detach("a"))
    assert applies(here, on("a", "ops"))
    assert not applies(here, on("a", "ops", again=True))
    assert applies(State(), on("a", "ops", again=True))
    for step in (Disable("a"), Enable("a"), Force("a"), Modify("a", 1)):
        assert applies(here, step)
        assert not applies(State(), step)
    held = run(V6_12, Hold("h", "cohabit_hold"), functions=("cohabit_hold",))[1]
    assert applies(held, Release("h"))
    assert not applies(State(), Release("h"))
    gone = State(unloaded=True)
    assert (applies(gone, Load()), applies(gone, Unload())) == (True, False)
    assert (applies(State(), Load()), applies(State(), Unload())) == (False, True)
    assert applies(State(), Call())
    assert applies(here, OFF)


def test_slots() -> None:
    state = State()
    for identity, attacher, functions, slot in (
        ("a", "direct", (F,), 0), ("b", "direct-share", (OTHER,), 1),  # one family
        ("c", "ops", (F, OTHER), 0), ("d", "ops-regs", (OTHER,), 1), ("e", "ops", (F,), 2),
        ("f", "livepatch", (F,), 0), ("g", "livepatch-replace", (OTHER,), 1),  # a module each
        ("h", "fentry", (F,), 0), ("i", "fentry", (OTHER,), 0),  # BPF: one program a function
        ("j", "fentry", (F,), 1), ("k", "fexit", (F,), 0), ("l", "ipmodify", (F,), 0),
        ("m", "kprobe", (F,), 0), ("n", "kprobe-post", (OTHER,), 1), ("o", "kretprobe", (F,), 0),
        ("p", "fprobe", (F,), 0), ("q", "fprobe-exit", (F,), 1), ("r", "kprobe-multi", (F,), 0),
    ):  # fmt: skip
        new = planned(state, on(identity, attacher, *functions))
        assert new == Attached(identity, attacher, functions, slot)
        state = replace(state, attached=(*state.attached, new))
    # The lowest that is free, and none beyond the last.
    without = replace(state, attached=tuple(a for a in state.attached if a.id != "c"))
    assert without.free_slot("ops-regs", (F,)) == 0
    assert state.free_slot("livepatch", ("rtnl_getlink",)) == 2
    assert state.free_slot("fentry", (F,)) == 2
    assert state.free_slot("fentry", ("rtnl_getlink",)) == 0
    four = State(attached=tuple(Attached(f"i{n}", "livepatch", (F,), n) for n in range(4)))
    assert four.free_slot("livepatch-replace", (F,)) == ATTACHERS["livepatch"].slots == 4


def test_a_slot_may_be_given() -> None:
    """Of an attachment that is one with others: harness/run/company.py."""
    _, state = transition(State(), on("a", "ops"), V6_12, slot=5)
    assert state.attached == (Attached("a", "ops", (F,), 5),)


def test_slots_fit_what_the_agent_has() -> None:
    assert set(KMOD_KINDS) <= set(ATTACHERS) - {"livepatch", "fentry", "instance"}
    assert ATTACHERS["livepatch"].slots == abi.LIVEPATCHES
    assert BPF_SLOTS == abi.FMOD_RETS
    for attacher in ATTACHERS.values():
        if attacher.name in KMOD_KINDS:
            assert attacher.slots == abi.SLOTS
        assert attacher.slots == BPF_SLOTS or not attacher.bpf


# --- livepatches that are coming or going, calls that are held, modules ----------------------

HOLD = "cohabit_hold"


def test_what_a_pending_transition_shows() -> None:
    steps: list[Step] = [Hold("h", HOLD), on("a", "livepatch", HOLD), Release("h"), Disable("a")]
    found, _ = run(V6_12, *steps, functions=(HOLD,))
    states = [p.livepatch.get("cohabit_klp_a") for p in found]
    assert states == [
        None, {"enabled": 1, "transition": 1}, {"enabled": 1, "transition": 0}, None,
    ]  # fmt: skip
    # Who calls now has no call in progress, and gets the new function at once.
    assert [p.behaviour[HOLD].body for p in found] == [
        "original", "livepatch-a", "livepatch-a", "original",
    ]  # fmt: skip
    assert [p.held for p in found] == [None, None, "original", None]
    assert [p.registry[HOLD] is not None for p in found] == [False, True, True, False]


def test_a_held_call_returns_from_the_body_that_it_entered() -> None:
    steps: list[Step] = [on("i", "ipmodify", HOLD), Hold("h", HOLD), Detach("i"), Release("h")]
    found, state = run(V6_12, *steps, functions=(HOLD,))
    assert found[-1].held == "ipmodify-0"
    assert found[-1].behaviour[HOLD].body == "original"
    assert state == State(modified=state.modified)
    assert found[-1].to_json()["held"] == {"body": "ipmodify-0"}


def test_a_function_whose_module_is_gone() -> None:
    where = "cohabit_f1"
    steps: list[Step] = [on("a", "livepatch", where), Unload(), Load(), Detach("a")]
    found, _ = run(V6_12, *steps, functions=(where, OTHER))
    assert [p.behaviour[where].body for p in found] == [
        "livepatch-a", "absent", "livepatch-a", "original",
    ]  # fmt: skip
    assert found[1].registry[where] is None
    assert found[2].registry[where] == found[0].registry[where]
    # The patch is there all the time, and vmlinux too.
    assert found[1].livepatch == {"cohabit_klp_a": {"enabled": 1, "transition": 0}}
    assert found[1].behaviour[OTHER].body == "original"


def test_lanes_are_told_apart_by_their_first_argument() -> None:
    lanes = [f for f in FUNCTIONS.values() if f.lane is not None]
    assert len(lanes) == abi.LANES
    names = tuple(f.name for f in lanes)
    calls = run(V6_12, Call(), functions=names)[0][0].behaviour
    firsts = [(calls[name].args or (0,))[0] for name in names]
    assert firsts == [0x1000 + n for n in range(abi.LANES)]
    assert {(calls[name].args or ())[1:] for name in names} == {tuple(abi.TEST_ARGS[1:6])}


def test_prediction_as_json() -> None:
    found, _ = run(V6_12, *attach("ipmodify", "livepatch"))
    data = found[1].to_json()
    assert data["errno"] == [errno.EBUSY]
    assert data["rule"] == "one-ipmodify"
    assert data["registry"] == {F: {"count": 1, "flags": ["I", "M"], "direct": None, "jmp": False}}
    assert data["behaviour"] == {
        F: {"body": "ipmodify-0", "hits": {"a": 1}, "ret": -208, "args": "agree"}
    }
    assert data["sysctl"] == {"kernel.ftrace_enabled": 1}
    assert len(data["log"]) == 1
