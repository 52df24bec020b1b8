# SPDX-License-Identifier: GPL-2.0-only
"""A run of the whole policy, made up: all pairs and many triples, in groups, in lockstep.

The world of sample_events stands in for the kernel; kinds that it does not know
attach beside anything.  ACCIDENTS says which groups go wrong and how.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from sample_events import NEW, Event, Recorder, World

ATTACHERS = (
    "livepatch", "direct", "direct-share", "fentry", "fexit", "fmod_ret", "ipmodify", "ops",
    "ops-regs", "kprobe", "kprobe-post", "kretprobe", "fprobe", "fprobe-exit", "kprobe-multi",
    "function-tracer", "function-graph", "instance",
)  # fmt: skip
GROUP = 64


@dataclass(frozen=True)
class Wanted:
    """A scenario: who comes in which order, and who leaves in which (places in ``arrival``)."""

    name: str
    arrival: tuple[str, ...]
    steps: tuple[Event, ...]


def wanted(members: Sequence[str], attach: Sequence[int], detach: Sequence[int]) -> Wanted:
    """After each departure, who was refused and has yet to leave tries again."""
    ids = "abc"[: len(members)]
    function = "security_cohabit_000"

    def attaching(n: int) -> Event:
        return {"do": "attach", "id": ids[n], "attacher": members[n], "functions": [function]}

    steps: list[Event] = [attaching(n) for n in attach]
    for place, n in enumerate(detach):
        steps.append({"do": "detach", "id": ids[n]})
        later = [m for m in attach if m in detach[place + 1 :] and m != attach[0]]
        steps += [{**attaching(m), "unless_attached": True} for m in later]
    orders = ("".join(ids[n] for n in order) for order in (attach, detach))
    name = "+".join(members) + "/attach:{}/detach:{}".format(*orders)
    return Wanted(name, tuple(members[n] for n in attach), tuple(steps))


def pairs(attachers: Sequence[str] = ATTACHERS) -> Iterator[Wanted]:
    for members in itertools.combinations_with_replacement(attachers, 2):
        attaches = [(0, 1)] if members[0] == members[1] else [(0, 1), (1, 0)]
        for attach, detach in itertools.product(attaches, ((0, 1), (1, 0))):
            yield wanted(members, attach, detach)


def triples(sets: int, attachers: Sequence[str] = ATTACHERS) -> Iterator[Wanted]:
    """36 orders of each of the first ``sets`` sets of three."""
    for members in itertools.islice(itertools.combinations(attachers, 3), sets):
        orders = list(itertools.permutations(range(3)))
        for attach, detach in itertools.product(orders, orders):
            yield wanted(members, attach, detach)


class PolicyRun:
    """Builds a run on one kernel; ``events`` is the result.

    ``failing`` names scenarios whose second attach gives a wrong errno;
    ``accidents`` maps a group's number to (verdict, whether it is seen again alone).
    """

    def __init__(
        self,
        scenarios: Iterable[Wanted],
        failing: Iterable[str] = (),
        accidents: Mapping[int, tuple[str, bool]] = {},
        kernels: Sequence[str] = (NEW,),
    ) -> None:
        self.rec = Recorder()
        self.failing = frozenset(failing)
        self.scenarios = list(scenarios)
        self.groups = 0
        self.vms = 0
        self.rec.emit(
            "run_start", format=1, cohabit="0.1.0", argv=["cohabit", "run", "policy"],
            started="2026-11-21T11:50:00Z", planned=len(self.scenarios) * len(kernels),
            host={"system": "Linux x86_64", "cpus": 2, "memory_mb": 24105},
        )  # fmt: skip
        for self.kernel in kernels:
            self._kernel(accidents)

    @property
    def events(self) -> list[Event]:
        return self.rec.events

    def end(self) -> list[Event]:
        self.rec.emit("run_end", counts={}, steps=0, exit_status=0, interrupted=False)
        return self.events

    def _kernel(self, accidents: Mapping[int, tuple[str, bool]]) -> None:
        kernel = self.kernel
        self.rec.emit(
            "kernel", kernel=kernel, reference=f"debian:{kernel.split('-cloud')[0]}",
            release=kernel, arch="x86_64", origin="Debian package linux-image, signed repository",
            profile="v6.12", profile_why="release 6.12 >= 6.0",
        )  # fmt: skip
        self._boot()
        shapes: dict[int, list[Wanted]] = {}
        for scenario in self.scenarios:
            shapes.setdefault(len(scenario.arrival), []).append(scenario)
        for alike in shapes.values():
            for begin in range(0, len(alike), GROUP):
                self._group(alike[begin : begin + GROUP], accidents.get(self.groups))
        self.rec.emit("vm_end", vm=self.vm, reason="done")

    def _boot(self) -> None:
        self.vm = f"vm{self.vms}"
        self.vms += 1
        self.rec.emit(
            "vm_start", vm=self.vm, kernel=self.kernel, engine="virtme", accel="tcg",
            accel_why="no /dev/kvm", qemu="10.0.2", cpu="max", cpus=1, memory_mb=1024,
            command=["qemu-system-x86_64"],
        )  # fmt: skip
        self.rec.emit("vm_ready", after=6.2, vm=self.vm, boot_s=6.2, facts={"release": self.kernel})

    def _group(self, members: Sequence[Wanted], accident: tuple[str, bool] | None) -> None:
        group = f"{self.vm}:g{self.groups}"
        self.groups += 1
        lanes = [_Lane(w, n, f"{self.kernel}/{w.name}#1") for n, w in enumerate(members)]
        self.rec.emit(
            "group_start", group=group, vm=self.vm, kernel=self.kernel,
            scenarios=[lane.id for lane in lanes],
        )  # fmt: skip
        for lane in lanes:
            self._start(lane, group=group)
        for index in range(max(len(lane.steps) for lane in lanes)):
            if accident and index == 2:
                self._accident(group, lanes, *accident)
                return
            self._phase(lanes, index)
        for lane in lanes:
            self._end(lane)
        self.rec.emit("group_end", group=group, verdict="PASS", reason="")

    def _accident(self, group: str, lanes: list[_Lane], verdict: str, again: bool) -> None:
        reason = "WARNING at kernel/trace/ftrace.c:2109"
        for lane in lanes:
            self.rec.emit(
                "scenario_regroup", scenario=lane.id, reason=f"{verdict} in group {group}: {reason}"
            )
        self.rec.emit("group_end", group=group, verdict=verdict, reason=reason)
        self.rec.emit(
            "vm_end", vm=self.vm, reason="died", verdict=verdict, detail=reason,
            console_tail=["the console's last line"],
        )  # fmt: skip
        self._boot()
        for n, lane in enumerate(lanes):
            alone = _Lane(lane.wanted, lane.number, f"{lane.id}#alone")
            self._start(alone)
            for index in range(len(alone.steps)):
                self._phase([alone], index)
            if again and n == 0:
                self.rec.emit(
                    "scenario_end", scenario=alone.id, verdict=verdict, reason=f"{reason}, alone"
                )
            else:
                self._end(alone)

    def _start(self, lane: _Lane, **keys: str) -> None:
        self.rec.emit(
            "scenario_start", after=0.0, scenario=lane.id, name=lane.wanted.name,
            kernel=self.kernel, vm=self.vm, profile="v6.12", attempt=1, functions=[lane.function],
            steps=list(lane.steps), matrix=list(lane.wanted.arrival),
            attachers=list(lane.wanted.arrival), **keys,
        )  # fmt: skip

    def _phase(self, lanes: list[_Lane], index: int) -> None:
        live = [lane for lane in lanes if index < len(lane.steps) and not lane.ended]
        doing = []
        for lane in live:
            step = lane.steps[index]
            if not lane.applies(step):
                self.rec.emit("step_skip", after=0.0, scenario=lane.id, index=index)
                continue
            seen = lane.act(step)
            predicted = json.loads(json.dumps(seen)) | {"errno": [seen["errno"]], "log": []}
            self.rec.emit(
                "step_start", after=0.0, scenario=lane.id, index=index, step={**step, "slot": 0},
                predicted=predicted,
            )  # fmt: skip
            doing.append((lane, seen))
        self.rec.t += 0.4
        for lane, seen in doing:
            mismatches: list[Event] = []
            if lane.wanted.name in self.failing and index == 1:
                lane.ended = True
                mismatches = [
                    {
                        "witness": "errno", "what": "attach", "expected": "0",
                        "seen": "EBUSY (16)", "rule": "one-ipmodify",
                    }
                ]  # fmt: skip
                seen["errno"] = 16
            self.rec.emit(
                "step_end", after=0.0, scenario=lane.id, index=index, observed=seen,
                mismatches=mismatches, registry_text=lane.world.text(),
                log=[{"level": 6, "t": 12.25, "text": "cohabit: done"}],
                agent_s=0.0063, group_s=0.4, user_s=0.0031, host_s=0.41,
            )  # fmt: skip

    def _end(self, lane: _Lane) -> None:
        verdict, reason = "PASS", ""
        if lane.ended:
            verdict, reason = "FAIL", "errno: attach: expected 0, saw EBUSY (16)"
        self.rec.emit("scenario_end", after=0.0, scenario=lane.id, verdict=verdict, reason=reason)


class _Lane:
    """One scenario on a function of its own."""

    def __init__(self, wanted: Wanted, number: int, identity: str) -> None:
        self.wanted, self.number, self.id = wanted, number, identity
        self.function = f"security_cohabit_{number:03}"
        self.steps = [
            {**s, "functions": [self.function]} if "functions" in s else s for s in wanted.steps
        ]
        self.world = World(False, self.function)
        self.ended = False

    def applies(self, step: Event) -> bool:
        attached = step["id"] in self.world.attached
        return (
            attached if step["do"] == "detach" else not (step.get("unless_attached") and attached)
        )

    def act(self, step: Event) -> Event:
        """Does the step; returns the witnesses."""
        if step["do"] == "detach":
            del self.world.attached[step["id"]]
            return self.world.witness(0)
        return self.world.witness(self.world.attach(step["id"], step["attacher"]))


def failing_name() -> str:
    """A triple among the first ones."""
    return "livepatch+direct+fentry/attach:acb/detach:bca"


def full_policy(
    sets: int = 14,
    failing: Iterable[str] = (),
    accidents: Mapping[int, tuple[str, bool]] = {},
) -> list[Event]:
    """648 pairs and 36 orders of each of ``sets`` sets of three, on one kernel."""
    return PolicyRun([*pairs(), *triples(sets)], failing, accidents).end()


PAIR = "livepatch+direct/attach:ab/detach:ba"


def troubled_policy() -> list[Event]:
    """The same with a pair and a triple that fail, and two accidents.

    That of group 3 is not seen again when its members run alone; that of group 12 is.
    """
    return full_policy(
        failing=[failing_name(), PAIR], accidents={3: ("SPLAT", False), 12: ("CRASH", True)}
    )
