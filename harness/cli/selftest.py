# SPDX-License-Identifier: GPL-2.0-only
"""``cohabit test``: cohabit's own tests, on real kernels."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys

from .setup import REPOSITORY

EXAMPLES = """examples:
  cohabit test                 all that every change must pass
  cohabit test --full          the long ones too
  cohabit test -- -k store -x  options after -- go to pytest
"""


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "test",
        help="run cohabit's own tests",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--full", action="store_true", help="the long tests too")
    parser.add_argument("pytest", nargs="*", metavar="OPTION", help="for pytest")
    parser.set_defaults(handler=run)


def _checks() -> list[list[str]]:
    python = sys.executable
    scripts = [
        "cohabit",
        ".ci/run",
        "harness/kernels/tools/cc",
        "vm/tools/file",
        "vm/tools/modprobe",
    ]
    for directory in ("vm/guest", "vm/boot"):
        found = sorted((REPOSITORY / directory).rglob("*"))
        scripts += [str(p.relative_to(REPOSITORY)) for p in found if p.is_file()]
    return [
        [python, "-m", "ruff", "check", "."],
        [python, "-m", "ruff", "format", "--check", "."],
        [python, "-m", "mypy"],
        ["shellcheck", *scripts],
    ]


def run(args: argparse.Namespace) -> int:
    """The command: linters first, then pytest; its status, or 1."""
    for command in _checks():
        if shutil.which(command[0]) is None:
            print(f"cohabit: {command[0]} is missing", file=sys.stderr)
            return 3
        print(f"$ {' '.join(command[-3:])}", flush=True)
        if subprocess.run(command, cwd=REPOSITORY, check=False).returncode:
            return 1
    chosen = [] if args.full else ["-m", "not full"]
    command = [sys.executable, "-m", "pytest", *chosen, *args.pytest]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=REPOSITORY, env=environment, check=False).returncode
