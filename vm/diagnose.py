# SPDX-License-Identifier: GPL-2.0-only
"""Asking a kernel that no longer answers what its CPUs are doing."""

from __future__ import annotations

import re
from collections.abc import Callable

from qemu.qmp.legacy import QEMUMonitorProtocol

from .process import Process

#: SysRq's answer (drivers/tty/sysrq.c: sysrq_showallcpus_op).
SHOWN = "Show backtrace of all active CPUs"
#: An NMI that nobody asked for (arch/x86/kernel/nmi.c: unknown_nmi_error).
NMI_SEEN = ("Kernel panic", "NMI: Not continuing", "Uhhuh. NMI received")

Waiter = Callable[[tuple[str, ...], float], bool]


def backtraces(process: Process, wait_for: Waiter, patience: float) -> list[str]:
    """Makes the kernel show every CPU's backtrace on its console.

    First by SysRq-l over the second serial port, which needs interrupts; then by
    an NMI, which needs nothing.  ``wait_for(texts, seconds)`` tells whether the
    console showed one of them.  Returns where QEMU says each CPU was, one line a
    CPU, which needs no kernel at all.
    """
    lines: list[str] = []
    listener = process.qmp_listener
    listener.settimeout(patience)
    try:
        connection, _ = listener.accept()
    except TimeoutError:
        return ["QEMU's monitor does not answer"]
    with connection:
        monitor = QEMUMonitorProtocol(connection)
        try:
            monitor.connect()
            registers = monitor.cmd(
                "human-monitor-command", **{"command-line": "info registers -a"}
            )
            lines = _positions(str(registers))
            if not _sysrq(process, monitor, wait_for, patience):
                monitor.cmd("inject-nmi")
                wait_for(NMI_SEEN, patience)
        finally:
            monitor.close()
    return lines


def _sysrq(
    process: Process, monitor: QEMUMonitorProtocol, wait_for: Waiter, patience: float
) -> bool:
    listener = process.sysrq_listener
    listener.settimeout(patience)
    try:
        serial, _ = listener.accept()
    except TimeoutError:
        return False
    with serial:
        monitor.cmd("chardev-send-break", id="sysrq")
        serial.sendall(b"l")
        return wait_for((SHOWN,), patience)


def _positions(registers: str) -> list[str]:
    """``CPU 0: RIP ffffffff81000000`` for each CPU in QEMU's list of registers."""
    found = []
    for number, text in re.findall(r"CPU#(\d+)(.*?)(?=CPU#|\Z)", registers, re.DOTALL):
        position = re.search(r"\b(?:RIP|PC)=([0-9a-f]+)", text)
        if position:
            found.append(f"CPU {number}: at {position[1]}")
    return found
