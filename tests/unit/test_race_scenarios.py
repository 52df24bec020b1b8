# SPDX-License-Identifier: GPL-2.0-only
"""Scenarios of races and of transitions under load: what they promise can be kept."""

from __future__ import annotations

import pytest
from policy_help import PROFILES

from harness.policy.acts import transition
from harness.policy.attachers import ATTACHERS
from harness.policy.concurrent import OpsJudge, allowed, phases
from harness.policy.predict import predict
from harness.policy.state import State
from harness.scenario import catalogue, load, races
from harness.scenario.parse import scenario_from_json
from harness.scenario.steps import Attach, Detach, Modify, Scenario, Stir

ALL = (*races.scenarios(), *load.scenarios())


def stirred(scenario: Scenario) -> tuple[State, Stir]:
    """The state before the stir, and the step."""
    state = State()
    for step in scenario.steps:
        if isinstance(step, Stir):
            return state, step
        _, state = transition(state, step, PROFILES["v7.2"])
    raise AssertionError(scenario.name)


def kinds(scenario: Scenario) -> dict[str, set[str]]:
    """The attachers on each function, with what a stirrer brings."""
    _, stir = stirred(scenario)
    found: dict[str, set[str]] = {}
    for step in (*scenario.steps, *stir.steps):
        if isinstance(step, Attach):
            for function in step.functions:
                found.setdefault(function, set()).add(step.attacher)
    return found


@pytest.mark.parametrize("scenario", ALL, ids=lambda s: s.name)
def test_each_could_be_in_a_file(scenario: Scenario) -> None:
    assert scenario_from_json(scenario.to_json()) == scenario
    assert scenario.cpus == 2
    assert scenario.name.split("/")[0] in ("races", "load")


@pytest.mark.parametrize("scenario", ALL, ids=lambda s: s.name)
def test_all_is_over_in_minutes(scenario: Scenario) -> None:
    _, stir = stirred(scenario)
    assert stir.seconds <= (600 if scenario.name == "races/all-functions" else 300)
    assert stir.rounds or stir.at_least
    assert not stir.patches
    assert stir.calls <= 1000


@pytest.mark.parametrize("scenario", races.scenarios(), ids=lambda s: s.name)
def test_races_are_many_kinds_on_few_functions(scenario: Scenario) -> None:
    _, stir = stirred(scenario)
    assert 5 <= len(stir.stirrers) <= 10
    assert len(scenario.functions) <= 7
    assert len({type(s) if not isinstance(s, Attach) else s.attacher for s in stir.steps}) >= 4


@pytest.mark.parametrize("scenario", ALL, ids=lambda s: s.name)
@pytest.mark.parametrize("name", PROFILES)
def test_the_model_takes_it(scenario: Scenario, name: str) -> None:
    profile = PROFILES[name]
    state, stir = stirred(scenario)
    judge = OpsJudge(state, stir.stirrers, profile)
    assert judge.feed([]) == judge.finish() == []
    for function in stir.hammered:
        assert allowed(state, stir.stirrers, function, profile)
    assert len(phases(state, stir.stirrers, profile, stir.hammered)) == len(stir.stirrers)


@pytest.mark.parametrize("scenario", ALL, ids=lambda s: s.name)
def test_what_is_known_to_go_wrong_without_a_race_is_left_out(scenario: Scenario) -> None:
    places = kinds(scenario)
    everywhere = set().union(*places.values())
    assert "kprobe-post" not in everywhere
    # Users of the function graph, together or on several functions.
    returns = [f for f, there in places.items() if there & {"fprobe-exit", "function-graph"}]
    assert len(returns) <= 1
    assert len(everywhere & {"fprobe-exit", "function-graph"}) <= 1
    # Programs on two functions, of which one has an IPMODIFY ops.
    programs = [f for f, there in places.items() if any(ATTACHERS[a].bpf for a in there)]
    if len(programs) > 1:
        assert not any(ATTACHERS[a].ipmodify for f in programs for a in places[f])


def test_who_asks_for_registers_is_not_the_last_to_leave_while_ftrace_is_off() -> None:
    (scenario,) = catalogue.select(["races/ftrace_enabled"])
    state, _ = stirred(scenario)
    stays = {f for a in state.attached if a.attacher == "ops" for f in a.functions}
    assert stays == set(kinds(scenario))
    assert isinstance(scenario.steps[-1], Detach)


def test_how_often_an_ops_func_was_asked_nobody_knows_afterwards() -> None:
    profile = PROFILES["v7.2"]
    (scenario,) = catalogue.select(["races/modify"])
    state, stir = stirred(scenario)
    prediction, after = predict(state, stir, scenario.functions, profile)
    assert not prediction.behaviour["cohabit_hot"].shares
    assert (
        not predict(after, Modify("direct", 1), scenario.functions, profile)[0]
        .behaviour["cohabit_hot"]
        .shares
    )
    assert (
        predict(state, Modify("direct", 1), scenario.functions, profile)[0]
        .behaviour["cohabit_hot"]
        .shares
    )


def test_a_pending_transition_is_still_pending_afterwards() -> None:
    for scenario in catalogue.select(["load/pending/*"]):
        state, stir = stirred(scenario)
        assert state.pending()
        assert stir.at_least >= 5
        _, after = transition(state, stir, PROFILES["v7.2"])
        assert after.pending()
        for step in scenario.steps[scenario.steps.index(stir) + 1 :]:
            _, after = transition(after, step, PROFILES["v7.2"])
            assert not after.pending() or not isinstance(step, Detach)
        assert not after.attached


def test_as_sets() -> None:
    assert catalogue.select(["races"]) == races.scenarios()
    assert catalogue.select(["load"]) == load.scenarios()
    assert not {s.name for s in ALL} & {s.name for s in catalogue.everything()}
