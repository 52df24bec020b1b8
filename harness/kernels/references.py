# SPDX-License-Identifier: GPL-2.0-only
"""Kernel references: the words by which people name a kernel."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from harness.errors import UsageError
from harness.kernels import build, debian, local, series, trees
from harness.kernels.model import Kernel
from harness.kernels.store import Store

FORMS = (
    "debian:SERIES (debian:6.12), debian:RELEASE (debian:6.12.117+deb13), path:DIRECTORY, "
    "tree:DIRECTORY, tree:DIRECTORY@REVISION or source:SERIES (source:7.2)"
)


def check(reference: str) -> None:
    """Raise UsageError when ``reference`` has none of the known forms."""
    kind, _, name = reference.partition(":")
    if is_tree(reference):
        trees.check(reference)
        return
    if kind == "path" and name:
        return
    if kind != "debian" or not re.fullmatch(r"\d+\.\d+[\w.+~-]*", name):
        raise UsageError(f"{reference!r} is no kernel reference", f"a kernel is {FORMS}")


def is_tree(reference: str) -> bool:
    """Return whether the reference is one to sources, which are built."""
    return reference.partition(":")[0] in ("tree", "source")


def resolve(
    reference: str,
    store: Store,
    say: Callable[[str], None],
    *,
    root: Path,
    options: build.Options | None = None,
    patches: str = "",
) -> Kernel:
    """Return the kernel that ``reference`` names, from the cache if it is there.

    ``root`` is the guest's root file system: its depmod indexes the modules.  ``options``
    and ``patches`` (as harness.kernels.series.read takes them) are for trees.  Raises
    UsageError when there is no such kernel, InfraError when it can't be fetched or built.
    """
    check(reference)
    if is_tree(reference):
        tree = trees.resolve(reference, store, say)
        if patches:
            tree = series.apply(tree, series.read(patches, tree, store))[-1]
        return build.build(tree, options or build.Options(), root, store, say)
    if patches:
        raise UsageError(
            f"{reference} is no source tree: a series can't be applied to it",
            "take tree:DIRECTORY or source:SERIES",
        )
    kind, _, name = reference.partition(":")
    if kind == "path":
        return local.resolve(Path(name), reference, store, root, say)
    return debian.Debian(store, root, say).resolve(name)
