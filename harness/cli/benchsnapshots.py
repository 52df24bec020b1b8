# SPDX-License-Identifier: GPL-2.0-only
"""``cohabit bench snapshots``: what a restored VM saves, and whether it can be trusted."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from harness.errors import InfraError
from harness.kernels.model import Kernel
from harness.policy import profile
from harness.run.company import Member
from harness.run.programs import Programs
from harness.run.record import Record
from harness.run.session import AccidentError, PoisonedError, Session
from harness.run.template import make_ready
from harness.scenario import catalogue
from harness.scenario.company import gather
from harness.scenario.steps import Scenario
from harness.target.snapshot import Template

from .setup import Setup, say

#: How many times faster than a boot a restore has to be.
RATIO = 8.0
#: Scenarios that take a moment, the policy that they are held to (None: the kernel's own),
#: and how they must end: a restored VM that always passes, or never, would be of no use.
KNOWN: tuple[tuple[str, str | None, str], ...] = (
    ("ops/alone/on:cohabit_f1", None, "PASS"),
    ("fentry/alone/on:cohabit_f1", None, "PASS"),
    ("direct-share+ipmodify/attach:ab/detach:ab", "v5.10", "FAIL"),
    ("direct/alone/on:cohabit_f1", None, "PASS"),
)


@dataclass
class Soak:
    """Restores in a row: their seconds, and what went wrong."""

    seconds: list[float] = field(default_factory=list)
    verdicts: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def run(args: argparse.Namespace) -> int:
    """The command; 1 where a restore is not fast enough or a verdict is wrong."""
    args.engine, args.snapshots = "direct", True
    setup = Setup.of(args)
    good = [_measure(setup, kernel, args.repeat, args.restores)
            for kernel in setup.kernels(args.kernel)]  # fmt: skip
    return 0 if all(good) else 1


def _measure(setup: Setup, kernel: Kernel, repeat: int, restores: int) -> bool:
    programs = Programs(setup.store.state, kernel.arch)
    template = setup.template(kernel, programs, say)
    if template is None:
        raise InfraError("there are no snapshots")
    machine = setup.machine(kernel)
    # Made here, if need be: no part of what is measured.
    template.get(lambda _: None)
    with tempfile.TemporaryDirectory() as name, Record(Path(name)) as record:
        boots = []
        for number in range(repeat):
            say(f"{kernel.release}: boot {number + 1} of {repeat}")
            boots.append(_boot(setup, kernel, programs, Path(name)))
        say(f"{kernel.release}: {restores} restores, a scenario on each")
        soak = _soak(setup, kernel, template, programs, record, restores)
    _, program = setup.accelerator(kernel)
    version = ".".join(map(str, program.version))
    boot, restore = statistics.median(boots), statistics.median(soak.seconds)
    print(f"kernel {kernel.release} ({kernel.arch}), {machine.accelerator.name}, QEMU {version}, "
          f"CPU {machine.cpu_model}, {machine.cpus} vCPU")  # fmt: skip
    print(f"  boot until agent, modules and BPF programs are there: {boot:.2f} s "
          f"(median of {len(boots)}; {min(boots):.2f} to {max(boots):.2f})")  # fmt: skip
    least, most = min(soak.seconds), max(soak.seconds)
    print(f"  restore to the agent's first reply at the same point: {restore:.2f} s "
          f"(median of {len(soak.seconds)}; {least:.2f} to {most:.2f})")  # fmt: skip
    print(f"  restore is {boot / restore:.1f} times faster (to be at least {RATIO:.0f})")
    found = ", ".join(f"{soak.verdicts.count(v)} {v}" for v in sorted({*soak.verdicts}))
    print(f"  {len(soak.verdicts)} restores in a row, a scenario on each: {found}; "
          f"wrong verdicts: {len(soak.wrong)}")  # fmt: skip
    for line in soak.wrong:
        print(f"    {line}")
    return boot / restore >= RATIO and not soak.wrong


def _boot(setup: Setup, kernel: Kernel, programs: Programs, directory: Path) -> float:
    target = setup.target(kernel, directory / "console-boot")
    began = time.monotonic()
    try:
        target.start()
        make_ready(target, kernel.release, programs)
        return time.monotonic() - began
    finally:
        target.stop()


def _known(kernel: Kernel) -> Iterator[tuple[Scenario, profile.Profile, str]]:
    while True:
        for name, held_to, verdict in KNOWN:
            (scenario,) = catalogue.select([name])
            chosen = profile.choose(kernel.release, kernel.config, held_to, kernel.arch)
            yield scenario, chosen, verdict


def _soak(
    setup: Setup, kernel: Kernel, template: Template, programs: Programs, record: Record, count: int
) -> Soak:
    soak = Soak()
    for number, (scenario, chosen, wanted) in zip(range(count), _known(kernel), strict=False):
        name = f"vm{number}"
        target = setup.target(kernel, record.console(name), template=template)
        session = Session(target, name, kernel.release, chosen, record, programs, kernel.notes)
        member = None
        try:
            session.start()
            soak.seconds.append(target.started_s)
            # On a function that this kernel has, where any will do.
            (placed,) = gather(scenario, [], bool(session.facts["module_btf"]), 1)
            member = Member(placed, f"{number}/{scenario.name}")
            session.run([member])
        except (AccidentError, PoisonedError) as error:
            soak.wrong.append(f"{name}: {scenario.name}: {error}")
        finally:
            target.stop()
        if not session.restored:
            raise InfraError("a VM was booted where it should have been restored: see the notes")
        verdict = (member and member.verdict) or "no verdict"
        soak.verdicts.append(verdict)
        if verdict != wanted:
            soak.wrong.append(f"{name}: {scenario.name}: {verdict}, not {wanted}")
    return soak
