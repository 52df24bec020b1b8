# SPDX-License-Identifier: GPL-2.0-only
"""Who runs side by side (harness/scenario/company.py)."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from policy_help import on

from harness.agent import abi
from harness.policy.attachers import ATTACHERS, CORE
from harness.scenario import catalogue, matrix
from harness.scenario.company import exclusive, gather, places, shape, sociable
from harness.scenario.functions import FUNCTIONS
from harness.scenario.steps import ANY, Attach, Call, Detach, Modify, Scenario, Step, Unload

PAIRS = tuple(matrix.pairs())
TRIPLES = tuple(matrix.triples())
BY_NAME = {s.name: s for s in catalogue.everything()}
LANES = [f.name for f in FUNCTIONS.values() if f.lane is not None]


def of(
    *steps: Step, functions: tuple[str, ...] = (ANY,), watch: bool = False, ends_vm: bool = False
) -> Scenario:
    return Scenario("mine", functions, steps, watch=watch, ends_vm=ends_vm)


def pair(first: str, second: str, where: str = ANY) -> Scenario:
    steps = on("a", first, where), on("b", second, where), Detach("a"), Detach("b")
    return of(*steps, functions=(where,))


@pytest.mark.parametrize(
    "scenario",
    [
        of(on("a", "ops", ANY), Call()),
        of(on("a", "direct", ANY), Modify("a", 1)),
        of(on("a", "ops", ANY), Unload()),
        of(on("a", "ops", ANY), Detach("a"), watch=True),
        of(on("a", "ops", ANY), Detach("a"), ends_vm=True),
        of(on("a", "ops", ANY, LANES[0]), functions=(ANY, LANES[0])),
        pair("function-tracer", "function-graph"),
        pair("kprobe-post", "direct"),
        pair("fexit", "kprobe-post"),
        pair("kprobe-post", "kprobe"),
        pair("kretprobe", "kprobe-post"),
        pair("livepatch", "kprobe-post"),
        pair("kprobe-post", "ipmodify"),
        # A trampoline is told its function by a lane's argument.
        pair("direct", "ops", "cohabit_f3"),
        pair("livepatch", "direct-share", "cmdline_proc_show"),
        # What displaces others, and what is outside the matrix.
        pair("livepatch", "livepatch-replace"),
        pair("direct-refuse", "livepatch"),
    ],
    ids=lambda s: "+".join([*s.attachers, *(type(x).__name__ for x in s.steps), *s.functions]),
)
def test_unsociable(scenario: Scenario) -> None:
    assert not sociable(scenario)
    assert len(gather(scenario, [scenario], True, 8)) == 1


@pytest.mark.parametrize(
    "scenario",
    [pair("livepatch", "fexit"), pair("kprobe-post", "kprobe-post"), pair("kprobe", "direct"),
     pair("ops-regs", "kprobe-post"), pair("function-graph", "fprobe-exit"),
     pair("direct", "ops", LANES[3]), pair("fexit", "livepatch", "cohabit_f3"),
     pair("direct-share", "ops")],
    ids=lambda s: "+".join(s.attachers),
)  # fmt: skip
def test_sociable(scenario: Scenario) -> None:
    assert sociable(scenario)


def test_most_of_the_matrices_can_be_in_company() -> None:
    alone = [s for s in PAIRS if not sociable(s)]
    expected = set()
    for first, second in itertools.product(CORE, repeat=2):
        posts = "kprobe-post" in (first, second)
        other = ({first, second} - {"kprobe-post"} or {"kprobe-post"}).pop()
        kind = ATTACHERS[other]
        minds = kind.direct or kind.ipmodify or kind.ops == "kprobe"
        if posts and other != "kprobe-post" and minds:
            expected.add((first, second))
        if {first, second} == {"function-tracer", "function-graph"}:
            expected.add((first, second))
        if "direct-share" in (first, second) and {first, second} & {"livepatch", "ipmodify"}:
            expected.add((first, second))
    assert {s.matrix for s in alone} == expected
    # Each of these costs more time than a hundred others.
    assert len(alone) == 2 * len(expected) == 48


def test_shape_is_acts_in_their_order() -> None:
    pairs = Counter(shape(s) for s in PAIRS)
    assert len(pairs) == 2, "first goes first, or last"
    assert sum(pairs.values()) == len(PAIRS)
    # Six orders of leaving; which letter came first does not matter.
    assert len({shape(s) for s in TRIPLES}) == 6
    one, two = (
        pair("ops", "kprobe"),
        of(on("x", "fexit", ANY), on("y", "livepatch", ANY), Detach("x"), Detach("y")),
    )
    assert shape(one) == shape(two)
    again = of(on("x", "ops", ANY), on("y", "ops", ANY, again=True), Detach("x"), Detach("y"))
    assert shape(again) != shape(one)
    other = of(on("x", "ops", ANY), on("y", "ops", ANY), Detach("y"), Detach("x"))
    assert shape(other) != shape(one)


def test_exclusive() -> None:
    assert exclusive(pair("ops", "instance")) == frozenset()
    assert exclusive(pair("function-graph", "ops")) == {"function-graph"}


@pytest.mark.parametrize(
    ("scenario", "module_btf", "expected"),
    [
        (pair("ops", "livepatch"), False, LANES),
        (pair("fexit", "livepatch"), True, LANES),
        (pair("fexit", "livepatch"), False,
         ["cmdline_proc_show", "version_proc_show", "rtnl_getlink", "ctrl_getfamily"]),
        (pair("fexit", "fmod_ret"), False, ["security_task_getpgid"]),
        (pair("fexit", "ops", "cohabit_f3"), True, ["cohabit_f3"]),
        (pair("fexit", "ops", "cohabit_f3"), False, ["cohabit_f3"]),
    ],
)  # fmt: skip
def test_places(scenario: Scenario, module_btf: bool, expected: list[str]) -> None:
    assert list(places(scenario, module_btf)) == expected


def test_gather_takes_those_of_one_shape() -> None:
    first = PAIRS[0]
    found = gather(first, PAIRS[1:], True, abi.LANES)
    assert found[0].name == first.name
    assert len(found) == abi.LANES
    assert {shape(s) for s in found} == {shape(first)}
    names = [s.name for s in PAIRS]
    order = [names.index(s.name) for s in found]
    assert order == sorted(order), "in their order"
    # Each on a lane of its own, and nothing else changed.
    used = [f for s in found for f in s.functions]
    assert used == LANES[: len(found)]
    for scenario in found:
        original = BY_NAME[scenario.name]
        assert original.placed(scenario.functions[0]) == scenario
        assert all(s.functions == scenario.functions for s in scenario.steps
                   if isinstance(s, Attach))  # fmt: skip


def test_gather_keeps_to_the_limit() -> None:
    assert [s.name for s in gather(PAIRS[0], PAIRS[1:], True, 1)] == [PAIRS[0].name]
    assert len(gather(PAIRS[0], PAIRS[1:], True, 7)) == 7


def test_gather_has_one_tracer() -> None:
    tracing = [pair(t, "ops") for t in ("function-graph", "function-tracer", "function-graph")]
    found = gather(tracing[0], [pair("ops", "ops"), *tracing[1:]], True, 8)
    assert [s.attachers[0] for s in found] == ["function-graph", "ops", "function-graph"]


def test_gather_keeps_users_of_the_function_graph_on_one_function() -> None:
    """Where fprobes have another user beside them: docs/findings/fgraph-bit-zero.md."""
    both = pair("fprobe-exit", "function-graph")
    probes = [pair("fprobe-exit", "ops"), pair("fprobe-exit", "fexit")]
    tracer = pair("function-graph", "ops")
    assert gather(both, [*probes, tracer], True, 8) == [both.placed(LANES[0])]
    found = gather(probes[0], [tracer, both, probes[1], pair("ops", "ops")], True, 8)
    assert [s.attachers[0] for s in found] == ["fprobe-exit", "fprobe-exit", "ops"]
    assert len(gather(tracer, [tracer, *probes], True, 8)) == 2


def test_gather_leaves_out_who_finds_no_place() -> None:
    """Without BTF for modules BPF has few functions to go on."""
    found = gather(pair("fexit", "ops"), [pair("fentry", "ops")] * 9, False, 8)
    assert [s.functions[0] for s in found] == ["cmdline_proc_show", "version_proc_show",
                                               "rtnl_getlink", "ctrl_getfamily"]  # fmt: skip
    both = gather(pair("fexit", "ops"), [pair("ops", "ops"), pair("fmod_ret", "ops"),
                                         pair("fmod_ret", "ops")], False, 8)  # fmt: skip
    assert [s.functions[0] for s in both] == ["cmdline_proc_show", LANES[0],
                                              "security_task_getpgid"]  # fmt: skip


def test_gather_gives_a_function_to_one() -> None:
    here = pair("ops", "kprobe", "cohabit_f3")
    found = gather(here, [here, pair("ops", "ops", "cohabit_f6"), pair("ops", "ops")], True, 8)
    assert [s.functions[0] for s in found] == ["cohabit_f3", "cohabit_f6", LANES[0]]


def test_gather_has_trampolines_for_all() -> None:
    """One that cannot be told its function by a lane has a slot for itself: without BTF for
    modules some are not on lanes."""
    wanted = [pair("direct", "fexit")] * 4 + [pair("fentry", "ops"), pair("direct", "ops")]
    found = gather(wanted[0], wanted[1:], False, 8)
    assert [s.attachers for s in found] == [
        ("direct", "fexit"), ("direct", "fexit"), ("fentry", "ops"), ("direct", "ops"),
    ]  # fmt: skip
    assert found[-1].functions == (LANES[0],)


def test_one_alone_gets_a_function_too() -> None:
    (found,) = gather(pair("kprobe", "kprobe-post"), [], True, 1)
    assert found.functions == (LANES[0],)
    # Not the one that it has besides.
    steps = on("a", "ops", ANY, LANES[0]), on("b", "ops", LANES[0])
    (found,) = gather(of(*steps, functions=(ANY, LANES[0])), [], True, 1)
    assert found.functions == (LANES[1], LANES[0])
    assert found.steps[0] == on("a", "ops", LANES[1], LANES[0])
    named = pair("kprobe", "kprobe-post", "cohabit_f3")
    assert gather(named, [], True, 1) == [named]


def test_what_is_placed_has_no_place_left_open() -> None:
    for scenario in catalogue.everything():
        if not sociable(scenario):
            (found,) = gather(scenario, [], True, 1)
            assert ANY not in found.functions, scenario.name
            assert not any(ANY in s.functions for s in found.steps if isinstance(s, Attach))
