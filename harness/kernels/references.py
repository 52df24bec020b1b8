# SPDX-License-Identifier: GPL-2.0-only
"""Kernel references: the words by which people name a kernel."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from harness.errors import UsageError
from harness.kernels import debian, local
from harness.kernels.model import Kernel
from harness.kernels.store import Store

FORMS = "debian:SERIES (debian:6.12), debian:RELEASE (debian:6.12.117+deb13) or path:DIRECTORY"


def check(reference: str) -> None:
    """Raise UsageError when ``reference`` has none of the known forms."""
    kind, _, name = reference.partition(":")
    if kind == "path" and name:
        return
    if kind != "debian" or not re.fullmatch(r"\d+\.\d+[\w.+~-]*", name):
        raise UsageError(f"{reference!r} is no kernel reference", f"a kernel is {FORMS}")


def resolve(reference: str, store: Store, say: Callable[[str], None], *, root: Path) -> Kernel:
    """Return the kernel that ``reference`` names, from the cache if it is there.

    ``root`` is the guest's root file system: its depmod indexes the modules.  Raises
    UsageError when there is no such kernel, InfraError when it can't be fetched.
    """
    check(reference)
    kind, _, name = reference.partition(":")
    if kind == "path":
        return local.resolve(Path(name), reference, store, root, say)
    return debian.Debian(store, root, say).resolve(name)
