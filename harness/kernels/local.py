# SPDX-License-Identifier: GPL-2.0-only
"""Kernels from a directory: ``path:DIRECTORY``.

The directory holds what a distribution's packages unpack to, or what ``make install`` and
``make modules_install`` leave: an image, and as far as wanted ``lib/modules``,
``usr/src`` and ``usr/lib/linux-kbuild-*``.  It is copied, never changed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from harness.arch import ARCHES, Arch
from harness.errors import UsageError
from harness.kernels.model import Kernel
from harness.kernels.store import Store
from harness.kernels.unpack import finish, image_release, kernel_in

RECIPE = "1"
"""Counts up whenever copying changes what comes out."""


def resolve(
    directory: Path, reference: str, store: Store, tools: Path, say: Callable[[str], None],
    arch: Arch | None = None,
) -> Kernel:  # fmt: skip
    """Return the kernel in ``directory``.

    ``tools`` is a root file system whose programs the host runs; ``arch``: what the kernel
    must be for.  Raises UsageError when there is no such kernel image, or several.
    """
    directory = directory.expanduser().resolve()
    if not directory.is_dir():
        raise UsageError(f"{reference}: {directory} is not a directory")
    image, release, found = _find_image(directory, reference, arch)
    sources = list(_sources(directory))
    inputs = {
        "release": release,
        "version": release,
        "directory": str(directory),
        "content": _listing([image, *sources]),
        "recipe": RECIPE,
    }

    def make(tree: Path) -> list[str]:
        for source in sources:
            target = tree / source.relative_to(directory)
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir() and not source.is_symlink():
                shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
            else:
                shutil.copy2(source, target, follow_symlinks=False)
        final = tree / "boot" / f"vmlinuz-{release}"
        final.parent.mkdir(exist_ok=True)
        final.unlink(missing_ok=True)
        shutil.copy2(image, final)
        return finish(tree, release, tools, found)

    tree = store.get("local", inputs, make, label=f"{release} of {directory}", say=say)
    return kernel_in(tree, reference=reference, release=release, origin=str(directory), arch=found)


def _find_image(directory: Path, reference: str, arch: Arch | None) -> tuple[Path, str, Arch]:
    patterns = ("boot/vmlinuz-*", "usr/lib/modules/*/vmlinuz*", "lib/modules/*/vmlinuz*", "vmlinuz")
    found: dict[str, tuple[Path, Arch]] = {}
    for pattern in patterns:
        for path in sorted(directory.glob(pattern)):
            known = image_release(path) if path.is_file() else None
            if known and arch in (None, known[1]):
                found.setdefault(known[0], (path, known[1]))
    if not found:
        raise UsageError(
            f"{reference}: no {' or '.join([arch.name] if arch else ARCHES)} kernel image in "
            f"{directory}",
            f"looked for {', '.join(patterns)}",
        )
    if len(found) > 1:
        raise UsageError(
            f"{reference}: {directory} holds several kernels: {', '.join(found)}",
            "give a directory that holds one",
        )
    release, (image, its_arch) = next(iter(found.items()))
    return image, release, its_arch


def _sources(directory: Path) -> Iterator[Path]:
    """Yield what is copied: a whole root file system may be there too, and stays."""
    patterns = ["boot/config-*", "boot/System.map-*", "usr/lib/modules", "usr/src/linux-*"]
    patterns.append("usr/lib/linux-kbuild-*")
    if not (directory / "lib").is_symlink():
        patterns.append("lib/modules")
    for pattern in patterns:
        yield from sorted(directory.glob(pattern))


def _listing(paths: list[Path]) -> str:
    """Return a hash of names, sizes and times: reading 200 MB on every run would be slow."""
    digest = hashlib.sha256()
    for top in paths:
        inside = [Path(where) / name for where, _, names in os.walk(top) for name in names]
        for path in sorted(inside) if top.is_dir() else [top]:
            about = path.lstat()
            digest.update(f"{path} {about.st_size} {about.st_mtime_ns}\n".encode())
    return digest.hexdigest()
