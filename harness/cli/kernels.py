# SPDX-License-Identifier: GPL-2.0-only
"""``cohabit kernels``: what is in the cache, fetching and pruning."""

from __future__ import annotations

import argparse
import datetime

from harness.arch import host
from harness.errors import UsageError
from harness.kernels import workspace
from harness.kernels.store import Entry, Store, default_root
from harness.kernels.workspace import Scratch

from .setup import DEFAULT_KERNELS, Setup, add_machine_options, say

EXAMPLES = """examples:
  cohabit kernels                             what is cached, with size and origin
  cohabit kernels fetch debian:6.12 debian:7.2  get kernels ready (then offline works)
  cohabit kernels prune                       remove everything that is not in use: the next
                                              run fetches, the next build begins from nothing
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
    prune_parser = actions.add_parser(
        "prune",
        help="remove what is not in use",
        description="Removes what no running cohabit uses: kernels, root file systems, QEMU, "
        "modules, and what builds from trees work in (docs/kernels.md).",
    )
    prune_parser.add_argument(
        "--unused-for", type=float, default=0.0, metavar="DAYS", help="keep what was used since"
    )
    prune_parser.set_defaults(handler=prune)


def _size(size: int) -> str:
    return f"{size / 1e6:.0f} MB"


def _line(found: Entry | Scratch) -> str:
    day = datetime.datetime.fromtimestamp(found.used, datetime.UTC).date().isoformat()
    origin = found.inputs.get("origin", "") if isinstance(found, Entry) else ""
    return f"{found.kind:<8} {_size(found.size):>8}  used {day}  {found.label}  {origin}".rstrip()


def list_(_args: argparse.Namespace) -> int:
    """Lists the cache."""
    store = Store(default_root())
    found: list[Entry | Scratch] = [*store.entries(), *workspace.entries(store)]
    for item in sorted(found, key=lambda f: (f.kind, f.label)):
        print(_line(item))
    if not any(item.kind == "kernel" for item in found):
        default = DEFAULT_KERNELS[host().name]
        say(f"no kernel is cached yet; `cohabit kernels fetch {default}` gets one")
    print(f"{_size(sum(item.size for item in found))} in {default_root()}")
    return 0


def fetch(args: argparse.Namespace) -> int:
    """Fetches kernels and all that a run on them needs."""
    setup = Setup.of(args)
    for reference in args.reference:
        for kernel in setup.kernels(reference):
            setup.machine(kernel)
            print(f"{reference}: {kernel.release} ({kernel.origin})")
    return 0


def prune(args: argparse.Namespace) -> int:
    """Removes what is not in use; says what was removed and what is kept."""
    if not args.unused_for >= 0:  # not a number either
        raise UsageError("--unused-for takes days, from 0 on")
    store = Store(default_root())
    entries, used_entries = store.prune(args.unused_for * 86400)
    scratch, used_scratch = workspace.prune(store, args.unused_for * 86400)
    removed: list[Entry | Scratch] = [*entries, *scratch]
    kept: list[Entry | Scratch] = [*used_entries, *used_scratch]
    for item in removed:
        print(f"removed {_line(item)}")
    for item in kept:
        print(f"in use  {_line(item)}")
    print(f"{_size(sum(item.size for item in removed))} freed")
    return 0
