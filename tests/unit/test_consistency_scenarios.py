# SPDX-License-Identifier: GPL-2.0-only
"""The scenarios that stir: which there are, and that they are only run where they are named."""

from __future__ import annotations

import itertools

import pytest

from harness.errors import UsageError
from harness.scenario import catalogue, consistency
from harness.scenario.parse import scenario_from_json
from harness.scenario.steps import Attach, Detach, Scenario, Stir

ALL = consistency.scenarios()

#: What is stirred, as the project was asked for it.
WANTED = {
    "function-tracer", "function-tracer-all", "function-graph", "function-graph-all", "ops",
    "fentry", "fexit", "direct", "direct-modify", "kprobe", "livepatch", "replace", "reversal",
    "ftrace_enabled", "module",
}  # fmt: skip


def test_there_is_each_stirrer() -> None:
    assert {s.name.split("/")[1] for s in ALL} == WANTED
    under = {s.name.split("/")[1] for s in ALL if s.name.split("/")[2] == "livepatch"}
    assert under == WANTED


def test_they_are_on_functions_that_are_called_in_each_way() -> None:
    ways = {(h.function, h.by) for s in ALL if s.stir for h in s.stir.hammers}
    assert ways == {
        ("cohabit_hot", "kernel"),
        ("cmdline_proc_show", "kernel"),
        ("cmdline_proc_show", "user"),
        ("rtnl_getlink", "user"),
    }


@pytest.mark.parametrize("scenario", ALL, ids=lambda s: s.name)
def test_each_is_a_scenario_that_could_be_in_a_file(scenario: Scenario) -> None:
    assert scenario_from_json(scenario.to_json()) == scenario
    assert scenario.cpus == 2
    stir = scenario.stir
    assert stir is not None
    assert (stir.calls, stir.seconds, stir.seed, stir.fault) == (1_000_000, 280, 1, "")
    assert stir.hammered[0] == scenario.name.partition("/on:")[2].partition("/")[0]
    wide = scenario.name.endswith("/widened")
    assert (stir.widen_us > 0) is wide
    if "direct-modify/livepatch/" in scenario.name:
        assert (stir.patches, stir.rounds) == (0, 500)
    elif "livepatch+ops-regs" in scenario.name:
        assert (stir.patches, stir.rounds) == (0, 400)
    else:
        assert stir.patches == 1000


@pytest.mark.parametrize("scenario", ALL, ids=lambda s: s.name)
def test_what_stays_leaves_after_the_stir(scenario: Scenario) -> None:
    kinds = [type(step) for step in scenario.steps]
    at = kinds.index(Stir)
    assert set(kinds[:at]) == {Attach}
    assert set(kinds[at + 1 :]) == {Detach}
    assert at == len(kinds) - at - 1


@pytest.mark.parametrize("scenario", ALL, ids=lambda s: s.name)
def test_something_patches_the_call_site_again_and_again(scenario: Scenario) -> None:
    """A livepatch beside another changes no call site, and takes seconds."""
    stir = scenario.stir
    assert stir is not None
    if not stir.patches:
        return
    quick = [
        stirrer
        for stirrer in stir.stirrers
        if all(
            not isinstance(s, Attach)
            or (s.attacher[:9] != "livepatch" and stir.hammered[0] in s.functions)
            for s in stirrer.steps
        )
        and any(hasattr(s, "id") for s in stirrer.steps)
    ]
    assert quick


def test_some_run_where_there_is_no_livepatch_and_no_btf_of_modules() -> None:
    plain = {s.name.split("/")[1] for s in ALL if not any("livepatch" in a for a in s.attachers)}
    assert plain >= {"function-tracer", "ops", "kprobe", "direct-modify", "direct", "module"}
    assert all("arch" not in s.to_json() for s in ALL if "widened" not in s.name)


def test_they_are_not_in_the_catalogues_whole() -> None:
    names = {s.name for s in ALL}
    assert not names & {s.name for s in catalogue.everything()}
    assert not names & {s.name for s in catalogue.select([])}
    assert not names & {s.name for s in catalogue.select([], whole=True)}
    assert not names & {s.name for s in catalogue.select(["*"], whole=True)}


def test_they_are_reached_by_name_glob_and_set() -> None:
    by_set = catalogue.select(["consistency"])
    assert by_set == catalogue.select(["consistency/*"]) == ALL
    name = ALL[3].name
    assert catalogue.select([name]) == (ALL[3],)
    mixed = catalogue.select([name, "livepatch/stack-of-four"])
    assert [s.name for s in mixed] == ["livepatch/stack-of-four", name]
    with pytest.raises(UsageError, match="no scenario") as caught:
        catalogue.select(["consistency/ops/livepatch/on:nothing"])
    assert caught.value.exit_status == 2
    with pytest.raises(UsageError) as caught:
        catalogue.select(["on:rtnl_getlink/x", "function-graph-all"])
    assert caught.value.remedy


def test_no_two_are_the_same() -> None:
    for one, other in itertools.combinations(ALL, 2):
        assert one.name != other.name
        assert (one.functions, one.steps) != (other.functions, other.steps)
