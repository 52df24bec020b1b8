# SPDX-License-Identifier: GPL-2.0-only
"""Mutants of the kernel: patches that each break one rule, with what must notice (docs/mutants.md).

A file is a header, a line ``---``, and a patch as ``git apply`` takes it.
"""

from __future__ import annotations

import fnmatch
import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.arch import ARCHES, X86_64
from harness.errors import UsageError
from harness.policy.rules import RULES
from harness.scenario import catalogue
from harness.scenario.steps import Scenario

from .build import FLAVOURS

#: What a header may have; all but _NEEDED are optional, and it needs one of _WHAT.
_FIELDS = (
    "Mutant", "Arch", "Flavour", "Rule", "Bug", "Race", "Scenarios", "Expect", "Equivalent",
)  # fmt: skip
_NEEDED = ("Mutant", "Scenarios", "Expect")
_WHAT = ("Rule", "Bug", "Race")
_BUG = re.compile(r'([0-9a-f]{12})(?: \("(.+)"\))?')
_HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")
_REMEDY = "docs/mutants.md has the form"


@dataclass(frozen=True)
class Mutant:
    """A patch and its header.

    ``arches``: names of the architectures whose kernels it breaks (harness/arch.py);
    ``flavour``: of the kernel that notices, empty where any does; ``rules``: names of the
    policy's rules that it breaks; ``bug``: the commit that fixed what it brings back, and its
    subject; ``race``: of one that only tasks at work at the same time can notice, what it
    leaves open; ``scenarios``: globs of those that should notice,
    and all that is run; ``expect``: what contradicts, at which step; ``equivalent``: why
    nothing can notice, empty where something must; ``files``: what it touches; ``patch``:
    its text; ``path``: where it was read.
    """

    name: str
    arches: tuple[str, ...]
    flavour: str
    rules: tuple[str, ...]
    bug: str
    race: str
    scenarios: tuple[str, ...]
    expect: str
    equivalent: str
    files: tuple[str, ...]
    patch: str
    path: Path

    def selected(self) -> tuple[str, ...]:
        """The names of its scenarios, in the catalogue's order, each once."""
        chosen = {name for glob in self.scenarios for name in _matching(glob)}
        return tuple(s.name for s in _scenarios() if s.name in chosen)


def read(directory: Path) -> list[Mutant]:
    """All ``*.patch`` files of a directory, by name.

    Raises UsageError that names file and line for the first that is malformed: a header
    that is not complete, an architecture or a rule that does not exist, a scenario that
    nothing is called, a patch that is none.
    """
    paths = sorted(directory.glob("*.patch"))
    if not paths:
        raise UsageError(f"{directory} has no mutants", "a mutant is a file NAME.patch in it")
    return [parse(path) for path in paths]


def parse(path: Path) -> Mutant:
    """The mutant in a file; UsageError as for ``read``."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}", _REMEDY) from None
    fields, body = _header(path, lines)
    for name in _NEEDED:
        if name not in fields:
            raise _wrong(path, body, f"the header has no {name}")
    if not any(name in fields for name in _WHAT):
        raise _wrong(path, body, "the header has no Rule, Bug or Race")
    if fields["Mutant"][1] != path.stem:
        raise _wrong(path, fields["Mutant"][0], f"it is called {fields['Mutant'][1]!r}")
    arches = _words(fields, "Arch") or (X86_64.name,)
    for arch in arches:
        if arch not in ARCHES:
            raise _wrong(path, fields["Arch"][0], f"there is no architecture {arch!r}")
    flavour = fields.get("Flavour", (0, ""))
    if flavour[1] and flavour[1] not in FLAVOURS:
        raise _wrong(path, flavour[0], f"there is no flavour {flavour[1]!r}")
    rules = _words(fields, "Rule")
    for rule in rules:
        if rule not in RULES:
            raise _wrong(path, fields["Rule"][0], f"there is no rule {rule!r}")
    scenarios = _words(fields, "Scenarios")
    for glob in scenarios:
        if not _matching(glob):
            raise _wrong(path, fields["Scenarios"][0], f"no scenario is called {glob!r}")
    bug = fields.get("Bug", (0, ""))
    if bug[1] and not _BUG.fullmatch(bug[1]):
        raise _wrong(path, bug[0], 'a bug is 12 digits of a commit and ("subject")')
    return Mutant(
        path.stem,
        arches,
        flavour[1],
        rules,
        bug[1],
        fields.get("Race", (0, ""))[1],
        scenarios,
        fields["Expect"][1],
        fields.get("Equivalent", (0, ""))[1],
        _files(path, lines, body),
        "".join(lines[body:]),
        path,
    )


def _scenarios() -> tuple[Scenario, ...]:
    """All that there are, those that are only run where they are named too."""
    return (*catalogue.everything(), *catalogue.beside())


@functools.cache
def _matching(glob: str) -> frozenset[str]:
    names = (s.name for s in _scenarios())
    return frozenset(fnmatch.filter(names, glob))


def _wrong(path: Path, line: int, what: str) -> UsageError:
    return UsageError(f"{path}:{line}: {what}", _REMEDY)


def _words(fields: dict[str, tuple[int, str]], name: str) -> tuple[str, ...]:
    return tuple(fields[name][1].split()) if name in fields else ()


def _header(path: Path, lines: Sequence[str]) -> tuple[dict[str, tuple[int, str]], int]:
    """The header's fields, each with its line's number, and how many lines it and ``---`` are."""
    fields: dict[str, tuple[int, str]] = {}
    for number, line in enumerate(lines, 1):
        if line.rstrip("\n") == "---":
            return fields, number
        name, colon, value = line.partition(":")
        if not colon or name not in _FIELDS:
            raise _wrong(path, number, f"{line.strip()!r} is no line of a header")
        if name in fields:
            raise _wrong(path, number, f"a second {name}")
        if not value.strip():
            raise _wrong(path, number, f"{name} is empty")
        fields[name] = number, value.strip()
    raise _wrong(path, len(lines), "no line --- ends the header")


def _files(path: Path, lines: Sequence[str], start: int) -> tuple[str, ...]:
    """The files that the patch touches.

    What ``git apply`` would say of a patch that is cut or was edited by hand, it says
    without the mutant's name, and only once a tree is there.
    """
    files: list[str] = []
    at = start
    changed = False
    while at < len(lines):
        line = lines[at].rstrip("\n")
        if line.startswith("diff --git a/"):
            name = line.removeprefix("diff --git a/").partition(" b/")[0]
            if line != f"diff --git a/{name} b/{name}":
                raise _wrong(path, at + 1, "a mutant renames no file")
            names = tuple(x.rstrip("\n") for x in lines[at + 1 : at + 3])
            if names != (f"--- a/{name}", f"+++ b/{name}"):
                raise _wrong(path, at + 2, f"not --- a/{name} and +++ b/{name}")
            files.append(name)
            at += 3
        elif files and (hunk := _HUNK.match(line)):
            at, does = _hunk(path, lines, at, int(hunk[2] or 1), int(hunk[4] or 1))
            changed = changed or does
        else:
            raise _wrong(path, at + 1, f"{line!r} is no part of a patch")
    if not changed:
        raise _wrong(path, len(lines), "the patch changes nothing")
    return tuple(dict.fromkeys(files))


def _hunk(path: Path, lines: Sequence[str], at: int, old: int, new: int) -> tuple[int, bool]:
    """The index of the line after a hunk, and whether it changes anything."""
    changed = False
    head = at
    while old or new:
        at += 1
        # An empty line is what editors make of an empty line of context.
        mark = lines[at][0].replace("\n", " ") if at < len(lines) else "@"
        if mark not in "+- ":
            raise _wrong(path, head + 1, "the hunk has fewer lines than it says")
        changed = changed or mark != " "
        old -= mark != "+"
        new -= mark != "-"
        if old < 0 or new < 0:
            raise _wrong(path, head + 1, "the hunk has other lines than it says")
    return at + 1, changed
