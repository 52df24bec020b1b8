# SPDX-License-Identifier: GPL-2.0-only
"""``cohabit explain``: what a registry text says, and who could still attach."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from harness.arch import named
from harness.errors import InfraError, UsageError
from harness.explain import TITLES, explain
from harness.explain.form import ARCHES
from harness.explain.jsonout import dump
from harness.explain.show import show
from harness.explain.text import MAX_BYTES
from harness.policy.profile import Version, release_version

if TYPE_CHECKING:
    from harness.kernels.model import Kernel

EXAMPLES = """examples:
  cohabit explain enabled_functions.txt          who is on each function, how, and what R I D M mean
  sudo cat /sys/kernel/tracing/enabled_functions | cohabit explain --release $(uname -r)
                                                 of this machine, for exactly its kernel
  cohabit explain FILE --function 'tcp_*'        some functions only
  cohabit explain FILE --function vfs_read --what-if livepatch --what-if fexit
                                                 would these attach, with which errno, by which rule
  cohabit explain --kernel debian:7.2 --with livepatch --with fexit
                                                 of a VM, with these on one function
"""

#: Where the registry of this machine is; the second before 4.1, or without tracefs mounted.
LOCAL = (
    Path("/sys/kernel/tracing/enabled_functions"),
    Path("/sys/kernel/debug/tracing/enabled_functions"),
)


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "explain",
        help="say what a text of enabled_functions means",
        description="Reads the text of enabled_functions or touched_functions of any kernel from "
        "5.10 to 7.3, on x86-64 or arm64, and says for each function who is attached, by which "
        "way a call gets there and what the flags mean. Needs neither a VM nor root.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "file", nargs="?", metavar="FILE",
        help="- or nothing: standard input, or at a terminal this machine's own",
    )  # fmt: skip
    parser.add_argument(
        "--function", action="append", default=[], metavar="NAME",
        help="only these, by name or glob, with or without ' [module]'; repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--what-if", action="append", default=[], metavar="ATTACHER", choices=tuple(TITLES),
        help=f"would it attach now? One of {', '.join(TITLES)}; repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--release", type=_release, metavar="RELEASE",
        help="of the kernel that printed it, like 6.12 (default: what its form allows)",
    )  # fmt: skip
    parser.add_argument("--arch", choices=ARCHES, help="of that kernel, likewise")
    parser.add_argument("--json", action="store_true", help="for a program")
    running = parser.add_argument_group("a running kernel")
    running.add_argument(
        "--kernel", metavar="REF", help="boot this one and read its registry (see `cohabit run`)"
    )
    running.add_argument(
        "--with", action="append", default=[], dest="present", metavar="ATTACHER",
        choices=tuple(TITLES),
        help="with this on cmdline_proc_show (fmod_ret: security_task_getpgid); repeatable",
    )  # fmt: skip
    running.add_argument(
        "--accel", choices=("auto", "kvm", "tcg"), default="auto", help="as for `cohabit run`"
    )
    parser.set_defaults(handler=run, cpus=1, memory=1024, arches=(), engine="auto", snapshots=False)


def _release(text: str) -> Version:
    try:
        return release_version(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(error.message) from error


def run(args: argparse.Namespace) -> int:
    """The command."""
    release, arch = args.release, args.arch
    if args.kernel is not None:
        if args.file is not None:
            raise UsageError("--kernel has a text of its own", "leave out FILE")
        data, kernel = _running(args)
        release = release or kernel.version
        arch = arch or named(kernel.arch).policy
    elif args.present:
        raise UsageError("--with is for a running kernel", "add --kernel REF")
    elif args.file is None and sys.stdin.isatty():
        data = _local()
        release = release or release_version(platform.release())
    else:
        data = _read(args.file)
    report = explain(data, args.function, args.what_if, release, arch)
    if args.json:
        lines = dump(report)
    else:
        color = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        lines = show(report, shutil.get_terminal_size().columns, color)
    sys.stdout.writelines(f"{line}\n" for line in lines)
    return 0


def _read(file: str | None) -> bytes:
    """A byte more than is allowed at most."""
    if file is None or file == "-":
        return sys.stdin.buffer.read(MAX_BYTES + 1)
    try:
        with Path(file).open("rb") as source:
            return source.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from error


def _local() -> bytes:
    """This machine's registry; raises InfraError where it cannot be read."""
    trouble = ""
    for path in LOCAL:
        try:
            return path.read_bytes()
        except PermissionError:
            raise InfraError(
                f"{path} is for root",
                f"sudo cat {path} | cohabit explain --release {platform.release()}",
            ) from None
        except OSError as error:
            trouble = trouble or f"cannot read {path}: {error.strerror}"
    raise InfraError(
        trouble,
        "as root: mount -t tracefs tracefs /sys/kernel/tracing; or give a file: "
        "cohabit explain FILE",
    )


def _running(args: argparse.Namespace) -> tuple[bytes, Kernel]:
    """The registry of a kernel in a VM, and that kernel."""
    # Here, because a text is explained in less time than all of this takes to import.
    from harness.policy import profile
    from harness.run.programs import Programs
    from harness.run.record import Record
    from harness.run.session import Session
    from harness.run.snapshot import registry

    from .setup import Setup, say

    args.arches = (named(args.arch),) if args.arch else ()
    setup = Setup.of(args)
    kernel = setup.kernel(args.kernel)
    machine = setup.machine(kernel)
    say(f"booting {kernel.release} ({machine.accelerator.name}: {machine.accelerator.why})")
    chosen = profile.choose(kernel.release, kernel.config, arch=kernel.arch)
    with tempfile.TemporaryDirectory() as name, Record(Path(name)) as record:
        target = setup.target(kernel, record.console("vm"))
        try:
            programs = Programs(setup.store.state, kernel.arch)
            session = Session(target, "vm", kernel.release, chosen, record, programs)
            text, refused = registry(session, target, args.present)
        finally:
            target.stop()
    for one in refused:
        say(one)
    return text.encode(), kernel
