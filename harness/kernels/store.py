# SPDX-License-Identifier: GPL-2.0-only
"""The cache of things that are costly to make: kernels, root file systems, built modules.

An entry is a directory named by a hash of what it was made from.  It is made
under ``tmp/`` on the same file system and renamed into place when complete, so
an entry that exists is whole, whenever a process was killed.  Three locks, all
``flock`` and thus gone with their process, keep runs apart:

* ``locks/KIND-KEY``: one process at a time makes an entry;
* ``lock`` in the entry's own directory: exclusive while it is being made or
  removed, shared by everybody who uses it; it moves along with the directory;
* ``locks/tmp``: exclusive while ``sweep`` decides what is stale, shared while
  a directory has come into being and is not locked yet.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import InfraError
from harness.kernels.programs import held_fds

Say = Callable[[str], None]
Make = Callable[[Path], Iterable[str] | None]

_FULL = {errno.ENOSPC, errno.EDQUOT}


def default_root() -> Path:
    """Return the cache directory: $COHABIT_CACHE, $XDG_CACHE_HOME/cohabit or ~/.cache/cohabit."""
    if named := os.environ.get("COHABIT_CACHE"):
        return Path(named).absolute()
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG base directory specification: a relative path is to be ignored.
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "cohabit"


def key_of(kind: str, inputs: Mapping[str, str]) -> str:
    """Return the hexadecimal key of what ``kind`` and ``inputs`` describe."""
    text = json.dumps([kind, dict(inputs)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def rmtree(path: Path) -> None:
    """Remove a directory tree, also where directories in it are not writable."""
    for name, _, _ in os.walk(path):
        with contextlib.suppress(OSError):
            if not os.access(name, os.W_OK | os.X_OK):
                Path(name).chmod(0o700)
    shutil.rmtree(path, ignore_errors=True)
    if path.exists():
        # The second try is for its exception: what is left, and why.
        shutil.rmtree(path)


@dataclass(frozen=True)
class Entry:
    """One finished thing in the cache; times are seconds since the epoch, size is in bytes."""

    kind: str
    key: str
    label: str
    inputs: Mapping[str, str]
    size: int
    created: float
    used: float
    path: Path

    @property
    def tree(self) -> Path:
        """The directory that holds what was made."""
        return self.path / "tree"


class Store:
    """The cache below ``root``, which is made if need be.

    Opening it clears what killed runs left.  Entries that ``get`` returned stay
    locked against removal until ``close`` or the end of the process.  Every
    method raises InfraError when the file system is full or not writable.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._pins: dict[Path, int] = {}
        self._guard = threading.Lock()
        with self._disk_errors():
            for name in ("objects", "tmp", "locks", "state"):
                (root / name).mkdir(parents=True, exist_ok=True)
            self.sweep()

    def close(self) -> None:
        """Let go of every entry that this object handed out."""
        with self._guard:
            for fd in self._pins.values():
                os.close(fd)
            self._pins.clear()

    @property
    def state(self) -> Path:
        """A directory for small things that are not entries (package lists, answers)."""
        return self.root / "state"

    def get(
        self,
        kind: str,
        inputs: Mapping[str, str],
        make: Make,
        *,
        label: str,
        say: Say,
    ) -> Path:
        """Return the tree of the entry made from ``inputs``, making it when it is not there.

        ``make(tree)`` fills the empty directory ``tree`` (it may use the directory
        above for scratch files that it removes) and may return the relative paths
        of files whose whole content is to be checked on every use; of all others
        the size is.  An entry that fails its check is said so and made anew.
        What ``make`` raises goes through, with nothing left behind.
        """
        final = self.root / "objects" / kind / key_of(kind, inputs)
        with self._disk_errors():
            if self.pin(final) and _damage(final) is None:
                return self._hand_out(final)
            with self._turn(f"{kind}-{final.name}", label, say):
                if self.pin(final):
                    damage = _damage(final)
                    if damage is None:
                        return self._hand_out(final)
                    say(f"cache: {label} is damaged ({damage}); making it anew")
                    self._discard(final)
                elif final.exists():
                    # No lock file: nothing that this program finished.
                    self._to_tmp(final)
                self._make(final, kind, inputs, make, label)
                return self._hand_out(final)

    def discard(self, kind: str, inputs: Mapping[str, str]) -> None:
        """Make sure that what was made from ``inputs`` is not found again.

        Whoever uses it keeps it, as far as files that are open or mapped go.
        """
        final = self.root / "objects" / kind / key_of(kind, inputs)
        with self._disk_errors(), self._turn(f"{kind}-{final.name}", kind, lambda _: None):
            if self.pin(final):
                self._discard(final)

    def find(self, kind: str, inputs: Mapping[str, str]) -> Entry | None:
        """Return the entry made from ``inputs`` if there is one; its files are not checked."""
        return _read_entry(self.root / "objects" / kind / key_of(kind, inputs))

    def entries(self, kind: str = "*") -> list[Entry]:
        """Return the entries (of one ``kind``), the most recently used first.

        One whose manifest can't be read has the label "(damaged)" and no inputs.
        """
        paths = (self.root / "objects").glob(f"{kind}/*")
        found = [_read_entry(path) or _damaged_entry(path) for path in paths]
        return sorted(found, key=lambda entry: entry.used, reverse=True)

    @contextlib.contextmanager
    def use(self, entry: Entry) -> Iterator[Path]:
        """Keep ``entry`` from being removed for as long as the context lasts; gives its tree."""
        fd = _lock(entry.path / "lock", fcntl.LOCK_SH | fcntl.LOCK_NB)
        if fd is None:
            raise InfraError(f"the cache entry {entry.label} is gone or being removed")
        try:
            yield entry.tree
        finally:
            os.close(fd)

    def remove(self, entry: Entry) -> None:
        """Remove ``entry``; raises InfraError when a run uses it."""
        turn = self._turn(f"{entry.kind}-{entry.key}", entry.label, lambda _: None)
        with self._disk_errors(), turn:
            fd = _lock(entry.path / "lock", fcntl.LOCK_EX | fcntl.LOCK_NB)
            if fd is None:
                raise InfraError(
                    f"the cache entry {entry.label} is in use",
                    "wait until the run that uses it has ended",
                )
            try:
                rmtree(self._to_tmp(entry.path))
            finally:
                os.close(fd)

    def drop(self, entry: Entry) -> None:
        """Remove ``entry`` although this object handed it out; its user must be done with it.

        Raises InfraError when another run uses it.
        """
        with self._guard:
            if (fd := self._pins.pop(entry.path, None)) is not None:
                os.close(fd)
        self.remove(entry)

    def prune(self, unused_for: float = 0.0) -> tuple[list[Entry], list[Entry]]:
        """Remove entries not used for ``unused_for`` seconds.

        Returns those removed, and those that were old enough but are in use.
        """
        removed: list[Entry] = []
        kept: list[Entry] = []
        limit = time.time() - unused_for
        for entry in self.entries():
            if entry.used > limit:
                continue
            try:
                self.remove(entry)
            except InfraError:
                kept.append(entry)
            else:
                removed.append(entry)
        return removed, kept

    def sweep(self) -> int:
        """Remove what killed processes left under ``tmp``; returns how many directories."""
        stale: list[tuple[Path, int | None]] = []
        with self._tmp_guard(fcntl.LOCK_EX):
            for path in (self.root / "tmp").iterdir():
                if not (path / "lock").exists():
                    # Killed between mkdir and lock, or half removed.
                    stale.append((path, None))
                elif (fd := _lock(path / "lock", fcntl.LOCK_EX | fcntl.LOCK_NB)) is not None:
                    stale.append((path, fd))
            for path, fd in stale:
                rmtree(path)
                if fd is not None:
                    os.close(fd)
        return len(stale)

    def _make(
        self, final: Path, kind: str, inputs: Mapping[str, str], make: Make, label: str
    ) -> None:
        work = self.root / "tmp" / uuid.uuid4().hex
        with self._tmp_guard(fcntl.LOCK_SH):
            work.mkdir(mode=0o755)
            fd = _create_lock(work / "lock")
        held = held_fds.set((*held_fds.get(), fd))
        try:
            tree = work / "tree"
            tree.mkdir(mode=0o755)
            critical = make(tree) or ()
            _seal(work, kind, inputs, label, critical)
            final.parent.mkdir(parents=True, exist_ok=True)
            # From exclusive to shared is not atomic: the guard keeps a sweep
            # from taking the lock between the two.
            with self._tmp_guard(fcntl.LOCK_SH):
                fcntl.flock(fd, fcntl.LOCK_SH)
                work.rename(final)
            _fsync(final.parent)
        except BaseException:
            if work.exists():
                rmtree(work)
            os.close(fd)
            raise
        finally:
            held_fds.reset(held)
        with self._guard:
            self._pins[final] = fd

    def pin(self, final: Path) -> bool:
        """Take the shared lock of an entry, unless it is missing or being removed."""
        with self._guard:
            if (old := self._pins.get(final)) is not None:
                if _same_file(old, final / "lock"):
                    return True
                os.close(self._pins.pop(final))
            fd = _lock(final / "lock", fcntl.LOCK_SH | fcntl.LOCK_NB)
            if fd is None:
                return False
            self._pins[final] = fd
            return True

    def _hand_out(self, final: Path) -> Path:
        with contextlib.suppress(OSError):
            os.utime(final / "lock")
        return final / "tree"

    def _discard(self, final: Path) -> None:
        """Move a damaged entry away; it is deleted unless another run still uses it."""
        with self._guard:
            os.close(self._pins.pop(final))
        moved = self._to_tmp(final)
        fd = _lock(moved / "lock", fcntl.LOCK_EX | fcntl.LOCK_NB)
        if fd is not None:
            rmtree(moved)
            os.close(fd)

    def _to_tmp(self, path: Path) -> Path:
        moved = self.root / "tmp" / uuid.uuid4().hex
        path.rename(moved)
        return moved

    @contextlib.contextmanager
    def _turn(self, name: str, label: str, say: Say) -> Iterator[None]:
        fd = os.open(self.root / "locks" / name, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"cache: another run is busy with {label}: waiting for it")
                fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def _tmp_guard(self, how: int) -> Iterator[None]:
        fd = os.open(self.root / "locks" / "tmp", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(fd, how)
            yield
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in _FULL:
                free = shutil.disk_usage(self.root).free if self.root.exists() else 0
                raise InfraError(
                    f"no room for the cache in {self.root}: {os.strerror(error.errno)} "
                    f"({free} bytes free)",
                    "free some with `cohabit kernels prune`, or set COHABIT_CACHE to a "
                    "directory on a larger file system",
                ) from error
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
                raise InfraError(
                    f"the cache {self.root} can't be used: {error}",
                    "set COHABIT_CACHE to a directory that you may write to",
                ) from error
            raise


def _create_lock(path: Path) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    fcntl.flock(fd, fcntl.LOCK_EX)
    return fd


def _lock(path: Path, how: int) -> int | None:
    """Return an open descriptor with the lock, None if it is taken or its file went away."""
    try:
        fd = os.open(path, os.O_RDWR)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        fcntl.flock(fd, how)
    except BlockingIOError:
        os.close(fd)
        return None
    if not _same_file(fd, path):
        os.close(fd)
        return None
    return fd


def _same_file(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except OSError:
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


#: A file larger than this may be mostly holes, as a snapshot's memory is.
_LARGE = 64 << 20


def _room(item: os.DirEntry[str]) -> int:
    """What a file takes on the disk, in bytes; that is known once it is there."""
    _fsync(Path(item.path))
    return os.stat(item.path, follow_symlinks=False).st_blocks * 512  # noqa: PTH116


def _seal(
    work: Path, kind: str, inputs: Mapping[str, str], label: str, critical: Iterable[str]
) -> None:
    """Write the manifest of a complete tree and bring everything to the disk."""
    tree = work / "tree"
    files: dict[str, int] = {}
    size = 0
    pending = [(os.fspath(tree), "")]
    while pending:
        directory, prefix = pending.pop()
        with os.scandir(directory) as found:
            for item in found:
                if item.is_dir(follow_symlinks=False):
                    pending.append((item.path, f"{prefix}{item.name}/"))
                elif item.is_file(follow_symlinks=False) or item.is_symlink():
                    length = item.stat(follow_symlinks=False).st_size
                    files[prefix + item.name] = length
                    size += _room(item) if length > _LARGE else length
    about = {
        "kind": kind,
        "inputs": dict(inputs),
        "label": label,
        "created": time.time(),
        "size": size,
        "critical": {name: _sha256(tree / name) for name in critical},
    }
    (work / "files.json").write_text(json.dumps(files), encoding="utf-8")
    (work / "manifest.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
    # One syncfs for tens of thousands of small files, before the rename
    # makes them an entry.
    done = subprocess.run(["sync", "-f", str(work)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OSError(errno.EIO, done.stderr.strip(), str(work))


def _load(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        value = json.load(file)
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} is not an object")
    return value


def _damage(final: Path) -> str | None:
    """Return what is wrong with an entry, or None: all sizes, and the critical contents."""
    try:
        about = _load(final / "manifest.json")
        files = _load(final / "files.json")
        critical = dict(about["critical"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its manifest can't be read: {error}"
    prefix = f"{final}/tree/"
    lstat = os.lstat
    for name, size in files.items():
        try:
            found = lstat(prefix + name).st_size
        except OSError as error:
            return f"{name}: {error.strerror}"
        if found != size:
            return f"{name} has {found} bytes instead of {size}"
    for name, digest in critical.items():
        try:
            if _sha256(final / "tree" / name) != digest:
                return f"{name} has changed"
        except OSError as error:
            return f"{name}: {error.strerror}"
    return None


def _read_entry(path: Path) -> Entry | None:
    try:
        about = _load(path / "manifest.json")
        return Entry(
            kind=str(about["kind"]),
            key=path.name,
            label=str(about["label"]),
            inputs={str(k): str(v) for k, v in dict(about["inputs"]).items()},
            size=int(about["size"]),
            created=float(about["created"]),
            used=(path / "lock").stat().st_mtime,
            path=path,
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _damaged_entry(path: Path) -> Entry:
    return Entry(path.parent.name, path.name, "(damaged)", {}, 0, 0.0, 0.0, path)
