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
from dataclasses import dataclass, field, replace

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
    ``direct_refused``: the errno for a direct call without an ops_func where an
    IPMODIFY ops is.
    ``peer_told``: a direct ops is told when the IPMODIFY ops leaves; where not, a BPF
    trampoline shares until its last program leaves.
    ``disabling``: the errno for writing 0 to kernel.ftrace_enabled whatever is
    attached; 0 where it is allowed (7.3: deprecated, EOPNOTSUPP always).
    ``share_is_flag``: sharing is a flag of the direct ops, which its owner sets when
    the core says EAGAIN, or when its ops_func is asked; it stays set, and with it
    nobody is asked any more (docs/proposals.md).
    ``permanent_stays``: writing 0 is allowed under a PERMANENT ops, and leaves its
    functions alone with all who are on them or come to them; on any other function
    whatever comes waits for 1, a PERMANENT ops too.
    ``saves_regs``: an ops may ask for all registers (CONFIG_DYNAMIC_FTRACE_WITH_REGS).
    ``trampoline_args``: how many arguments a function may have for a BPF
    trampoline (arch/x86/net/bpf_jit_comp.c: arch_prepare_bpf_trampoline; those in
    registers, until commit 473e3150e30a of 6.6 added the stack's).
    ``trampoline_links``: how many BPF programs one function takes
    (include/linux/bpf.h: BPF_MAX_TRAMP_LINKS, before 6.0 BPF_MAX_TRAMP_PROGS of
    each kind); ``fmod_ret_counts``: fmod_ret programs are counted too (6.0).
    ``force_pins``: forcing a transition towards a patch keeps its module for good,
    not only that of a patch that leaves (kernel/livepatch/transition.c:
    klp_force_transition before 5.12).
    ``multi_pins``: a kprobe-multi link holds the modules of its functions
    (kernel/trace/bpf_trace.c: get_modules_for_addrs, 6.3).
    ``graph_follows_ip``: the function graph tracer hooks in where the call goes on
    (arch/x86/kernel/ftrace_64.S: ftrace_epilogue), until commit 0c0593b45c9b of 5.16
    made it an ordinary callback.
    """

    name: str
    direct_is_ipmodify: bool
    direct_is_permanent: bool
    bpf_after_direct: int
    disabling: int
    trampoline_args: int
    trampoline_links: int
    fmod_ret_counts: bool
    force_pins: bool
    multi_pins: bool
    graph_follows_ip: bool
    direct_refused: int = errno.EBUSY
    peer_told: bool = True
    share_is_flag: bool = False
    permanent_stays: bool = False
    saves_regs: bool = True


@dataclass(frozen=True)
class Form:
    """How the registry shows it (kernel/trace/ftrace.c: t_show).

    ``direct_shows_ipmodify``: I beside D; ``ipmodify_saves_regs``: livepatch and
    IPMODIFY ops ask for all registers (no CONFIG_DYNAMIC_FTRACE_WITH_ARGS), so
    R; ``modified``: there is a sticky M (6.4, commit 6ce2c04fcbca); ``jmp``: a
    trampoline that calls the original is jumped to and shown as
    ``direct(jmp)`` (6.19 on x86-64).
    ``direct_ops``: who shares the ops of direct calls: ``all`` of them (5.5 to
    5.15: direct_ops), none but the programs of one ``function``, or all ``bpf``
    trampolines (7.0 on x86-64: CONFIG_HAVE_SINGLE_FTRACE_DIRECT_OPS).
    ``fprobe_shares``: all fprobes with an exit handler use fgraph's ops, and all
    others one ops (kernel/trace/fprobe.c of 7.2); before, each had its own.
    ``fprobe_saves_regs``: that own ops asks for all registers (until 6.13).
    ``shows_permanent``: a PERMANENT ops gives a P.
    """

    direct_shows_ipmodify: bool
    ipmodify_saves_regs: bool
    modified: bool
    jmp: bool
    direct_ops: str
    fprobe_shares: bool
    fprobe_saves_regs: bool
    shows_permanent: bool = False


#: For each fact its value by the first release that has it, oldest first.
_SEMANTICS: dict[str, tuple[tuple[Version, object], ...]] = {
    "direct_is_ipmodify": (((5, 5), True), ((6, 0), False)),
    "direct_is_permanent": (((5, 5), True), ((6, 0), False)),
    "bpf_after_direct": (((5, 5), errno.EBUSY), ((7, 0), errno.EINVAL)),
    "disabling": (((5, 5), 0), ((7, 3), errno.EOPNOTSUPP)),
    "trampoline_args": (((5, 5), 6), ((6, 6), 12)),
    "trampoline_links": (((5, 5), 40), ((6, 0), 38), ((7, 2), 36)),
    "fmod_ret_counts": (((5, 5), False), ((6, 0), True)),
    "force_pins": (((5, 5), True), ((5, 12), False)),
    "multi_pins": (((5, 5), False), ((6, 3), True)),
    "graph_follows_ip": (((5, 5), True), ((5, 16), False)),
}
_FORM: dict[str, tuple[tuple[Version, object], ...]] = {
    "direct_shows_ipmodify": (((5, 5), True), ((6, 0), False)),
    "ipmodify_saves_regs": (((5, 5), True), ((5, 11), False)),
    "modified": (((5, 5), False), ((6, 4), True)),
    "jmp": (((5, 5), False), ((6, 19), True)),
    "direct_ops": (((5, 5), "all"), ((6, 0), "function"), ((7, 0), "bpf")),
    "fprobe_shares": (((5, 5), False), ((6, 14), True)),
    "fprobe_saves_regs": (((5, 5), True), ((6, 14), False)),
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


#: Policies that mainline does not have (docs/proposals.md): the release that each was
#: written for, and what it changes of the policy of the kernel that has it.
_PROPOSED: dict[str, tuple[Version, Mapping[str, object]]] = {
    "share-ipmodify-v2": (
        (6, 0),
        {"direct_refused": errno.EAGAIN, "peer_told": False, "share_is_flag": True},
    ),
    "permanent-v1": (
        (5, 5),
        {"permanent_stays": True, "direct_is_permanent": False, "disabling": 0},
    ),
    "exclusive-v1": ((6, 0), {"direct_is_ipmodify": True}),
}


def named(name: str, version: Version) -> Semantics:
    """The policy behind --profile's name, for a kernel of a release.

    A release's policy is the same on all kernels.  A proposal changes a few facts and
    leaves the rest as it is in the release that it is applied to, or, where that is too
    old for it, in the one that it was written for.  Raises UsageError for a name that
    does not exist.
    """
    known = {semantics_for(v).name: semantics_for(v) for v in NAMED}
    for proposal, (since, changes) in _PROPOSED.items():
        known[proposal] = replace(
            semantics_for(max(since, version)),
            name=proposal,
            **changes,  # type: ignore[arg-type]
        )
    if name not in known:
        raise UsageError(f"there is no profile {name!r}", f"known profiles: {', '.join(known)}")
    return known[name]


def form_for(version: Version, config: Mapping[str, str]) -> Form:
    """How a kernel of this release and configuration prints its registry."""
    values = {name: _value(history, version) for name, history in _FORM.items()}
    if config:
        with_args = config.get("CONFIG_DYNAMIC_FTRACE_WITH_ARGS") == "y"
        values["ipmodify_saves_regs"] = not with_args
    return Form(**values)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Profile:
    """Semantics and form together, and why these were chosen.

    ``without`` and ``errnos`` are for ``cohabit rules --survivors`` only: rules that
    the model shall forget, and rules whose errno it shall get wrong.
    """

    semantics: Semantics
    form: Form
    why: str
    without: frozenset[str] = frozenset()
    errnos: Mapping[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of the semantics, like ``v6.12``."""
        return self.semantics.name

    def has(self, rule: str) -> bool:
        """Whether the model knows a rule: all of them, unless it was told to forget one."""
        return rule not in self.without


def choose(release: str, config: Mapping[str, str], override: str | None = None) -> Profile:
    """The profile for a kernel; ``override`` is --profile's name.

    Raises UsageError for a profile that does not exist.
    """
    version = release_version(release)
    form = form_for(version, config)
    semantics, why = semantics_for(version), f"release {release}"
    if override is not None:
        semantics, why = named(override, version), "--profile"
        # The one proposal that also prints otherwise.
        form = replace(form, shows_permanent=semantics.permanent_stays)
    if config:
        # What the architecture can save is no policy that another kernel could have.
        regs = config.get("CONFIG_DYNAMIC_FTRACE_WITH_REGS") == "y"
        semantics = replace(semantics, saves_regs=regs)
    return Profile(semantics, form, why)
