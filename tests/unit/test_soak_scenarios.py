# SPDX-License-Identifier: GPL-2.0-only
"""Scenarios in which all stirrers are at work at once."""

from __future__ import annotations

import pytest
from policy_help import PROFILES

from harness import consistency as judging
from harness.policy.acts import transition
from harness.policy.attachers import ATTACHERS
from harness.policy.concurrent import OpsJudge
from harness.policy.state import State
from harness.scenario import catalogue, consistency, soak
from harness.scenario.parse import scenario_from_json
from harness.scenario.steps import Attach, Scenario, Stir, TraceAll

ALL = soak.scenarios()


def does(scenario: Scenario) -> set[tuple[str, str]]:
    """The steps of its stirrers: what they do, and with what."""
    assert scenario.stir is not None
    return {
        (
            type(step).__name__,
            step.attacher if isinstance(step, Attach)
            else step.tracer if isinstance(step, TraceAll)
            else "",
        )
        for step in scenario.stir.steps
    }  # fmt: skip


def test_one_does_all_that_is_done_beside_a_livepatch_elsewhere() -> None:
    elsewhere = set[tuple[str, str]]().union(
        *(does(s) for s in consistency.scenarios() if "/livepatch/" in s.name)
    )
    _, whole = ALL
    # In an instance: the top has function_graph.
    assert elsewhere - does(whole) == {("Attach", "function-tracer")}
    assert ("Attach", "instance") in does(whole)


@pytest.mark.parametrize("scenario", ALL, ids=lambda s: s.name)
def test_it_lasts_half_an_hour(scenario: Scenario) -> None:
    stir = scenario.stir
    assert stir is not None
    assert (stir.at_least, stir.calls, stir.patches) == (1800, 1_000_000, 100)
    assert stir.seconds > stir.at_least
    assert scenario.cpus == 2
    assert scenario_from_json(scenario.to_json()) == scenario


@pytest.mark.parametrize("scenario", ALL, ids=lambda s: s.name)
@pytest.mark.parametrize("name", PROFILES)
def test_the_original_is_never_met_under_the_livepatch(scenario: Scenario, name: str) -> None:
    profile, state = PROFILES[name], State()
    for step in scenario.steps:
        if isinstance(step, Stir):
            expected = judging.expect(state, step, profile, scenario.cpus)
            first = step.hammered[0]
            assert expected.allowed[first]
            assert "original" not in expected.allowed[first]
            assert expected.throughout["also"].functions == (first,)
            judge = OpsJudge(state, step.stirrers, profile)
            assert judge.feed([]) == judge.finish() == []
            return
        _, state = transition(state, step, profile)
    raise AssertionError(scenario.name)


@pytest.mark.parametrize("scenario", ALL, ids=lambda s: s.name)
def test_lockdep_has_no_known_reason_to_complain(scenario: Scenario) -> None:
    """docs/findings/share-asked-unlocked.md: programs on two functions, one with a livepatch."""
    assert scenario.stir is not None
    places = {
        function
        for step in (*scenario.steps, *scenario.stir.steps)
        if isinstance(step, Attach) and ATTACHERS[step.attacher].bpf
        for function in step.functions
    }
    assert len(places) == 1


def test_an_exit_program_never_comes_first_to_a_livepatched_function() -> None:
    """docs/findings/listed-before-asked.md."""
    for scenario in ALL:
        assert scenario.stir is not None
        attaches = [s for s in (*scenario.steps, *scenario.stir.steps) if isinstance(s, Attach)]
        patched = {f for s in attaches if "livepatch" in s.attacher for f in s.functions}
        for stirrer in scenario.stir.stirrers:
            mine = [s for s in stirrer.steps if isinstance(s, Attach)]
            names = [s.attacher for s in mine if patched & set(s.functions)]
            if "fexit" not in names:
                continue
            assert names.index("fentry") < names.index("fexit")
            # For which the first would be refused.
            (at,) = {f for s in mine for f in s.functions}
            assert not [s for s in attaches if s.attacher[:6] == "direct" and at in s.functions]


def test_as_a_set() -> None:
    assert catalogue.select(["soak"]) == ALL
    assert not {s.name for s in ALL} & {s.name for s in catalogue.everything()}
