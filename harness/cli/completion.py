# SPDX-License-Identifier: GPL-2.0-only
"""``cohabit completion``: shell code that completes commands and options."""

from __future__ import annotations

import argparse

from argcomplete.shell_integration import shellcode

EXAMPLES = """examples:
  eval "$(./cohabit completion)"               for this bash or zsh
  ./cohabit completion --shell fish | source   for this fish
"""


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "completion",
        help="print shell completion code",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--shell", choices=("bash", "zsh", "fish"), default="bash")
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    """The command."""
    print(shellcode(["cohabit", "./cohabit"], shell=args.shell))
    return 0
