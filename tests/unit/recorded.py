# SPDX-License-Identifier: GPL-2.0-only
"""Recorded runs (tests/data/runs) as scenarios, steps and the agent's replies."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.agent import abi
from harness.policy.attachers import ATTACHERS
from harness.policy.profile import Profile, choose
from harness.policy.state import State
from harness.scenario.functions import FUNCTIONS
from harness.scenario.parse import scenario_from_json, step_from_json
from harness.scenario.steps import Scenario, Step

RUNS = Path(__file__).resolve().parents[1] / "data" / "runs"
#: What the attachers saw where nobody knows what it must be (pointers, flags).
SOME_ARGS = [0xFFFF888003A4B000, 0x1, 0xFFFF888004C2D7C0]


@dataclass
class Recorded:
    """A scenario as it ran on a kernel: each step with the reply that came."""

    scenario: Scenario
    kernel: str
    profile: Profile
    verdict: str = ""
    steps: list[tuple[int, Step, dict[str, Any]]] = field(default_factory=list)
    predicted: list[dict[str, Any]] = field(default_factory=list)
    _attachers: dict[str, tuple[str, int]] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return f"{self.kernel.split('-')[0]}:{self.scenario.name}"

    def begin(self) -> State:
        """The model's state before the first step; M is sticky since earlier scenarios."""
        modified = {
            function
            for prediction in self.predicted
            for function, record in prediction["registry"].items()
            if record and "M" in record["flags"]
        }
        return State(modified=frozenset(modified))

    def take(self, event: Mapping[str, Any]) -> None:
        if event["type"] == "step_start":
            step = event["step"]
            if step["do"] == "attach":
                self._attachers[step["id"]] = (step["attacher"], step["slot"])
            self.steps.append((event["index"], step_from_json(step), {}))
            self.predicted.append(event["predicted"])
        elif event["type"] == "step_end":
            self.steps[-1][2].update(self._reply(event))
        elif event["type"] == "scenario_end":
            self.verdict = event["verdict"]

    def _reply(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """What the agent said: of the one act (harness/agent/acts.py) and of what was seen."""
        seen = event["observed"]
        return {
            "errno": seen["errno"],
            "remark": seen["remark"],
            "enabled_functions": event["registry_text"],
            "touched_functions": None,
            "calls": {f: self._call(f, b) for f, b in seen["behaviour"].items()},
            "livepatch": seen["livepatch"],
            "ftrace_enabled": seen["sysctl"]["kernel.ftrace_enabled"],
            "log": event["log"],
            "log_complete": True,
        }

    def _call(self, function: str, behaviour: Mapping[str, Any]) -> dict[str, Any]:
        target = FUNCTIONS[function]
        args = abi.arguments(target.nr_args, target.may_sleep)
        if target.witnessed != "tag":
            args = SOME_ARGS[: target.nr_args]
        seen: dict[str, Any] = {}
        for identity, hits in behaviour["hits"].items():
            attacher, slot = self._attachers[identity]
            stat: dict[str, Any] = {"hits": hits, "others": 0, "args": list(args) if hits else []}
            if attacher == "fexit":
                # The program records 64 bits, whatever the function's type.
                ret = behaviour["ret"] or 0
                stat["ret"] = _RETURNED.get(ret, ret) & (1 << 64) - 1
            if attacher.startswith("direct"):
                stat["via"] = slot
            seen[identity] = stat
            assert ATTACHERS[attacher].counts
        return {"body": body(behaviour["body"]), "seen": seen}


#: What fmod_ret programs returned then, and what they return now (abi.TAG_FMOD_RET).
_RETURNED = {-204: -216, -205: -217}


def body(name: str) -> str:
    """A body's name; fmod_ret programs had letters when these were recorded, as livepatches do."""
    kind, _, which = name.partition("-")
    return f"{kind}-{'ab'.index(which)}" if kind == "fmod_ret" else name


def recorded(run: str) -> list[Recorded]:
    """All scenarios of one recorded run."""
    kernels: dict[str, Profile] = {}
    found: dict[str, Recorded] = {}
    for line in (RUNS / run / "events.jsonl").read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        if event["type"] == "kernel":
            kernels[event["kernel"]] = choose(event["release"], {})
        elif event["type"] == "scenario_start":
            found[event["scenario"]] = Recorded(
                scenario_from_json(event), event["kernel"], kernels[event["kernel"]]
            )
        elif "scenario" in event:
            found[event["scenario"]].take(event)
    return list(found.values())


def everything() -> list[Recorded]:
    """All scenarios of all recorded runs."""
    runs = sorted(path.name for path in RUNS.iterdir() if path.is_dir())
    return [r for run in runs for r in recorded(run)]
