# SPDX-License-Identifier: GPL-2.0-only
"""What a stir promises, the judgement of what came of it, and how much that says."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stir_kernel import stirred

from harness import consistency
from harness.consistency import Expected, Judgement, Throughout
from harness.policy.acts import transition
from harness.policy.predict import applies
from harness.policy.profile import choose
from harness.policy.state import State
from harness.scenario import catalogue
from harness.scenario.steps import Stir

HOT, CMDLINE = "cohabit_hot", "cmdline_proc_show"
KERNEL, USER = (HOT, "kernel"), (CMDLINE, "user")

EXPECTED = Expected(
    allowed={HOT: frozenset({"livepatch-a"}), CMDLINE: frozenset({"original"})},
    throughout={"o": Throughout((HOT,)), "d": Throughout((CMDLINE,), direct=True)},
    hammers=(KERNEL, USER),
    calls=4000,
    patches=50,
    rounds={"ops": 2},
    cpus=2,
)


def result(**more: Any) -> dict[str, Any]:
    """One that keeps the promise."""
    return stirred(
        {KERNEL: "livepatch-a", USER: "original"},
        rounds={"ops": 2},
        throughout={
            "o": {"hits": 1990, "misses": 10, "via": {}},
            "d": {"hits": 2000, "misses": 0, "via": {"tramp_0": 900, "tramp_8": 1100}},
        },
        **more,
    )


def judged(spoil: Callable[[dict[str, Any]], Any], expected: Expected = EXPECTED) -> Judgement:
    found = copy.deepcopy(result())
    spoil(found)
    return consistency.judge(expected, found)


def thread(found: dict[str, Any], number: int = 0) -> dict[str, Any]:
    hammer: dict[str, Any] = found["hammers"][number]
    return hammer


def test_what_keeps_the_promise_says_nothing() -> None:
    assert judged(lambda _: None) == Judgement()


# --- wrong results --------------------------------------------------------------------------


def wrong(kind: str, number: int = 3, at: int = 0) -> Callable[[dict[str, Any]], None]:
    def spoil(found: dict[str, Any]) -> None:
        one = thread(found, at)
        one["wrong"][kind] = number
        one["first"] = {
            "t": 12.25, "cpu": one["cpu"], "call": 77, "kind": kind, "seen": "original",
            "stack": ["cohabit_hot+0x1/0x2", "hammer_thread+0x3/0x4"],
        }  # fmt: skip
        shown = found["hammers"][at]["bodies"]
        (body,) = shown
        if kind == "body":
            shown |= {body: shown[body] - number, "ipmodify-0": number}
        elif kind in ("none", "result"):
            shown[body] -= number

    return spoil


@pytest.mark.parametrize("kind", list(consistency.WRONG))
def test_each_kind_of_wrong_result_is_a_failure(kind: str) -> None:
    (mismatch,) = judged(wrong(kind)).mismatches
    assert mismatch.what == f"{HOT} calls: {kind}"
    assert mismatch.seen.startswith(f"3 of 2000 calls {consistency.WRONG[kind]}; ")
    assert "at 12.250000 s on CPU 0, call 77 by the kernel: original" in mismatch.seen
    assert judged(wrong(kind)).untrusted == ()
    assert mismatch.witness == "consistency"


def test_a_wrong_body_says_which_were_right() -> None:
    (mismatch,) = judged(wrong("body")).mismatches
    assert mismatch.expected == "only livepatch-a"
    assert mismatch.rule == "ipmodify-chooses-body"


def test_wrong_results_of_several_hammers_are_one_and_the_first_is_told() -> None:
    def spoil(found: dict[str, Any]) -> None:
        wrong("body", 3, 0)(found)
        wrong("body", 4, 1)(found)
        thread(found, 1)["first"] |= {"t": 3.5}

    (mismatch,) = judged(spoil).mismatches
    assert mismatch.seen.startswith("7 of 2000 calls met")
    assert "the first at 3.500000 s on CPU 1" in mismatch.seen


def test_a_wrong_result_fails_even_where_too_little_was_tried() -> None:
    def spoil(found: dict[str, Any]) -> None:
        wrong("none", 1)(found)
        found["patches"] = 1

    judgement = judged(spoil)
    assert judgement.mismatches
    assert judgement.untrusted == ("too little was tried: 1 of 50 patches",)


# --- counts ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("hits", "words"), [(1989, "(-1)"), (1991, "(+1)")])
def test_hits_equal_calls_exactly(hits: int, words: str) -> None:
    (mismatch,) = judged(lambda f: f["throughout"]["o"].update(hits=hits)).mismatches
    assert (mismatch.what, mismatch.expected) == ("hits of o", "2000")
    assert mismatch.seen == f"{hits} and 10 misses {words}"
    assert mismatch.rule == "each-sees-each-call"


def test_while_ftrace_may_be_off_there_are_no_more_hits_than_calls() -> None:
    loose = Expected(**{**vars(EXPECTED), "throughout": {"o": Throughout((HOT,), exact=False)}})
    assert judged(lambda f: f["throughout"]["o"].update(hits=5), loose) == Judgement()
    (mismatch,) = judged(lambda f: f["throughout"]["o"].update(hits=2001), loose).mismatches
    assert mismatch.expected == "at most 2000"


def test_hits_of_a_direct_call_are_those_through_its_trampolines() -> None:
    (mismatch,) = judged(lambda f: f["throughout"]["d"]["via"].update(tramp_8=1099)).mismatches
    assert mismatch.what == "trampolines of d"
    assert mismatch.seen == "900 through tramp_0, 1099 through tramp_8"


def test_whom_nobody_counted_says_nothing() -> None:
    judgement = judged(lambda f: f["throughout"].pop("o"))
    assert judgement == Judgement((), ("nobody counted the hits of o",))


def test_a_stirrer_that_the_kernel_kept_from_its_start_is_a_failure() -> None:
    words = "o is still there: errno 16 to the end"
    (mismatch,) = judged(lambda f: f["left"].update(ops=words)).mismatches
    assert (mismatch.witness, mismatch.seen) == ("errno", words)


# --- hammers that are not to be trusted ------------------------------------------------------


UNTRUSTED: list[tuple[str, Callable[[dict[str, Any]], Any]]] = [
    (
        f"the hammer of {HOT} by the kernel on CPU 1 has 999 results of 1000 calls",
        lambda f: thread(f, 1)["bodies"].update({"livepatch-a": 999}),
    ),
    (
        f"the hammer of {HOT} by the kernel on CPU 0 took 4 calls for right that were not",
        lambda f: thread(f)["bodies"].update({"livepatch-a": 996, "original": 4}),
    ),
    (
        f"the hammer of {HOT} by the kernel made no call on CPU 1",
        lambda f: (thread(f, 1).update(calls=0, bodies={}), thread(f).update(
            calls=2000, bodies={"livepatch-a": 2000})),
    ),
    (
        f"the hammer of {CMDLINE} by user space made no call on CPUs 0, 1",
        lambda f: (f["hammers"].pop(), f["hammers"].pop(), f.update(throughout={
            "o": f["throughout"]["o"], "d": {"hits": 0, "misses": 0, "via": {}}}),
            thread(f).update(calls=3000, bodies={"livepatch-a": 3000}),
            f["throughout"]["o"].update(hits=3990)),
    ),
    (
        f"the hammer of {CMDLINE} by user space on CPU 0 gave up: errno 5",
        lambda f: thread(f, 2).update(failed="errno 5"),
    ),
    ("ops did not end as it should: TypeError", lambda f: f["left"].update(ops="TypeError")),
    ("too little was tried: 49 of 50 patches", lambda f: f.update(patches=49)),
    ("too little was tried: 1 of 2 rounds of ops", lambda f: f["rounds"].update(ops=1)),
    ("too little was tried: no window was held open", lambda f: f.update(widen_us=2000)),
    (
        "too little was tried: no call fell into any of 50 windows",
        lambda f: f.update(widen_us=2000, windows=50, inside=0),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("words", "spoil"), UNTRUSTED, ids=[w[:60] for w, _ in UNTRUSTED])
def test_what_says_nothing_is_told(words: str, spoil: Callable[[dict[str, Any]], Any]) -> None:
    judgement = judged(spoil)
    assert judgement.mismatches == ()
    assert judgement.untrusted == (words,)


def test_too_few_calls_name_how_many() -> None:
    more = Expected(**{**vars(EXPECTED), "calls": 4001, "patches": 51})
    (words,) = judged(lambda _: None, more).untrusted
    assert words == "too little was tried: 4000 of 4001 calls, 50 of 51 patches"


def test_a_machine_with_one_cpu_will_not_do() -> None:
    found = stirred({KERNEL: "livepatch-a"}, cpus=1, calls=4000, rounds={"ops": 2})
    expected = Expected(**{**vars(EXPECTED), "throughout": {}, "hammers": (KERNEL,)})
    assert "the machine has 1 CPUs, not 2" in consistency.judge(expected, found).untrusted


# --- how much it says -----------------------------------------------------------------------


def test_the_rule_of_three() -> None:
    assert consistency.excluded(0) == 1.0
    assert consistency.excluded(1) == pytest.approx(0.95)
    assert consistency.excluded(1_000_000) == pytest.approx(2.9957e-6, rel=1e-3)


@given(st.integers(1, 10**10))
def test_what_is_excluded_would_have_shown(calls: int) -> None:
    rate = consistency.excluded(calls)
    assert 0 < rate <= 1
    # The chance of seeing none in so many, at that rate.
    assert math.exp(calls * math.log1p(-rate)) == pytest.approx(0.05, rel=1e-3)


def test_what_was_tried() -> None:
    found = consistency.tried(result(inside=0))
    assert (found.calls, found.wrong, found.patches, found.by) == (4000, 0, 50, "text-poke")
    assert found.hammers[CMDLINE, "user", 1] == 1000
    assert found.excluded == consistency.excluded(4000)
    assert found.excluded_inside is None
    assert consistency.tried(result(inside=7)).excluded_inside == consistency.excluded(7)


def test_where_something_was_wrong_nothing_is_excluded() -> None:
    bad = result()
    wrong("body")(bad)
    found = consistency.tried(bad)
    assert (found.wrong, found.excluded) == (3, None)
    first = consistency.first_wrong(bad)
    assert first is not None
    assert (first["function"], first["by"], first["call"]) == (HOT, "kernel", 77)
    assert consistency.first_wrong(result()) is None


# --- the promise ----------------------------------------------------------------------------


def promise(name: str, version: str = "6.12") -> Expected:
    (scenario,) = catalogue.select([name])
    profile, state = choose(f"{version}.0", {}), State()
    for step in scenario.steps:
        if isinstance(step, Stir):
            return consistency.expect(state, step, profile, scenario.cpus)
        if applies(state, step):
            _, state = transition(state, step, profile)
    raise AssertionError(name)


def test_under_a_livepatch_the_original_is_never_met() -> None:
    for scenario in catalogue.select(["consistency/*/livepatch/*"]):
        allowed = promise(scenario.name).allowed
        for function, bodies in allowed.items():
            assert bodies, function
            assert "original" not in bodies, scenario.name


def test_where_a_livepatch_comes_and_goes_both_bodies_are_right() -> None:
    assert promise("consistency/livepatch/fentry/on:cmdline_proc_show").allowed == {
        CMDLINE: frozenset({"original", "livepatch-a"})
    }
    assert promise("consistency/replace/livepatch/on:cohabit_hot").allowed == {
        HOT: frozenset({"livepatch-a", "livepatch-b"})
    }


def test_who_stays_counts_exactly_and_tracers_do_not() -> None:
    assert promise("consistency/function-tracer/fentry/on:cmdline_proc_show").throughout == {
        "stays": Throughout((CMDLINE,))
    }
    assert promise("consistency/direct-modify/livepatch/on:cohabit_hot").throughout == {
        "d": Throughout((HOT,), direct=True)
    }
    assert promise("consistency/function-tracer/livepatch/on:cohabit_hot").throughout == {}


def test_where_ftrace_is_turned_off_and_on_counts_are_a_bound_only() -> None:
    name = "consistency/ftrace_enabled/ops/on:cohabit_hot"
    assert not promise(name).throughout["stays"].exact
    # From 7.3 on that is refused.
    assert promise(name, "7.3").throughout["stays"].exact
    on_old = promise("consistency/ftrace_enabled/fentry/on:cmdline_proc_show", "5.10")
    assert on_old.throughout["stays"].exact


def test_what_is_refused_altogether_is_not_stirred() -> None:
    (scenario,) = catalogue.select(["consistency/fentry/livepatch/on:cmdline_proc_show"])
    assert consistency.nothing_to_stir(scenario, choose("6.12", {})) is None
    reason = consistency.nothing_to_stir(scenario, choose("5.10", {}))
    assert reason == "all that is stirred is refused on this kernel (rule one-ipmodify)"
    (plain,) = catalogue.select(["livepatch/stack-of-four"])
    assert consistency.nothing_to_stir(plain, choose("5.10", {})) is None
