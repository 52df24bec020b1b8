# SPDX-License-Identifier: GPL-2.0-only
"""From bytes that somebody pasted to records of the registry, in little time and space.

A real text has up to a hundred thousand records, and most of them are alike: one
tracer on many functions.  So lines are grouped by what follows the function's name
(a *shape*), and only one of each group is parsed.
"""

from __future__ import annotations

import codecs
import fnmatch
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from harness.errors import UsageError
from harness.ftrace import Record, blocks, parse

#: Bytes.  All functions of a big kernel with a tracer on each give about 10 MB.
MAX_BYTES = 32 << 20
#: A big kernel has 100 000 functions that can be traced; a record has one or two lines.
MAX_LINES = 200_000
#: Characters.  The longest line is a list of subops, of which there are 16 at most.
MAX_LINE = 1 << 16
#: Records that differ in more than the function's name.
MAX_SHAPES = 2_500
#: Of those that are not asked for: enough to tell the release by.
_SAMPLE = 200

_REMEDY = "wanted is the text of /sys/kernel/tracing/enabled_functions (or touched_functions)"

#: Pieces of a record that a tab is before.
_AFTER_TAB = ("tramp: ", "ops: ", "subops:", "direct-->", "direct(jmp)-->")


@dataclass(frozen=True)
class Text:
    """A decoded text with the kernel's own line ends and tabs.

    ``notes``: what had to be put right; ``columns``: whether blanks are as the kernel
    printed them; ``open``: whether there is no newline at the end, as if cut off.
    """

    text: str
    notes: tuple[str, ...]
    columns: bool
    open: bool


@dataclass(frozen=True)
class Shape:
    """Records that differ in nothing but the function's name.

    ``record`` is the first of them; ``titles`` are those that were asked for, which
    may be none; ``cut``: the text ends in it, and its flags may have gone on.
    """

    record: Record
    titles: tuple[str, ...]
    cut: bool = False


@dataclass(frozen=True)
class Gathered:
    """What is in a text: ``functions`` counts all records; ``whole``: whether all shapes
    are here; ``unknown``: the first lines that are no record; ``unknown_lines`` how many
    there are; ``missing``: names that were asked for and are not in the text, and
    ``idle``: globs that match nothing in it."""

    shapes: tuple[Shape, ...]
    functions: int
    whole: bool
    unknown: tuple[str, ...]
    unknown_lines: int
    missing: tuple[str, ...]
    idle: tuple[str, ...]


def take(data: bytes) -> Text:
    """Decode what was read; raises UsageError for what is too big to be a registry.

    All that the kernel prints is ASCII; any other byte stays one character, so that it
    can be shown as an escape.  UTF-16 (which PowerShell writes) and CRLF are understood.
    """
    if len(data) > MAX_BYTES:
        raise UsageError(f"the text has more than {MAX_BYTES >> 20} MB", _REMEDY)
    notes = []
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = data.decode("utf-16", "replace")
        notes.append("the text was UTF-16")
    else:
        text = data.removeprefix(codecs.BOM_UTF8).decode("latin-1")
    if "\r\n" in text:
        text = text.replace("\r\n", "\n")
        notes.append("the lines ended in CRLF")
    lines = text.count("\n") + 1
    if lines > MAX_LINES:
        raise UsageError(f"the text has {lines} lines: no kernel has so many functions", _REMEDY)
    text, long = _without_long_lines(text)
    if long:
        notes.append(f"{long} line(s) of more than {MAX_LINE} characters were left out")
    columns = True
    if "\t" not in text and (tabbed := _with_tabs(text)) != text:
        text, columns = tabbed, False
        notes.append("tabs had become blanks, as in what is copied from a terminal")
    opened = bool(text) and not text.endswith("\n")
    if opened:
        notes.append("the text does not end with a newline: its last line may be cut short")
    return Text(text, tuple(notes), columns, opened)


def _with_tabs(text: str) -> str:
    """The text with the tabs of a registry in place of the blanks there."""
    for mark in _AFTER_TAB:
        *before, last = text.split(f" {mark}")
        if before:
            text = f"\t{mark}".join((*(piece.rstrip(" ") for piece in before), last))
    return text


def _without_long_lines(text: str) -> tuple[str, int]:
    """The text with a mark in place of each line that no kernel prints, and their number."""
    if len(text) <= MAX_LINE:
        return text, 0
    long = re.compile(rf"^[^\n]{{{MAX_LINE + 1},}}+", re.MULTILINE)
    return long.subn(lambda match: f"({len(match[0])} characters)", text)


def gather(text: Text, wanted: Sequence[str] = ()) -> Gathered:
    """Group the records of a text by shape.

    ``wanted``: names of functions, with or without `` [module]``, or globs; all if empty.
    Raises UsageError for a text that holds no record and is not empty, and for more
    shapes than can be explained at a time.
    """
    select = _Selection(wanted)
    titles: dict[str, list[str]] = {}
    first: dict[str, str] = {}
    unknown: list[str] = []
    functions = unknown_lines = 0
    known, rest = False, ""
    for known, lines in blocks(text.text):
        if not known:
            unknown_lines += 1
            if len(unknown) < 5:
                unknown.append(lines[0])
            continue
        # A head has its first " (" before the count; an invalid one has none.
        title, _, rest = lines[0].partition(" (")
        if len(lines) > 1:
            rest = "\n".join((rest, *lines[1:]))
        functions += 1
        chosen = titles.get(rest)
        if chosen is None:
            chosen = titles[rest] = []
            first[rest] = "\n".join(lines)
            if len(titles) > MAX_SHAPES and not wanted:
                raise _too_many()
        if select.takes(title):
            chosen.append(title)
    if not functions and unknown_lines:
        raise UsageError("this is no text of ftrace's function registry", _hint(unknown))
    cut: str | None = None
    if text.open and known and rest and not _flags_complete(rest):
        # It may look like others that are whole.
        cut = f"{rest}\n"
        first[cut] = first[rest]
        titles[cut] = [titles[rest].pop()] if select.takes(title) else []
    whole = len(titles) <= MAX_SHAPES
    if sum(1 for chosen in titles.values() if chosen) > MAX_SHAPES:
        raise _too_many()
    shapes = []
    for number, (rest, chosen) in enumerate(titles.items()):
        if whole or chosen or number < _SAMPLE:
            record = parse(first[rest]).records[0]
            shapes.append(Shape(record, tuple(chosen), rest == cut))
    return Gathered(
        tuple(shapes), functions, whole, tuple(unknown), unknown_lines, *select.missing()
    )


def _too_many() -> UsageError:
    return UsageError(
        f"the text has more than {MAX_SHAPES} records that differ, too many to explain at once",
        "name some: --function NAME, or a glob like --function 'vfs_*'",
    )


def _flags_complete(rest: str) -> bool:
    """Whether something follows the flag columns, which are 11 characters at most."""
    columns = rest.partition(")")[2]
    return "\t" in columns or " ->" in columns or len(columns) >= 11


def _hint(unknown: Iterable[str]) -> str:
    if any("\0" in line for line in unknown):
        return f"it holds NUL bytes: binary, or UTF-16 without its mark; {_REMEDY}"
    names = all(re.fullmatch(r"[A-Za-z0-9_.$]{2,100}( \[\w+\])?", line) for line in unknown)
    if names:
        return f"it looks like names only (available_filter_functions?); {_REMEDY}"
    return _REMEDY


class _Selection:
    """The functions that were asked for."""

    def __init__(self, wanted: Sequence[str]) -> None:
        self._names = {name: False for name in wanted if not set("*?") & set(name)}
        self._globs = {name: False for name in wanted if name not in self._names}
        # Brackets are a module's.
        self._patterns = {glob: glob.replace("[", "[[]") for glob in self._globs}
        self._all = not wanted

    def takes(self, title: str) -> bool:
        if self._all:
            return True
        found = False
        for name in {title, title.partition(" ")[0]}:
            if name in self._names:
                self._names[name] = found = True
            for glob, pattern in self._patterns.items():
                if fnmatch.fnmatchcase(name, pattern):
                    self._globs[glob] = found = True
        return found

    def missing(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The names and the globs that nothing was found for."""
        names = tuple(name for name, found in self._names.items() if not found)
        return names, tuple(glob for glob, found in self._globs.items() if not found)
