# SPDX-License-Identifier: GPL-2.0-only
"""What one call of a function does: which body runs, who sees it, what they see."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from harness.agent import abi
from harness.scenario.functions import FUNCTIONS

from . import ops
from .profile import Profile
from .state import Attached, State


@dataclass(frozen=True)
class BehaviourPrediction:
    """What one call must do.

    ``ret`` is what those at the exit must see, as the caller's C type; ``shares``:
    for each direct ops that agrees, how often its ops_func was asked; ``via``: for
    each direct call, which of its two trampolines ran.
    """

    body: str
    hits: dict[str, int] = field(default_factory=dict)
    ret: int | None = None
    args: tuple[int, ...] | None = None
    shares: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    via: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As in docs/events.md."""
        return {
            "body": self.body,
            "hits": self.hits,
            "ret": self.ret,
            "args": "agree" if self.args is None else list(self.args),
            **({"shares": {k: list(v) for k, v in self.shares.items()}} if self.shares else {}),
            **({"via": self.via} if self.via else {}),
        }


_TAGS = {
    abi.body_of_tag(tag): tag for tag in range(abi.TAG_ORIGINAL, abi.TAG_FMOD_RET + abi.FMOD_RETS)
}


def effective(state: State, function: str, profile: Profile) -> tuple[Attached, ...]:
    """Those on a function who are called, oldest first."""
    called = works(state, function, profile)
    return tuple(a for a in state.on(function) if called or not ops.on_ftrace(a, profile))


def works(state: State, function: str, profile: Profile) -> bool:
    """Whether the function's call site calls those who are on it."""
    return not state.dead and (state.live(function) or not profile.has("off-is-off"))


def body_of(state: State, function: str, profile: Profile) -> str:
    """The body that a call of the function ends up in."""
    if state.unloaded and FUNCTIONS[function].module:
        return "absent"
    body = "original"
    here = effective(state, function, profile)
    redirecting = [a for a in here if a.kind.ipmodify]
    if redirecting and profile.has("ipmodify-chooses-body"):
        # The newest livepatch is on top of the function's stack (klp_ftrace_handler).
        newest = redirecting[-1] if profile.has("newest-livepatch-wins") else redirecting[0]
        body = newest.body
    overrides = [a for a in here if a.attacher == "fmod_ret"]
    if overrides and profile.has("fmod_ret-takes-place"):
        # Programs run newest first (__bpf_trampoline_link_prog: hlist_add_head),
        # and the first error ends the row (invoke_bpf_mod_ret).
        newest = overrides[-1] if profile.has("fmod_ret-newest-first") else overrides[0]
        body = newest.body
    return body


def behaviour(state: State, function: str, profile: Profile) -> BehaviourPrediction:
    """What one call does, on the caller's side and on each attacher's."""
    target = FUNCTIONS[function]
    body = body_of(state, function, profile)
    everybody = state.on(function)
    # Before 7.0 an ops_func is not told which function it is asked about.
    shares = {
        a.id: a.shares
        for a in everybody
        if a.attacher == "direct-share" and len(a.functions) == 1 and not a.uncounted
    }
    if body == "absent":
        return BehaviourPrediction(body)
    called = effective(state, function, profile)
    hits = {a.id: int(a in called) for a in everybody if a.kind.counts}
    overrides = [a for a in called if a.attacher == "fmod_ret"]
    elsewhere = any(a.kind.ipmodify or a.kind.direct for a in called)
    if elsewhere and profile.semantics.graph_follows_ip and profile.has("graph-follows-ip"):
        hits.update({a.id: 0 for a in called if a.kind.ops == "graph"})
    if profile.has("fmod_ret-newest-first"):
        hits.update({a.id: 0 for a in overrides[:-1]})
    if not profile.has("each-sees-each-call"):
        hits.update({a.id: 0 for a in everybody if a.kind.counts})
    via = {
        a.id: a.alternate
        for a in called
        if a.kind.direct and not a.kind.bpf and profile.has("modify-moves")
    }
    args: tuple[int, ...] | None = None
    tag = _TAGS[body] if profile.has("exit-sees-final-return") else abi.TAG_ORIGINAL
    if target.witnessed == "tag":
        args = tuple(
            abi.arguments(target.nr_args, target.may_sleep, target.lane, target.holds, target.hot)
        )
        ret = tag << 32 | abi.checksum(list(args))
    elif target.witnessed == "text" or tag == abi.TAG_ORIGINAL:
        ret = 0
    else:
        ret = -(abi.ERRNO_BASE + tag)
    return BehaviourPrediction(body, hits, ret, args, shares, via)
