# SPDX-License-Identifier: GPL-2.0-only
"""The record of a run: one directory, ``events.jsonl`` its only source (docs/events.md)."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from harness.errors import InfraError, UsageError

FORMAT = 1
Listener = Callable[[Mapping[str, Any]], None]


def unwritable(directory: Path, error: OSError) -> InfraError:
    """The error for a record that cannot be written."""
    return InfraError(
        f"cannot write the run's record in {directory}: {error.strerror}",
        "free some room, or name another directory by --output or COHABIT_CACHE",
    )


def new_directory(runs: Path) -> Path:
    """A new directory for a run, named after the time; parents are made."""
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
    for attempt in range(1000):
        directory = runs / (stamp if not attempt else f"{stamp}-{attempt}")
        try:
            directory.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise unwritable(runs, error) from error
        return directory
    raise InfraError(f"cannot make a new directory in {runs}", "remove old runs there")


class Record:
    """Writes events, each a line at once, and hands them to listeners.

    Safe to use from several threads.  The directory is made if need be, and an older record
    in it is written over.  A full disk, or a directory that may not be written to, raises
    InfraError; one that another run writes to at the time, UsageError.
    """

    def __init__(self, directory: Path, listeners: tuple[Listener, ...] = ()) -> None:
        self.directory = directory
        self._listeners = listeners
        self._lock = threading.Lock()
        self._sequence = 0
        self._began = time.monotonic()
        with self._disk_errors():
            directory.mkdir(parents=True, exist_ok=True)
            # Nothing of it is lost before it is known to be nobody else's.
            self._file = (directory / "events.jsonl").open("a", encoding="utf-8")
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._file.close()
                raise UsageError(
                    f"another run is writing its record in {directory}",
                    "wait for it, or name another directory by --output",
                ) from None
            if os.fstat(self._file.fileno()).st_size:
                self._file.truncate(0)

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise unwritable(self.directory, error) from error

    def event(self, kind: str, /, **values: Any) -> None:
        """Adds one event."""
        with self._lock:
            event: dict[str, Any] = {
                "seq": self._sequence,
                "t": round(time.monotonic() - self._began, 4),
                "type": kind,
                **values,
            }
            line = json.dumps(event, separators=(",", ":")) + "\n"
            # From here on the line may reach the file, if only when that is closed.
            self._sequence += 1
            with self._disk_errors():
                self._file.write(line)
                self._file.flush()
            for listener in self._listeners:
                listener(event)

    def passing(self, kind: str, /, **values: Any) -> None:
        """Something for who looks on at this moment; it has no ``seq`` and is not kept."""
        with self._lock:
            for listener in self._listeners:
                listener({"type": kind, **values})

    def note(self, text: str, level: str = "info") -> None:
        """Something said during the run."""
        self.event("note", text=text, level=level)

    def console(self, vm: str) -> Path:
        """Where a VM's console goes."""
        return self.directory / f"console-{vm}.log"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # What led here says more than a disk that is still full.
        hidden = contextlib.suppress(InfraError) if value else contextlib.nullcontext()
        with self._lock, hidden, self._disk_errors():
            try:
                self._file.flush()
                os.fsync(self._file.fileno())
            finally:
                self._file.close()
