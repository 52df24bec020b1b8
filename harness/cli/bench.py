# SPDX-License-Identifier: GPL-2.0-only
"""``cohabit bench``: what the harness adds to what the kernel takes, as ratios."""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.kernels.model import Kernel
from harness.policy import profile
from harness.run.record import Record
from harness.run.schedule import Schedule, Work
from harness.run.session import Session
from harness.scenario import catalogue
from harness.target.vm import VmTarget
from vm.machine import GUEST
from vm.process import bare_boot

from .setup import DEFAULT_KERNEL, Setup, add_machine_options, say

EXAMPLES = """examples:
  cohabit bench                        one run on the default kernel
  cohabit bench --kernel debian:7.2 'ops*'
"""


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "bench",
        help="measure the harness against a bare boot and the guest's own time",
        description="Boots the kernel bare (vng, the same root file system) and with the agent, "
        "runs scenarios, and prints ratios and shares. They compare things of one run on one "
        "machine; seconds from elsewhere say nothing.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help="names or globs")
    parser.add_argument("--kernel", default=DEFAULT_KERNEL, metavar="REF")
    parser.add_argument(
        "--repeat", type=int, default=3, metavar="N", help="boots of each kind (the median counts)"
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

    def feed(self, event: Mapping[str, Any]) -> None:
        """Takes an event."""
        kind = event["type"]
        if kind == "vm_ready":
            self.boots.append(event["boot_s"])
        elif kind == "scenario_start" and self.began is None:
            self.began = event["t"]
        elif kind == "scenario_end":
            self.scenarios += event["verdict"] == "PASS"
            self.ended = event["t"]
        elif kind == "step_end":
            self.steps += 1
            self.guest += event["agent_s"]
            self.user += event["user_s"]

    @property
    def wall(self) -> float:
        """Seconds from the first scenario's start to the last one's end."""
        return self.ended - (self.began or 0.0)


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def run(args: argparse.Namespace) -> int:
    """The command."""
    setup = Setup.of(args)
    kernel = setup.kernel(args.kernel)
    machine = setup.machine(kernel)
    bare_machine = dataclasses.replace(
        machine, layers=tuple(layer for layer in machine.layers if layer != GUEST), shares=()
    )
    chosen = profile.choose(kernel.release, kernel.config)
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
        Schedule([Work(kernel.release, chosen, make, scenarios)], record, 1).run()
    _, program = setup.accelerator(kernel)
    version = ".".join(str(part) for part in program.version)
    print(f"kernel {kernel.release}, {machine.accelerator.name}, QEMU {version}, "
          f"{machine.cpus} vCPU")  # fmt: skip
    print(f"boot to agent / bare vng boot: {_median(clock.boots) / _median(bare):.2f} "
          f"(medians of {len(clock.boots)} and {len(bare)})")  # fmt: skip
    if not clock.scenarios:
        print("no scenario passed")
        return 1
    outside = 1 - (clock.guest - clock.user) / clock.wall
    print(f"scenarios a second: {clock.scenarios / clock.wall:.2f} "
          f"({clock.scenarios} passed, {clock.steps} witnessed steps)")  # fmt: skip
    print(f"time outside the guest kernel: {100 * outside:.0f} % "
          f"(of it in the agent: {100 * clock.user / clock.wall:.0f} %)")  # fmt: skip
    return 0


def _boot(setup: Setup, kernel: Kernel, chosen: profile.Profile, record: Record, name: str) -> None:
    target = setup.target(kernel, record.console(name))
    try:
        Session(target, name, kernel.release, chosen, record).start()
    finally:
        target.stop()
