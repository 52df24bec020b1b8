# SPDX-License-Identifier: GPL-2.0-only
"""A guest's state in files, to go on from as often as one likes.

The guest's memory is a file from the beginning (vm/direct.py: Memory), which QEMU maps;
what is saved besides is the state of the devices, a few hundred KB.  A guest that goes on
from there maps the file privately: nothing is copied that it does not write to, and all of
them share the host's page cache.
"""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

from .monitor import TROUBLE, NotConnectedError, RefusedError
from .process import Process

OLDEST_QEMU = (8, 2)
"""The first release that migrates to a file by its name alone."""

#: The memory is not part of what is migrated: it is in its file already.
_CAPABILITIES: dict[str, object] = {
    "capabilities": [{"capability": "x-ignore-shared", "state": True}]
}
_POLL = 0.01
_CHUNK = 1 << 22


class SnapshotError(Exception):
    """A snapshot cannot be made or used, for the reason that it gives."""


def save(process: Process, state: Path, patience: float) -> None:
    """Writes a running guest's state; the guest is stopped then.

    ``patience``: seconds that it may take.  Raises SnapshotError.
    """
    deadline = time.monotonic() + patience
    try:
        monitor = process.monitor(patience)
        monitor.ask("migrate-set-capabilities", _CAPABILITIES)
        monitor.ask("migrate", {"uri": f"file:{state}"})
        while True:
            told = monitor.ask("query-migrate")
            status = told.get("status") if isinstance(told, dict) else None
            if status == "completed":
                return
            if status in ("failed", "cancelled"):
                raise SnapshotError(f"QEMU could not save the VM: {told}")
            if time.monotonic() > deadline:
                raise SnapshotError("QEMU did not save the VM in time")
            time.sleep(_POLL)
    except (NotConnectedError, RefusedError, *TROUBLE) as error:
        raise _error("saving the VM", error) from error


def load(process: Process, state: Path, patience: float) -> None:
    """Lets a guest that waits for it go on from ``state``; raises SnapshotError.

    It goes on by itself once QEMU has read it all; where that fails, QEMU ends.
    """
    try:
        monitor = process.monitor(patience)
        monitor.ask("migrate-set-capabilities", _CAPABILITIES)
        monitor.ask("migrate-incoming", {"uri": f"file:{state}"})
    except (NotConnectedError, RefusedError, *TROUBLE) as error:
        raise _error("restoring the VM", error) from error


def _error(what: str, error: Exception) -> SnapshotError:
    said = str(error) or type(error).__name__
    return SnapshotError(f"{what}: QEMU's monitor: {said}")


def digest(path: Path) -> str:
    """The SHA-256 of what a file with holes has between them, and of where that is."""
    found = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        fd, size, place = file.fileno(), path.stat().st_size, 0
        while place < size:
            try:
                begin = os.lseek(fd, place, os.SEEK_DATA)
            except OSError:
                # Nothing but a hole is left (lseek(2): ENXIO).
                break
            place = os.lseek(fd, begin, os.SEEK_HOLE)
            found.update(f"{begin}-{place} ".encode())
            for offset in range(begin, place, _CHUNK):
                found.update(os.pread(fd, min(_CHUNK, place - offset), offset))
        found.update(f"of {size}".encode())
    return found.hexdigest()
