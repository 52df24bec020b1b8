# SPDX-License-Identifier: GPL-2.0-only
"""``cohabit run``: boot kernels, run scenarios, report."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

from harness import __version__
from harness.agent.abi import LANES
from harness.errors import UsageError
from harness.kernels.model import Kernel
from harness.kernels.references import check
from harness.policy import profile
from harness.report import html, jsonout, junit, ktap, text
from harness.report.model import RunModel, exit_status
from harness.report.progress import Progress
from harness.run.programs import Programs
from harness.run.record import FORMAT, Record, new_directory
from harness.run.schedule import Schedule, Work
from harness.scenario import catalogue
from harness.scenario.parse import scenario_from_json
from harness.scenario.steps import Scenario
from harness.target.vm import VmTarget

from .setup import DEFAULT_KERNEL, Setup, add_machine_options, say

EXAMPLES = """examples:
  cohabit run                                    the default scenarios on the default kernel
  cohabit run 'livepatch+f*' --kernel debian:7.2 some scenarios, by glob, on another kernel
  cohabit run --kernel debian:5.10 --kernel debian:6.1
                                                 on two kernels, and what differs between them
  cohabit run --kernel debian:5.10 --profile v6.1
                                                 hold an old kernel to a newer policy
  cohabit run pairs triples                      both matrices, all orders
  cohabit run --replay found.json                a scenario from a file
"""


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "run",
        help="boot kernels and run scenarios on them",
        description="Boots real kernels, runs scenarios on them, and says whether each step "
        "did what the ftrace policy promises.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "scenarios",
        nargs="*",
        metavar="SCENARIO",
        help="names or globs (`cohabit list`), or a whole set: pairs, triples",
    )
    parser.add_argument(
        "--kernel", action="append", metavar="REF",
        help=f"debian:6.12, debian:<release> or path:DIR; repeatable (default {DEFAULT_KERNEL})",
    )  # fmt: skip
    parser.add_argument("--all", action="store_true", help="from the whole catalogue")
    parser.add_argument(
        "--replay", action="append", type=Path, default=[], metavar="FILE",
        help="a scenario as JSON (docs/writing-scenarios.md); repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--profile", metavar="NAME", help="hold the kernels to this policy (v5.10, v6.1 ...)"
    )
    parser.add_argument(
        "--jobs", type=int, metavar="N", help="VMs at a time (default: one a host CPU, 4 at most)"
    )
    parser.add_argument(
        "--together", type=int, metavar="N", default=LANES,
        help=f"scenarios that may run side by side in a VM (default {LANES}; 1: each alone)",
    )  # fmt: skip
    add_machine_options(parser)
    output = parser.add_argument_group("output")
    output.add_argument("--format", choices=tuple(FORMATS), default="text")
    output.add_argument("--junit", type=Path, metavar="FILE", help="write JUnit XML too")
    output.add_argument("--html", type=Path, metavar="FILE", help="write an HTML page too")
    output.add_argument("--output", type=Path, metavar="DIR", help="where the run's record goes")
    parser.set_defaults(handler=run)


def render_text(model: RunModel) -> str:
    """The text report, coloured and as wide as the terminal it goes to."""
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    return text.render(model, color=colour)


FORMATS = {"text": render_text, "ktap": ktap.render, "json": jsonout.render}


def write_reports(model: RunModel, args: argparse.Namespace) -> None:
    """Prints the report and writes the files that were asked for."""
    print(FORMATS[args.format](model))
    for path, render in ((args.junit, junit.render), (args.html, html.render)):
        if path is not None:
            try:
                path.write_text(render(model), encoding="utf-8")
            except OSError as error:
                raise UsageError(f"cannot write {path}: {error.strerror}") from error
            say(f"wrote {path}")


def chosen(args: argparse.Namespace) -> tuple[Scenario, ...]:
    """The scenarios that the command line asks for."""
    found = tuple(_replay(path) for path in args.replay)
    if not found or args.scenarios or args.all:
        found = (*catalogue.select(args.scenarios, args.all), *found)
    names = [scenario.name for scenario in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(
            f"two scenarios are called {twice[0]!r}", "give the one in the file another name"
        )
    return found


def _replay(path: Path) -> Scenario:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}") from error
    return scenario_from_json(data)


def _jobs(wanted: int | None) -> int:
    if wanted is not None:
        if wanted < 1:
            raise UsageError("--jobs takes a number from 1 on")
        return wanted
    return min(len(os.sched_getaffinity(0)), 4)


def _works(
    setup: Setup, references: Sequence[str], scenarios: Sequence[Scenario],
    override: str | None, record: Record,
) -> list[Work]:  # fmt: skip
    works: list[Work] = []
    for reference in references:
        kernel = setup.kernel(reference)
        if any(work.kernel == kernel.release for work in works):
            raise UsageError(
                f"{reference} is {kernel.release}, which another --kernel names too",
                "name each kernel once",
            )
        # Build errors and a missing QEMU are to be told before anything is booted.
        setup.machine(kernel)
        chosen_profile = profile.choose(kernel.release, kernel.config, override)
        record.event(
            "kernel", kernel=kernel.release, reference=reference, release=kernel.release,
            arch=kernel.arch, origin=kernel.origin, profile=chosen_profile.name,
            profile_why=chosen_profile.why,
        )  # fmt: skip

        def make(name: str, kernel: Kernel = kernel) -> VmTarget:
            return setup.target(kernel, record.console(name))

        works.append(Work(kernel.release, chosen_profile, make, scenarios))
    return works


def run(args: argparse.Namespace) -> int:
    """The command; returns the exit status."""
    scenarios = chosen(args)
    if args.profile:
        profile.choose("6.12", {}, args.profile)
    references = args.kernel or [DEFAULT_KERNEL]
    for reference in references:
        check(reference)
    jobs = _jobs(args.jobs)
    if not 1 <= args.together <= LANES:
        raise UsageError(f"--together takes a number from 1 to {LANES}")
    setup = Setup.of(args)
    directory = args.output or new_directory(setup.store.root / "runs")
    with Progress(sys.stderr) as progress, Record(directory, (progress.feed,)) as record:
        record.event(
            "run_start",
            format=FORMAT,
            cohabit=__version__,
            argv=sys.argv[1:],
            started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            host=_host(),
            planned=len(scenarios) * len(references),
        )
        interrupted = False
        try:
            works = _works(setup, references, scenarios, args.profile, record)
            programs = Programs(setup.store.state)
            Schedule(works, record, jobs, args.together, programs).run()
        except KeyboardInterrupt:
            interrupted = True
        model = progress.model
        status = 130 if interrupted else exit_status(model, ending=True)
        record.event(
            "run_end",
            counts=model.counts(),
            steps=model.witnessed_steps(),
            exit_status=status,
            interrupted=interrupted,
        )
    write_reports(model, args)
    say(f"record: {directory}")
    return status


def _host() -> dict[str, object]:
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "memory_mb": pages >> 20,
    }
