# SPDX-License-Identifier: GPL-2.0-only
"""``cohabit bisect``: the commit, or the patch of a series, that changed a scenario's verdict."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import InfraError, UsageError
from harness.kernels import series, trees
from harness.kernels.model import Kernel
from harness.kernels.references import check
from harness.report.model import RunModel, read
from harness.report.views import NO_RESULT, VERDICTS
from harness.report.words import plural
from harness.run import bisect
from harness.run.bisect import Answer, Found
from harness.scenario.steps import Scenario

from .run import add_run_options, check_options, chosen, run_once
from .setup import Setup, add_machine_options, add_tree_options, say

EXAMPLES = """examples:
  cohabit bisect --tree /src/linux --good v7.2 --bad HEAD livepatch+fexit/attach:ab/detach:ab
  cohabit bisect --tree source:7.2 --series series/ livepatch+fexit/attach:ab/detach:ab
"""

#: Verdicts that say nothing about what the kernel does with the scenario.
_SILENT = NO_RESULT | {"BOOT_FAIL", "SKIP"}
_PASSED = frozenset({"PASS", "XFAIL"})


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "bisect",
        help="find the commit or the patch that changed a scenario's verdict",
        description="Builds and runs a scenario on kernels between a good and a bad one, until "
        "the first bad one is known. What does not build or boot is passed over. "
        "For a fix, --good is the older revision all the same.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "scenarios", nargs="*", metavar="SCENARIO",
        help="names or globs (`cohabit list`); of several the worst verdict counts",
    )  # fmt: skip
    kernels = parser.add_argument_group("kernels")
    kernels.add_argument(
        "--tree", required=True, metavar="REF", help="DIR or tree:DIR; with --series source:7.2 too"
    )
    kernels.add_argument("--good", metavar="REV", help="a revision before the change")
    kernels.add_argument("--bad", metavar="REV", help="a revision after it")
    kernels.add_argument(
        "--series", metavar="SERIES", help="look among these patches on top of --tree"
    )
    add_run_options(parser.add_argument_group("running"))
    add_tree_options(parser)
    add_machine_options(parser)
    parser.set_defaults(handler=run)


@dataclass(frozen=True)
class Point:
    """A kernel of the row: ``title`` for people, ``kernel`` builds it or raises InfraError.

    ``reference`` names it to other commands, where it has a name.
    """

    title: str
    kernel: Callable[[], Kernel]
    reference: str = ""


def run(args: argparse.Namespace) -> int:
    """The command; 0 if the change was found, 1 if several may be it."""
    by_series = args.series is not None
    if by_series == bool(args.good or args.bad) or bool(args.good) != bool(args.bad):
        raise UsageError("nothing to look among", "give --good and --bad, or --series")
    if not (args.scenarios or args.replay):
        raise UsageError("no scenario to judge by", "name one (`cohabit list`)")
    check_options(args)
    reference = args.tree if by_series else f"tree:{args.tree.removeprefix('tree:')}"
    check(reference)
    scenarios = chosen(args)
    setup = Setup.of(args)
    if by_series:
        points = patches(setup, reference, args.series)
    else:
        points = revisions(setup, reference, args.good, args.bad)
    say(f"{plural(len(points) - 1, 'patch' if by_series else 'commit')} to look among")
    return search(points, lambda point: _verdict(setup, point, scenarios, args))


def revisions(setup: Setup, reference: str, good: str, bad: str) -> list[Point]:
    """The good revision and all commits after it up to the bad one, oldest first."""
    directory = Path(reference.removeprefix("tree:"))
    commits = trees.revisions(directory, good, bad, setup.store)

    def point(title: str, named: str) -> Point:
        return Point(title, lambda: setup.kernel(named), named)

    return [point(good, f"{reference}@{good}")] + [
        point(f"{commit.oid[:12]} {commit.subject}", commit.reference) for commit in commits
    ]


def patches(setup: Setup, reference: str, argument: str) -> list[Point]:
    """The tree alone, then with one patch more each time."""
    tree = trees.resolve(reference, setup.store, say)
    found = series.read(argument, tree, setup.store)

    def point(title: str, of: trees.Tree, named: str = "") -> Point:
        return Point(
            title,
            lambda: setup.build(of),
            named,
        )

    patched = series.apply(tree, found)
    return [point(reference, tree, reference)] + [
        point(f"{number}/{len(found)} {patch.subject or patch.name}", after)
        for number, (patch, after) in enumerate(zip(found, patched, strict=True), 1)
    ]


def search(points: Sequence[Point], verdict: Callable[[Point], str]) -> int:
    """Finds the first of ``points`` for which ``verdict`` is no more what it was for the first.

    ``verdict`` raises InfraError for one that cannot be built.  Prints what was found;
    returns the exit status.  Raises UsageError where the ends do not differ, InfraError
    where one of them has no verdict.
    """
    if len(points) < 2:
        raise UsageError("there is nothing between the good and the bad one")
    good, bad = (_end(point, verdict) for point in (points[0], points[-1]))
    if good == bad:
        raise UsageError(
            f"the verdict is {good} at both ends", "choose ends or a scenario for which it differs"
        )

    def probe(index: int) -> Answer:
        left = f"{index} of {len(points) - 1}"
        say(f"testing {left}: {points[index].title}")
        try:
            found = verdict(points[index])
        except InfraError as error:
            say(f"  cannot be tested: {error}")
            return "skip"
        say(f"  {found}")
        return judge(found, good, bad)

    outcome = bisect.search(len(points), probe)
    _print(points, outcome, good, bad)
    return 0 if len(outcome.candidates) == 1 else 1


def _end(point: Point, verdict: Callable[[Point], str]) -> str:
    say(f"testing {point.title}")
    found = verdict(point)
    say(f"  {found}")
    if found in _SILENT:
        raise InfraError(
            f"{point.title} has no verdict: {found}", "both ends of a search must build and boot"
        )
    return found


def judge(verdict: str, good: str, bad: str) -> Answer:
    """What a verdict means between an end that is ``good`` and one that is ``bad``.

    Where one of them passes, all that pass are alike, and all that do not.
    """
    if verdict in _SILENT:
        return "skip"
    if (good in _PASSED) != (bad in _PASSED):
        return "good" if (verdict in _PASSED) == (good in _PASSED) else "bad"
    return "good" if verdict == good else "bad"


def worst(model: RunModel) -> str:
    """The verdict of a run: its worst; INFRA where nothing came of it."""
    found = {scenario.verdict for scenario in model.scenarios}
    found |= {group.verdict for group in model.group_failures()}
    found |= {vm.verdict for vm in model.vm_failures()}
    if not found or model.cut_short or model.not_started():
        return "INFRA"
    if found & _SILENT - {"SKIP"}:
        return sorted(found & _SILENT - {"SKIP"})[0]
    return min(found, key=lambda v: VERDICTS.index(v) if v in VERDICTS else -1)


def _verdict(
    setup: Setup, point: Point, scenarios: Sequence[Scenario], args: argparse.Namespace
) -> str:
    directory = run_once(setup, point.kernel(), scenarios, args, override=args.profile)
    return worst(read(directory))


def _print(points: Sequence[Point], outcome: Found, good: str, bad: str) -> None:
    first = outcome.candidates[0]
    print(f"{good} up to {points[first - 1].title}")
    if len(outcome.candidates) == 1:
        print(f"{bad} from {points[first].title}")
    else:
        print(f"{bad} from one of these; all but the last could not be tested:")
        for index in outcome.candidates:
            print(f"  {points[index].title}")
    if points[first].reference:
        again = shlex.join(["cohabit", "run", "--kernel", points[first].reference])
        print(f"look at it: {again} SCENARIO")
