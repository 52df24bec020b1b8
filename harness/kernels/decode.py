# SPDX-License-Identifier: GPL-2.0-only
"""Files and lines for the addresses in a kernel's reports, by the tree's own scripts/faddr2line.

Of the tree's two scripts it is the one that looks at sizes and sections.  decode_stacktrace.sh
takes the first function of a name (there are two enabled_store(), one of them livepatch's), and
what is in a module's .exit.text it looks up in .text.  It is kept beside for use by hand.
"""

from __future__ import annotations

import itertools
import os
import posixpath
import re
import shlex
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from harness.arch import ARCHES
from harness.kernels.model import Kernel
from harness.kernels.programs import not_found, plain_env, tail
from vm import namespace

DEBUG = "usr/lib/debug"
"""Where a built kernel's entry has its debug info, and the scripts that read it."""

SCRIPTS = ("faddr2line", "decode_stacktrace.sh", "decodecode")
"""What is kept of a tree's ``scripts``: the second calls the third."""

PATIENCE_S = 180.0
"""An address takes a second or two of CPU time: the script is thorough, not quick."""

_JOBS = 4
_LOOK_EVERY_S = 0.05
#: As vsnprintf() has it for %pS and its like (lib/vsprintf.c, symbol_string()), with the build
#: id that CONFIG_STACKTRACE_BUILD_ID adds.
_ADDRESS = re.compile(
    r"(?<![\w.$])(?P<symbol>[A-Za-z_][\w.$]*)\+0x(?P<offset>[0-9a-f]+)/0x(?P<size>[0-9a-f]+)"
    r"(?P<module> \[(?P<name>\w+)(?: [0-9a-f]{8,})?\])?"
)
#: Here an instruction is meant; everywhere else it is the one behind a call.
_EXACT = re.compile(r"RIP: [0-9a-f]{4}:|\bpc : |WARNING: ")
_UNSURE = re.compile(r"\? $")

_OBJECT = "object "
_HEADER = re.compile(r"(?P<symbol>[\w.$]+)\+0x(?P<offset>[0-9a-f]+)/0x(?P<size>[0-9a-f]+):$")
#: "(inlined by) " comes first where a call was; since binutils 2.21 a discriminator may follow.
_LOCATION = re.compile(r"\s*(?:\(inlined by\) )?\S+ at (?P<file>[^?].*?):(?P<line>\d+)(?: \(|$)")


#: More than that would not be done in PATIENCE_S, nor fit on a command line.
_MOST = 1000


class Place(NamedTuple):
    """An instruction: ``module`` is empty for vmlinux.

    ``size`` is that of the function in vmlinux, 0 in a module: the last function of a
    section is longer to the kernel than to the script, by what aligns the next one.
    """

    module: str
    symbol: str
    offset: int
    size: int


@dataclass(frozen=True)
class Decoded:
    """Reports with files and lines in them; ``note`` says what is missing, empty if nothing."""

    reports: tuple[tuple[str, ...], ...]
    note: str


def debug_info(kernel: Kernel) -> Path:
    """Return the file with the kernel's debug info; it need not be there."""
    return kernel.tree / DEBUG / "boot" / f"vmlinux-{kernel.release}"


def obstacle(kernel: Kernel) -> str:
    """Return why nothing of ``kernel`` can be decoded, empty if it can."""
    if not debug_info(kernel).is_file():
        return "there is no debug info (only what is built from a tree has it)"
    if not (kernel.tree / DEBUG / "scripts" / SCRIPTS[0]).is_file():
        return f"its tree has no scripts/{SCRIPTS[0]}"
    return ""


class Decoder:
    """Decodes what one kernel printed.

    ``command`` makes the argv that runs a script of bash where ``faddr2line`` and
    ``objects`` (a module's name to its file, "" to vmlinux) are.  ``known`` are the names in
    vmlinux, None where they are not known; ``prefixes`` what takes the place of the
    beginning of a source's path.
    """

    def __init__(
        self, faddr2line: str, objects: Mapping[str, str],
        command: Callable[[str], Sequence[str]], known: frozenset[str] | None = None,
        prefixes: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self._faddr2line = faddr2line
        self._objects = objects
        self._command = command
        self._known = known
        self._prefixes = prefixes or {}

    def decode(self, reports: Sequence[Sequence[str]], patience: float = PATIENCE_S) -> Decoded:
        """Return the reports, which are lines, with ``function (file:line)`` for addresses.

        Each line stays one line.  Where calls were inlined there are several places, the
        innermost first.  After ``patience`` seconds the rest is left as it is.  Raises
        InfraError when the script can't be run.
        """
        wanted = self._ordered(reports)
        found, note = self._ask(wanted, patience) if wanted else ({}, "")
        return Decoded(tuple(tuple(_rewritten(report, found)) for report in reports), note)

    def _ordered(self, reports: Iterable[Iterable[str]]) -> list[Place]:
        """All places, each once: those that come first in their report first."""
        each = [self._wanted(report) for report in reports]
        rows = itertools.zip_longest(*each)
        return list(dict.fromkeys(place for row in rows for place in row if place))[:_MOST]

    def _wanted(self, report: Iterable[str]) -> list[Place]:
        lines = list(report)
        return [
            place
            for line, match, place in _places(lines)
            # What is only left over on the stack is not worth its time.
            if not _UNSURE.search(line[: match.start()])
            and place.module in self._objects
            and (place.module or self._known is None or place.symbol in self._known)
        ]

    def _ask(self, wanted: Sequence[Place], patience: float) -> tuple[dict[Place, str], str]:
        """Files and lines; and what was in the way."""
        jobs = min(len(os.sched_getaffinity(0)), _JOBS, len(wanted))
        scripts = [self._script(wanted[number::jobs]) for number in range(jobs)]
        with tempfile.TemporaryDirectory(prefix="cohabit-decode-") as name:
            late = self._run(scripts, Path(name), patience)
            told = [
                Path(name, f"{number}.out").read_text("utf-8", "replace") for number in range(jobs)
            ]
            errors = Path(name, "errors").read_text("utf-8", "replace")
        found: dict[Place, list[str]] = {}
        for text in told:
            for place, lines in self._read(text.splitlines(), cut=late):
                found.setdefault(place, []).append(lines)
        # Functions of one name and size: nobody knows which was meant.
        sure = {place: one[0] for place, one in found.items() if len(one) == 1 and one[0]}
        if late:
            return sure, f"after {patience:.0f} s {len(sure)} of {len(wanted)} addresses were found"
        if not sure:
            return sure, f"none of {len(wanted)} addresses was found{tail(errors, 2)}"
        return sure, ""

    def _script(self, places: Iterable[Place]) -> str:
        of: dict[str, list[str]] = {}
        for place in places:
            size = f"/{place.size:#x}" if place.size else ""
            of.setdefault(place.module, []).append(f"{place.symbol}+{place.offset:#x}{size}")
        lines = []
        # Modules are small, and done at once.
        for module in sorted(of, reverse=True):
            words = ["bash", self._faddr2line, self._objects[module], *of[module]]
            lines += [f"echo '{_OBJECT}{module}'", f"{shlex.join(words)} || :"]
        return "\n".join(lines)

    def _run(self, scripts: Sequence[str], directory: Path, patience: float) -> bool:
        """Runs scripts beside each other; returns whether they had to be ended."""
        stop = threading.Event()
        # An interrupt comes in the main thread: so never between a child's start and our
        # knowing of it.
        with ThreadPoolExecutor(1) as pool:
            try:
                return pool.submit(self._watch, scripts, directory, patience, stop).result()
            finally:
                stop.set()

    def _watch(
        self, scripts: Sequence[str], directory: Path, patience: float, stop: threading.Event
    ) -> bool:
        deadline = time.monotonic() + patience
        children: list[subprocess.Popen[bytes]] = []
        try:
            with Path(directory, "errors").open("ab") as errors:
                for number, script in enumerate(scripts):
                    with Path(directory, f"{number}.out").open("wb") as out:
                        children.append(self._start(script, out.fileno(), errors.fileno()))
            while running := [child for child in children if child.poll() is None]:
                if time.monotonic() >= deadline or stop.wait(_LOOK_EVERY_S):
                    break
            return bool(running)
        finally:
            for child in children:
                # unshare ignores all but SIGKILL, and takes what is inside along.
                child.kill()
                child.wait()

    def _start(self, script: str, out: int, errors: int) -> subprocess.Popen[bytes]:
        argv = list(self._command(script))
        try:
            return subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=out, stderr=errors, env=plain_env(),
                # Ctrl-C is for us alone: we end the children.
                start_new_session=True,
            )  # fmt: skip
        except FileNotFoundError:
            raise not_found(argv[0], "decoding the kernel's reports") from None

    def _read(self, lines: Sequence[str], cut: bool) -> Iterator[tuple[Place, str]]:
        """What the script says of each place; ``cut``: the last of it may not be all."""
        module = ""
        place: Place | None = None
        found: list[str] = []
        for line in [*lines, *([] if cut else [_OBJECT])]:
            header = _HEADER.match(line)
            if header or line.startswith(_OBJECT):
                if place:
                    yield place, " ".join(found)
                place, found = None, []
                module = module if header else line.removeprefix(_OBJECT)
                if header:
                    size = 0 if module else int(header["size"], 16)
                    place = Place(module, header["symbol"], int(header["offset"], 16), size)
            elif location := _LOCATION.match(line):
                found.append(f"{self._tidy(location['file'])}:{location['line']}")

    def _tidy(self, path: str) -> str:
        for prefix, instead in self._prefixes.items():
            if path.startswith(prefix):
                path = instead + path.removeprefix(prefix)
        return posixpath.normpath(path)


def of_kernel(kernel: Kernel, modules: Path, builder: Path, mountpoint: Path) -> Decoder:
    """Return the decoder for a kernel without an ``obstacle`` and for our ``modules`` (a
    directory of .ko files) on it.

    ``builder`` is the root file system that kernels for its architecture are built in,
    ``mountpoint`` an empty directory, which must be there while it decodes.
    """
    places = {"modules/kernel": kernel.modules, "modules/cohabit": modules}
    places = {name: directory for name, directory in places.items() if directory.is_dir()}
    objects = {
        path.stem.replace("-", "_"): f"/{name}/{path.relative_to(directory)}"
        for name, directory in places.items()
        for path in sorted(directory.rglob("*.ko"))
    }
    objects[""] = f"/debug/boot/{debug_info(kernel).name}"

    def command(script: str) -> list[str]:
        return namespace.chroot_command(
            ["bash", "-c", script],
            lowers=[builder],
            mountpoint=mountpoint,
            binds=[
                (kernel.tree / DEBUG, "debug", False),
                *((directory, name, False) for name, directory in places.items()),
            ],
            # Whose addr2line and readelf the script is to take.
            env={"CROSS_COMPILE": ARCHES[kernel.arch].cross},
        )

    return Decoder(
        f"/debug/scripts/{SCRIPTS[0]}", objects, command, _names(kernel.system_map),
        # Where build.py has the tree, where modules.py has ours, and the headers for those.
        {"/src/": "", "/build/": "kmods/", f"/usr/src/linux-headers-{kernel.release}/": ""},
    )  # fmt: skip


def _names(system_map: Path | None) -> frozenset[str] | None:
    if system_map is None:
        return None
    lines = system_map.read_text(encoding="utf-8", errors="replace").splitlines()
    return frozenset(line.split(" ")[-1] for line in lines)


def _places(report: Sequence[str]) -> Iterator[tuple[str, re.Match[str], Place]]:
    """Each address of a report, with its line."""
    found = [
        (line, match) for line in report for match in _ADDRESS.finditer(line)
    ]  # fmt: skip
    # A call trace that begins where it happened has that instruction too.
    exact = {match[0] for line, match in found if _EXACT.search(line[: match.start()])}
    for line, match in found:
        offset = int(match["offset"], 16)
        if match[0] not in exact and offset:
            offset -= 1
        module = match["name"] or ""
        size = 0 if module else int(match["size"], 16)
        yield line, match, Place(module, match["symbol"], offset, size)


def _rewritten(report: Sequence[str], found: Mapping[Place, str]) -> Iterator[str]:
    told = {match[0]: place for _, match, place in _places(report)}

    def instead(match: re.Match[str]) -> str:
        lines = found.get(told[match[0]])
        return f"{match['symbol']} ({lines}){match['module'] or ''}" if lines else match[0]

    for line in report:
        yield _ADDRESS.sub(instead, line)
