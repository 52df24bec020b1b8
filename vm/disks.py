# SPDX-License-Identifier: GPL-2.0-only
"""Directories as read-only disks of guests: ext4 images, made without mounting anything."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from harness.kernels.programs import run
from harness.kernels.store import Store

from . import namespace

Say = Callable[[str], None]

RECIPE = "1"
"""Counts up whenever what is done below changes what comes out."""

_BLOCK = 4096
_INODE = 256
# What is of no use in a guest, or only costs room: it is never written to.
_FEATURES = "^has_journal,^resize_inode,^metadata_csum,^64bit"


def disk(store: Store, say: Say, tree: Path, part: str, tools: Path, label: str) -> Path:
    """Return an image of the directory ``part`` ("" for all) of ``tree``, from the cache.

    ``tools`` is a root file system with mke2fs that runs on this host; ``label`` says in
    words what it is.  Raises InfraError where it cannot be made.
    """

    def make(target: Path) -> list[str]:
        say(f"making a disk of {label}")
        source = tree / part
        size, files = _size(source)
        blocks = (size + files * _INODE) // _BLOCK * 105 // 100 + 4096
        # To be bound to, in a guest that has nothing of it but this part.
        where = f"in/{part}".rstrip("/")
        words = ["mke2fs", "-q", "-F", "-t", "ext4", "-b", str(_BLOCK), "-I", str(_INODE)]
        words += ["-N", str(files + 1024), "-m", "0", "-O", _FEATURES, "-d", "/in", "/out/disk"]
        with tempfile.TemporaryDirectory(dir=target.parent) as mountpoint:
            command = namespace.chroot_command(
                [*words, str(blocks)],
                lowers=[tools],
                mountpoint=Path(mountpoint),
                binds=[(source, where, False), (target, "out", True)],
            )
            run(command, what=f"making a disk of {label}", where=target)
        return []

    inputs = {"recipe": RECIPE, "part": part, **identity(store, tree)}
    return store.get("disk", inputs, make, label=f"disk: {label}", say=say) / "disk"


def identity(store: Store, tree: Path) -> Mapping[str, str]:
    """What a directory's content is known by: its cache entry's name, or all times and sizes."""
    objects = store.root / "objects"
    if tree.is_relative_to(objects):
        return {"entry": str(tree.relative_to(objects))}
    digest = hashlib.sha256()
    for directory, names, files in os.walk(tree):
        names.sort()
        for name in sorted(files):
            status = os.lstat(f"{directory}/{name}")
            about = f"{directory}/{name} {status.st_size} {status.st_mtime_ns} {status.st_mode}"
            digest.update(about.encode() + b"\n")
    return {"tree": str(tree), "files": digest.hexdigest()}


def _size(tree: Path) -> tuple[int, int]:
    """Bytes in whole blocks and files of a directory tree."""
    size = files = 0
    for directory, names, found in os.walk(tree):
        files += len(names) + len(found)
        size += (len(names) + 1) * _BLOCK
        for name in found:
            length = os.lstat(f"{directory}/{name}").st_size
            # A block more for what leads to the blocks of a large file.
            size += -(-length // _BLOCK) * _BLOCK + (_BLOCK if length > 1 << 24 else 0)
    return size, files
