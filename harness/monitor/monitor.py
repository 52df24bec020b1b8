# SPDX-License-Identifier: GPL-2.0-only
"""From lines to findings: collects each report of the kernel as it comes in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from harness.monitor import patterns
from harness.monitor.findings import Finding, Severity
from harness.monitor.lines import Line, LineSplitter, parse_lines
from harness.monitor.patterns import End, Start

Record: TypeAlias = tuple[int, float, str]
"""A record of /dev/kmsg: level, seconds, text (escapes undone, no continuation lines)."""

MAX_REPORT_LINES = 400
"""A report that is longer ends here; what follows begins no report."""

_MAX_FRAMES = 64

# A report is printed at one go.  Where nothing marks its end, a line this many
# seconds after the one before is another matter.
_PAUSE = 1.0


class _Report:
    """A report that is coming in."""

    def __init__(self, start: Start, line: Line) -> None:
        self.start = start
        self.end = start.end
        self.lines: list[str] = []
        self.first = line.text
        self.title = ""
        self.time = line.time
        self.latest = 0.0
        self.cpu: int | None = None
        self.process = ""
        self.frames: list[str] = []
        self.loose: list[str] = []
        self.patience = start.patience
        # "cut here" says only that a report begins: the lines after it say which.
        self.nameless = False
        self.traced = False
        self.tracing = False
        self.expected = False

    def finding(self) -> Finding:
        severity = self.start.severity
        if self.expected and severity is Severity.SPLAT:
            severity = Severity.BENIGN
        return Finding(
            severity=severity,
            kind=self.start.kind,
            title=self.title or self.first,
            lines=tuple(self.lines),
            time=self.time,
            cpu=self.cpu,
            process=self.process,
            frames=tuple(self.frames or self.loose),
            expected=self.expected,
        )

    def takes(self, start: Start) -> bool:
        """Whether a line that could begin a report goes on with this one."""
        kind = self.start.kind
        if self.end is End.PANIC or kind in start.nests:
            return True
        if start.kind == "panic":
            return False
        if self.nameless and not start.opens_cut:
            return True
        if start.severity is Severity.BENIGN and self.end is not End.TRACE:
            return True
        return kind in start.joins and not self.traced

    def rename(self, start: Start) -> None:
        """Take what the line that began with ``start`` says about this report."""
        if start.opens_cut:
            self.end = End.MARKED
        elif self.nameless and start.end is End.MARKED:
            # Any other start is the text that WARN() was given.
            self.nameless = False
            self.start = start

    def add(self, line: Line) -> None:
        text = line.text
        self.lines.append(line.full)
        self.latest = self.latest if line.time is None else line.time
        if not self.title and text.strip() and not patterns.BANNER.match(text):
            self.title = text.strip()
            self.time = line.time
        if patterns.TRACE.match(text):
            self.traced = self.tracing = True
            return
        frame = patterns.FRAME.match(text)
        if frame:
            self._frame(frame[2], sure=not frame[1])
            return
        register = patterns.REGISTER_FRAME.match(text)
        if register:
            # The trace of arm64 begins with the function that pc names.
            if self.tracing or not self.frames:
                self._frame(register[1], sure=True, named=True)
            return
        if self.tracing and not patterns.is_part(text):
            self.tracing = False
        self._context(text)

    def _frame(self, name: str, sure: bool, named: bool = False) -> None:
        if not sure:
            return
        if (self.tracing or named) and len(self.frames) < _MAX_FRAMES:
            if not self.frames or self.frames[-1] != name:
                self.frames.append(name)
        elif not self.traced and len(self.loose) < _MAX_FRAMES:
            self.loose.append(name)

    def _context(self, text: str) -> None:
        if self.process:
            return
        for pattern in patterns.CONTEXT:
            found = pattern.match(text)
            if found:
                named = found.groupdict()
                if self.cpu is None and named.get("cpu"):
                    self.cpu = int(named["cpu"])
                if named.get("comm"):
                    self.process = f"{named['comm']}/{named['pid']}"
                return


class _Stream:
    """The reports of one source of lines; one open report for each caller."""

    def __init__(self, expected: Sequence[re.Pattern[str]]) -> None:
        self._expected = expected
        self._open: dict[str, _Report] = {}
        self._rules: dict[str, Line] = {}
        self._stamped = False
        self._panicked = False

    @property
    def open(self) -> list[_Report]:
        return list(self._open.values())

    def line(self, line: Line) -> list[Finding]:
        if line.time is not None:
            self._stamped = True
        elif self._stamped and not line.text.startswith("Kernel panic - not syncing"):
            # Where the kernel stamps its records, the rest is user space's.
            return []
        if self._panicked and not self._open:
            return []
        report = self._open.get(line.caller)
        rule = self._rules.pop(line.caller, None)
        start = patterns.match_start(line.text, rule is not None)
        if report is not None:
            if start is not None and report.takes(start):
                report.rename(start)
                return self._add(report, line)
            if start is None and self._continues(report, line):
                return self._add(report, line)
        closed = self._close(line.caller)
        if start is not None:
            self._begin(start, line, rule)
        elif patterns.RULE.match(line.text):
            self._rules[line.caller] = line
        return closed

    def finish(self) -> list[Finding]:
        return [finding for caller in list(self._open) for finding in self._close(caller)]

    def _begin(self, start: Start, line: Line, rule: Line | None) -> None:
        report = _Report(start, line)
        if rule is not None:
            report.lines.append(rule.full)
            # UBSAN had rules before it had markers (lib/ubsan.c until 5.12).
            if report.end is End.MARKED:
                report.end = End.RULED
        report.nameless = line.text == patterns.CUT
        self._panicked = self._panicked or start.kind == "panic"
        self._open[line.caller] = report
        self._add(report, line)

    def _continues(self, report: _Report, line: Line) -> bool:
        if report.end is not End.TRACE:
            return True
        if line.time is not None and line.time - report.latest > _PAUSE:
            return False
        if patterns.is_part(line.text) or patterns.FRAME.match(line.text):
            return True
        if report.traced or report.patience <= 0 or patterns.RULE.match(line.text):
            return False
        report.patience -= 1
        return True

    def _add(self, report: _Report, line: Line) -> list[Finding]:
        report.add(line)
        if not report.expected:
            report.expected = any(pattern.search(line.text) for pattern in self._expected)
        text = line.text
        ended = (
            len(report.lines) >= MAX_REPORT_LINES
            or (report.end is End.MARKED and patterns.END_TRACE.match(text))
            or (report.end is End.RULED and patterns.RULE.match(text))
            or (report.end is End.PANIC and patterns.END_PANIC.match(text))
        )
        return self._close(line.caller) if ended else []

    def _close(self, caller: str) -> list[Finding]:
        report = self._open.pop(caller, None)
        return [report.finding()] if report is not None else []


class Monitor:
    """Reads a console, or kernel log records, or both, and reports findings.

    ``expected`` are patterns (``re.search`` on each message of a report) whose
    SPLATs become BENIGN; a CRASH stays one.  After a panic nothing else is a
    finding.  A report that both sources show is one finding.  Nothing that is
    fed raises.
    """

    def __init__(self, expected: Sequence[re.Pattern[str] | str] = ()) -> None:
        compiled = [re.compile(pattern) for pattern in expected]
        self._splitter = LineSplitter()
        self._console = _Stream(compiled)
        self._log = _Stream(compiled)
        self._findings: list[Finding] = []
        self._seen: set[tuple[str, str, float]] = set()

    def feed(self, data: bytes) -> list[Finding]:
        """Take the next bytes of the console; return the findings they complete."""
        return self._take(self._console, self._splitter.feed(data))

    def feed_records(self, records: Iterable[Record]) -> list[Finding]:
        """Take the next records of /dev/kmsg; return the findings they complete."""
        found: list[Finding] = []
        for _level, seconds, text in records:
            lines = []
            for part in text.split("\n"):
                plain = parse_lines(part)[-1].text
                lines.append(Line(plain, seconds, "", f"[{seconds:12.6f}] {plain}"))
            found += self._take(self._log, lines)
        return found

    def finish(self) -> list[Finding]:
        """End of the input: return what was still coming in, as findings."""
        found = self._take(self._console, self._splitter.flush())
        return found + self._keep(self._console.finish()) + self._keep(self._log.finish())

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All completed findings so far, in the order in which they completed."""
        return tuple(self._findings)

    @property
    def seen(self) -> tuple[Finding, ...]:
        """``findings``, and behind them what is still coming in, as far as it has come."""
        coming = [report.finding() for report in self._console.open + self._log.open]
        return (*self._findings, *coming)

    @property
    def worst(self) -> Severity:
        """The worst seen so far, a report that is still coming in included."""
        return max((f.severity for f in self.seen), default=Severity.BENIGN)

    @property
    def crashed(self) -> bool:
        """Whether the kernel crashed: true from the first line that says so."""
        return self.worst is Severity.CRASH

    def _take(self, stream: _Stream, lines: Iterable[Line]) -> list[Finding]:
        return self._keep([finding for line in lines for finding in stream.line(line)])

    def _keep(self, findings: Iterable[Finding]) -> list[Finding]:
        kept = []
        for finding in findings:
            if finding.time is not None:
                key = (finding.kind, finding.title, finding.time)
                if key in self._seen:
                    continue
                self._seen.add(key)
            kept.append(finding)
        self._findings += kept
        return kept
