# SPDX-License-Identifier: GPL-2.0-only
"""The hammers of the control module on a real kernel: they count right, and say what is wrong.

What is done is in hammer_guest.py, which runs in one VM with two vCPUs.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Warm

from harness.agent import abi
from harness.cli.setup import Setup
from harness.target.vm import VmTarget

CPUS = 2
#: As hammer_guest.py has them: what is called by its address, what is read, and the attachers.
HOT, READ = "cohabit_hot", "cmdline_proc_show"
KINDS = ("ops", "direct", "kprobe", "kretprobe", "fprobe", "fprobe-exit")
#: Seconds that the guest has, on a fast machine.
TIMEOUT = 60.0
IPMODIFY = str(abi.TAG_IPMODIFY)
ORIGINAL = str(abi.TAG_ORIGINAL)
LIVEPATCH = str(abi.TAG_LIVEPATCH)
#: What FAULT_BODY calls where only the original is allowed: the last slot's.
FAULTY = str(abi.TAG_IPMODIFY + abi.SLOTS - 1)

Thread = dict[str, Any]


def run(target: VmTarget) -> dict[str, Any]:
    script = Path(__file__).with_name("hammer_guest.py").read_text(encoding="utf-8")
    request = {
        "op": "run",
        "argv": ["python3", "-c", script],
        "timeout": TIMEOUT * target.slowdown,
    }
    result = target.request(request, TIMEOUT + 5.0)["result"]
    assert result["status"] == 0, result["output"]
    found: dict[str, Any] = json.loads(result["output"])
    return found


@pytest.fixture(scope="module")
def hammered(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What each part of hammer_guest.py gave; then the kernel's complaints are looked at."""
    setup = Setup(warm.setup.store, warm.machine.accelerator.name, cpus=CPUS)
    target = setup.target(warm.kernel, tmp_path_factory.mktemp("hammer") / "console.log")
    try:
        target.start()
        yield run(target)
        told = target.request({"op": "run", "argv": ["dmesg", "-l", "err,crit"], "timeout": 9}, 9.0)
        assert "Call Trace" not in told["result"]["output"]
        assert target.crash() is None
    finally:
        target.stop()


def by_function(threads: list[Thread]) -> dict[str, list[Thread]]:
    """The threads by function, one a CPU."""
    found: dict[str, list[Thread]] = {}
    for thread in threads:
        found.setdefault(thread["function"], []).append(thread)
    for group in found.values():
        assert [thread["cpu"] for thread in group] == list(range(CPUS))
    return found


def counted(thread: Thread) -> int:
    """How many calls the thread has told what they showed."""
    wrong = thread["wrong"]
    bodies = sum(thread["bodies"].values())
    return int(bodies + wrong[abi.WRONG_NONE] + wrong[abi.WRONG_RESULT])


def assert_right(threads: list[Thread], bodies: set[str]) -> None:
    """Each called, counted all of it, saw exactly these bodies among them, and nothing wrong."""
    assert threads
    assert {tag for thread in threads for tag in thread["bodies"]} == bodies
    for thread in threads:
        assert thread["calls"] > 0
        assert counted(thread) == thread["calls"]
        assert thread["wrong"] == [0] * abi.WRONGS
        assert thread["first"] is None


def test_many_right_calls(hammered: dict[str, Any]) -> None:
    rates = hammered["rates"]
    for function in (HOT, READ):
        threads = by_function(rates[function]["threads"])
        assert set(threads) == {function}
        assert_right(threads[function], {ORIGINAL})
        assert all(thread["calls"] >= 100_000 for thread in threads[function])
        assert rates[function]["again"] == errno.EALREADY
    assert rates["left"] == []


def test_what_is_no_hammer(hammered: dict[str, Any]) -> None:
    refused = hammered["refused"]
    assert refused["unknown"] == errno.ENXIO
    assert refused["no file"] == errno.ENOENT
    assert refused["fault"] == errno.EBADRQC
    assert refused["allow"] == errno.ESRCH


def test_a_faulty_body_is_seen(hammered: dict[str, Any]) -> None:
    fault = hammered["faults"]["body"]
    threads = by_function(fault["threads"])
    assert set(threads) == {HOT, READ}
    for thread in fault["threads"]:
        # One in a thousand, and the counts are right about it.
        assert thread["bodies"][FAULTY] == thread["calls"] // 1000 > 0
        assert thread["wrong"][abi.WRONG_BODY] == thread["bodies"][FAULTY] == sum(thread["wrong"])
        assert counted(thread) == thread["calls"]
        first = thread["first"]
        assert (first["kind"], first["call"]) == (abi.WRONG_BODY, 1000)
        assert first["cpu"] == thread["cpu"]
        assert first["result"] >> 32 == int(FAULTY)
        assert first["ns"] > 0
        assert any("kthread+" in line for line in first["stack"])


def test_a_lost_counter_is_seen(hammered: dict[str, Any]) -> None:
    for thread in hammered["faults"]["counter"]["threads"]:
        assert thread["calls"] - counted(thread) == thread["calls"] // 1000 > 0
        assert thread["wrong"] == [0] * abi.WRONGS


def test_a_stalled_cpu_is_seen(hammered: dict[str, Any]) -> None:
    """And does not hold up what waits for all threads."""
    fault = hammered["faults"]["stall"]
    for threads in by_function(fault["threads"]).values():
        *others, last = threads
        assert (last["calls"], last["bodies"]) == (0, {})
        assert_right(others, {ORIGINAL})
    assert fault["allow"] == 0


def test_bodies(hammered: dict[str, Any]) -> None:
    bodies = hammered["bodies"]
    assert_right(bodies["right"], {ORIGINAL, IPMODIFY})
    for thread in bodies["wrong"]:
        assert thread["wrong"][abi.WRONG_BODY] == thread["bodies"][IPMODIFY] > 0
        assert sum(thread["wrong"]) == thread["wrong"][abi.WRONG_BODY]
    for thread in bodies["back"]:
        # The other one came once and went once.
        assert thread["wrong"] == [int(kind == abi.WRONG_BACK) for kind in range(abi.WRONGS)]
        assert thread["first"]["result"] >> 32 == abi.TAG_ORIGINAL


def test_a_livepatch_comes_and_goes(hammered: dict[str, Any]) -> None:
    livepatch = hammered["livepatch"]
    assert not any(livepatch["errors"])
    assert livepatch["done"]
    assert livepatch["gone"]
    there = by_function(livepatch["there"])
    assert_right(there[HOT], {ORIGINAL, LIVEPATCH})
    assert_right(there[READ], {LIVEPATCH})
    assert_right(livepatch["threads"], {ORIGINAL, LIVEPATCH})


@pytest.mark.parametrize("name", KINDS)
def test_attachments_count_exactly(name: str, hammered: dict[str, Any]) -> None:
    exact = hammered["exact"]
    assert exact["errors"][name] == 0
    assert exact["detached"] == [0] * len(KINDS)
    hits, others, misses, through = exact["seen"][name]
    assert hits == 0
    assert others + misses == exact["calls"] > 0
    if name == "direct":
        assert exact["modified"] == 0
        assert through[2:] == [0, 0]
        assert min(through[:2]) > 0
        assert sum(through) == others
    else:
        assert through == [0] * abi.ALTERNATES


@pytest.mark.parametrize("name", ["counted", "widened"])
def test_the_window(name: str, hammered: dict[str, Any]) -> None:
    window = hammered["window"][name]
    assert (window["on"], window["twice"], window["off"]) == (0, errno.EALREADY, 0)
    seen = window["seen"]
    # Three times on and off, and another function's site as often.
    assert seen["at_site"] == 6
    assert seen["pokes"] >= 12
    assert seen["delay_us"] == window["delay"]
    assert seen["windows"] == (6 if window["delay"] else 0)
    assert (seen["inside"] > 0) is (seen["most"] > 0) is bool(window["delay"])
    assert seen["most"] <= seen["inside"]
    # The site's bytes change with each attach and are what they were after it.
    assert window["texts"] == [True] * 6
    assert window["nowhere"]
    assert_right(hammered["window"]["threads"], {ORIGINAL})


def test_attachers_of_several_slots_at_once(hammered: dict[str, Any]) -> None:
    races = hammered["races"]
    assert races["failed"] == []
    assert set(races["rounds"]) == {*KINDS, "stats"}
    assert min(races["rounds"].values()) >= 2
    assert races["left"] == 0
    assert_right(races["threads"], {ORIGINAL})


def test_hammers_hold_the_modules(hammered: dict[str, Any]) -> None:
    """Also when nobody has the device open, and not longer than that."""
    pinned = hammered["pinned"]
    assert pinned["kept"] == [errno.EWOULDBLOCK] * 2
    assert pinned["gone"] == [0, 0]
    assert_right(pinned["threads"], {ORIGINAL})
