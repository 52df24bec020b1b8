# SPDX-License-Identifier: GPL-2.0-only
"""All states that stirrers can bring about which run at the same time.

A stirrer repeats its steps from the first to the last.  Steps of several are taken as if
one came after the other, in any order: ftrace, kprobes, livepatch and BPF each do a step
under a lock (kernel/trace/ftrace.c: direct_mutex and ftrace_lock; kernel/kprobes.c:
kprobe_mutex; kernel/livepatch/core.c: klp_mutex).  The one that is not over when its lock
is free is a livepatch's transition: while it is pending a task may be in the body before
or in the one after it, and others go on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from harness.scenario.steps import (
    Attach,
    Detach,
    Disable,
    Enable,
    Force,
    Hold,
    Release,
    Stirrer,
    Write,
)

from . import history
from .acts import transition
from .attachers import ATTACHERS, Attacher
from .behaviour import body_of
from .predict import applies
from .profile import Profile
from .state import Attached, State

#: More nodes than these are not looked at one by one.
LIMIT = 3000


class TooManyError(Exception):
    """There are more nodes than LIMIT."""


def redirects(kind: Attacher) -> bool:
    """Whether it gives a call another body."""
    return kind.ipmodify or kind.name == "fmod_ret"


def plain(state: State) -> State:
    """The state without what decides neither bodies nor refusals, so that equal is equal."""
    there = [replace(a, alternate=0, shares=(0, 0, 0), sharing=False) for a in state.attached]
    return replace(
        state,
        # Who came first matters among those that give a body only.
        attached=(
            *sorted((a for a in there if not redirects(a.kind)), key=lambda a: a.id),
            *(a for a in there if redirects(a.kind)),
        ),
        modified=frozenset(),
        kept_regs=frozenset(),
        stale_share=frozenset(),
        still_shared=frozenset(),
    )


@dataclass(frozen=True)
class Node:
    """Where all stirrers are: the index of each one's next step, and the state.

    While a livepatch of ``state`` is pending: ``waiting``, the stirrer whose step waits for
    it, -1 for none, and ``leaving``, whether it is on its way out.  A replacing one has
    displaced nobody before it is there.
    """

    at: tuple[int, ...]
    state: State
    waiting: int = -1
    leaving: bool = False


class Interleavings:
    """The nodes that can be reached, with the stirrers' steps that matter to ``functions``.

    ``refused``: stirrers whose attaches may be refused by others that are not looked at.
    Raises TooManyError.
    """

    def __init__(
        self,
        state: State,
        stirrers: Sequence[Stirrer],
        profile: Profile,
        functions: frozenset[str],
        given: dict[str, int],
        may_be_refused: bool = False,
    ) -> None:
        self._profile = profile
        self._slots = given
        self._refused = may_be_refused
        self._steps = [[(i, s) for i, s in enumerate(x.steps)] for x in stirrers]
        self._begin = Node((0,) * len(stirrers), plain(state))
        self._relevant(state, functions)
        self.nodes = self._explore()

    def _relevant(self, state: State, functions: frozenset[str]) -> None:
        """Leaves only the steps that can decide a body of these functions."""
        attaches = [s for steps in self._steps for _, s in steps if isinstance(s, Attach)]
        there = [(a.id, a.kind, a.functions) for a in state.attached]
        there += [(s.id, ATTACHERS[s.attacher], s.functions) for s in attaches]
        posts = any(kind.posts for _, kind, _ in there)
        near = set(functions)
        while True:
            more = {
                f
                for _, kind, where in there
                if (kind.ipmodify or kind.direct) and near & set(where)
                for f in where
            }
            if more <= near:
                break
            near |= more
        ids = {
            identity
            for identity, kind, where in there
            if kind.ops == "livepatch"
            or (posts and kind.ops == "kprobe")
            or ((kind.ipmodify or kind.direct) and near & set(where))
        }
        for number, steps in enumerate(self._steps):
            self._steps[number] = [
                (i, s)
                for i, s in steps
                if (isinstance(s, Attach | Detach | Disable | Enable | Force) and s.id in ids)
                or isinstance(s, Write | Hold | Release)
            ]

    def _explore(self) -> set[Node]:
        known = {self._begin}
        ahead = [self._begin]
        while ahead:
            for new in self._after(ahead.pop()):
                if new not in known:
                    known.add(new)
                    if len(known) > LIMIT:
                        raise TooManyError
                    ahead.append(new)
        return known

    def _after(self, node: Node) -> Iterator[Node]:
        if node.state.pending() and not self._held_up(node):
            yield self._ended(node)
        for stirrer, steps in enumerate(self._steps):
            if steps and stirrer != node.waiting:
                yield from self._does(node, stirrer, steps[node.at[stirrer]][1])

    def _held_up(self, node: Node) -> bool:
        patch = node.state.pending()
        return patch is not None and not node.leaving and node.state.holds(patch.functions)

    def _on(self, node: Node, stirrer: int) -> Node:
        """The node when the stirrer's step is over."""
        at = list(node.at)
        at[stirrer] = (at[stirrer] + 1) % len(self._steps[stirrer])
        return replace(node, at=tuple(at))

    def _does(self, node: Node, stirrer: int, step: Any) -> Iterator[Node]:
        over = self._on(node, stirrer)
        state = node.state
        if not applies(state, step):
            yield over
            return
        if isinstance(step, Attach):
            if self._refused:
                yield over
            if state.get(step.id) is not None:
                # Its detach was refused before; the agent leaves out what makes no sense.
                yield over
                return
            _, after = transition(state, step, self._profile, self._slots[step.id])
            new = after.get(step.id)
            if new is None:
                yield over
            elif new.kind.ops == "livepatch":
                pending = replace(new, phase="enabling")
                entering = plain(replace(state, attached=(*state.attached, pending)))
                yield self._begun(replace(node, state=entering, leaving=False), stirrer, step)
            else:
                yield replace(over, state=plain(after))
            return
        if isinstance(step, Detach | Disable | Enable | Force):
            patch = state.get(step.id)
            assert patch is not None
            if patch.kind.ops == "livepatch" and patch.phase != "off":
                yield from self._moves(node, stirrer, step, patch)
                return
        _, after = transition(state, step, self._profile)
        yield replace(over, state=plain(after))

    def _moves(self, node: Node, stirrer: int, step: Any, patch: Attached) -> Iterator[Node]:
        """A step about a livepatch that is on, or pending (core.c: enabled_store)."""
        over = self._on(node, stirrer)
        pending = patch.phase == "enabling"
        if isinstance(step, Force):
            yield self._on(self._ended(node), stirrer) if pending else over
        elif isinstance(step, Enable):
            turned = pending and node.leaving and node.waiting < 0
            yield self._begun(replace(node, leaving=False), stirrer, step) if turned else over
        elif not pending and node.state.pending():
            # Refused; the agent goes on, and takes the patch away later.
            yield over
        elif pending and node.leaving and isinstance(step, Disable):
            yield over
        else:
            leaving = replace(patch, phase="enabling")
            state = node.state.changed(leaving)
            yield self._begun(replace(node, state=state, leaving=True), stirrer, step)

    def _begun(self, node: Node, stirrer: int, step: Any) -> Node:
        """A transition has begun, or was turned round."""
        if isinstance(step, Detach) or step.wait:
            return replace(node, waiting=stirrer)
        return self._on(node, stirrer)

    def _ended(self, node: Node) -> Node:
        """The transition has ended, and with it the step that waited for it."""
        patch = node.state.pending()
        assert patch is not None
        at = node.waiting
        state = self._outcome(node.state, patch, not node.leaving)
        if at >= 0 and isinstance(self._steps[at][node.at[at]][1], Detach):
            state = history.leave(state, patch.id, self._profile)
        ended = replace(node, state=plain(state), waiting=-1, leaving=False)
        return self._on(ended, at) if at >= 0 else ended

    def _outcome(self, state: State, patch: Attached, there: bool) -> State:
        """The state after a pending livepatch has come, or has gone."""
        if not there:
            return history.withdraw(state, patch, self._profile)
        others = tuple(a for a in state.attached if a.id != patch.id)
        # Only now others are displaced (transition.c: klp_complete_transition).
        return history.arrive(
            replace(state, attached=others), replace(patch, phase="on"), self._profile
        )

    def bodies(self, node: Node, function: str) -> frozenset[str]:
        """The bodies that a call may run in at a node."""
        patch = node.state.pending()
        states = [node.state]
        if patch is not None:
            states = [self._outcome(node.state, patch, there) for there in (False, True)]
        return frozenset(body_of(s, function, self._profile) for s in states) - {"absent"}

    def position(self, node: Node, stirrer: int) -> tuple[int, bool]:
        """The index of the step that a stirrer does next, or is at; of all its steps."""
        steps = self._steps[stirrer]
        return steps[node.at[stirrer]][0] if steps else 0, node.waiting == stirrer
