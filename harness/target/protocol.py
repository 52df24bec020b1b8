# SPDX-License-Identifier: GPL-2.0-only
"""What every target can do; the same scenario runs on each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class TargetGoneError(Exception):
    """The target ended or hung up while it was needed."""


class TargetAbortedError(Exception):
    """The target is not there because ``abort`` was called: nobody's fault."""


class TargetSilentError(Exception):
    """The target gave no answer within the deadline."""


class Target(Protocol):
    """A machine with the kernel under test and an agent on it."""

    @property
    def slowdown(self) -> float:
        """The one factor by which every timeout is scaled."""

    def start(self) -> Mapping[str, Any]:
        """Boots (or logs in); returns the keys of the ``vm_start`` event.

        Raises InfraError, or TargetAbortedError.
        """

    def request(self, message: Mapping[str, Any], timeout: float) -> Mapping[str, Any]:
        """Asks the agent; ``timeout`` in seconds before slowdown.

        Raises TargetGoneError, TargetSilentError, TargetAbortedError, or InfraError for an
        agent's exception.
        """

    def ended(self, timeout: float) -> bool:
        """Whether the target is gone; waits up to ``timeout`` seconds (scaled) for it."""

    def console_tail(self) -> Sequence[str]:
        """The console's last lines."""

    def crash(self) -> str | None:
        """The title of the kernel's own report of its end, if the console has one."""

    def boot_failure(self) -> str | None:
        """Why it did not come up, as far as the console tells."""

    def backtraces(self) -> Sequence[str]:
        """What every CPU was doing, from a kernel that no longer answers."""

    def abort(self) -> None:
        """Ends it now, from any thread: whoever waits for it finds it gone."""

    def stop(self) -> None:
        """Ends it and removes what it had on the host; InfraError if its record is incomplete."""
