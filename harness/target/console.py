# SPDX-License-Identifier: GPL-2.0-only
"""A VM's console: recorded with times, watched for the kernel's end."""

from __future__ import annotations

import collections
import contextlib
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from harness.errors import InfraError
from harness.monitor import LineSplitter, Monitor, Severity

#: Lines kept in memory; the file has them all.
_KEPT = 4000


class Console:
    """Takes the console's bytes from one thread, answers others.

    ``path`` gets each line with the host's time since the VM's start in front.  Where that
    fails (a full disk), the rest is only watched, and ``close`` raises InfraError.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._failed: OSError | None = None
        try:
            self._file = path.open("w", encoding="utf-8")
        except OSError as error:
            raise self._unwritable(error) from error
        self._splitter = LineSplitter()
        self._monitor = Monitor()
        self._lines: collections.deque[str] = collections.deque(maxlen=_KEPT)
        self._total = 0
        # Its lock is entered again from within (wait_for asks since).
        self._changed = threading.Condition(threading.RLock())

    def feed(self, at: float, data: bytes) -> None:
        """Takes what came ``at`` seconds after the start."""
        with self._changed:
            self._monitor.feed(data)
            self._add(at, [line.text for line in self._splitter.feed(data)])
            self._changed.notify_all()

    def precede(self, console: Path) -> None:
        """Puts another console's lines in front of this one's file: of the boot before it.

        They are recorded, not watched.
        """
        with self._changed, contextlib.suppress(OSError):
            lines = console.read_text(encoding="utf-8").splitlines(keepends=True)
            self._file.writelines([*lines, f"{0:10.3f} (restored from a snapshot)\n"])
            self._file.flush()

    def _unwritable(self, error: OSError) -> InfraError:
        return InfraError(
            f"cannot record the console in {self._path}: {error.strerror}",
            "free some room, or name another directory by --output or COHABIT_CACHE",
        )

    def _add(self, at: float, texts: Sequence[str]) -> None:
        self._lines.extend(texts)
        self._total += len(texts)
        if self._file.closed or self._failed:
            return
        try:
            self._file.writelines(f"{at:10.3f} {text}\n" for text in texts)
            self._file.flush()
        except OSError as error:
            # Not raised here: whoever reads the console has to go on, or QEMU would block.
            self._failed = error

    def close(self) -> None:
        """Takes what is left as a last line and closes the file."""
        with self._changed:
            self._add(0.0, [line.text for line in self._splitter.flush()])
            try:
                self._file.close()
            except OSError as error:
                self._failed = error
        if self._failed:
            raise self._unwritable(self._failed) from self._failed

    def mark(self) -> int:
        """A place in the console, for ``since``."""
        with self._changed:
            return self._total

    def since(self, mark: int) -> list[str]:
        """The lines that came after a mark (the last few thousand at most)."""
        with self._changed:
            wanted = min(self._total - mark, len(self._lines))
            return list(self._lines)[len(self._lines) - wanted :]

    def wait_for(self, texts: Sequence[str], mark: int, timeout: float) -> bool:
        """Waits until a line after the mark has one of these texts."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while not any(text in line for line in self.since(mark) for text in texts):
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(left)
        return True

    def quiet(self, seconds: float, timeout: float) -> None:
        """Waits until nothing came for so long, or the timeout."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while time.monotonic() < deadline and self._changed.wait(seconds):
                pass

    def tail(self, count: int = 120) -> list[str]:
        """The last lines: a panic with its stack, half of it guesses, is one of 50."""
        with self._changed:
            return list(self._lines)[-count:]

    def crash(self) -> str | None:
        """The title of the report that tells of the kernel's end.

        The cause of a panic (an Oops, a BUG) comes before the panic's own line.  That
        report has no end where the kernel reboots (kernel/panic.c: panic).
        """
        with self._changed:
            seen = self._monitor.seen
            return next((f.title for f in seen if f.severity is Severity.CRASH), None)
