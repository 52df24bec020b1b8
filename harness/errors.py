# SPDX-License-Identifier: GPL-2.0-only
"""The errors that a person is meant to read.

Everything below the command line raises one of these; only ``harness.cli``
turns them into a message and an exit status.  The message names the cause,
``remedy`` says what to do about it.
"""

from __future__ import annotations


class CohabitError(Exception):
    """Base of all errors with a message fit for a person.

    ``exit_status`` is what the process ends with (see docs/architecture.md):
    1 something failed, 2 bad usage, 3 infrastructure.
    """

    exit_status = 3

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}\n  {self.remedy}" if self.remedy else self.message


class UsageError(CohabitError):
    """The command line, a configuration file or a scenario file is wrong."""

    exit_status = 2


class InfraError(CohabitError):
    """The host, the network, the disk or a build is at fault, not the kernel."""


class LostError(InfraError):
    """Contact with the kernel under test was lost, and nothing says why."""
