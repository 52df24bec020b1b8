# SPDX-License-Identifier: GPL-2.0-only
"""Scenario files, good and bad."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import UsageError
from harness.policy.attachers import ATTACHERS
from harness.scenario import catalogue
from harness.scenario.parse import scenario_from_json, step_from_json
from harness.scenario.steps import (
    ANY,
    Attach,
    Call,
    Detach,
    Disable,
    Enable,
    Force,
    Hold,
    Load,
    Misuse,
    Modify,
    Release,
    Scenario,
    Unload,
    Write,
)

ALL = catalogue.everything()
LANES = ("security_cohabit_000", "security_cohabit_001")


@pytest.mark.parametrize("scenario", ALL[:: len(ALL) // 97], ids=lambda s: s.name)
def test_round_trip_some(scenario: Scenario) -> None:
    text = json.dumps(scenario.to_json())
    assert scenario_from_json(json.loads(text)) == scenario


def test_round_trip_all() -> None:
    for scenario in ALL:
        assert scenario_from_json(json.loads(json.dumps(scenario.to_json()))) == scenario


STEPS = (
    Attach("a", "fexit", ("cohabit_f3",)),
    Attach("a", "fexit", ("cohabit_f3",), unless_attached=True),
    Attach("a", "livepatch", ("cohabit_f3", ANY)),
    Detach("some id"),
    Disable("a"),
    Enable("a"),
    Force("a"),
    Modify("a", 0),
    Modify("a", 1),
    Write("kernel.ftrace_enabled", "0"),
    Call(),
    Call("softirq"),
    Hold("h", "cohabit_hold"),
    Release("h"),
    Unload(),
    Load(),
    Misuse("kill-ftrace", "cohabit_f1"),
)


@pytest.mark.parametrize("step", STEPS, ids=str)
def test_each_step_round_trips(step: Any) -> None:
    assert step_from_json(step.to_json()) == step
    assert str(step)


def test_there_is_every_kind_of_step() -> None:
    kinds = {type(step) for scenario in ALL for step in scenario.steps}
    assert kinds == {type(step) for step in STEPS}


PATCH = {"do": "attach", "id": "a", "attacher": "livepatch", "function": "cmdline_proc_show"}
DIRECT = {**PATCH, "attacher": "direct"}
GOOD: dict[str, Any] = {
    "name": "mine",
    "functions": ["cmdline_proc_show", "cohabit_f1"],
    "steps": [
        PATCH,
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


def steps(*found: Any) -> dict[str, Any]:
    """A scenario of these steps, which looks at what they name."""
    return {"name": "mine", "steps": list(found)}


def test_a_file_may_say_more_and_less() -> None:
    data = changed("functions", remove=True)
    # An event of a record is a scenario file as it is: what it has besides doesn't matter.
    data.update(scenario="6.12/mine#1", attempt=1)
    data["steps"][0] = {**PATCH, "slot": 0}
    scenario = scenario_from_json(data)
    assert scenario.functions == ("cmdline_proc_show",)
    assert (scenario.matrix, scenario.watch, scenario.ends_vm) == (None, False, False)
    assert scenario_from_json(GOOD).functions == ("cmdline_proc_show", "cohabit_f1")
    flags = scenario_from_json({**GOOD, "watch": True, "ends_vm": True})
    assert (flags.watch, flags.ends_vm) == (True, True)


def test_functions_that_only_a_hold_or_a_misuse_names_are_looked_at() -> None:
    data = steps({"do": "hold", "id": "h", "function": "cohabit_hold"},
                 {"do": "misuse", "what": "kill-ftrace", "function": "cohabit_f1"})  # fmt: skip
    assert scenario_from_json(data).functions == ("cohabit_f1", "cohabit_hold")


HOLD = {"do": "hold", "id": "h", "function": "cohabit_hold"}
UNLOAD, LOAD = ({"do": do, "module": "cohabit_funcs"} for do in ("unload", "load"))
IN_MODULE = {**PATCH, "function": "cohabit_f1"}
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
    ("no id", changed("steps", 3, value={"do": "detach"}), "needs 'id' as text"),
    ("no id to attach", steps({k: v for k, v in PATCH.items() if k != "id"}), "needs 'id' as text"),
    ("empty id", steps({**PATCH, "id": ""}), "needs 'id' as text"),
    ("number as id", changed("steps", 3, "id", value=1), "needs 'id' as text"),
    ("no attacher", steps({**PATCH, "attacher": None}), "needs 'attacher' as text"),
    ("unknown attacher", steps({**PATCH, "attacher": "uprobe"}), "there is no attacher 'uprobe'"),
    ("unknown function", steps({**PATCH, "function": "vfs_read"}),
     "there is no function 'vfs_read'"),
    ("no function", steps({**PATCH, "function": None}), "there is no function None"),
    ("function as a list", steps({**PATCH, "function": ["cohabit_f1"]}), "there is no function ["),
    ("functions as text", steps({**PATCH, "functions": "cohabit_f1"}), "is a list of names"),
    ("no functions", steps({**PATCH, "functions": []}), "is a list of names"),
    ("a function twice in a step", steps({**PATCH, "functions": ["cohabit_f1"] * 2}),
     "names a function twice"),
    ("several for a direct call", steps({**DIRECT, "functions": ["cohabit_f1", LANES[0]]}),
     "direct on several functions takes lanes only"),
    ("several with any for a direct call", steps({**DIRECT, "functions": [ANY, LANES[0]]}),
     "direct on several functions takes lanes only"),
    ("several for a program", steps({**PATCH, "attacher": "fexit", "functions": [*LANES]}),
     "fexit goes on one function"),
    ("unless_attached as text", steps({**PATCH, "unless_attached": "false"}),
     "'unless_attached' is true or false"),
    ("unless_attached null", steps({**PATCH, "unless_attached": None}),
     "'unless_attached' is true or false"),
    ("watch as a number", {**GOOD, "watch": 1}, "'watch' is true or false"),
    ("ends_vm as text", {**GOOD, "ends_vm": "yes"}, "'ends_vm' is true or false"),
    ("another sysctl", changed("steps", 2, "sysctl", value="kernel.panic"),
     "cannot write '0' to 'kernel.panic'"),
    ("another value", changed("steps", 2, "value", value="2"), "cannot write '2'"),
    ("value as a number", changed("steps", 2, "value", value=0), "needs 'value' as text"),
    ("no sysctl", changed("steps", 2, "sysctl", remove=True), "needs 'sysctl' as text"),
    ("another context", changed("steps", 1, value={"do": "call", "context": "hardirq"}),
     "there is no context 'hardirq'"),
    ("context as a list", changed("steps", 1, value={"do": "call", "context": ["softirq"]}),
     "there is no context ['softirq']"),
    ("no alternate", steps(DIRECT, {"do": "modify", "id": "a"}), "'alternate' is 0 or 1"),
    ("another alternate", steps(DIRECT, {"do": "modify", "id": "a", "alternate": 4}),
     "'alternate' is 0 or 1"),
    ("alternate as a flag", steps(DIRECT, {"do": "modify", "id": "a", "alternate": True}),
     "'alternate' is 0 or 1"),
    ("modify of a livepatch", steps(PATCH, {"do": "modify", "id": "a", "alternate": 1}),
     "modify a: trampoline 1 does not go with livepatch"),
    ("modify of a program",
     steps({**PATCH, "attacher": "fentry"}, {"do": "modify", "id": "a", "alternate": 1}),
     "modify a: trampoline 1 does not go with fentry"),
    *((f"{do} of a direct call", steps(DIRECT, {"do": do, "id": "a"}),
       f"{do} a does not go with direct") for do in ("disable", "enable", "force")),
    ("hold elsewhere", steps({**HOLD, "function": "cohabit_f1"}),
     "there is no function 'cohabit_f1'"),
    ("hold of nothing", steps({"do": "hold", "id": "h"}), "needs 'function' as text"),
    ("held twice", steps(HOLD, HOLD), "holds 'h' twice"),
    ("release of nothing", steps(PATCH, {"do": "release", "id": "a"}),
     "releases 'a', which it never held"),
    ("another module", steps(PATCH, {"do": "unload", "module": "ext4"}),
     "there is no module 'ext4'"),
    ("no module", steps(PATCH, {"do": "load"}), "needs 'module' as text"),
    ("an attach while the module is gone", steps(UNLOAD, IN_MODULE),
     "attach a: livepatch to cohabit_f1 while cohabit_funcs may be unloaded"),
    ("any while the module is gone", steps(UNLOAD, {**PATCH, "function": ANY}),
     "while cohabit_funcs may be unloaded"),
    ("hold while the module is gone", steps(UNLOAD, HOLD), "while cohabit_funcs may be unloaded"),
    ("unknown misuse", steps({"do": "misuse", "what": "reboot", "function": "cohabit_f1"}),
     "there is no what 'reboot'"),
    ("misuse of nothing", steps({"do": "misuse", "what": "kill-ftrace"}),
     "there is no function None"),
    *((f"{do} of nothing", steps(PATCH, {"do": do, "id": "b", **more}),
       f"{do} of 'b', which it never attaches before")
      for do, more in (("detach", {}), ("disable", {}), ("enable", {}), ("force", {}),
                       ("modify", {"alternate": 1}))),
    ("detach too early", steps({"do": "detach", "id": "a"}, PATCH),
     "detach of 'a', which it never"),
    ("an id twice", changed("steps", 1, value=PATCH), "attaches 'a' twice"),
    ("an id again", steps(PATCH, {"do": "detach", "id": "a"}, PATCH), "attaches 'a' twice"),
    ("a tracer twice", steps(*({**PATCH, "id": i, "attacher": "function-graph"} for i in "ab")),
     "attaches function-graph twice to one function"),
    ("functions text", changed("functions", value="cmdline_proc_show"), "needs functions to look"),
    ("functions empty", changed("functions", value=[]), "needs functions to look at"),
    ("a function twice", changed("functions", value=["cmdline_proc_show"] * 2),
     "needs functions to look at, each named once"),
    ("functions of lists", changed("functions", value=[["cohabit_f1"]]), "there is no function ["),
    ("unknown in functions", changed("functions", value=["vfs_read"]),
     "there is no function 'vfs_read'"),
    ("not among functions", changed("functions", value=["cohabit_f1"]),
     "uses cmdline_proc_show, not among its functions"),
    ("nothing to look at", steps({"do": "call"}), "needs functions to look at"),
    ("matrix of one", {**GOOD, "matrix": ["livepatch"]}, "matrix names two or three"),
    ("matrix of four", {**GOOD, "matrix": ["livepatch"] * 4}, "matrix names two or three"),
    ("matrix as text", {**GOOD, "matrix": "ab"}, "matrix names two or three"),
    ("matrix of strangers", {**GOOD, "matrix": ["livepatch", "uprobe"]},
     "matrix names two or three"),
    ("matrix of lists", {**GOOD, "matrix": [["livepatch"], ["ops"]]}, "matrix names two or three"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "words"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_file(data: object, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        scenario_from_json(data)
    assert words in caught.value.message
    assert caught.value.exit_status == 2


@pytest.mark.parametrize(
    "data",
    [
        steps(HOLD, {"do": "release", "id": "h"}, {**HOLD, "id": "i"}),
        steps(UNLOAD, LOAD, IN_MODULE),
        steps(UNLOAD, PATCH),
        steps({**DIRECT, "functions": [*LANES]}, {"do": "modify", "id": "a", "alternate": 1}),
        steps({**PATCH, "attacher": "function-graph"},
              {**PATCH, "id": "b", "attacher": "function-graph", "function": "cohabit_f1"}),
        steps({**PATCH, "attacher": "fmod_ret"}),
        steps({**PATCH, "function": ANY}),
        # What it is decides only once it is there.
        steps(PATCH, {"do": "detach", "id": "a"}, {"do": "disable", "id": "a"}),
        steps(PATCH, {"do": "detach", "id": "a"}, {**PATCH, "unless_attached": True}),
    ],
)  # fmt: skip
def test_good_file(data: object) -> None:
    scenario = scenario_from_json(data)
    assert scenario_from_json(scenario.to_json()) == scenario


@pytest.mark.parametrize("attacher", [a for a, kind in ATTACHERS.items() if kind.twice])
def test_more_than_there_is(attacher: str) -> None:
    kind = ATTACHERS[attacher]

    def data(count: int) -> dict[str, Any]:
        return steps(
            *(Attach(f"id{n}", attacher, ("rtnl_getlink",)).to_json() for n in range(count))
        )

    most = {"livepatch": 4, "livepatch-replace": 4}.get(attacher, 40 if kind.bpf else 8)
    assert len(scenario_from_json(data(most)).steps) == most
    with pytest.raises(UsageError, match=f"more than {most} of {attacher} at a time"):
        scenario_from_json(data(most + 1))
    # One that has left makes room.
    again = data(most)
    again["steps"] += [
        {"do": "detach", "id": "id0"}, Attach("x", attacher, ("rtnl_getlink",)).to_json(),
    ]  # fmt: skip
    assert scenario_from_json(again).steps


KEYS = ["name", "functions", "steps", "matrix", "watch", "ends_vm", "do", "id", "attacher",
        "function", "sysctl", "value", "context", "alternate", "module", "what",
        "unless_attached", "x"]  # fmt: skip
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
    | st.sampled_from(["a", "attach", "detach", "write", "call", "livepatch", "cohabit_f1", "0",
                       "modify", "hold", "misuse", "any", "direct", "cohabit_hold"]),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.sampled_from(KEYS), inner, max_size=6),
    max_leaves=25,
)  # fmt: skip


@given(json_values)
def test_any_json_is_a_scenario_or_a_usage_error(data: object) -> None:
    _read(data)


@given(st.lists(st.dictionaries(st.sampled_from(KEYS), json_values, max_size=6), max_size=4))
def test_any_steps_are_a_scenario_or_a_usage_error(found: list[Any]) -> None:
    _read(steps(PATCH, *found))
    for step, value in zip(found, [PATCH, DIRECT, HOLD, GOOD["steps"][2]], strict=False):
        _read(steps({**value, **step}))


def _read(data: object) -> None:
    try:
        scenario = scenario_from_json(data)
    except UsageError as error:
        assert error.message
        return
    assert scenario_from_json(scenario.to_json()) == scenario
