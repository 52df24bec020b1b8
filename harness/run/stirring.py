# SPDX-License-Identifier: GPL-2.0-only
"""A ``stir`` step on its way: the agent is told to begin, asked how far it is, told to end."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness import consistency
from harness.consistency import Expected
from harness.errno_names import name as errno_name
from harness.oracle import Mismatch
from harness.policy import concurrent
from harness.policy.attachers import ATTACHERS
from harness.policy.concurrent import Phase
from harness.policy.opsjudge import OpMismatch, OpsJudge
from harness.policy.profile import Profile
from harness.policy.slots import stirred_slots
from harness.policy.state import State
from harness.scenario.steps import Attach, Stir, TraceAll

from .greeting import PATIENCE
from .record import Record

#: Sends a request to the agent: the operation's arguments.
Ask = Callable[..., dict[str, Any]]
#: Ends the target for a stirrer that hangs; raises.
Hang = Callable[[str], None]

#: Seconds between two looks at how far it is, and between two events about it.
LOOK, TELL = 2.0, 10.0
#: Seconds on a fast machine by which an end may be late.
_STRAGGLE = 10.0
#: So many of the stirrers' steps are remembered, more than a stir makes in the seconds that it
#: goes on after a wrong call; and seconds by which a call ends after what it met.
_REMEMBERED, _BEFORE = 8192, 0.01
#: Of contradictions of one step so many kinds are told.
_TOLD = 5
#: A tracer on all functions is tens of thousands of call sites: so many times the usual patience.
_ALL_FUNCTIONS = 20.0
#: The kernel has a second for each task in a transition that it has to wake (kernel/livepatch).
_TRANSITION = 10.0


def agents_form(state: State, stir: Stir, profile: Profile) -> dict[str, Any]:
    """The step as the agent has it: slots chosen, and what calls may meet at each step."""
    slots = stirred_slots(state, stir.stirrers)
    # Of what is hammered only: nobody else looks.
    phases = concurrent.phases(state, stir.stirrers, profile, stir.hammered)
    stirrers = [
        {
            "name": stirrer.name,
            "rest": stirrer.rest,
            "steps": [
                {**_act(step, slots), **_phase(phase)}
                for step, phase in zip(stirrer.steps, steps, strict=True)
            ],
        }
        for stirrer, steps in zip(stir.stirrers, phases, strict=True)
    ]
    return {**stir.to_json(), "stirrers": stirrers, "at_least": stir.at_least}


def _act(step: Any, slots: Mapping[str, int]) -> dict[str, Any]:
    """As Company makes acts of steps; with patience for what takes the kernel long."""
    json: dict[str, Any] = step.to_json()
    if isinstance(step, Attach):
        json = {
            "do": "attach", "id": step.id, "attacher": step.attacher,
            "functions": list(step.functions), "slot": slots[step.id],
        }  # fmt: skip
        if step.far:
            json["far"] = True
        if step.attacher == "livepatch-replace":
            json.update(attacher="livepatch", replace=True)
        if not step.wait:
            json["wait"] = False
    return json


def _phase(phase: Mapping[str, Phase]) -> dict[str, Any]:
    """What is right on each function during the step, and after it."""
    if not phase:
        return {}
    monotonic = {f: ["monotonic"] if one.monotonic else [] for f, one in phase.items()}
    return {
        "during": {f: sorted(one.during) + monotonic[f] for f, one in phase.items()},
        "after": {f: sorted(one.after) for f, one in phase.items()},
    }


def patience(stir: Stir) -> float:
    """Seconds on a fast machine that a stirrer's step may take."""
    found = PATIENCE
    if any(isinstance(s, Attach) and ATTACHERS[s.attacher].ops == "livepatch" for s in stir.steps):
        found = max(found, _TRANSITION)
    if any(isinstance(s, TraceAll) for s in stir.steps):
        found = max(found, _ALL_FUNCTIONS)
    return found


@dataclass
class Stirring:
    """One stir step: ``run`` does it and leaves what came of it in ``result``, ``mismatches``
    and ``untrusted`` (see harness.consistency.Judgement).

    ``before`` is the state in which it begins; ``ask`` as in Company, ``hang`` is called
    with words for a stirrer that does not come to its end; ``cpus``: those of the scenario.
    """

    scenario: str
    index: int
    stir: Stir
    before: State
    profile: Profile
    record: Record
    ask: Ask
    hang: Hang
    cpus: int
    slowdown: float = 1.0
    expected: Expected = field(init=False)
    result: dict[str, Any] = field(default_factory=dict)
    mismatches: tuple[Mismatch, ...] = ()
    untrusted: tuple[str, ...] = ()
    _told: float = 0.0

    def __post_init__(self) -> None:
        self.expected = consistency.expect(self.before, self.stir, self.profile, self.cpus)
        self._judge = OpsJudge(self.before, self.stir.stirrers, self.profile)
        self._wrong: list[OpMismatch] = []
        self._steps: deque[Sequence[Any]] = deque(maxlen=_REMEMBERED)

    def run(self, functions: list[str]) -> dict[str, Any]:
        """Does it; gives the agent's reply to the end of it, an observation of ``functions``."""
        waits = patience(self.stir)
        self.ask(
            op="stir",
            step=agents_form(self.before, self.stir, self.profile),
            functions=functions,
            allowed={f: sorted(bodies) for f, bodies in self.expected.allowed.items()},
            patience=waits * self.slowdown,
        )
        self._wait(waits)
        reply = self.ask(op="acts", acts=[{"do": "stir-end"}], functions=functions, waits=waits)
        self._end(reply["results"][0]["stirred"])
        return reply

    def _wait(self, waits: float) -> None:
        """Until it is over; a stirrer that is stuck, or a limit that is long past, hangs."""
        limit = self.stir.seconds + 3 * waits * self.slowdown
        began = time.monotonic()
        while True:
            reply = self.ask(op="stirred", wait=LOOK)
            self._feed(reply["ops"])
            self._tell(reply)
            if stuck := reply.get("stuck"):
                self.hang(f"stirring: {self._stuck(stuck)} does not end")
            if reply["over"]:
                return
            if time.monotonic() - began > limit + self.slowdown * _STRAGGLE:
                rounds = ", ".join(f"{n} of {name}" for name, n in reply["rounds"].items())
                self.hang(f"stirring does not end: {reply['elapsed']:.0f} s, rounds: {rounds}")

    @staticmethod
    def _stuck(names: Any) -> str:
        listed = names.items() if isinstance(names, Mapping) else ((n, "") for n in names)
        return ", ".join(f"{name} {words}".strip() for name, words in listed)

    def _tell(self, reply: Mapping[str, Any]) -> None:
        """On the terminal each time, in the record now and then."""
        now = time.monotonic()
        values = {
            "scenario": self.scenario,
            "index": self.index,
            **{key: reply[key] for key in ("calls", "patches", "rounds", "elapsed")},
        }
        if now - self._told >= TELL or reply["over"]:
            self._told = now
            self.record.event("stir_progress", **values)
        else:
            self.record.passing("stir_progress", **values)

    def _end(self, stirred: Mapping[str, Any]) -> None:
        self._feed(stirred.get("ops") or ())
        self._wrong += self._judge.finish()
        self.result = {key: value for key, value in stirred.items() if key != "ops"}
        self.result["seed"] = self.stir.seed
        for thread in self.result["hammers"]:
            if first := thread["first"]:
                first["meanwhile"] = self._meanwhile(float(first["t"]))
        judged = consistency.judge(self.expected, self.result)
        self.mismatches = (*judged.mismatches, *self._errnos())
        self.untrusted = judged.untrusted

    def _feed(self, ops: Iterable[Sequence[Any]]) -> None:
        told = list(ops)
        self._steps += told
        self._wrong += self._judge.feed(told)

    def _meanwhile(self, at: float) -> list[str]:
        """What stirrers did when a call ended, the shortest first."""
        under_way = [op for op in self._steps if op[3] <= at and at - _BEFORE <= op[4]]
        found = []
        for stirrer, step, error, begin, end in sorted(under_way, key=lambda op: op[4] - op[3]):
            one = self.stir.stirrers[stirrer]
            found.append(
                f"{one.name}: {one.steps[step]}: {errno_name(error) if error else 'ok'}, "
                f"from {begin:.6f} to {end:.6f} s"
            )
        return found

    def _errnos(self) -> list[Mismatch]:
        """Errnos that nothing explains: of each step the first, and how many there were."""
        alike: dict[tuple[str, str, str], list[OpMismatch]] = {}
        for one in self._wrong:
            alike.setdefault((one.stirrer, one.what, one.seen), []).append(one)
        found = []
        for (stirrer, what, seen), ones in list(alike.items())[:_TOLD]:
            more = f" ({len(ones)} times; the first at {ones[0].at:.6f} s)"
            found.append(
                Mismatch("errno", f"stirrer {stirrer}: {what}", ones[0].expected, seen + more, "")
            )
        return found
