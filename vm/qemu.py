# SPDX-License-Identifier: GPL-2.0-only
"""Which QEMU runs the guests: the user's, the host's, or one from the cache.

With TCG and several vCPUs, QEMU before 8.1 can run a breakpoint byte that another vCPU has
replaced already, and the guest dies in exactly what cohabit does: patching kernel text.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness.errors import InfraError, UsageError
from harness.kernels import apt
from harness.kernels.programs import plain_env, tail
from harness.kernels.store import Store
from vm.rootfs import debootstrap

Say = Callable[[str], None]
Accel = Literal["kvm", "tcg"]

PROGRAM = "qemu-system-x86_64"
SAFE_TCG = (8, 1)
"""The first release without the TCG bug."""

RECIPE = "1"
"""Counts up whenever what is done below changes what comes out."""

_VERSION = re.compile(r"QEMU emulator version (\d+(?:\.\d+)+)")

# QEMU comes with its own libraries and dynamic loader, so one build runs on
# every host; the script finds the tree that it lies in.
_WRAPPER = """#!/bin/sh
here=$(dirname "$(readlink -f "$0")")
lib=$here/usr/lib/x86_64-linux-gnu
# Debian 12 still has a /lib of its own where nothing merged it.
loader=$here/usr/lib64/ld-linux-x86-64.so.2
[ -e "$loader" ] || loader=$here/lib64/ld-linux-x86-64.so.2
export QEMU_MODULE_DIR="$lib/qemu"
exec "$loader" --library-path "$lib:$here/lib/x86_64-linux-gnu:$lib/pulseaudio" \\
    "$here/usr/bin/qemu-system-x86_64" -L "$here/usr/share/qemu" -L "$here/usr/share/seabios" \\
    -L "$here/usr/lib/ipxe/qemu" "$@"
"""
_UNWANTED = ("doc", "man", "locale", "lintian", "perl5", "info")


@dataclass(frozen=True)
class Qemu:
    """A QEMU for x86-64 guests; ``origin`` says in words where it came from."""

    binary: Path
    version: tuple[int, ...]
    origin: str

    @property
    def safe_with_tcg(self) -> bool:
        """Whether it may run several vCPUs by TCG."""
        return self.version >= SAFE_TCG


def find(store: Store, accel: Accel, say: Say) -> Qemu:
    """Return the QEMU to use: $COHABIT_QEMU, the host's if it will do, else the cache's.

    The host's will do with KVM, or from 8.1 on.  Raises UsageError when $COHABIT_QEMU
    is no QEMU, InfraError when none can be had.
    """
    if named := os.environ.get("COHABIT_QEMU"):
        binary = Path(named).absolute()
        version, text = _version(binary)
        if not version:
            raise UsageError(f"COHABIT_QEMU={named} is no QEMU that runs here{tail(text, 3)}")
        chosen = Qemu(binary, version, "COHABIT_QEMU")
        if accel == "tcg" and not chosen.safe_with_tcg:
            say(f"{named} is QEMU {_dotted(version)}: before 8.1 TCG guests with several vCPUs die")
        return chosen
    if found := shutil.which(PROGRAM):
        version, _ = _version(Path(found))
        if version and (accel == "kvm" or version >= SAFE_TCG):
            return Qemu(Path(found), version, "the host's")
        say(f"the host's QEMU {_dotted(version) or '(broken)'} won't do for TCG: taking another")
    return _cached(store, say)


def _suites() -> tuple[str, ...]:
    """The suite to take QEMU from and, behind it, the backports that have a newer one.

    Debian 12 gets its own backports'; any other host trixie's, which is new enough
    and, with its own loader and libraries, runs anywhere.
    """
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        release = {}
    if release.get("ID") == "debian" and release.get("VERSION_ID") == "12":
        return ("bookworm", "bookworm-backports")
    return ("trixie",)


def _cached(store: Store, say: Say) -> Qemu:
    suites = _suites()
    newest = suites[-1]

    def make(tree: Path) -> list[str]:
        say(f"fetching QEMU from Debian {newest}")
        archive = apt.find_mirrors().archive
        options = ["--variant=extract", "--include=qemu-system-x86"]
        options.append(f'--aptopt=APT::Default-Release "{newest}"')
        debootstrap(tree, options, suites[0], [apt.source_line(archive, s) for s in suites])
        for name in _UNWANTED:
            shutil.rmtree(tree / "usr/share" / name, ignore_errors=True)
        wrapper = tree / PROGRAM
        wrapper.write_text(_WRAPPER, encoding="ascii")
        wrapper.chmod(0o755)
        version, text = _version(wrapper)
        if version < SAFE_TCG:
            raise InfraError(f"the QEMU of Debian {newest} does not run here{tail(text)}")
        (tree / "version").write_text(_dotted(version), encoding="ascii")
        return [PROGRAM, "version", f"usr/bin/{PROGRAM}"]

    inputs = {"suite": newest, "recipe": RECIPE}
    tree = store.get("qemu", inputs, make, label=f"QEMU ({newest})", say=say)
    text = (tree / "version").read_text(encoding="ascii")
    return Qemu(tree / PROGRAM, _parse(text), f"Debian {newest}, in the cache")


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(str(part) for part in version)


def _parse(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def _version(binary: Path) -> tuple[tuple[int, ...], str]:
    """Return the version that ``binary`` tells, () if none, and all that it wrote."""
    try:
        done = subprocess.run(
            [str(binary), "--version"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
            env=plain_env(),
        )
    except OSError as error:
        return (), str(error)
    match = _VERSION.search(done.stdout)
    return (_parse(match[1]) if match and done.returncode == 0 else ()), done.stdout
