# SPDX-License-Identifier: GPL-2.0-only
"""What every command that boots something needs: made or fetched, once."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from harness import needs
from harness.errors import InfraError, UsageError
from harness.kernels import build, modules
from harness.kernels.model import Kernel
from harness.kernels.references import is_tree, resolve
from harness.kernels.store import Store, default_root
from harness.target.vm import VmTarget
from vm import accel, process, qemu, rootfs
from vm.machine import GUEST, Accelerator, Machine

REPOSITORY = Path(__file__).resolve().parents[2]
DEFAULT_KERNEL = "debian:6.12"


def say(text: str) -> None:
    """Progress, on standard error: standard output is the report's."""
    print(text, file=sys.stderr, flush=True)


def add_machine_options(parser: argparse.ArgumentParser) -> None:
    """The options that describe a VM."""
    group = parser.add_argument_group("virtual machine")
    group.add_argument(
        "--accel", choices=("auto", "kvm", "tcg"), default="auto",
        help="auto: KVM if a kernel really boots on it, else emulation (TCG)",
    )  # fmt: skip
    group.add_argument(
        "--cpus", type=positive, default=1, metavar="N",
        help="vCPUs of each VM (default 1: livepatch transitions then end at once)",
    )  # fmt: skip
    group.add_argument(
        "--memory", type=positive, default=1024, metavar="MB", help="memory of each VM"
    )


def add_tree_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """The options for kernels that are built from a tree; the group may take more."""
    group = parser.add_argument_group("kernels from a tree")
    group.add_argument(
        "--flavour", choices=build.FLAVOURS, default="plain",
        help="debug: lockdep and other checks; kasan: memory (docs/kernels.md)",
    )  # fmt: skip
    group.add_argument(
        "--config", type=Path, metavar="FILE", help="options on top of Kconfig.fragment"
    )
    return group


def tree_options(args: argparse.Namespace, jobs: int = 0) -> build.Options:
    """From add_tree_options; ``jobs`` of make, 0 for one a CPU.  Raises UsageError."""
    path: Path | None = getattr(args, "config", None)
    try:
        extra = path.read_text(encoding="utf-8") if path else ""
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {error}") from error
    return build.Options(getattr(args, "flavour", "plain"), extra, jobs)


def positive(text: str) -> int:
    """A number from 1 on, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 on")
    return int(text)


def host_needs(cache: Path) -> tuple[needs.Need, ...]:
    """What is needed for the user that we are."""
    return needs.needs(os.geteuid() == 0, cache)


def check_needs(cache: Path) -> None:
    """Raises InfraError naming everything that the host lacks."""
    missing = [n for n in host_needs(cache) if n.found is None]
    if missing:
        raise InfraError(
            "this machine lacks " + ", ".join(n.name for n in missing),
            "\n  ".join(f"{n.name}: {n.remedy}" for n in missing),
        )


@dataclass
class Setup:
    """The cache and what is made in it, each thing when first asked for."""

    store: Store
    wanted_accel: str = "auto"
    cpus: int = 1
    memory_mb: int = 1024
    options: build.Options = field(default_factory=build.Options)
    tree_words: tuple[str, ...] = ()
    _chosen: tuple[Accelerator, qemu.Qemu] | None = field(default=None, init=False)

    @classmethod
    def of(cls, args: argparse.Namespace) -> Setup:
        """From the options of add_machine_options; sweeps what killed runs left."""
        check_needs(default_root())
        if swept := process.sweep():
            say(f"removed what {swept} killed VM(s) had left")
        options = tree_options(args)
        words = ["--flavour", options.flavour] if options.flavour != "plain" else []
        words += ["--config", str(args.config)] if options.extra else []
        store = Store(default_root())
        return cls(store, args.accel, args.cpus, args.memory, options, (*words,))

    @cached_property
    def root(self) -> Path:
        """The guest's root file system."""
        return rootfs.guest_root(self.store, say)

    def kernel(self, reference: str, series: str = "") -> Kernel:
        """The kernel that a reference names, with a series on top if it is a tree."""
        kernel = resolve(
            reference, self.store, say, root=self.root, options=self.options, patches=series
        )
        if not is_tree(reference):
            return kernel
        words = ["--series", series] if series else []
        return dataclasses.replace(kernel, options=(*words, *self.tree_words))

    def kmods(self, kernel: Kernel) -> Path:
        """The kernel modules, built for that kernel."""
        return modules.build(kernel, REPOSITORY / "kmods", self.root, self.store, say)

    def accelerator(self, kernel: Kernel) -> tuple[Accelerator, qemu.Qemu]:
        """The accelerator and its QEMU; any kernel will do for the probe."""
        if self._chosen is None:
            self._chosen = self._choose(kernel)
        return self._chosen

    def _choose(self, kernel: Kernel) -> tuple[Accelerator, qemu.Qemu]:
        if self.wanted_accel != "tcg":
            found = qemu.find(self.store, "kvm", say)
            chosen = accel.choose(
                self.wanted_accel, found.binary, kernel.image, self.store.state / "kvm.json", say
            )
            if chosen.name == "kvm":
                return chosen, found
        else:
            chosen = Accelerator("tcg", "asked for")
        return chosen, qemu.find(self.store, "tcg", say)

    def machine(self, kernel: Kernel) -> Machine:
        """A VM for that kernel, modules and agent in place."""
        accelerator, program = self.accelerator(kernel)
        if accelerator.name == "tcg" and self.cpus > 1 and not program.safe_with_tcg:
            raise UsageError(
                "QEMU before 8.1 kills emulated guests with several vCPUs that patch code",
                "leave out --cpus, or unset COHABIT_QEMU",
            )
        return Machine(
            layers=(GUEST, kernel.tree, self.root),
            shares=(
                (REPOSITORY / "harness" / "agent", "cohabit/agent"),
                (self.kmods(kernel), "cohabit/kmods"),
            ),
            image=str(kernel.image.relative_to(kernel.tree)),
            qemu=program.binary,
            accelerator=accelerator,
            cpus=self.cpus,
            memory_mb=self.memory_mb,
            # 5.10's virtiofs cannot agree on POSIX ACLs and then has no root at all.
            posix_acl=kernel.version >= (6, 1),
        )

    def target(self, kernel: Kernel, console: Path) -> VmTarget:
        """A VM, not started."""
        _, program = self.accelerator(kernel)
        version = ".".join(str(part) for part in program.version)
        return VmTarget(self.machine(kernel), version, console)
