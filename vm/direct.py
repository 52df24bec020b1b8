# SPDX-License-Identifier: GPL-2.0-only
"""The engine ``direct``: QEMU by a command line of our own.

The guest's root is an overlay of memory, the kernel's tree and the root file system; the
last two are read-only disks, which any number of guests share.  Nothing of it stands in the
way of writing the guest's state to a file and going on from there.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from harness.arch import ARM64, X86_64

from .machine import CONSOLE, KERNEL_OPTIONS, Machine, agent_devices

OUTPUT_PORT = "cohabit.output"

_CPU_MODELS = {"x86_64": "max", "arm64": "max,pauth=off"}


@dataclass(frozen=True)
class Memory:
    """The file that is a guest's memory.

    ``state``: None where the guest boots, and writes to it; otherwise what to go on from,
    and what the guest then writes is nobody else's.
    """

    path: Path
    state: Path | None


@dataclass(frozen=True)
class Direct:
    """See vm.machine.Engine.  ``disks``: the kernel's tree and the root file system."""

    kernel: Path
    initramfs: Path
    disks: tuple[Path, Path]
    memory: Memory | None = None

    name = "direct"
    namespaced = False

    def cpu_model(self, machine: Machine) -> str:
        """See Engine."""
        if machine.accelerator.name == "kvm":
            return "host"
        return _CPU_MODELS[machine.arch.name]

    def sysrq(self, machine: Machine) -> tuple[str, ...]:
        """See Engine; QEMU's ``virt`` has no keyboard."""
        return ("break", "keyboard") if machine.arch is X86_64 else ("break",)

    def agent_command(self, machine: Machine, root: Path) -> list[str]:
        """See Engine; ``root`` is not looked at."""
        words = [*KERNEL_OPTIONS, *machine.boot]
        command = [
            str(machine.qemu),
            "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-machine", self._machine(machine),
            "-accel", machine.accelerator_option,
            "-cpu", self.cpu_model(machine),
            "-smp", str(machine.cpus),
            "-m", f"{machine.memory_mb}M",
            "-kernel", str(self.kernel),
            "-initrd", str(self.initramfs),
            "-append", " ".join([f"console={machine.arch.console}", "panic=-1", *words]),
            "-chardev", f"stdio,id={CONSOLE},signal=off", "-serial", f"chardev:{CONSOLE}",
        ]  # fmt: skip
        if self.memory:
            command += ["-object", json.dumps(self._memory(machine, self.memory))]
        for number, disk in enumerate(self.disks):
            file = {"driver": "file", "filename": str(disk)}
            node = {"driver": "raw", "node-name": f"disk{number}", "read-only": True, "file": file}
            command += ["-blockdev", json.dumps(node)]
            command += ["-device", f"virtio-blk-pci,drive=disk{number}"]
        command += agent_devices()
        command += [
            "-chardev", "file,id=output,path=/dev/stderr",
            "-device", f"virtserialport,bus=cohabit0.0,chardev=output,name={OUTPUT_PORT}",
        ]  # fmt: skip
        if self.memory and self.memory.state:
            command += ["-incoming", "defer"]
        return command

    def _machine(self, machine: Machine) -> str:
        words = ["q35" if machine.arch is X86_64 else "virt"]
        if machine.arch is ARM64 and machine.accelerator.name == "kvm":
            words.append("gic-version=host")
        if self.memory:
            words.append("memory-backend=memory")
        return ",".join(words)

    @staticmethod
    def _memory(machine: Machine, memory: Memory) -> dict[str, object]:
        return {
            "qom-type": "memory-backend-file",
            "id": "memory",
            "size": machine.memory_mb << 20,
            "mem-path": str(memory.path),
            "share": memory.state is None,
        }
