# SPDX-License-Identifier: GPL-2.0-only
"""A target in a virtual machine, booted by virtme-ng."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.monitor import boot_failure
from vm import diagnose
from vm.machine import Machine
from vm.process import GuestGoneError, GuestSilentError, Process

from .console import Console
from .protocol import TargetAbortedError, TargetGoneError, TargetSilentError


class VmTarget:
    """See harness.target.protocol.Target; ``console`` is where the console is recorded."""

    def __init__(self, machine: Machine, qemu_version: str, console: Path) -> None:
        self._machine = machine
        self._qemu_version = qemu_version
        self._console = Console(console)
        self._process: Process | None = None
        self._lock = threading.Lock()
        self._aborted = False
        #: The console as it was before diagnosing made the kernel panic.
        self._undisturbed: list[str] | None = None

    @property
    def slowdown(self) -> float:
        """See Target."""
        return self._machine.accelerator.slowdown

    def start(self) -> Mapping[str, Any]:
        """See Target; raises InfraError where the VM cannot be started."""
        with self._lock:
            if self._aborted:
                raise TargetAbortedError
            self._process = Process(self._machine, self._console.feed)
        return {
            "engine": self._machine.engine.name,
            "accel": self._machine.accelerator.name,
            "accel_why": self._machine.accelerator.why,
            "qemu": self._qemu_version,
            "cpu": self._machine.cpu_model,
            "cpus": self._machine.cpus,
            "memory_mb": self._machine.memory_mb,
            "command": self._process.command,
        }

    def request(self, message: Mapping[str, Any], timeout: float) -> Mapping[str, Any]:
        """See Target."""
        process = self._process
        if process is None:
            raise TargetGoneError("not started")
        try:
            return process.request(dict(message), timeout * self.slowdown)
        except GuestGoneError as gone:
            if self._aborted:
                raise TargetAbortedError from gone
            raise TargetGoneError(str(gone)) from gone
        except GuestSilentError as silent:
            raise TargetSilentError from silent

    def ended(self, timeout: float) -> bool:
        """See Target."""
        return self._process is None or self._process.wait(timeout * self.slowdown)

    def console_tail(self) -> Sequence[str]:
        """See Target; with what the agent said on its way out."""
        lines = self._console.tail()
        if self._process is not None and self._process.agent_output:
            output = self._process.agent_output.decode("utf-8", "backslashreplace")
            lines += [f"agent: {line}" for line in output.splitlines()[-20:]]
        return lines

    def crash(self) -> str | None:
        """See Target."""
        return self._console.crash()

    def boot_failure(self) -> str | None:
        """See Target."""
        return boot_failure(self._undisturbed or self._console.tail(400))

    def backtraces(self) -> Sequence[str]:
        """See Target."""
        if self._process is None:
            return []
        self._undisturbed = self._console.tail(400)
        mark = self._console.mark()
        positions = diagnose.backtraces(
            self._process,
            lambda texts, seconds: self._console.wait_for(texts, mark, seconds),
            0.5 * self.slowdown,
        )
        # A backtrace is over when the console is.
        self._console.quiet(0.1 * self.slowdown, 1.0 * self.slowdown)
        shown = [re.sub(r"\s+$", "", line) for line in self._console.since(mark)]
        return [*positions, *shown]

    def abort(self) -> None:
        """See Target."""
        with self._lock:
            self._aborted = True
            if self._process is not None:
                self._process.kill()

    def stop(self) -> None:
        """See Target."""
        if self._process is not None:
            self._process.close()
        self._console.close()
