# SPDX-License-Identifier: GPL-2.0-only
"""The kernel's reports on their way into the record, each once and with the step it came in."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from harness.monitor import Finding, Monitor, Severity

from .record import Record

#: The host's time, in front of each line of console-<vm>.log (harness/target/console.py).
_HOST_TIME = re.compile(r"^ *\d+\.\d{3} ")


class Reports:
    """Records the reports of one VM's kernel.

    ``place`` gives the keys of a ``report`` event that say where it came (docs/events.md).
    """

    def __init__(self, record: Record, vm: str, place: Callable[[], Mapping[str, Any]]) -> None:
        self._record = record
        self._vm = vm
        self._place = place
        self._number = 0
        self._told: Counter[tuple[str, str]] = Counter()

    def of_reply(self, reply: Mapping[str, Any]) -> list[str]:
        """Record the reports among the messages in an agent's reply; returns their titles."""
        monitor = Monitor()
        records = [(int(r["level"]), float(r["t"]), str(r["text"])) for r in reply["log"]]
        found = _faults([*monitor.feed_records(records), *monitor.finish()])
        for finding in found:
            self._told[finding.kind, finding.title] += 1
            self._event(finding)
        return [finding.title for finding in found]

    def of_console(self, path: Path, asked: bool) -> None:
        """Record what a console has beyond that: the agent could not tell of it any more.

        ``asked``: the kernel hung and was asked for backtraces, which may have ended in a
        panic (vm/diagnose.py).
        """
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            # A target without a console; one that could not be written has said so.
            return
        monitor = Monitor()
        for line in text.splitlines():
            monitor.feed(_HOST_TIME.sub("", line).encode() + b"\n")
        monitor.finish()
        left = self._told.copy()
        for finding in _faults(monitor.findings):
            key = finding.kind, finding.title
            if left[key]:
                left[key] -= 1
            elif not (asked and finding.kind == "panic"):
                self._event(finding)

    def _event(self, finding: Finding) -> None:
        self._record.event(
            "report",
            report=f"{self._vm}:r{self._number}",
            vm=self._vm,
            **self._place(),
            kind=finding.kind,
            title=finding.title,
            fingerprint=finding.fingerprint,
            lines=list(finding.lines),
        )
        self._number += 1


def _faults(findings: Iterable[Finding]) -> list[Finding]:
    return [f for f in findings if f.severity is not Severity.BENIGN]
