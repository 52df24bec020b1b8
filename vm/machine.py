# SPDX-License-Identifier: GPL-2.0-only
"""What a virtual machine is asked to be, and how virtme-ng is told."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from harness.arch import X86_64, Arch

from .rootfs import virtiofsd

#: Stand-ins for programs that virtme-ng asks on the host.
TOOLS = Path(__file__).resolve().parent / "tools"
#: What of the guest's root file system is ours.
GUEST = Path(__file__).resolve().parent / "guest"

AGENT_PORT = "cohabit.agent"
#: Sockets are named relative to the VM's directory: a unix socket's path may
#: have no more than 107 characters, a directory's any number.
AGENT_SOCKET = "agent.sock"
QMP_SOCKET = "qmp.sock"

#: What virtme-ng 1.42 chooses under emulation (virtme/architectures.py).
_CPU_MODELS = {"x86_64": "max", "arm64": "cortex-a57"}

_KERNEL_OPTIONS = (
    "loglevel=7",
    # For the keys that make the kernel show where its CPUs are.
    "sysrq_always_enabled",
    # An injected NMI then says where the CPU was, when SysRq no longer does.
    "unknown_nmi_panic",
)


@dataclass(frozen=True)
class Accelerator:
    """``name`` is kvm or tcg; ``why`` the reason in words; ``slowdown`` scales timeouts."""

    name: str
    why: str

    @property
    def slowdown(self) -> float:
        """How much longer than on KVM anything may take."""
        return 1.0 if self.name == "kvm" else 10.0


@dataclass(frozen=True)
class Machine:
    """One VM, before it is started.

    ``layers`` are the directories that make its root file system, the uppermost
    first, the root file system itself the last; ``shares`` are host directories it
    sees read-only, by guest path; ``image`` is the kernel's path below the root;
    ``tools`` a root file system whose programs the host runs; ``boot``: words for the
    kernel's command line.
    """

    layers: tuple[Path, ...]
    shares: tuple[tuple[Path, str], ...]
    image: str
    qemu: Path
    tools: Path
    accelerator: Accelerator
    cpus: int = 1
    memory_mb: int = 1024
    posix_acl: bool = True
    arch: Arch = X86_64
    boot: tuple[str, ...] = ()

    @property
    def programs(self) -> tuple[Path, ...]:
        """Directories with the programs that virtme-ng looks for in PATH."""
        return (TOOLS, virtiofsd(self.tools).parent)

    @property
    def cpu_model(self) -> str:
        """The CPU model that virtme-ng gives this guest."""
        return "host" if self.accelerator.name == "kvm" else _CPU_MODELS[self.arch.name]

    def _common(self, root: Path) -> list[str]:
        # virtme-ng's two programs stand beside the interpreter of our environment.
        command = [
            str(Path(sys.executable).parent / "vng"),
            "--root", str(root),
            "--run", str(root / self.image),
            "--qemu", str(self.qemu),
            "--user", "root",
            "--cpus", str(self.cpus),
            "--memory", f"{self.memory_mb}M",
        ]  # fmt: skip
        if self.accelerator.name != "kvm":
            command.append("--disable-kvm")
        if not self.posix_acl:
            command.append("--no-root-posix-acl")
        if not self.arch.native:
            command += ["--arch", self.arch.name]
        for word in self.boot:
            command += ["--append", word]
        return command

    def agent_command(self, root: Path) -> list[str]:
        """The argv that boots the guest, with the agent on a virtio-serial port."""
        command = self._common(root)
        for option in _KERNEL_OPTIONS:
            command += ["--append", option]
        devices = (
            f"-chardev socket,id=cohabit,path={AGENT_SOCKET}",
            f"-device virtio-serial-pci,id=cohabit0 -device virtserialport,bus=cohabit0.0,"
            f"chardev=cohabit,name={AGENT_PORT}",
            f"-chardev socket,id=qmp,path={QMP_SOCKET} -mon chardev=qmp,mode=control",
        )
        command += [f"--qemu-opts={' '.join(devices)}", "--verbose"]
        agent = f"cd /cohabit && exec python3 -E -s -m agent /dev/virtio-ports/{AGENT_PORT}"
        return [*command, "--exec", agent]

    def shell_command(self, root: Path, command: str | None = None) -> list[str]:
        """The argv that boots the guest for a person, on this terminal."""
        return [*self._common(root), *(("--exec", command) if command else ())]
