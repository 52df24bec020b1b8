# SPDX-License-Identifier: GPL-2.0-only
"""The engine ``virtme``: virtme-ng boots the guest, its root is a directory over virtiofs."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from harness.arch import X86_64

from .machine import AGENT_PORT, KERNEL_OPTIONS, Machine, agent_devices
from .rootfs import virtiofsd

#: Stand-ins for programs that virtme-ng asks on the host.
TOOLS = Path(__file__).resolve().parent / "tools"

#: What virtme-ng 1.42 chooses under emulation (virtme/architectures.py).
_CPU_MODELS = {"x86_64": "max", "arm64": "cortex-a57"}


def programs(machine: Machine) -> tuple[Path, ...]:
    """Directories with the programs that virtme-ng looks for in PATH."""
    return (TOOLS, virtiofsd(machine.tools).parent)


def _common(machine: Machine, root: Path) -> list[str]:
    # virtme-ng's two programs stand beside the interpreter of our environment.
    command = [
        str(Path(sys.executable).parent / "vng"),
        "--root", str(root),
        "--run", str(root / machine.image),
        "--qemu", str(machine.qemu),
        "--user", "root",
        "--cpus", str(machine.cpus),
        "--memory", f"{machine.memory_mb}M",
    ]  # fmt: skip
    if machine.accelerator.name != "kvm":
        command.append("--disable-kvm")
    if not machine.posix_acl:
        command.append("--no-root-posix-acl")
    if not machine.arch.native:
        command += ["--arch", machine.arch.name]
    for word in machine.boot:
        command += ["--append", word]
    return command


def _options(machine: Machine, *words: str) -> list[str]:
    """What virtme-ng hands on to QEMU as it is."""
    accelerator = ["-accel", machine.accelerator_option] if machine.in_turn else []
    options = " ".join([*accelerator, *words])
    return [f"--qemu-opts={options}"] if options else []


@dataclass(frozen=True)
class Virtme:
    """See vm.machine.Engine."""

    name = "virtme"
    namespaced = True

    def cpu_model(self, machine: Machine) -> str:
        """See Engine."""
        if machine.accelerator.name == "kvm":
            return "host"
        return _CPU_MODELS[machine.arch.name]

    def sysrq(self, machine: Machine) -> tuple[str, ...]:
        """See Engine; the console's serial port is connected to a file: no way in."""
        return ("keyboard",) if machine.arch is X86_64 else ()

    def agent_command(self, machine: Machine, root: Path) -> list[str]:
        """See Engine."""
        command = _common(machine, root)
        for option in KERNEL_OPTIONS:
            command += ["--append", option]
        command += [*_options(machine, *agent_devices()), "--verbose"]
        agent = f"cd /cohabit && exec python3 -E -s -m agent /dev/virtio-ports/{AGENT_PORT}"
        return [*command, "--exec", agent]


VIRTME = Virtme()


def shell_command(machine: Machine, root: Path, command: str | None = None) -> list[str]:
    """The argv that boots the guest for a person, on this terminal."""
    execute = ("--exec", command) if command else ()
    return [*_common(machine, root), *_options(machine), *execute]
