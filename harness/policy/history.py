# SPDX-License-Identifier: GPL-2.0-only
"""How a state becomes the next, with what each arrival and departure leaves behind."""

from __future__ import annotations

from dataclasses import replace

from harness.scenario.functions import FUNCTIONS

from . import ops
from .profile import Profile
from .state import Attached, RecordState, State


def arrive(state: State, new: Attached, profile: Profile) -> State:
    """The state after an attach that was not refused."""
    if new.kind.exclusive and profile.has("one-tracer"):
        for other in state.attached:
            if other.kind.exclusive == new.kind.exclusive and other.attacher != new.attacher:
                state = leave(state, other.id, profile)
    if new.kind.posts and ops.on_ftrace(new, profile):
        first = {f for f in new.functions if not _has_kprobe(state, f)}
        state = replace(state, post_armed=state.post_armed | first)
    state = _tell_direct(state, new, 1, profile)
    if new.kind.agrees and not new.kind.bpf:
        met = sum(_has_ipmodify(state, f, profile) for f in new.functions)
        flag = profile.semantics.share_is_flag
        new = replace(new, shares=(0 if flag else met, 0, 0), sharing=flag and met > 0)
    if new.attacher == "livepatch-replace" and profile.has("replace-displaces"):
        # What it does not patch itself has its ops until klp_discard_nops.
        displaced = [a for a in state.attached if a.kind.ops == "livepatch" and a.active]
        state = replace(state, attached=(*state.attached, new))
        for other in displaced:
            state = withdraw(state, other, profile)
        return state
    return replace(state, attached=(*state.attached, new))


def asked(state: State, refused: Attached, profile: Profile) -> State:
    """The state after an IPMODIFY ops was refused, but not by the direct call on its function.

    That one is asked first, and nobody tells it that nothing came of it
    (kernel/trace/ftrace.c: register_ftrace_function).
    """
    # Of several functions it depends on which of them refuses.
    if len(refused.functions) > 1:
        return state
    return _tell_direct(state, refused, 1, profile)


def modify(state: State, direct: Attached, alternate: int, profile: Profile) -> State:
    """The state after a direct call was pointed at another trampoline.

    Where an IPMODIFY ops is, it is asked once more whether it shares
    (kernel/trace/ftrace.c: __modify_ftrace_direct).
    """
    met = sum(_has_ipmodify(state, f, profile) for f in direct.functions)
    asking = direct.kind.agrees and not profile.semantics.share_is_flag
    own, peer, told = direct.shares
    shares = (own + met * asking, peer, told)
    return state.changed(replace(direct, alternate=alternate, shares=shares))


def leave(state: State, identity: str, profile: Profile) -> State:
    """The state after an attachment has left all its functions."""
    gone = state.get(identity)
    if gone is None:
        return state
    if gone.active:
        state = withdraw(state, gone, profile)
    return replace(state, attached=tuple(a for a in state.attached if a.id != identity))


def permanent(state: State, profile: Profile) -> frozenset[str]:
    """The functions with a PERMANENT ops."""
    return frozenset(
        f for a in state.attached if a.active and ops.is_permanent(a, profile) for f in a.functions
    )


def withdraw(state: State, gone: Attached, profile: Profile) -> State:
    """The state after an attachment's ops let go of its functions; it is still listed, as off."""
    kept = set(state.kept_regs)
    armed = set(state.post_armed)
    there = list(gone.functions)
    for function in gone.functions:
        mine = ops.key(gone, function, state, profile)
        others = [a for a in state.on(function) if a.id != gone.id]
        if any(ops.key(a, function, state, profile) == mine for a in others):
            continue
        there.remove(function)
        if ops.saves_regs(gone, profile):
            kept.discard(function)
            # An ops that stays registered for other functions is found by
            # test_rec_ops_needs_regs: its filter changes only afterwards.
            stays = not mine.startswith(("own:", "bpf:", "livepatch:")) and any(
                ops.key(a, g, state, profile) == mine
                for a in state.attached
                if a.active
                for g in (there if a.id == gone.id else a.functions)
                if g != function
            )
            if stays and profile.has("filter-change-keeps-regs"):
                kept.add(function)
        if not others:
            kept.discard(function)
        if not any(a.kind.ops == "kprobe" for a in others):
            armed.discard(function)
    after = replace(
        state.changed(replace(gone, phase="off")),
        kept_regs=frozenset(kept),
        post_armed=frozenset(armed),
    )
    if state.awake:
        after = replace(after, awake=state.awake & permanent(after, profile))
    after = _stale_share(state, after, gone, profile)
    return _tell_direct(after, gone, 2, profile)


def _has_kprobe(state: State, function: str) -> bool:
    return any(a.kind.ops == "kprobe" for a in state.on(function))


def _redirects(attached: Attached, profile: Profile) -> bool:
    """Whether it may make an ops with IPMODIFY come and go."""
    kind = attached.kind
    return kind.ipmodify or (kind.posts and ops.on_ftrace(attached, profile))


def _has_ipmodify(state: State, function: str, profile: Profile) -> bool:
    # Not a direct call that counts as one: nobody is asked about himself.
    others = (a for a in state.on(function) if not a.kind.direct)
    return any(ops.is_ipmodify(a, function, state, profile) for a in others)


def _tell_direct(state: State, mover: Attached, what: int, profile: Profile) -> State:
    """Counts the calls of each direct ops' ops_func, as an IPMODIFY ops comes (1) or goes (2).

    kernel/trace/ftrace.c: prepare_direct_functions_for_ipmodify and
    cleanup_direct_functions_after_ipmodify, both once a function.
    """
    if what == 2 and not (profile.semantics.peer_told and profile.has("peer-told")):
        return state
    if profile.semantics.direct_is_ipmodify or not _redirects(mover, profile):
        return state
    # Of all kprobes only the first is registered, and only the last unregistered.
    others = mover.kind.posts and state.post_armed - set(mover.functions)
    if others and profile.has("peers-asked-at-registration"):
        return state
    flag = profile.semantics.share_is_flag
    for other in state.attached:
        if not other.kind.agrees or other.kind.bpf or other.id == mover.id or other.sharing:
            continue
        times = 0
        for function in set(mover.functions) & set(other.functions):
            # A second livepatch or kprobe joins an ops that is there already.
            joined = any(
                a.kind.ops == mover.kind.ops != "own" and a.id != mover.id
                for a in state.on(function)
            )
            times += not joined
        if times:
            counts = list(other.shares)
            counts[what] += times
            shares = (counts[0], counts[1], counts[2])
            state = state.changed(replace(other, shares=shares, sharing=flag))
    return state


def _stale_share(before: State, after: State, gone: Attached, profile: Profile) -> State:
    """What a BPF trampoline keeps: docs/findings/stale-share.md."""
    stale, still = set(after.stale_share), set(after.still_shared)
    told = profile.semantics.peer_told
    for function in gone.functions:
        left = any(a.kind.bpf for a in after.on(function))
        shared = _has_ipmodify(after, function, profile)
        if gone.kind.bpf and not left:
            still.discard(function)
            # Where nobody is told, the last program itself takes the flag along.
            if shared and told:
                stale.add(function)
        if _redirects(gone, profile) and not shared and left:
            # kernel/bpf/trampoline.c: DISABLE_SHARE_IPMODIFY_PEER clears it.
            stale.discard(function)
            if not told and _has_ipmodify(before, function, profile):
                still.add(function)
    return replace(after, stale_share=frozenset(stale), still_shared=frozenset(still))


def record_state(state: State, function: str, profile: Profile) -> RecordState:
    """The ftrace record as the core keeps it (kernel/trace/ftrace.c: __ftrace_hash_rec_update)."""
    here = state.on(function)
    form = profile.form
    count = len(ops.keys(state, function, profile))
    # Whether a direct call that counts as IPMODIFY also shows it is a matter of form.
    ipmodify = any(ops.is_ipmodify(a, function, state, profile) for a in here if not a.kind.direct)
    direct = any(a.kind.direct for a in here)
    regs = any(ops.saves_regs(a, profile) for a in here)
    if state.unloaded and FUNCTIONS[function].module:
        return RecordState(0)
    if not profile.has("record-counts-ops"):
        count = min(count, 1)
    call_ops = count == 1 and form.call_ops and profile.has("call-ops-is-shown")
    return RecordState(
        count=count,
        regs=regs or (function in state.kept_regs and count > 0),
        ipmodify=(ipmodify and profile.has("ipmodify-is-shown"))
        or (direct and form.direct_shows_ipmodify),
        direct=direct and profile.has("direct-is-shown"),
        # A direct ops has ftrace_caller for its trampoline (register_ftrace_direct).
        trampoline=count == 1 and (form.own_trampolines or direct),
        # For an ops that leaves it is its own flags that decide, not those of the one that
        # stays; but of RECURSION and RCU (ftrace_ops_get_func) no attacher has any.
        call_ops=call_ops,
    )


def modified(
    before: State, after: State, functions: tuple[str, ...], profile: Profile
) -> frozenset[str]:
    """Functions whose record has M: set when the call site is rewritten, never cleared.

    kernel/trace/ftrace.c: ftrace_check_record sets FTRACE_FL_MODIFIED where it
    does not return early because nothing about the call site changes.
    """
    if not profile.form.modified or not profile.has("modified-is-shown"):
        return frozenset()
    found = set(after.modified)
    if not profile.has("modified-stays"):
        found = set()
    for function in functions:
        was = record_state(before, function, profile)
        now = record_state(after, function, profile)
        old = was.patched if before.live(function) and was.count else None
        new = now.patched if after.live(function) and now.count else None
        changed = new != old or not profile.has("modified-when-rewritten")
        if new is not None and changed and (now.direct or now.ipmodify):
            found.add(function)
    return frozenset(found)
