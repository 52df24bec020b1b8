# SPDX-License-Identifier: GPL-2.0-only
"""``cohabit build``: a kernel from a source tree, into the cache."""

from __future__ import annotations

import argparse
import functools
import time

from harness.errors import UsageError
from harness.kernels.references import is_tree, resolve
from harness.kernels.store import Store, default_root
from vm import rootfs

from .setup import (
    add_arch_option,
    add_tree_options,
    check_needs,
    one_arch,
    positive,
    say,
    tree_options,
)

EXAMPLES = """examples:
  cohabit build tree:linux                       a working tree, uncommitted changes and all
  cohabit build tree:linux@v7.2 --flavour debug  a revision, with lockdep
  cohabit build source:7.2                       Debian's linux-source-7.2
  cohabit build source:7.2 --arch arm64          the same, cross-built
  cohabit build source:7.2 --series my-series/   with patches on top
"""


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "build",
        help="build a kernel from a source tree",
        description="Builds a kernel that cohabit can boot from a source tree, which is never "
        "written to. `cohabit run --kernel tree:DIR` does so by itself.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("reference", metavar="REF", help="tree:DIR, tree:DIR@REV or source:SERIES")
    parser.add_argument("--series", default="", metavar="PATCHES", help="patches to apply first")
    parser.add_argument("--jobs", type=positive, default=0, metavar="N", help="as make's -j")
    add_tree_options(parser)
    add_arch_option(parser)
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    """The command; returns the exit status."""
    if not is_tree(args.reference):
        raise UsageError(f"{args.reference!r} is no source tree", "see cohabit build --help")
    options = tree_options(args, args.jobs)
    check_needs(default_root())
    store = Store(default_root())
    begun = time.monotonic()
    kernel = resolve(
        args.reference, store, say,
        tools=functools.partial(rootfs.tools_root, store, say), arch=one_arch(args),
        options=options, patches=args.series,
    )  # fmt: skip
    print(f"{kernel.release} ({options.flavour}) of {kernel.origin}")
    print(f"image {kernel.image} ({kernel.image.stat().st_size / 1e6:.1f} MB)")
    print(f"{time.monotonic() - begun:.1f} s")
    return 0
