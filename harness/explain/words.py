# SPDX-License-Identifier: GPL-2.0-only
"""What a record's pieces mean, in sentences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from harness.ftrace import Column, Record
from harness.policy.profile import Version

from .form import Kernels
from .users import User, goes_through_list

#: Flags in words.  What has the flag now is in the list of users.
FLAGS: dict[str, str] = {
    "R": "all registers are saved, because a user asks for it",
    "I": "IPMODIFY: a user may change where the call goes; at most one of a function can",
    "D": "direct call: the function's calls go to a trampoline that is no ftrace_ops' own",
    "O": "the call site finds its only user by itself, without a list (arm64)",
    "M": "history: an IPMODIFY user or a direct call is or was here since boot; never cleared",
    "P": "PERMANENT: of a proposal from 2019; no release prints it",
}

_ERRORS = {
    "tramp: ERROR!": "the call site is set to a user's own trampoline, but no user has one",
    "ops: ERROR!": "the call site is set to its only user, but there is no single user",
}


def flags(record: Record, kernels: Kernels) -> tuple[tuple[str, str], ...]:
    """The flags that are set, in the kernel's order, each with its meaning."""
    said = []
    for column in Column:
        if column in record.flags:
            text = FLAGS[column.value]
            if column is Column.IPMODIFY and "D" in record.flags and _any_before_6(kernels):
                text += "; before 6.0 a direct call is such a user"
            said.append((column.value, text))
    return tuple(said)


def _any_before_6(kernels: Kernels) -> bool:
    return any(versions[0] < (6, 0) for versions in kernels.values())


def own(record: Record, found: Sequence[User]) -> str:
    """The trampoline that serves this function only, where it has a name or an address."""
    if record.direct and any(user.kind == "bpf" for user in found):
        return record.direct.label
    if record.tramp and record.tramp[0].trampoline.address is not None:
        return record.tramp[0].trampoline.text
    return ""


def path(record: Record, found: Sequence[User], brief: bool = False) -> str:
    """How a call of the function gets to its users; empty where it has none.

    ``brief``: without what ``own`` gives.
    """
    if not record.count:
        return ""
    direct = "a direct trampoline"
    if record.direct and not (brief and own(record, found) == record.direct.label):
        direct = record.direct.text.partition("+")[0]
    alone = all(user.kind in ("bpf", "direct") for user in found)
    if "D" in record.flags and alone:
        if record.ops:
            # arch/arm64/kernel/ftrace.c: ftrace_find_callable_addr
            return f"call site -> {direct} (through ftrace_caller where that is too far away)"
        return f"call site {'jumps to' if record.direct_jmp else '->'} {direct}"
    then = f", then {direct}" if "D" in record.flags else ""
    if record.tramp:
        return "; ".join(_trampolines(record, brief)) + then
    if record.ops:
        return f"call site -> ftrace_caller -> {record.ops[0].func.label}{then}"
    if record.call is None:
        if record.count > 1:
            return f"call site -> ftrace_caller -> a list of all users{then}"
        return "how a call gets there is not printed by this kernel"
    entry = "ftrace_regs_caller" if "R" in record.flags else "ftrace_caller"
    each = ", which calls each user" if goes_through_list(record.call) else ""
    return f"call site -> {entry} -> {record.call.label}{each}{then}"


def _trampolines(record: Record, brief: bool) -> Iterable[str]:
    for tramp in record.tramp:
        where = tramp.trampoline
        steps = [where.label]
        if where.address is not None:
            address = "" if brief else f" {where.text}"
            steps = [f"trampoline{address} of its own"]
        if tramp.call and tramp.call.label != tramp.func.label:
            steps.append(tramp.call.label)
        # The graph tracer of 5.10 has a stub for a callback.
        if tramp.func.name != "ftrace_stub_graph":
            steps.append(tramp.func.label)
        yield " -> ".join(["call site", *steps])


def warnings(record: Record, cut: bool) -> tuple[str, ...]:
    """What is wrong with a record, the kernel's own alarms first."""
    said = [
        f"{mark}  The kernel contradicts itself: {_ERRORS.get(mark, 'a marker of a bug')}. "
        "Do not trust this record; look for ftrace's warnings in the log, and report them."
        for mark in record.errors
    ]
    if record.invalid:
        said.append(
            "no function any more: a weak one that the linker dropped; ftrace keeps it disabled"
        )
    if record.unknown:
        pieces = ", ".join(f"{_short(piece)!a}" for piece in record.unknown[:3])
        more = f" and {len(record.unknown) - 3} more" if len(record.unknown) > 3 else ""
        said.append(f"not understood, so this may be incomplete: {pieces}{more}")
    if cut:
        said.append("the text ends here: flags and users may be missing")
    if record.count > 1 << 20:
        said.append("no kernel counts so many users")
    return tuple(said)


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


def release(version: Version) -> str:
    """``6.12``."""
    return f"{version[0]}.{version[1]}"


def span(first: Version, last: Version) -> str:
    """``6.4 to 6.18``, or one release."""
    return release(first) if first == last else f"{release(first)} to {release(last)}"


def spans(versions: Sequence[Version]) -> str:
    """The first and the last of them; what the form tells has no gaps."""
    return span(versions[0], versions[-1])


def plural(number: int, thing: str) -> str:
    """``1 function``, ``2 functions``."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
