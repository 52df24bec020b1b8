# SPDX-License-Identifier: GPL-2.0-only
"""What a virtual machine is asked to be; an engine says how QEMU is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from harness.arch import X86_64, Arch

#: What of the guest's root file system is ours.
GUEST = Path(__file__).resolve().parent / "guest"

AGENT_PORT = "cohabit.agent"
#: Sockets are named relative to the VM's directory: a unix socket's path may
#: have no more than 107 characters, a directory's any number.
AGENT_SOCKET = "agent.sock"
QMP_SOCKET = "qmp.sock"

#: QEMU's name for the serial port that is the guest's console, where input gets there.
CONSOLE = "console"

#: Words for every kernel's command line.
KERNEL_OPTIONS = (
    "loglevel=7",
    # For the keys that make the kernel show where its CPUs are.
    "sysrq_always_enabled",
    # An injected NMI then says where the CPU was, when SysRq no longer does.
    "unknown_nmi_panic",
)


#: What an emulated CPU model leaves out, and what that spares (docs/architecture.md).
CPU_COSTS = {
    "max,pauth=off": "no pointer authentication: emulated, it takes 3.6 times as long",
    "cortex-a57": "no pointer authentication, no LSE atomics: virtme-ng's choice, as quick",
}


def agent_devices() -> list[str]:
    """QEMU's options for the agent's port and for the monitor."""
    return [
        "-chardev", f"socket,id=cohabit,path={AGENT_SOCKET}",
        "-device", "virtio-serial-pci,id=cohabit0",
        "-device", f"virtserialport,bus=cohabit0.0,chardev=cohabit,name={AGENT_PORT}",
        "-chardev", f"socket,id=qmp,path={QMP_SOCKET}", "-mon", "chardev=qmp,mode=control",
    ]  # fmt: skip


@dataclass(frozen=True)
class Accelerator:
    """``name`` is kvm or tcg; ``why`` the reason in words; ``slowdown`` scales timeouts."""

    name: str
    why: str

    @property
    def slowdown(self) -> float:
        """How much longer than on KVM anything may take."""
        return 1.0 if self.name == "kvm" else 10.0


class Engine(Protocol):
    """A way to boot a machine."""

    @property
    def name(self) -> str:
        """What the record calls it."""

    def sysrq(self, machine: Machine) -> tuple[str, ...]:
        """How SysRq reaches the guest, the best way first.

        ``break``: by a BREAK on its console and a key; ``keyboard``: by its keyboard.
        """

    @property
    def namespaced(self) -> bool:
        """Whether it runs in a namespace of its own, with the guest's files mounted in it.

        Its console then comes on standard error, otherwise on standard output; what the
        agent says comes on the other one.
        """

    def cpu_model(self, machine: Machine) -> str:
        """The CPU model that the guest gets."""

    def agent_command(self, machine: Machine, root: Path) -> list[str]:
        """The argv that boots the guest with the agent on a virtio-serial port.

        ``root`` is where its files are mounted, if they are.
        """


@dataclass(frozen=True)
class Machine:
    """One VM, before it is started.

    ``layers`` are the directories that make its root file system, the uppermost
    first, the root file system itself the last; ``shares`` are host directories it
    sees read-only, by guest path; ``image`` is the kernel's path below the root;
    ``tools`` a root file system whose programs the host runs; ``boot``: words for the
    kernel's command line.
    """

    engine: Engine
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
    def cpu_model(self) -> str:
        """The CPU model that its engine gives this guest."""
        return self.engine.cpu_model(self)

    @property
    def in_turn(self) -> bool:
        """Whether its CPUs take turns on one CPU of the host.

        With a thread for each emulated CPU QEMU 10.0 now and then goes on with the translation
        of a byte that another one has replaced: a breakpoint that is not there any more
        (docs/findings/stale-breakpoint.md).
        """
        return self.accelerator.name == "tcg" and self.cpus > 1

    @property
    def accelerator_option(self) -> str:
        """The value of QEMU's option ``-accel``."""
        return f"{self.accelerator.name}{',thread=single' if self.in_turn else ''}"

    @property
    def cpu_cost(self) -> str:
        """What these CPUs leave out, in words; "" for nothing."""
        costs = [CPU_COSTS.get(self.cpu_model, "")]
        costs += ["they take turns, none runs while another does"] if self.in_turn else []
        return "; ".join(filter(None, costs))

    def agent_command(self, root: Path) -> list[str]:
        """The argv that boots the guest, with the agent on a virtio-serial port."""
        return self.engine.agent_command(self, root)
