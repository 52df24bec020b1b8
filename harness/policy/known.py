# SPDX-License-Identifier: GPL-2.0-only
"""Known differences between kernels and the policy: each by name, with its page.

A scenario whose outcome is one of these is XFAIL, not FAIL.  Nothing here makes
a step pass: the outcome must be exactly the one that the page describes.
"""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass

from .profile import Version


@dataclass(frozen=True)
class Known:
    """``scenarios``: glob of names; ``first``/``last``: releases that have it; ``report``:
    text in the title of the kernel's report; ``page``: where it is written up."""

    name: str
    scenarios: str
    report: str
    page: str
    first: Version
    last: Version

    def explains(self, scenario: str, version: Version, title: str) -> bool:
        """Whether a kernel's report in a scenario is this one."""
        return (
            fnmatch.fnmatchcase(scenario, self.scenarios)
            and self.first <= version <= self.last
            and self.report in title
        )


KNOWN: tuple[Known, ...] = (
    Known(
        "stale-regs",
        "*/ftrace_enabled:detach-while-off/then:*",
        "ftrace_shutdown",
        "docs/findings/stale-regs.md",
        first=(5, 10),
        # 7.3 no longer lets ftrace be turned off.
        last=(7, 2),
    ),
)


def explanation(scenario: str, version: Version, title: str) -> Known | None:
    """The known difference that a kernel's report is, or None."""
    return next((k for k in KNOWN if k.explains(scenario, version, title)), None)
