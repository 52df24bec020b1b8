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

from harness import arch as arches
from harness.arch import Arch
from harness.errors import InfraError, UsageError
from harness.kernels import apt
from harness.kernels.programs import plain_env, tail
from harness.kernels.store import Store
from vm.rootfs import debootstrap

Say = Callable[[str], None]
Accel = Literal["kvm", "tcg"]

#: The package that has the program for an architecture.
_PACKAGES = {"x86_64": "qemu-system-x86", "arm64": "qemu-system-arm"}
SAFE_TCG = (8, 1)
"""The first release without the TCG bug."""

RECIPE = "1"
"""Counts up whenever what is done below changes what comes out."""

_VERSION = re.compile(r"QEMU emulator version (\d+(?:\.\d+)+)")

# QEMU comes with its own libraries and dynamic loader, so one build runs on
# every host; the script finds the tree that it lies in.
_WRAPPER = """#!/bin/sh
here=$(dirname "$(readlink -f "$0")")
lib=$here/usr/lib/{triplet}
# Debian 12 still has a /lib of its own where nothing merged it.
loader=$here/{loader}
[ -e "$loader" ] || loader=$here/{old_loader}
export QEMU_MODULE_DIR="$lib/qemu"
exec "$loader" --library-path "$lib:$here/lib/{triplet}:$lib/pulseaudio" \\
    "$here/usr/bin/{program}" -L "$here/usr/share/qemu" -L "$here/usr/share/seabios" \\
    -L "$here/usr/lib/ipxe/qemu" "$@"
"""
_UNWANTED = ("doc", "man", "locale", "lintian", "perl5", "info")


@dataclass(frozen=True)
class Qemu:
    """A QEMU for guests of one architecture; ``origin`` says in words where it came from."""

    binary: Path
    version: tuple[int, ...]
    origin: str

    @property
    def safe_with_tcg(self) -> bool:
        """Whether it may run several vCPUs by TCG."""
        return self.version >= SAFE_TCG


def variable(arch: Arch) -> str:
    """The environment variable by which the user names a QEMU for an architecture."""
    return "COHABIT_QEMU" if arch is arches.X86_64 else f"COHABIT_QEMU_{arch.name.upper()}"


def find(store: Store, accel: Accel, say: Say, arch: Arch = arches.X86_64) -> Qemu:
    """Return the QEMU to use: $COHABIT_QEMU, the host's if it will do, else the cache's.

    The host's will do with KVM, or from 8.1 on.  Raises UsageError when $COHABIT_QEMU
    (for arm64 $COHABIT_QEMU_ARM64) is no QEMU, InfraError when none can be had.
    """
    if named := os.environ.get(variable(arch)):
        binary = Path(named).absolute()
        version, text = _version(binary)
        if not version:
            raise UsageError(f"{variable(arch)}={named} is no QEMU that runs here{tail(text, 3)}")
        chosen = Qemu(binary, version, variable(arch))
        if accel == "tcg" and not chosen.safe_with_tcg:
            say(f"{named} is QEMU {_dotted(version)}: before 8.1 TCG guests with several vCPUs die")
        return chosen
    if found := shutil.which(arch.qemu):
        version, _ = _version(Path(found))
        if version and (accel == "kvm" or version >= SAFE_TCG):
            return Qemu(Path(found), version, "the host's")
        told = _dotted(version) or "(broken)"
        say(f"the host's {arch.qemu} {told} won't do for TCG: taking another")
    return _cached(store, say, arch)


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


def _cached(store: Store, say: Say, arch: Arch) -> Qemu:
    suites = _suites()
    newest = suites[-1]
    host, program = arches.host(), arch.qemu

    def make(tree: Path) -> list[str]:
        say(f"fetching {program} from Debian {newest}")
        archive = apt.find_mirrors().archive
        options = ["--variant=extract", f"--include={_PACKAGES[arch.name]}"]
        options.append(f'--aptopt=APT::Default-Release "{newest}"')
        lines = [apt.source_line(archive, s) for s in suites]
        debootstrap(tree, options, suites[0], lines, host)
        for name in _UNWANTED:
            shutil.rmtree(tree / "usr/share" / name, ignore_errors=True)
        wrapper = tree / program
        text = _WRAPPER.format(
            triplet=host.triplet, loader=host.loader, old_loader=host.loader.removeprefix("usr/"),
            program=program,
        )  # fmt: skip
        wrapper.write_text(text, encoding="ascii")
        wrapper.chmod(0o755)
        version, text = _version(wrapper)
        if version < SAFE_TCG:
            raise InfraError(f"the QEMU of Debian {newest} does not run here{tail(text)}")
        (tree / "version").write_text(_dotted(version), encoding="ascii")
        return [program, "version", f"usr/bin/{program}"]

    inputs = {"suite": newest, "recipe": RECIPE}
    if arch is not arches.X86_64:
        inputs["arch"] = arch.name
    tree = store.get("qemu", inputs, make, label=f"{program} ({newest})", say=say)
    text = (tree / "version").read_text(encoding="ascii")
    return Qemu(tree / program, _parse(text), f"Debian {newest}, in the cache")


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
