# SPDX-License-Identifier: GPL-2.0-only
"""What must hold of the model after any row of steps, on every profile."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from policy_help import OFF, ON, PROFILES, V7_3

from harness.policy.attachers import ATTACHERS
from harness.policy.predict import Prediction, RecordPrediction, applies, planned, predict
from harness.policy.profile import NAMED, Profile, choose
from harness.policy.state import Attached, State
from harness.scenario.functions import FUNCTIONS
from harness.scenario.steps import Attach, Call, Detach, Step

# A busy machine is no failure.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

WHERE = ("cmdline_proc_show", "security_task_getpgid", "cohabit_f6")
#: Profiles of the kernels, and each kernel's form with each other policy.
ALL_PROFILES = [choose(f"{a}.{b}.1", {}, name) for a, b in NAMED for name in (None, *PROFILES)]


def takes(attacher: str, function: str) -> bool:
    return attacher != "fmod_ret" or FUNCTIONS[function].fmod_ret


def ops_of(a: Attached) -> object:
    """Which ftrace_ops an attachment uses, told without harness/policy's own word for it."""
    if a.attacher == "livepatch":
        return "livepatch"
    return "bpf" if a.attacher in ("fentry", "fexit", "fmod_ret") else a.id


def lasting(record: RecordPrediction | None) -> object:
    """A record without what its history may show: the sticky M, and jump or call."""
    return record and (record.count, record.flags - {"M"}, record.direct)


def look(state: State, profile: Profile) -> Prediction:
    """What a call shows that changes nothing."""
    prediction, after = predict(state, Call(), WHERE, profile)
    assert after.attached == state.attached
    return prediction


class Model(RuleBasedStateMachine):
    """Attaches, detaches and writes; the model answers, the invariants look."""

    def __init__(self) -> None:
        super().__init__()
        self.state = State()
        self.profile = V7_3
        self.prediction: Prediction | None = None
        self.ids = (f"id{n}" for n in itertools.count())

    @initialize(profile=st.sampled_from(ALL_PROFILES))
    def begin(self, profile: Profile) -> None:
        self.profile = profile

    def act(self, step: Step) -> Prediction:
        assert applies(self.state, step)
        self.prediction, self.state = predict(self.state, step, WHERE, self.profile)
        assert len(self.prediction.errno) == 1
        return self.prediction

    @rule(attacher=st.sampled_from(sorted(ATTACHERS)), function=st.sampled_from(WHERE))
    def attach(self, attacher: str, function: str) -> None:
        assume(takes(attacher, function))
        step = Attach(next(self.ids), attacher, function)
        new = planned(self.state, step)
        assume(new.slot < ATTACHERS[attacher].slots)
        before, shown = self.state, look(self.state, self.profile)
        prediction = self.act(step)
        if prediction.errno == (0,):
            assert self.state.attached == (*before.attached, new)
            return
        assert self.state == before
        assert not applies(self.state, Detach(step.id))
        assert prediction.registry == shown.registry
        assert prediction.behaviour == shown.behaviour
        assert prediction.livepatch == shown.livepatch
        # A refusal is for good as long as nothing changes.
        assert self.act(step).errno == prediction.errno

    @precondition(lambda self: self.state.attached)
    @rule(data=st.data())
    def detach(self, data: st.DataObject) -> None:
        leaving = data.draw(st.sampled_from(self.state.attached))
        before = self.state
        assert self.act(Detach(leaving.id)).errno == (0,)
        assert self.state.attached == tuple(a for a in before.attached if a != leaving)

    @rule(step=st.sampled_from([OFF, ON]))
    def write(self, step: Step) -> None:
        before = self.state
        prediction = self.act(step)
        if prediction.errno == (0,):
            assert self.state.ftrace_enabled is (step == ON)
        else:
            assert step == OFF
            assert self.state == before
        assert self.state.attached == before.attached

    @rule()
    def call(self) -> None:
        assert self.act(Call()).errno == (0,)

    @invariant()
    def records_count_their_ops(self) -> None:
        shown = look(self.state, self.profile).registry
        for function in WHERE:
            here = self.state.on(function)
            expected = len({ops_of(a) for a in here}) if self.state.ftrace_enabled else 0
            record = shown[function]
            assert (record.count if record else 0) == expected
            if record:
                direct = [a for a in here if ATTACHERS[a.attacher].direct]
                assert ("D" in record.flags) is bool(direct) is (record.direct is not None)

    @invariant()
    def hits_and_bodies_only_while_on(self) -> None:
        shown = look(self.state, self.profile)
        assert shown.ftrace_enabled == self.state.ftrace_enabled
        for function, call in shown.behaviour.items():
            here = self.state.on(function)
            assert set(call.hits) == {a.id for a in here if a.attacher != "livepatch"}
            bodies = {a.body for a in here if a.attacher in ("livepatch", "ipmodify", "fmod_ret")}
            if not self.state.ftrace_enabled:
                assert not any(call.hits.values())
                bodies = set()
            assert call.body in (bodies or {"original"})
            # A second fmod_ret program is behind the error of the first: not called.
            losers = [a.id for a in here if a.attacher == "fmod_ret"][:-1]
            for identity, hits in call.hits.items():
                assert hits == (self.state.ftrace_enabled and identity not in losers)

    @invariant()
    def slots_never_collide(self) -> None:
        taken = Counter(self._slot_owner(a) for a in self.state.attached)
        assert not taken or max(taken.values()) == 1

    @staticmethod
    def _slot_owner(a: Attached) -> tuple[str, int, str]:
        """What holds the slot: a livepatch module, a device's slot, a function's program."""
        assert 0 <= a.slot < 8
        if a.attacher in ("fentry", "fexit", "fmod_ret"):
            return a.attacher, a.slot, a.function
        return a.attacher.split("-")[0], a.slot, ""

    @invariant()
    def permanent_ops_keep_ftrace_on(self) -> None:
        if not self.state.ftrace_enabled:
            assert "livepatch" not in {a.attacher for a in self.state.attached}

    @invariant()
    def the_way_here_does_not_matter(self) -> None:
        """What is attached decides the record, not how it came (but for M)."""
        fresh = State(attached=self.state.attached, ftrace_enabled=self.state.ftrace_enabled)
        turned = State(attached=self.state.attached[::-1], ftrace_enabled=fresh.ftrace_enabled)
        shown = look(self.state, self.profile).registry
        for other in (fresh, turned):
            again = look(other, self.profile).registry
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
        for attached in self.state.attached:
            prediction, self.state = predict(self.state, Detach(attached.id), WHERE, self.profile)
            assert prediction.errno == (0,)
        prediction, self.state = predict(self.state, ON, WHERE, self.profile)
        assert prediction.errno == (0,)
        assert set(prediction.registry.values()) == {None}
        assert {b.body for b in prediction.behaviour.values()} == {"original"}
        assert prediction.livepatch == {}


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
        assume(takes(attacher, function))
        step = Attach(f"id{number}", attacher, function)
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
    assume(all(takes(attacher, function) for attacher in pair))
    outcomes = []
    for first, second in (pair, pair[::-1]):
        _, state = predict(State(), Attach("a", first, function), WHERE, profile)
        prediction, _ = predict(state, Attach("b", second, function), WHERE, profile)
        outcomes.append(prediction.errno != (0,))
    assert outcomes[0] == outcomes[1]
