# SPDX-License-Identifier: GPL-2.0-only
"""The kernel panics or hangs under a scenario: what that costs, and what the record has of it."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import Warm
from world import REPOSITORY, Event, World, assert_booted, of_type, read_events, verdicts
from world import world as new_world

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


class Sabotaged(VmTarget):
    """A VM on which attaching one kind of thing is not what was asked for."""

    def __init__(self, machine: Machine, console: Path, kind: str, sabotage: Sabotage) -> None:
        super().__init__(machine, "", console)
        self._kind = kind
        self._sabotage = sabotage

    def request(self, message: Mapping[str, Any], timeout: float) -> Mapping[str, Any]:
        """See Target."""
        if message.get("step", {}).get("attacher") == self._kind:
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


@pytest.fixture(scope="module")
def accidents(warm: Warm) -> Iterator[Accidents]:
    """Boots four VMs, two at a time: one panics, one hangs, one has a stuck agent."""
    with new_world() as place, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(place.path / "run"))
        patch.setenv("TMPDIR", str(place.path / "tmp"))
        output = place.path / "out"
        with Record(output) as record:
            record.event("run_start", format=1, planned=5)

            def work(machine: Machine, kind: str, sabotage: Sabotage, *names: str) -> Work:
                made: list[str] = []

                def make(name: str) -> VmTarget:
                    made.append(name)
                    if len(made) == 1:
                        return Sabotaged(machine, record.console(name), kind, sabotage)
                    return VmTarget(machine, "", record.console(name))

                kernel = warm.kernel
                chosen = profile.choose(kernel.release, kernel.config)
                return Work(kernel.release, chosen, make, catalogue.select(names))

            works = [
                work(warm.machine, "ops", panic, "direct/alone", "ops/alone", "ops-regs/alone"),
                work(_hanging(warm, place.path / "hang"), "livepatch", hurry, "livepatch/alone"),
                work(warm.machine, "ipmodify", stick, "ipmodify/alone"),
            ]
            Schedule(works, record, 2).run()
            record.event("run_end", interrupted=False)
        yield Accidents(read_events(output / "events.jsonl"), place, output)


def _hanging(warm: Warm, directory: Path) -> Machine:
    """Two vCPUs, and kmod_hang in place of the first livepatch."""
    source = REPOSITORY / "tests/vm/kmod_hang"
    built = modules.build(warm.kernel, source, warm.setup.root, warm.setup.store, print)
    agent, (kmods, target) = warm.machine.shares
    shutil.copytree(kmods, directory)
    shutil.copyfile(built / "cohabit_hang.ko", directory / "cohabit_klp_a.ko")
    return dataclasses.replace(warm.machine, shares=(agent, (directory, target)), cpus=2)


def test_all_came_up(accidents: Accidents) -> None:
    assert_booted(accidents.events, 4)
    accidents.place.assert_nothing_left()


def test_each_accident_costs_one_scenario(accidents: Accidents) -> None:
    assert verdicts(accidents.events) == {
        "direct/alone#1": "PASS",
        "ops/alone#1": "CRASH",
        "ops-regs/alone#1": "PASS",
        "livepatch/alone#1": "HANG",
        "ipmodify/alone#1": "HANG",
    }
    assert exit_status(read(accidents.record)) == 1


def test_panic(accidents: Accidents) -> None:
    ended = of_type(accidents.events, "scenario_end", verdict="CRASH")
    assert [e["reason"] for e in ended] == [PANIC]
    end = accidents.vm_end("ops/alone#1")
    assert (end["reason"], end["verdict"], end["detail"]) == ("died", "CRASH", PANIC)
    assert any("sysrq_handle_crash" in line for line in end["console_tail"])
    vms = {name: accidents.began(f"{name}/alone#1")["vm"] for name in ("direct", "ops", "ops-regs")}
    assert vms["direct"] == vms["ops"] != vms["ops-regs"]


def test_hang_with_interrupts_off(accidents: Accidents) -> None:
    """Only an NMI gets through; QEMU knows where the other CPU is, too."""
    end = accidents.vm_end("livepatch/alone#1")
    assert (end["reason"], end["verdict"]) == ("died", "HANG")
    assert end["detail"].startswith("no answer to 'step' within ")
    lines = end["backtraces"]
    positions = [line for line in lines if line.startswith("CPU ") and ": at " in line]
    assert [line[:6] for line in positions] == ["CPU 0:", "CPU 1:"]
    # Modules are loaded there (arch/x86/include/asm/pgtable_64_types.h: MODULES_VADDR).
    assert all(line.split()[-1].startswith("ffffffffc") for line in positions)
    assert NMI in lines
    assert any(" RIP: 0010:cohabit_spin+" in f" {line}" for line in lines)


def test_hang_of_the_agent_alone(accidents: Accidents) -> None:
    """The kernel answers SysRq, and is not made to panic."""
    end = accidents.vm_end("ipmodify/alone#1")
    assert (end["reason"], end["verdict"]) == ("died", "HANG")
    lines = end["backtraces"]
    assert lines[0].startswith("CPU 0: at ")
    assert SYSRQ in lines
    assert "sysrq: Show Blocked State" in lines
    shown = lines[lines.index(SYSRQ) :]
    assert any(line.startswith("NMI backtrace for cpu 0") for line in shown)
    assert any(line.strip() == "Call Trace:" for line in shown)
    assert NMI not in lines
