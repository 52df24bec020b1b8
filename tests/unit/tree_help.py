# SPDX-License-Identifier: GPL-2.0-only
"""A kernel for tests of source trees: a Makefile and little else, in git and not."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from harness.kernels import trees
from harness.kernels.store import Store
from harness.kernels.trees import Tree

MAKEFILE = "VERSION = 7\nPATCHLEVEL = 2\nSUBLEVEL = 12\nEXTRAVERSION = -rc1\nNAME = Fish\n"


def make_plain(top: Path) -> Path:
    """Write a kernel that is in no git repository."""
    (top / "kernel").mkdir(parents=True)
    (top / "Makefile").write_text(MAKEFILE)
    (top / "kernel/a.c").write_text("int a;\n")
    (top / "kernel/b.c").write_text("int b;\n")
    (top / "run.sh").write_text("true\n")
    (top / "run.sh").chmod(0o755)
    (top / "link").symlink_to("kernel/a.c")
    return top


def make_kernel(top: Path) -> Path:
    """The same, committed and tagged, with an ignored file."""
    make_plain(top)
    (top / ".gitignore").write_text("*.o\n.config\n")
    git(top, "init", "-q", "-b", "main")
    commit(top, "first")
    git(top, "tag", "-a", "-m", "v7.2", "v7.2")
    (top / "kernel/a.o").write_text("object")
    return top


def git(top: Path, *words: str) -> str:
    env = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    env |= {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}
    argv = ["git", "-C", str(top), "-c", "user.name=T", "-c", "user.email=t@test", *words]
    return subprocess.run(argv, check=True, capture_output=True, text=True, env=env).stdout.strip()


def commit(top: Path, subject: str) -> str:
    git(top, "add", "-A")
    git(top, "commit", "-q", "-m", subject)
    return git(top, "rev-parse", "HEAD")


def take(top: Path | str, store: Store, said: list[str] | None = None) -> Tree:
    return trees.resolve(f"tree:{top}", store, (said if said is not None else []).append)


def listing(tree: Tree) -> dict[str, str]:
    """Path to mode and content."""
    names = git(tree.repository, "ls-tree", "-r", "-z", tree.oid).split("\0")[:-1]
    found = {}
    for line in names:
        about, path = line.split("\t")
        mode, _, oid = about.split()
        found[path] = f"{mode} {git(tree.repository, 'cat-file', 'blob', oid)}"
    return found


def look(top: Path) -> dict[str, tuple[int, int, int, str]]:
    """All that a write to a directory would change."""
    found = {}
    for path in sorted(top.rglob("*")):
        about = path.lstat()
        content = path.read_text(errors="replace") if path.is_file() else ""
        found[str(path)] = (about.st_mtime_ns, about.st_mode, about.st_size, content)
    return found


def times(top: Path) -> dict[str, int]:
    files = (path for path in top.rglob("*") if path.is_symlink() or path.is_file())
    return {str(path.relative_to(top)): path.lstat().st_mtime_ns for path in files}


def age(top: Path) -> None:
    """Give every file the time stamp of long ago, as if what follows came much later."""
    for path in top.rglob("*"):
        os.utime(path, (10**9, 10**9), follow_symlinks=False)
