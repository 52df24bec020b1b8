# SPDX-License-Identifier: GPL-2.0-only
"""model_kernel's kernel behind harness.run.company.Ask: it does what the policy says, or lies.

It has a state of its own, moved by the acts that are sent to it: an attachment over many
functions is one there, while the harness believes in one for each scenario.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from model_kernel import ModelKernel

from harness.agent import abi
from harness.policy.attachers import ATTACHERS
from harness.policy.profile import Profile
from harness.scenario.steps import Attach

Reply = dict[str, Any]
Lie = Callable[[int, Reply], None]


class Obedient(ModelKernel):
    """``requests`` is what it was asked; ``lie`` may change a reply, given its number."""

    def __init__(self, profile: Profile, lie: Lie | None = None) -> None:
        super().__init__("0-model", profile)
        self.lie = lie
        self.requests: list[dict[str, Any]] = []

    def ask(self, **request: Any) -> Reply:
        self.requests.append(request)
        assert request["op"] == "acts"
        assert len(set(request["functions"])) == len(request["functions"])
        reply = dict(self.request(request, 0.0)["result"])
        reply.update(agent_s=0.5, user_s=0.25)
        reply["reports"] = [r["text"] for r in reply["log"] if r["text"].startswith("WARNING")]
        if self.lie:
            self.lie(len(self.requests) - 1, reply)
        return reply

    def _act(self, json: dict[str, Any]) -> dict[str, Any]:
        step = self._step(json)
        if isinstance(step, Attach):
            self._check(step, json["slot"])
        return super()._act(json)

    def _check(self, step: Attach, slot: int) -> None:
        """What an agent could not do: an id or a slot twice, a program on two functions."""
        kind = ATTACHERS[step.attacher]
        assert self.state.get(step.id) is None, f"{step.id} is attached already"
        assert 0 <= slot < kind.slots
        assert len(step.functions) == 1 or not kind.single
        assert len(set(step.functions)) == len(step.functions) <= abi.MAX_FUNCS
        for other in self.state.attached:
            same = (other.kind.family or other.attacher) == (kind.family or step.attacher)
            meet = not kind.single or set(other.functions) & set(step.functions)
            assert not (same and meet and other.slot == slot), f"slot {slot} of {step.attacher}"
