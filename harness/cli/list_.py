# SPDX-License-Identifier: GPL-2.0-only
"""``cohabit list``: the scenarios."""

from __future__ import annotations

import argparse
import json

from harness.scenario import catalogue

EXAMPLES = """examples:
  cohabit list                     what `cohabit run` runs
  cohabit list --all               the whole catalogue
  cohabit list 'livepatch+fexit*'  some, with --steps what they do
  cohabit list consistency         a set that is run only where it is named
  cohabit list --json NAME         as files for `cohabit run --replay`
"""


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "list",
        help="show scenarios",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help="names, globs or sets")
    parser.add_argument("--all", action="store_true", help="the whole catalogue")
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--steps", action="store_true", help="show each scenario's steps")
    shape.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    """The command."""
    for scenario in catalogue.select(args.scenarios, args.all):
        if args.json:
            print(json.dumps(scenario.to_json()))
            continue
        print(scenario.name)
        if args.steps:
            for number, step in enumerate(scenario.steps, 1):
                print(f"  {number}. {step}")
    return 0
