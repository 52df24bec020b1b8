# SPDX-License-Identifier: GPL-2.0-only
"""The step ``stir`` in scenario files, good and bad."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import UsageError
from harness.policy.slots import stirred_slots
from harness.policy.state import Attached, State
from harness.scenario.parse import scenario_from_json
from harness.scenario.steps import Attach, Disable, Hammer, Stir, TraceAll

HOT, CMDLINE = "cohabit_hot", "cmdline_proc_show"
UNLOAD = {"do": "unload", "module": "cohabit_funcs"}
LOAD = {"do": "load", "module": "cohabit_funcs"}


def _attach(identity: str, attacher: str, function: str = HOT, **more: Any) -> dict[str, Any]:
    return {"do": "attach", "id": identity, "attacher": attacher, "function": function, **more}


def _detach(identity: str) -> dict[str, Any]:
    return {"do": "detach", "id": identity}


GOOD: dict[str, Any] = {
    "name": "mine/stirred",
    "functions": [HOT, CMDLINE],
    "steps": [
        _attach("patch", "livepatch"),
        _attach("d", "direct", CMDLINE),
        {
            "do": "stir",
            "hammers": [{"function": HOT, "by": "kernel"}, {"function": CMDLINE, "by": "user"}],
            "stirrers": [
                {"name": "ops", "steps": [_attach("o", "ops"), _detach("o")]},
                {
                    "name": "modify",
                    "steps": [
                        {"do": "modify", "id": "d", "alternate": 1},
                        {"do": "modify", "id": "d", "alternate": 0},
                    ],
                },
                {
                    "name": "all",
                    "rest": 2,
                    "steps": [
                        {"do": "trace-all", "tracer": "function"},
                        {"do": "trace-all", "tracer": "nop"},
                    ],
                },
                {
                    "name": "reversal",
                    "steps": [
                        _attach("r", "livepatch", wait=False),
                        {"do": "disable", "id": "r", "wait": False},
                        _detach("r"),
                    ],
                },
            ],
            "calls": 1000,
            "patches": 10,
            "rounds": 2,
            "seconds": 30,
            "at_least": 3,
            "seed": 7,
            "widen_us": 2000,
            "fault": "body",
        },
        _detach("d"),
        _detach("patch"),
    ],
    "cpus": 2,
}


def _stir(data: dict[str, Any]) -> dict[str, Any]:
    stir: dict[str, Any] = data["steps"][2]
    return stir


def test_the_replay_form_is_what_was_read() -> None:
    scenario = scenario_from_json(GOOD)
    assert scenario.to_json() == GOOD
    assert scenario_from_json(json.loads(json.dumps(scenario.to_json()))) == scenario
    assert scenario.cpus == 2
    stir = scenario.stir
    assert isinstance(stir, Stir)
    assert stir.hammers == (Hammer(HOT, "kernel"), Hammer(CMDLINE, "user"))
    assert stir.stirrers[2].steps == (TraceAll("function"), TraceAll("nop"))
    assert Disable("r", wait=False) in stir.steps
    assert scenario.attachers == ("livepatch", "direct", "ops")
    assert all(map(str, scenario.all_steps))


def test_what_is_left_out_is_the_usual() -> None:
    data = copy.deepcopy(GOOD)
    stir = _stir(data)
    for key in ("calls", "patches", "rounds", "seconds", "at_least", "seed", "widen_us", "fault"):
        del stir[key]
    found = scenario_from_json(data).stir
    assert found is not None
    assert (found.calls, found.patches, found.seconds) == (1_000_000, 1_000, 280)
    assert (found.rounds, found.at_least, found.widen_us, found.fault) == (1, 0, 0, "")
    assert "at_least" not in found.to_json()


def test_without_hammers_nothing_is_counted() -> None:
    data = copy.deepcopy(GOOD)
    stir = _stir(data)
    for key in ("hammers", "calls", "patches", "fault"):
        del stir[key]
    found = scenario_from_json(data).stir
    assert found is not None
    assert (found.calls, found.patches) == (0, 0)
    stir["calls"] = 1
    with pytest.raises(UsageError, match="without hammers"):
        scenario_from_json(data)


BAD: list[tuple[str, Callable[[dict[str, Any]], Any]]] = [
    ("more than one CPU", lambda d: d.pop("cpus")),
    ("whole number from 1", lambda d: d.update(cpus=0)),
    ("no 'call'", lambda d: _stir(d).update(call=3)),
    ("'calls' is a whole number", lambda d: _stir(d).update(calls="many")),
    ("'calls' is a whole number", lambda d: _stir(d).update(calls=True)),
    ("'patches' is a whole number from 0", lambda d: _stir(d).update(patches=-1)),
    ("'rounds' is a whole number from 1", lambda d: _stir(d).update(rounds=0)),
    ("more than its 'seconds'", lambda d: _stir(d).update(at_least=31)),
    ("no fault 'x'", lambda d: _stir(d).update(fault="x")),
    ("'widen_us' is 100000 at most", lambda d: _stir(d).update(widen_us=100_001)),
    ("list of objects", lambda d: _stir(d).update(hammers={})),
    ("list of objects", lambda d: _stir(d).update(stirrers=["ops"])),
    ("needs stirrers", lambda d: _stir(d).update(stirrers=[])),
    ("a hammer twice", lambda d: _stir(d)["hammers"].append({"function": HOT, "by": "kernel"})),
    ("no by 'nobody'", lambda d: _stir(d)["hammers"][0].update(by="nobody")),
    ("cannot be hammered by user", lambda d: _stir(d)["hammers"][0].update(by="user")),
    ("two stirrers are called", lambda d: _stir(d)["stirrers"][1].update(name="ops")),
    ("needs steps", lambda d: _stir(d)["stirrers"][0].update(steps=[])),
    ("'rest' is a whole number", lambda d: _stir(d)["stirrers"][0].update(rest=0.5)),
    ("needs 'name'", lambda d: _stir(d)["stirrers"][0].pop("name")),
    ("no tracer 'x'", lambda d: _stir(d)["stirrers"][2]["steps"][0].update(tracer="x")),
    ("does not end where it begins: 'o' is attached", lambda d: _steps(d, 0).pop()),
    ("goes to another trampoline", lambda d: _steps(d, 1).pop()),
    ("all functions are traced", lambda d: _steps(d, 2).pop()),
    ("cannot do this", lambda d: _steps(d, 0).append({"do": "force", "id": "o"})),
    ("cannot do this", lambda d: _steps(d, 0).append(copy.deepcopy(_stir(GOOD)))),
    ("never attaches before", lambda d: _steps(d, 0).append(_detach("nobody"))),
    ("both use 'o'", lambda d: _steps(d, 1).extend([_attach("o", "ops"), _detach("o")])),
    ("'patch' is gone", lambda d: _steps(d, 0).append(_detach("patch"))),
    ("no meaning", lambda d: _steps(d, 0)[0].update(unless_attached=True)),
    ("no meaning in a stir", lambda d: d["functions"].append(_place(d, "any"))),
    ("no transition to wait for", lambda d: _steps(d, 0)[0].update(wait=False)),
    ("only a stirrer need not wait", lambda d: d["steps"][0].update(wait=False)),
    ("cohabit_f1, not among", lambda d: _place(d, "cohabit_f1")),
    ("ftrace is off", lambda d: _steps(d, 0).append(_write("0"))),
    ("is unloaded", lambda d: _hammer_vmlinux(d).append(UNLOAD)),
    ("whose function is hammered", lambda d: _steps(d, 0).extend([UNLOAD, LOAD])),
    ("attaches 'o' twice", lambda d: _steps(d, 0).insert(1, _attach("o", "ops"))),
    ("more than 4 of livepatch", lambda d: _steps(d, 0).extend(_patches(3))),
    ("stirs twice", lambda d: d["steps"].insert(3, copy.deepcopy(_stir(d)))),
    ("there is no step 'trace-all'", lambda d: d["steps"].append(_steps(d, 2)[0])),
]


def _write(value: str) -> dict[str, Any]:
    return {"do": "write", "sysctl": "kernel.ftrace_enabled", "value": value}


def _steps(data: dict[str, Any], stirrer: int) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = _stir(data)["stirrers"][stirrer]["steps"]
    return steps


def _place(data: dict[str, Any], function: str) -> str:
    _steps(data, 0)[0]["function"] = function
    return function


def _hammer_vmlinux(data: dict[str, Any]) -> list[dict[str, Any]]:
    _stir(data)["hammers"] = [{"function": CMDLINE, "by": "kernel"}]
    return _steps(data, 0)


def _patches(count: int) -> list[dict[str, Any]]:
    names = [f"p{n}" for n in range(count)]
    return [*(_attach(n, "livepatch") for n in names), *(_detach(n) for n in names)]


@pytest.mark.parametrize(
    ("message", "spoil"), BAD, ids=[f"{n}: {m}" for n, (m, _) in enumerate(BAD)]
)
def test_what_there_is_not_is_refused(message: str, spoil: Callable[[dict[str, Any]], Any]) -> None:
    data = copy.deepcopy(GOOD)
    spoil(data)
    with pytest.raises(UsageError, match=message.replace("(", r"\(")):
        scenario_from_json(data)


def test_a_stirrer_may_take_what_was_there_and_bring_it_back() -> None:
    data = copy.deepcopy(GOOD)
    cycle = [
        _attach("other", "livepatch-replace"),
        _detach("patch"),
        _attach("patch", "livepatch"),
        _detach("other"),
    ]
    _stir(data)["stirrers"] = [{"name": "replace", "steps": cycle}]
    assert scenario_from_json(data).stir
    cycle[2] = _attach("patch", "livepatch-replace")
    with pytest.raises(UsageError, match="attaches 'patch' twice"):
        scenario_from_json(data)


def test_no_two_stirrers_share_a_slot() -> None:
    stir = scenario_from_json(GOOD).stir
    assert stir is not None
    state = State(attached=(Attached("patch", "livepatch", (HOT,), 0),))
    slots = stirred_slots(state, stir.stirrers)
    assert slots == {"patch": 0, "o": 0, "r": 1}
    again = {s.id for s in stir.steps if isinstance(s, Attach)}
    assert again == {"o", "r"}


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@given(st.sampled_from(sorted(_stir(GOOD))), _JSON)
def test_nothing_but_usage_errors(key: str, value: Any) -> None:
    data = copy.deepcopy(GOOD)
    _stir(data)[key] = value
    with contextlib.suppress(UsageError):
        scenario_from_json(data)
