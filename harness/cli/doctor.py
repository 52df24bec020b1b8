# SPDX-License-Identifier: GPL-2.0-only
"""``cohabit doctor``: what is needed, what is there, what to do about the rest."""

from __future__ import annotations

import argparse
import json

from harness.arch import host
from harness.errors import CohabitError
from harness.kernels.store import Store, default_root

from .setup import DEFAULT_KERNELS, Setup, host_needs, say

EXAMPLES = """examples:
  cohabit doctor            look, change nothing
  cohabit doctor --fetch    also fetch a kernel and try KVM by booting it
"""


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "doctor",
        help="show what this machine has and lacks",
        description="Lists every need, found or missing, each with its remedy, and the "
        "accelerator with the reason for it.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--fetch",
        action="store_true",
        help=f"fetch {DEFAULT_KERNELS[host().name]} if need be, to try KVM",
    )
    parser.add_argument("--json", action="store_true", help="for a program")
    parser.set_defaults(handler=run)


def _accelerator(fetch: bool) -> tuple[str, str]:
    """The accelerator's name and the reason; unknown where nothing is there to boot."""
    store = Store(default_root())
    if not fetch and not (store.entries("kernel") and store.entries("rootfs")):
        return "not tried", "no kernel in the cache yet: `cohabit doctor --fetch` gets one"
    setup = Setup(store)
    chosen, program = setup.accelerator(setup.kernel())
    version = ".".join(str(part) for part in program.version)
    return chosen.name, f"{chosen.why}; QEMU {version}, {program.origin}"


def run(args: argparse.Namespace) -> int:
    """The command: 0 when nothing is missing, else 3."""
    found = host_needs(default_root())
    missing = [need for need in found if need.found is None]
    try:
        accelerator = ("unknown", "first what is missing") if missing else _accelerator(args.fetch)
    except CohabitError as error:
        accelerator = ("unknown", error.message)
    if args.json:
        print(
            json.dumps(
                {
                    "needs": [vars(need) for need in found],
                    "accelerator": dict(zip(("name", "why"), accelerator, strict=True)),
                    "cache": str(default_root()),
                }
            )
        )
        return 3 if missing else 0
    for need in found:
        print(f"{'ok     ' if need.found else 'MISSING'}  {need.name}: {need.found or need.why}")
        if need.found is None:
            print(f"         {need.remedy}")
    print(f"accelerator: {accelerator[0]} ({accelerator[1]})")
    print(f"cache: {default_root()}")
    if missing:
        say(f"{len(missing)} missing")
    return 3 if missing else 0
