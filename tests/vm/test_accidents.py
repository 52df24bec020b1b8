# SPDX-License-Identifier: GPL-2.0-only
"""The kernel panics or hangs under a scenario: what that costs, and what the record has of it."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import Warm
from world import (
    DIRECT,
    OPS,
    REPOSITORY,
    Event,
    World,
    assert_booted,
    of_type,
    read_events,
    verdicts,
)
from world import world as new_world

from harness.arch import host
from harness.kernels import modules
from harness.policy import profile
from harness.report.model import exit_status, read
from harness.run.record import Record
from harness.run.schedule import Schedule, Work
from harness.scenario import catalogue
from harness.target.vm import VmTarget
from vm.machine import Machine

Ask = Callable[[Mapping[str, Any], float], Mapping[str, Any]]
#: Gets the way to ask the agent and the request that was due; does something worse.
Sabotage = Callable[[Ask, Mapping[str, Any]], Mapping[str, Any]]

OPS_REGS, LIVEPATCH, IPMODIFY = (
    f"{name}/alone/on:cohabit_f1" for name in ("ops-regs", "livepatch", "ipmodify")
)
#: Scenarios that can go side by side, each on a function of its own.
BESIDE_PANIC = ("ipmodify/alone/on:cohabit_f0", OPS, "ops-regs/alone/on:cohabit_f3")
BESIDE_WARNING = (
    "kretprobe/alone/on:cohabit_f0",
    "fprobe/alone/on:cohabit_f1",
    "kprobe/alone/on:cohabit_f3",
)

PANIC = "Kernel panic - not syncing: sysrq triggered crash"
SYSRQ = "sysrq: Show backtrace of all active CPUs"
NMI = "Kernel panic - not syncing: NMI: Not continuing"


def panic(ask: Ask, _request: Mapping[str, Any]) -> Mapping[str, Any]:
    """See drivers/tty/sysrq.c: sysrq_handle_crash."""
    return ask({"op": "write", "path": "/proc/sysrq-trigger", "text": "c"}, 6.0)


def stick(ask: Ask, _request: Mapping[str, Any]) -> Mapping[str, Any]:
    """The agent waits for the end of the kernel's messages; the kernel is well."""
    return ask({"op": "read", "path": "/proc/kmsg"}, 0.6)


def hurry(ask: Ask, request: Mapping[str, Any]) -> Mapping[str, Any]:
    """The step itself hangs: it loads kmod_hang. That need not take the usual time."""
    return ask(request, 1.0)


def warn(ask: Ask, request: Mapping[str, Any]) -> Mapping[str, Any]:
    """Somebody else registers an ops twice meanwhile, of which the kernel warns."""
    misuse = {"do": "misuse", "what": "ops-register-twice", "function": "cohabit_hold"}
    reply = ask({**request, "acts": [*request["acts"], misuse]}, 9.0)
    reply["result"]["results"].pop()
    return reply


class Sabotaged(VmTarget):
    """A VM on which attaching one kind of thing is not what was asked for."""

    def __init__(self, machine: Machine, console: Path, kind: str, sabotage: Sabotage) -> None:
        super().__init__(machine, "", console)
        self._kind = kind
        self._sabotage = sabotage

    def request(self, message: Mapping[str, Any], timeout: float) -> Mapping[str, Any]:
        """See Target."""
        if any(act.get("attacher") == self._kind for act in message.get("acts", ())):
            return self._sabotage(super().request, message)
        return super().request(message, timeout)


@dataclasses.dataclass(frozen=True)
class Accidents:
    """A run in which each kind of accident happened once."""

    events: list[Event]
    place: World
    record: Path

    def began(self, scenario: str) -> Event:
        """The start of a scenario (``name#attempt``)."""
        starts = of_type(self.events, "scenario_start")
        return next(e for e in starts if e["scenario"].endswith(f"/{scenario}"))

    def vm_end(self, scenario: str) -> Event:
        """The end of the VM that a scenario ran on."""
        return of_type(self.events, "vm_end", vm=self.began(scenario)["vm"])[0]


def work(
    warm: Warm, record: Record, machine: Machine, kind: str, sabotage: Sabotage,
    names: Sequence[str], always: bool = False,
) -> Work:  # fmt: skip
    """Scenarios for a VM that is sabotaged, as those after it are with ``always``."""
    made: list[str] = []

    def make(name: str) -> VmTarget:
        made.append(name)
        if always or len(made) == 1:
            return Sabotaged(machine, record.console(name), kind, sabotage)
        return VmTarget(machine, "", record.console(name))

    kernel = warm.kernel
    chosen = profile.choose(kernel.release, kernel.config, arch=kernel.arch)
    return Work(kernel.release, chosen, make, catalogue.select(names))


@contextlib.contextmanager
def _place() -> Iterator[World]:
    with new_world() as place, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(place.path / "run"))
        patch.setenv("TMPDIR", str(place.path / "tmp"))
        yield place


@pytest.fixture(scope="module")
def accidents(warm: Warm) -> Iterator[Accidents]:
    """Boots four VMs, two at a time: one panics, one hangs, one has a stuck agent."""
    with _place() as place:
        output = place.path / "out"
        machine = warm.machine
        with Record(output) as record:
            record.event("run_start", format=1, planned=5)
            hanging = _hanging(warm, place.path / "hang")
            works = [
                work(warm, record, machine, "ops", panic, [DIRECT, OPS, OPS_REGS]),
                work(warm, record, hanging, "livepatch", hurry, [LIVEPATCH]),
                work(warm, record, machine, "ipmodify", stick, [IPMODIFY]),
            ]
            Schedule(works, record, 2, side_by_side=1).run()
            record.event("run_end", interrupted=False)
        yield Accidents(read_events(output / "events.jsonl"), place, output)


def _hanging(warm: Warm, directory: Path) -> Machine:
    """Two vCPUs, and kmod_hang in place of the first livepatch."""
    source = REPOSITORY / "tests/vm/kmod_hang"
    built = modules.build(warm.kernel, source, warm.setup.tools(host()), warm.setup.store, print)
    agent, (kmods, target) = warm.machine.shares
    shutil.copytree(kmods, directory)
    shutil.copyfile(built / "cohabit_hang.ko", directory / "cohabit_klp_a.ko")
    return dataclasses.replace(warm.machine, shares=(agent, (directory, target)), cpus=2)


def test_all_came_up(accidents: Accidents) -> None:
    assert_booted(accidents.events, 4)
    accidents.place.assert_nothing_left()


def test_each_accident_costs_one_scenario(accidents: Accidents) -> None:
    assert verdicts(accidents.events) == {
        f"{DIRECT}#1": "PASS",
        f"{OPS}#1": "CRASH",
        f"{OPS_REGS}#1": "PASS",
        f"{LIVEPATCH}#1": "HANG",
        f"{IPMODIFY}#1": "HANG",
    }
    assert exit_status(read(accidents.record)) == 1


def test_panic(accidents: Accidents) -> None:
    ended = of_type(accidents.events, "scenario_end", verdict="CRASH")
    assert [e["reason"] for e in ended] == [PANIC]
    end = accidents.vm_end(f"{OPS}#1")
    assert (end["reason"], end["verdict"], end["detail"]) == ("died", "CRASH", PANIC)
    assert any("sysrq_handle_crash" in line for line in end["console_tail"])
    vms = [accidents.began(f"{name}#1")["vm"] for name in (DIRECT, OPS, OPS_REGS)]
    assert vms[0] == vms[1] != vms[2]


def test_hang_with_interrupts_off(accidents: Accidents) -> None:
    """Only an NMI gets through; QEMU knows where the other CPU is, too."""
    end = accidents.vm_end(f"{LIVEPATCH}#1")
    assert (end["reason"], end["verdict"]) == ("died", "HANG")
    assert end["detail"].startswith("no answer to 'acts' within ")
    lines = end["backtraces"]
    positions = [line for line in lines if line.startswith("CPU ") and ": at " in line]
    assert [line[:6] for line in positions] == ["CPU 0:", "CPU 1:"]
    # Modules are loaded there (arch/x86/include/asm/pgtable_64_types.h: MODULES_VADDR).
    assert all(line.split()[-1].startswith("ffffffffc") for line in positions)
    assert NMI in lines
    assert any(" RIP: 0010:cohabit_spin+" in f" {line}" for line in lines)


def test_hang_of_the_agent_alone(accidents: Accidents) -> None:
    """The kernel answers SysRq, and is not made to panic."""
    end = accidents.vm_end(f"{IPMODIFY}#1")
    assert (end["reason"], end["verdict"]) == ("died", "HANG")
    lines = end["backtraces"]
    assert lines[0].startswith("CPU 0: at ")
    assert SYSRQ in lines
    assert "sysrq: Show Blocked State" in lines
    shown = lines[lines.index(SYSRQ) :]
    assert any(line.startswith("NMI backtrace for cpu 0") for line in shown)
    assert any(line.strip() == "Call Trace:" for line in shown)
    assert NMI not in lines


@pytest.fixture(scope="module")
def companies(warm: Warm) -> Iterator[Accidents]:
    """Two groups: in one the kernel panics, but not again; in one a member makes it warn."""
    with _place() as place:
        output = place.path / "out"
        machine = warm.machine
        with Record(output) as record:
            record.event("run_start", format=1, planned=6)
            works = [
                work(warm, record, machine, "ops", panic, BESIDE_PANIC),
                work(warm, record, machine, "kprobe", warn, BESIDE_WARNING, always=True),
            ]
            Schedule(works, record, 2).run()
            record.event("run_end", interrupted=False)
        yield Accidents(read_events(output / "events.jsonl"), place, output)


def test_a_group_in_trouble_is_run_again_each_alone(companies: Accidents) -> None:
    assert_booted(companies.events, 4)
    companies.place.assert_nothing_left()
    started = [e for e in of_type(companies.events, "scenario_start") if "group" in e]
    again = of_type(companies.events, "scenario_regroup")
    assert sorted(e["scenario"] for e in again) == sorted(e["scenario"] for e in started)
    assert {e["name"] for e in started} == {*BESIDE_PANIC, *BESIDE_WARNING}
    assert verdicts(companies.events) == {
        f"{name}#1#alone": "SPLAT" if name.startswith("kprobe/") else "PASS"
        for name in (*BESIDE_PANIC, *BESIDE_WARNING)
    }
    (guilty,) = of_type(companies.events, "scenario_end", verdict="SPLAT")
    assert "kernel/trace/ftrace.c" in guilty["reason"]


def test_the_groups_trouble_is_told(companies: Accidents) -> None:
    """Also where none of its members had it again."""
    groups = {e["verdict"]: e for e in of_type(companies.events, "group_end")}
    assert set(groups) == {"CRASH", "SPLAT"}
    assert groups["CRASH"]["reason"] == PANIC
    assert "kernel/trace/ftrace.c" in groups["SPLAT"]["reason"]
    ends = {}
    for began in of_type(companies.events, "group_start"):
        (end,) = of_type(companies.events, "vm_end", vm=began["vm"])
        ends[began["scenarios"][0].split("/")[1]] = end
    assert (ends["ipmodify"]["reason"], ends["ipmodify"]["verdict"]) == ("died", "CRASH")
    assert ends["kretprobe"]["reason"] == "poisoned"
    model = read(companies.record)
    assert {g.id for g in model.groups.values()} == {e["group"] for e in groups.values()}
    assert groups["CRASH"]["group"] in {g.id for g in model.group_failures()}
    assert exit_status(model) == 1
