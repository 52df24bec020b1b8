# SPDX-License-Identifier: GPL-2.0-only
"""Looking: the registry, the functions' behaviour, what each attachment saw, the log."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any, Optional, Protocol

from . import system
from .attachers import Seen
from .calls import Caller
from .livepatch import livepatches
from .tracers import TRACEFS

FTRACE_ENABLED = "/proc/sys/kernel/ftrace_enabled"
#: More of a registry text than this is somebody tracing everything.
REGISTRY_LIMIT = 1 << 20
#: Different texts that a watch keeps.
WATCH_LIMIT = 200


class Counters(Protocol):
    """Where attachments of a sort count their hits."""

    def clear(self) -> None:
        """Sets all of them to zero."""

    def seen(self) -> Iterable[Seen]:
        """What each attachment has seen of each of its functions since then."""


def ftrace_enabled() -> int:
    """The sysctl; -1 where it can't be read: ftrace has shut itself down (ENODEV)."""
    return int((system.read(FTRACE_ENABLED) or "-1").strip())


def attribute(calls: dict[str, dict[str, Any]], everything: Iterable[Seen]) -> None:
    """Gives each called function a ``seen``: by attachment what that saw of it.

    Hits of a function that nobody called go to all that were: one of them was it.
    """
    for result in calls.values():
        result["seen"] = {}
    for identity, function, seen in everything:
        if function in calls:
            calls[function]["seen"][identity] = seen
        elif seen["hits"]:
            for result in calls.values():
                result["seen"].setdefault(identity, seen)


class Observer:
    """Makes observations; ``sources`` may grow."""

    def __init__(self, caller: Caller, sources: list[Counters]) -> None:
        self._caller = caller
        self._sources = sources
        self.log = system.KernelLog()

    def observe(self, functions: list[str], context: str, touched: bool = False) -> dict[str, Any]:
        """Everything there is to see; each function is called once, in that context.

        ``touched``: also what was ever on them, of a file that grows and grows: to every
        function there is, once all were traced.

        All are called before anything is read: where an attachment was hit by the call of
        another function, it has more ``hits`` than it should.
        """
        enabled = system.read(TRACEFS + "enabled_functions")
        ever = (
            records_of(system.read(TRACEFS + "touched_functions"), functions) if touched else None
        )
        self._caller.prepare(functions)
        for source in self._sources:
            source.clear()
        calls = self._caller.call(functions, context)
        attribute(calls, (seen for source in self._sources for seen in source.seen()))
        return {
            "enabled_functions": enabled[:REGISTRY_LIMIT] if enabled is not None else None,
            "touched_functions": ever,
            "calls": calls,
            "livepatch": livepatches(),
            "ftrace_enabled": ftrace_enabled(),
            # Last, so that what the calls above caused is in it.
            "log": self.log.take(),
            "log_complete": self.log.complete,
        }


def records_of(text: Optional[str], functions: list[str]) -> Optional[str]:
    """Of a registry's text the records of these functions: what follows one is indented."""
    if text is None:
        return None
    kept, wanted, names = [], False, set(functions)
    for line in text.splitlines(True):
        if not line[:1].isspace():
            wanted = line.partition(" ")[0] in names
        if wanted:
            kept.append(line)
    return "".join(kept)


class Watch:
    """Reads a file again and again on a thread, from ``with`` to its end."""

    def __init__(self, path: str = TRACEFS + "enabled_functions") -> None:
        self._path = path
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._texts: dict[str, None] = {}
        self._reads = 0

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            text: Optional[str] = system.read(self._path)
            self._reads += 1
            if text is not None and len(self._texts) < WATCH_LIMIT:
                self._texts[text[:REGISTRY_LIMIT]] = None
            if self._stop.is_set():
                return

    def result(self) -> dict[str, Any]:
        """``reads`` done, and the different ``texts`` in the order of their first."""
        return {"reads": self._reads, "texts": list(self._texts)}
