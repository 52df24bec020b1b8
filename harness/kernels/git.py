# SPDX-License-Identifier: GPL-2.0-only
"""git as the library for source trees: repositories of ours, beside other people's.

Nothing here writes to a repository that is not ours, nor runs its hooks, filters or
programs.  Ours are bare, below ``git/`` in the cache, and read the user's objects where
those are (objects/info/alternates).  What is written goes into a directory ``own`` that git
is shown alone: with the alternates in sight git would set the time stamps of their packs
("freshen" them) whenever it is given an object that they have.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess

from harness.errors import InfraError
from harness.kernels.programs import check_disk_full, held_fds, plain_env, run, tail
from harness.kernels.store import Store, key_of, rmtree

_SETTINGS = (
    "advice.addEmbeddedRepo=false",
    "checkout.workers=2",
    "core.attributesFile=/dev/null",
    "core.compression=1",
    "core.fsmonitor=false",
    "core.hooksPath=/dev/null",
    "core.looseCompression=0",
    "core.quotePath=false",
    "core.splitIndex=false",
    "core.untrackedCache=false",
    "gc.auto=0",
    # Only git's start looks at the owner, and a tree may well be somebody else's.
    "safe.directory=*",
)
# A file in the cache must have the bytes of the user's: no line ends, no filters.
_ATTRIBUTES = "* -text -filter -ident !eol !working-tree-encoding\n"
_LOW = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT)
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)
# How many file names one command line takes: far below the kernel's limit.
_MANY = 500


@dataclass(frozen=True)
class Git:
    """git on one repository, with nobody's configuration but what is given here.

    ``index`` and ``work_tree`` as far as a command needs them.  ``writing``: for the commands
    that make objects; they don't see what the repository borrows from the user.
    """

    repository: Path
    index: Path | None = None
    work_tree: Path | None = None
    writing: bool = False
    settings: tuple[str, ...] = ()

    def run(self, *words: str | Path, what: str, check: bool = True) -> CompletedProcess[str]:
        """Run ``git WORDS`` inside the work tree if there is one; ``what`` is for messages.

        Raises InfraError when git is missing or (with ``check``) fails, OSError(ENOSPC) when
        the disk is full.
        """
        env = environment() | {"GIT_DIR": str(self.repository)}
        if self.index:
            env["GIT_INDEX_FILE"] = str(self.index)
        if self.work_tree:
            env["GIT_WORK_TREE"] = str(self.work_tree)
        own = self.repository / "own"
        if self.writing and own.is_dir():
            env["GIT_OBJECT_DIRECTORY"] = str(own)
        argv: list[str | Path] = ["git", "-C", self.work_tree or self.repository]
        for setting in (*_SETTINGS, *self.settings):
            argv += ["-c", setting]
        done = run([*argv, *words], what=what, where=self.repository, env=env, check=False)
        if done.returncode != 0 and check:
            # git does not always say why it could not write its index.
            if shutil.disk_usage(self.repository).free < _LOW:
                check_disk_full(os.strerror(errno.ENOSPC), self.repository)
            text = tail(done.stderr or done.stdout)
            raise InfraError(f"{what} failed: git {words[0]} ended with {done.returncode}{text}")
        return done

    def lines(self, *words: str | Path, what: str) -> list[str]:
        """Run git with ``-z`` among ``words`` and return what the NULs end."""
        return self.run(*words, what=what).stdout.split("\0")[:-1]

    def lend(self, paths: Sequence[str], scratch: Path) -> None:
        """Copy the blobs that the index has for ``paths`` to where a writing git sees them.

        ``scratch`` is a directory for what comes up in between; paths that the index does
        not have are left out.
        """
        if not (self.repository / "own").is_dir():
            return
        known = set(self.lines("ls-files", "-z", what="reading the index"))
        wanted = sorted(known.intersection(paths))
        scratch.mkdir(parents=True, exist_ok=True)
        # So that the text of a link is a blob like any other.
        reader = Git(self.repository, self.index, scratch, settings=("core.symlinks=false",))
        writer = Git(self.repository, None, scratch, writing=True)
        for start in range(0, len(wanted), _MANY):
            some = wanted[start : start + _MANY]
            words = ["checkout-index", "-f", f"--prefix={scratch}/", "--"]
            reader.run(*words, *some, what="reading the files of a patch")
            words = ["hash-object", "-w", "--no-filters", "--"]
            writer.run(*words, *some, what="copying the files of a patch")


@dataclass(frozen=True)
class Checkout:
    """A git repository of the user's: ``git_dir`` (a file in a worktree), and what is in it."""

    directory: Path
    git_dir: Path
    objects: Path
    exclude: Path
    shallow: Path
    object_format: str

    @property
    def bare(self) -> bool:
        """Whether it has no working tree."""
        return self.git_dir == self.directory

    def run(self, *words: str, what: str, users: bool = False) -> CompletedProcess[str]:
        """Run a git command that only reads, on the user's own repository; it may fail.

        With ``users`` it reads the user's own configuration too.
        """
        argv = ["git", f"--git-dir={self.git_dir}"]
        for setting in _SETTINGS:
            argv += ["-c", setting]
        env = environment(users=users)
        return run([*argv, *words], what=what, where=self.directory, env=env, check=False)

    def id_of(self, revision: str, kind: str) -> str:
        """Return the full name of ``revision`` as an object of ``kind``, "" if there is none."""
        if revision.startswith("-"):
            return ""
        words = ["rev-parse", "--verify", "--quiet", f"{revision}^{{{kind}}}"]
        done = self.run(*words, what=f"looking up {revision}")
        return done.stdout.strip() if done.returncode == 0 else ""


def find(directory: Path) -> Checkout | None:
    """Return the git repository whose working tree's top ``directory`` is, or that it is.

    None when there is none, or none that git can read.  Raises InfraError without git.
    """
    inner = directory / ".git"
    bare = (directory / "HEAD").is_file() and (directory / "objects").is_dir()
    if not os.path.lexists(inner) and not bare:
        return None
    git_dir = inner if os.path.lexists(inner) else directory
    words = ["rev-parse", "--path-format=absolute", "--show-object-format"]
    for name in ("objects", "info/exclude", "shallow"):
        words += ["--git-path", name]
    blank = Path()
    asked = Checkout(directory, git_dir, blank, blank, blank, "")
    done = asked.run(*words, what=f"looking at {git_dir}")
    lines = done.stdout.splitlines()
    if done.returncode != 0 or len(lines) != 4:
        return None
    paths = [Path(line) for line in lines[1:]]
    return Checkout(directory, git_dir, paths[0], paths[1], paths[2], lines[0])


@contextlib.contextmanager
def opened(
    store: Store,
    name: str,
    *,
    label: str = "",
    borrow: Path | None = None,
    checkout: Checkout | None = None,
    busy: Callable[[], None] = lambda: None,
) -> Iterator[Path]:
    """Give our repository for ``name``, made if need be, to one process at a time.

    It reads the objects of the user's ``checkout``, or those in ``borrow``, which are in
    the cache themselves.  ``label`` is what lists of the cache call it, if not ``name``.
    ``busy`` is called when another process has it.  Until ``store`` is closed it is not
    removed, so a name of an object in it stays good.  Raises InfraError when the cache
    can't be written to or is full, also for what is done inside.
    """
    top = store.root / "git"
    kind = checkout.object_format if checkout else "sha1"
    path = top / key_of("git", {"name": name, "format": kind})[:20]
    with disk_errors(top):
        top.mkdir(exist_ok=True)
        with locked(path.with_suffix(".lock"), busy):
            if not path.is_dir():
                create(path, kind, own=checkout is not None)
            (path / "lock").touch()
            pinned = store.pin(path)
            assert pinned, "to remove it takes the lock that we have"
            describe(path, label or name)
            objects = checkout.objects if checkout else borrow
            text = ("../own\n" if checkout else "") + (f"{objects}\n" if objects else "")
            _write(path / "objects/info/alternates", text)
            _copy(path / "shallow", checkout.shallow if checkout else None)
            yield path


def create(path: Path, object_format: str = "sha1", *, own: bool = False) -> None:
    """Make an empty bare repository ``path``, with a directory ``own`` if wanted, or nothing.

    Raises InfraError when git is missing or fails, OSError when the disk does.
    """
    work = path.with_suffix(".new")
    rmtree(work)
    words = ["git", "init", "-q", "--bare", "--template=", f"--object-format={object_format}"]
    what = "making a repository in the cache"
    run([*words, work], what=what, where=path.parent, env=environment())
    (work / "objects/info").mkdir(exist_ok=True)
    (work / "info").mkdir(exist_ok=True)
    _write(work / "info/attributes", _ATTRIBUTES)
    if own:
        (work / "own").mkdir()
    work.rename(path)


def _write(path: Path, text: str) -> None:
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8", errors="surrogateescape")
    part.replace(path)


def _copy(path: Path, source: Path | None) -> None:
    """Make ``path`` what ``source`` is: a shallow clone's edge, or nothing."""
    if source and source.is_file():
        _write(path, source.read_text(encoding="ascii"))
    else:
        path.unlink(missing_ok=True)


def describe(place: Path, text: str) -> None:
    """Write down what a directory of ours is for, for lists of the cache."""
    (place / "about").write_text(text, encoding="utf-8", errors="surrogateescape")


def described(place: Path) -> str:
    """Return what ``describe`` wrote, in one line; the directory's name if there is nothing."""
    try:
        text = (place / "about").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    return text.replace("\n", " ") or place.name


@contextlib.contextmanager
def locked(
    path: Path, busy: Callable[[], None] = lambda: None, how: int = fcntl.LOCK_EX
) -> Iterator[None]:
    """Hold the lock file ``path``; programs started meanwhile hold it for as long as they run.

    ``busy`` is called when somebody else has it; ``how`` may be LOCK_SH.  Raises
    FileNotFoundError when its directory is not there, or went away while we waited.
    """
    fd = _lock(path, busy, how)
    held = held_fds.set((*held_fds.get(), fd))
    try:
        yield
    finally:
        held_fds.reset(held)
        os.close(fd)


def _lock(path: Path, busy: Callable[[], None], how: int) -> int:
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(fd, how | fcntl.LOCK_NB)
            except BlockingIOError:
                busy()
                fcntl.flock(fd, how)
            # Who had it may have removed its directory, and a third made it anew.
            if os.path.samestat(os.fstat(fd), path.stat()):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


@contextlib.contextmanager
def disk_errors(where: Path) -> Iterator[None]:
    """Turn what a file system refuses, below ``where``, into InfraError."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise InfraError(
                f"no room for source trees in {where}: {os.strerror(error.errno or 0)}",
                "free some with `cohabit kernels prune`, or set COHABIT_CACHE to a directory "
                "on a larger file system",
            ) from error
        if error.errno in _READ_ONLY:
            raise InfraError(
                f"{where} can't be used: {error}",
                "set COHABIT_CACHE to a directory that you may write to",
            ) from error
        raise


def environment(*, users: bool = False) -> dict[str, str]:
    """Return an environment without what a git around us (a hook, a bisect) has set.

    With ``users`` git reads the user's configuration, else none.
    """
    env = {name: value for name, value in plain_env().items() if not name.startswith("GIT_")}
    env |= {
        # Without it some reading commands write the index.
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ATTR_NOSYSTEM": "1",
    }
    if not users:
        env |= {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}
    return env
