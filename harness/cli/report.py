# SPDX-License-Identifier: GPL-2.0-only
"""``cohabit report``: a report of a run that is over (or was cut short)."""

from __future__ import annotations

import argparse
from pathlib import Path

from harness.errors import UsageError
from harness.kernels.store import default_root
from harness.report.model import exit_status, read

from .run import FORMATS, write_reports

EXAMPLES = """examples:
  cohabit report                       the newest run
  cohabit report DIR --html page.html  a run's record as one HTML page
  cohabit report --format ktap         for a CI
"""


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "report",
        help="report on a run's record",
        description="Reports from a run's record; ends with the status that the run ended with.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", nargs="?", type=Path, metavar="RUN", help="the run's directory")
    parser.add_argument("--format", choices=tuple(FORMATS), default="text")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write an HTML page")
    parser.add_argument("--junit", type=Path, metavar="FILE", help="write JUnit XML")
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    """The command."""
    directory = args.run or _newest(default_root() / "runs")
    events = directory / "events.jsonl" if directory.is_dir() else directory
    if not events.is_file():
        raise UsageError(f"{directory} is no run's record", "it has no events.jsonl")
    model = read(events)
    write_reports(model, args)
    return exit_status(model)


def _newest(runs: Path) -> Path:
    found = sorted(runs.glob("*/events.jsonl"))
    if not found:
        raise UsageError("there is no run to report on", "`cohabit run` makes one")
    return found[-1].parent
