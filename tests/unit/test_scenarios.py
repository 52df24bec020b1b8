# SPDX-License-Identifier: GPL-2.0-only
"""The catalogue of scenarios, and scenario files good and bad."""

from __future__ import annotations

import copy
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import UsageError
from harness.policy.attachers import ATTACHERS
from harness.policy.predict import applies, predict
from harness.policy.profile import NAMED, choose
from harness.policy.state import State
from harness.scenario import catalogue
from harness.scenario.functions import FUNCTIONS
from harness.scenario.steps import (
    Attach,
    Call,
    Detach,
    Scenario,
    Write,
    scenario_from_json,
    step_from_json,
)

ALL = catalogue.everything()
GOLDEN = Path(__file__).resolve().parents[1] / "data" / "scenarios.txt"


# --- the catalogue --------------------------------------------------------------------------


def test_names_are_the_ones_that_they_always_were() -> None:
    """A name is what people put into scripts and bug reports.

    After a change that is meant: cohabit list --all | LC_ALL=C sort >tests/data/scenarios.txt
    """
    assert sorted(s.name for s in ALL) == GOLDEN.read_text(encoding="utf-8").splitlines()


def test_no_scenario_is_there_twice() -> None:
    assert len({s.name for s in ALL}) == len(ALL)
    assert len({(s.functions, s.steps) for s in ALL}) == len(ALL)


def test_default_is_part_of_everything() -> None:
    assert set(catalogue.default()) < set(ALL)
    assert {a for s in catalogue.default() for a in s.attachers} == set(ATTACHERS)


def orders(scenario: Scenario) -> tuple[str, str, str, str]:
    """Who comes first and second, and who leaves first and second, as the steps say."""
    arrivals = [s for s in scenario.steps if isinstance(s, Attach) and not s.unless_attached]
    departures = [s.id for s in scenario.steps if isinstance(s, Detach)]
    first, second = arrivals
    places = {first.id: "first", second.id: "second"}
    return first.attacher, second.attacher, places[departures[0]], places[departures[1]]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_ordered_pair_leaves_in_both_orders(function: str) -> None:
    kinds = [a for a in ATTACHERS if a != "fmod_ret" or FUNCTIONS[function].fmod_ret]
    expected = {
        (first, second, *leave)
        for first, second in itertools.product(kinds, repeat=2)
        for leave in (("first", "second"), ("second", "first"))
    }
    pairs = [s for s in ALL if s.matrix and s.functions == (function,)]
    assert {orders(s) for s in pairs} == expected
    assert len(pairs) == len(expected)
    for scenario in pairs:
        assert scenario.matrix == orders(scenario)[:2]


@pytest.mark.parametrize("attacher", ATTACHERS)
def test_default_has_every_pair_somewhere(attacher: str) -> None:
    partners = {s.matrix[1] for s in catalogue.default() if s.matrix and s.matrix[0] == attacher}
    assert partners == set(ATTACHERS)


@pytest.mark.parametrize("version", NAMED, ids=lambda v: f"{v[0]}.{v[1]}")
def test_every_scenario_ends_clean_and_fits_the_slots(version: tuple[int, int]) -> None:
    """Under each policy: whatever was refused, nothing is left and ftrace is on."""
    profile = choose(f"{version[0]}.{version[1]}", {})
    for scenario in ALL:
        state = State()
        for step in scenario.steps:
            if applies(state, step):
                _, state = predict(state, step, scenario.functions, profile)
                assert all(a.slot < a.kind.slots for a in state.attached), scenario.name
        assert state.attached == (), scenario.name
        assert state.ftrace_enabled, scenario.name


def test_what_was_refused_is_tried_again() -> None:
    """Where the first leaves first, the second gets its chance whatever the policy was."""
    for scenario in ALL:
        if scenario.matrix and orders(scenario)[2] == "first":
            again = scenario.steps[3]
            assert isinstance(again, Attach)
            assert again.unless_attached
            assert again.attacher == scenario.matrix[1]


def names(*globs: str, whole: bool = False) -> list[str]:
    return [s.name for s in catalogue.select(globs, whole)]


def test_select() -> None:
    default = [s.name for s in catalogue.default()]
    assert names() == names("*") == default
    assert names(whole=True) == names("*", whole=True) == [s.name for s in ALL]
    assert names("livepatch/alone") == ["livepatch/alone"]
    assert names("livepatch+fexit/*") == [
        "livepatch+fexit/attach:ab/detach:ab",
        "livepatch+fexit/attach:ba/detach:ba",
    ]
    # The catalogue's order, each once, however they are named.
    assert names("ops/alone", "livepatch/alone", "*/alone", "ops/alone") == [
        name for name in default if name.endswith("/alone")
    ]
    assert names("fexit/alone/on:cohabit_f[68]") == [
        "fexit/alone/on:cohabit_f6",
        "fexit/alone/on:cohabit_f8",
    ]


def test_select_takes_the_rest_of_the_catalogue_only_where_it_must() -> None:
    assert set(names("livepatch+fexit/*", whole=True)) > set(names("livepatch+fexit/*"))
    # All of these are in the whole catalogue only.
    elsewhere = names("livepatch+fexit/*/on:cohabit_f3")
    assert len(elsewhere) == 4
    assert not set(elsewhere) & set(names())
    assert names("livepatch+fexit/attach:ab/detach:ab/on:cohabit_f3") == elsewhere[:1]


def test_select_says_what_is_near() -> None:
    with pytest.raises(UsageError, match="no scenario is called 'livepatch'") as caught:
        catalogue.select(["livepatch/alone", "livepatch"])
    assert "near it: livepatch+livepatch/" in caught.value.remedy
    with pytest.raises(UsageError, match="no scenario is called") as caught:
        catalogue.select(["Livepatch*"])
    assert "cohabit list" in caught.value.remedy
    # Glob characters are no part of a name, and case counts.
    with pytest.raises(UsageError):
        catalogue.select(["LIVEPATCH/alone"])


# --- scenario files -------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", ALL[:: len(ALL) // 97], ids=lambda s: s.name)
def test_round_trip_some(scenario: Scenario) -> None:
    text = json.dumps(scenario.to_json())
    assert scenario_from_json(json.loads(text)) == scenario


def test_round_trip_all() -> None:
    for scenario in ALL:
        assert scenario_from_json(json.loads(json.dumps(scenario.to_json()))) == scenario


def test_each_step_round_trips() -> None:
    for step in (
        Attach("a", "fexit", "cohabit_f3"),
        Attach("a", "fexit", "cohabit_f3", unless_attached=True),
        Detach("some id"),
        Write("kernel.ftrace_enabled", "0"),
        Call(),
    ):
        assert step_from_json(step.to_json()) == step
        assert str(step)


GOOD: dict[str, Any] = {
    "name": "mine",
    "functions": ["cmdline_proc_show", "cohabit_f1"],
    "steps": [
        {"do": "attach", "id": "a", "attacher": "livepatch", "function": "cmdline_proc_show"},
        {"do": "call"},
        {"do": "write", "sysctl": "kernel.ftrace_enabled", "value": "0"},
        {"do": "detach", "id": "a"},
    ],
}


def changed(*path: Any, value: Any = None, remove: bool = False) -> dict[str, Any]:
    data = copy.deepcopy(GOOD)
    place: Any = data
    for key in path[:-1]:
        place = place[key]
    if remove:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return data


def test_a_file_may_say_more_and_less() -> None:
    data = changed("functions", remove=True)
    # An event of a record is a scenario file as it is: what it has besides doesn't matter.
    data.update(scenario="6.12/mine#1", attempt=1)
    data["steps"][0]["slot"] = 0
    scenario = scenario_from_json(data)
    assert scenario.functions == ("cmdline_proc_show",)
    assert scenario.matrix is None
    assert scenario_from_json(GOOD).functions == ("cmdline_proc_show", "cohabit_f1")


ATTACH = GOOD["steps"][0]
BAD: list[tuple[str, object, str]] = [
    ("a list", [], "holds one JSON object"),
    ("null", None, "holds one JSON object"),
    ("text", "livepatch/alone", "holds one JSON object"),
    ("nothing", {}, "needs a name"),
    ("empty name", changed("name", value=""), "needs a name"),
    ("a number for a name", changed("name", value=7), "needs a name"),
    ("no steps", changed("steps", remove=True), "'mine' needs steps"),
    ("empty steps", changed("steps", value=[]), "'mine' needs steps"),
    ("steps no list", changed("steps", value={"do": "call"}), "'mine' needs steps"),
    ("a step no object", changed("steps", 1, value="call"), "a step is an object"),
    ("no do", changed("steps", 1, value={}), "there is no step None"),
    ("unknown do", changed("steps", 1, "do", value="reboot"), "there is no step 'reboot'"),
    ("do no text", changed("steps", 1, "do", value=["call"]), "there is no step"),
    ("no id", changed("steps", 0, "id", remove=True), "needs 'id' as text"),
    ("empty id", changed("steps", 0, "id", value=""), "needs 'id' as text"),
    ("number as id", changed("steps", 3, "id", value=1), "needs 'id' as text"),
    ("no attacher", changed("steps", 0, "attacher", remove=True), "needs 'attacher' as text"),
    ("unknown attacher", changed("steps", 0, "attacher", value="kprobe"),
     "there is no attacher 'kprobe'"),
    ("unknown function", changed("steps", 0, "function", value="vfs_read"),
     "there is no function 'vfs_read'"),
    ("fmod_ret elsewhere", changed("steps", 0, "attacher", value="fmod_ret"),
     "fmod_ret does not go on cmdline_proc_show"),
    ("unless_attached as text", changed("steps", 0, "unless_attached", value="false"),
     "'unless_attached' is true or false"),
    ("unless_attached null", changed("steps", 0, "unless_attached", value=None),
     "'unless_attached' is true or false"),
    ("another sysctl", changed("steps", 2, "sysctl", value="kernel.panic"),
     "cannot write '0' to 'kernel.panic'"),
    ("another value", changed("steps", 2, "value", value="2"), "cannot write '2'"),
    ("value as a number", changed("steps", 2, "value", value=0), "needs 'value' as text"),
    ("no sysctl", changed("steps", 2, "sysctl", remove=True), "needs 'sysctl' as text"),
    ("detach of nothing", changed("steps", 3, "id", value="b"), "detaches 'b', which it never"),
    ("detach too early", changed("steps", value=[{"do": "detach", "id": "a"}, ATTACH]),
     "detaches 'a', which it never"),
    ("an id twice", changed("steps", 1, value=ATTACH), "attaches 'a' twice"),
    ("functions text", changed("functions", value="cmdline_proc_show"), "functions must be of"),
    ("functions empty", changed("functions", value=[]), "needs functions to look at"),
    ("a function twice", changed("functions", value=["cmdline_proc_show"] * 2),
     "needs functions to look at, each named once"),
    ("functions of lists", changed("functions", value=[["cohabit_f1"]]), "functions must be of"),
    ("unknown in functions", changed("functions", value=["vfs_read"]), "functions must be of"),
    ("not among functions", changed("functions", value=["cohabit_f1"]),
     "attaches to cmdline_proc_show, not among its functions"),
    ("nothing to look at", {"name": "x", "steps": [{"do": "call"}]}, "needs functions to look at"),
    ("matrix of one", {**GOOD, "matrix": ["livepatch"]}, "matrix names two attachers"),
    ("matrix as text", {**GOOD, "matrix": "ab"}, "matrix names two attachers"),
    ("matrix of strangers", {**GOOD, "matrix": ["livepatch", "kprobe"]},
     "matrix names two attachers"),
    ("matrix of lists", {**GOOD, "matrix": [["livepatch"], ["ops"]]}, "matrix names two"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "words"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_file(data: object, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        scenario_from_json(data)
    assert words in caught.value.message
    assert caught.value.exit_status == 2


@pytest.mark.parametrize(
    ("attacher", "function", "most"),
    [
        ("livepatch", "cmdline_proc_show", 2),
        ("fexit", "cmdline_proc_show", 2),
        ("ops", "rtnl_getlink", 8),
    ],
)
def test_more_than_there_is(attacher: str, function: str, most: int) -> None:
    def data(count: int) -> dict[str, Any]:
        steps = [Attach(f"id{n}", attacher, function).to_json() for n in range(count)]
        return {"name": "many", "steps": steps}

    assert len(scenario_from_json(data(most)).steps) == most
    with pytest.raises(UsageError, match=f"more than {most} of {attacher} at a time"):
        scenario_from_json(data(most + 1))
    # One that has left makes room.
    again = data(most)
    again["steps"] += [{"do": "detach", "id": "id0"}, Attach("x", attacher, function).to_json()]
    assert scenario_from_json(again).steps


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8)
    | st.sampled_from(["a", "attach", "detach", "write", "call", "livepatch", "cohabit_f1", "0"]),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(
        st.sampled_from(["name", "functions", "steps", "matrix", "do", "id", "attacher",
                         "function", "sysctl", "value", "unless_attached", "x"]),
        inner, max_size=6),
    max_leaves=25,
)  # fmt: skip


@given(json_values)
def test_any_json_is_a_scenario_or_a_usage_error(data: object) -> None:
    try:
        scenario = scenario_from_json(data)
    except UsageError as error:
        assert error.message
        return
    assert scenario_from_json(scenario.to_json()) == scenario
