# SPDX-License-Identifier: GPL-2.0-only
"""Which ftrace_ops serves which attachment, and what that ops asks for.

A record counts ftrace_ops, not attachments: several attachments may share one on a
function, and one ops may serve several functions.
"""

from __future__ import annotations

from .profile import Profile
from .state import Attached, State


def key(attached: Attached, function: str, state: State, profile: Profile) -> str:
    """The ops behind an attachment on one of its functions, by a name of our own."""
    ops, form = attached.kind.ops, profile.form
    if ops == "livepatch" and profile.has("livepatches-share-ops"):
        # kernel/livepatch/patch.c: klp_patch_func, one klp_ops a function.
        return f"livepatch:{function}"
    if attached.kind.direct:
        if form.direct_ops == "all":
            return "direct"
        if ops == "bpf" and profile.has("bpf-shares-trampoline"):
            return "direct" if form.direct_ops == "bpf" else f"bpf:{function}"
    if ops == "kprobe" and profile.has("kprobes-share-ops"):
        armed_post = function in state.post_armed and profile.has("kprobe-post-is-ipmodify")
        return "kprobe-post" if armed_post else "kprobe"
    if ops == "tracer":
        return "tracer"
    if ops == "graph" or (ops == "fprobe-exit" and form.fprobe_shares):
        return "graph" if profile.has("graph-shares-ops") else f"graph:{attached.id}"
    if ops == "fprobe" and form.fprobe_shares and profile.has("fprobes-share-ops"):
        return "fprobe"
    return f"own:{attached.id}"


def keys(state: State, function: str, profile: Profile) -> set[str]:
    """All ops on a function."""
    here = state.on(function)
    return {key(a, function, state, profile) for a in here if on_ftrace(a, profile)}


def on_ftrace(attached: Attached, profile: Profile) -> bool:
    """Whether it has an ftrace_ops: kprobes have none where they are breakpoints."""
    breakpoints = not profile.semantics.kprobes_on_ftrace
    return not (
        attached.kind.ops == "kprobe" and breakpoints and profile.has("kprobes-are-breakpoints")
    )


def saves_regs(attached: Attached, profile: Profile) -> bool:
    """Whether its ops has FTRACE_OPS_FL_SAVE_REGS, so that the record shows R."""
    kind, form = attached.kind, profile.form
    if not profile.semantics.saves_regs or not on_ftrace(attached, profile):
        return False
    if kind.direct:
        # call_direct_funcs() needs all registers on x86-64 (MULTI_FLAGS, direct_ops).
        return profile.has("direct-saves-regs")
    if kind.ipmodify:
        return form.ipmodify_saves_regs
    if kind.ops in ("fprobe", "fprobe-exit"):
        return not form.fprobe_shares and form.fprobe_saves_regs and profile.has("fprobe-regs")
    return kind.save_regs and profile.has("regs-are-shown")


def is_ipmodify(attached: Attached, function: str, state: State, profile: Profile) -> bool:
    """Whether its ops carries FTRACE_OPS_FL_IPMODIFY on that function."""
    kind = attached.kind
    if kind.direct:
        return profile.semantics.direct_is_ipmodify
    if not on_ftrace(attached, profile):
        return False
    if kind.ops == "kprobe":
        return function in state.post_armed and profile.has("kprobe-post-is-ipmodify")
    return kind.ipmodify


def is_permanent(attached: Attached, profile: Profile) -> bool:
    """Whether its ops carries FTRACE_OPS_FL_PERMANENT."""
    kind = attached.kind
    return kind.permanent or (kind.direct and profile.semantics.direct_is_permanent)


#: Callbacks of the ops behind attachers (``own:`` those of kmods/ops.c), by Attacher.ops.
_CALLBACKS = {
    "livepatch": "klp_ftrace_handler",
    "kprobe": "kprobe_ftrace_handler",
    "fprobe": "fprobe_ftrace_entry",
    "fprobe-exit": "ftrace_graph_func",
    "graph": "ftrace_graph_func",
    "tracer": "function_trace_call",
}
_OWN = {"ipmodify": "cohabit_ipmodify_hit", "instance": "function_trace_call"}


def callback(attached: Attached) -> str:
    """The function of its ops, as a record names it; of fprobes, since they share one."""
    kind = attached.kind
    if kind.direct:
        return "call_direct_funcs"
    return _CALLBACKS.get(kind.ops) or _OWN.get(attached.attacher, "cohabit_ops_hit")
