# SPDX-License-Identifier: GPL-2.0-only
"""What a VM can be restored from, and who has it made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from .protocol import Target


@dataclass(frozen=True)
class Snapshot:
    """A VM's state with the agent up: its ``memory``, the rest of its ``state``, its ``console``.

    ``made_s``: the seconds that it took just now to make, 0.0 where it was there.
    """

    memory: Path
    state: Path
    console: Path
    made_s: float = 0.0


class Template(Protocol):
    """Gives the snapshot for VMs of one machine, and makes it where there is none."""

    def get(self, watch: Callable[[Target], None]) -> Snapshot:
        """The snapshot; ``watch`` is given a VM that is booted for it, before it is started.

        Raises vm.snapshot.SnapshotError, with the reason, where there can be none.
        """

    def spoil(self, reason: str) -> None:
        """Says that restoring failed: there is no snapshot any more, and nobody is to try."""
