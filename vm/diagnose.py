# SPDX-License-Identifier: GPL-2.0-only
"""Asking a kernel that no longer answers what its CPUs are doing."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self

from qemu.qmp import QMPClient, QMPError

from .process import Process

#: SysRq keys and their answers (drivers/tty/sysrq.c: sysrq_showallcpus_op,
#: sysrq_showstate_blocked_op): where the CPUs are, and who waits for what.
SHOWN = {"l": "Show backtrace of all active CPUs", "w": "Show Blocked State"}
#: An NMI that nobody asked for (arch/x86/kernel/nmi.c: unknown_nmi_error).
NMI_SEEN = ("Kernel panic", "NMI: Not continuing", "Uhhuh. NMI received")

Waiter = Callable[[tuple[str, ...], float], bool]


def backtraces(process: Process, wait_for: Waiter, patience: float) -> list[str]:
    """Makes the kernel show every CPU's backtrace on its console.

    First by SysRq on the keyboard, which needs interrupts (drivers/tty/sysrq.c:
    sysrq_filter); where that has no effect, by an NMI, which needs nothing and ends
    the kernel.  ``wait_for(texts, seconds)`` tells whether the console showed one of
    them; no wait here is longer than ``patience`` seconds.  Returns where QEMU says
    each CPU was, one line a CPU, which needs no kernel at all; or why that is not known.
    """
    connection = _accept(process.qmp_listener, patience)
    if connection is None:
        return ["QEMU's monitor did not connect"]
    lines: list[str] = []
    try:
        with connection, _Monitor(connection, patience) as monitor:
            registers = monitor.ask("human-monitor-command", {"command-line": "info registers -a"})
            lines += _positions(str(registers))
            for key, answer in SHOWN.items():
                monitor.ask("send-key", {"keys": _keys("alt", "sysrq", key)})
                if not wait_for((answer,), patience):
                    monitor.ask("inject-nmi")
                    if not wait_for(NMI_SEEN, patience):
                        lines.append("the kernel answered neither SysRq nor an NMI")
                    break
    except (OSError, EOFError, TimeoutError, QMPError) as error:
        lines.append(f"QEMU's monitor does not answer ({type(error).__name__})")
    return lines


class _Monitor:
    """QEMU's machine protocol on a connected socket; every wait has an end."""

    def __init__(self, connection: socket.socket, patience: float) -> None:
        self._patience = patience
        self._runner = asyncio.Runner()
        self._client = QMPClient()
        self._connection = connection

    def _wait(self, what: Coroutine[Any, Any, object]) -> object:
        return self._runner.run(asyncio.wait_for(what, self._patience))

    def __enter__(self) -> Self:
        try:
            self._wait(self._client.connect(self._connection))
        except BaseException:
            self._runner.close()
            raise
        return self

    def ask(self, command: str, arguments: dict[str, object] | None = None) -> object:
        """A command's answer."""
        return self._wait(self._client.execute(command, arguments))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._wait(self._client.disconnect())
        finally:
            self._runner.close()


def _accept(listener: socket.socket, patience: float) -> socket.socket | None:
    listener.settimeout(patience)
    try:
        return listener.accept()[0]
    except TimeoutError:
        return None


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
