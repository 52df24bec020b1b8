# SPDX-License-Identifier: GPL-2.0-only
"""Kernel references: the words by which people name a kernel."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from harness.arch import Arch, host
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
    tools: Callable[[Arch], Path],
    arch: Arch | None = None,
    options: build.Options | None = None,
    patches: str = "",
) -> Kernel:
    """Return the kernel that ``reference`` names, from the cache if it is there.

    ``tools`` gives a root file system whose programs the host runs for kernels of an
    architecture (vm.rootfs.tools_root).  ``arch``: which one of that name, where several
    architectures have it; the host's if it is None and the reference does not say.
    ``options`` and ``patches`` (as harness.kernels.series.read takes them) are for trees.
    Raises UsageError when there is no such kernel, InfraError when it can't be fetched or
    built.
    """
    check(reference)
    kind, _, name = reference.partition(":")
    said = debian.of_name(name) if kind == "debian" else None
    if arch and said and said is not arch:
        raise UsageError(
            f"{reference} is for {said.name}, not for {arch.name}",
            "leave out --arch, or the end of the release",
        )
    wanted = arch or said or host()
    if is_tree(reference):
        tree = trees.resolve(reference, store, say)
        if patches:
            tree = series.apply(tree, series.read(patches, tree, store))[-1]
        options = replace(options or build.Options(), arch=wanted.name)
        return build.build(tree, options, tools(wanted), store, say)
    if patches:
        raise UsageError(
            f"{reference} is no source tree: a series can't be applied to it",
            "take tree:DIRECTORY or source:SERIES",
        )
    if kind == "path":
        # Its image says what it is for; depmod, which works for all, is any root's.
        return local.resolve(Path(name), reference, store, tools(wanted), say, arch)
    return debian.Debian(store, tools(wanted), say, wanted).resolve(name)
