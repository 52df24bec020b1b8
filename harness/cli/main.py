# PYTHON_ARGCOMPLETE_OK
# SPDX-License-Identifier: GPL-2.0-only
"""The parser, and the one place where an error becomes a message and a status."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

import argcomplete

from harness import __version__
from harness.errors import CohabitError

#: Each command, in the order of the help, and its module. A module is imported when its command
#: is the one to run: all of them together take longer than many a command.
_COMMANDS = {
    "run": "run", "list": "list_", "report": "report", "compare": "compare", "bisect": "bisect",
    "explain": "explain", "paths": "paths", "rules": "rules", "kernels": "kernels",
    "shell": "shell", "doctor": "doctor", "build": "build", "mutants": "mutants",
    "bench": "bench", "test": "selftest", "completion": "completion",
}  # fmt: skip

_DESCRIPTION = """\
Can a livepatch, a direct trampoline and BPF programs live on the same kernel
function, in every order of arrival and departure? cohabit boots the kernel,
does it, and compares every step with the ftrace policy."""

_EPILOG = """\
examples:
  cohabit run                        the default scenarios on the default kernel
  cohabit run --kernel debian:7.2    on another one
  cohabit list 'livepatch+*'         what there is to run
  cohabit doctor                     what this machine has and lacks

`cohabit COMMAND --help` has more of them. Exit status: 0 all passed, 1 something
failed, 2 bad usage, 3 the host or the network is at fault, 130 interrupted."""


def parser(command: str = "") -> argparse.ArgumentParser:
    """The command line of one command, or the whole one where it is no command's name."""
    top = argparse.ArgumentParser(
        prog="cohabit",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"cohabit {__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND", title="commands")
    for name in [command] if command in _COMMANDS else _COMMANDS:
        importlib.import_module(f".{_COMMANDS[name]}", __package__).register(commands)
    return top


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    # Whoever presses Ctrl-C twice shall not leave virtual machines behind.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _parsed(top: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace:
    try:
        return top.parse_args(words)
    except SystemExit as end:
        # `git bisect run` would take 2 for a bad revision, and look for another.
        if end.code and "--bisect" in words:
            raise SystemExit(255) from None
        raise


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit status."""
    words = sys.argv[1:] if argv is None else argv
    completing = "_ARGCOMPLETE" in os.environ
    top = parser(words[0] if words and not completing else "")
    if completing:
        argcomplete.autocomplete(top)
    args = _parsed(top, words)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        status: int = args.handler(args)
    except KeyboardInterrupt:
        print("cohabit: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read our output has seen enough.
        return 0
    except OSError as error:
        # What has no better message of its own: a full disk behind an output, say.
        where = f" ({error.filename})" if error.filename else ""
        print(f"cohabit: {error.strerror or error}{where}", file=sys.stderr)
        return 3
    except CohabitError as error:
        print(f"cohabit: {error}", file=sys.stderr)
        return error.exit_status
    return status
