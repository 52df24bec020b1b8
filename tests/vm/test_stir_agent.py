# SPDX-License-Identifier: GPL-2.0-only
"""Hammers and stirrers on a booted kernel, as the agent does them when it is asked."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import Warm

from harness.cli.setup import Setup
from harness.kernels.store import Store, default_root
from harness.run.greeting import hello
from harness.run.programs import Programs
from harness.target.vm import VmTarget

HOT, CMDLINE = "cohabit_hot", "cmdline_proc_show"
FUNCTIONS = [HOT, CMDLINE]
#: Seconds on a fast machine for any request.
LONG = 12.0

Json = dict[str, Any]


class Guest:
    """An agent in a VM with two CPUs."""

    def __init__(self, target: VmTarget) -> None:
        self._target = target

    def ask(self, op: str, **arguments: Any) -> Json:
        reply = self._target.request({"op": op, **arguments}, LONG)
        assert "error" not in reply, reply["error"]
        result: Json = reply["result"]
        return result

    def act(self, do: str, identity: str, **arguments: Any) -> Json:
        """One act, and what was seen after it."""
        acts = [{"do": do, "id": identity, **arguments}]
        reply = self.ask("acts", acts=acts, functions=FUNCTIONS)
        assert (reply["results"][0]["errno"], reply["results"][0]["remark"]) == (0, "")
        return reply

    def stir(self, allowed: dict[str, list[str]] | None = None, **step: Any) -> Json:
        """A whole stir step; its result, with all ``ops`` in it."""
        self.begin(allowed, **step)
        ops, began = [], time.monotonic()
        while True:
            progress = self.ask("stirred", wait=1.0)
            ops += progress["ops"]
            assert "stuck" not in progress
            if progress["over"]:
                break
            assert time.monotonic() - began < 120
        return {**self.end(), "ops": ops}

    def begin(self, allowed: dict[str, list[str]] | None = None, **step: Any) -> None:
        whole = {
            "do": "stir", "hammers": [], "stirrers": [], "calls": 0, "patches": 0, "rounds": 1,
            "seconds": 30, "seed": 1, "widen_us": 0, "fault": "", **step,
        }  # fmt: skip
        reply = self.ask("stir", step=whole, functions=FUNCTIONS, allowed=allowed or {})
        assert reply == {"started": True}

    def end(self) -> Json:
        reply = self.ask("acts", acts=[{"do": "stir-end"}], functions=FUNCTIONS)
        stirred: Json = reply["results"][0]["stirred"]
        return {**stirred, "after": reply}


@pytest.fixture(scope="module")
def guest(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    setup = Setup(Store(default_root()), warm.machine.accelerator.name, cpus=2)
    target = VmTarget(setup.machine(warm.kernel), "", tmp_path_factory.mktemp("stir") / "console")
    try:
        target.start()
        made = Guest(target)
        greeting = hello(warm.kernel.release, target.slowdown)
        made.ask(greeting.pop("op"), **greeting)
        made.ask("modules")
        programs = Programs(default_root() / "state")
        programs.put(made.ask("compile", programs=programs.get())["programs"])
        yield made
    finally:
        target.stop()
        setup.store.close()


@pytest.fixture
def clean(guest: Guest) -> Iterator[Guest]:
    """Nothing is attached before and after."""
    guest.ask("begin", functions=FUNCTIONS)
    yield guest
    assert guest.ask("clean")["residue"] == []
    tasks = guest.ask("run", argv=["sh", "-c", "cat /proc/[0-9]*/comm"], timeout=20)["output"]
    assert "cohabit/" not in tasks


def attach(identity: str, attacher: str, functions: list[str], slot: int) -> Json:
    return {
        "do": "attach", "id": identity, "attacher": attacher, "functions": functions, "slot": slot,
    }  # fmt: skip


def cycle(name: str, attacher: str, functions: list[str], slot: int) -> Json:
    steps = [attach(name, attacher, functions, slot), {"do": "detach", "id": name}]
    return {"name": name, "steps": steps}


def hammer(function: str, by: str) -> Json:
    return {"function": function, "by": by}


ALL = [hammer(HOT, "kernel"), hammer(CMDLINE, "kernel"), hammer(CMDLINE, "user")]


def calls(stirred: Json, function: str) -> int:
    return sum(h["calls"] for h in stirred["hammers"] if h["function"] == function)


def assert_right(stirred: Json, bodies: set[str]) -> None:
    """No call was wrong, none was lost, and none was shirked."""
    for found in stirred["hammers"]:
        assert found["calls"] > 0, found
        assert (found["wrong"], found["first"]) == ({}, None)
        assert sum(found["bodies"].values()) == found["calls"]
        assert set(found["bodies"]) == bodies
        assert "failed" not in found


def test_under_a_livepatch(clean: Guest) -> None:
    """While two stirrers patch its call site, no call sees the original body."""
    seen = clean.act("attach", "p", attacher="livepatch", functions=FUNCTIONS, slot=0)
    assert {seen["calls"][f]["body"] for f in FUNCTIONS} == {"livepatch-a"}
    stirred = clean.stir(
        {f: ["livepatch-a"] for f in FUNCTIONS},
        hammers=ALL,
        stirrers=[cycle("ft", "function-tracer", FUNCTIONS, 0), cycle("o", "ops", FUNCTIONS, 1)],
        calls=50_000, patches=10, rounds=4,
    )  # fmt: skip
    by_cpu = [(h["function"], h["by"], h["cpu"]) for h in stirred["hammers"]]
    assert by_cpu == [(h["function"], h["by"], cpu) for h in ALL for cpu in (0, 1)]
    assert_right(stirred, {"livepatch-a"})
    assert sum(h["calls"] for h in stirred["hammers"]) >= 50_000
    assert stirred["patches_by"] == "text-poke"
    assert stirred["pokes"] >= stirred["patches"] >= 10
    assert stirred["left"] == {}
    for name, number in (("ft", 0), ("o", 1)):
        rounds = stirred["rounds"][name]
        assert rounds >= 4
        assert stirred["outcomes"][name] == [[0, 0, rounds], [1, 0, rounds]]
        assert [op[1] for op in stirred["ops"] if op[0] == number] == [0, 1] * rounds
    assert [op[4] for op in stirred["ops"]] == sorted(op[4] for op in stirred["ops"])
    # They overlapped, or there was no race.
    assert any(
        a[3] < b[4] and b[3] < a[4]
        for a in stirred["ops"] if a[0] == 0
        for b in stirred["ops"] if b[0] == 1
    )  # fmt: skip
    after = stirred["after"]["calls"]
    assert {after[f]["body"] for f in FUNCTIONS} == {"livepatch-a"}
    assert all(after[f]["seen"] == {} for f in FUNCTIONS)


def test_what_stays_attached_misses_no_call(clean: Guest) -> None:
    """Not one hit too few or too many, through whichever trampoline it came."""
    clean.act("attach", "o", attacher="ops", functions=FUNCTIONS, slot=0)
    clean.act("attach", "e", attacher="fentry", functions=[CMDLINE], slot=0)
    clean.act("attach", "d", attacher="direct", functions=[HOT], slot=0)
    modify = [{"do": "modify", "id": "d", "alternate": alternate} for alternate in (1, 0)]
    stirred = clean.stir(
        hammers=ALL, rounds=4,
        stirrers=[
            {"name": "modify", "steps": modify},
            cycle("x", "fexit", [CMDLINE], 1),
            cycle("k", "kprobe", [HOT], 1),
        ],
    )  # fmt: skip
    assert_right(stirred, {"original"})
    assert stirred["left"] == {}
    hot, cmdline = calls(stirred, HOT), calls(stirred, CMDLINE)
    throughout = stirred["throughout"]
    assert throughout["o"] == {"hits": hot + cmdline, "misses": 0}
    assert throughout["e"] == {"hits": cmdline, "misses": 0}
    assert throughout["d"]["hits"] == hot
    via = throughout["d"]["via"]
    assert set(via) == {"0", "1"}
    assert sum(via.values()) == hot
    assert set(throughout) == {"o", "e", "d"}


def test_the_bodies_follow_the_steps(clean: Guest) -> None:
    """Both bodies on the way, only one before and after."""
    both, new = ["original", "ipmodify-1"], ["ipmodify-1"]
    steps = cycle("i", "ipmodify", FUNCTIONS, 1)["steps"]
    steps[0].update(during=[*both, "monotonic"], after=new)
    steps[1].update(during=[*both, "monotonic"], after=["original"])
    stirred = clean.stir(hammers=ALL, stirrers=[{"name": "i", "steps": steps}], rounds=5)
    assert_right(stirred, set(both))
    # Without a word of it, the same is wrong, and said to be.
    # (That each of them comes by meanwhile is for its CPU to say.)
    stirred = clean.stir(hammers=ALL, stirrers=[cycle("i", "ipmodify", FUNCTIONS, 1)], rounds=10)
    seen = {}
    for found in stirred["hammers"]:
        new_calls = found["bodies"].get("ipmodify-1", 0)
        assert found["wrong"] == ({"body": new_calls} if new_calls else {})
        if not new_calls:
            continue
        assert found["first"]["kind"] == "body"
        assert found["first"]["cpu"] == found["cpu"]
        seen[found["function"], found["by"]] = found["first"]["seen"]
    assert seen[CMDLINE, "user"] == "cohabit: ipmodify-1\n"
    assert {seen[f, "kernel"].partition(",")[0] for f in FUNCTIONS} == {"ipmodify-1"}


def test_the_widened_window(clean: Guest) -> None:
    """Calls fall into it, and are right."""
    clean.act("attach", "p", attacher="livepatch", functions=[HOT], slot=0)
    stirred = clean.stir(
        {HOT: ["livepatch-a"]},
        hammers=[hammer(HOT, "kernel")], stirrers=[cycle("ft", "function-tracer", [HOT], 0)],
        rounds=4, widen_us=20_000,
    )  # fmt: skip
    assert_right(stirred, {"livepatch-a"})
    assert stirred["windows"] == stirred["patches"] >= 8
    assert stirred["inside"] >= stirred["inside_most"] > 0
    assert stirred["widen_us"] == 20_000


@pytest.mark.parametrize("by", ["kernel", "user"])
@pytest.mark.parametrize("fault", ["body", "counter", "stall"])
def test_hammers_that_are_wrong(clean: Guest, fault: str, by: str) -> None:
    """Each is seen in the numbers."""
    found = clean.stir(
        hammers=[hammer(CMDLINE, by)], calls=20_000, rounds=0, fault=fault
    )["hammers"]  # fmt: skip
    lost = sum(h["calls"] - sum(h["bodies"].values()) for h in found)
    wrong = sum(h["wrong"].get("body", 0) for h in found)
    assert [h["calls"] == 0 for h in found] == [False, fault == "stall"]
    assert (lost > 0) == (fault == "counter")
    assert (wrong > 0) == (fault == "body")


def test_clean_ends_a_stir(clean: Guest) -> None:
    """Whatever is under way: no hammer, no process and nothing attached is left."""
    clean.act("attach", "o", attacher="ops", functions=[HOT], slot=0)
    clean.begin(hammers=ALL, stirrers=[cycle("e", "fentry", [HOT], 1)], seconds=1000)
    clean.ask("stirred", wait=0.5)
    assert clean.ask("clean")["residue"] == []
    processes = clean.ask("run", argv=["sh", "-c", "pgrep -c python3"], timeout=20)
    assert processes["output"].strip() == "1"
    # And the next one goes.
    assert_right(clean.stir(hammers=ALL, calls=1000), {"original"})


def test_the_module_comes_and_goes(clean: Guest) -> None:
    """While something is attached and detached beside it."""
    module = "cohabit_funcs"
    steps = [{"do": "unload", "module": module}, {"do": "load", "module": module}]
    stirred = clean.stir(
        hammers=[hammer(CMDLINE, "user")], rounds=3,
        stirrers=[{"name": "module", "steps": steps}, cycle("ft", "function-tracer", [CMDLINE], 0)],
    )  # fmt: skip
    assert_right(stirred, {"original"})
    assert stirred["left"] == {}
    assert {o[0]: o[1] for o in stirred["outcomes"]["module"]} == {0: 0, 1: 0}
    assert stirred["after"]["calls"][HOT]["body"] == "original"


#: Writes to the guest's log around looks at it; says what was kept.
_LOOKS = """
import sys
sys.path.insert(0, "/cohabit")
from agent.system import KernelLog
log = KernelLog()
log.take()
with open("/dev/kmsg", "w") as kmsg:
    kmsg.write("<6>looked at first\\n")
    kmsg.flush()
    log.look()
    log.look()
    kmsg.write("<6>looked at second\\n")
mine = [r["text"] for r in log.take() if r["text"].startswith("looked at")]
again = [r["text"] for r in log.take() if r["text"].startswith("looked at")]
print(mine, again, log.complete)
"""


def test_log_that_was_looked_at_is_kept(guest: Guest) -> None:
    """Once, in order, and it is complete; in the guest: the host's log is not ours."""
    ran = guest.ask("run", argv=["python3", "-c", _LOOKS], timeout=60.0)
    assert "['looked at first', 'looked at second'] [] True" in str(ran), ran
