# SPDX-License-Identifier: GPL-2.0-only
"""Which kernels can have printed a text: its form betrays release and architecture.

The printer is kernel/trace/ftrace.c:t_show, the trampolines' are
arch/x86/kernel/ftrace.c:arch_ftrace_trampoline_func.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from harness.ftrace import Ops, Record, Symbol, Trampoline
from harness.policy.profile import FIRST, Profile, Version, choose

ARCHES = ("x86-64", "arm64")

#: The releases that cohabit knows, oldest first.
RELEASES: tuple[Version, ...] = tuple(
    (major, minor)
    for major, minors in ((5, range(10, 20)), (6, range(20)), (7, range(4)))
    for minor in minors
)

#: For each architecture the releases that are possible, oldest first.
Kernels = Mapping[str, tuple[Version, ...]]

Possible = Callable[[str, Version], bool]


@dataclass(frozen=True)
class Printed:
    """The kernels that can have printed a text, and why only they.

    ``contradiction``: no kernel prints all that is in the text together.
    """

    kernels: Kernels
    reasons: tuple[str, ...] = ()
    contradiction: bool = False


def printed(records: Iterable[tuple[Record, bool]], columns: bool) -> Printed:
    """What the records say about the kernel; of each the record and whether it is whole.

    ``columns``: whether the blanks are as the kernel printed them.
    """
    reasons: dict[str, Possible] = {}
    for record, whole in records:
        if record.invalid:
            continue
        if columns and (found := _columns(record)):
            reasons.setdefault(*found)
        for reason, possible in _evidence(record, whole):
            reasons.setdefault(reason, possible)
    kernels: dict[str, tuple[Version, ...]] = dict.fromkeys(ARCHES, RELEASES)
    because = []
    for reason, possible in reasons.items():
        narrower = {a: tuple(v for v in vs if possible(a, v)) for a, vs in kernels.items()}
        # What says nothing new need not be said.
        if narrower != kernels:
            because.append(reason)
            kernels = narrower
    contradiction = not any(kernels.values())
    if contradiction:
        kernels = dict.fromkeys(ARCHES, RELEASES)
    return Printed({a: vs for a, vs in kernels.items() if vs}, tuple(because), contradiction)


@functools.cache
def _profile(arch: str, version: Version) -> Profile:
    return choose(f"{version[0]}.{version[1]}", {}, arch=arch)


def _having(fact: str, value: object = True) -> Possible:
    """Kernels that a fact of the policy has that value on."""
    return lambda arch, version: _profile(arch, version).fact(fact) == value


def _since(first: Version) -> Possible:
    return lambda _arch, version: version >= first


def _before(first: Version) -> Possible:
    return lambda _arch, version: version < first


def _from_first(what: str) -> Possible:
    """Kernels that have got something already."""
    return lambda arch, version: version >= FIRST[what].get(arch, (0, 0))


#: The columns with what must follow them; blanks may have been lost in between.
_COLUMNS = re.compile(
    r"[^ (]++(?: \[[^\]]*+\])? \([0-9]++\)(?: R|  )(?: I|  )(?: D|  )"
    r"(?P<ops>(?: O|  )(?P<modified> M |   )?)?(?:\t| ->)"
)


def _columns(record: Record) -> tuple[str, Possible] | None:
    """How many columns there are, where something follows them."""
    match = _COLUMNS.match(record.raw)
    if not match:
        return None
    if match["modified"]:
        return "columns for R I D O M", _since((6, 4))
    if match["ops"]:
        return "columns for R I D O", lambda _arch, version: version == (6, 3)
    return "columns for R I D only", _before((6, 3))


def _evidence(record: Record, whole: bool) -> Iterable[tuple[str, Possible]]:
    flags = record.flags
    if "M" in flags:
        yield "M", _having("modified")
    if "O" in flags or record.ops or "ops: ERROR!" in record.errors:
        yield "O or `ops:`", _having("call_ops")
    if record.direct_jmp:
        yield "`direct(jmp)`", _having("jmp")
    if any(owner.subops for owner in owners(record)):
        yield "`subops:`", _since((6, 16))
    if record.call or any(tramp.call for tramp in record.tramp):
        yield "`->`", _having("own_trampolines")
    if "R" in flags:
        yield "R", _having("saves_regs")
    if "D" in flags:
        yield "D", _having("direct_calls")
        if "I" not in flags:
            # Until 5.19 direct_ops carries FTRACE_OPS_FL_IPMODIFY.
            yield "D without I", _having("direct_shows_ipmodify", False)
        elif record.count == 1:
            yield "one user with I and D", _having("direct_shows_ipmodify")
    silent = not (record.tramp or record.call or record.errors or record.unknown)
    if whole and record.count and silent:
        yield "neither `tramp:` nor `->`", _having("own_trampolines", False)
    for symbol in symbols(record):
        yield from _named(symbol, flags)


def owners(record: Record) -> tuple[Trampoline | Ops, ...]:
    """What the record names users by."""
    return (*record.tramp, *record.ops)


def symbols(record: Record) -> Iterable[Symbol]:
    """The functions of the users that the record names."""
    for owner in owners(record):
        yield owner.func
        for sub in owner.subops:
            if one := sub.entry or sub.func:
                yield one


def _named(symbol: Symbol, flags: frozenset[str]) -> Iterable[tuple[str, Possible]]:
    match symbol.name:
        case "klp_ftrace_handler":
            yield "a livepatch", _from_first("livepatch")
            if "R" not in flags:
                # kernel/livepatch/patch.c: SAVE_REGS only without DYNAMIC_FTRACE_WITH_ARGS.
                yield "a livepatch without R", _having("ipmodify_saves_regs", False)
        case "kprobe_ftrace_handler":
            yield "a kprobe", _having("kprobes_on_ftrace")
        case "fprobe_handler" | "fprobe_kprobe_handler":
            old, there = _having("fprobe_shares", False), _from_first("fprobe")
            yield symbol.name, lambda arch, version: old(arch, version) and there(arch, version)
        case "fprobe_ftrace_entry" | "fprobe_fgraph_entry":
            yield symbol.name, _having("fprobe_shares")
