# SPDX-License-Identifier: GPL-2.0-only
"""``cohabit kernels``: what is in the cache, fetching and pruning."""

from __future__ import annotations

import argparse
import datetime

from harness.errors import UsageError
from harness.kernels.store import Entry, Store, default_root

from .setup import DEFAULT_KERNEL, Setup, add_machine_options, say

EXAMPLES = """examples:
  cohabit kernels                             what is cached, with size and origin
  cohabit kernels fetch debian:6.12 debian:7.2  get kernels ready (then offline works)
  cohabit kernels prune                       remove everything that is not in use
  cohabit kernels prune --unused-for 30       what nothing used for 30 days
"""


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "kernels",
        help="list, fetch and prune cached kernels",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(handler=list_)
    actions = parser.add_subparsers(metavar="ACTION", title="actions")
    actions.add_parser("list", help="what is cached (the default)").set_defaults(handler=list_)
    fetch_parser = actions.add_parser("fetch", help="fetch kernels and build the modules for them")
    fetch_parser.add_argument("reference", nargs="+", metavar="REF")
    add_machine_options(fetch_parser)
    fetch_parser.set_defaults(handler=fetch)
    prune_parser = actions.add_parser("prune", help="remove what is not in use")
    prune_parser.add_argument(
        "--unused-for", type=float, default=0.0, metavar="DAYS", help="keep what was used since"
    )
    prune_parser.set_defaults(handler=prune)


def _size(size: int) -> str:
    return f"{size / 1e6:.0f} MB"


def _line(entry: Entry) -> str:
    day = datetime.datetime.fromtimestamp(entry.used, datetime.UTC).date().isoformat()
    origin = entry.inputs.get("origin", "")
    return f"{entry.kind:<8} {_size(entry.size):>8}  used {day}  {entry.label}  {origin}".rstrip()


def list_(_args: argparse.Namespace) -> int:
    """Lists the cache."""
    entries = Store(default_root()).entries()
    for entry in sorted(entries, key=lambda e: (e.kind, e.label)):
        print(_line(entry))
    if not any(entry.kind == "kernel" for entry in entries):
        say(f"no kernel is cached yet; `cohabit kernels fetch {DEFAULT_KERNEL}` gets one")
    print(f"{_size(sum(entry.size for entry in entries))} in {default_root()}")
    return 0


def fetch(args: argparse.Namespace) -> int:
    """Fetches kernels and all that a run on them needs."""
    setup = Setup.of(args)
    for reference in args.reference:
        kernel = setup.kernel(reference)
        setup.machine(kernel)
        print(f"{reference}: {kernel.release} ({kernel.origin})")
    return 0


def prune(args: argparse.Namespace) -> int:
    """Removes entries; says what was removed and what is in use."""
    if not args.unused_for >= 0:  # not a number either
        raise UsageError("--unused-for takes days, from 0 on")
    removed, kept = Store(default_root()).prune(args.unused_for * 86400)
    for entry in removed:
        print(f"removed {_line(entry)}")
    for entry in kept:
        print(f"in use  {_line(entry)}")
    print(f"{_size(sum(entry.size for entry in removed))} freed")
    return 0
