# SPDX-License-Identifier: GPL-2.0-only
"""Errnos of steps that were done at the same time, against rows that really could have been."""

from __future__ import annotations

import errno
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from policy_help import OFF, ON, OTHER, PROFILES, V7_2, V7_3, F, on, run

from harness.policy import opsjudge
from harness.policy.acts import transition
from harness.policy.concurrent import OpMismatch, OpsJudge
from harness.policy.predict import applies
from harness.policy.profile import Profile
from harness.policy.slots import stirred_slots
from harness.policy.state import State
from harness.policy.timeline import Timeline
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
    Step,
    Stirrer,
    TraceAll,
    Unload,
)

Row = tuple[int, int, int, float, float]


def cycle(name: str, *steps: Step | TraceAll) -> Stirrer:
    return Stirrer(name, steps)


def toggle(attacher: str, *functions: str, name: str = "") -> Stirrer:
    name = name or attacher
    return cycle(name, on(name, attacher, *functions), Detach(name))


def judge(*rows: Row, by: Sequence[Stirrer], state: State | None = None) -> list[str]:
    judge = OpsJudge(state or State(), by, V7_2)
    rows = tuple(sorted(rows, key=lambda row: row[4]))
    found: list[OpMismatch] = []
    for row in rows:
        found += judge.feed([row])
    return [str(m) for m in (*found, *judge.finish())]


BUSY, AGAIN, INVALID = errno.EBUSY, errno.EAGAIN, errno.EINVAL
TWO = (toggle("livepatch"), toggle("ipmodify"))


LEFT = "livepatch: livepatch at the end: expected gone, saw on"


class TestAttach:
    def test_one_after_the_other(self) -> None:
        rows = [(0, 0, 0, 1.0, 2.0), (0, 1, 0, 3.0, 4.0), (1, 0, 0, 5.0, 6.0), (1, 1, 0, 7.0, 8.0)]
        assert judge(*rows, by=TWO) == []

    def test_accepted_beside_what_excludes_it(self) -> None:
        rows = [(0, 0, 0, 1.0, 2.0), (1, 0, 0, 3.0, 4.0), (0, 1, 0, 5.0, 6.0), (1, 1, 0, 7.0, 8.0)]
        assert judge(*rows, by=TWO) == [
            f"ipmodify: attach ipmodify: ipmodify to {F}: expected EBUSY (16), saw 0"
        ]

    def test_refused_by_nobody(self) -> None:
        rows = [(0, 0, 0, 1.0, 2.0), (0, 1, 0, 3.0, 4.0), (1, 0, BUSY, 5.0, 6.0)]
        (only,) = judge(*rows, by=TWO)
        assert only.endswith("expected 0, saw EBUSY (16)")

    @pytest.mark.parametrize("error", [0, BUSY])
    @pytest.mark.parametrize(
        ("begin", "end"), [(1.5, 1.6), (0.5, 2.5), (1.5, 3.5), (3.5, 3.6), (0.5, 9.0)]
    )
    def test_while_the_other_comes_or_goes(self, error: int, begin: float, end: float) -> None:
        rows = [(0, 0, 0, 1.0, 2.0), (0, 1, 0, 3.0, 4.0), (1, 0, error, begin, end)]
        rows += [] if error else [(1, 1, 0, 9.1, 9.2)]
        assert judge(*rows, by=TWO) == []

    def test_another_errno(self) -> None:
        rows = [(0, 0, 0, 1.0, 2.0), (0, 1, 0, 3.0, 4.0), (1, 0, INVALID, 1.5, 1.6)]
        assert len(judge(*rows, by=TWO)) == 1

    def test_what_was_there_before(self) -> None:
        state = run(V7_2, on("base", "direct"))[1]
        rows = [(0, 0, BUSY, 1.0, 2.0), (1, 0, 0, 3.0, 4.0), (1, 1, 0, 5.0, 6.0)]
        (only,) = judge(*rows, by=TWO, state=state)
        assert "ipmodify" in only

    def test_another_function(self) -> None:
        some = (toggle("livepatch"), toggle("ipmodify", OTHER))
        rows = [(0, 0, 0, 1.0, 2.0), (1, 0, BUSY, 3.0, 4.0), (0, 1, 0, 5.0, 6.0)]
        assert len(judge(*rows, by=some)) == 1

    def test_half_patched(self) -> None:
        # What the livepatch patched before it was refused on the second function.
        state = run(V7_2, on("base", "direct", OTHER))[1]
        some = (toggle("livepatch", F, OTHER), toggle("ipmodify"))
        row = (1, 0, BUSY, 1.2, 1.3)
        assert judge((0, 0, BUSY, 1.0, 2.0), row, by=some, state=state) == []
        assert len(judge((0, 0, BUSY, 1.4, 2.0), row, by=some, state=state)) == 1
        (only,) = judge(
            (0, 0, BUSY, 1.0, 2.0), row, by=(toggle("livepatch", OTHER), some[1]), state=state
        )
        assert only.startswith("ipmodify")

    def test_trampoline_locked(self) -> None:
        state = run(V7_2, on("base", "fentry"))[1]
        some = (toggle("ipmodify"), toggle("fexit", OTHER))
        fexit = (1, 0, 0, 1.0, 2.0), (1, 1, 0, 3.0, 4.0)
        assert judge((0, 0, AGAIN, 1.5, 1.6), *fexit, by=some, state=state) == []
        assert len(judge((0, 0, AGAIN, 2.5, 2.6), *fexit, by=some, state=state)) == 1
        assert len(judge((0, 0, AGAIN, 1.5, 1.6), *fexit, by=some)) == 1

    def test_ftrace_is_off(self) -> None:
        some = (toggle("livepatch"), cycle("sysctl", OFF, ON))
        sysctl = (1, 0, 0, 1.0, 2.0), (1, 1, 0, 3.0, 4.0)
        assert judge((0, 0, BUSY, 2.2, 2.3), *sysctl, by=some) == []
        assert judge((0, 0, 0, 3.2, 3.8), (0, 1, 0, 5.0, 6.0), *sysctl, by=some) == []
        assert len(judge((0, 0, 0, 2.2, 2.3), (0, 1, 0, 5.0, 6.0), *sysctl, by=some)) == 1
        assert len(judge((0, 0, BUSY, 4.2, 4.3), *sysctl, by=some)) == 1


class TestWrite:
    some = (cycle("sysctl", OFF, ON), toggle("livepatch"))

    def test_a_livepatch_forbids_it(self) -> None:
        patch = (1, 0, 0, 1.0, 2.0), (1, 1, 0, 3.0, 4.0)
        on_again = (0, 1, 0, 9.0, 9.1)
        assert judge((0, 0, BUSY, 2.2, 2.3), on_again, *patch, by=self.some) == []
        assert judge((0, 0, BUSY, 1.2, 1.3), on_again, *patch, by=self.some) == []
        assert judge((0, 0, 0, 3.2, 3.3), on_again, *patch, by=self.some) == []
        assert len(judge((0, 0, 0, 2.2, 2.3), on_again, *patch, by=self.some)) == 1
        assert len(judge((0, 0, BUSY, 4.2, 4.3), on_again, *patch, by=self.some)) == 1

    def test_left_off(self) -> None:
        assert judge((0, 0, 0, 1.0, 2.0), by=self.some) == [
            "sysctl: kernel.ftrace_enabled at the end: expected 1, saw 0"
        ]

    def test_deprecated(self) -> None:
        judge = OpsJudge(State(), self.some, V7_3)
        assert judge.feed([(0, 0, errno.EOPNOTSUPP, 1.0, 2.0)]) == judge.finish() == []


class TestLivepatch:
    patch, other = toggle("livepatch"), toggle("livepatch", OTHER, name="other")
    turn = cycle(
        "turn",
        replace(on("t", "livepatch"), wait=False),
        Disable("t", wait=False),
        Enable("t"),
        Detach("t"),
    )

    def test_one_transition(self) -> None:
        some = (self.patch, self.other)
        rows = (0, 0, 0, 1.0, 2.0), (0, 1, 0, 3.0, 4.0)
        for begin in (1.2, 3.2):
            assert judge(*rows, (1, 0, BUSY, begin, begin + 0.1), by=some) == []
        for begin in (0.2, 2.2, 4.2):
            assert len(judge(*rows, (1, 0, BUSY, begin, begin + 0.1), by=some)) == 1
        # Nor can one leave meanwhile.
        rows = (0, 0, 0, 1.0, 2.0), (1, 0, 0, 3.0, 5.0), (0, 1, BUSY, 4.0, 4.5)
        rest = (0, 1, 0, 6.0, 7.0), (1, 1, 0, 8.0, 9.0)
        assert judge(*rows, *rest, by=some) == []

    def test_nobody_waits(self) -> None:
        some = (self.turn, self.other)
        attach, leave = (0, 0, 0, 1.0, 1.1), (0, 3, 0, 4.0, 5.0)
        assert judge(attach, (1, 0, BUSY, 3.0, 3.1), leave, by=some) == []
        assert judge(attach, (1, 0, 0, 3.0, 3.1), (1, 1, 0, 6.0, 6.1), leave, by=some) == []
        assert len(judge(attach, leave, (1, 0, BUSY, 5.1, 5.2), by=some)) == 1

    @pytest.mark.parametrize(
        ("disable", "enable", "right"),
        [
            (0, 0, True),
            (0, errno.ENOENT, True),
            (0, errno.ENODEV, True),
            (0, INVALID, False),
            (INVALID, INVALID, False),
            (BUSY, INVALID, False),
            (errno.ENOENT, errno.ENOENT, False),
        ],
    )
    def test_turned_round(self, disable: int, enable: int, right: bool) -> None:
        rows = (
            (0, 0, 0, 1.0, 1.1),
            (0, 1, disable, 2.0, 2.1),
            (0, 2, enable, 3.0, 3.1),
            (0, 3, 0, 4.0, 5.0),
        )
        assert (judge(*rows, by=[self.turn]) == []) is right

    def test_disabled_twice(self) -> None:
        off = Disable("t", wait=False)
        some = [cycle("t", on("t", "livepatch"), off, off, Detach("t"))]
        for error, right in ((INVALID, True), (errno.ENOENT, True), (0, False), (BUSY, False)):
            rows = (0, 0, 0, 1.0, 1.1), (0, 1, 0, 2.0, 2.1), (0, 2, error, 3.0, 3.1)
            assert (judge(*rows, (0, 3, 0, 4.0, 5.0), by=some) == []) is right

    def test_replaced(self) -> None:
        some = (
            toggle("livepatch-replace"),
            cycle("x", on("x", "livepatch"), Disable("x"), Detach("x")),
        )
        rows = (1, 0, 0, 1.0, 2.0), (0, 0, 0, 3.0, 4.0)
        rest = (1, 2, 0, 7.0, 8.0), (0, 1, 0, 9.0, 9.1)
        assert judge(*rows, (1, 1, errno.ENOENT, 5.0, 5.1), *rest, by=some) == []
        assert len(judge(*rows, (1, 1, 0, 5.0, 5.1), *rest, by=some)) == 1
        # While that is on its way.
        for error in (BUSY, errno.ENOENT):
            assert judge(*rows, (1, 1, error, 3.5, 3.6), *rest, by=some) == []
        # It came while the other did.
        rows = (1, 0, 0, 1.0, 2.0), (0, 0, 0, 0.5, 1.9)
        for error in (0, errno.ENOENT):
            assert judge(*rows, (1, 1, error, 5.0, 5.1), *rest, by=some) == []

    def test_replaced_is_in_nobodys_way(self) -> None:
        some = (toggle("livepatch-replace", OTHER), self.patch, toggle("ipmodify"))
        rows = (1, 0, 0, 1.0, 2.0), (0, 0, 0, 3.0, 4.0), (2, 0, 0, 5.0, 5.1)
        rest = (2, 1, 0, 6.0, 6.1), (1, 1, 0, 7.0, 8.0), (0, 1, 0, 9.0, 9.1)
        assert judge(*rows, *rest, by=some) == []

    def test_force(self) -> None:
        some = (cycle("x", replace(on("x", "livepatch"), wait=False), Force("x"), Detach("x")),)
        for error, right in ((0, True), (INVALID, True), (BUSY, False)):
            rows = (0, 0, 0, 1.0, 1.1), (0, 1, error, 2.0, 2.1), (0, 2, 0, 3.0, 4.0)
            assert (judge(*rows, by=some) == []) is right

    def test_held_up_for_good(self) -> None:
        hold = "cohabit_hold"
        state = run(V7_2, Hold("h", hold), on("base", "livepatch", hold))[1]
        assert judge((0, 0, BUSY, 1.0, 2.0), by=[self.patch], state=state) == []
        (only, _) = judge((0, 0, 0, 1.0, 2.0), by=[self.patch], state=state)
        assert "expected EBUSY (16)" in only


class TestModule:
    module = cycle("module", Unload(), Load())
    LANE = "security_cohabit_000"

    def test_a_program_holds_it(self) -> None:
        some = (self.module, toggle("fentry", self.LANE))
        rows = (1, 0, 0, 1.0, 2.0), (1, 1, 0, 5.0, 6.0)
        held = errno.EWOULDBLOCK
        assert judge(*rows, (0, 0, held, 3.0, 4.0), by=some) == []
        assert judge(*rows, (0, 0, held, 1.5, 4.0), by=some) == []
        assert len(judge(*rows, (0, 0, 0, 3.0, 4.0), (0, 1, 0, 7.0, 8.0), by=some)) == 1
        assert len(judge(*rows, (0, 0, held, 7.0, 8.0), by=some)) == 1

    def test_looked_at(self) -> None:
        held = errno.EWOULDBLOCK
        some = (self.module, toggle("kprobe", self.LANE), cycle("calls", Call()))
        assert (
            judge((0, 0, held, 3.0, 4.0), (1, 0, 0, 3.5, 3.6), (1, 1, 0, 5.0, 6.0), by=some) == []
        )
        assert judge((0, 0, held, 3.0, 4.0), (2, 0, 0, 3.5, 3.6), by=some) == []
        assert len(judge((0, 0, held, 3.0, 4.0), (2, 0, 0, 4.5, 4.6), by=some)) == 1

    def test_nothing_comes_to_what_is_gone(self) -> None:
        some = (self.module, toggle("ops", self.LANE))
        rows = (0, 0, 0, 1.0, 2.0), (0, 1, 0, 5.0, 6.0)
        assert judge(*rows, (1, 0, errno.ENOENT, 3.0, 4.0), by=some) == []
        assert len(judge(*rows, (1, 0, errno.ENOENT, 7.0, 8.0), by=some)) == 1


class TestEnd:
    def test_never_came_back(self) -> None:
        assert judge((0, 0, 0, 1.0, 2.0), by=TWO) == [
            "livepatch: livepatch at the end: expected gone, saw on"
        ]

    def test_others_are_always_zero(self) -> None:
        state = run(V7_2, on("d", "direct"))[1]
        some = (cycle("x", Modify("d", 1), Call(), TraceAll("function"), Modify("d", 0)),)
        for step in range(4):
            rows = (0, step, BUSY, 1.0, 2.0)
            assert len(judge(rows, by=some, state=state)) == 1
            assert judge((*rows[:2], 0, 1.0, 2.0), by=some, state=state) == []

    def test_what_was_not_told_may_be_anything(self) -> None:
        # The livepatch's stirrer is stuck in a step of which we never hear.
        row = 1, 0, BUSY, 3.0, 4.0
        told = OpsJudge(State(), TWO, V7_2)
        assert told.feed([row]) == told.finish(stuck=["livepatch"]) == []
        assert len(judge(row, by=TWO)) == 1
        rows = (0, 0, 0, 1.0, 2.0), (1, 0, 0, 3.0, 4.0), (1, 1, 0, 5.0, 6.0)
        assert judge(*rows, by=TWO) == [LEFT]


def test_memory_is_bounded() -> None:
    some = (*TWO, toggle("ops"))
    judge = OpsJudge(State(), some, V7_2)
    kept = 0
    for number in range(4000):
        at = number * 10.0
        rows = [
            (i, s, 0, at + 4 * i + 2 * s, at + 4 * i + 2 * s + 1) for i in (0, 1) for s in (0, 1)
        ]
        # The third does a step now and then, and then no more.
        rows += [(2, number % 2, 0, at + 9.0, at + 9.5)] if number < 2000 else []
        assert judge.feed(rows) == []
        know = judge._know
        spans = sum(len(k.time.spans) for k in know.known.values())
        kept = max(kept, spans + len(know._recent) + len(judge._waiting))
    assert kept < 6 * opsjudge._WAITING
    # Its attachment is there or not: nobody knows, and it is in nobody's way.
    assert len(judge.finish()) == 0


def test_timeline() -> None:
    time = Timeline.of("a")
    time.step(1.0, 2.0, frozenset("x"), frozenset("b"))
    time.step(4.0, 5.0, frozenset(), frozenset("c"))
    assert time.between(2.5, 3.0) == {"b"}
    assert time.between(0.0, 1.5) == set("axb")
    assert time.before(1.0) == {"a"}
    assert time.before(4.0) == {"b"}
    time.may(3.0, frozenset("z"), frozenset("b"))
    assert time.between(2.5, 2.9) == {"b"}
    assert time.between(3.5, 3.6) == set("bz")
    assert time.last == {"c"}
    time.forget(4.5)
    assert time.between(4.6, 4.7) == set("bcz")
    assert len(time.spans) == 2


# --- against what really could have been ------------------------------------------------------

POOL = (
    toggle("livepatch", name="l"),
    toggle("livepatch", F, OTHER, name="m"),
    toggle("livepatch-replace", name="n"),
    toggle("ipmodify", name="i"),
    toggle("direct", name="d"),
    toggle("direct-share", F, name="s"),
    toggle("fentry", name="f"),
    toggle("fmod_ret", name="r"),
    toggle("ops", name="o"),
    toggle("kprobe", name="k"),
    cycle("w", OFF, ON),
    cycle("two", on("t", "ipmodify", OTHER), on("u", "fexit"), Detach("t"), Detach("u")),
)
BASES = ((), (on("base", "livepatch"),), (on("base", "direct"),), (on("base", "fexit"),))


def really(
    state: State,
    stirrers: Sequence[Stirrer],
    profile: Profile,
    chance: random.Random,
    number: int,
    overlap: bool = True,
) -> list[Row]:
    """Steps in some order, each done at a moment, within a time that overlaps others'."""
    slots = stirred_slots(state, stirrers)
    at = [0] * len(stirrers)
    last = [0.0] * len(stirrers)
    rows: list[Row] = []
    now = 1.0

    def does(who: int) -> None:
        nonlocal state, now
        index = at[who]
        step = stirrers[who].steps[index]
        at[who] = (index + 1) % len(stirrers[who].steps)
        assert not isinstance(step, TraceAll)
        if not applies(state, step) or (isinstance(step, Attach) and state.get(step.id)):
            return
        now += 1.0
        slot = slots[step.id] if isinstance(step, Attach) else None
        act, state = transition(state, step, profile, slot)
        before, behind = chance.choices((0.1, 0.5, 1.5, 4.0) if overlap else (0.1,), k=2)
        begin = max(last[who] + 0.01, now - before)
        last[who] = end = now + behind
        rows.append((who, index, act.errno, begin, end))

    for _ in range(number):
        who = chance.choice([i for i in range(len(stirrers)) if last[i] < now + 1.0] or [0])
        now = max(now, last[who])
        does(who)
    for who in range(len(stirrers)):
        while at[who]:
            now = max(now, last[who])
            does(who)
    return sorted(rows, key=lambda row: row[4])


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.sampled_from(POOL), min_size=1, max_size=5, unique=True),
    st.sampled_from(BASES),
    st.sampled_from(sorted(PROFILES)),
    st.integers(0, 1 << 30),
)
def test_what_really_was_is_right(
    some: list[Stirrer], base: tuple[Step, ...], name: str, seed: int
) -> None:
    profile = PROFILES[name]
    state = run(profile, *base)[1]
    rows = really(state, some, profile, random.Random(seed), 40)
    judge = OpsJudge(state, some, profile)
    found = []
    chance = random.Random(seed)
    while rows:
        several = chance.randint(1, 6)
        found += judge.feed(rows[:several])
        rows = rows[several:]
    assert [str(m) for m in (*found, *judge.finish())] == []


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.sampled_from(POOL), min_size=2, max_size=4, unique=True),
    st.integers(0, 1 << 30),
)
def test_a_wrong_one_among_many(some: list[Stirrer], seed: int) -> None:
    """Of steps that do not overlap the model alone says what each gives."""
    chance = random.Random(seed)
    rows = really(State(), some, V7_2, chance, 20, overlap=False)
    judge = OpsJudge(State(), some, V7_2)
    assert judge.feed(rows) == judge.finish() == []
    wrong = chance.randrange(len(rows))
    who, step, error, begin, end = rows[wrong]
    rows[wrong] = who, step, 0 if error else BUSY, begin, end
    judge = OpsJudge(State(), some, V7_2)
    found = [*judge.feed(rows), *judge.finish()]
    assert any(m.op and m.op.begin == begin for m in found)
