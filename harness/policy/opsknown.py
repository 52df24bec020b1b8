# SPDX-License-Identifier: GPL-2.0-only
"""What the times of stirrers' steps tell about what was attached when."""

from __future__ import annotations

import errno
import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from harness.scenario.steps import (
    Attach,
    Detach,
    Disable,
    Enable,
    Force,
    Load,
    Release,
    Step,
    Stirrer,
    TraceAll,
    Unload,
    Write,
)

from .slots import stirred_slots
from .state import Attached, State
from .timeline import Timeline, Values

#: What may be the case of an attachment.  ``trying``: refused in the end, but there meanwhile.
GONE, ON, OFF, TRYING = "gone", "on", "off", "trying"
ENABLING, DISABLING = "enabling", "disabling"
PENDING = frozenset({ENABLING, DISABLING})
CERTAIN = frozenset({ON}) | PENDING
THERE = CERTAIN | {TRYING}
_ANYTHING = THERE | {GONE, OFF}
#: Of the sysctl kernel.ftrace_enabled, and of the test module.
SWITCH = frozenset({"0", "1"})
MODULE = frozenset({"loaded", "unloaded"})


@dataclass(frozen=True)
class Op:
    """A stirrer's step: their indices, what it gave, and from when to when it was done."""

    stirrer: int
    step: int
    errno: int
    begin: float
    end: float


@dataclass
class Known:
    """An attachment: what it is, whose steps move it (-1: nobody's), and when it was what."""

    made: Attached
    owner: int
    time: Timeline
    first: Values


class Knowledge:
    """All that was told of the steps so far, as far as it still matters.

    Each attachment is moved by one stirrer (harness/scenario/check.py).
    """

    def __init__(self, state: State, stirrers: Sequence[Stirrer]) -> None:
        self.base = state
        self.stirrers = stirrers
        self.known: dict[str, Known] = {}
        self._released = any(isinstance(s, Release) for one in stirrers for s in one.steps)
        self._attachments(state)
        #: Who writes the sysctl, and who moves the module; of more than one nothing is known.
        self.writers, self.movers = self._doing(Write), self._doing(Unload, Load)
        enabled = SWITCH if len(self.writers) > 1 else {str(int(state.ftrace_enabled))}
        loaded = MODULE if len(self.movers) > 1 else {"unloaded" if state.unloaded else "loaded"}
        self.ftrace, self.module = Timeline.of(*enabled), Timeline.of(*loaded)
        self.seen = [-math.inf] * len(stirrers)
        self.finished = False
        self.stuck: frozenset[int] = frozenset()
        self._recent: deque[Op] = deque()

    def _attachments(self, state: State) -> None:
        slots = stirred_slots(state, self.stirrers)
        owners: dict[str, int] = {}
        for number, one in enumerate(self.stirrers):
            for step in one.steps:
                if isinstance(step, Attach | Detach | Disable | Enable | Force):
                    owners[step.id] = number
        for there in state.attached:
            values: set[str] = {there.phase}
            if there.phase == ENABLING and self._released:
                values.add(ON)
            time = Timeline.of(*values)
            self.known[there.id] = Known(there, owners.get(there.id, -1), time, time.last)
        for one in self.stirrers:
            for step in one.steps:
                if isinstance(step, Attach) and step.id not in self.known:
                    made = Attached(step.id, step.attacher, step.functions, slots[step.id])
                    gone = Timeline.of(GONE)
                    self.known[step.id] = Known(made, owners[step.id], gone, gone.last)

    def _doing(self, *kinds: type) -> frozenset[int]:
        doing = enumerate(self.stirrers)
        return frozenset(i for i, one in doing if any(isinstance(s, kinds) for s in one.steps))

    def step(self, op: Op) -> Step | TraceAll:
        """The step that was done."""
        return self.stirrers[op.stirrer].steps[op.step]

    def livepatches(self, but: str) -> Iterator[Known]:
        """All of them but one."""
        for identity, known in self.known.items():
            if identity != but and known.made.kind.ops == "livepatch":
                yield known

    def note(self, op: Op) -> None:
        """A step was done."""
        step = self.step(op)
        if isinstance(step, Write):
            if not op.errno and len(self.writers) == 1:
                self.ftrace.step(op.begin, op.end, frozenset(), frozenset({step.value}))
        elif isinstance(step, Unload | Load):
            if not op.errno and len(self.movers) == 1:
                now = "loaded" if isinstance(step, Load) else "unloaded"
                self.module.step(op.begin, op.end, frozenset(), frozenset({now}))
        elif isinstance(step, Attach | Detach | Disable | Enable | Force):
            known = self.known[step.id]
            if known.made.kind.ops == "livepatch":
                self._note_livepatch(op, step, known)
            elif isinstance(step, Attach | Detach) and not op.errno:
                now = ON if isinstance(step, Attach) else GONE
                known.time.step(op.begin, op.end, frozenset(), frozenset({now}))
        self.seen[op.stirrer] = max(self.seen[op.stirrer], op.end)
        self._recent.append(op)

    def _note_livepatch(self, op: Op, step: Any, known: Known) -> None:
        before = known.time.last
        if op.errno:
            # The first functions of several were patched before the one that refused.
            if isinstance(step, Attach) and len(step.functions) > 1:
                known.time.step(op.begin, op.end, frozenset({TRYING}), before)
            elif isinstance(step, Detach) and op.errno == errno.EWOULDBLOCK:
                known.time.step(op.begin, op.end, frozenset({DISABLING}), frozenset({OFF}))
            elif isinstance(step, Enable | Disable) and op.errno == errno.ENOENT:
                known.time.step(op.begin, op.end, frozenset(), frozenset({OFF}))
            return
        after: set[str]
        if isinstance(step, Attach):
            held = self.base.holds(step.functions) and not self._released
            meanwhile = ENABLING
            after = {ENABLING} if held else {ON} if step.wait else {ENABLING, ON}
            # One that replaces all others may have begun after this one had ended.
            if any(self.replaces(other) for other in self.beside(op)):
                after.add(OFF)
        elif isinstance(step, Detach):
            meanwhile, after = DISABLING, {GONE}
        elif isinstance(step, Disable):
            meanwhile, after = DISABLING, {OFF} if step.wait else {DISABLING, OFF}
        elif isinstance(step, Enable):
            meanwhile, after = ENABLING, {ON} if step.wait else {ENABLING, ON}
        else:
            ends = {ENABLING: ON, DISABLING: OFF}
            meanwhile, after = ON, {ends.get(value, value) for value in before}
        known.time.step(op.begin, op.end, frozenset({meanwhile}), frozenset(after))
        if self.replaces(op):
            self._displace(op, step)

    def replaces(self, op: Op) -> bool:
        """Whether it brought a livepatch that takes the place of all others."""
        step = self.step(op)
        return isinstance(step, Attach) and step.attacher == "livepatch-replace" and not op.errno

    def _displace(self, op: Op, step: Attach) -> None:
        for known in self.livepatches(step.id):
            before = known.time.between(op.begin, op.end)
            known.time.may(op.begin, frozenset({OFF}), THERE)
            # There all the time, and displaced when the transition ended.
            if step.wait and before == {ON} and known.time.last == {ON, OFF}:
                known.time.step(op.end, op.end, frozenset(), frozenset({OFF}))

    # --- what may be the case while a step is done --------------------------------------------

    def values(self, known: Known, op: Op) -> Values:
        """What an attachment may be at some time during a step."""
        values = known.time.between(op.begin, op.end)
        return values | _ANYTHING if self.unknown(known.owner, op) else values

    def own(self, known: Known, op: Op) -> Values:
        """What a stirrer's own livepatch may be when its step begins, or become meanwhile."""
        values = known.time.before(op.begin)
        # A transition that nobody waited for ends at any time.
        ends = {ENABLING: ON, DISABLING: OFF}
        values |= {ends[value] for value in values & PENDING}
        displaced = any(self.replaces(other) for other in self.beside(op))
        return values | {OFF} if displaced and values & THERE else values

    def split(self, op: Op, some: Sequence[Known]) -> tuple[list[Known], list[Known]]:
        """Of some attachments those that certainly are there throughout, and that may be."""
        certain, possible = [], []
        for known in some:
            values = self.values(known, op)
            if values <= CERTAIN:
                certain.append(known)
            elif values & THERE:
                possible.append(known)
        return certain, possible

    def switch(self, time: Timeline, owners: frozenset[int], values: Values, op: Op) -> Values:
        """What the sysctl or the module, whose ``values`` these are, may be during a step."""
        behind = any(self.unknown(owner, op) for owner in owners)
        return values if behind else time.between(op.begin, op.end)

    def unknown(self, owner: int, op: Op) -> bool:
        """Whether a stirrer may have done a step at the same time of which nothing was told."""
        if owner < 0 or owner == op.stirrer or self.seen[owner] >= op.end:
            return False
        return not self.finished or owner in self.stuck or not self.back(owner)

    def back(self, owner: int) -> bool:
        """Whether what a stirrer moves is as it was at first."""
        return all(k.time.last & k.first for k in self.known.values() if k.owner == owner)

    def beside(self, op: Op) -> Iterator[Op]:
        """Steps of others at the same time."""
        for other in self._recent:
            if other.stirrer != op.stirrer and other.begin <= op.end and other.end >= op.begin:
                yield other

    def doing(self, op: Op) -> Iterator[Step | TraceAll]:
        """What others do, or may do, at the same time."""
        for other in self.beside(op):
            yield self.step(other)
        for number, one in enumerate(self.stirrers):
            if self.unknown(number, op):
                yield from one.steps

    def forget(self, horizon: float) -> None:
        """No step that began before that time is asked about any more."""
        while self._recent and self._recent[0].end < horizon:
            self._recent.popleft()
        for time in (self.ftrace, self.module, *(k.time for k in self.known.values())):
            time.forget(horizon)
