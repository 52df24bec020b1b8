# SPDX-License-Identifier: GPL-2.0-only
"""``cohabit paths``: does what is on a function depend on how it came there?"""

from __future__ import annotations

import argparse
import collections
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.errors import InfraError, UsageError
from harness.histories import EXCEPTIONS
from harness.paths import Disagreement, Paths, Report

EXAMPLES = """examples:
  cohabit paths DIR            a run's record: pairs of histories that disagree
  cohabit paths DIR DIR -v     several runs together; those that are excepted too
  cohabit paths --json DIR     the same for a program
"""


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "paths",
        help="compare histories that led to the same attachers",
        description="Reads the records of runs and compares all steps after which the same "
        "attachers were on a function: registry record, behaviour and the errno of each next "
        "attach and detach must be the same, whatever the order that led there. Ends with 1 "
        "where two histories disagree in what is not known to depend on the past.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", nargs="+", type=Path, metavar="RUN", help="a run's directory")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="show the disagreements that are excepted"
    )
    parser.set_defaults(handler=run)


def events_of(path: Path) -> Iterator[dict[str, Any]]:
    """The events of a run: its directory or its events.jsonl.

    A last line that was cut off is left out.  Raises UsageError where there is no record,
    InfraError for a damaged one.
    """
    file = path / "events.jsonl" if path.is_dir() else path
    if not file.is_file():
        raise UsageError(f"{path} is no run's record", "it has no events.jsonl")
    with file.open(encoding="utf-8", errors="replace", newline="\n") as lines:
        for number, line in enumerate(lines, 1):
            try:
                event = json.loads(line)
                event["type"]
            except (ValueError, TypeError, KeyError) as error:
                if not line.endswith("\n"):
                    return
                raise damaged(file, f"line {number}", error) from error
            yield event


def damaged(path: Path, where: str, error: Exception) -> InfraError:
    """The error for a record that does not say what a record says."""
    return InfraError(
        f"{path}, {where}: not the record of a run of this version: {error!r}",
        "the file was changed, or another version wrote it; run again",
    )


def run(args: argparse.Namespace) -> int:
    """The command."""
    paths = Paths()
    for path in args.run:
        name = str(path) if len(args.run) > 1 else ""
        for event in events_of(path):
            try:
                paths.feed(event, name)
            except (KeyError, TypeError, ValueError) as error:
                raise damaged(path, f"event {event.get('seq')}", error) from error
    report = paths.report()
    if not report.observations:
        raise UsageError("there is nothing to compare", "the runs have no step that was done")
    print(json.dumps(to_json(report)) if args.json else text(report, args.verbose))
    return 1 if report.unexplained else 0


def to_json(report: Report) -> dict[str, Any]:
    """The report for a program."""
    return {
        "observations": report.observations,
        "places": report.places,
        "places_by_several_orders": report.several,
        "left_out": report.left_out,
        "disagreements": [d.to_json() for d in report.disagreements],
        "unexplained": len(report.unexplained),
    }


def text(report: Report, verbose: bool) -> str:
    """The report for a person."""
    lines = []
    excepted = [d for d in report.disagreements if d.excepted]
    for disagreement in [*report.unexplained, *(excepted if verbose else ())]:
        lines += [*_told(disagreement), ""]
    names = collections.Counter(name for d in excepted for name in d.excepted)
    for known in EXCEPTIONS:
        if names[known.name]:
            lines.append(f"{names[known.name]:6} pairs excepted, {known.name}: {known.reason}")
            lines.append(f"       {known.source}")
    for name, times in report.left_out.items():
        lines.append(f"{times:6} scenarios left out: they ended in the known difference {name}")
    lines.append(
        f"{report.observations} observations, {report.places} sets of attachers and questions, "
        f"{report.several} of them by several orders: "
        f"{len(report.unexplained)} pairs of histories disagree"
    )
    return "\n".join(lines)


def _told(disagreement: Disagreement) -> list[str]:
    pair = disagreement.pair
    names = ", ".join(disagreement.excepted)
    lines = [f"{pair.place} (excepted: {names})" if names else str(pair.place)]
    for history, times in zip((pair.first, pair.second), disagreement.times, strict=True):
        lines.append(f"  {history}" + (f" (and {times} more orders)" if times else ""))
    lines += [f"    {difference}" for difference in disagreement.differences]
    return lines
