# SPDX-License-Identifier: GPL-2.0-only
"""A target in a virtual machine, booted or restored from a snapshot."""

from __future__ import annotations

import dataclasses
import os
import re
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.errors import InfraError
from harness.monitor import boot_failure
from vm import diagnose
from vm import snapshot as vm_snapshot
from vm.direct import Direct, Memory
from vm.machine import Machine
from vm.process import GuestGoneError, GuestSilentError, Process
from vm.snapshot import SnapshotError

from .console import Console
from .protocol import Target, TargetAbortedError, TargetGoneError, TargetSilentError
from .snapshot import Snapshot, Template

#: Seconds on a fast machine for QEMU to take a snapshot and for the agent to answer then.
_RESTORE_TIMEOUT = 4.0
#: And for QEMU to write one.
_SAVE_TIMEOUT = 6.0
_ENTROPY = 64


class VmTarget:
    """See harness.target.protocol.Target; ``console`` is where the console is recorded.

    ``template``: what to restore it from; ``why``: where there is none, the reason for that.
    """

    def __init__(
        self,
        machine: Machine,
        qemu_version: str,
        console: Path,
        template: Template | None = None,
        why: str = "",
    ) -> None:
        self._machine = machine
        self._qemu_version = qemu_version
        self._path = console
        self._console = Console(console)
        self._template = template
        self._why = why
        self._process: Process | None = None
        self._lock = threading.Lock()
        self._aborted = False
        self._watched: list[Target] = []
        #: How many seconds ``start`` took; with a snapshot to the agent's first reply.
        self.started_s = 0.0
        #: The console as it was before diagnosing made the kernel panic.
        self._undisturbed: list[str] | None = None

    @property
    def slowdown(self) -> float:
        """See Target."""
        return self._machine.accelerator.slowdown

    def start(self) -> Mapping[str, Any]:
        """See Target; raises InfraError where the VM cannot be started."""
        restored: Mapping[str, Any] | None = None
        began = time.monotonic()
        why, made = self._why, 0.0
        if self._template is not None:
            try:
                snapshot = self._template.get(self._watch)
                made = snapshot.made_s
                restored = self._restored(self._template, snapshot)
            except SnapshotError as error:
                if self._aborted:
                    raise TargetAbortedError from error
                why = str(error)
        if restored is None:
            self._begin(self._machine)
        assert self._process is not None
        self.started_s = time.monotonic() - began - made
        return {
            "engine": self._machine.engine.name,
            "accel": self._machine.accelerator.name,
            "accel_why": self._machine.accelerator.why,
            "qemu": self._qemu_version,
            "cpu": self._machine.cpu_model,
            "cpu_cost": self._machine.cpu_cost,
            "cpus": self._machine.cpus,
            "memory_mb": self._machine.memory_mb,
            "start": "cold" if restored is None else "snapshot",
            "start_why": why if restored is None else "",
            "made_s": round(made, 3),
            **({"identity": restored} if restored else {}),
            "command": self._process.command,
        }

    def _begin(self, machine: Machine) -> Process:
        with self._lock:
            if self._aborted:
                raise TargetAbortedError
            self._process = Process(machine, self._console.feed)
            return self._process

    def _watch(self, target: Target) -> None:
        """Takes a VM that is booted for the template, to be aborted with this one."""
        with self._lock:
            self._watched.append(target)
            if self._aborted:
                target.abort()

    def _restored(self, template: Template, snapshot: Snapshot) -> Mapping[str, Any]:
        """Starts the VM from a snapshot; what the agent says that it is now.

        Raises SnapshotError; the template is spoilt and the VM gone then.
        """
        engine = self._machine.engine
        assert isinstance(engine, Direct)
        memory = Memory(snapshot.memory, snapshot.state)
        machine = dataclasses.replace(
            self._machine, engine=dataclasses.replace(engine, memory=memory)
        )
        self._console.precede(snapshot.console)
        process = self._begin(machine)
        timeout = _RESTORE_TIMEOUT * self.slowdown
        try:
            vm_snapshot.load(process, snapshot.state, timeout)
            reply = process.request(
                {
                    "op": "restored",
                    "entropy": os.urandom(_ENTROPY).hex(),
                    "now": time.time(),
                    "hostname": f"cohabit-{secrets.token_hex(4)}",
                },
                timeout,
            )
        except (SnapshotError, GuestGoneError, GuestSilentError, InfraError) as error:
            reason = str(error) or "the agent in the restored VM does not answer"
            process.wait(0.1)
            if said := process.agent_output.decode("utf-8", "replace").strip().splitlines():
                reason += f" ({said[-1]})"
            process.close()
            self._process = None
            self._console.close()
            self._console = Console(self._path)
            if not self._aborted:
                template.spoil(reason)
            raise SnapshotError(f"the snapshot cannot be used: {reason}") from error
        result = reply["result"]
        assert isinstance(result, dict)
        return result

    def save(self, state: Path) -> None:
        """Writes its state into a file and ends it; raises vm.snapshot.SnapshotError."""
        if self._process is None:
            raise SnapshotError("the VM is gone")
        vm_snapshot.save(self._process, state, _SAVE_TIMEOUT * self.slowdown)
        self._process.kill()

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
            for target in self._watched:
                target.abort()
            if self._process is not None:
                self._process.kill()

    def stop(self) -> None:
        """See Target."""
        if self._process is not None:
            self._process.close()
        self._console.close()
