# SPDX-License-Identifier: GPL-2.0-only
"""The agent's acts and observations, as far as they need no kernel of their own."""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import random
from pathlib import Path
from typing import Any

import pytest

from harness.agent import abi
from harness.agent.acts import Acts
from harness.agent.attachers import STAT
from harness.agent.calls import Caller
from harness.agent.livepatch import parameters
from harness.agent.observe import WATCH_LIMIT, Watch, attribute
from harness.scenario.functions import FUNCTIONS

TABLE = {name: dataclasses.asdict(function) for name, function in FUNCTIONS.items()}


# --- livepatch parameters -------------------------------------------------------------------


def table(*names: str) -> list[dict[str, Any]]:
    return [TABLE[name] for name in names]


def test_parameters() -> None:
    lane = abi.lane_function
    assert parameters(table("cohabit_f1", "cmdline_proc_show"), False) == (
        "funcs=cohabit_f1,cmdline_proc_show"
    )
    assert parameters(table(lane(0)), False) == "lanes=1"
    assert parameters(table(lane(5), lane(0), "cohabit_f1"), True) == (
        "funcs=cohabit_f1 lanes=21 replace=1"
    )


def test_lanes_are_a_bitmap() -> None:
    for seed in range(20):
        lanes = set(random.Random(seed).sample(range(abi.LANES), seed + 1))
        text = parameters(table(*(abi.lane_function(lane) for lane in lanes)), False)
        bitmap = int(text.removeprefix("lanes="), 16)
        assert {lane for lane in range(abi.LANES) if bitmap >> lane & 1} == lanes


# --- counters -------------------------------------------------------------------------------


def test_stat_is_read_as_the_abi_has_it() -> None:
    stat = abi.Stat(
        kind=1, slot=2, index=3, nr_args=4, hits=5, others=6, ret=17, misses=21, via=26, has_ret=27
    )
    stat.args[:] = range(7, 17)
    stat.share_self, stat.share_peer, stat.unshare_peer = 18, 19, 20
    assert STAT.size == ctypes.sizeof(abi.Stat)
    stat.through[:] = range(22, 26)
    assert list(STAT.unpack(bytes(stat))) == list(range(1, 28))


def test_attribution() -> None:
    def hits(count: int) -> dict[str, Any]:
        return {"hits": count, "others": 0, "args": []}

    calls: dict[str, dict[str, Any]] = {"f": {"body": "original"}, "g": {"body": "absent"}}
    seen = [
        ("a", "f", hits(1)), ("a", "g", hits(0)), ("b", "g", hits(2)),
        # Nobody called h: as it should be; and as it should not.
        ("quiet", "h", hits(0)), ("stray", "h", hits(1)), ("a", "h", hits(3)),
    ]  # fmt: skip
    attribute(calls, seen)
    assert calls == {
        "f": {"body": "original", "seen": {"a": hits(1), "stray": hits(1)}},
        "g": {"body": "absent", "seen": {"a": hits(0), "b": hits(2), "stray": hits(1)}},
    }


# --- acts -----------------------------------------------------------------------------------


@pytest.fixture
def acts() -> Acts:
    return Acts(TABLE, Caller(TABLE), [], 30.0, False)


def test_each_act_has_its_errno(acts: Acts) -> None:
    refused = acts.act({"do": "write", "sysctl": "kernel.no_such", "value": "0"})
    assert (refused["errno"], refused["held"]) == (errno.ENOENT, None)
    called = acts.act({"do": "call"})
    assert (called["errno"], called["remark"]) == (0, "")
    assert called["s"] >= 0


@pytest.mark.parametrize(
    "act",
    [
        {"do": "reboot"},
        {"do": "detach", "id": "a"},
        {"do": "disable", "id": "a"},
        {"do": "release", "id": "a"},
        {"do": "modify", "id": "a", "alternate": 1},
        {"do": "attach", "id": "a", "attacher": "uprobe", "functions": ["cohabit_f1"], "slot": 0},
        # Nobody loaded the module, nobody compiled.
        {"do": "attach", "id": "a", "attacher": "ops", "functions": ["cohabit_f1"], "slot": 0},
        {"do": "attach", "id": "a", "attacher": "fexit", "functions": ["cohabit_f1"], "slot": 0},
    ],
    ids=lambda act: f"{act['do']}-{act.get('attacher', '')}",
)
def test_what_makes_no_sense_is_no_errno(acts: Acts, act: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"no such|nothing attached|no call|not "):
        acts.act(act)


def test_functions_of_a_module_that_is_not_there() -> None:
    caller = Caller(TABLE)
    names = ["cohabit_f1", "cmdline_proc_show", abi.lane_function(0), "cohabit_f1"]
    if Path("/dev/cohabit_funcs").exists():
        pytest.skip("the module is loaded here")
    caller.prepare(names)
    found = caller.call(names, "process")
    assert set(found) == set(names)
    assert found["cohabit_f1"] == found[abi.lane_function(0)] == {"body": "absent"}
    assert found["cmdline_proc_show"]["body"] == "original"
    text = Path("/proc/cmdline").read_text(encoding="utf-8")
    assert text.startswith(found["cmdline_proc_show"]["text"])


# --- watching -------------------------------------------------------------------------------


def test_watch_reads_at_least_once(tmp_path: Path) -> None:
    path = tmp_path / "registry"
    path.write_text("cmdline_proc_show (1)\n", encoding="ascii")
    with Watch(str(path)) as watch:
        pass
    result = watch.result()
    assert result["texts"] == ["cmdline_proc_show (1)\n"]
    assert result["reads"] >= 1


def test_watch_of_what_is_not_there(tmp_path: Path) -> None:
    with Watch(str(tmp_path / "registry")) as watch:
        pass
    assert watch.result()["texts"] == []


def test_watch_keeps_different_texts_in_their_order(tmp_path: Path) -> None:
    path = tmp_path / "registry"
    watch = Watch(str(path))
    # Each _run is then one read.
    watch._stop.set()
    for text in ("b", "a", "b", "", "c"):
        path.write_text(text, encoding="ascii")
        watch._run()
    assert watch.result() == {"reads": 5, "texts": ["b", "a", "", "c"]}


def test_watch_keeps_so_many_texts(tmp_path: Path) -> None:
    path = tmp_path / "registry"
    watch = Watch(str(path))
    watch._stop.set()
    for number in range(WATCH_LIMIT + 10):
        path.write_text(str(number), encoding="ascii")
        watch._run()
    assert len(watch.result()["texts"]) == WATCH_LIMIT
    assert watch.result()["reads"] == WATCH_LIMIT + 10
