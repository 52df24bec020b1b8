# SPDX-License-Identifier: GPL-2.0-only
"""What a kernel is to the rest of cohabit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from harness.errors import InfraError


@dataclass(frozen=True)
class Kernel:
    """A kernel that can be booted, wherever it came from.

    ``tree`` is laid over the guest's root file system: it has
    ``usr/lib/modules/RELEASE`` (modules uncompressed, ``modules.dep`` made) and, if
    ``headers``, ``usr/src`` and ``usr/lib/linux-kbuild-*``.  ``config_file`` and
    ``system_map`` are None when the source had none.  ``abi`` stands for all that modules
    built for it depend on, where that is known better than by the ``origin``; ``options``
    are the words beside ``--kernel REFERENCE`` that name it on a command line; ``notes`` is the
    SHA-256 of what /sys/kernel/notes must show when it runs (its build ID is in there), "" where
    that is not known.
    """

    reference: str
    release: str
    arch: str
    version: tuple[int, int]
    image: Path
    tree: Path
    config_file: Path | None
    system_map: Path | None
    origin: str
    headers: bool
    abi: str = ""
    options: tuple[str, ...] = ()
    notes: str = ""

    @property
    def modules(self) -> Path:
        """The directory that depmod worked on."""
        return self.tree / "usr/lib/modules" / self.release

    @cached_property
    def config(self) -> Mapping[str, str]:
        """The configuration: option names with CONFIG_ to their values, quotes kept.

        Options that are not set are missing.  Empty when the source had none.
        """
        if self.config_file is None:
            return {}
        text = self.config_file.read_text(encoding="utf-8", errors="replace")
        return dict(re.findall(r"^(CONFIG_\w+)=(.*)$", text, re.M))


def version_of(release: str) -> tuple[int, int]:
    """Return (major, minor) of a ``uname -r``; raises InfraError when it begins otherwise."""
    match = re.match(r"(\d+)\.(\d+)", release)
    if not match:
        raise InfraError(f"{release!r} is no kernel release")
    return int(match[1]), int(match[2])
