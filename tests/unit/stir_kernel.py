# SPDX-License-Identifier: GPL-2.0-only
"""model_kernel's kernel with hammers and stirrers on it: all calls are made at once, and right.

``spoil`` may change the result, as an agent has it, before it is told.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from model_kernel import Event, ModelKernel

from harness.policy.acts import transition
from harness.policy.behaviour import behaviour
from harness.policy.profile import choose
from harness.run.record import Record
from harness.run.schedule import Schedule, Work
from harness.scenario.parse import step_from_json
from harness.scenario.steps import Scenario

Spoil = Callable[[Event], None]
_MISSING = {"detach", "modify", "disable", "enable", "release"}


def stirred(
    hammers: Mapping[tuple[str, str], str], calls: int = 1000, cpus: int = 2, **more: Any
) -> Event:
    """A result without fault: each hammer, with the one body that it met, on each CPU."""
    return {
        "elapsed": 12.5,
        "cpus": cpus,
        "patches": 50,
        "patches_by": "text-poke",
        "pokes": 60,
        "windows": 0,
        "inside": 7,
        "inside_most": 3,
        "widen_us": 0,
        "hammers": [
            {
                "function": function, "by": by, "cpu": cpu, "calls": calls,
                "bodies": {body: calls}, "wrong": {}, "first": None,
            }
            for (function, by), body in hammers.items()
            for cpu in range(cpus)
        ],
        "rounds": {},
        "outcomes": {},
        "left": {},
        "throughout": {},
        **more,
    }  # fmt: skip


class StirringKernel(ModelKernel):
    """``asked`` has the ``stir`` requests; ``looks``: how often it is not over yet."""

    def __init__(self, *args: Any, spoil: Spoil | None = None, looks: int = 1) -> None:
        super().__init__(*args)
        self.asked: list[Event] = []
        self.spoil = spoil
        self.looks = looks
        self.stuck: list[str] = []

    def _on_hello(self, **_: Any) -> Event:
        return {**super()._on_hello(), "cpus": 2}

    def _on_stir(self, **request: Any) -> Event:
        self.asked.append(request)
        self._before = self.state
        return {"started": True}

    def _on_stirred(self, wait: float) -> Event:
        step = self.asked[-1]["step"]
        ops = [
            [number, at, error, round(0.1 * at, 6), round(0.1 * at + 0.05, 6)]
            for number, stirrer in enumerate(step["stirrers"])
            for at, error in self._cycle(stirrer)
        ]
        self.looks -= 1
        return {
            "over": self.looks < 0,
            "calls": 4000,
            "patches": 50,
            "rounds": {s["name"]: 1 for s in step["stirrers"]},
            "elapsed": 1.0,
            "ops": sorted(ops, key=lambda op: op[4]) if self.looks == -1 else [],
            **({"stuck": self.stuck} if self.stuck else {}),
        }

    def _cycle(self, stirrer: Event) -> list[tuple[int, int]]:
        """Its steps one after the other, as if nobody else were there; their errnos."""
        state, found = self.state, []
        for at, json in enumerate(stirrer["steps"]):
            if json["do"] == "trace-all":
                found.append((at, 0))
                continue
            step = self._step({k: v for k, v in json.items() if k not in ("during", "after")})
            if json["do"] in _MISSING and state.get(json["id"]) is None:
                continue
            act, state = transition(state, step, self.profile, json.get("slot"))
            found.append((at, act.errno))
        return found

    def _act(self, json: Event) -> Event:
        if json["do"] != "stir-end":
            return super()._act(json)
        step, made = self.asked[-1]["step"], {}
        for hammer in step["hammers"]:
            body = behaviour(self.state, hammer["function"], self.profile).body
            made[hammer["function"], hammer["by"]] = body
        result = stirred(
            made,
            calls=max(1000, step["calls"]),
            patches=max(50, step["patches"]),
            rounds={s["name"]: step["rounds"] for s in step["stirrers"]},
        )
        if step["widen_us"]:
            result |= {"widen_us": step["widen_us"], "windows": 50, "inside": 400}
        for attached in self.state.attached:
            calls = sum(
                h["calls"] for h in result["hammers"] if h["function"] in attached.functions
            )
            if attached.kind.counts and calls:
                result["throughout"][attached.id] = {"hits": calls, "misses": 0, "via": {}}
        # What records remember of it.
        plain = {**step, "stirrers": [_plain(s) for s in step["stirrers"]]}
        _, self.state = transition(self.state, step_from_json(plain), self.profile)
        if self.spoil:
            self.spoil(result)
        done = {"errno": 0, "remark": "", "s": 0.0, "held": None}
        return {**done, "stirred": {**result, "ops": []}}


def _plain(stirrer: Event) -> Event:
    """A stirrer as a scenario has it."""
    steps = []
    for json in stirrer["steps"]:
        step = {k: v for k, v in json.items() if k not in ("during", "after", "slot", "replace")}
        if json.get("replace"):
            step["attacher"] = "livepatch-replace"
        steps.append(step)
    return {"name": stirrer["name"], "steps": steps}


def stir_run(
    directory: Path, scenarios: list[Scenario], spoil: Spoil | None = None, version: str = "6.12",
    kernels: list[StirringKernel] | None = None, config: Mapping[str, str] | None = None,
    **more: Any,
) -> list[Event]:  # fmt: skip
    """The events of a run on such a kernel."""
    events: list[Event] = []
    release = f"{version}.0-model"
    profile = choose(release, config or {})

    def make(_vm: str) -> StirringKernel:
        made = StirringKernel(release, profile, spoil=spoil, **more)
        if kernels is not None:
            kernels.append(made)
        return made

    with Record(directory, (lambda event: events.append(dict(event)),)) as record:
        record.event("run_start", format=1, cohabit="0", argv=["run"], planned=len(scenarios))
        record.event(
            "kernel", kernel=release, reference=f"model:{version}", release=release,
            arch="x86_64", origin="made up", profile=profile.name, profile_why=profile.why,
        )  # fmt: skip
        Schedule([Work(release, profile, make, scenarios)], record, 1).run()
        record.event("run_end", counts={}, steps=0, exit_status=0, interrupted=False)
    return events
