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

from harness.cli.setup import Setup
from harness.kernels import modules
from harness.policy import profile
from harness.report.model import exit_status, read
from harness.run.record import Record
from harness.run.schedule import Schedule, Work
from harness.scenario import catalogue
from harness.target.vm import VmTarget
from vm.machine import Machine

Ask = Callable[[Mapping[str, Any], float], Mapping[str, Any]]
#: Given the way to ask the agent and the request that was due, does something worse.
Sabotage = Callable[[Ask, Mapping[str, Any]], Mapping[str, Any]]


def panic(ask: Ask, _request: Mapping[str, Any]) -> Mapping[str, Any]:
    """Drivers/tty/sysrq.c: sysrq_handle_crash."""
    return ask({"op": "write", "path": "/proc/sysrq-trigger", "text": "c"}, 6.0)


def stuck_agent(ask: Ask, _request: Mapping[str, Any]) -> Mapping[str, Any]:
    """The agent waits for kernel messages that never end; the kernel is well."""
    return ask({"op": "read", "path": "/dev/kmsg"}, 0.3)


def impatient(ask: Ask, request: Mapping[str, Any]) -> Mapping[str, Any]:
    """The step itself is what hangs (it loads kmod_hang)."""
    return ask(request, 0.6)


class Sabotaged(VmTarget):
    """A VM on which, once, a step is not what was asked for."""

    def __init__(self, machine: Machine, console: Path, step: int, sabotage: Sabotage) -> None:
        super().__init__(machine, "", console)
        self._left = step
        self._sabotage = sabotage

    def request(self, message: Mapping[str, Any], timeout: float) -> Mapping[str, Any]:
        """See Target; counts steps."""
        self._left -= message["op"] == "step"
        if self._left or message["op"] != "step":
            return super().request(message, timeout)
        return self._sabotage(super().request, message)


@dataclasses.dataclass
class Accidents:
    """A run in which each kind happened once."""

    place: World
    events: list[Event]
    threads: list[str]

    def vm_of(self, scenario: str) -> str:
        """The VM that a scenario (name#attempt) ran on."""
        began = [e for e in self.events if e["type"] == "scenario_start"]
        vm: str = next(e["vm"] for e in began if e["scenario"].endswith(f"/{scenario}"))
        return vm

    def end_of(self, vm: str) -> Event:
        """The event of a VM's end."""
        return of_type(self.events, "vm_end", vm=vm)[0]


@pytest.fixture(scope="module")
def accidents(warm: Warm) -> Iterator[Accidents]:
    """Boots four VMs, two at a time."""
    kernel, release = warm.kernel, warm.kernel.release
    chosen = profile.choose(release, kernel.config)
    with new_world(warm.options) as place, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(place.path / "run"))
        patch.setenv("TMPDIR", str(place.path / "tmp"))
        hang = _with_hang(warm.setup, warm.machine, kernel, place.path / "hang")
        output = place.path / "out"
        with Record(output) as record:
            record.event("run_start", format=1, planned=5)

            def targets(machine: Machine, step: int, sabotage: Sabotage) -> Callable[[str], Any]:
                first = [True]

                def make(name: str) -> VmTarget:
                    console = record.console(name)
                    if first.pop() if first else False:
                        return Sabotaged(machine, console, step, sabotage)
                    return VmTarget(machine, "", console)

                return make

            works = [
                Work(release, chosen, targets(warm.machine, 6, panic),
                     catalogue.select(["ops/alone", "direct/alone", "ops-regs/alone"])),
                Work(release, chosen, targets(hang, 1, impatient),
                     catalogue.select(["livepatch/alone"])),
                Work(release, chosen, targets(warm.machine, 2, stuck_agent),
                     catalogue.select(["ipmodify/alone"])),
            ]  # fmt: skip
            Schedule(works, record, 2).run()
        yield Accidents(place, read_events(output / "events.jsonl"), [])


def _with_hang(setup: Setup, machine: Machine, kernel: Any, directory: Path) -> Machine:
    """Two vCPUs, and kmod_hang in place of the first livepatch."""
    source = REPOSITORY / "tests/vm/kmod_hang"
    built = modules.build(kernel, source, setup.root, setup.store, print)
    (agent, (kmods, target)) = machine.shares
    shutil.copytree(kmods, directory)
    shutil.copyfile(built / "cohabit_hang.ko", directory / "cohabit_klp_a.ko")
    return dataclasses.replace(machine, shares=(agent, (directory, target)), cpus=2)


def test_show(accidents: Accidents) -> None:
    for e in accidents.events:
        if e["type"] in ("vm_end", "scenario_end", "vm_start", "vm_ready", "note"):
            print({k: v for k, v in e.items() if k not in ("console_tail", "backtraces", "command", "facts")})
            for l in e.get("backtraces", ()):
                print("      ", l)
    print(accidents.place.files(), accidents.place.processes())
    assert 0
