# SPDX-License-Identifier: GPL-2.0-only
"""From the registry's text to records; the grammar is that of t_show.

A record is one line, and a second one (a tab, ``direct-->``) if it has a direct
trampoline.  All expressions are anchored and possessive and all else is a scan
from left to right, so that time is linear in the text, whatever it holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

from harness.ftrace.records import Column, Ops, Record, Registry, SubOps, Symbol, Trampoline

# C identifiers, and what compilers append or mangle into them (.isra.0, $LT$).
_NAME = r"[A-Za-z0-9_.$@]++"
_MODULE = r" \[(?P<module>[A-Za-z0-9_.$@-]++)\]"
_HEX = r"0x[0-9a-f]{1,16}+"

_SYMBOL = re.compile(
    rf"(?P<name>{_NAME})\+(?P<offset>{_HEX})/(?P<size>{_HEX})(?:{_MODULE})?+"
    rf"|(?P<address>{_HEX})(?![\w.$@+])"
)
# 18 digits: more than any count, less than what int() refuses.
_HEAD = re.compile(rf"(?P<function>{_NAME})(?:{_MODULE})?+ \((?P<count>[0-9]{{1,18}}+)\)")
# kernel/trace/ftrace.c:print_rec, since 6.0: nothing follows the name.
_INVALID = re.compile(rf"(?P<function>__ftrace_invalid_address___-?[0-9]++)(?:{_MODULE})?+")
_DIRECT = re.compile(r"\tdirect(?P<jmp>\(jmp\))?+-->")
_ERROR = re.compile(r"[a-z]++: ERROR!")

_LETTERS = frozenset(column.value for column in Column)


def parse(text: str) -> Registry:
    """Parse the text of ``enabled_functions`` or ``touched_functions``.

    Any text is taken, none raises.  Each line that is not empty is found again
    in exactly one record's ``raw`` or in the registry's ``unknown``.  A line
    that starts with a tab belongs to the record above it.  A text that ends in
    the middle of a line is not recognised as such: the last line then has
    unknown pieces, or is shorter than it was.
    """
    records: list[Record] = []
    unknown: list[str] = []
    for known, lines in blocks(text):
        if known:
            records.append(_record(lines))
        else:
            unknown += lines
    return Registry(tuple(records), tuple(unknown))


def blocks(text: str) -> Iterator[tuple[bool, list[str]]]:
    """The lines of each record of a text (true), and each line that is none (false).

    This is the cheap half of ``parse``, for those who need not know all records: a
    record's first line begins with its title, which `` (`` ends.
    """
    lines: list[str] = []
    for line in text.split("\n"):
        if line.startswith("\t") and lines:
            lines.append(line)
            continue
        if lines:
            yield True, lines
            lines = []
        if _HEAD.match(line) or _INVALID.fullmatch(line):
            lines = [line]
        elif line:
            yield False, [line]
    if lines:
        yield True, lines


class _Scan:
    """A position in a piece of text; each method consumes what it recognises."""

    def __init__(self, text: str, start: int = 0) -> None:
        self.text = text
        self.at = start

    def take(self, literal: str) -> bool:
        if self.text.startswith(literal, self.at):
            self.at += len(literal)
            return True
        return False

    def rest(self) -> str:
        return self.text[self.at :].strip(" ")

    def symbol(self) -> Symbol | None:
        match = _SYMBOL.match(self.text, self.at)
        if not match:
            return None
        self.at = match.end()
        if match["address"]:
            return Symbol(match[0], "", address=int(match["address"], 16))
        return Symbol(
            match[0],
            match["name"],
            offset=int(match["offset"], 16),
            size=int(match["size"], 16),
            module=match["module"],
        )

    def after(self, literal: str) -> Symbol | None:
        """A symbol introduced by the literal; nothing is consumed without both."""
        start = self.at
        symbol = self.symbol() if self.take(literal) else None
        if symbol is None:
            self.at = start
        return symbol

    def pair(self) -> tuple[Symbol, Symbol] | None:
        """``first (second)``; nothing is consumed without both."""
        start = self.at
        first = self.symbol()
        second = self.after(" (") if first else None
        if first and second and self.take(")"):
            return first, second
        self.at = start
        return None

    def subops(self) -> SubOps | None:
        """One ``{...}`` of print_subops; nothing is consumed if it is another."""
        start = self.at
        found: SubOps | None = None
        if entry := self.after(" {ent:"):
            ret = self.after(" ret:")
            found = SubOps(entry=entry, ret=ret) if ret and self.take("}") else None
        elif self.take(" {"):
            if pair := self.pair():
                if self.take("}"):
                    found = SubOps(trampoline=pair[0], func=pair[1], call=self.after(" ->"))
            elif func := self.symbol():
                found = SubOps(func=func) if self.take("}") else None
        if found is None:
            self.at = start
        return found


@dataclass
class _Pieces:
    """What was gathered of one record so far."""

    flags: set[str] = field(default_factory=set)
    tramp: list[Trampoline] = field(default_factory=list)
    call: Symbol | None = None
    ops: list[Ops] = field(default_factory=list)
    direct: Symbol | None = None
    direct_jmp: bool = False
    errors: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    # Whose subops may come next.
    open: Literal["tramp", "ops", ""] = ""

    def leave(self, piece: str) -> None:
        """Keep a piece that was not understood; blanks are layout."""
        if piece.strip(" "):
            self.unknown.append(piece)

    def add_columns(self, text: str) -> None:
        """The flag columns, and x86's `` ->target`` without a trampoline."""
        columns, arrow, _ = text.partition(" ->")
        for word in columns.split(" "):
            if word in _LETTERS and word not in self.flags:
                self.flags.add(word)
            elif word:
                self.unknown.append(word)
        scan = _Scan(text, len(columns))
        if arrow:
            self.call = scan.after(arrow)
        self.leave(scan.rest())

    def add_entry(self, text: str) -> None:
        """One piece between tabs: ``tramp: ..``, ``ops: ..`` or ``subops: ..``."""
        previous, self.open = self.open, ""
        scan = _Scan(text)
        if _ERROR.fullmatch(text):
            self.errors.append(text)
        elif scan.take("tramp: ") and (pair := scan.pair()):
            self.tramp.append(Trampoline(*pair, call=scan.after(" ->")))
            self.open = "tramp"
            self.leave(scan.rest())
        elif scan.take("ops: ") and (pair := scan.pair()):
            self.ops.append(Ops(*pair))
            self.open = "ops"
            self.leave(scan.rest())
        elif previous and scan.take("subops:"):
            found: list[SubOps] = []
            while one := scan.subops():
                found.append(one)
            if previous == "tramp":
                self.tramp[-1] = replace(self.tramp[-1], subops=tuple(found))
            else:
                self.ops[-1] = replace(self.ops[-1], subops=tuple(found))
            self.leave(scan.rest())
        else:
            self.leave(text)

    def add_line(self, line: str) -> None:
        """A line below the first: the direct trampoline, or something newer."""
        match = _DIRECT.match(line)
        scan = _Scan(line, match.end() if match else 0)
        symbol = scan.symbol() if match and self.direct is None else None
        if match and symbol:
            self.direct = symbol
            self.direct_jmp = match["jmp"] is not None
            self.leave(scan.rest())
        else:
            self.leave(line.removeprefix("\t"))


def _record(lines: list[str]) -> Record:
    """The record of a line that ``parse`` recognised and those that belong to it."""
    pieces = _Pieces()
    head = _HEAD.match(lines[0])
    if head:
        columns, *entries = lines[0][head.end() :].split("\t")
        pieces.add_columns(columns)
        for entry in entries:
            pieces.add_entry(entry)
    for line in lines[1:]:
        pieces.add_line(line)
    invalid = _INVALID.match(lines[0])
    name = head or invalid
    assert name is not None
    return Record(
        function=name["function"],
        module=name["module"],
        count=int(head["count"]) if head else 0,
        flags=frozenset(pieces.flags),
        tramp=tuple(pieces.tramp),
        call=pieces.call,
        ops=tuple(pieces.ops),
        direct=pieces.direct,
        direct_jmp=pieces.direct_jmp,
        invalid=invalid is not None,
        errors=tuple(pieces.errors),
        unknown=tuple(pieces.unknown),
        raw="\n".join(lines),
    )
