# SPDX-License-Identifier: GPL-2.0-only
"""What must hold of the model after any row of steps, on every profile."""

from __future__ import annotations

import errno
import itertools
from collections import Counter
from typing import Any

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from policy_help import ARM_BARE, OFF, ON, PROFILES, V7_3, untold

from harness.policy.acts import transition
from harness.policy.attachers import ATTACHERS, CORE
from harness.policy.predict import Prediction, RecordPrediction, applies, planned, predict
from harness.policy.profile import NAMED, Profile, choose
from harness.policy.state import Attached, State
from harness.scenario.functions import FUNCTIONS
from harness.scenario.steps import (
    Attach,
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

# A busy machine is no failure.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

HOLD = "cohabit_hold"
WHERE = ("cmdline_proc_show", "security_cohabit_000", "security_cohabit_001", HOLD)
#: Profiles of the kernels, and each kernel's form with each other policy.
ALL_PROFILES = [
    *(
        choose(f"{a}.{b}.1", {}, name, arch)
        for arch in ("x86_64", "arm64")
        for a, b in NAMED
        for name in (None, *PROFILES, "share-ipmodify-v2", "permanent-v1", "exclusive-v1")
    ),
    ARM_BARE,
]
LIVEPATCHES = ("livepatch", "livepatch-replace")
BPF = ("fentry", "fexit", "fmod_ret")
KPROBES = ("kprobe", "kprobe-post", "kretprobe")
TRACERS = ("function-tracer", "function-graph")


def takes(attacher: str, functions: tuple[str, ...]) -> bool:
    fits = attacher != "fmod_ret" or all(FUNCTIONS[f].fmod_ret for f in functions)
    return fits and (attacher not in BPF or len(functions) == 1)


def on_ftrace(a: Attached, profile: Profile) -> bool:
    """On arm64 kprobes are breakpoints."""
    return profile.arch == "x86-64" or a.attacher not in KPROBES


def ops_of(a: Attached, profile: Profile) -> object:
    """Which ftrace_ops an attachment uses, told without harness/policy's own word for it."""
    if ATTACHERS[a.attacher].direct:
        return "direct"  # a function has one
    if a.attacher == "function-graph" or (
        a.attacher == "fprobe-exit" and profile.form.fprobe_shares
    ):
        return "graph"
    if a.attacher in ("fprobe", "kprobe-multi") and profile.form.fprobe_shares:
        return "fprobe"
    for alike in (LIVEPATCHES, KPROBES, TRACERS):
        if a.attacher in alike:
            return alike
    return a.id


def lasting(record: RecordPrediction | None) -> object:
    """A record without what its history may show: M, R that was kept, and jump or call."""
    return record and (record.count, record.flags - {"M", "R"}, record.direct, record.ops)


def look(state: State, profile: Profile) -> Prediction:
    """What a call shows that changes nothing."""
    prediction, after = predict(state, Call(), WHERE, profile)
    assert after == state
    return prediction


functions_ = st.lists(st.sampled_from(WHERE), min_size=1, max_size=3, unique=True).map(tuple)


class Model(RuleBasedStateMachine):
    """Attaches, detaches and all the rest; the model answers, the invariants look."""

    def __init__(self) -> None:
        super().__init__()
        self.state = State()
        self.profile = V7_3
        self.prediction: Prediction | None = None
        self.ids = (f"id{n}" for n in itertools.count())

    @initialize(profile=st.sampled_from(ALL_PROFILES))
    def begin(self, profile: Profile) -> None:
        self.profile = profile

    def act(self, step: Step) -> int:
        """The step's errno."""
        assert applies(self.state, step)
        self.prediction, self.state = predict(self.state, step, WHERE, self.profile)
        (error,) = self.prediction.errno
        return error

    @rule(attacher=st.sampled_from(sorted(ATTACHERS)), functions=functions_)
    def attach(self, attacher: str, functions: tuple[str, ...]) -> None:
        assume(takes(attacher, functions))
        assume(not self.state.unloaded)
        here = {a.attacher for f in functions for a in self.state.on(f)}
        assume(ATTACHERS[attacher].twice or attacher not in here)
        step = Attach(next(self.ids), attacher, functions)
        new = planned(self.state, step)
        assume(new.slot < ATTACHERS[attacher].slots)
        before, shown = self.state, look(self.state, self.profile)
        error = self.act(step)
        assert self.prediction is not None
        if error == 0:
            (arrived,) = set(self.state.attached) - set(before.attached) - self.changed(before)
            assert (arrived.id, arrived.functions, arrived.slot) == (step.id, functions, new.slot)
            left = {a.id for a in before.attached} - {a.id for a in self.state.attached}
            displaced = set(TRACERS) - {attacher} if attacher in TRACERS else set()
            assert left == {a.id for a in before.attached if a.attacher in displaced}
            return
        assert untold(self.state) == untold(before)
        assert not applies(self.state, Detach(step.id))
        assert self.prediction.registry == shown.registry
        assert self.prediction.livepatch == shown.livepatch
        assert {f: (b.body, b.hits, b.ret) for f, b in self.prediction.behaviour.items()} == {
            f: (b.body, b.hits, b.ret) for f, b in shown.behaviour.items()
        }
        # A refusal is for good as long as nothing changes.
        assert self.act(step) == error

    def changed(self, before: State) -> set[Attached]:
        ids = {a.id for a in before.attached}
        return {a for a in self.state.attached if a.id in ids}

    @precondition(lambda self: self.state.attached)
    @rule(data=st.data())
    def detach(self, data: st.DataObject) -> None:
        leaving = data.draw(st.sampled_from(self.state.attached))
        before = self.state
        error = self.act(Detach(leaving.id))
        ids = [a.id for a in before.attached]
        if error == 0:
            ids.remove(leaving.id)
        else:
            # Only a livepatch cannot leave: while another is coming, or when it was forced.
            assert leaving.attacher in LIVEPATCHES
            expected = errno.EBUSY if before.pending() and not leaving.forced else errno.EAGAIN
            assert error == expected
        assert [a.id for a in self.state.attached] == ids

    @precondition(lambda self: self.state.attached)
    @rule(make=st.sampled_from([Disable, Enable, Force]), data=st.data())
    def livepatch_files(self, make: Any, data: st.DataObject) -> None:
        patches = [a for a in self.state.attached if a.attacher in LIVEPATCHES]
        assume(patches)
        patch = data.draw(st.sampled_from(patches))
        before = self.state
        if self.act(make(patch.id)):
            assert self.state == before
        now = self.state.get(patch.id)
        assert now is not None
        if patch.phase == "off":
            assert now.phase == "off"

    @precondition(lambda self: self.state.attached)
    @rule(alternate=st.integers(0, 1), data=st.data())
    def modify(self, alternate: int, data: st.DataObject) -> None:
        direct = [a for a in self.state.attached if a.attacher.startswith("direct")]
        assume(direct)
        chosen = data.draw(st.sampled_from(direct))
        assert self.act(Modify(chosen.id, alternate)) == 0
        assert self.prediction is not None
        for function in chosen.functions:
            record = self.prediction.registry[function]
            if record:
                wanted = chosen.slot + 8 * alternate
                assert record.direct == f"cohabit_direct_tramp_{wanted}"

    @rule(step=st.sampled_from([OFF, ON]))
    def write(self, step: Step) -> None:
        before = self.state
        if self.act(step) == 0:
            assert self.state.ftrace_enabled is (step == ON)
        else:
            assert step == OFF
            assert self.state == before
        assert self.state.attached == before.attached

    @rule()
    def call(self) -> None:
        assert self.act(Call()) == 0

    @precondition(lambda self: len(self.state.held) < 3 and not self.state.unloaded)
    @rule()
    def hold(self) -> None:
        assert self.act(Hold(next(self.ids), HOLD)) == 0

    @precondition(lambda self: self.state.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        held = data.draw(st.sampled_from(self.state.held))
        assert self.act(Release(held.id)) == 0
        assert self.prediction is not None
        assert self.prediction.held == held.body

    @precondition(lambda self: not self.state.held and not self.state.pending())
    @rule()
    def module(self) -> None:
        before = self.state
        error = self.act(Load() if self.state.unloaded else Unload())
        holds = (*BPF, "kprobe-multi")
        assert error == 0 or any(a.attacher in holds for a in before.attached)
        assert self.state.attached == before.attached

    def alive(self, function: str) -> list[Attached]:
        """Who is called when the function is."""
        if self.state.unloaded and FUNCTIONS[function].module:
            return []
        here = self.state.on(function)
        if self.state.ftrace_enabled or function in self.state.awake:
            return list(here)
        return [a for a in here if not on_ftrace(a, self.profile)]

    @invariant()
    def records_count_their_ops(self) -> None:
        shown = look(self.state, self.profile).registry
        for function in WHERE:
            record = shown[function]
            called = [a for a in self.alive(function) if on_ftrace(a, self.profile)]
            assert (record is not None) is bool(called)
            if record:
                here = [a for a in self.state.on(function) if on_ftrace(a, self.profile)]
                assert record.count == len({ops_of(a, self.profile) for a in here})
                one = record.count == 1 and self.profile.form.call_ops
                assert ("O" in record.flags) is one is (record.ops is not None)
                assert self.profile.semantics.saves_regs or "R" not in record.flags
                direct = [a for a in here if ATTACHERS[a.attacher].direct]
                assert ("D" in record.flags) is bool(direct) is (record.direct is not None)
                modifies = {"ipmodify", *LIVEPATCHES} & {a.attacher for a in here}
                assert not modifies or "I" in record.flags

    @invariant()
    def hits_and_bodies_are_of_those_who_are_called(self) -> None:
        shown = look(self.state, self.profile)
        assert shown.ftrace_enabled == self.state.ftrace_enabled
        for function, call in shown.behaviour.items():
            if self.state.unloaded and FUNCTIONS[function].module:
                assert (call.body, call.hits) == ("absent", {})
                continue
            called = self.alive(function)
            counting = [a.id for a in self.state.on(function) if a.attacher not in LIVEPATCHES]
            assert sorted(call.hits) == sorted(counting)
            choosing = (*LIVEPATCHES, "ipmodify", "fmod_ret")
            bodies = {a.body for a in called if a.attacher in choosing}
            assert call.body in (bodies or {"original"})
            # A second fmod_ret program is behind the error of the first: not called.
            losers = [a.id for a in called if a.attacher == "fmod_ret"][:-1]
            # Before 5.16 the graph tracer followed whoever was called instead.
            if self.profile.semantics.graph_follows_ip:
                elsewhere = [a for a in called if a.kind.ipmodify or ATTACHERS[a.attacher].direct]
                graphs = [a.id for a in called if a.attacher == "function-graph"]
                losers += graphs if elsewhere else []
            ids = {a.id for a in called}
            for identity, hits in call.hits.items():
                assert hits == (identity in ids and identity not in losers)

    @invariant()
    def slots_never_collide(self) -> None:
        taken = Counter(owner for a in self.state.attached for owner in self._slot_owners(a))
        assert not taken or max(taken.values()) == 1

    @staticmethod
    def _slot_owners(a: Attached) -> list[tuple[str, int, str]]:
        """What holds the slot: a livepatch module, a device's slot, a function's program."""
        if a.attacher in BPF:
            assert 0 <= a.slot < 40
            return [(a.attacher, a.slot, function) for function in a.functions]
        assert 0 <= a.slot < (4 if a.attacher in LIVEPATCHES else 8)
        stores = ("livepatch", "direct", "ops", "fprobe")
        store = next((s for s in stores if a.attacher.split("-")[0] == s), a.attacher)
        return [("kprobe" if a.attacher == "kprobe-post" else store, a.slot, "")]

    @invariant()
    def one_of_a_kind(self) -> None:
        assert len({a.attacher for a in self.state.attached} & set(TRACERS)) <= 1
        assert sum(a.phase == "enabling" for a in self.state.attached) <= 1
        for function in WHERE:
            here = [a.attacher for a in self.state.on(function)]
            direct = [a for a in here if a.startswith("direct")]
            assert len(direct) <= 1
            assert not direct or not set(BPF) & set(here)
            assert here.count("ipmodify") <= 1
            assert not ("ipmodify" in here and set(LIVEPATCHES) & set(here))

    @invariant()
    def permanent_ops_keep_ftrace_on(self) -> None:
        if not self.state.ftrace_enabled and not self.profile.semantics.permanent_stays:
            assert not any(a.attacher in LIVEPATCHES and a.active for a in self.state.attached)

    @invariant()
    def what_is_kept_is_kept_for_somebody(self) -> None:
        for function in self.state.kept_regs:
            assert self.state.on(function)
        for function in self.state.post_armed:
            assert self.profile.arch == "x86-64"
            assert any(a.attacher in KPROBES for a in self.state.on(function))
        for function in self.state.awake:
            assert not self.state.ftrace_enabled
            assert self.profile.semantics.permanent_stays
            assert any(a.attacher in LIVEPATCHES for a in self.state.on(function))
        for function in self.state.still_shared:
            assert any(a.attacher in BPF for a in self.state.on(function))

    @invariant()
    def the_way_here_does_not_matter(self) -> None:
        """What is attached decides the record, not how it came (but for M and R)."""
        shown = look(self.state, self.profile).registry
        for attached in (self.state.attached, self.state.attached[::-1]):
            fresh = State(
                attached=attached,
                ftrace_enabled=self.state.ftrace_enabled,
                unloaded=self.state.unloaded,
                post_armed=self.state.post_armed,
                awake=self.state.awake,
                still_shared=self.state.still_shared,
            )
            again = look(fresh, self.profile).registry
            assert {f: lasting(r) for f, r in shown.items()} == {
                f: lasting(r) for f, r in again.items()
            }

    @invariant()
    def the_prediction_is_plain_data(self) -> None:
        if self.prediction:
            data: dict[str, Any] = self.prediction.to_json()
            assert set(data["registry"]) == set(data["behaviour"]) == set(WHERE)

    def teardown(self) -> None:
        """Whatever is attached leaves without a word, in the order of arrival."""
        for held in self.state.held:
            self.act(Release(held.id))
        if self.state.unloaded:
            self.act(Load())
        for attached in self.state.attached:
            error = self.act(Detach(attached.id))
            assert error == (errno.EAGAIN if attached.forced else 0)
        assert self.act(ON) == 0
        assert self.prediction is not None
        assert set(self.prediction.registry.values()) == {None}
        assert {b.body for b in self.prediction.behaviour.values()} == {"original"}
        assert self.prediction.livepatch == {}


Model.TestCase.settings = settings(unhurried, max_examples=120, stateful_step_count=25)
TestModel = Model.TestCase


@unhurried
@given(
    profile=st.sampled_from(ALL_PROFILES),
    wanted=st.lists(st.sampled_from(sorted(ATTACHERS)), min_size=2, max_size=4),
    function=st.sampled_from(WHERE),
    data=st.data(),
)
def test_order_of_detaching_does_not_matter(
    profile: Profile, wanted: list[str], function: str, data: st.DataObject
) -> None:
    state = State()
    for number, attacher in enumerate(wanted):
        assume(takes(attacher, (function,)))
        assume(ATTACHERS[attacher].twice or attacher not in wanted[:number])
        step = Attach(f"id{number}", attacher, (function,))
        assume(planned(state, step).slot < ATTACHERS[attacher].slots)
        _, state = predict(state, step, WHERE, profile)
    keep = data.draw(st.integers(0, len(state.attached)))
    leaving = data.draw(st.permutations(state.attached))[keep:]
    ends = set()
    for order in itertools.permutations(leaving):
        after = state
        for attached in order:
            prediction, after = predict(after, Detach(attached.id), WHERE, profile)
            assert prediction.errno == (0,)
        shown = look(after, profile)
        ends.add((lasting(shown.registry[function]), shown.behaviour[function].body))
    assert len(ends) == 1


@unhurried
@given(
    profile=st.sampled_from(ALL_PROFILES),
    pair=st.tuples(st.sampled_from(sorted(ATTACHERS)), st.sampled_from(sorted(ATTACHERS))),
    function=st.sampled_from(WHERE),
)
def test_who_came_first_does_not_decide_whether_two_can_live_together(
    profile: Profile, pair: tuple[str, str], function: str
) -> None:
    assume(all(takes(attacher, (function,)) for attacher in pair))
    outcomes = []
    for first, second in (pair, pair[::-1]):
        alone, state = predict(State(), Attach("a", first, (function,)), WHERE, profile)
        # Not one that the kernel has not at all.
        assume(alone.errno == (0,))
        prediction, after = predict(state, Attach("b", second, (function,)), WHERE, profile)
        # Of kprobes the first decides how all of the function are armed.
        joined = first in KPROBES and second in KPROBES
        record = None if joined or len(after.attached) < 2 else prediction.registry[function]
        outcomes.append((prediction.errno != (0,), len(after.attached), lasting(record)))
    assert outcomes[0] == outcomes[1]


@unhurried
@given(
    profile=st.sampled_from(ALL_PROFILES),
    wanted=st.lists(st.sampled_from(CORE), min_size=1, max_size=4),
    functions=functions_,
)
def test_many_functions_at_once_are_as_many_attachments(
    profile: Profile, wanted: list[str], functions: tuple[str, ...]
) -> None:
    """Each function shows what it would with attachments of its own (harness/run/company.py)."""
    merged = single = State()
    for number, attacher in enumerate(wanted):
        assume(takes(attacher, functions))
        assume(ATTACHERS[attacher].twice or attacher not in wanted[:number])
        step = Attach(f"{number}", attacher, functions)
        assume(planned(merged, step).slot < ATTACHERS[attacher].slots)
        slot = planned(merged, step).slot
        prediction, merged = predict(merged, step, WHERE, profile)
        for function in functions:
            one = Attach(f"{number}:{function}", attacher, (function,))
            _, single = transition(single, one, profile, slot)
        shown, alike = prediction.registry, look(single, profile).registry
        assert shown == alike
        bodies = {f: b.body for f, b in prediction.behaviour.items()}
        assert bodies == {f: b.body for f, b in look(single, profile).behaviour.items()}
