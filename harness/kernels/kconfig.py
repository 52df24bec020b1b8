# SPDX-License-Identifier: GPL-2.0-only
"""Kernel configurations: what was asked for, what is left of it, and what stood in the way.

Kconfig drops an option without a word when something that it depends on is missing, and a
kernel without it would fail cohabit's scenarios for a reason that is not the kernel's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

_SET = re.compile(r"^(CONFIG_\w+)=(.*)$")
_UNSET = re.compile(r"^# (CONFIG_\w+) is not set$")
_DEFINITION = re.compile(r"^(?:menu)?config\s+(\w+)\s*$")
_DEPENDS = re.compile(r"^\s+depends on (.+)$")
_IF = re.compile(r"^if (.+)$")
_SYMBOL = re.compile(r"\b[A-Z0-9_]*[A-Z][A-Z0-9_]*\b")
_TOKEN = re.compile(r"\s*(\(|\)|\|\||&&|!=|!|=|[\w.\"\'$<>-]+)")
# Architectures other than the one that is configured have options of the same name.
_ARCH = re.compile(r"^arch/(\w+)/")


def options(text: str) -> dict[str, str]:
    """Return the options of a fragment or a ``.config``, the last word on each: ``n`` is off."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        if match := _SET.match(line.strip()):
            found[match[1]] = match[2]
        elif match := _UNSET.match(line.strip()):
            found[match[1]] = "n"
    return found


@dataclass(frozen=True)
class Lost:
    """An option that the configuration has otherwise than asked for."""

    option: str
    wanted: str
    got: str


def lost(wanted: Mapping[str, str], config: Mapping[str, str]) -> list[Lost]:
    """Return the options of ``wanted`` that ``config`` has not, or has with another value.

    A missing option is off.  What was wanted as a module may be built in.
    """
    found = []
    for option, value in wanted.items():
        got = config.get(option, "n")
        if got != value and not (value == "m" and got == "y"):
            found.append(Lost(option, value, got))
    return found


@dataclass(frozen=True)
class Definition:
    """A place in the Kconfig files that defines an option, and each condition it is under."""

    place: str
    conditions: tuple[str, ...]


def definitions(source: Path, srcarch: str, symbol: str) -> list[Definition]:
    """Return where the kernel source ``source`` defines ``symbol`` (without CONFIG_).

    Only what can be read off the lines: ``depends on`` of the option itself and the
    ``if`` blocks of its own file.
    """
    found: list[Definition] = []
    for path in _files(source, srcarch):
        text = path.read_text(encoding="utf-8", errors="replace")
        if symbol in text:
            found += _in_file(text, str(path.relative_to(source)), symbol)
    return found


def _files(source: Path, srcarch: str) -> Iterator[Path]:
    for path in sorted(source.rglob("Kconfig*")):
        arch = _ARCH.match(str(path.relative_to(source)))
        if path.is_file() and (arch is None or arch[1] == srcarch):
            yield path


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield lines with their numbers, those that a backslash continues as one."""
    whole, begun = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        begun = begun if whole else number
        whole += line.removesuffix("\\")
        if not line.endswith("\\"):
            yield begun, whole
            whole = ""


def _in_file(text: str, place: str, symbol: str) -> Iterator[Definition]:
    blocks: list[str] = []
    conditions: list[str] | None = None
    begun = 0
    for number, line in _lines(text):
        if line[:1].isspace() or not line:
            if conditions is not None and (match := _DEPENDS.match(line)):
                conditions.append(" ".join(match[1].split()))
            continue
        if conditions is not None:
            yield Definition(f"{place}:{begun}", (*conditions,))
            conditions = None
        if match := _IF.match(line):
            blocks.append(match[1].strip())
        elif line.startswith("endif") and blocks:
            blocks.pop()
        elif (match := _DEFINITION.match(line)) and match[1] == symbol:
            conditions, begun = list(blocks), number
    if conditions is not None:
        yield Definition(f"{place}:{begun}", (*conditions,))


def obstacles(option: str, source: Path, srcarch: str, config: Mapping[str, str]) -> str:
    """Return in words what stood in the way of an option: conditions with what is off in them."""
    places = definitions(source, srcarch, option.removeprefix("CONFIG_"))
    if not places:
        return "this tree has no such option"
    told = []
    for definition in places:
        unmet = []
        for condition in definition.conditions:
            if not holds(condition, config):
                off = [s for s in dict.fromkeys(_SYMBOL.findall(condition)) if _off(s, config)]
                unmet.append(condition + (f" (not set: {', '.join(off)})" if off else ""))
        told.append(f"{definition.place} depends on " + " and ".join(unmet) if unmet else "")
    told = [text for text in told if text]
    return "; ".join(told) or f"{places[0].place} says no more: only other options select it"


def out_of_reach(option: str, source: Path, srcarch: str, config: Mapping[str, str]) -> str:
    """Return what an option needs and the architecture has not in this tree, empty if nothing.

    That is a symbol HAVE_... which nothing below ``arch/`` of it selects: no configuration
    could have the option then.
    """
    offered = "\n".join(
        path.read_text(encoding="utf-8", errors="replace")
        for path in sorted((source / "arch" / srcarch).rglob("Kconfig*"))
    )
    missing: dict[str, None] = {}
    for place in definitions(source, srcarch, option.removeprefix("CONFIG_")):
        never = [s for c in place.conditions for s in _never(c, offered, config)]
        if not never:
            return ""
        missing |= dict.fromkeys(never)
    return ", ".join(missing)


def _never(condition: str, offered: str, config: Mapping[str, str]) -> list[str]:
    """The symbols for whose want a condition cannot be met; ``offered``: who could select them."""
    symbols = dict.fromkeys(_SYMBOL.findall(condition))
    never = [
        s
        for s in symbols
        if s.startswith("HAVE_")
        and _off(s, config)
        and not re.search(rf"\bselect {s}\b|^config {s}$", offered, re.MULTILINE)
    ]
    best = {f"CONFIG_{s}": "n" if s in never else "y" for s in symbols}
    with_them = dict.fromkeys(best, "y")
    return never if holds(condition, with_them) and not holds(condition, best) else []


def holds(condition: str, config: Mapping[str, str]) -> bool:
    """Return whether a condition of Kconfig's is met; what is not understood counts as met."""
    tokens = _TOKEN.findall(condition.partition(" if ")[0])

    def value(word: str) -> str:
        return word if word in ("y", "m", "n") else config.get(f"CONFIG_{word}", "n")

    def either() -> bool:
        met = both()
        while tokens[:1] == ["||"]:
            tokens.pop(0)
            met = both() or met
        return met

    def both() -> bool:
        met = one()
        while tokens[:1] == ["&&"]:
            tokens.pop(0)
            met = one() and met
        return met

    def one() -> bool:
        word = tokens.pop(0)
        if word == "!":
            return not one()
        if word == "(":
            met = either()
            tokens.pop(0)
            return met
        if tokens[:1] and tokens[0] in ("=", "!="):
            equal = tokens.pop(0) == "="
            return (value(word) == value(tokens.pop(0))) is equal
        return value(word) != "n"

    try:
        return either()
    except IndexError:
        return True


def _off(symbol: str, config: Mapping[str, str]) -> bool:
    return config.get(f"CONFIG_{symbol}", "n") == "n"
