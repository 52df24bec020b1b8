# SPDX-License-Identifier: GPL-2.0-only
"""A running virtual machine: its processes, sockets and console.

Everything a VM has on the host is below one directory of its own: when the
harness is killed at any moment, the VM dies with it (the outer process asks
for SIGKILL at its parent's death, and takes its namespace along), and the
directory is swept by the next run, because nobody holds its lock any more.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from harness.agent.channel import ChannelError, Reader, pack
from harness.arch import host
from harness.errors import InfraError

from . import namespace, virtme
from .machine import AGENT_SOCKET, QMP_SOCKET, Machine
from .monitor import Monitor

_PREFIX = "cohabit-vm-"
#: A virtio-serial port moves a few MB a second under emulation.
_CHUNK = 1 << 16

ConsoleLine = tuple[float, bytes]


def scratch_root() -> Path:
    """Where VMs have their directories: short, and gone after a reboot."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if runtime and os.access(runtime, os.W_OK):
        return Path(runtime)
    return Path(tempfile.gettempdir())


def sweep() -> int:
    """Removes directories of VMs whose harness is gone; returns how many."""
    swept = 0
    for directory in scratch_root().glob(f"{_PREFIX}*"):
        try:
            lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            # Gone by now, or somebody else's.
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(directory, ignore_errors=True)
            swept += 1
        except BlockingIOError:
            pass
        finally:
            os.close(lock)
    return swept


class Scratch:
    """A VM's directory on the host, locked as long as this process lives."""

    def __init__(self) -> None:
        while True:
            self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=scratch_root()))
            try:
                self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
            except FileNotFoundError:
                continue
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            # A sweep may have been faster than the lock.
            if self.path.exists():
                break
            os.close(self._lock)
        self.root = self.path / "root"
        try:
            for name in ("root", "tmp", "home"):
                (self.path / name).mkdir()
        except BaseException:
            self.close()
            raise

    def environment(self, machine: Machine) -> dict[str, str]:
        """virtme-ng leaves its temporary files and its settings in here, not at home."""
        environment = Path(sys.executable).parent
        path = [*(str(p) for p in (*virtme.programs(machine), environment))]
        return {
            "PATH": ":".join([*path, os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"]),
            "HOME": str(self.path / "home"),
            "TMPDIR": str(self.path / "tmp"),
            "LC_ALL": "C.UTF-8",
            "TERM": os.environ.get("TERM", "dumb"),
            "COHABIT_TOOLS_ROOT": str(machine.tools),
            "COHABIT_TOOLS_LOADER": host().loader,
            "COHABIT_TOOLS_LIBRARIES": f"usr/lib/{host().triplet}",
        }

    def wrap(self, machine: Machine, command: list[str]) -> list[str]:
        """The command, in a namespace of its own if need be, that ends with this process."""
        if not machine.engine.namespaced:
            return ["setpriv", "--pdeathsig", "KILL", *command]
        argv = namespace.command(
            command,
            lowers=machine.layers,
            mountpoint=self.root,
            binds=[(path, target, False) for path, target in machine.shares],
        )
        return ["setpriv", "--pdeathsig", "KILL", *argv]

    def close(self) -> None:
        """Removes the directory."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def interact(machine: Machine, command: str | None = None) -> int:
    """Boots the machine for a person on this terminal; returns the command's status.

    By virtme-ng, whatever the machine's engine is.
    """
    with contextlib.closing(Scratch()) as scratch:
        machine = dataclasses.replace(machine, engine=virtme.VIRTME)
        argv = scratch.wrap(machine, virtme.shell_command(machine, scratch.root, command))
        with subprocess.Popen(argv, cwd=scratch.path, env=scratch.environment(machine)) as guest:
            try:
                return guest.wait()
            except BaseException:
                guest.kill()
                raise


def bare_boot(machine: Machine) -> float:
    """Seconds from starting ``vng`` to the first output of a command in the guest."""
    with contextlib.closing(Scratch()) as scratch:
        machine = dataclasses.replace(machine, engine=virtme.VIRTME)
        argv = scratch.wrap(machine, virtme.shell_command(machine, scratch.root, "echo up"))
        began = time.monotonic()
        with subprocess.Popen(
            argv,
            cwd=scratch.path,
            env=scratch.environment(machine),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as guest:
            try:
                output, errors = guest.stdout, guest.stderr
                assert output is not None
                assert errors is not None
                if not output.readline().strip():
                    raise InfraError(f"vng failed: {errors.read().decode(errors='replace')}")
                return time.monotonic() - began
            finally:
                guest.kill()


class GuestGoneError(Exception):
    """The VM ended, or closed the agent's channel, while it was needed."""


class GuestSilentError(Exception):
    """No answer within the deadline, though the VM is still there."""


class Process:
    """Starts a machine and keeps hold of it.

    ``on_console`` is called from a thread of its own with (seconds since start,
    bytes) as they come.  Raises InfraError where it cannot be started.
    """

    def __init__(self, machine: Machine, on_console: Callable[[float, bytes], None]) -> None:
        self._on_console = on_console
        self._stack = contextlib.ExitStack()
        try:
            self._scratch = self._stack.enter_context(contextlib.closing(Scratch()))
            self._start(machine)
        except BaseException as error:
            self._stack.close()
            if isinstance(error, OSError):
                raise InfraError(
                    f"a VM cannot be started in {scratch_root()}: {error}",
                    "see that there is room, or set XDG_RUNTIME_DIR or TMPDIR to another directory",
                ) from error
            raise

    def _listen(self, name: str) -> socket.socket:
        listener = self._stack.enter_context(socket.socket(socket.AF_UNIX))
        # Through /proc, so that the length of our own path does not matter.
        directory = os.open(self._scratch.path, os.O_PATH)
        try:
            listener.bind(f"/proc/self/fd/{directory}/{name}")
        finally:
            os.close(directory)
        listener.listen(1)
        return listener

    def _start(self, machine: Machine) -> None:
        # Bound before QEMU starts, so that there is no moment to wait for.
        self._agent_listener = self._listen(AGENT_SOCKET)
        self._qmp_listener = self._listen(QMP_SOCKET)
        self.command = machine.agent_command(self._scratch.root)
        self.started = time.monotonic()
        self._popen = subprocess.Popen(
            self._scratch.wrap(machine, self.command),
            cwd=self._scratch.path,
            env=self._scratch.environment(machine),
            stdin=subprocess.DEVNULL if machine.engine.namespaced else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self._stack.callback(self._end)
        outputs = [self._popen.stderr, self._popen.stdout]
        self._console, self._output = outputs if machine.engine.namespaced else outputs[::-1]
        self._pidfd = os.pidfd_open(self._popen.pid)
        self._stack.callback(os.close, self._pidfd)
        self._sysrq = machine.engine.sysrq(machine)
        self._monitor: Monitor | None = None
        self._agent: socket.socket | None = None
        self._reader: Reader | None = None
        self._deadline = 0.0
        self._requests = 0
        self.agent_output = b""
        self._threads = [
            threading.Thread(target=self._pump_console, daemon=True),
            threading.Thread(target=self._pump_output, daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def _pump_console(self) -> None:
        assert self._console is not None
        while data := os.read(self._console.fileno(), _CHUNK):
            self._on_console(time.monotonic() - self.started, data)

    def _pump_output(self) -> None:
        assert self._output is not None
        while data := os.read(self._output.fileno(), _CHUNK):
            self.agent_output = (self.agent_output + data)[-_CHUNK:]

    def _wait_readable(self, what: socket.socket) -> None:
        """Returns when the socket has something, raises when that can't be any more."""
        while True:
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise GuestSilentError
            ready, _, _ = select.select([what.fileno(), self._pidfd], [], [], left)
            if what.fileno() in ready:
                return
            if ready:
                raise GuestGoneError("the VM ended")

    def _recv(self, size: int) -> bytes:
        assert self._agent is not None
        self._wait_readable(self._agent)
        return self._agent.recv(size)

    def request(self, message: dict[str, object], timeout: float) -> dict[str, object]:
        """Sends one request to the agent and returns its reply.

        ``timeout`` in seconds.  Raises GuestGoneError or GuestSilentError; a
        reply that tells of an exception in the agent is an InfraError.
        """
        self._deadline = time.monotonic() + timeout
        if self._agent is None:
            self._wait_readable(self._agent_listener)
            self._agent = self._stack.enter_context(self._agent_listener.accept()[0])
            self._reader = Reader(self._recv)
        assert self._reader is not None
        self._requests += 1
        try:
            self._agent.sendall(pack({**message, "id": self._requests}))
            reply = self._reader.message()
            # An answer to an earlier request came too late: ours is behind it.
            while reply is not None and reply.get("id") != self._requests:
                reply = self._reader.message()
        except (OSError, ChannelError) as error:
            raise GuestGoneError(str(error)) from error
        if reply is None:
            raise GuestGoneError("the agent's channel was closed")
        if "error" in reply:
            raise InfraError(f"the agent failed:\n{reply['error']}")
        return reply

    def alive(self) -> bool:
        """Whether the VM's processes are still there."""
        return self._popen.poll() is None

    def wait(self, timeout: float) -> bool:
        """Waits for the VM to end by itself; whether it did."""
        try:
            self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            return False
        for thread in self._threads:
            thread.join(timeout)
        return True

    def monitor(self, patience: float) -> Monitor:
        """QEMU's monitor, for as long as the VM is there; see Monitor for what it raises."""
        if self._monitor is None:
            self._monitor = self._stack.enter_context(Monitor(self._qmp_listener, patience))
        self._monitor.patience = patience
        return self._monitor

    @property
    def sysrq(self) -> tuple[str, ...]:
        """See vm.machine.Engine."""
        return self._sysrq

    def type(self, text: str) -> None:
        """Sends text to the guest's console; raises OSError where that cannot be."""
        assert self._popen.stdin is not None
        self._popen.stdin.write(text.encode())
        self._popen.stdin.flush()

    @property
    def pid(self) -> int:
        """The outer process; its whole namespace ends with it."""
        return self._popen.pid

    def kill(self) -> None:
        """Ends the VM's processes now; the rest is close()'s. Safe from any thread."""
        # unshare --kill-child ignores TERM and INT itself, and its namespace
        # ends with it however it ends.
        with contextlib.suppress(ProcessLookupError):
            self._popen.send_signal(signal.SIGKILL)

    def _end(self) -> None:
        self.kill()
        self._popen.wait()
        for thread in self._threads:
            thread.join(5)
        for pipe in (self._popen.stdin, self._popen.stdout, self._popen.stderr):
            if pipe is not None:
                pipe.close()

    def close(self) -> None:
        """Ends the VM and removes everything it had on the host."""
        self._stack.close()
