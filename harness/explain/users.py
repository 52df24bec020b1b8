# SPDX-License-Identifier: GPL-2.0-only
"""Who is on a record: named by the kernel, told by a flag, or not told at all.

Where a function has one user (one ftrace_ops), the kernel names its callback.  Where
it has several, x86-64 names the function that goes through all of them and arm64
nothing, so that only the flags and the direct trampoline say something.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace
from typing import Literal

from harness.ftrace import Ops, Record, Symbol, Trampoline
from harness.policy.profile import FIRST

from .form import Kernels

#: ``named``: by its callback or its trampoline; ``flag``: somebody must be there, for a
#: flag says so; ``untold``: the count says so.
Known = Literal["named", "flag", "untold"]


@dataclass(frozen=True)
class User:
    """Users of a function (or several alike that are not told apart).

    ``kind``: a short word for programs; ``who``: for people; ``name``: the kernel's
    symbol; ``hint``: where to look on; ``attachers``: what of policy/attachers.py it can
    be, for the policy; ``number``: how many of them.
    """

    kind: str
    who: str
    known: Known
    name: str = ""
    hint: str = ""
    attachers: tuple[str, ...] = ()
    number: int = 1


#: Callbacks of ftrace_ops by their name: kind, words, and the attacher of the policy.
_CALLBACKS: dict[str, tuple[str, str, str]] = {
    "klp_ftrace_handler": ("livepatch", "livepatch (one or several)", "livepatch"),
    "kprobe_ftrace_handler": (
        "kprobe",
        "kprobes or kretprobes (one or several)",
        "kprobe",
    ),
    "fprobe_handler": ("fprobe", "an fprobe: a probe event or a BPF kprobe-multi link", "fprobe"),
    "fprobe_kprobe_handler": (
        "fprobe",
        "an fprobe that shares its function with kprobes",
        "fprobe",
    ),
    "fprobe_ftrace_entry": (
        "fprobe",
        "fprobes without an exit handler: probe events or BPF kprobe-multi links",
        "fprobe",
    ),
    "ftrace_graph_func": (
        "function-graph",
        "the function graph tracer, or fprobes (6.14 and newer)",
        "function-graph",
    ),
    "ftrace_stub_graph": ("function-graph", "the function graph tracer", "function-graph"),
    "ftrace_pid_func": (
        "function-tracer",
        "the function tracer or profiler, for chosen tasks (set_ftrace_pid)",
        "function-tracer",
    ),
    "function_trace_probe_call": (
        "filter-command",
        "a command in set_ftrace_filter (function:traceon, :stacktrace, :snapshot ...)",
        "ops",
    ),
    "function_profile_call": (
        "profiler", "the function profiler (function_profile_enabled)", "ops",
    ),
    "perf_ftrace_function_call": ("perf", "perf's event ftrace:function", "ops"),
    "stack_trace_call": ("stack-tracer", "the stack tracer (kernel.stack_tracer_enabled)", "ops"),
    "irqsoff_tracer_call": ("latency-tracer", "the irqsoff or preemptoff tracer", "ops"),
    "wakeup_tracer_call": ("latency-tracer", "the wakeup tracer", "ops"),
    "pstore_ftrace_call": ("pstore", "pstore's recorder of function calls", "ops"),
}  # fmt: skip
# kernel/trace/trace_functions.c: select_trace_function
_TRACER = re.compile(r"function(?:_stack|_no_repeats|_args)*_trace_call")

#: Entry functions of the function graph's users.
_GRAPH: dict[str, tuple[str, str, str]] = {
    "trace_graph_entry": (
        "function-graph", "the function graph tracer", "function-graph",
    ),
    "trace_graph_entry_args": (
        "function-graph",
        "the function graph tracer with arguments",
        "function-graph",
    ),
    "fgraph_pid_func": (
        "function-graph",
        "the function graph tracer, for chosen tasks (set_ftrace_pid)",
        "function-graph",
    ),
    "fprobe_fgraph_entry": (
        "fprobe", "fprobes with an exit handler: probe events or kprobe-multi links", "fprobe-exit",
    ),
    "profile_graph_entry": (
        "profiler", "the function profiler (function_profile_enabled)", "function-graph",
    ),
    "irqsoff_graph_entry": (
        "latency-tracer", "the irqsoff or preemptoff tracer", "function-graph",
    ),
    "wakeup_graph_entry": ("latency-tracer", "the wakeup tracer", "function-graph"),
}  # fmt: skip
# 6.14 until those without an exit handler got an ftrace_ops of their own.
_GRAPH["fprobe_entry"] = ("fprobe", "fprobes: probe events or kprobe-multi links", "fprobe-exit")

_LISTS = ("arch_ftrace_ops_list_func", "ftrace_ops_list_func", "ftrace_ops_no_ops")
_BPF = re.compile(r"bpf_trampoline_(?P<key>[0-9]{1,20})(?:_[0-9]+)?")
_DIRECT = "call_direct_funcs"


def goes_through_list(symbol: Symbol) -> bool:
    """Whether it is the function that goes through all users."""
    return symbol.name in _LISTS


def users(record: Record, kernels: Kernels) -> tuple[User, ...]:
    """Who is on a function, as far as the record tells; none where the count is 0."""
    found: list[User] = []
    held_by_direct = "D" in record.flags and not _later(kernels)
    for owner in _owners(record):
        found += _owner(owner, record, held_by_direct)
    if not found and record.call and not goes_through_list(record.call):
        # x86-64: one user without a trampoline of its own (ftrace_trace_function).
        found.append(_callback(record.call, record, held_by_direct))
    # Those of the function graph are subops of one ftrace_ops.
    named = len(_owners(record)) or len(found)
    if "D" in record.flags and not any(user.kind in ("bpf", "direct") for user in found):
        found.append(_direct(record))
        named += 1
    if _holder_untold(record, found, kernels) and named < record.count:
        found.append(_holder(record, kernels))
        named += 1
    if named < record.count:
        found.append(_rest(record, record.count - named, kernels))
    return tuple(
        replace(user, number=number) if number > 1 else user
        for user, number in Counter(found).items()
    )


def _later(kernels: Kernels) -> bool:
    """Whether a release is possible on which a direct call is not IPMODIFY itself."""
    return any(versions[-1] >= (6, 0) for versions in kernels.values())


def _owners(record: Record) -> tuple[Trampoline | Ops, ...]:
    """The users that the record names; arm64 names one twice."""
    return record.tramp or record.ops


def _owner(owner: Trampoline | Ops, record: Record, held_by_direct: bool) -> list[User]:
    if owner.func.name == _DIRECT:
        return [_direct(record)]
    found = []
    for sub in owner.subops:
        if sub.entry:
            kind, who, attacher = _GRAPH.get(
                sub.entry.name,
                ("function-graph", f"a user of the function graph{_of(sub.entry)}", "fprobe-exit"),
            )
            found.append(User(kind, who, "named", sub.entry.label, attachers=(attacher,)))
        elif sub.func:
            found.append(_callback(sub.func, record, held_by_direct))
    return found or [_callback(owner.func, record, held_by_direct)]


def _callback(symbol: Symbol, record: Record, held_by_direct: bool) -> User:
    """A user by its callback; I is its own where it is the only one."""
    holds = "I" in record.flags and record.count == 1 and not held_by_direct
    if symbol.name == "kprobe_ftrace_handler" and holds:
        who = "kprobes or kretprobes (one or several), one of them with a post_handler"
        return User("kprobe-post", who, "named", symbol.label, attachers=("kprobe-post",))
    if found := _CALLBACKS.get(symbol.name):
        kind, who, attacher = found
    elif _TRACER.fullmatch(symbol.name):
        kind, attacher = "function-tracer", "function-tracer"
        who = "the function tracer"
    elif holds:
        kind, attacher = "ipmodify", "ipmodify"
        who = f"an ftrace_ops{_of(symbol)} that may change where the call goes"
    else:
        kind, attacher = "ops", "ops"
        who = f"an ftrace_ops{_of(symbol)}"
    return User(kind, who, "named", symbol.label, attachers=(attacher,))


def _of(symbol: Symbol) -> str:
    return f" of module {symbol.module}" if symbol.module else ""


#: What a direct call that is no BPF trampoline's can be.
_MODULE_S = ("direct-share", "direct", "direct-refuse")


def _direct(record: Record) -> User:
    """The user behind a direct trampoline."""
    symbol = record.direct
    if symbol is None or symbol.address is not None:
        who = "a direct call to a trampoline without a name: BPF programs or a module"
        name = symbol.text if symbol else ""
        return User("direct", who, "flag", name, attachers=("fentry", *_MODULE_S))
    if match := _BPF.fullmatch(symbol.name):
        who = "BPF programs on a trampoline"
        if record.direct_jmp:
            who += " that is jumped to (so one is fexit, fmod_ret or fsession)"
        return User("bpf", who, "named", symbol.label, _type(match["key"]), ("fentry",))
    where = f"of module {symbol.module}" if symbol.module else "in the kernel"
    who = f"a direct call to a trampoline {where}"
    return User("direct", who, "named", symbol.label, attachers=_MODULE_S)


def _type(key: str) -> str:
    """The BTF type of the function in a trampoline's key, by which bpftool finds programs.

    include/linux/bpf_verifier.h: bpf_trampoline_compute_key; 5.10 has the type alone.
    """
    number = int(key)
    btf, kind = number >> 32, number & 0x7FFFFFFF
    if number & 0x80000000:
        return f"in `bpftool link`: target_obj_id {btf}, target_btf_id {kind}"
    return f"BTF type {kind}" if not btf else ""


def _holder_untold(record: Record, found: list[User], kernels: Kernels) -> bool:
    if "I" not in record.flags or (record.count == 1 and found):
        return False
    # On 5.19 and older a direct call has the I, and there is no other.
    return "D" not in record.flags or _later(kernels)


def _holder(record: Record, kernels: Kernels) -> User:
    """The user that has the I."""
    attachers = []
    words = []
    if any(versions[-1] >= FIRST["livepatch"].get(a, (0, 0)) for a, versions in kernels.items()):
        attachers.append("livepatch")
        words.append("a livepatch")
    attachers.append("ipmodify")
    words.append("an ftrace_ops of a module")
    if "x86-64" in kernels and "R" in record.flags:
        attachers.append("kprobe-post")
        words.append("kprobes with a post_handler")
    who = f"one that may change where the call goes: {_either(words)}"
    if "D" in record.flags and any(versions[0] < (6, 0) for versions in kernels.values()):
        who += " (before 6.0 I is the direct call's own)"
    return User("ipmodify", who, "flag", attachers=tuple(attachers))


def _rest(record: Record, number: int, kernels: Kernels) -> User:
    """Users of whom only the count tells."""
    possible = ("kprobe",) if "x86-64" in kernels and "R" in record.flags else ()
    if number == record.count:
        who = f"nothing is told of {'it' if number == 1 else 'them'}"
    elif number == 1:
        who = "another user of whom nothing is told"
    else:
        who = f"{number} more users of whom nothing is told"
    return User("unknown", who, "untold", attachers=possible, number=number)


def _either(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
