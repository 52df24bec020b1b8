# SPDX-License-Identifier: GPL-2.0-only
"""The catalogue of scenarios, and how names choose from it."""

from __future__ import annotations

from pathlib import Path

import pytest
from policy_help import run

from harness.errors import UsageError
from harness.policy.attachers import ATTACHERS, CORE
from harness.policy.profile import NAMED, choose
from harness.scenario import catalogue
from harness.scenario.functions import FUNCTIONS
from harness.scenario.steps import ANY, MISUSES, Attach, Detach, Hold, Misuse, Release, Scenario

ALL = catalogue.everything()
DEFAULT = catalogue.default()
GOLDEN = Path(__file__).resolve().parents[1] / "data" / "scenarios.txt"
LANE = "security_cohabit_000"


# --- the catalogue --------------------------------------------------------------------------


def test_names_are_the_ones_that_they_always_were() -> None:
    """A name is what people put into scripts and bug reports.

    After a change that is meant: cohabit list --all | LC_ALL=C sort >tests/data/scenarios.txt
    """
    assert sorted(s.name for s in ALL) == GOLDEN.read_text(encoding="utf-8").splitlines()


def test_no_scenario_is_there_twice() -> None:
    assert len({s.name for s in ALL}) == len(ALL)
    assert len({(s.functions, s.steps, s.watch, s.reach) for s in ALL}) == len(ALL)


def test_default_is_part_of_everything() -> None:
    assert set(DEFAULT) < set(ALL)
    assert {a for s in DEFAULT for a in s.attachers} == set(ATTACHERS)
    assert {step.what for s in DEFAULT for step in s.steps if isinstance(step, Misuse)} == set(
        MISUSES
    )


def test_those_that_cost_their_vm_come_last() -> None:
    for scenarios in (ALL, DEFAULT):
        flags = [s.ends_vm for s in scenarios]
        assert flags == sorted(flags)
        assert any(flags)


@pytest.mark.parametrize("attacher", CORE)
def test_default_has_every_pair_somewhere(attacher: str) -> None:
    partners = {s.matrix[1] for s in DEFAULT if s.matrix and s.matrix[0] == attacher}
    assert partners == set(CORE) - ({attacher} if not ATTACHERS[attacher].twice else set())


@pytest.mark.parametrize("attacher", CORE)
def test_each_attacher_is_tried_in_each_way(attacher: str) -> None:
    names = {s.name for s in DEFAULT}
    places = [f.name for f in FUNCTIONS.values() if f.lane is None and not (f.holds or f.hot)]
    if attacher == "fmod_ret":
        places = [f for f in places if FUNCTIONS[f].fmod_ret]
    wanted = {f"{attacher}/alone/on:{place}" for place in places}
    wanted |= {f"{attacher}/ftrace_enabled:{x}"
               for x in ("off-on", "attach-while-off", "detach-while-off")}  # fmt: skip
    wanted |= {f"{attacher}/module-gone", f"{attacher}/softirq"}
    if not ATTACHERS[attacher].single:
        wanted.add(f"{attacher}/many")
    if attacher != "fmod_ret":
        wanted.add(f"{attacher}/held-call")
    assert wanted <= names


def predictions(scenario: Scenario, version: tuple[int, int]) -> list[str]:
    """What is left at the end under a policy, in words; nothing is what should be."""
    placed = scenario.placed(LANE) if ANY in scenario.functions else scenario
    found, state = run(choose(f"{version[0]}.{version[1]}", {}), *placed.steps,
                       functions=placed.functions)  # fmt: skip
    assert found, "no step is done"
    left = [a.id for a in state.attached] + [h.id for h in state.held]
    left += ["sysctl"] if not state.ftrace_enabled else []
    return left + (["module"] if state.unloaded else [])


#: What these leave behind is up to the agent, or the VM's end.
UNCLEAN = ("fentry/up-to-the-limit", "livepatch/pending/force")


@pytest.mark.parametrize("number", range(len(NAMED)))
def test_every_scenario_ends_clean(number: int) -> None:
    """Under each policy: whatever was refused, nothing is left and ftrace is on."""
    for place, scenario in enumerate(ALL):
        # Of the triples each under one policy.
        if len(scenario.matrix or ()) == 3 and place % len(NAMED) != number:
            continue
        if scenario.name not in UNCLEAN:
            assert predictions(scenario, NAMED[number]) == [], scenario.name


def test_what_is_not_clean() -> None:
    names = {s.name: s for s in ALL}
    for name in UNCLEAN:
        assert any(predictions(names[name], version) for version in NAMED), name


def test_slots_are_enough() -> None:
    """Under a policy that refuses nothing; scenario_from_json looks at that too."""
    for scenario in ALL:
        there: dict[str, str] = {}
        for step in scenario.steps:
            if isinstance(step, Attach) and not step.unless_attached:
                there[step.id] = step.attacher
                count = list(there.values()).count(step.attacher)
                assert count <= ATTACHERS[step.attacher].slots, scenario.name
            elif isinstance(step, Detach):
                there.pop(step.id, None)


def test_held_calls_are_released() -> None:
    for scenario in ALL:
        held = [s.id for s in scenario.steps if isinstance(s, Hold)]
        released = [s.id for s in scenario.steps if isinstance(s, Release)]
        assert held == released, scenario.name


# --- choosing -------------------------------------------------------------------------------


def names(*globs: str, whole: bool = False) -> list[str]:
    return [s.name for s in catalogue.select(globs, whole)]


def test_select() -> None:
    default = [s.name for s in DEFAULT]
    assert sorted(names()) == sorted(names("*")) == sorted(default)
    assert names(whole=True) == names("*", whole=True) == [s.name for s in ALL]
    assert names("livepatch/alone/on:cohabit_f6") == ["livepatch/alone/on:cohabit_f6"]
    assert names("livepatch+fexit/attach:*") == [
        "livepatch+fexit/attach:ab/detach:ab",
        "livepatch+fexit/attach:ba/detach:ba",
    ]
    # The catalogue's order, each once, however they are named.
    assert names("ops/alone/*", "livepatch/alone/*", "*/alone/*", "ops/alone/*") == [
        s.name for s in ALL if "/alone/" in s.name
    ]
    assert names("fexit/alone/on:cohabit_f[68]") == [
        "fexit/alone/on:cohabit_f6",
        "fexit/alone/on:cohabit_f8",
    ]


def test_select_takes_the_rest_of_the_catalogue_only_where_it_must() -> None:
    globs = "livepatch+fexit/attach:*"
    assert set(names(globs, whole=True)) > set(names(globs))
    # All of these are in the whole catalogue only.
    elsewhere = names("livepatch+fexit/*/on:cohabit_f3")
    assert len(elsewhere) == 2
    assert not set(elsewhere) & set(names())
    assert names("livepatch+fexit/attach:ab/detach:ab/on:cohabit_f3") == elsewhere[:1]
    assert len(names("livepatch+fexit+ops/*")) == 36


def test_select_says_what_is_near() -> None:
    with pytest.raises(UsageError, match="no scenario is called 'livepatch'") as caught:
        catalogue.select(["livepatch/softirq", "livepatch"])
    assert "near it: livepatch" in caught.value.remedy
    with pytest.raises(UsageError, match="no scenario is called") as caught:
        catalogue.select(["Livepatch*"])
    assert "cohabit list" in caught.value.remedy
    # Glob characters are no part of a name, and case counts.
    with pytest.raises(UsageError):
        catalogue.select(["LIVEPATCH/softirq"])
