# SPDX-License-Identifier: GPL-2.0-only
"""Bodies that calls may meet while stirrers are at work, against all orders tried one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from policy_help import OFF, ON, OTHER, PROFILES, V7_2, F, on, run

from harness.policy import interleave
from harness.policy.acts import transition
from harness.policy.behaviour import body_of
from harness.policy.concurrent import Phase, allowed, phases
from harness.policy.predict import applies
from harness.policy.profile import Profile
from harness.policy.slots import stirred_slots
from harness.policy.state import State
from harness.scenario import consistency
from harness.scenario.steps import (
    Attach,
    Detach,
    Disable,
    Enable,
    Hold,
    Release,
    Step,
    Stir,
    Stirrer,
)

HOLD = "cohabit_hold"
A, B, ORIG = "livepatch-a", "livepatch-b", "original"


def cycle(name: str, *steps: Step) -> Stirrer:
    return Stirrer(name, steps)


def toggle(attacher: str, *functions: str, name: str = "") -> Stirrer:
    name = name or attacher
    return cycle(name, on(name, attacher, *functions), Detach(name))


def reversal(name: str = "r") -> Stirrer:
    attach = replace(on(name, "livepatch"), wait=False)
    return cycle(name, attach, Disable(name, wait=False), Detach(name))


def after(*steps: Step) -> State:
    return run(V7_2, *steps)[1]


def met(state: State, *stirrers: Stirrer, profile: Profile = V7_2) -> set[str]:
    return set(allowed(state, stirrers, F, profile))


LIVEPATCHED = after(on("base", "livepatch"))


class TestAllowed:
    def test_nobody_changes_the_body(self) -> None:
        some = (toggle("function-tracer"), toggle("fentry"), toggle("kprobe"), toggle("fexit"))
        assert met(State(), *some) == {ORIG}
        assert met(LIVEPATCHED, *some) == {A}

    def test_before_and_after_a_transition(self) -> None:
        assert met(State(), toggle("livepatch")) == {ORIG, A}
        assert met(LIVEPATCHED, toggle("livepatch")) == {A, B}
        assert met(LIVEPATCHED, reversal()) == {A, B}

    def test_ftrace_is_off_where_no_livepatch_forbids_it(self) -> None:
        off_on = cycle("sysctl", OFF, ON)
        assert met(LIVEPATCHED, off_on) == {A}
        assert met(after(on("i", "ipmodify")), off_on) == {"ipmodify-0", ORIG}
        assert met(after(on("i", "ipmodify")), toggle("livepatch", OTHER), off_on) == {
            "ipmodify-0",
            ORIG,
        }

    def test_ftrace_is_off_before_a_livepatch_comes(self) -> None:
        assert met(State(), toggle("livepatch"), cycle("sysctl", OFF, ON)) == {ORIG, A}

    def test_one_replaces_the_other_and_back(self) -> None:
        there = after(on("base", "livepatch-replace"))
        both = cycle(
            "replace",
            on("p", "livepatch-replace"),
            Detach("base"),
            on("base", "livepatch-replace"),
            Detach("p"),
        )
        assert met(there, both) == {A, B}
        # Turned back, the replacing one has displaced nobody.
        back = cycle(
            "back", replace(on("p", "livepatch-replace"), wait=False), Disable("p", wait=False)
        )
        assert met(there, cycle("x", *back.steps, Detach("p"), Detach("base"), there_again())) == {
            A,
            B,
            ORIG,
        }

    def test_replaced_elsewhere(self) -> None:
        # A replacing livepatch of another function leaves this one's original.
        cumulative = cycle(
            "r",
            on("p", "livepatch-replace", OTHER),
            Detach("base"),
            there_again("livepatch"),
            Detach("p"),
        )
        assert met(LIVEPATCHED, cumulative) == {A, ORIG}

    def test_who_refuses_whom(self) -> None:
        some = (toggle("livepatch"), toggle("ipmodify"), toggle("direct"))
        assert met(State(), *some) == {ORIG, A, "ipmodify-0"}
        # The direct call is there for good: nobody redirects.
        assert met(after(on("d", "direct")), *some[:2]) == {ORIG}

    def test_refused_on_another_function(self) -> None:
        both = toggle("ipmodify", F, OTHER)
        assert met(after(on("d", "direct", OTHER)), both) == {ORIG}
        assert met(State(), both, toggle("direct", OTHER)) == {ORIG, "ipmodify-0"}

    def test_fmod_ret_over_all(self) -> None:
        assert met(LIVEPATCHED, toggle("fmod_ret")) == {A, "fmod_ret-0"}

    def test_too_many(self, monkeypatch: pytest.MonkeyPatch) -> None:
        some = (
            toggle("livepatch"),
            toggle("ipmodify"),
            toggle("fmod_ret"),
            reversal(),
            toggle("direct"),
        )
        full = met(State(), *some)
        for limit in (200, 8):
            monkeypatch.setattr(interleave, "LIMIT", limit)
            with pytest.raises(interleave.TooManyError):
                slots = stirred_slots(State(), some)
                interleave.Interleavings(State(), some, V7_2, frozenset({F}), slots)
            assert met(State(), *some) == full
        monkeypatch.setattr(interleave, "LIMIT", 12)
        assert met(LIVEPATCHED, *some) == full - {ORIG, "ipmodify-0"} | {"livepatch-c"}

    def test_livepatch_never_leaves_the_original_in_the_catalogue(self) -> None:
        for scenario in consistency.scenarios():
            state = State()
            for step in scenario.steps:
                if isinstance(step, Stir):
                    break
                _, state = transition(state, step, V7_2)
            assert isinstance(step, Stir)
            for function in step.hammered:
                bodies = allowed(state, step.stirrers, function, V7_2)
                patched = any(a.kind.ipmodify for a in state.on(function))
                assert (ORIG not in bodies) == patched, scenario.name
                assert len(bodies) < 6


def there_again(attacher: str = "livepatch-replace") -> Attach:
    return on("base", attacher)


class TestPhases:
    def test_a_livepatch(self) -> None:
        (on_off, traced) = phases(State(), (toggle("livepatch"), toggle("ops")), V7_2, [F])
        both = frozenset({ORIG, A})
        assert on_off == (
            {F: Phase(both, frozenset({A}), True)},
            {F: Phase(both, frozenset({ORIG}), True)},
        )
        assert traced == ({}, {})

    def test_a_reversal_is_not_monotonic(self) -> None:
        ((attach, disable, detach),) = phases(LIVEPATCHED, (reversal(),), V7_2, [F])
        both = frozenset({A, B})
        assert attach[F] == disable[F] == Phase(both, both)
        assert detach[F] == Phase(both, frozenset({A}))

    def test_two_change_it(self) -> None:
        assert phases(State(), (toggle("livepatch"), toggle("ipmodify")), V7_2, [F]) == (
            ({}, {}),
            ({}, {}),
        )

    def test_each_has_a_function(self) -> None:
        some = (toggle("livepatch"), toggle("ipmodify", OTHER))
        one, two = phases(State(), some, V7_2, [F, OTHER])
        assert [set(step) for step in one] == [{F}, {F}]
        assert [set(step) for step in two] == [{OTHER}, {OTHER}]
        assert two[0][OTHER].after == {"ipmodify-0"}

    def test_refused_by_another(self) -> None:
        one, _ = phases(State(), (toggle("ipmodify"), toggle("direct")), V7_2, [F])
        assert one[0][F].after == {ORIG, "ipmodify-0"}
        assert one[1][F].after == {ORIG}

    def test_a_step_that_decides_no_body(self) -> None:
        long = cycle(
            "x",
            on("o", "ops"),
            on("i", "ipmodify"),
            on("p", "ops"),
            Detach("i"),
            Detach("o"),
            Detach("p"),
        )
        (steps,) = phases(State(), (long,), V7_2, [F])
        mine = frozenset({"ipmodify-0"})
        assert [step[F].after for step in steps] == [{ORIG}, mine, mine, {ORIG}, {ORIG}, {ORIG}]
        assert steps[2][F].during == mine

    def test_a_held_call_keeps_the_transition_pending(self) -> None:
        held = after(Hold("h", HOLD), on("a", "livepatch", HOLD))
        assert held.pending()
        letting = cycle("x", Release("h"), Hold("h", HOLD))
        assert allowed(held, [letting], HOLD, V7_2) == {ORIG, A}
        assert allowed(held, [toggle("ops", HOLD)], HOLD, V7_2) == {ORIG, A}

    def test_too_many(self, monkeypatch: pytest.MonkeyPatch) -> None:
        some = (toggle("ipmodify"), toggle("direct"), toggle("livepatch", OTHER), toggle("fentry"))
        full = phases(State(), some, V7_2, [F])
        assert full[0][0]
        monkeypatch.setattr(interleave, "LIMIT", 5)
        assert phases(State(), some, V7_2, [F]) == full


# --- against all orders -----------------------------------------------------------------------

POOL = (
    toggle("livepatch", name="l"),
    toggle("livepatch", F, OTHER, name="m"),
    toggle("ipmodify", name="i"),
    toggle("direct", name="d"),
    toggle("direct-share", name="s"),
    toggle("fentry", name="f"),
    toggle("fmod_ret", name="r"),
    toggle("ops", name="o"),
    toggle("kprobe", name="k"),
    cycle("w", OFF, ON),
    cycle("two", on("t", "ipmodify"), on("u", "fmod_ret"), Detach("t"), Detach("u")),
    cycle(
        "turn",
        replace(on("v", "livepatch"), wait=False),
        Disable("v", wait=False),
        Enable("v"),
        Detach("v"),
    ),
)
BASES = (
    (),
    (on("base", "livepatch"),),
    (on("base", "ipmodify"),),
    (on("base", "direct"),),
    (on("base", "fexit"),),
)


def one_by_one(state: State, stirrers: Sequence[Stirrer], profile: Profile) -> Iterator[State]:
    """All states that are reached where each step is done at once, by the model alone."""
    slots = stirred_slots(state, stirrers)
    begin = (tuple(0 for _ in stirrers), state)
    known, ahead = {begin}, [begin]
    while ahead:
        at, now = ahead.pop()
        yield now
        for number, one in enumerate(stirrers):
            step = one.steps[at[number]]
            after = now
            there = isinstance(step, Attach) and now.get(step.id)
            if applies(now, step) and not there:
                slot = slots[step.id] if isinstance(step, Attach) else None
                after = transition(now, step, profile, slot)[1]
                # What records remember and how often somebody was asked has no end.
                after = interleave.plain(after)
            new = (*at[:number], (at[number] + 1) % len(one.steps), *at[number + 1 :]), after
            if new not in known:
                known.add(new)
                ahead.append(new)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.sampled_from(POOL), min_size=1, max_size=4, unique=True),
    st.sampled_from(BASES),
    st.sampled_from(sorted(PROFILES)),
)
def test_against_all_orders(some: list[Stirrer], base: tuple[Step, ...], name: str) -> None:
    profile = PROFILES[name]
    state = run(profile, *base)[1]
    bodies = {body_of(s, F, profile) for s in one_by_one(state, some, profile)}
    found = allowed(state, some, F, profile)
    assert bodies <= found
    # Without transitions there is nothing more.
    if not any(isinstance(s, Attach) and s.attacher == "livepatch" for x in some for s in x.steps):
        assert bodies == found
    for number, steps in enumerate(phases(state, some, profile, [F])):
        for step in steps:
            for phase in step.values():
                assert phase.after <= phase.during <= found, some[number].name
