# SPDX-License-Identifier: GPL-2.0-only
"""Profiles: what the policy is on a kernel, as data.

Two kinds of facts.  *Semantics* say what must happen; ``--profile`` overrides
them.  *Form* says how this kernel's registry shows it; that always comes from
the running kernel, because a kernel with other semantics does not print in
another release's form.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields

from harness.errors import UsageError

Version = tuple[int, int]


@dataclass(frozen=True)
class Semantics:
    """What must happen.

    ``direct_is_ipmodify``: a direct call counts as an IPMODIFY user, so that it
    and a livepatch exclude each other (5.5 to 5.19: direct_ops carries
    FTRACE_OPS_FL_IPMODIFY; sharing came with 6.0, commit 53cd885bc5c3).
    ``direct_is_permanent``: the one direct_ops of all callers carries
    FTRACE_OPS_FL_PERMANENT (kernel/trace/ftrace.c of 5.10: direct_ops; later
    direct callers bring ops of their own, which do not).
    ``bpf_after_direct``: the errno for a BPF trampoline where a direct call of
    somebody else is (7.0 and newer on x86-64 go through
    update_ftrace_direct_add(), which says EINVAL; otherwise
    register_ftrace_direct(), EBUSY).
    ``disabling``: the errno for writing 0 to kernel.ftrace_enabled whatever is
    attached; 0 where it is allowed (7.3: deprecated, EOPNOTSUPP always).
    ``trampoline_args``: how many arguments a function may have for a BPF
    trampoline (arch/x86/net/bpf_jit_comp.c: arch_prepare_bpf_trampoline; those in
    registers, until commit 473e3150e30a of 6.6 added the stack's).
    """

    name: str
    direct_is_ipmodify: bool
    direct_is_permanent: bool
    bpf_after_direct: int
    disabling: int
    trampoline_args: int


@dataclass(frozen=True)
class Form:
    """How the registry shows it (kernel/trace/ftrace.c: t_show).

    ``direct_shows_ipmodify``: I beside D; ``ipmodify_saves_regs``: livepatch and
    IPMODIFY ops ask for all registers (no CONFIG_DYNAMIC_FTRACE_WITH_ARGS), so
    R; ``modified``: there is a sticky M (6.4, commit 6ce2c04fcbca); ``jmp``: a
    trampoline that calls the original is jumped to and shown as
    ``direct(jmp)`` (6.19 on x86-64).
    """

    direct_shows_ipmodify: bool
    ipmodify_saves_regs: bool
    modified: bool
    jmp: bool


#: For each fact its value by the first release that has it, oldest first.
_SEMANTICS: dict[str, tuple[tuple[Version, object], ...]] = {
    "direct_is_ipmodify": (((5, 5), True), ((6, 0), False)),
    "direct_is_permanent": (((5, 5), True), ((6, 0), False)),
    "bpf_after_direct": (((5, 5), errno.EBUSY), ((7, 0), errno.EINVAL)),
    "disabling": (((5, 5), 0), ((7, 3), errno.EOPNOTSUPP)),
    "trampoline_args": (((5, 5), 6), ((6, 6), 12)),
}
_FORM: dict[str, tuple[tuple[Version, object], ...]] = {
    "direct_shows_ipmodify": (((5, 5), True), ((6, 0), False)),
    "ipmodify_saves_regs": (((5, 5), True), ((5, 11), False)),
    "modified": (((5, 5), False), ((6, 4), True)),
    "jmp": (((5, 5), False), ((6, 19), True)),
}

#: Profiles that --profile takes by name: releases whose kernels were run.
NAMED: tuple[Version, ...] = ((5, 10), (6, 1), (6, 12), (7, 2), (7, 3))


def _value(history: tuple[tuple[Version, object], ...], version: Version) -> object:
    value = history[0][1]
    for since, then in history:
        if version >= since:
            value = then
    return value


def release_version(release: str) -> Version:
    """(6, 12) for ``6.12.117+deb13-cloud-amd64``; raises UsageError for no release."""
    match = re.match(r"v?(\d+)\.(\d+)", release)
    if not match:
        raise UsageError(f"{release!r} is not a kernel release", "it begins like 6.12")
    version = int(match[1]), int(match[2])
    if version < (5, 5):
        raise UsageError(
            f"kernel {release} is older than direct calls",
            "cohabit knows the ftrace policy from 5.5 on",
        )
    return version


def semantics_for(version: Version) -> Semantics:
    """The policy of a mainline release."""
    values = {name: _value(history, version) for name, history in _SEMANTICS.items()}
    return Semantics(name=f"v{version[0]}.{version[1]}", **values)  # type: ignore[arg-type]


def form_for(version: Version, config: Mapping[str, str]) -> Form:
    """How a kernel of this release and configuration prints its registry."""
    values = {name: _value(history, version) for name, history in _FORM.items()}
    if config:
        with_args = config.get("CONFIG_DYNAMIC_FTRACE_WITH_ARGS") == "y"
        values["ipmodify_saves_regs"] = not with_args
    return Form(**{f.name: bool(values[f.name]) for f in fields(Form)})


@dataclass(frozen=True)
class Profile:
    """Semantics and form together, and why these were chosen."""

    semantics: Semantics
    form: Form
    why: str

    @property
    def name(self) -> str:
        """The name of the semantics, like ``v6.12``."""
        return self.semantics.name


def choose(release: str, config: Mapping[str, str], override: str | None = None) -> Profile:
    """The profile for a kernel; ``override`` is --profile's name.

    Raises UsageError for a profile that does not exist.
    """
    version = release_version(release)
    form = form_for(version, config)
    if override is None:
        return Profile(semantics_for(version), form, f"release {release}")
    known = {semantics_for(v).name: v for v in NAMED}
    if override not in known:
        raise UsageError(f"there is no profile {override!r}", f"known profiles: {', '.join(known)}")
    return Profile(semantics_for(known[override]), form, "--profile")
