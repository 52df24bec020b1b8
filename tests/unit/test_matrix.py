# SPDX-License-Identifier: GPL-2.0-only
"""The matrices of pairs and triples: every order of coming and going, each once."""

from __future__ import annotations

import itertools
from collections import Counter
from math import comb

import pytest

from harness.policy.attachers import ATTACHERS, CORE
from harness.scenario import catalogue, matrix
from harness.scenario.functions import FUNCTIONS
from harness.scenario.steps import ANY, Attach, Detach, Scenario

PAIRS = tuple(matrix.pairs())
TRIPLES = tuple(matrix.triples())
#: Of these the kernel has one, which is on a function or not.
ONCE = ("function-tracer", "function-graph")


def orders(scenario: Scenario) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Who comes in which order, and in which they leave (by place), as the steps say."""
    arrivals = [s for s in scenario.steps if isinstance(s, Attach) and not s.unless_attached]
    places = {step.id: place for place, step in enumerate(arrivals)}
    departures = [places[s.id] for s in scenario.steps if isinstance(s, Detach)]
    return tuple(s.attacher for s in arrivals), tuple(departures)


def test_there_are_eighteen_attachers() -> None:
    assert len(CORE) == 18
    assert set(ATTACHERS) - set(CORE) == {"livepatch-replace", "direct-refuse"}


def test_every_ordered_pair_leaves_in_both_orders() -> None:
    expected = {
        ((first, second), leave)
        for first, second in itertools.product(CORE, repeat=2)
        for leave in ((0, 1), (1, 0))
        if first != second or first not in ONCE
    }
    assert {orders(s) for s in PAIRS} == expected
    # 18 x 18 cells with two orders of leaving, but for two attachers with themselves.
    assert len(PAIRS) == len(expected) == 648 - 2 * len(ONCE)


def test_every_triple_in_all_orders() -> None:
    redirects, called = {"livepatch", "ipmodify"}, {"direct", "direct-share", "fentry", "fexit",
                                                    "fmod_ret"}  # fmt: skip
    expected = {
        (arrival, leave)
        for arrival in itertools.permutations(CORE, 3)
        if redirects & set(arrival) and called & set(arrival)
        for leave in itertools.permutations(range(3))
    }
    assert {orders(s) for s in TRIPLES} == expected
    # All sets of three, less those without the one, those without the other; 6 x 6 orders.
    sets = comb(18, 3) - comb(16, 3) - comb(13, 3) + comb(11, 3)
    assert len(TRIPLES) == len(expected) == sets * 36 == 4860


def test_names_are_unique_and_say_the_orders() -> None:
    names = Counter(s.name for s in (*PAIRS, *TRIPLES))
    assert max(names.values()) == 1
    for scenario in (*PAIRS, *TRIPLES):
        attachers, attach, detach = scenario.name.split("/")
        arrived, left = orders(scenario)
        kinds = dict(zip("abc", attachers.split("+"), strict=False))
        letters = attach.removeprefix("attach:")
        assert tuple(kinds[letter] for letter in letters) == arrived == scenario.matrix
        assert detach.removeprefix("detach:") == "".join(letters[n] for n in left)
        assert scenario.functions == (ANY,)


@pytest.mark.parametrize("scenario", [PAIRS[0], *TRIPLES[:36]], ids=lambda s: s.name)
def test_what_was_refused_is_tried_again_after_each_departure(scenario: Scenario) -> None:
    arrived, left = orders(scenario)
    steps = list(scenario.steps[len(arrived) :])
    for number, place in enumerate(left):
        assert isinstance(steps[0], Detach)
        steps.pop(0)
        # The first cannot have been refused; who has left does not come back.
        for again in [n for n in range(1, len(arrived)) if n in left[number + 1 :]]:
            step = steps.pop(0)
            assert isinstance(step, Attach)
            assert step.unless_attached
            assert step.attacher == arrived[again]
        assert place in range(len(arrived))
    assert steps == []


def test_first_goes_first() -> None:
    for scenario in PAIRS:
        assert matrix.first_goes_first(scenario) is (orders(scenario)[1] == (0, 1))


@pytest.mark.parametrize(
    ("arrival", "breaks"),
    [
        (("kprobe", "kprobe-post"), True),
        (("kretprobe", "livepatch", "kprobe-post"), True),
        (("kprobe-post", "kprobe"), False),
        (("kprobe-post", "kprobe-post"), False),
        (("livepatch", "kprobe-post"), False),
        (("kprobe", "kretprobe"), False),
    ],
)
def test_what_costs_its_vm(arrival: tuple[str, ...], breaks: bool) -> None:
    """docs/findings/kprobe-post.md"""
    assert matrix.breaks_kprobes(arrival) is breaks
    found = [s for s in (*PAIRS, *TRIPLES) if orders(s)[0] == arrival]
    assert all(s.ends_vm is breaks for s in found)


@pytest.mark.parametrize("function", [f for f in FUNCTIONS if not f.startswith("security_cohabit")])
def test_pairs_on_another_function(function: str) -> None:
    fits = [a for a in CORE if a != "fmod_ret" or FUNCTIONS[function].fmod_ret]
    found = list(matrix.pairs(function))
    assert len(found) == 2 * (len(fits) ** 2 - len(ONCE))
    assert {s.functions for s in found} == {(function,)}
    assert all(s.name.endswith(f"/on:{function}") for s in found)


def test_all_of_them_are_in_the_catalogue() -> None:
    everything = {s.name: s for s in catalogue.everything()}
    for scenario in (*PAIRS, *TRIPLES):
        assert everything[scenario.name] == scenario
    default = set(catalogue.default())
    assert {s for s in PAIRS if s in default} == {s for s in PAIRS if matrix.first_goes_first(s)}
    assert not default & set(TRIPLES)
