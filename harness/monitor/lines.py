# SPDX-License-Identifier: GPL-2.0-only
"""Console bytes to lines: incremental, bounded, and blind to how they were cut.

A serial console carries three things at once: the kernel's records, each with
a stamp if ``printk.time`` is on, what user space writes to the same terminal,
and what the firmware wrote before.  Here they only become lines; what a line
means is for ``patterns`` and ``monitor``.
"""

from __future__ import annotations

import re
from typing import NamedTuple

LINE_LIMIT = 8192
"""Bytes after which a line without an end is cut.  The longest record of the
kernel is far shorter (``PRINTK_MESSAGE_MAX``, kernel/printk/internal.h: 2048)."""

# kernel/printk/printk.c, print_time() and print_caller(): "[%5lu.%06lu]", then
# with CONFIG_PRINTK_CALLER "[   T12]" (a task) or "[    C0]" (an interrupt).
# Something may follow the number inside the brackets: out-of-tree printers and
# newer kernels add the CPU or the command.
_STAMP = r"\[ {0,8}(\d{1,12}\.\d{6})\](?:\[ {0,8}([TC]\d{1,10})[^\[\]\n]{0,32}\])? ?"
_STAMP_RE = re.compile(_STAMP)
_STAMP_BYTES = re.compile(_STAMP.encode())
_STAMP_MAX = 64

# ECMA-48: control sequences, operating system commands, other escapes.
_ESCAPE = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]+[0-~]|[0-Z\\^-~])"
)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


class Line(NamedTuple):
    """One line of a console.

    ``text`` is the message without stamp and caller; ``time`` the kernel's time
    in seconds, or None for a line that has no stamp: user space, firmware, or a
    kernel with ``printk.time=0``; ``caller`` is ``T<pid>`` or ``C<cpu>`` where
    the kernel prints it, else empty; ``full`` is the line as it was shown.
    """

    text: str
    time: float | None
    caller: str
    full: str


def parse_lines(text: str) -> list[Line]:
    """Cut one shown line (no newline in it) into its lines; never empty.

    There is more than one where user space left a line open and a record of
    the kernel came after it, where a panic broke into another CPU's record,
    and where a bare carriage return started over.
    """
    if "\x1b" in text:
        text = _ESCAPE.sub("", text)
    if _CONTROL.search(text):
        text = _CONTROL.sub("", text)
    pieces = [piece for piece in text.split("\r") if piece] or [""]
    return [line for piece in pieces for line in _at_stamps(piece)]


def _at_stamps(text: str) -> list[Line]:
    lines: list[Line] = []
    rest = 0
    stamp: re.Match[str] | None = None
    # The search starts at brackets only: nearly all lines have just one.
    bracket = text.find("[")
    while bracket >= 0:
        found = _STAMP_RE.match(text, bracket)
        if found is None:
            bracket = text.find("[", bracket + 1)
            continue
        if found.start() > rest:
            lines.append(_line(text[rest : found.start()], stamp, rest))
        stamp, rest = found, found.start()
        bracket = text.find("[", found.end())
    lines.append(_line(text[rest:], stamp, rest))
    return lines


def _line(full: str, stamp: re.Match[str] | None, start: int) -> Line:
    if stamp is None:
        return Line(full, None, "", full)
    return Line(full[stamp.end() - start :], float(stamp[1]), stamp[2] or "", full)


class LineSplitter:
    """Collects bytes in any pieces and gives the same lines for all of them.

    Line feeds end lines; carriage returns before them are dropped, bare ones
    start a new line.  Escape sequences and control characters go; what is no
    UTF-8 stays visible as ``\\xNN``.  A line longer than ``LINE_LIMIT`` bytes
    comes in parts, cut where a stamp begins if there is one, so that a record
    behind a flood without newlines is still read whole.
    """

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, data: bytes) -> list[Line]:
        """Take the next bytes; return the lines that they complete."""
        lines: list[Line] = []
        start = 0
        while (end := data.find(b"\n", start)) >= 0:
            self._append(data[start:end], lines)
            lines += self._take(len(self._pending))
            start = end + 1
        self._append(data[start:], lines)
        return lines

    def flush(self) -> list[Line]:
        """Return the last line if it never ended, and forget it."""
        return self._take(len(self._pending)) if self._pending else []

    def _append(self, part: bytes, lines: list[Line]) -> None:
        # The limit is a property of the line, not of the pieces it came in:
        # a part that passes it is taken as if byte by byte.
        while len(self._pending) + len(part) >= LINE_LIMIT:
            room = LINE_LIMIT - len(self._pending)
            self._pending += part[:room]
            part = part[room:]
            lines += self._take(self._cut())
        self._pending += part

    def _cut(self) -> int:
        """Where to cut a line that is full: at its last stamp, or all of it."""
        cut = 0
        for stamp in _STAMP_BYTES.finditer(self._pending):
            cut = stamp.start()
        # A stamp may just be coming in.
        opening = self._pending.rfind(b"[", len(self._pending) - _STAMP_MAX)
        return max(cut, opening) if max(cut, opening) > 0 else len(self._pending)

    def _take(self, count: int) -> list[Line]:
        text = self._pending[:count].decode("utf-8", "backslashreplace")
        del self._pending[:count]
        return parse_lines(text)
