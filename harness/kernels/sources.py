# SPDX-License-Identifier: GPL-2.0-only
"""Debian's ``linux-source-SERIES`` packages as git trees in the cache."""

from __future__ import annotations

import contextlib
import functools
import re
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from harness.errors import InfraError, UsageError
from harness.kernels import git
from harness.kernels.apt import Apt, GoneError, Package, find_mirrors
from harness.kernels.debian import older
from harness.kernels.programs import check_disk_full, held_fds, not_found, tail
from harness.kernels.store import Entry, Store

Say = Callable[[str], None]

NAME = re.compile(r"(\d+\.\d+)(\.\d[\w.+~-]*)?")
"""What may follow ``source:``: a series, or (the beginning of) a version of the package."""
RECIPE = "1"
"""Counts up whenever taking in a package changes what comes out."""

_KIND = "linux-source"
_BRANCH = "refs/heads/source"


@dataclass(frozen=True)
class Source:
    """A source package in the cache: git's ``objects`` directory, and the tree in it."""

    package: str
    version: str
    objects: Path
    oid: str


def fetch(name: str, store: Store, say: Say) -> Source:
    """Return the source for ``name``: the newest of a series, or the newest such version.

    From Debian through apt when it is not in the cache; that takes a minute.  Raises
    UsageError when Debian has no such package, InfraError when it can't be had.
    """
    match = NAME.fullmatch(name)
    assert match is not None
    package = f"linux-source-{match[1]}"
    cached = _cached(store, package, name)
    if cached and match[2]:
        # A version does not change: no list is needed, and so no network.
        return _source(store, package, cached.inputs["version"], say, [])
    try:
        offered = _offered(package, Apt(store.state, find_mirrors(), say))
    except InfraError as error:
        if not cached:
            raise
        say(f"source:{name}: {error.message}; using {cached.label}")
        return _source(store, package, cached.inputs["version"], say, [])
    versions = [version for version in _newest_first(offered) if _is(version, name)]
    for version in versions:
        try:
            return _source(store, package, version, say, [offered[version]])
        except GoneError as error:
            say(f"{error.message}; trying another")
    if cached:
        return _source(store, package, cached.inputs["version"], say, [])
    if versions:
        raise InfraError(
            f"source:{name}: every version of it in the lists is gone from the mirror",
            "try again later, or another mirror",
        )
    known = f"there are {', '.join(_newest_first(offered))}" if offered else "see other series"
    raise UsageError(f"source:{name}: no reachable Debian suite has that {package}", known)


def _is(version: str, name: str) -> bool:
    """Whether ``name`` is a version, or ends where a part of it does."""
    return version == name or version.startswith((f"{name}.", f"{name}-", f"{name}~"))


def _cached(store: Store, package: str, name: str) -> Entry | None:
    found: Entry | None = None
    for entry in store.entries(_KIND):
        inputs = entry.inputs
        if inputs.get("package") != package or inputs.get("recipe") != RECIPE:
            continue
        if not _is(inputs["version"], name):
            continue
        if found is None or older(found.inputs["version"], inputs["version"]):
            found = entry
    return found


def _offered(package: str, apt: Apt) -> dict[str, Package]:
    """Return the packages of that name by version."""
    found: dict[str, Package] = {}
    for fresh in (False, True):
        found = {p.version: p for p in apt.kernel_packages(fresh=fresh) if p.name == package}
        if found:
            break
    return found


def _newest_first(versions: dict[str, Package]) -> list[str]:
    def compare(one: str, other: str) -> int:
        return 1 if older(one, other) else -1

    return sorted(versions, key=functools.cmp_to_key(compare))


def _source(store: Store, package: str, version: str, say: Say, offered: list[Package]) -> Source:
    def make(tree: Path) -> list[str]:
        # What is made anew because it was damaged has to be looked up again.
        apt = Apt(store.state, find_mirrors(), say)
        wanted = offered or [p for v, p in _offered(package, apt).items() if v == version]
        if not wanted:
            raise GoneError(f"{package} {version} is not in the package lists any more")
        size = wanted[0].size / 1e6
        say(f"fetching {package} {version}, {size:.0f} MB, and unpacking it: a minute or two")
        with tempfile.TemporaryDirectory(dir=tree.parent) as scratch:
            (deb,) = apt.download(wanted, Path(scratch))
            (tree / "oid").write_text(take_in(deb, tree / "git"), encoding="ascii")
        return ["oid"]

    inputs = {"package": package, "version": version, "recipe": RECIPE}
    tree = store.get(_KIND, inputs, make, label=f"{package} {version}", say=say)
    oid = (tree / "oid").read_text(encoding="ascii")
    return Source(package, version, tree / "git/objects", oid)


def take_in(deb: Path, repository: Path) -> str:
    """Make a bare git ``repository`` of a linux-source package; returns the tree object.

    Raises InfraError when the package is not what it should be.
    """
    what = f"unpacking {deb.name}"
    git.create(repository)
    # Straight from the archive into one pack: no file of the tree is written.
    importer = ["git", f"--git-dir={repository}", "-c", "core.compression=1"]
    importer += ["-c", "fastimport.unpackLimit=0", "fast-import", "--quiet", "--depth=0", "--done"]
    reader = ["dpkg-deb", "--fsys-tarfile", str(deb)]
    problem = ""
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        with _program(reader, errors, what) as source, _program(importer, errors, what) as target:
            assert source.stdout is not None and target.stdin is not None
            try:
                _convert(source.stdout, target.stdin)
                # So that its status is not that of a pipe closed too early.
                while source.stdout.read(1 << 20):
                    pass
                target.stdin.close()
            except (tarfile.TarError, _OddError) as error:
                problem = str(error)
            except BrokenPipeError:
                # git has ended, and says why.
                pass
            # What is not written yet need not be: without the end git keeps nothing.
            with contextlib.suppress(BrokenPipeError):
                target.stdin.close()
        if problem or source.returncode != 0 or target.returncode != 0:
            errors.seek(0)
            text = errors.read()
            check_disk_full(text, repository)
            raise InfraError(f"{what} failed: {problem or tail(text, 3)}")
    tree = f"{_BRANCH}^{{tree}}"
    return git.Git(repository).run("rev-parse", "--verify", tree, what=what).stdout.strip()


class _OddError(Exception):
    """Something in a package that no kernel source has."""


def _program(words: list[str], errors: IO[str], what: str) -> subprocess.Popen[bytes]:
    feeds = words[0] == "git"
    try:
        return subprocess.Popen(
            words,
            stdin=subprocess.PIPE if feeds else subprocess.DEVNULL,
            stdout=subprocess.DEVNULL if feeds else subprocess.PIPE,
            stderr=errors,
            env=git.environment(),
            pass_fds=held_fds.get(),
        )
    except FileNotFoundError:
        raise not_found(words[0], what) from None


def _convert(package: IO[bytes], stream: IO[bytes]) -> None:
    """Write the source archive within ``package`` (a tar) as a commit for git fast-import."""
    stream.write(f"commit {_BRANCH}\ncommitter cohabit <> 0 +0000\ndata 0\n\n".encode())
    count = 0
    with tarfile.open(fileobj=package, mode="r|") as outer:
        for packed in outer:
            if not packed.name.endswith(".tar.xz"):
                continue
            with tarfile.open(fileobj=outer.extractfile(packed), mode="r|xz") as inner:
                for member in inner:
                    count += _convert_file(inner, member, stream)
    if not count:
        raise _OddError("it has no source archive (*.tar.xz)")
    stream.write(b"done\n")


def _convert_file(archive: tarfile.TarFile, member: tarfile.TarInfo, stream: IO[bytes]) -> bool:
    # The first part is the directory that everything is in.
    path = member.name.removeprefix("./").partition("/")[2]
    if member.isdir() or not path:
        return False
    if "\n" in path or path.startswith('"') or not (member.isreg() or member.issym()):
        raise _OddError(f"it holds {member.name!r}, of a kind that is not known")
    if member.issym():
        mode, data = "120000", iter((member.linkname.encode(errors="surrogateescape"),))
        size = len(member.linkname.encode(errors="surrogateescape"))
    else:
        mode, size = "100755" if member.mode & 0o100 else "100644", member.size
        content = archive.extractfile(member)
        assert content is not None
        data = _blocks(content)
    head = f"M {mode} inline {path}\ndata {size}\n"
    stream.write(head.encode(errors="surrogateescape"))
    for block in data:
        stream.write(block)
    stream.write(b"\n")
    return True


def _blocks(content: IO[bytes]) -> Iterator[bytes]:
    while block := content.read(1 << 20):
        yield block
