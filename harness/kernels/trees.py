# SPDX-License-Identifier: GPL-2.0-only
"""Kernel source trees: ``tree:DIR``, ``tree:DIR@REV`` and ``source:7.2``.

What a tree is at one moment is a git tree object in a repository of ours, so that its name
says all of its content.  The user's directory is only read; what is built is a checkout of
that object.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from harness.errors import InfraError, UsageError
from harness.kernels import git, sources
from harness.kernels.git import Checkout, Git
from harness.kernels.programs import tail
from harness.kernels.store import Store

Say = Callable[[str], None]

FORMS = (
    "tree:DIRECTORY (as it is now), tree:DIRECTORY@REVISION, "
    "source:SERIES (source:7.2) or source:VERSION (source:7.2.12-1)"
)
# A directory that is not in git: .gitignore tells nothing there (that of Debian's source
# package ignores every file), so these are what a build inside of it leaves.
_PRODUCTS = (
    *("*.o", "*.ko", "*.a", "*.cmd", "*.mod", "*.mod.c", "*.order", "*.symvers"),
    *("/.config", "/.config.old", "/.version", "/.tmp_*", "/.vmlinux.*", "/System.map"),
    *("/vmlinux", "/vmlinux.*", "/modules.builtin*", "/include/config/**"),
    *("/include/generated/**", "/arch/*/include/generated/**"),
)
# Thousands of files that are new to git go into a few packs; without the limit git
# compares each with all before it.
_PACKING = ("core.bigFileThreshold=1", "pack.packSizeLimit=32m")
_VERSION = re.compile(r"^(VERSION|PATCHLEVEL|SUBLEVEL|EXTRAVERSION)[ \t]*=[ \t]*(\S*)[ \t]*$", re.M)


@dataclass(frozen=True)
class Tree:
    """A kernel's source at one moment.

    ``reference`` is what the user gave, ``oid`` the git tree object, which ``repository``
    (bare, in the cache; it may borrow from elsewhere) holds.  ``origin`` is for reports,
    ``release`` is the Makefile's version ("7.2.12").
    """

    reference: str
    repository: Path
    oid: str
    origin: str
    release: str


@dataclass(frozen=True)
class Revision:
    """One commit: its full name, its subject line, and the reference of its tree."""

    oid: str
    subject: str
    reference: str


def check(reference: str) -> None:
    """Raise UsageError when ``reference`` is no well-formed reference of a tree."""
    kind, _, name = reference.partition(":")
    if kind == "tree" and name and not name.startswith("@") and not name.endswith("@"):
        return
    if kind != "source" or not sources.NAME.fullmatch(name):
        raise UsageError(f"{reference!r} is no kernel tree", f"a tree is {FORMS}")


def resolve(reference: str, store: Store, say: Say) -> Tree:
    """Return the tree that ``reference`` names, as it is now.

    Raises UsageError when there is no such tree, InfraError when it can't be read or had.
    """
    check(reference)
    if reference.startswith("source:"):
        return _source(reference, store, say)
    directory, revision = split(reference)
    checkout = _look_at(reference, directory, say)
    if revision is None:
        return _as_it_is(reference, directory, checkout, store, say)
    return _at_revision(reference, _in_git(reference, directory, checkout), revision, store, say)


def split(reference: str) -> tuple[Path, str | None]:
    """Return the directory of a ``tree:`` reference, made absolute, and its revision if any.

    Both may have an ``@`` in them: the directory is the whole if there is one of that name,
    else the shortest that there is.
    """
    name = reference.partition(":")[2]
    whole = Path(name).expanduser()
    if not whole.is_dir():
        for match in re.finditer("@", name):
            part = Path(name[: match.start()]).expanduser()
            if part.is_dir():
                return part.resolve(), name[match.end() :]
    return whole.resolve(), None


def revisions(directory: Path, good: str, bad: str, store: Store) -> tuple[Revision, ...]:
    """Return the commits after ``good`` up to ``bad`` of a git repository, oldest first.

    Of a merge only the first parent's side is followed, so that each commit contains all
    that are before it.  Raises UsageError when a revision is unknown or ``good`` is not an
    ancestor of ``bad``.
    """
    directory = directory.expanduser().resolve()
    reference = f"tree:{directory}"
    checkout = _in_git(reference, directory, _look_at(reference, directory, lambda _: None))
    ends = [_commit(checkout, revision) for revision in (good, bad)]
    with git.opened(store, str(directory), checkout=checkout) as repository:
        ours = Git(repository)
        words = ["merge-base", "--is-ancestor", *ends]
        if ours.run(*words, what="comparing revisions", check=False).returncode != 0:
            raise UsageError(
                f"{directory}: {good} is not an ancestor of {bad}",
                "give a good revision that the bad one contains",
            )
        words = ["log", "--first-parent", "--reverse", "-z", "--format=tformat:%H%x09%s"]
        found = ours.lines(*words, f"{ends[0]}..{ends[1]}", what="listing revisions")
    rows = (line.partition("\t") for line in found)
    return tuple(Revision(oid, subject, f"{reference}@{oid}") for oid, _, subject in rows)


def commits(directory: Path, span: str, store: Store) -> tuple[Path, tuple[Revision, ...]]:
    """Return our repository with the commits of ``span`` ("A..B"), and them, oldest first.

    Raises UsageError when there are none, or merges among them.
    """
    directory = directory.expanduser().resolve()
    reference = f"tree:{directory}"
    checkout = _in_git(reference, directory, _look_at(reference, directory, lambda _: None))
    first, _, last = span.partition("..")
    ends = [_commit(checkout, revision or "HEAD") for revision in (first, last)]
    with git.opened(store, str(directory), checkout=checkout) as repository:
        words = ["log", "--reverse", "--topo-order", "-z", "--format=tformat:%H%x09%p%x09%s"]
        found = Git(repository).lines(*words, f"{ends[0]}..{ends[1]}", what=f"listing {span}")
    rows = [line.split("\t", 2) for line in found]
    if not rows:
        raise UsageError(f"{directory}: there is no commit in {span}")
    if any(" " in parents for _, parents, _ in rows):
        raise UsageError(
            f"{directory}: there are merges in {span}, and a series has none",
            f"give a range without, or test the result: {reference}@{last or 'HEAD'}",
        )
    return repository, tuple(Revision(o, s, f"{reference}@{o}") for o, _, s in rows)


def checkout(tree: Tree, directory: Path) -> list[str]:
    """Make the content of ``directory`` exactly ``tree``; returns the paths that changed.

    Files that did not change keep their time stamps, all others get new ones.  What else
    is in the directory is removed; an index and a lock are kept beside it.  Raises
    InfraError when it was not made here, can't be written to, or the disk is full.
    """
    directory = directory.absolute()
    index = directory.with_name(f"{directory.name}.index")
    lock = directory.with_name(f"{directory.name}.lock")
    with git.disk_errors(directory):
        if not lock.exists() and directory.exists() and any(directory.iterdir()):
            raise InfraError(f"{directory} is not a checkout of cohabit's: it would be emptied")
        directory.parent.mkdir(parents=True, exist_ok=True)
        with git.locked(lock):
            directory.mkdir(exist_ok=True)
            # The lock is ours, so whoever left this was killed.
            Path(f"{index}.lock").unlink(missing_ok=True)
            ours = Git(tree.repository, index, directory)
            try:
                return _update(ours, tree.oid)
            except InfraError as error:
                # To write every file anew means to compile every file anew.
                if not index.exists() or "index" not in error.message:
                    raise
            index.unlink()
            return _update(ours, tree.oid)


def _update(ours: Git, oid: str) -> list[str]:
    what = "checking out a tree"
    assert ours.index is not None
    changed: set[str] = set()
    if ours.index.exists():
        # What has another time stamp and the same content must not be written again.
        ours.run("update-index", "-q", "--refresh", what=what, check=False)
        changed.update(
            ours.lines("diff-index", "--name-only", "--no-renames", "-z", oid, what=what)
        )
    else:
        changed.update(ours.lines("ls-tree", "-r", "--name-only", "-z", oid, what=what))
    strays = ours.lines("ls-files", "-z", "--others", what=what)
    if strays:
        ours.run("clean", "-ffdxq", what=what)
    if changed or strays:
        ours.run("read-tree", "--reset", "-u", oid, what=what)
    return sorted(changed.union(strays))


def release_of(ours: Git, oid: str, reference: str) -> str:
    """Return the version in the Makefile of tree ``oid``; raises UsageError without one."""
    done = ours.run("cat-file", "blob", f"{oid}:Makefile", what="reading its Makefile", check=False)
    release = _release(done.stdout) if done.returncode == 0 else None
    if release is None:
        raise UsageError(
            f"{reference}: it is no kernel source: no Makefile with VERSION and PATCHLEVEL"
        )
    return release


def _release(makefile: str) -> str | None:
    fields: dict[str, str] = {}
    for name, value in _VERSION.findall(makefile):
        fields.setdefault(name, value)
    if not fields.get("VERSION") or not fields.get("PATCHLEVEL"):
        return None
    sublevel = fields.get("SUBLEVEL")
    numbers = [fields["VERSION"], fields["PATCHLEVEL"], *([sublevel] if sublevel else [])]
    return ".".join(numbers) + fields.get("EXTRAVERSION", "")


def _is_kernel(directory: Path) -> bool:
    try:
        text = (directory / "Makefile").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return _release(text) is not None


def _source(reference: str, store: Store, say: Say) -> Tree:
    found = sources.fetch(reference.partition(":")[2], store, say)
    name = f"{found.package} {found.version}"
    with git.opened(store, name, borrow=found.objects) as repository:
        release = release_of(Git(repository), found.oid, reference)
    return Tree(reference, repository, found.oid, f"Debian's {name}", release)


def _look_at(reference: str, directory: Path, say: Say) -> Checkout | None:
    """Return the git repository of a tree, if it has one; raises UsageError for no tree."""
    if not directory.is_dir():
        raise UsageError(f"{reference}: {directory} is not a directory")
    found = git.find(directory)
    if found:
        return found
    if not _is_kernel(directory):
        top = next((top for top in directory.parents if _is_kernel(top)), None)
        if top:
            raise UsageError(
                f"{reference}: {directory} is a part of the kernel source in {top}",
                f"give all of it: tree:{top}",
            )
        raise UsageError(
            f"{reference}: {directory} is no kernel source: "
            "no Makefile with VERSION and PATCHLEVEL, and no git repository"
        )
    if (directory / ".git").exists():
        say(f"{reference}: git can't read {directory}/.git; taking the files as they are")
    return None


def _in_git(reference: str, directory: Path, checkout: Checkout | None) -> Checkout:
    if checkout is None:
        raise UsageError(f"{reference}: {directory} is not in git, so it has no revisions")
    return checkout


def _commit(checkout: Checkout, revision: str) -> str:
    return checkout.id_of(revision, "commit") or _unknown(checkout, revision)


def _unknown(checkout: Checkout, revision: str) -> NoReturn:
    raise UsageError(
        f"the git repository {checkout.directory} has no revision {revision!r}",
        "see `git log` there; it may have to be fetched first",
    )


def _at_revision(reference: str, checkout: Checkout, revision: str, store: Store, say: Say) -> Tree:
    oid = checkout.id_of(revision, "tree") or _unknown(checkout, revision)
    commit = checkout.id_of(revision, "commit")
    with _opened(checkout.directory, checkout, store, say) as repository:
        name = _describe(checkout, commit, repository) if commit else revision
        release = release_of(Git(repository), oid, reference)
    return Tree(reference, repository, oid, f"{checkout.directory}, {name}", release)


def _as_it_is(
    reference: str, directory: Path, checkout: Checkout | None, store: Store, say: Say
) -> Tree:
    if checkout and checkout.bare:
        raise UsageError(
            f"{reference}: {directory} is a git repository without files",
            f"name a revision: {reference}@HEAD",
        )
    if not _is_kernel(directory):
        raise UsageError(
            f"{reference}: {directory} is no kernel source: no Makefile with VERSION and PATCHLEVEL"
        )
    with _opened(directory, checkout, store, say) as repository:
        index = repository / "index"
        Path(f"{index}.lock").unlink(missing_ok=True)
        if not index.exists():
            say(f"tree: reading all of {directory}; the next time it is quick")
        take = functools.partial(_take, repository, directory, checkout, store)
        try:
            oid, base = take()
        except InfraError as error:
            if not index.exists() or "index" not in error.message:
                raise
            index.unlink()
            oid, base = take()
        reader = Git(repository)
        origin = f"{directory}, {_where(checkout, repository)}"
        if base and base != oid:
            words = ["diff-tree", "-r", "-z", "--name-only", "--no-renames", base, oid]
            count = len(reader.lines(*words, what=f"comparing {directory} with its HEAD"))
            origin += f", with {count} uncommitted change{'s' if count > 1 else ''}"
        release = release_of(reader, oid, reference)
    return Tree(reference, repository, oid, origin, release)


def _opened(
    directory: Path, checkout: Checkout | None, store: Store, say: Say
) -> contextlib.AbstractContextManager[Path]:
    def busy() -> None:
        say(f"tree: another run is reading {directory}: waiting for it")

    # One that stops being a git checkout starts anew: its ignored files count then.
    name = str(directory) if checkout else f"plain {directory}"
    return git.opened(store, name, label=str(directory), checkout=checkout, busy=busy)


def _take(
    repository: Path, directory: Path, checkout: Checkout | None, store: Store
) -> tuple[str, str]:
    """Bring our index up to what ``directory`` holds; returns its tree, and that of HEAD."""
    what = f"reading {directory}"
    index = repository / "index"
    # A cache that lies inside of the tree is none of it.
    own = store.root.resolve()
    inside = f"/{own.relative_to(directory)}" if own.is_relative_to(directory) else ""
    reader = Git(repository, index, directory)
    if checkout is None:
        packing = () if index.exists() else _PACKING
        writer = Git(repository, index, directory, writing=True, settings=packing)
        if index.exists():
            reader.run("update-index", "-q", "--refresh", what=what, check=False)
        products = [*_PRODUCTS, *([f"{inside}/**"] if inside else [])]
        left_out = [
            f":(exclude,glob){name[1:] if name.startswith('/') else f'**/{name}'}"
            for name in products
        ]
        _add(writer, "-f", ".", *left_out)
        return _tree_of(writer, what), ""
    base = checkout.id_of("HEAD", "tree")
    # From HEAD each time: what was untracked then may be ignored now.  Entries that are as
    # HEAD has them keep the time stamps of their files, so that those are not read again.
    words = ["read-tree", "-i", "-m", base] if base else ["read-tree", "--empty"]
    reader.run(*words, what=what)
    # It only compares: without it the files that HEAD has too would be written to our store.
    reader.run("update-index", "-q", "--refresh", what=what, check=False)
    settings = _ignoring(checkout, repository, inside)
    writer = Git(repository, index, directory, writing=True, settings=settings)
    _add(writer, ".")
    forced = _forced(checkout) if base else []
    forced = [name for name in forced if os.path.lexists(directory / name)]
    if forced:
        names = repository / "forced"
        names.write_text("\0".join(forced), encoding="utf-8")
        words = ["--pathspec-file-nul", f"--pathspec-from-file={names}"]
        _add(writer, "-f", *words, literal=True)
    return _tree_of(writer, what), base


def _add(writer: Git, *words: str, literal: bool = False) -> None:
    form = ["--literal-pathspecs"] if literal else []
    done = writer.run(*form, "add", "-A", *words, what=f"reading {writer.work_tree}", check=False)
    if done.returncode != 0:
        raise InfraError(
            f"{writer.work_tree} can't be read{tail(done.stderr, 3)}",
            "cohabit reads every file that is not ignored: make them readable, "
            "or have git ignore them",
        )


def _tree_of(writer: Git, what: str) -> str:
    return writer.run("write-tree", "--missing-ok", what=what).stdout.strip()


def _forced(checkout: Checkout) -> list[str]:
    """Return what the user has added and not committed: it counts even if it is ignored."""
    words = ["diff-index", "--cached", "--name-only", "--no-renames", "--diff-filter=A", "-z"]
    done = checkout.run(*words, "HEAD", what=f"reading the index of {checkout.directory}")
    return done.stdout.split("\0")[:-1] if done.returncode == 0 else []


def _ignoring(checkout: Checkout, repository: Path, inside: str) -> tuple[str, ...]:
    """Have our repository ignore what the user's does; returns the settings for it."""
    try:
        text = checkout.exclude.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        text = ""
    target = repository / "info/exclude"
    target.write_text(f"{text}\n{inside}\n", encoding="utf-8", errors="surrogateescape")
    words = ["config", "--type=path", "--get", "core.excludesFile"]
    done = checkout.run(*words, what="reading git's configuration", users=True)
    name = done.stdout.strip() if done.returncode == 0 else ""
    return (f"core.excludesFile={name}",) if name else ()


def _where(checkout: Checkout | None, repository: Path) -> str:
    if checkout is None:
        return "not in git"
    commit = checkout.id_of("HEAD", "commit")
    return _describe(checkout, commit, repository) if commit else "nothing committed yet"


def _describe(checkout: Checkout, commit: str, repository: Path) -> str:
    """Return a name for ``commit`` by the nearest tag, remembered: it can take a second."""
    memory = repository / "described.json"
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    if not isinstance(known, dict) or known.get("commit") != commit:
        words = ["describe", "--always", "--abbrev=12", commit]
        done = checkout.run(*words, what=f"describing {commit}")
        known = {"commit": commit, "name": done.stdout.strip() or commit[:12]}
        memory.write_text(json.dumps(known), encoding="utf-8")
    return str(known["name"])
