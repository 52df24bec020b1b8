# SPDX-License-Identifier: GPL-2.0-only
"""What every command that boots something needs: made or fetched, once."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from harness import needs
from harness.arch import ARCHES, Arch, host, named
from harness.errors import InfraError, UsageError
from harness.kernels import build, modules
from harness.kernels.model import Kernel
from harness.kernels.references import is_tree, resolve
from harness.kernels.store import Store, default_root
from harness.kernels.trees import Tree
from harness.run.programs import Programs
from harness.run.template import KernelTemplate
from harness.target.snapshot import Template
from harness.target.vm import VmTarget
from vm import accel, disks, initramfs, process, qemu, rootfs
from vm.direct import Direct
from vm.machine import GUEST, Accelerator, Engine, Machine
from vm.virtme import VIRTME

Say = Callable[[str], None]

REPOSITORY = Path(__file__).resolve().parents[2]
#: By architecture; arm64 had no livepatch, nor fprobes, when 6.12 was made.
ENGINES = ("virtme", "direct")
DEFAULT_KERNELS = {"x86_64": "debian:6.12", "arm64": "debian:7.2"}


def say(text: str) -> None:
    """Progress, on standard error: standard output is the report's."""
    print(text, file=sys.stderr, flush=True)


def add_machine_options(parser: argparse.ArgumentParser) -> None:
    """The options that describe a VM."""
    group = parser.add_argument_group("virtual machine")
    add_arch_option(group)
    group.add_argument(
        "--accel", choices=("auto", "kvm", "tcg"), default="auto",
        help="auto: KVM if a kernel really boots on it, else emulation (TCG)",
    )  # fmt: skip
    group.add_argument(
        "--cpus", type=positive, default=1, metavar="N",
        help="vCPUs of each VM (default 1: livepatch transitions then end at once; or as many "
        "as its scenarios need)",
    )  # fmt: skip
    group.add_argument(
        "--memory", type=positive, default=1024, metavar="MB", help="memory of each VM"
    )
    group.add_argument(
        "--engine", choices=("auto", *ENGINES), default="auto",
        help="what boots a VM: virtme-ng, or QEMU directly (then with snapshots); auto: "
        "virtme-ng for the host's own architecture, for any other QEMU directly",
    )  # fmt: skip
    group.add_argument(
        "--snapshots", action=argparse.BooleanOptionalAction, default=True,
        help="with the engine direct: boot once, restore that state for each VM (default: yes)",
    )  # fmt: skip


def add_arch_option(parser: argparse._ActionsContainer) -> None:
    """The option that says which architectures kernels are taken for."""
    parser.add_argument(
        "--arch", dest="arches", type=_arches, default=(), metavar="ARCH[,ARCH]",
        help=f"kernels for {' or '.join(ARCHES)}, or for both (default: the host's, or what the "
        "kernel's name says)",
    )  # fmt: skip


def _arches(text: str) -> tuple[Arch, ...]:
    try:
        return tuple(dict.fromkeys(named(word) for word in text.split(",")))
    except UsageError as error:
        raise argparse.ArgumentTypeError(f"{error.message}; {error.remedy}") from error


def one_arch(args: argparse.Namespace) -> Arch | None:
    """Of add_arch_option's value the one, None if it was left out.  Raises UsageError for two."""
    chosen: tuple[Arch, ...] = args.arches
    if len(chosen) > 1:
        raise UsageError("this command takes one architecture at a time", "give --arch one")
    return chosen[0] if chosen else None


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
    arches: tuple[Arch, ...] = ()
    engine: str = "auto"
    snapshots: bool = True
    _chosen: dict[str, tuple[Accelerator, qemu.Qemu]] = field(default_factory=dict, init=False)
    _roots: dict[str, Path] = field(default_factory=dict, init=False)
    _tools: dict[str, Path] = field(default_factory=dict, init=False)
    _machines: dict[tuple[str, tuple[str, ...], int], Machine] = field(
        default_factory=dict, init=False
    )
    _lock: threading.RLock = field(default_factory=threading.RLock, init=False)

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
        if len(args.arches) == 1:
            options = dataclasses.replace(options, arch=args.arches[0].name)
        return cls(
            store, args.accel, args.cpus, args.memory, options, (*words,), args.arches,
            args.engine, args.snapshots,
        )  # fmt: skip

    @property
    def arch(self) -> Arch:
        """The architecture, for a command that takes one.  Raises UsageError for two."""
        if len(self.arches) > 1:
            raise UsageError("this command takes one architecture at a time", "give --arch one")
        return self.arches[0] if self.arches else host()

    def by_virtme(self) -> None:
        """Makes virtme-ng boot all VMs, for a command that knows no other engine.

        Raises UsageError where the user asked for one.
        """
        if self.engine not in ("auto", "virtme"):
            raise UsageError(
                f"this command boots by virtme-ng, not by {self.engine}", "leave out --engine"
            )
        self.engine = "virtme"

    def root(self, arch: Arch) -> Path:
        """The root file system of guests."""
        if arch.name not in self._roots:
            self._roots[arch.name] = rootfs.guest_root(self.store, say, arch)
        return self._roots[arch.name]

    def tools(self, arch: Arch) -> Path:
        """A root file system whose programs the host runs for guests of an architecture."""
        if arch.name not in self._tools:
            self._tools[arch.name] = rootfs.tools_root(self.store, say, arch)
        return self._tools[arch.name]

    def kernels(self, reference: str | None, series: str = "") -> Iterator[Kernel]:
        """The kernels that a reference names, one for each architecture that was asked for.

        None: each architecture's default.
        """
        for arch in self.arches or (None,):
            name = reference or DEFAULT_KERNELS[(arch or host()).name]
            yield self.kernel(name, series, arch)

    def kernel(
        self, reference: str | None = None, series: str = "", arch: Arch | None = None
    ) -> Kernel:
        """The kernel that a reference names, with a series on top if it is a tree.

        ``arch``: None for the one that was asked for.  Raises UsageError where two were.
        """
        if arch is None and self.arches:
            arch = self.arch
        reference = reference or DEFAULT_KERNELS[(arch or host()).name]
        kernel = resolve(
            reference, self.store, say,
            tools=self.tools, arch=arch, options=self.options, patches=series,
        )  # fmt: skip
        words = ["--series", series] if series else []
        words += self.tree_words if is_tree(reference) else []
        if kernel.arch != host().name and not reference.endswith(kernel.release):
            words += ["--arch", kernel.arch]
        return dataclasses.replace(kernel, options=tuple(words))

    def build(
        self, tree: Tree, store: Store | None = None, options: build.Options | None = None
    ) -> Kernel:
        """The kernel that a tree makes, in this or another ``store``, by other ``options``."""
        chosen = dataclasses.replace(options or self.options, arch=self.arch.name)
        return build.build(tree, chosen, self.tools(self.arch), store or self.store, say)

    def kmods(self, kernel: Kernel) -> Path:
        """The kernel modules, built for that kernel."""
        tools = self.tools(ARCHES[kernel.arch])
        return modules.build(kernel, REPOSITORY / "kmods", tools, self.store, say)

    def accelerator(self, kernel: Kernel) -> tuple[Accelerator, qemu.Qemu]:
        """The accelerator and its QEMU; any kernel of the architecture will do for the probe."""
        if kernel.arch not in self._chosen:
            self._chosen[kernel.arch] = self._choose(kernel, ARCHES[kernel.arch])
        return self._chosen[kernel.arch]

    def _choose(self, kernel: Kernel, arch: Arch) -> tuple[Accelerator, qemu.Qemu]:
        if self.wanted_accel == "tcg":
            return Accelerator("tcg", "asked for"), qemu.find(self.store, "tcg", say, arch)
        found = qemu.find(self.store, "kvm" if arch.native else "tcg", say, arch)
        memory = self.store.state / ("kvm.json" if arch.native else f"kvm-{arch.name}.json")
        chosen = accel.choose(self.wanted_accel, found.binary, kernel.image, memory, say, arch)
        if chosen.name == "tcg":
            found = qemu.find(self.store, "tcg", say, arch)
        return chosen, found

    def machine(self, kernel: Kernel, boot: tuple[str, ...] = (), cpus: int = 1) -> Machine:
        """A VM for that kernel, modules and agent in place; ``boot``: see Machine.

        ``cpus``: virtual CPUs that its scenarios need; it has them, or more if the user said
        so.  Raises UsageError where QEMU cannot be trusted with so many.
        """
        cpus = max(cpus, self.cpus)
        key = (str(kernel.image), boot, cpus)
        with self._lock:
            if key not in self._machines:
                self._machines[key] = self._machine(kernel, boot, cpus)
            return self._machines[key]

    def _machine(self, kernel: Kernel, boot: tuple[str, ...], cpus: int) -> Machine:
        arch = ARCHES[kernel.arch]
        accelerator, program = self.accelerator(kernel)
        if accelerator.name == "tcg" and cpus > 1 and not program.safe_with_tcg:
            version = ".".join(str(part) for part in program.version)
            asked = cpus <= self.cpus
            raise UsageError(
                f"QEMU {version} ({program.origin}) will not do for {cpus} virtual CPUs: before "
                "8.1 it kills emulated guests with several that patch code",
                f"leave out {'--cpus' if asked else 'scenarios that stir'}, or unset "
                f"{qemu.variable(arch)} to have a newer one",
            )
        shares = (
            (REPOSITORY / "harness" / "agent", "cohabit/agent"),
            (self.kmods(kernel), "cohabit/kmods"),
        )
        return Machine(
            engine=self._direct(kernel, shares) if self.directly(arch) else VIRTME,
            layers=(GUEST, kernel.tree, self.root(arch)),
            shares=shares,
            image=str(kernel.image.relative_to(kernel.tree)),
            qemu=program.binary,
            tools=self.tools(arch),
            accelerator=accelerator,
            cpus=cpus,
            memory_mb=self.memory_mb,
            # 5.10's virtiofs cannot agree on POSIX ACLs and then has no root at all.
            posix_acl=kernel.version >= (6, 1),
            arch=arch,
            boot=boot,
        )

    def directly(self, arch: Arch) -> bool:
        """Whether guests of an architecture are booted by QEMU directly.

        virtme-ng's init is shell and udev, where its native program does not run: 10 s more
        for each VM under emulation.
        """
        return self.engine == "direct" or (self.engine == "auto" and not arch.native)

    def jobs(self, wanted: int | None, kernels: Iterable[Kernel]) -> int:
        """How many VMs to have at a time; ``wanted``: what the user said.

        One a CPU, 4 at most.  Where a VM comes from a snapshot it costs next to nothing, and
        most of its time it waits for grace periods: twice as many.
        """
        if wanted is not None:
            return wanted
        cpus = len(os.sched_getaffinity(0))
        arches = {ARCHES[kernel.arch] for kernel in kernels}
        quick = self.snapshots and bool(arches) and all(self.directly(arch) for arch in arches)
        return min(2 * cpus, 8) if quick else min(cpus, 4)

    def _direct(self, kernel: Kernel, shares: tuple[tuple[Path, str], ...]) -> Engine:
        arch = ARCHES[kernel.arch]
        root, tools = self.root(arch), self.tools(arch)
        content = initramfs.content(
            initramfs.busybox(root), initramfs.modules(kernel.modules), (GUEST,), shares
        )
        archive = initramfs.stored(content, self.store, say)
        label = f"{kernel.release}'s files"
        tree = disks.disk(self.store, say, kernel.tree, "usr", tools, label)
        lowest = disks.disk(self.store, say, root, "", tools, f"the guest root for {arch.name}")
        return Direct(kernel.image, archive, (tree, lowest))

    def target(
        self,
        kernel: Kernel,
        console: Path,
        boot: tuple[str, ...] = (),
        template: Template | None = None,
        why: str = "",
        cpus: int = 1,
    ) -> VmTarget:
        """A VM, not started; ``boot``, ``cpus``: see machine; ``template``, ``why``: VmTarget."""
        _, program = self.accelerator(kernel)
        version = ".".join(str(part) for part in program.version)
        return VmTarget(self.machine(kernel, boot, cpus), version, console, template, why)

    def template(
        self,
        kernel: Kernel,
        programs: Programs,
        say: Say,
        boot: tuple[str, ...] = (),
        cpus: int = 1,
    ) -> Template | None:
        """What VMs for that kernel are restored from, None where all of them boot.

        ``programs``: compiled BPF programs; ``say`` takes what is told of its making.
        """
        if not self.directly(ARCHES[kernel.arch]) or not self.snapshots:
            return None
        _, program = self.accelerator(kernel)
        machine = self.machine(kernel, boot, cpus)
        return KernelTemplate(machine, program.version, kernel, programs, self.store, say)
