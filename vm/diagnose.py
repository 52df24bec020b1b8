# SPDX-License-Identifier: GPL-2.0-only
"""Asking a kernel that no longer answers what its CPUs are doing."""

from __future__ import annotations

import re
from collections.abc import Callable

from .machine import CONSOLE
from .monitor import TROUBLE, Monitor, NotConnectedError, RefusedError
from .process import Process

#: SysRq keys and their answers (drivers/tty/sysrq.c: sysrq_showallcpus_op,
#: sysrq_showstate_blocked_op): where the CPUs are, and who waits for what.
SHOWN = {"l": "Show backtrace of all active CPUs", "w": "Show Blocked State"}
#: An NMI that nobody asked for (arch/x86/kernel/nmi.c: unknown_nmi_error).
NMI_SEEN = ("Kernel panic", "NMI: Not continuing", "Uhhuh. NMI received")

Waiter = Callable[[tuple[str, ...], float], bool]


def backtraces(process: Process, wait_for: Waiter, patience: float) -> list[str]:
    """Makes the kernel show every CPU's backtrace on its console.

    First by SysRq, which needs interrupts: a BREAK and a key on the console
    (include/linux/serial_core.h: uart_handle_break), or a keyboard (drivers/tty/sysrq.c:
    sysrq_filter), whatever this guest has.  Where that has no effect, by an NMI, which needs
    nothing and ends the kernel; QEMU's arm64 machine has none.  ``wait_for(texts, seconds)``
    tells whether the console showed one of them; no wait here is longer than three times
    ``patience`` seconds.  Returns where QEMU says each CPU was, one line a CPU, which needs
    no kernel at all; or why that is not known.
    """
    lines: list[str] = []
    try:
        monitor = process.monitor(patience)
        registers = monitor.ask("human-monitor-command", {"command-line": "info registers -a"})
        lines += _positions(str(registers))
        way = None
        for key, answer in SHOWN.items():
            ways = process.sysrq if way is None else (way,)
            answers = (w for w in ways if _answers(process, monitor, w, key, answer, wait_for))
            way = next(answers, None)
            if way is None:
                lines += _by_nmi(monitor, wait_for)
                break
    except NotConnectedError:
        lines.append("QEMU's monitor did not connect")
    except RefusedError as refused:
        lines.append(f"QEMU's monitor: {refused}")
    except TROUBLE as error:
        lines.append(f"QEMU's monitor does not answer ({type(error).__name__})")
    return lines


def _answers(
    process: Process, monitor: Monitor, way: str, key: str, answer: str, wait_for: Waiter
) -> bool:
    """Presses a SysRq key in one of Engine.sysrq's ways; whether the kernel answered."""
    if way == "break":
        monitor.ask("chardev-send-break", {"id": CONSOLE})
        process.type(key)
    else:
        monitor.ask("send-key", {"keys": _keys("alt", "sysrq", key)})
    return wait_for((answer,), monitor.patience)


def _by_nmi(monitor: Monitor, wait_for: Waiter) -> list[str]:
    try:
        monitor.ask("inject-nmi")
    except RefusedError:
        return ["the kernel did not answer SysRq, and this machine has no NMI"]
    # What a panic in an NMI says comes out only when the other CPUs were stopped, or given up
    # (kernel/panic.c: panic, kernel/printk: messages of an NMI are deferred).
    if wait_for(NMI_SEEN, 3 * monitor.patience):
        return []
    return ["the kernel answered neither SysRq nor an NMI"]


def _keys(*codes: str) -> list[dict[str, str]]:
    return [{"type": "qcode", "data": code} for code in codes]


def _positions(registers: str) -> list[str]:
    """``CPU 0: at ffffffff81000000`` for each CPU in QEMU's list of registers."""
    found = []
    for number, text in re.findall(r"CPU#(\d+)(.*?)(?=CPU#|\Z)", registers, re.DOTALL):
        position = re.search(r"\b(?:[RE]IP|PC)=([0-9a-f]+)", text)
        if position:
            found.append(f"CPU {number}: at {position[1]}")
    return found
