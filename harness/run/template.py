# SPDX-License-Identifier: GPL-2.0-only
"""Making the snapshot that VMs of a run are restored from: once, for later runs too."""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import re
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from harness.errors import CohabitError
from harness.kernels.model import Kernel
from harness.kernels.store import Store
from harness.target.protocol import (
    Target,
    TargetAbortedError,
    TargetGoneError,
    TargetSilentError,
)
from harness.target.snapshot import Snapshot
from harness.target.vm import VmTarget
from vm.direct import Direct, Memory
from vm.machine import Machine
from vm.snapshot import OLDEST_QEMU, SnapshotError, digest

from .greeting import BOOT_TIMEOUT, COMPILE_TIMEOUT, STEP_TIMEOUT, hello
from .programs import Programs

Say = Callable[[str], None]

RECIPE = "2"
"""Counts up whenever what is done below changes what comes out."""

KIND = "snapshot"
_LABEL = "snapshot"
#: How many of one kernel stay in the cache.
_KEPT = 3
#: Room that has to be left on the disk besides the memory's, in bytes.
_ROOM = 64 << 20
#: Of a host with KVM, what the state of a guest's CPU depends on.
_CPU_LINES = re.compile(r"^(?:vendor_id|model name|microcode|flags|Features|CPU \w+)\s*:.*$", re.M)


class KernelTemplate:
    """The snapshot of one kernel's VM: see harness.target.snapshot.Template.

    The agent is up, the modules are loaded, the BPF programs compiled; nothing was attached
    or called, and nobody has read the boot ID.  ``machine`` is the one that boots;
    ``qemu`` is its QEMU's version.  It is made when first asked for, by one thread and
    process at a time, and what went wrong once is not tried again.
    """

    def __init__(
        self,
        machine: Machine,
        qemu: tuple[int, ...],
        kernel: Kernel,
        programs: Programs,
        store: Store,
        say: Say,
    ) -> None:
        self._machine = machine
        self._qemu = qemu
        self._kernel = kernel
        self._programs = programs
        self._store = store
        self._say = say
        self._lock = threading.Lock()
        self._snapshot: Snapshot | None = None
        self._reason = ""

    def get(self, watch: Callable[[Target], None]) -> Snapshot:
        """See Template."""
        with self._lock:
            if self._reason:
                raise SnapshotError(self._reason)
            if self._snapshot is not None:
                return replace(self._snapshot, made_s=0.0)
            try:
                self._snapshot = self._found_or_made(watch)
            except TargetAbortedError as error:
                # The next one to ask is being aborted, too.
                raise SnapshotError("stopped") from error
            except SnapshotError as error:
                self._reason = str(error)
                raise
            return self._snapshot

    def spoil(self, reason: str) -> None:
        """See Template; what later runs would find is removed, too."""
        with self._lock:
            self._snapshot = None
            self._reason = f"restoring failed before: {reason}"
            self._store.discard(KIND, self._inputs())

    def _found_or_made(self, watch: Callable[[Target], None]) -> Snapshot:
        if self._qemu < OLDEST_QEMU:
            oldest = ".".join(map(str, OLDEST_QEMU))
            raise SnapshotError(f"snapshots need QEMU {oldest} or newer")
        try:
            found = self._stored(watch)
            if not found.made_s and digest(found.memory) != _told(found):
                self._say(f"{_LABEL} of {self._told}: its memory has changed; making it anew")
                self._store.discard(KIND, self._inputs())
                found = self._stored(watch)
        except CohabitError as error:
            raise SnapshotError(f"no snapshot can be made: {error}") from error
        return found

    def _stored(self, watch: Callable[[Target], None]) -> Snapshot:
        """What the cache has, or what is made for it now."""
        made = 0.0

        def make(tree: Path) -> list[str]:
            nonlocal made
            began = time.monotonic()
            self._make(tree, watch)
            made = time.monotonic() - began
            return ["state", "console", "digest"]

        label = f"{_LABEL} of {self._told}"
        tree = self._store.get(KIND, self._inputs(), make, label=label, say=self._say)
        if made:
            self._remove_older(label)
        return Snapshot(tree / "memory", tree / "state", tree / "console", made)

    @property
    def _told(self) -> str:
        cpus = [f"{self._machine.cpus} CPUs"] if self._machine.cpus > 1 else []
        return " ".join([self._kernel.release, *self._machine.boot, *cpus])

    def _remove_older(self, label: str) -> None:
        """Keeps the last few of a kernel: each change to the agent makes another."""
        same = [entry for entry in self._store.entries(KIND) if entry.label == label]
        for entry in same[_KEPT:]:
            with contextlib.suppress(CohabitError):
                self._store.remove(entry)

    def _make(self, tree: Path, watch: Callable[[Target], None]) -> None:
        wanted = (self._machine.memory_mb << 20) + _ROOM
        if (free := shutil.disk_usage(tree).free) < wanted:
            raise SnapshotError(
                f"no room for a snapshot: {free >> 20} MB free in {self._store.root}, "
                f"it may take {wanted >> 20} MB"
            )
        self._say(f"{self._kernel.release}: booting once, for a snapshot")
        engine = self._machine.engine
        assert isinstance(engine, Direct)
        machine = replace(
            self._machine, engine=replace(engine, memory=Memory(tree / "memory", None))
        )
        target = VmTarget(machine, "", tree / "console")
        watch(target)
        try:
            target.start()
            make_ready(target, self._kernel.release, self._programs)
            target.save(tree / "state")
        except (TargetGoneError, TargetSilentError) as error:
            lines = target.console_tail()
            last = f" after {lines[-1]!r}" if lines else ""
            said = str(error) or "the agent did not answer"
            raise SnapshotError(f"no snapshot can be made: {said}{last}") from error
        finally:
            target.stop()
        (tree / "digest").write_text(digest(tree / "memory"), encoding="ascii")

    def _inputs(self) -> Mapping[str, str]:
        """All that the state of a VM with the agent up depends on."""
        machine = self._machine
        # Disks and initramfs are named by what is in them.
        command = machine.agent_command(Path())
        greeting = hello(self._kernel.release, machine.accelerator.slowdown)
        inputs = {
            "recipe": RECIPE,
            "command": json.dumps(command),
            "kernel": image_digest(self._kernel),
            "qemu": _program(machine.qemu, self._qemu),
            "greeting": _sha256(json.dumps(greeting, sort_keys=True).encode()),
            "programs": self._programs.key,
        }
        if machine.accelerator.name == "kvm":
            cpus = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
            lines = sorted(set(_CPU_LINES.findall(cpus)))
            inputs["host"] = _sha256("\n".join([platform.release(), *lines]).encode())
        return inputs


def make_ready(target: Target, release: str, programs: Programs) -> None:
    """Does all that a session does before its first scenario (harness/run/session.py).

    And imports bcc, so that whoever wants it need not wait.  Raises as Target.request.
    """
    facts = target.request(hello(release, target.slowdown), BOOT_TIMEOUT)["result"]
    target.request({"op": "modules"}, STEP_TIMEOUT)
    if facts["vmlinux_btf"]:
        request = {"op": "compile", "programs": programs.get(), "import_bcc": True}
        reply = target.request(request, COMPILE_TIMEOUT)
        programs.put(reply["result"]["programs"])


def _told(snapshot: Snapshot) -> str:
    """The digest that its memory had when it was made."""
    return (snapshot.memory.parent / "digest").read_text(encoding="ascii")


def image_digest(kernel: Kernel) -> str:
    """What a kernel is called by among the inputs of its snapshots."""
    return _sha256(kernel.image.read_bytes())


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _program(path: Path, version: tuple[int, ...]) -> str:
    status = path.stat()
    told = ".".join(map(str, version))
    return f"{told} {status.st_size} {status.st_mtime_ns}"
