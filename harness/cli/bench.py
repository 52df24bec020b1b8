# SPDX-License-Identifier: GPL-2.0-only
"""``cohabit bench``: what the harness adds to what the kernel takes, as ratios.

And how fast it is beside the kernel's own selftests/livepatch on the same kernel.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.arch import named
from harness.errors import InfraError
from harness.kernels import selftests
from harness.kernels.model import Kernel
from harness.kernels.selftests import Selftests
from harness.policy import profile
from harness.run.programs import Programs
from harness.run.record import Record
from harness.run.schedule import Schedule, Work
from harness.run.selftests import Rate
from harness.run.selftests import run as run_scripts
from harness.run.session import Session
from harness.scenario import catalogue
from harness.target.vm import VmTarget
from vm.machine import GUEST, Machine
from vm.process import bare_boot

from . import benchsnapshots
from .setup import Setup, add_machine_options, positive, say

EXAMPLES = """examples:
  cohabit bench                        one run on the default kernel
  cohabit bench --kernel debian:7.2 'ops*'
  cohabit bench --no-selftests         without fetching the kernel's source
  cohabit bench snapshots --arch x86_64,arm64
                                       VMs from snapshots against VMs that are booted
"""


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "bench",
        help="measure the harness against a bare boot and the guest's own time",
        description="Boots the kernel bare (vng, the same root file system) and with the agent, "
        "runs scenarios and then the kernel's own selftests/livepatch (from Debian's linux-source "
        "package, about 150 MB, fetched once), and prints ratios and shares. They compare things "
        "of one run on one machine; seconds from elsewhere say nothing.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "scenarios", nargs="*", metavar="SCENARIO",
        help="names or globs; or `snapshots`: measure these instead",
    )  # fmt: skip
    parser.add_argument(
        "--restores", type=positive, default=100, metavar="N",
        help="with `snapshots`: how many VMs are restored in a row",
    )  # fmt: skip
    parser.add_argument("--kernel", metavar="REF")
    parser.add_argument(
        "--repeat",
        type=positive,
        default=3,
        metavar="N",
        help="boots of each kind (the median counts)",
    )
    parser.add_argument(
        "--no-selftests", action="store_true", help="leave out the kernel's own selftests/livepatch"
    )
    add_machine_options(parser)
    parser.set_defaults(handler=run)


@dataclasses.dataclass
class Clock:
    """Adds up times from events as they come."""

    scenarios: int = 0
    steps: int = 0
    began: float | None = None
    ended: float = 0.0
    guest: float = 0.0
    user: float = 0.0
    boots: list[float] = dataclasses.field(default_factory=list)
    #: Of each VM that ran scenarios, when its first began and its last ended.
    spans: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    _vms: dict[str, str] = dataclasses.field(default_factory=dict)

    def feed(self, event: Mapping[str, Any]) -> None:
        """Takes an event."""
        kind = event["type"]
        if kind == "vm_ready":
            self.boots.append(event["boot_s"])
        elif kind == "scenario_start":
            self.began = event["t"] if self.began is None else self.began
            self.spans.setdefault(event["vm"], [event["t"], event["t"]])
            self._vms[event["scenario"]] = event["vm"]
        elif kind == "scenario_end":
            self.scenarios += event["verdict"] == "PASS"
            self.ended = event["t"]
            self.spans[self._vms[event["scenario"]]][1] = event["t"]
        elif kind == "step_end":
            self.steps += 1
            self.guest += event["agent_s"]
            self.user += event["user_s"]

    @property
    def wall(self) -> float:
        """Seconds from the first scenario's start to the last one's end."""
        return self.ended - (self.began or 0.0)

    @property
    def inside(self) -> float:
        """Of these the seconds in which a VM was there: without the boots in between."""
        return sum(last - first for first, last in self.spans.values())


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def run(args: argparse.Namespace) -> int:
    """The command."""
    if args.scenarios == ["snapshots"]:
        return benchsnapshots.run(args)
    # What a bare boot and the selftests are compared with.
    args.engine = "virtme"
    setup = Setup.of(args)
    setup.by_virtme()
    kernel = setup.kernel(args.kernel)
    machine = setup.machine(kernel)
    # What can't be fetched or built is to be told before anything is booted.
    theirs = None if args.no_selftests else _selftests(setup, kernel)
    bare_machine = dataclasses.replace(
        machine, layers=tuple(layer for layer in machine.layers if layer != GUEST), shares=()
    )
    chosen = profile.choose(kernel.release, kernel.config, arch=kernel.arch)
    clock = Clock()
    bare = []
    with (
        tempfile.TemporaryDirectory() as name,
        Record(Path(name), (clock.feed,)) as record,
    ):
        for number in range(1, args.repeat + 1):
            say(f"boot {number} of {args.repeat}: bare vng, then with the agent")
            bare.append(bare_boot(bare_machine))
            _boot(setup, kernel, chosen, record, f"boot{number}")

        def make(vm: str) -> VmTarget:
            return setup.target(kernel, record.console(vm))

        scenarios = catalogue.select(args.scenarios)
        say(f"{len(scenarios)} scenarios, one VM")
        programs = Programs(setup.store.state, kernel.arch)
        Schedule(
            [Work(kernel.release, chosen, make, scenarios, programs=programs)],
            record,
            1,
        ).run()
        rate = _rate(setup, kernel, machine, theirs, record) if theirs else None
    _, program = setup.accelerator(kernel)
    version = ".".join(str(part) for part in program.version)
    print(f"kernel {kernel.release}, {machine.accelerator.name}, QEMU {version}, "
          f"{machine.cpus} vCPU")  # fmt: skip
    print(f"boot to agent / bare vng boot: {_median(clock.boots) / _median(bare):.2f} "
          f"(medians of {len(clock.boots)} and {len(bare)})")  # fmt: skip
    if not clock.scenarios:
        print("no scenario passed")
        return 1
    scenarios_a_second, steps_a_second = clock.scenarios / clock.wall, clock.steps / clock.wall
    print(f"scenarios a second inside the guest: {clock.scenarios / clock.inside:.2f} "
          f"({clock.scenarios} passed, {clock.steps} witnessed steps)")  # fmt: skip
    print(f"of that time in the guest's kernel: "
          f"{100 * (clock.guest - clock.user) / clock.inside:.0f} %, in the agent: "
          f"{100 * clock.user / clock.inside:.0f} %")  # fmt: skip
    print(f"scenarios a second with the boots that replace lost VMs: {scenarios_a_second:.2f} "
          f"({len(clock.spans)} VMs)")  # fmt: skip
    if theirs is None or rate is None:
        return 0
    if not rate.tests:
        print("none of selftests/livepatch passed")
        return 1
    print(f"selftests/livepatch, tests a second: {rate.a_second:.2f} "
          f"({rate.tests} passed, {theirs.source})")  # fmt: skip
    print(f"against them: {scenarios_a_second / rate.a_second:.1f} times as many scenarios, "
          f"{steps_a_second / rate.a_second:.1f} times as many witnessed steps "
          f"({steps_a_second:.2f} a second)")  # fmt: skip
    return 0


def _selftests(setup: Setup, kernel: Kernel) -> Selftests:
    try:
        return selftests.prepare(kernel, setup.root(named(kernel.arch)), setup.store, say)
    except InfraError as error:
        remedies = (error.remedy, "or leave the comparison out: --no-selftests")
        raise InfraError(error.message, "\n  ".join(filter(None, remedies))) from error


def _rate(
    setup: Setup, kernel: Kernel, machine: Machine, theirs: Selftests, record: Record
) -> Rate:
    """What the selftests do in a VM like those of the scenarios."""
    machine = theirs.add_to(machine)
    _, program = setup.accelerator(kernel)
    version = ".".join(str(part) for part in program.version)

    def make(name: str) -> VmTarget:
        return VmTarget(machine, version, record.console(name))

    say(f"{len(theirs.scripts)} scripts of {theirs.source}")
    return Rate.of(run_scripts(make, theirs.scripts, say))


def _boot(setup: Setup, kernel: Kernel, chosen: profile.Profile, record: Record, name: str) -> None:
    target = setup.target(kernel, record.console(name))
    try:
        Session(target, name, kernel.release, chosen, record, Programs()).start()
    finally:
        target.stop()
