# SPDX-License-Identifier: GPL-2.0-only
"""``cohabit run``: boot kernels, run scenarios, report."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import functools
import json
import os
import platform
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from harness import __version__
from harness.agent.abi import LANES
from harness.arch import ARCHES, host
from harness.errors import CohabitError, InfraError, UsageError
from harness.kernels import decode
from harness.kernels.model import Kernel
from harness.kernels.references import check
from harness.policy import profile
from harness.report import html, jsonout, junit, ktap, text
from harness.report.model import RunModel, exit_status
from harness.report.progress import Progress
from harness.run.decoding import Booted, decode_reports
from harness.run.programs import Programs
from harness.run.record import FORMAT, Record, new_directory
from harness.run.schedule import Schedule, Work
from harness.scenario import catalogue
from harness.scenario.parse import scenario_from_json
from harness.scenario.steps import Scenario
from harness.target.vm import VmTarget
from vm import rootfs

from . import stirring
from .setup import DEFAULT_KERNELS, Setup, add_machine_options, add_tree_options, say

EXAMPLES = """examples:
  cohabit run                                    the default scenarios on the default kernel
  cohabit run 'livepatch+f*' --kernel debian:7.2 some scenarios, by glob, on another kernel
  cohabit run --kernel debian:5.10 --kernel debian:6.1
                                                 on two kernels, and what differs between them
  cohabit run --kernel debian:5.10 --profile v6.1
                                                 hold an old kernel to a newer policy
  cohabit run pairs triples                      both matrices, all orders
  cohabit run --replay found.json                a scenario from a file
  cohabit run consistency                        functions called without a pause while they change
  cohabit run 'consistency/ops/*' --calls 5000000 --patches 5000 --seconds 600
                                                 the same for longer: says more
  cohabit run soak --flavour debug               all that changes code at once, for half an hour
  git bisect run cohabit run --bisect --kernel tree:. NAME
                                                 find the commit that broke a scenario
"""

#: What `git bisect run` takes for "this one cannot be tested", and for "stop".
GIT_SKIP, GIT_STOP = 125, 255


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
        help=f"names or globs (`cohabit list`), or a whole set: {', '.join(catalogue.SETS)}",
    )
    parser.add_argument(
        "--kernel", action="append", metavar="REF",
        help="debian:6.12, debian:<release>, path:DIR, tree:DIR, tree:DIR@REV or source:7.2; "
        f"repeatable (default {DEFAULT_KERNELS[host().name]})",
    )  # fmt: skip
    add_run_options(parser)
    stirring.add_options(parser)
    parser.add_argument(
        "--bisect", action="store_true",
        help="end as `git bisect run` wants it: 0 good, 1 bad, 125 where this cannot be told",
    )  # fmt: skip
    add_tree_options(parser).add_argument(
        "--series", default="", metavar="PATCHES",
        help="apply these first: a file, directory, mbox, git:DIR:A..B or b4:MESSAGE-ID",
    )  # fmt: skip
    add_machine_options(parser)
    output = parser.add_argument_group("output")
    output.add_argument("--format", choices=tuple(FORMATS), default="text")
    output.add_argument("--junit", type=Path, metavar="FILE", help="write JUnit XML too")
    output.add_argument("--html", type=Path, metavar="FILE", help="write an HTML page too")
    output.add_argument("--output", type=Path, metavar="DIR", help="where the run's record goes")
    parser.set_defaults(handler=run)


def add_run_options(parser: argparse._ActionsContainer) -> None:
    """The options that say which scenarios to run, and how: of each command that runs some."""
    parser.add_argument("--all", action="store_true", help="from the whole catalogue")
    parser.add_argument(
        "--replay", action="append", type=Path, default=[], metavar="FILE",
        help="a scenario as JSON (docs/writing-scenarios.md); repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--profile", metavar="NAME", help="hold the kernels to this policy (v5.10, v6.1 ...)"
    )
    parser.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="VMs at a time (default: one a host CPU, two where they come from snapshots)",
    )
    parser.add_argument(
        "--together", type=int, metavar="N", default=LANES,
        help=f"scenarios that may run side by side in a VM (default {LANES}; 1: each alone)",
    )  # fmt: skip


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
    return stirring.overridden(found, args)


def _replay(path: Path) -> Scenario:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}") from error
    return scenario_from_json(data)


def check_options(args: argparse.Namespace) -> None:
    """Raises UsageError for a value of add_run_options that is none."""
    if args.profile:
        profile.choose("6.12", {}, args.profile)
    if args.jobs is not None and args.jobs < 1:
        raise UsageError("--jobs takes a number from 1 on")
    if not 1 <= args.together <= LANES:
        raise UsageError(f"--together takes a number from 1 to {LANES}")


def _works(
    setup: Setup, kernels: Iterable[tuple[str, Kernel]], scenarios: Sequence[Scenario],
    override: str | None, record: Record
) -> tuple[list[Work], list[Booted]]:  # fmt: skip
    works: list[Work] = []
    booted: list[Booted] = []
    programs = {arch: Programs(setup.store.state, arch) for arch in ARCHES}
    for reference, kernel in kernels:
        if any(one.kernel.release == kernel.release for one in booted):
            raise UsageError(
                f"{reference} is {kernel.release}, which another --kernel names too",
                "name each kernel once",
            )
        # Build errors, and a QEMU that is missing or will not do, are to be told before
        # anything is booted.
        lists = boots(scenarios, kernel.arch)
        for boot, cpus in lists:
            setup.machine(kernel, boot, cpus)
        chosen_profile = profile.choose(kernel.release, kernel.config, override, kernel.arch)
        there = sum(len(group) for group in lists.values())
        record.event(
            "kernel", kernel=kernel.release, reference=reference, release=kernel.release,
            arch=kernel.arch, origin=kernel.origin, profile=chosen_profile.name,
            profile_why=chosen_profile.why, image_bytes=kernel.image.stat().st_size,
            options=list(kernel.options), config=profile.options(kernel.config),
            left_out=len(scenarios) - there,
        )  # fmt: skip
        for wants, group in lists.items():
            compiled = programs[kernel.arch]
            works.append(_work(setup, kernel, chosen_profile, compiled, wants, group, record))
        booted.append(Booted(kernel, setup.kmods(kernel)))
    if not works:
        arches = sorted({s.arch for s in scenarios if s.arch})
        raise UsageError(
            f"all these scenarios are for {' or '.join(arches)}", f"add --arch {','.join(arches)}"
        )
    return works, booted


#: What a VM must have for scenarios: words on the kernel's command line, and virtual CPUs.
Wants = tuple[tuple[str, ...], int]


def boots(scenarios: Sequence[Scenario], arch: str) -> dict[Wants, list[Scenario]]:
    """The scenarios that are for an architecture, by what their VM must have."""
    found: dict[Wants, list[Scenario]] = {}
    for scenario in scenarios:
        if scenario.arch in ("", arch):
            found.setdefault((scenario.boot, scenario.cpus), []).append(scenario)
    return found


def _work(
    setup: Setup, kernel: Kernel, chosen: profile.Profile, programs: Programs,
    wants: Wants, scenarios: Sequence[Scenario], record: Record,
) -> Work:  # fmt: skip
    """What is to be run on a kernel that is booted in one way."""
    boot, cpus = wants
    template = setup.template(kernel, programs, record.note, boot, cpus)

    def make(name: str) -> VmTarget:
        return setup.target(kernel, record.console(name), boot, template, cpus=cpus)

    def make_cold(name: str) -> VmTarget:
        why = "to confirm a failure"
        return setup.target(kernel, record.console(name), boot, why=why, cpus=cpus)

    return Work(
        kernel.release, chosen, make, scenarios, kernel.notes, programs, make_cold,
        max(cpus, setup.cpus) if cpus > 1 else 1,
    )  # fmt: skip


def _decoder(setup: Setup, kernel: Kernel, modules: Path, mountpoint: Path) -> decode.Decoder:
    builder = rootfs.builder_root(setup.store, say, ARCHES[kernel.arch])
    return decode.of_kernel(kernel, modules, builder, mountpoint)


def perform(
    setup: Setup, kernels: Iterable[tuple[str, Kernel]], scenarios: Sequence[Scenario],
    args: argparse.Namespace, directory: Path, planned: int, override: str | None,
) -> tuple[RunModel, int]:  # fmt: skip
    """Makes one run, recorded in ``directory``; returns it with its exit status.

    ``kernels``, references with what they name, are asked for one by one, after the
    record has begun; ``planned`` scenarios there are over all of them.  ``override`` is a
    profile's name or None.  ``args`` has the values of ``add_run_options``.
    """
    with Progress(sys.stderr) as progress, Record(directory, (progress.feed,)) as record:
        record.event(
            "run_start",
            format=FORMAT,
            cohabit=__version__,
            argv=sys.argv[1:],
            started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            host=_host(),
            planned=planned,
        )
        interrupted = False
        try:
            works, booted = _works(setup, kernels, scenarios, override, record)
            jobs = setup.jobs(args.jobs, [one.kernel for one in booted])
            Schedule(works, record, jobs, args.together).run()
            decode_reports(record, progress.model, booted, functools.partial(_decoder, setup))
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
    return model, status


def run_once(
    setup: Setup, kernel: Kernel, scenarios: Sequence[Scenario], args: argparse.Namespace,
    directory: Path | None = None, override: str | None = None,
) -> Path:  # fmt: skip
    """Runs scenarios on one kernel for another command; returns the record's directory.

    The record goes to ``directory`` or to a new one.  Raises KeyboardInterrupt, with the
    record complete, when the run was interrupted.
    """
    directory = directory or new_directory(setup.store.root / "runs")
    named = [(kernel.reference, kernel)]
    _, status = perform(setup, named, scenarios, args, directory, len(scenarios), override)
    say(f"record: {directory}")
    if status == 130:
        raise KeyboardInterrupt
    return directory


def run(args: argparse.Namespace) -> int:
    """The command; returns the exit status."""
    with _for_git() if args.bisect else contextlib.nullcontext():
        model, status = _run(args)
        return git_status(model, status) if args.bisect else status


def _run(args: argparse.Namespace) -> tuple[RunModel, int]:
    scenarios = chosen(args)
    check_options(args)
    references = args.kernel or [None]
    for reference in args.kernel or ():
        check(reference)
    setup = Setup.of(args)
    directory = args.output or new_directory(setup.store.root / "runs")
    kernels = (
        (kernel.reference, kernel)
        for reference in references
        for kernel in setup.kernels(reference, args.series)
    )
    planned = len(scenarios) * len(references) * max(1, len(setup.arches))
    model, status = perform(setup, kernels, scenarios, args, directory, planned, args.profile)
    write_reports(model, args)
    say(f"record: {directory}")
    return model, status


def git_status(model: RunModel, status: int) -> int:
    """The status of a run for `git bisect run`, from the one it has otherwise.

    A kernel that did not boot, or that nothing is known of, says nothing about the change
    that is looked for.
    """
    if status == 3 or "BOOT_FAIL" in model.counts():
        return GIT_SKIP
    return status


@contextlib.contextmanager
def _for_git() -> Iterator[None]:
    """Makes errors end as `git bisect run` wants it: none of them is a bad revision."""
    try:
        yield
    except OSError as error:
        failed = InfraError(f"{error.strerror or error}")
        failed.exit_status = GIT_SKIP
        raise failed from error
    except CohabitError as error:
        error.exit_status = GIT_STOP if isinstance(error, UsageError) else GIT_SKIP
        raise


def _host() -> dict[str, object]:
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "memory_mb": pages >> 20,
    }
