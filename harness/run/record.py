# SPDX-License-Identifier: GPL-2.0-only
"""The record of a run: one directory, ``events.jsonl`` its only source (docs/events.md)."""

from __future__ import annotations

import datetime
import errno
import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from harness.errors import InfraError

FORMAT = 1
Listener = Callable[[Mapping[str, Any]], None]


def new_directory(runs: Path) -> Path:
    """A new directory for a run, named after the time; parents are made."""
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
    for attempt in range(1000):
        directory = runs / (stamp if not attempt else f"{stamp}-{attempt}")
        try:
            directory.mkdir(parents=True)
        except FileExistsError:
            continue
        return directory
    raise InfraError(f"cannot make a new directory in {runs}", "remove old runs there")


class Record:
    """Writes events, each a line at once, and hands them to listeners.

    Safe to use from several threads.  A full disk raises InfraError.
    """

    def __init__(self, directory: Path, listeners: tuple[Listener, ...] = ()) -> None:
        self.directory = directory
        self._listeners = listeners
        self._lock = threading.Lock()
        self._sequence = 0
        self._began = time.monotonic()
        self._file = (directory / "events.jsonl").open("w", encoding="utf-8")

    def event(self, kind: str, **values: Any) -> None:
        """Adds one event."""
        with self._lock:
            event: dict[str, Any] = {
                "seq": self._sequence,
                "t": round(time.monotonic() - self._began, 4),
                "type": kind,
                **values,
            }
            self._sequence += 1
            try:
                self._file.write(json.dumps(event, separators=(",", ":")) + "\n")
                self._file.flush()
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise InfraError(
                    f"no space left for the run's record in {self.directory}",
                    "free some, or set COHABIT_CACHE to a directory with room",
                ) from error
            for listener in self._listeners:
                listener(event)

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
        with self._lock:
            os.fsync(self._file.fileno())
            self._file.close()
