# SPDX-License-Identifier: GPL-2.0-only
"""``cohabit compare``: what one kernel does otherwise than another, scenario by scenario."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from harness.errors import UsageError
from harness.kernels.references import check
from harness.policy import profile
from harness.report import compare, comparehtml, compareread, comparetext
from harness.report.compare import Comparison, Surprise

from .run import add_run_options, check_options, chosen, run_once
from .setup import Setup, add_machine_options, add_tree_options, say

EXAMPLES = """examples:
  cohabit compare --base debian:6.12 --head debian:7.2 'livepatch+*'
                                         two kernels, some scenarios
  cohabit compare --tree tree:/src/linux --series fix.patch
                                         a tree, and the tree with a series
  cohabit compare RUN RUN --ids          two runs that are over; one line a change
  cohabit compare RUN@7.2 RUN@7.3        two kernels of a run
"""


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "compare",
        help="what changes between two kernels, or with a series of patches",
        description="Runs the same scenarios on two kernels and says what changed: fixed, broken, "
        "different though both pass, new kernel messages. The text fits a mail.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "what", nargs="*", metavar="RUN|SCENARIO",
        help="with kernels: the scenarios (`cohabit list`); without: the records of two runs",
    )  # fmt: skip
    kernels = parser.add_argument_group("kernels")
    kernels.add_argument("--base", metavar="REF", help="the kernel to compare with")
    kernels.add_argument("--head", metavar="REF", help="the kernel that is judged")
    kernels.add_argument(
        "--tree", metavar="REF", help="a source tree (tree:DIR, source:7.2): the base"
    )
    kernels.add_argument(
        "--series", metavar="SERIES", help="patches on top of --tree: that is the head"
    )
    kernels.add_argument(
        "--head-profile", metavar="NAME",
        help="hold the head to this policy, where a series is meant to change it",
    )  # fmt: skip
    running = parser.add_argument_group("running")
    add_run_options(running)
    running.add_argument(
        "--output", type=Path, metavar="DIR", help="where the two records go: DIR/base, DIR/head"
    )
    add_tree_options(parser)
    add_machine_options(parser)
    result = parser.add_argument_group("result")
    result.add_argument(
        "--expect", type=Path, metavar="FILE",
        help="the changes that are meant, one a line (docs/compare.md); "
        "status 0 only if exactly these happened",
    )  # fmt: skip
    form = result.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="JSON in place of text")
    form.add_argument(
        "--ids", action="store_true", help="only one line a change, as --expect takes them"
    )
    result.add_argument("--html", type=Path, metavar="FILE", help="write an HTML page too")
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    """The command; 0, 1 or 3 as docs/compare.md has it."""
    # What is wrong with the file is to be told before an hour of building and running.
    lines = None if args.expect is None else _expectations(args.expect)
    if any((args.base, args.head, args.tree, args.series)):
        runs = [compareread.read(record) for record in _run_both(args)]
        comparison = compare.compare(runs[0], runs[1])
    else:
        comparison = _recorded(args)
    surprise = None if lines is None else compare.unexpected(comparison, lines)
    _show(comparison, surprise, args)
    return compare.exit_status(comparison, surprise)


def _show(comparison: Comparison, surprise: Surprise | None, args: argparse.Namespace) -> None:
    if args.json:
        print(json.dumps(compare.to_json(comparison, surprise), indent=1))
    elif args.ids:
        for change in comparison.changes:
            if change.kind != "untested":
                print(change.id)
    else:
        print(comparetext.render_text(comparison, surprise), end="")
    if args.html is not None:
        try:
            args.html.write_text(comparehtml.render(comparison, surprise), encoding="utf-8")
        except OSError as error:
            raise UsageError(f"cannot write {args.html}: {error.strerror}") from error
        say(f"wrote {args.html}")


def _expectations(path: Path) -> tuple[str, ...]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UsageError(f"cannot read {path}: {why}") from error
    return compare.expectations(text, str(path))


# --- two runs that are over -------------------------------------------------------------------


def _recorded(args: argparse.Namespace) -> Comparison:
    if len(args.what) != 2:
        raise UsageError(
            "nothing to compare",
            "give --base and --head, --tree and --series, or the records of two runs",
        )
    (base, of_base), (head, of_head) = map(_record, args.what)
    first = compareread.read(base)
    second = first if head == base else compareread.read(head)
    return compare.compare(first, second, (of_base, of_head))


def _record(text: str) -> tuple[Path, str]:
    """``RUN`` or ``RUN@RELEASE``: the record, and the beginning of the kernel's release."""
    path, release = Path(text), ""
    if not path.exists() and "@" in text:
        name, _, release = text.rpartition("@")
        path = Path(name)
    if not (path / "events.jsonl" if path.is_dir() else path).is_file():
        raise UsageError(f"{path} is no run's record", "it has no events.jsonl")
    return path, release


# --- two kernels ------------------------------------------------------------------------------


def _run_both(args: argparse.Namespace) -> list[Path]:
    """Makes the two runs; returns their records, the base's first."""
    base, head = _references(args)
    check_options(args)
    if args.head_profile:
        profile.choose("6.12", {}, args.head_profile)
    for reference in {base, head}:
        check(reference)
    args.scenarios = args.what
    scenarios = chosen(args)
    setup = Setup.of(args)
    # Both are there before anything boots: the user may go on working in the tree.
    kernels = [setup.kernel(base), setup.kernel(head, args.series or "")]
    profiles = [args.profile, args.head_profile or args.profile]
    for kernel in kernels:
        setup.machine(kernel)
    records = []
    for name, kernel, override in zip(("base", "head"), kernels, profiles, strict=True):
        say(f"{name}: {kernel.reference}")
        directory = args.output and args.output / name
        records.append(run_once(setup, kernel, scenarios, args, directory, override))
    return records


def _references(args: argparse.Namespace) -> tuple[str, str]:
    if args.tree or args.series:
        if not (args.tree and args.series) or args.base or args.head:
            raise UsageError(
                "--tree and --series belong together, without --base and --head",
                "the tree is the base, the tree with the series the head",
            )
        return args.tree, args.tree
    if not (args.base and args.head):
        raise UsageError("--base and --head belong together", "name two kernels")
    return args.base, args.head
