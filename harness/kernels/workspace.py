# SPDX-License-Identifier: GPL-2.0-only
"""What building kernels from trees leaves in the cache, beside its entries.

These places are worked in again and again, so they are no entries of the Store:
``work/NAME`` (a tree's sources and objects in one flavour), ``git/KEY`` (what is read of a
tree) and ``ccache``.  They are locked in the Store's way: ``lock`` in a place says who
uses it, and what is removed is moved under ``tmp/`` first, where it is not found any more.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from harness.arch import X86_64
from harness.errors import InfraError
from harness.kernels import git
from harness.kernels.programs import run
from harness.kernels.store import Store, rmtree
from harness.kernels.trees import Tree

Say = Callable[[str], None]

ROOM = {"plain": 4 * 10**9, "debug": 7 * 10**9, "kasan": 7 * 10**9}
"""Bytes that a build from nothing takes in its workspace, by flavour."""


@dataclass(frozen=True)
class Scratch:
    """One place that builds work in.

    ``kind`` is "work", "git" or "ccache", ``size`` what it takes on the disk in bytes,
    ``used`` the time of the last use in seconds since the epoch.  Who holds all of
    ``locks`` may remove it.
    """

    kind: str
    label: str
    size: int
    used: float
    path: Path
    locks: tuple[Path, ...]


def ccache(store: Store) -> Path:
    """Return ccache's directory, which all workspaces share; it may not be there yet."""
    return store.root / "ccache"


def _ccache_lock(store: Store) -> Path:
    # Not inside: what is in there is ccache's own, a directory `lock` among it.
    return store.root / "locks/ccache"


def told(flavour: str, arch: str) -> str:
    """Flavour and architecture in words; x86-64 goes without saying."""
    return flavour if arch == X86_64.name else f"{flavour}, {arch}"


@contextlib.contextmanager
def opened(tree: Tree, arch: str, flavour: str, store: Store, say: Say) -> Iterator[Path]:
    """Give the directory in which ``tree`` is built, to one process at a time.

    It is the same one for all states of a tree.  Raises InfraError when it is not there
    yet and the disk has no room for it, OSError when the cache can't be written to.
    """
    work = store.root / "work" / f"{tree.repository.stem}-{arch}-{flavour}"
    what = f"{tree.reference} ({told(flavour, arch)})"

    def busy() -> None:
        say(f"another cohabit builds {what}; waiting for it")

    with contextlib.ExitStack() as locks:
        while True:
            if not work.exists():
                _check_room(what, ROOM[flavour], store)
            work.mkdir(parents=True, exist_ok=True)
            # Not there any more: it was pruned just now.
            with contextlib.suppress(FileNotFoundError):
                locks.enter_context(git.locked(work / "lock", busy))
                break
        locks.enter_context(git.locked(_ccache_lock(store), how=fcntl.LOCK_SH))
        for lock in (work / "lock", _ccache_lock(store)):
            lock.touch()
        git.describe(work, what)
        yield work


def _check_room(what: str, needed: int, store: Store) -> None:
    free = shutil.disk_usage(store.root).free
    if free < needed:
        raise InfraError(
            f"no room to build {what}: it takes about {needed / 1e9:.0f} GB in {store.root}, "
            f"where {free / 1e9:.1f} GB are free",
            "free some with `cohabit kernels prune`, or set COHABIT_CACHE to a directory "
            "on a larger file system",
        )


def entries(store: Store) -> list[Scratch]:
    """Return all such places in the cache, the most recently used first.

    Takes a second or so for each workspace: its files are counted.
    """
    places: list[tuple[str, Path, tuple[Path, ...]]] = [
        *(("work", path, (path / "lock",)) for path in store.root.glob("work/*")),
        *(
            # Who opens it has the first, who may still refer to what is in it the second.
            ("git", path, (path.with_suffix(".lock"), path / "lock"))
            for path in store.root.glob("git/*")
        ),
        ("ccache", ccache(store), (_ccache_lock(store),)),
    ]
    found = [_look(*place) for place in places if place[1].is_dir()]
    return sorted(found, key=lambda scratch: scratch.used, reverse=True)


def _look(kind: str, path: Path, locks: tuple[Path, ...]) -> Scratch:
    label = "compiled files, of all trees" if kind == "ccache" else git.described(path)
    used = 0.0
    # An older cohabit made no such locks; and the place may go away under us.
    for witness in (path, locks[-1]):
        with contextlib.suppress(FileNotFoundError):
            used = witness.stat().st_mtime
    # A build may go on in it: du complains of what vanishes, and counts the rest.
    argv = ["du", "-s", "-B1", "--", str(path)]
    done = run(argv, what=f"looking at {path}", where=path.parent, check=False)
    size = done.stdout.partition("\t")[0]
    return Scratch(kind, label, int(size or 0), used, path, locks)


def prune(store: Store, unused_for: float = 0.0) -> tuple[list[Scratch], list[Scratch]]:
    """Remove what was not used for ``unused_for`` seconds.

    Returns what was removed, and what was old enough but is in use.  Raises InfraError
    when the file system refuses.
    """
    removed: list[Scratch] = []
    kept: list[Scratch] = []
    limit = time.time() - unused_for
    for scratch in entries(store):
        if scratch.used > limit:
            continue
        # Not there any more: somebody else prunes too.
        with contextlib.suppress(FileNotFoundError), git.disk_errors(store.root):
            try:
                _remove(scratch, store)
            except _InUseError:
                kept.append(scratch)
            else:
                removed.append(scratch)
    return removed, kept


class _InUseError(Exception):
    """Somebody holds a lock."""


def _refuse() -> NoReturn:
    raise _InUseError


def _remove(scratch: Scratch, store: Store) -> None:
    with contextlib.ExitStack() as locks:
        for lock in scratch.locks:
            locks.enter_context(git.locked(lock, _refuse))
        moved = store.root / "tmp" / uuid.uuid4().hex
        scratch.path.rename(moved)
        rmtree(moved)
