# SPDX-License-Identifier: GPL-2.0-only
"""What the model says of a record, of a call, and of what is left to the agent."""

from __future__ import annotations

import errno
from collections.abc import Mapping

import pytest
from policy_help import OFF, OTHER, PROFILES, V5_10, V6_1, V6_12, V7_2, V7_3, F, attach, run

from harness.agent import abi
from harness.agent.attachers import KINDS
from harness.agent.bpf import SLOTS
from harness.policy.attachers import ATTACHERS
from harness.policy.predict import applies, planned
from harness.policy.profile import Profile
from harness.policy.state import Attached, State
from harness.scenario.functions import FUNCTIONS
from harness.scenario.steps import Attach, Call, Detach, Step

# --- the record -----------------------------------------------------------------------------

#: (attachers) to (count, flags) by form; M is set wherever a form knows it.
RECORDS: list[tuple[tuple[str, ...], int, dict[str, str]]] = [
    (("livepatch",), 1, {"v5.10": "RI", "v6.1": "I", "v6.12": "IM", "v7.2": "IM"}),
    (("livepatch", "livepatch"), 1, {"v5.10": "RI", "v6.1": "I", "v6.12": "IM"}),
    (("ipmodify",), 1, {"v5.10": "RI", "v6.1": "I", "v6.12": "IM", "v7.2": "IM"}),
    (("direct",), 1, {"v5.10": "RID", "v6.1": "RD", "v6.12": "RDM", "v7.2": "RDM"}),
    (("fentry",), 1, {"v5.10": "RID", "v6.1": "RD", "v6.12": "RDM", "v7.2": "RDM"}),
    (("fentry", "fexit", "fmod_ret"), 1, {"v5.10": "RID", "v6.1": "RD", "v6.12": "RDM"}),
    (("ops",), 1, {"v5.10": "", "v6.1": "", "v6.12": "", "v7.2": ""}),
    (("ops-regs",), 1, {"v5.10": "R", "v6.1": "R", "v6.12": "R", "v7.2": "R"}),
    (("ops", "ops"), 2, {"v5.10": "", "v6.12": ""}),
    (("ops", "ops-regs", "ops"), 3, {"v5.10": "R", "v6.12": "R"}),
    (("livepatch", "ops"), 2, {"v5.10": "RI", "v6.1": "I", "v6.12": "IM"}),
    (("livepatch", "fexit"), 2, {"v6.1": "RID", "v6.12": "RIDM", "v7.2": "RIDM"}),
    (("direct-share", "ipmodify", "ops"), 3, {"v6.1": "RID", "v6.12": "RIDM"}),
]


@pytest.mark.parametrize(
    ("attachers", "count", "flags", "profile"),
    [
        pytest.param(a, n, f, PROFILES[name], id=f"{'+'.join(a)}-{name}")
        for a, n, by_profile in RECORDS
        for name, f in by_profile.items()
    ],
)
def test_record(attachers: tuple[str, ...], count: int, flags: str, profile: Profile) -> None:
    found, _ = run(profile, *attach(*attachers))
    assert {p.errno for p in found} == {(0,)}
    record = found[-1].registry[F]
    assert record is not None
    assert (record.count, record.flags) == (count, frozenset(flags))


def test_m_stays_and_is_set_only_when_the_call_site_is_rewritten() -> None:
    found, state = run(V6_12, *attach("fentry"), Detach("a"), Attach("b", "ops", F))
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
    steps = [Attach("a", "fentry", F), Attach("b", "ops", OTHER)]
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
    steps = [Attach("a", "direct", OTHER), Attach("b", "direct-share", F)]
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
    both: list[Step] = [Attach("k", modifier, F), Attach("a", "fexit", F)]
    stale: list[Step] = [*both, Detach("a"), Detach("k"), Attach("b", "fexit", F)]
    assert jmp_of(V7_2, *stale) is None
    found, state = run(V7_2, *stale)
    record = found[-1].registry[F]
    assert record is not None
    assert record.to_json()["why_either"] == {"jmp": record.why_either}
    assert record.why_either
    # Once the IPMODIFY ops leaves while a program is there, it has been told.
    told: list[Step] = [Attach("l", modifier, F), Detach("l")]
    assert jmp_of(V7_2, *stale, *told) is True
    # Nothing of the kind where the program is there to be told, or no jump at all.
    assert jmp_of(V7_2, *both, Detach("k")) is True
    assert jmp_of(V7_2, *both, Attach("b", "fentry", F), Detach("a"), Detach("k"),
                  Attach("c", "fexit", F)) is True  # fmt: skip
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
        (("fmod_ret",), "fmod_ret-a", {"a": 1}),
        # The newest fmod_ret program runs first, and its error ends the row.
        (("fmod_ret", "fmod_ret"), "fmod_ret-b", {"a": 0, "b": 1}),
        (("fmod_ret", "livepatch", "fexit"), "fmod_ret-a", {"a": 1, "c": 1}),
        (("ipmodify", "fmod_ret", "ops"), "fmod_ret-a", {"a": 1, "b": 1, "c": 1}),
    ],
    ids=lambda v: "+".join(v) if isinstance(v, tuple) else None,
)
def test_behaviour(attachers: tuple[str, ...], body: str, hits: dict[str, int]) -> None:
    found, _ = run(V6_12, *attach(*attachers), Call())
    assert (found[-1].behaviour[F].body, found[-1].behaviour[F].hits) == (body, hits)


def test_the_newest_livepatch_is_on_top_however_they_leave() -> None:
    steps = [Attach(i, "livepatch", F) for i in "ab"]
    bodies = [p.behaviour[F].body for p in run(V6_12, *steps, Detach("a"), Detach("b"))[0]]
    assert bodies == ["livepatch-a", "livepatch-b", "livepatch-b", "original"]
    # A patch that comes back is the newest, although its slot is the lower one.
    again: list[Step] = [*steps, Detach("a"), Attach("c", "livepatch", F)]
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
    here = State(attached=(Attached("a", "ops", F, 0),))
    assert not applies(State(), Detach("a"))
    assert applies(here, Detach("a"))
    assert applies(here, Attach("a", "ops", F))
    assert not applies(here, Attach("a", "ops", F, unless_attached=True))
    assert applies(State(), Attach("a", "ops", F, unless_attached=True))
    assert applies(State(), Call())
    assert applies(here, OFF)


def test_slots() -> None:
    state = State()
    for identity, attacher, function, slot in (
        ("a", "direct", F, 0), ("b", "direct-share", OTHER, 1),  # one family
        ("c", "ops", F, 0), ("d", "ops-regs", OTHER, 1), ("e", "ops", F, 2),
        ("f", "livepatch", F, 0), ("g", "livepatch", OTHER, 1),  # one module each
        ("h", "fentry", F, 0), ("i", "fentry", OTHER, 0),  # BPF: one program a function
        ("j", "fentry", F, 1), ("k", "fexit", F, 0), ("l", "ipmodify", F, 0),
    ):  # fmt: skip
        new = planned(state, Attach(identity, attacher, function))
        assert new == Attached(identity, attacher, function, slot)
        state = state.with_attached(new)
    # The lowest that is free, and none beyond the last.
    assert state.without("c").free_slot("ops-regs", F) == 0
    assert state.free_slot("livepatch", "rtnl_getlink") == ATTACHERS["livepatch"].slots == 2
    assert state.free_slot("fentry", F) == 2
    assert state.free_slot("fentry", "rtnl_getlink") == 0


def test_slots_fit_what_the_agent_has() -> None:
    assert set(KINDS) == set(ATTACHERS)
    for attacher in ATTACHERS.values():
        letters = attacher.bpf or attacher.name == "livepatch"
        assert attacher.slots == (len(SLOTS) if letters else abi.SLOTS)


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
