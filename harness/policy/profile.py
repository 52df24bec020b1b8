# SPDX-License-Identifier: GPL-2.0-only
"""Profiles: what the policy is on a kernel, as data.

Two kinds of facts.  *Semantics* say what must happen; ``--profile`` overrides
them.  *Form* says how this kernel's registry shows it; that always comes from
the running kernel, because a kernel with other semantics does not print in
another release's form.

Facts are of a release and of an architecture.  Those of arm64 were read in the
sources of 6.12, 7.2 and 7.3; of older releases only what the text of those tells.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from harness import arch as archs
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
    update_ftrace_direct_add(), which says EINVAL; otherwise, and always on arm64,
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
    ``saves_regs``: an ops may ask for all registers (CONFIG_DYNAMIC_FTRACE_WITH_REGS;
    arm64 cannot since 6.2, commit 26299b3f6ba2).
    ``direct_calls``: there are direct calls at all
    (CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS; on arm64 from 6.4, commit 2aa6ac03516d).
    ``kprobes_on_ftrace``: a kprobe at the beginning of a function is an ftrace_ops, no
    breakpoint (CONFIG_KPROBES_ON_FTRACE, which arm64 has not).
    ``trampoline_args``: how many arguments a function may have for a BPF
    trampoline (arch/x86/net/bpf_jit_comp.c: arch_prepare_bpf_trampoline; those in
    registers, until commit 473e3150e30a of 6.6 added the stack's; on arm64
    arch/arm64/net/bpf_jit_comp.c: arch_bpf_trampoline_size, and commit 9014cf56f13d
    of 6.16).
    ``trampoline_links``: how many BPF programs one function takes
    (include/linux/bpf.h: BPF_MAX_TRAMP_LINKS, which is each architecture's own from
    7.2 on; before 6.0 BPF_MAX_TRAMP_PROGS of each kind); ``fmod_ret_counts``: fmod_ret
    programs are counted too (6.0).
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
    saves_regs: bool
    direct_calls: bool
    kprobes_on_ftrace: bool
    direct_refused: int = errno.EBUSY
    peer_told: bool = True
    share_is_flag: bool = False
    permanent_stays: bool = False


@dataclass(frozen=True)
class Form:
    """How the registry shows it (kernel/trace/ftrace.c: t_show).

    ``direct_shows_ipmodify``: I beside D; ``ipmodify_saves_regs``: livepatch and
    IPMODIFY ops ask for all registers (no CONFIG_DYNAMIC_FTRACE_WITH_ARGS), so
    R; ``modified``: there is a sticky M (6.4, commit 6ce2c04fcbca); ``jmp``: a
    trampoline that calls the original is jumped to and shown as
    ``direct(jmp)`` (6.19 on x86-64).
    ``call_ops``: a function's only user is called without a list or a trampoline of
    its own, and shown by O and ``ops:`` (CONFIG_DYNAMIC_FTRACE_WITH_CALL_OPS, on arm64
    from 6.3, commit cbad0fb2d8d9); ``own_trampolines``: each ops has a trampoline of its own
    (arch/x86/kernel/ftrace.c: arch_ftrace_update_trampoline), and not only direct
    calls have one.
    ``direct_ops``: who shares the ops of direct calls: ``all`` of them (5.5 to
    5.15: direct_ops), none but the programs of one ``function``, or all ``bpf``
    trampolines (7.0 on x86-64: CONFIG_HAVE_SINGLE_FTRACE_DIRECT_OPS).  On arm64 it is
    always ``function``.
    ``fprobe_shares``: all fprobes with an exit handler use fgraph's ops, and all
    others one ops (kernel/trace/fprobe.c of 7.2); before, each had its own.
    ``fprobe_saves_regs``: that own ops asks for all registers (until 6.13).
    ``shows_permanent``: a PERMANENT ops gives a P.
    """

    direct_shows_ipmodify: bool
    ipmodify_saves_regs: bool
    modified: bool
    jmp: bool
    call_ops: bool
    own_trampolines: bool
    direct_ops: str
    fprobe_shares: bool
    fprobe_saves_regs: bool
    shows_permanent: bool = False


#: The first release that has something, where it is not the first that cohabit knows.
FIRST: Mapping[str, Mapping[str, Version]] = {
    # kernel/trace/Kconfig: FPROBE, until 6.13 with DYNAMIC_FTRACE_WITH_REGS.
    "fprobe": {"x86-64": (5, 18), "arm64": (6, 14)},
    # arch/arm64/Kconfig: HAVE_DYNAMIC_FTRACE_WITH_DIRECT_CALLS, HAVE_LIVEPATCH.
    "direct": {"arm64": (6, 4)},
    "livepatch": {"arm64": (6, 17)},
}

#: A fact's values by the first release that has each, oldest first.
_History = tuple[tuple[Version, object], ...]

_SEMANTICS: dict[str, _History] = {
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
    "saves_regs": (((5, 5), True),),
    "direct_calls": (((5, 5), True),),
    "kprobes_on_ftrace": (((5, 5), True),),
}
_FORM: dict[str, _History] = {
    "direct_shows_ipmodify": (((5, 5), True), ((6, 0), False)),
    "ipmodify_saves_regs": (((5, 5), True), ((5, 11), False)),
    "modified": (((5, 5), False), ((6, 4), True)),
    "jmp": (((5, 5), False), ((6, 19), True)),
    "call_ops": (((5, 5), False),),
    "own_trampolines": (((5, 5), True),),
    "direct_ops": (((5, 5), "all"), ((6, 0), "function"), ((7, 0), "bpf")),
    "fprobe_shares": (((5, 5), False), ((6, 14), True)),
    "fprobe_saves_regs": (((5, 5), True), ((6, 14), False)),
}

#: Facts that are others on an architecture.
_ARM64: dict[str, _History] = {
    "bpf_after_direct": (((5, 5), errno.EBUSY),),
    "trampoline_args": (((5, 5), 8), ((6, 16), 12)),
    "trampoline_links": (((5, 5), 40), ((6, 0), 38), ((7, 2), 37)),
    "saves_regs": (((5, 5), True), ((6, 2), False)),
    "direct_calls": (((5, 5), False), (FIRST["direct"]["arm64"], True)),
    "kprobes_on_ftrace": (((5, 5), False),),
    "ipmodify_saves_regs": (((5, 5), True), ((6, 2), False)),
    "jmp": (((5, 5), False),),
    "call_ops": (((5, 5), False), ((6, 3), True)),
    "own_trampolines": (((5, 5), False),),
    "direct_ops": (((5, 5), "function"),),
}
_OTHERWISE: Mapping[str, Mapping[str, _History]] = {"arm64": _ARM64}

#: Facts that a kernel's configuration decides, where it is known.
_OPTIONS: dict[str, str] = {
    "saves_regs": "CONFIG_DYNAMIC_FTRACE_WITH_REGS",
    "direct_calls": "CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS",
    "kprobes_on_ftrace": "CONFIG_KPROBES_ON_FTRACE",
    "call_ops": "CONFIG_DYNAMIC_FTRACE_WITH_CALL_OPS",
}
_WITH_ARGS = "CONFIG_DYNAMIC_FTRACE_WITH_ARGS"
#: All options that ``choose`` looks at.
OPTIONS: tuple[str, ...] = (_WITH_ARGS, *_OPTIONS.values())
#: Facts of the semantics that are what a kernel can do: no policy that another could have.
_ABILITIES = ("saves_regs", "direct_calls", "kprobes_on_ftrace")

#: Profiles that --profile takes by name: releases whose kernels were run.
NAMED: tuple[Version, ...] = ((5, 10), (6, 1), (6, 12), (7, 2), (7, 3))


def _values(
    facts: Mapping[str, _History], version: Version, arch: str, config: Mapping[str, str]
) -> dict[str, object]:
    """Each fact's value on a kernel."""
    otherwise = _OTHERWISE.get(arch, {})
    values = {name: _value(otherwise.get(name, facts[name]), version) for name in facts}
    if config:
        for name, option in _OPTIONS.items():
            if name in values:
                values[name] = config.get(option) == "y"
    return values


def _value(history: _History, version: Version) -> object:
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


def semantics_for(
    version: Version, arch: str = "x86-64", config: Mapping[str, str] | None = None
) -> Semantics:
    """The policy of a mainline release on an architecture, by its policy name.

    Of ``config``, where it is known, comes what the kernel can do.
    """
    values = _values(_SEMANTICS, version, arch, config or {})
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


def named(name: str, version: Version, arch: str = "x86-64") -> Semantics:
    """The policy behind --profile's name, for a kernel of a release.

    A release's policy is the same on all kernels of an architecture.  A proposal changes
    a few facts and leaves the rest as it is in the release that it is applied to, or,
    where that is too old for it, in the one that it was written for.  Raises UsageError
    for a name that does not exist.
    """
    releases = [semantics_for(v, arch) for v in NAMED]
    known = {release.name: release for release in releases}
    for proposal, (since, changes) in _PROPOSED.items():
        known[proposal] = replace(
            semantics_for(max(since, version), arch),
            name=proposal,
            **changes,  # type: ignore[arg-type]
        )
    if name not in known:
        raise UsageError(f"there is no profile {name!r}", f"known profiles: {', '.join(known)}")
    return known[name]


def form_for(version: Version, config: Mapping[str, str], arch: str = "x86-64") -> Form:
    """How a kernel of this release and configuration prints its registry."""
    values = _values(_FORM, version, arch, config)
    if config:
        values["ipmodify_saves_regs"] = config.get(_WITH_ARGS) != "y"
    return Form(**values)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Profile:
    """Semantics and form together, why these were chosen, and the architecture's policy name.

    ``without`` and ``errnos`` are for ``cohabit rules --survivors`` only: rules that
    the model shall forget, and rules whose errno it shall get wrong.
    """

    semantics: Semantics
    form: Form
    why: str
    without: frozenset[str] = frozenset()
    errnos: Mapping[str, int] = field(default_factory=dict)
    arch: str = "x86-64"

    @property
    def name(self) -> str:
        """The name of the semantics, like ``v6.12``."""
        return self.semantics.name

    def has(self, rule: str) -> bool:
        """Whether the model knows a rule: all of them, unless it was told to forget one."""
        return rule not in self.without

    def fact(self, name: str) -> object:
        """A fact by its name."""
        return getattr(self.semantics if hasattr(self.semantics, name) else self.form, name)


def options(config: Mapping[str, str]) -> dict[str, str]:
    """What of a configuration ``choose`` looks at, for a record; empty where none is known."""
    return {name: config.get(name, "n") for name in OPTIONS} if config else {}


def choose(
    release: str, config: Mapping[str, str], override: str | None = None, arch: str = "x86_64"
) -> Profile:
    """The profile for a kernel; ``override`` is --profile's name, ``arch`` any of its names.

    Raises UsageError for a profile or an architecture that does not exist.
    """
    version, arch = release_version(release), archs.named(arch).policy
    form = form_for(version, config, arch)
    own = semantics_for(version, arch, config)
    semantics, why = own, f"release {release}"
    if override is not None:
        abilities = {name: getattr(own, name) for name in _ABILITIES}
        semantics = replace(named(override, version, arch), **abilities)
        why = "--profile"
        # The one proposal that also prints otherwise.
        form = replace(form, shows_permanent=semantics.permanent_stays)
    return Profile(semantics, form, why, arch=arch)
