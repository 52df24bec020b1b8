# SPDX-License-Identifier: GPL-2.0-only
"""The architectures of kernels under test, by all the names that others have for them."""

from __future__ import annotations

import platform
from dataclasses import dataclass

from harness.errors import InfraError, UsageError


@dataclass(frozen=True)
class Arch:
    """One architecture.

    ``name``: ours, as ``--arch`` takes it and as ARCH= of a kernel build; ``policy``: as
    rules and ``cohabit explain`` call it; ``machine``: ``uname -m``; ``debian``: of packages;
    ``triplet``: of its libraries' directory and of cross compilers; ``loader``: its dynamic
    loader, below a Debian root; ``srcarch``: its directory under the kernel's arch/;
    ``image``: what a kernel build makes; ``console``: the serial port of QEMU's machine.
    """

    name: str
    policy: str
    machine: str
    debian: str
    triplet: str
    loader: str
    srcarch: str
    image: str
    console: str

    @property
    def qemu(self) -> str:
        """The program that emulates it."""
        return f"qemu-system-{self.machine}"

    @property
    def native(self) -> bool:
        """Whether this host runs its programs."""
        return platform.machine() == self.machine

    @property
    def cross(self) -> str:
        """What the names of the compiler and its tools for it begin with, nothing if native."""
        return "" if self.native else f"{self.triplet}-"


X86_64 = Arch(
    "x86_64", "x86-64", "x86_64", "amd64", "x86_64-linux-gnu",
    "usr/lib64/ld-linux-x86-64.so.2", "x86", "arch/x86/boot/bzImage", "ttyS0",
)  # fmt: skip
ARM64 = Arch(
    "arm64", "arm64", "aarch64", "arm64", "aarch64-linux-gnu",
    "usr/lib/ld-linux-aarch64.so.1", "arm64", "arch/arm64/boot/Image", "ttyAMA0",
)  # fmt: skip

ARCHES: dict[str, Arch] = {arch.name: arch for arch in (X86_64, ARM64)}


def named(name: str) -> Arch:
    """The architecture of that name; any of its names will do.  Raises UsageError."""
    for arch in ARCHES.values():
        if name in (arch.name, arch.policy, arch.machine, arch.debian):
            return arch
    raise UsageError(f"{name!r} is no architecture that is known", f"known: {', '.join(ARCHES)}")


def host() -> Arch:
    """The host's; raises InfraError for one that cohabit does not run on."""
    machine = platform.machine()
    for arch in ARCHES.values():
        if machine == arch.machine:
            return arch
    raise InfraError(f"cohabit does not run on {machine}", "take an x86-64 or arm64 machine")
