# SPDX-License-Identifier: GPL-2.0-only
"""Recorded runs through the model once more: what does it say otherwise than the kernel did?

Pure: events (docs/events.md) go in.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

from harness import oracle
from harness.ftrace import Registry, parse
from harness.ftrace.site import of_record
from harness.oracle import Mismatch, Observation
from harness.policy.attachers import ATTACHERS
from harness.policy.predict import Prediction, applies
from harness.policy.profile import Profile, Version, choose, release_version
from harness.policy.rules import Rule
from harness.policy.state import State
from harness.run.company import Company, Member
from harness.run.record import Record
from harness.scenario.parse import scenario_from_json
from harness.scenario.steps import Scenario


@dataclass(frozen=True)
class Kernel:
    """A kernel of a run; ``overridden``: it was held to another policy (--profile)."""

    release: str
    profile: Profile
    overridden: bool

    @property
    def arch(self) -> str:
        """The policy name of its architecture."""
        return self.profile.arch

    @property
    def version(self) -> Version:
        """Its release as two numbers."""
        return release_version(self.release)

    def has(self, rule: Rule) -> bool:
        """Whether a rule is about this kernel."""
        return rule.holds(self.arch, self.version) and rule.concerns(self.profile)


@dataclass
class Recorded:
    """One scenario as it was recorded.

    ``seen``: what each step that was done gave, None where the record has no end of it;
    ``marked`` and ``either``: functions whose record was predicted with M, and with
    either kind of call, after each step: what the harness knew of their past.
    """

    scenario: Scenario
    identity: str
    kernel: Kernel
    vm: str
    group: str = ""
    verdict: str = ""
    seen: dict[int, Observation | None] = field(default_factory=dict)
    marked: dict[int, frozenset[str]] = field(default_factory=dict)
    either: dict[int, frozenset[str]] = field(default_factory=dict)
    _attachers: dict[str, str] = field(default_factory=dict)

    @property
    def judged(self) -> bool:
        """Whether the model must agree: whatever else it was, it is reported elsewhere."""
        return self.verdict == "PASS"

    def begin_step(self, event: Mapping[str, Any]) -> None:
        """Takes a step_start."""
        index, step = int(event["index"]), event["step"]
        if step["do"] == "attach":
            self._attachers[step["id"]] = step["attacher"]
        records = {f: r for f, r in event["predicted"]["registry"].items() if r}
        self.seen[index] = None
        self.marked[index] = frozenset(f for f, r in records.items() if "M" in r["flags"])
        self.either[index] = frozenset(f for f, r in records.items() if r["jmp"] is None)

    def end_step(self, event: Mapping[str, Any]) -> None:
        """Takes a step_end."""
        seen = event["observed"]
        self.seen[int(event["index"])] = Observation(
            errno=seen["errno"],
            remark=seen["remark"],
            registry=_registry(event["registry_text"]),
            touched=None,
            calls={f: self._call(b) for f, b in seen["behaviour"].items()},
            livepatch=seen["livepatch"],
            ftrace_enabled=seen["sysctl"]["kernel.ftrace_enabled"],
            log=event["log"],
            log_complete=True,
            held=(seen.get("held") or {}).get("body"),
            sites={f: of_record(site) for f, site in (seen.get("site") or {}).items()},
        )

    def _call(self, behaviour: Mapping[str, Any]) -> dict[str, Any]:
        """The agent's words for what the record has; arguments are not among it."""
        stats: dict[str, dict[str, Any]] = {
            identity: {"hits": hits, "args": []} for identity, hits in behaviour["hits"].items()
        }
        if behaviour["ret"] is not None:
            # The record has what the first of those at the exit saw.
            for identity, stat in stats.items():
                attacher = ATTACHERS.get(self._attachers.get(identity, ""))
                if attacher and attacher.returns and stat["hits"]:
                    stat["ret"] = behaviour["ret"]
                    break
        for identity, share in behaviour.get("shares", {}).items():
            stats.setdefault(identity, {"hits": 0, "args": []})["share"] = share
        for identity, alternate in behaviour.get("via", {}).items():
            stats[identity]["via"] = 8 * alternate
        return {"body": behaviour["body"], "seen": stats}


@functools.lru_cache(maxsize=4096)
def _registry(text: str) -> Registry:
    """Parsed once: of many steps it is the same."""
    return parse(text)


@dataclass
class Gathering:
    """Scenarios that ran side by side, or one alone, and the state that they began in.

    What the whole model makes of it: ``logs`` and ``reports`` of each step, and
    ``asked``, all rules that it needed.
    """

    kernel: Kernel
    group: str
    members: list[Recorded]
    state: State = field(default_factory=State)
    logs: dict[int, tuple[str, ...]] = field(default_factory=dict)
    reports: dict[int, str] = field(default_factory=dict)
    asked: frozenset[str] = frozenset()

    @property
    def names(self) -> list[str]:
        """Of those that are judged."""
        return [m.scenario.name for m in self.members if m.judged]


@dataclass
class Run:
    """What a run's record has of scenarios: those that ran, and the names that were left out."""

    gatherings: list[Gathering] = field(default_factory=list)
    #: (kernel's release, scenario's name) of those that the kernel could not run.
    skipped: set[tuple[str, str]] = field(default_factory=set)
    kernels: dict[str, Kernel] = field(default_factory=dict)


def gathered(events: Iterable[Mapping[str, Any]]) -> Run:
    """A run from its events."""
    run = Run()
    facts: dict[str, Mapping[str, Any]] = {}
    described: dict[str, Mapping[str, Any]] = {}
    found: dict[str, Recorded] = {}
    for event in events:
        kind = event["type"]
        if kind == "kernel":
            described[event["kernel"]] = event
        elif kind == "vm_ready":
            facts[event["vm"]] = event["facts"]
        elif kind == "scenario_start" and event["vm"] is not None:
            release = event["kernel"]
            if release not in run.kernels:
                run.kernels[release] = _kernel(described[release], facts.get(event["vm"], {}))
            found[event["scenario"]] = Recorded(
                scenario_from_json(event), event["scenario"], run.kernels[release],
                event["vm"], event.get("group", ""),
            )  # fmt: skip
        elif (recorded := found.get(event.get("scenario", ""))) is None:
            continue
        elif kind == "step_start":
            recorded.begin_step(event)
        elif kind == "step_end":
            recorded.end_step(event)
        elif kind == "scenario_end":
            recorded.verdict = event["verdict"]
    groups: dict[tuple[str, str], Gathering] = {}
    for recorded in found.values():
        if recorded.verdict == "SKIP":
            run.skipped.add((recorded.kernel.release, recorded.scenario.name))
        elif recorded.seen:
            key = ("group", recorded.group) if recorded.group else ("alone", recorded.identity)
            new = Gathering(recorded.kernel, recorded.group, [])
            groups.setdefault(key, new).members.append(recorded)
    run.gatherings = list(groups.values())
    return run


def _kernel(event: Mapping[str, Any], facts: Mapping[str, Any]) -> Kernel:
    """The kernel with the profile that the run had.

    An old record, of an x86-64 kernel, has no configuration, but what the agent found: there
    all registers can be saved wherever ftrace is dynamic.
    """
    release = event["release"]
    overridden = event["profile_why"] == "--profile"
    config = event.get("config", {})
    if "config" not in event and "livepatch_save_regs" in facts:
        config = {
            "CONFIG_DYNAMIC_FTRACE_WITH_ARGS": "n" if facts["livepatch_save_regs"] else "y",
            "CONFIG_DYNAMIC_FTRACE_WITH_REGS": "y",
            "CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS": "y",
            "CONFIG_KPROBES_ON_FTRACE": "y",
        }
    override = event["profile"] if overridden else None
    profile = choose(release, config, override, event["arch"])
    return Kernel(release, profile, overridden)


# --- through the model ------------------------------------------------------------------------


class OffTrackError(Exception):
    """The model cannot follow the record: a step was done that it says does not apply."""

    def __init__(self, recorded: Recorded, step: object) -> None:
        super().__init__(f"{step}, which the model says does not apply")
        self.recorded = recorded


#: What a model raises that was led where it makes no sense.
_BROKEN = (AssertionError, LookupError, RuntimeError)


@dataclass(frozen=True)
class _Listening(Profile):
    """A whole profile that notes which rules the model asks for."""

    asked: set[str] = field(default_factory=set)

    def has(self, rule: str) -> bool:
        self.asked.add(rule)
        return super().has(rule)


def _nobody(*_args: Any, **_message: Any) -> Any:
    raise AssertionError("a replay asks nobody")


class _Replay(Company):
    """Plans the acts of a record, in its order, as another model would have it."""

    def __init__(self, gathering: Gathering, profile: Profile) -> None:
        self._recorded = gathering.members
        members = [
            Member(r.scenario, r.identity, prefix=f"{n}:" if gathering.group else "")
            for n, r in enumerate(gathering.members)
        ]
        # Nothing is recorded and nobody is asked.
        record = cast(Record, None)
        super().__init__(
            members, profile, record, _nobody, _nobody, gathering.state, gathering.group
        )

    def phases(self) -> Iterator[tuple[int, list[tuple[Recorded, Prediction]], tuple[str, ...]]]:
        """Each step's index, those who did it with their predictions, and all messages.

        Raises OffTrackError.
        """
        for index in range(max(len(m.scenario.steps) for m in self.members)):
            acting = []
            for member, recorded in zip(self.members, self._recorded, strict=True):
                if index in recorded.seen:
                    acting.append((member, member.step(index)))
                    if not applies(self.state, acting[-1][1]):
                        raise OffTrackError(recorded, recorded.scenario.steps[index])
            if not acting:
                continue
            plan = self._plan(index, acting)
            predictions = {
                member.identity: self._predict(member, act.expected)
                for act in plan
                for member in act.members
            }
            done = [(r, predictions[r.identity]) for r in self._recorded if index in r.seen]
            yield index, done, tuple(text for act in plan for text in act.expected.log)


@dataclass(frozen=True)
class Contradiction:
    """What the model says otherwise than the record: in which scenario and step (from 0)."""

    kernel: str
    scenario: str
    index: int
    what: Mismatch

    def __str__(self) -> str:
        return f"{self.kernel}: {self.scenario}, step {self.index + 1}: {self.what}"


def follow(gathering: Gathering) -> list[Contradiction]:
    """Runs the whole model over a gathering; fills in what it makes of it.

    What the functions had behind them when it began is what the harness's own
    predictions say of it.
    """
    profile = _Listening(**vars(gathering.kernel.profile))
    with contextlib.suppress(OffTrackError, *_BROKEN):
        _follow(gathering, profile)
    gathering.asked = frozenset(profile.asked)
    return list(contradictions(gathering, gathering.kernel.profile))


def _follow(gathering: Gathering, profile: _Listening) -> None:
    for _ in range(2):
        marked, stale = set(gathering.state.modified), set(gathering.state.stale_share)
        for index, done, messages in _Replay(gathering, profile).phases():
            gathering.logs[index] = messages
            gathering.reports[index] = "".join(text for _, p in done for text in p.report[:1])
            for recorded, prediction in done:
                profile.asked.add(prediction.rule.name)
                for function, record in prediction.registry.items():
                    if record and "M" not in record.flags and function in recorded.marked[index]:
                        marked.add(function)
                    if record and record.jmp and function in recorded.either[index]:
                        stale.add(function)
        begun = replace(gathering.state, modified=frozenset(marked), stale_share=frozenset(stale))
        if begun == gathering.state:
            return
        gathering.state = begun


def contradictions(gathering: Gathering, profile: Profile) -> Iterator[Contradiction]:
    """What a model with this profile says otherwise than the record, one after the other.

    Needs what ``follow`` filled in.
    """
    release = gathering.kernel.release
    last = next(iter(gathering.names), "")
    try:
        for index, done, messages in _Replay(gathering, profile).phases():
            judged = [(r, p, o) for r, p in done if r.judged and (o := r.seen[index])]
            for recorded, prediction, seen in judged:
                last = recorded.scenario.name
                functions = recorded.scenario.functions
                for mismatch in oracle.compare_own(prediction, seen, functions):
                    yield Contradiction(release, last, index, mismatch)
            for recorded, prediction, seen in judged[:1]:
                shared = replace(prediction, log=messages)
                for mismatch in _compare_shared(gathering, index, recorded, shared, seen):
                    yield Contradiction(release, recorded.scenario.name, index, mismatch)
    except OffTrackError as lost:
        if lost.recorded.judged:
            what = Mismatch("model", "steps", "those that apply", str(lost), "")
            yield Contradiction(release, lost.recorded.scenario.name, -1, what)
    except _BROKEN as broken:
        # A model that has something wrong may come to where no model should, and so may
        # one with the record of another time.
        what = Mismatch("model", "steps", "a model that can follow", repr(broken), "")
        yield Contradiction(release, last, -1, what)


def _compare_shared(
    gathering: Gathering, index: int, recorded: Recorded, prediction: Prediction, seen: Observation
) -> Iterator[Mismatch]:
    """As harness/oracle.py; of messages and reports the record of a company has only that they
    were as predicted."""
    known = gathering.logs[index]
    log = seen.log if not gathering.group else [{"text": text} for text in known]
    report = gathering.reports[index]
    as_seen = replace(seen, log=log, findings=(report,) if report else ())
    yield from oracle.compare_shared(prediction, as_seen, recorded.scenario.functions)
    for text in known:
        if text not in prediction.log:
            yield Mismatch("log", "message", "none", text, prediction.rule.name)
