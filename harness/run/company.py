# SPDX-License-Identifier: GPL-2.0-only
"""Scenarios in step: each on functions of its own, the same act for all at a time.

Equal attachments of one step become one attachment over many functions, so that its
grace period, or its livepatch transition, is paid once.  One scenario alone is a
company of one.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness import oracle
from harness.oracle import Mismatch, Observation
from harness.policy.acts import Act, planned, transition
from harness.policy.attachers import ATTACHERS
from harness.policy.predict import Prediction, applies, witnesses
from harness.policy.profile import Profile
from harness.policy.refusals import refusal
from harness.policy.state import State
from harness.scenario.functions import FUNCTIONS
from harness.scenario.steps import (
    Attach,
    Call,
    Detach,
    Hold,
    Release,
    Scenario,
    Step,
    Stir,
    Unload,
)

from .record import Record
from .stirring import Ask, Hang, Stirring


@dataclass
class Member:
    """One scenario of a company; ``prefix`` sets its ids apart from those of others."""

    scenario: Scenario
    identity: str
    attempt: int = 1
    prefix: str = ""
    mismatches: tuple[Mismatch, ...] = ()
    #: Why nothing can be said, although nothing contradicts.
    untrusted: tuple[str, ...] = ()
    #: The step that they contradict, as known differences have it.
    failed: str = ""
    last: Prediction | None = None
    #: How it ended, "" as long as it did not.
    verdict: str = ""

    def step(self, index: int) -> Step:
        """A step with an id that is its own in the whole company."""
        step = self.scenario.steps[index]
        identity = getattr(step, "id", None)
        if not self.prefix or identity is None:
            return step
        return dataclasses.replace(step, id=self.prefix + identity)

    def local(self, identity: str) -> str:
        """An id as the scenario has it."""
        return identity.removeprefix(self.prefix)


@dataclass
class _Planned:
    """One act for the agent, the members it is for, and what it must give."""

    json: dict[str, Any]
    members: list[Member]
    expected: Act


def _never(words: str) -> None:
    raise AssertionError(words)


class SharedTroubleError(Exception):
    """Something went wrong that is nobody's own: what, as a mismatch."""

    def __init__(self, mismatch: Mismatch) -> None:
        super().__init__(str(mismatch))
        self.mismatch = mismatch


@dataclass
class Company:
    """Runs its members' steps in lockstep.

    ``state`` is what the model believes of the whole kernel; ``splats`` the kernel's
    reports that no step was meant to cause (``reports`` finds them in a reply).
    ``group`` is empty for one scenario alone; ``hang`` and ``slowdown``: as in Stirring, for
    one that stirs.  ``run`` raises SharedTroubleError when
    more than one member is concerned, and whatever ``ask`` raises.
    """

    members: Sequence[Member]
    profile: Profile
    record: Record
    ask: Ask
    reports: Callable[[Mapping[str, Any]], list[str]]
    state: State
    group: str = ""
    hang: Hang = _never
    slowdown: float = 1.0
    splats: list[str] = field(default_factory=list)
    #: What the registry's grammar did not understand.
    unknown: set[str] = field(default_factory=set)
    #: The step that is being done (None: none was begun), and who does it.
    index: int | None = None
    acting: Sequence[Member] = ()
    #: The agent's id of each attachment of the model's.
    _names: dict[str, str] = field(default_factory=dict)

    @property
    def functions(self) -> list[str]:
        """All functions that are looked at."""
        return [f for m in self.members for f in m.scenario.functions]

    def run(self) -> None:
        """Does all steps; a member whose own witness contradicts drops out."""
        for index in range(len(self.members[0].scenario.steps)):
            acting = []
            for member in self.members:
                if member.mismatches:
                    continue
                step = member.step(index)
                if applies(self.state, step):
                    acting.append((member, step))
                else:
                    self.record.event("step_skip", scenario=member.identity, index=index)
            if acting:
                self._phase(index, acting)
            if self.splats or all(m.mismatches for m in self.members):
                return

    # --- planning ---------------------------------------------------------------------------

    def _phase(self, index: int, acting: list[tuple[Member, Step]]) -> None:
        self.index, self.acting = index, [member for member, _ in acting]
        stirring = self._stirring(index, *acting[0])
        plan = self._plan(index, acting)
        predictions: dict[str, Prediction] = {}
        for planned_act in plan:
            for member in planned_act.members:
                predictions[member.identity] = self._predict(member, planned_act.expected)
        for member, _ in acting:
            self.record.event(
                "step_start",
                scenario=member.identity,
                index=index,
                step=self._told(member, index, plan),
                predicted={
                    **predictions[member.identity].to_json(),
                    **({"stirred": stirring.expected.to_json()} if stirring else {}),
                },
            )
        sent = time.monotonic()
        if stirring:
            reply = stirring.run(self.functions)
            reply["host_s"] = time.monotonic() - sent
            self._judge(index, plan, predictions, reply, stirring)
            return
        context = next((s.context for _, s in acting if isinstance(s, Call)), "process")
        reply = self.ask(
            op="acts",
            acts=[p.json for p in plan],
            functions=self.functions,
            context=context,
            watch=any(m.scenario.watch for m, _ in acting),
            **({"sites": True} if any(m.scenario.reach for m, _ in acting) else {}),
        )
        reply["host_s"] = time.monotonic() - sent
        self._judge(index, plan, predictions, reply)

    def _stirring(self, index: int, member: Member, step: Step) -> Stirring | None:
        """How a step is done that is no act; it is always alone."""
        if not isinstance(step, Stir):
            return None
        return Stirring(
            member.identity, index, step, self.state, self.profile, self.record, self.ask,
            self.hang, member.scenario.cpus, self.slowdown,
        )  # fmt: skip

    def _plan(self, index: int, acting: list[tuple[Member, Step]]) -> list[_Planned]:
        """The acts of a phase; the state is moved on past them."""
        bundles: dict[tuple[str, ...], list[tuple[Member, Step]]] = {}
        for member, step in acting:
            bundles.setdefault(self._bundle(member, step), []).append((member, step))
        # First what must be refused: it needs a free slot for as long as it is tried.
        first = sorted(bundles, key=lambda key: key[0] != "one")
        return [self._act(index, bundles[key]) for key in first]

    def _bundle(self, member: Member, step: Step) -> tuple[str, ...]:
        """What is done by one act has the same key."""
        if isinstance(step, Attach):
            kind = ATTACHERS[step.attacher]
            # A trampoline is told which function it serves by a lane's first argument only.
            told = kind.family != "direct" or FUNCTIONS[step.functions[0]].lane is not None
            welcome = refusal(self.state, planned(self.state, step), self.profile) is None
            if welcome and told and not kind.single:
                return ("attach", step.attacher, "far" if step.far else "")
        if isinstance(step, Detach):
            return ("detach", self._names.get(step.id, step.id))
        return ("one", member.identity)

    def _act(self, index: int, bundle: list[tuple[Member, Step]]) -> _Planned:
        step = bundle[0][1]
        json = step.to_json()
        before = self.state
        slot: int | None = None
        if isinstance(step, Attach):
            functions = tuple(f for _, s in bundle if isinstance(s, Attach) for f in s.functions)
            slot = before.free_slot(step.attacher, functions)
            name = step.id if len(bundle) == 1 else f"{self.group}:{index}:{step.attacher}"
            json = {
                "do": "attach", "id": name, "attacher": step.attacher,
                "functions": list(functions), "slot": slot,
            }  # fmt: skip
            if step.far:
                json["far"] = True
            if step.attacher == "livepatch-replace":
                json.update(attacher="livepatch", replace=True)
            self._names.update({s.id: name for _, s in bundle if isinstance(s, Attach)})
        elif isinstance(step, Detach):
            json["id"] = self._names.get(step.id, step.id)
        steps = [one for _, one in bundle]
        if isinstance(step, Detach):
            # Those of members that have dropped out leave too.
            ids = [a.id for a in before.attached if self._names.get(a.id, a.id) == json["id"]]
            leaving = {one.id for one in steps if isinstance(one, Detach)}
            steps += [Detach(i) for i in ids if i not in leaving]
        expected: Act | None = None
        for one in steps:
            act, self.state = transition(self.state, one, self.profile, slot)
            expected = expected or act
        assert expected is not None
        json.update(self._waiting(before, step, expected))
        return _Planned(json, [m for m, _ in bundle], expected)

    def _waiting(self, before: State, step: Step, expected: Act) -> dict[str, Any]:
        """How long the agent shall wait for what the kernel does by itself.

        Only a wait: what comes of it is looked at afterwards all the same.
        """
        if isinstance(step, Hold | Attach) and self.state.pending():
            return {"wait": False}
        if isinstance(step, Release):
            return {"wait": before.pending() is not None}
        if isinstance(step, Detach | Unload) and expected.errno:
            return {"patience": 0.0}
        return {}

    def _told(self, member: Member, index: int, plan: list[_Planned]) -> dict[str, Any]:
        """The step as the record has it: the scenario's own, with the slot that was used."""
        step: dict[str, Any] = member.scenario.steps[index].to_json()
        for planned_act in plan:
            if member in planned_act.members and "slot" in planned_act.json:
                step["slot"] = planned_act.json["slot"]
        return step

    def _predict(self, member: Member, act: Act) -> Prediction:
        scenario = member.scenario
        found = witnesses(self.state, act, scenario.functions, self.profile, scenario.reach)
        if not member.prefix:
            return found
        local = {}
        for function, behaviour in found.behaviour.items():
            local[function] = dataclasses.replace(
                behaviour,
                hits={member.local(i): n for i, n in behaviour.hits.items()},
                # Of an attachment over many functions nobody can say (before 7.0).
                shares={},
                via={member.local(i): n for i, n in behaviour.via.items()},
            )
        return dataclasses.replace(found, behaviour=local)

    # --- judging ----------------------------------------------------------------------------

    def _judge(
        self,
        index: int,
        plan: list[_Planned],
        predictions: Mapping[str, Prediction],
        reply: dict[str, Any],
        stirring: Stirring | None = None,
    ) -> None:
        seen = oracle.observation(reply)
        titles = self.reports(reply)
        self.unknown |= {piece for r in seen.registry.records for piece in r.unknown}
        expected = plan[0].expected
        shared_prediction = dataclasses.replace(
            next(iter(predictions.values())),
            log=tuple(text for p in plan for text in p.expected.log),
            rule=expected.rule,
        )
        self.splats += oracle.unexpected(shared_prediction, titles)
        shared = list(
            oracle.compare_shared(
                shared_prediction, dataclasses.replace(seen, findings=titles), self.functions
            )
        )
        number = sum(len(p.members) for p in plan)
        for planned_act, result in zip(plan, reply["results"], strict=True):
            expected_errno = planned_act.expected.errno
            nobodys = len(planned_act.members) > 1 and result["errno"] != expected_errno
            if nobodys:
                shared.append(self._merged_errno(planned_act, result))
            for member in planned_act.members:
                own = self._own(member, seen, result)
                if stirring:
                    own = dataclasses.replace(own, stirred=stirring.result)
                prediction = predictions[member.identity]
                found = [*oracle.compare_own(prediction, own, member.scenario.functions)]
                found += oracle.compare_watched(
                    member.last, prediction, own, member.scenario.functions
                )
                member.last = prediction
                if stirring:
                    found = [*stirring.mismatches, *found]
                    member.untrusted = stirring.untrusted
                if not self.group:
                    found += shared
                # Each of them has to be seen alone.
                member.mismatches = () if nobodys else tuple(found)
                if member.mismatches:
                    member.failed = _named(member.step(index))
                self.record.event(
                    "step_end",
                    scenario=member.identity,
                    index=index,
                    observed=own.to_json(),
                    mismatches=[m.to_json() for m in found],
                    registry_text=self._text(member, seen, reply),
                    log=list(seen.log) if not self.group or found or shared else [],
                    agent_s=round(reply["agent_s"] / number, 5),
                    user_s=round(reply["user_s"] / number, 5),
                    host_s=round(reply["host_s"] / number, 5),
                    **({"group_s": round(reply["agent_s"], 4)} if self.group else {}),
                )
        if self.group and shared and not self.splats:
            raise SharedTroubleError(shared[0])

    @staticmethod
    def _merged_errno(planned_act: _Planned, result: Mapping[str, Any]) -> Mismatch:
        return Mismatch(
            "errno",
            f"{planned_act.json['do']} of {planned_act.json['id']} for "
            f"{len(planned_act.members)} scenarios",
            oracle.errno_text(planned_act.expected.errno),
            oracle.errno_text(int(result["errno"])),
            planned_act.expected.rule.name,
        )

    def _own(self, member: Member, seen: Observation, result: Mapping[str, Any]) -> Observation:
        """What the witnesses said of one member's functions, with the ids of its scenario."""
        mine: dict[tuple[str, str], str] = {}
        for attached in self.state.attached:
            if attached.id.startswith(member.prefix):
                for function in attached.functions:
                    name = self._names.get(attached.id, attached.id)
                    mine[name, function] = member.local(attached.id)
        calls = {}
        for function in member.scenario.functions:
            call = seen.calls[function]
            named = {mine.get((i, function), i): stat for i, stat in call["seen"].items()}
            calls[function] = {**call, "seen": named}
        held = result.get("held")
        return dataclasses.replace(
            seen,
            calls=calls,
            errno=int(result["errno"]),
            remark=str(result["remark"]),
            held=held["body"] if held else None,
        )

    def _text(self, member: Member, seen: Observation, reply: Mapping[str, Any]) -> str:
        """The registry as it was; of a company, what it says of one member's functions."""
        if not self.group:
            return str(reply["enabled_functions"] or "")
        records = (seen.record(f) for f in member.scenario.functions)
        return "\n".join(r.raw for r in records if r)


def _named(step: Step) -> str:
    """What a step does, and for an attach with what."""
    data = step.to_json()
    return f"{data['do']} {data.get('attacher', '')}".strip()
