# SPDX-License-Identifier: GPL-2.0-only
"""What a rule of the policy is; rules.py has all of them."""

from __future__ import annotations

from dataclasses import dataclass

from .profile import FIRST, Profile, Version

#: Places that many rules are from.
FTRACE = "kernel/trace/ftrace.c: "
TRAMPOLINE = "kernel/bpf/trampoline.c: "
KLP = "kernel/livepatch/"
#: arm64's own entry: what x86-64 has in ftrace_64.S.
ARM64_ENTRY = "arch/arm64/kernel/entry-ftrace.S: ftrace_caller"

#: First and last release; None: still there in the newest that is known.
Span = tuple[Version, Version | None]

#: Releases on arm64 of rules about what it got later than x86-64.
ARM64_DIRECT: Span = (FIRST["direct"]["arm64"], None)
ARM64_LIVEPATCH: Span = (FIRST["livepatch"]["arm64"], None)
ARM64_FPROBE: Span = (FIRST["fprobe"]["arm64"], None)

_LATER: dict[Span, str] = {
    ARM64_DIRECT: "arm64 has direct calls from 6.4 on (commit 2aa6ac03516d).",
    ARM64_LIVEPATCH: "arm64 has livepatches from 6.17 on (commit fd1e0fd71f65).",
    ARM64_FPROBE: "arm64 has fprobes from 6.14 on, when they no longer needed all registers.",
}

BOTH = ("x86-64", "arm64")
X86 = ("x86-64",)
ARM64 = ("arm64",)


@dataclass(frozen=True)
class Rule:
    """``name``; ``source``: kernel file and functions; ``text``: what it says;
    ``scenarios``: globs of those that would notice if a kernel broke it; ``since`` and
    ``until``: first and last release that has it; ``arches``; ``arm64``: its releases there,
    where they are others; ``errno``: what it gives; ``needs``: the fact of a profile without
    which a kernel's scenarios cannot notice, or with ``!`` with which; ``differs``: what is
    otherwise on the architectures, and why."""

    name: str
    source: str
    text: str
    scenarios: tuple[str, ...]
    errno: int = 0
    since: Version = (5, 5)
    until: Version | None = None
    arches: tuple[str, ...] = BOTH
    arm64: Span | None = None
    needs: str = ""
    differs: str = ""

    @property
    def difference(self) -> str:
        """All that is otherwise on the architectures; empty where nothing is."""
        later = _LATER.get(self.arm64, "") if self.arm64 else ""
        return " ".join(filter(None, (self.differs, later)))

    def concerns(self, profile: Profile) -> bool:
        """Whether it is about a kernel with this profile, of a release that has it."""
        fact = self.needs.removeprefix("!")
        return not fact or profile.fact(fact) is not self.needs.startswith("!")

    def span(self, arch: str) -> Span:
        """Its releases on an architecture of ``arches``."""
        if arch == "arm64" and self.arm64:
            return self.arm64
        return self.since, self.until

    def holds(self, arch: str, version: Version) -> bool:
        """Whether a release has it on an architecture."""
        since, until = self.span(arch)
        return arch in self.arches and since <= version and (until is None or version <= until)
