# SPDX-License-Identifier: GPL-2.0-only
"""Known differences between kernels and the policy: each by name, with its page.

A scenario whose outcome is one of these is XFAIL, not FAIL.  Nothing here makes
a step pass: the outcome must be exactly the one that the page describes.
"""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, replace

from .profile import Version
from .rule import BOTH, X86


@dataclass(frozen=True)
class Contradiction:
    """The first witness that contradicts, as in harness/oracle.py: Mismatch, and the step that
    it does so after: what is done, and for an attach the attacher.  In ``seen`` of a known one
    ``*`` stands for what is never the same twice."""

    step: str
    witness: str
    expected: str
    seen: str

    def covers(self, other: Contradiction) -> bool:
        """Whether another one is this known one."""
        alike = replace(other, seen=self.seen) == self
        return alike and fnmatch.fnmatchcase(other.seen, self.seen)


@dataclass(frozen=True)
class Known:
    """``scenarios``: globs of names; ``first``/``last``: releases that have it; ``arches``: on
    which architectures; ``page``: where it is written up.  It shows in one or both of two
    ways: ``report``, text in the title of the kernel's report, and ``contradiction``, the
    first of the scenario.  ``lockdep``: only a kernel with lockdep reports it; ``company``: so
    do scenarios side by side none of which does alone."""

    name: str
    scenarios: tuple[str, ...]
    page: str
    first: Version
    last: Version
    report: str = ""
    contradiction: Contradiction | None = None
    lockdep: bool = False
    company: bool = False
    arches: tuple[str, ...] = X86

    def there(self, version: Version, arch: str = "x86-64") -> bool:
        """Whether a release has it on an architecture, by its policy name."""
        return self.first <= version <= self.last and arch in self.arches

    def concerns(self, scenario: str, version: Version, arch: str = "x86-64") -> bool:
        """Whether a scenario on a release may show it."""
        return self.there(version, arch) and self.names(scenario)

    def names(self, scenario: str) -> bool:
        """Whether a scenario is one of those that may show it somewhere."""
        return any(fnmatch.fnmatchcase(scenario, glob) for glob in self.scenarios)

    def reported(self, title: str, lockdep: bool) -> bool:
        """Whether a report of this title is it."""
        return bool(self.report) and self.report in title and (lockdep or not self.lockdep)


KNOWN: tuple[Known, ...] = (
    Known(
        "stale-regs",
        ("*/ftrace_enabled:detach-while-off/then:*",),
        "docs/findings/stale-regs.md",
        first=(5, 10),
        # 7.3 no longer lets ftrace be turned off.
        last=(7, 2),
        report="ftrace_shutdown",
    ),
    Known(
        "kprobe-post",
        ("kprobe+kprobe-post/attach:ab/*", "kprobe-post+kretprobe/attach:ba/*"),
        "docs/findings/kprobe-post.md",
        first=(5, 10),
        last=(7, 3),
        report="Failed to disarm kprobe-ftrace",
    ),
    Known(
        "kprobe-arm-lost",
        ("*kprobe-post*",),
        "docs/findings/kprobe-arm-lost.md",
        first=(7, 2),
        last=(7, 3),
        contradiction=Contradiction("attach kprobe-post", "errno", "EBUSY (16)", "0"),
    ),
    Known(
        "kprobe-arm-lost",
        ("direct-refuse+kprobe-post/first",),
        "docs/findings/kprobe-arm-lost.md",
        first=(7, 2),
        last=(7, 3),
        contradiction=Contradiction("attach kprobe-post", "errno", "EXDEV (18)", "0"),
    ),
    Known(
        "kprobe-arm-lost",
        ("misuse/kill-ftrace/kprobe",),
        "docs/findings/kprobe-arm-lost.md",
        first=(7, 2),
        last=(7, 3),
        contradiction=Contradiction("attach kprobe", "errno", "ENODEV (19)", "0"),
    ),
    Known(
        "kprobe-module-gone",
        ("kprobe/module-gone", "kprobe-post/module-gone", "kretprobe/module-gone"),
        "docs/findings/kprobe-module-gone.md",
        first=(5, 10),
        last=(6, 0),
        report="ftrace_module_enable",
        contradiction=Contradiction("detach", "registry", "-", "R"),
    ),
    Known(
        "share-asked-late",
        (
            "livepatch+fentry+fexit/attach:abc/*",
            "livepatch+fentry+fmod_ret/attach:abc/*",
            "fentry+fexit+ipmodify/attach:cab/*",
            "fentry+fmod_ret+ipmodify/attach:cab/*",
        ),
        "docs/findings/share-asked-late.md",
        first=(6, 1),
        last=(6, 1),
        report="ftrace_ops_list_func",
    ),
    Known(
        "fgraph-bit-zero",
        ("fprobe-exit+function-graph/apart",),
        "docs/findings/fgraph-bit-zero.md",
        # Not seen from 6.14 on, when fprobes became users of the function graph: not tried.
        first=(7, 2),
        last=(7, 3),
        arches=BOTH,
        report="at fprobe_return",
    ),
    Known(
        "share-asked-unlocked",
        ("livepatch+fentry/beside", "races/*"),
        "docs/findings/share-asked-unlocked.md",
        # Not seen on 7.3, whose source is the same here: no such kernel with lockdep was tried.
        first=(7, 2),
        last=(7, 2),
        report="at bpf_tramp_ftrace_ops_func",
        lockdep=True,
        company=True,
    ),
    Known(
        "listed-before-asked",
        ("consistency/fexit/livepatch+ops-regs/on:cmdline_proc_show",),
        "docs/findings/listed-before-asked.md",
        first=(6, 1),
        last=(7, 3),
        report="ftrace_ops_list_func",
        contradiction=Contradiction(
            "stir",
            "consistency",
            "only livepatch-a",
            "* calls met a body that was not allowed then; *",
        ),
    ),
    Known(
        "direct-module-gone",
        ("direct/module-gone",),
        "docs/findings/direct-module-gone.md",
        first=(5, 10),
        last=(5, 15),
        report="ftrace_module_enable",
        contradiction=Contradiction("detach", "errno", "0", "ENODEV (19)"),
    ),
)


def breaks(scenario: str, version: Version, arch: str = "x86-64") -> bool:
    """Whether a scenario may leave a kernel of that release damaged for what runs beside it."""
    return any(k.report and k.concerns(scenario, version, arch) for k in KNOWN)


def spares(scenario: str, arch: str) -> bool:
    """Whether the damage that a scenario may leave is known of other architectures only."""
    damage = [k for k in KNOWN if k.report and k.names(scenario)]
    return bool(damage) and all(arch not in k.arches for k in damage)


def of_report(
    scenario: str, version: Version, title: str, lockdep: bool = False, arch: str = "x86-64"
) -> Known | None:
    """The known difference that a kernel's report is, or None.

    ``lockdep``: the kernel has it.
    """
    return next(
        (k for k in KNOWN if k.reported(title, lockdep) and k.concerns(scenario, version, arch)),
        None,
    )


def of_company(version: Version, title: str, lockdep: bool, arch: str = "x86-64") -> Known | None:
    """The known difference that a report in a company of scenarios is, or None."""
    return next(
        (k for k in KNOWN if k.company and k.reported(title, lockdep) and k.there(version, arch)),
        None,
    )


def of_contradiction(
    scenario: str, version: Version, seen: Contradiction, arch: str = "x86-64"
) -> Known | None:
    """The known difference that a scenario's first contradiction is, or None."""
    return next(
        (
            k
            for k in KNOWN
            if k.contradiction is not None
            and k.contradiction.covers(seen)
            and k.concerns(scenario, version, arch)
        ),
        None,
    )
