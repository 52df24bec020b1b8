# SPDX-License-Identifier: GPL-2.0-only
"""A running kernel's registry, with some attachers on a function."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from harness import errno_names
from harness.errors import InfraError, UsageError
from harness.policy.state import Attached, State
from harness.scenario.steps import Attach, Scenario
from harness.target.protocol import Target, TargetGoneError, TargetSilentError

from .greeting import STEP_TIMEOUT
from .requirements import needs_compiler, skip_reason
from .session import AccidentError, Session

REGISTRY = "/sys/kernel/tracing/enabled_functions"


def registry(
    session: Session, target: Target, attachers: Sequence[str]
) -> tuple[str, tuple[str, ...]]:
    """Boots the target, which is the session's, and attaches one after the other to a function.

    Gives the registry's text, and who was refused with what.  Raises UsageError for an
    attacher that the kernel does not have, InfraError for a kernel that does not come up
    or does not answer.
    """
    # fmod_ret is picky.
    function = "security_task_getpgid" if "fmod_ret" in attachers else "cmdline_proc_show"
    steps = tuple(Attach(str(n), name, (function,)) for n, name in enumerate(attachers))
    scenario = Scenario("explain", (function,), steps)
    try:
        session.start(compile_bpf=needs_compiler(scenario))
        if reason := skip_reason(scenario, session.facts):
            raise UsageError(reason)
        return _attached(target, function, attachers)
    except AccidentError as accident:
        raise InfraError(str(accident)) from accident
    except (TargetGoneError, TargetSilentError) as lost:
        why = target.crash() or str(lost) or "it gives no answer"
        raise InfraError(f"the kernel is lost: {why}") from lost


def _attached(
    target: Target, function: str, attachers: Sequence[str]
) -> tuple[str, tuple[str, ...]]:
    state, acts = State(), []
    for number, name in enumerate(attachers):
        slot = state.free_slot(name, (function,))
        attached = Attached(str(number), name, (function,), slot)
        state = dataclasses.replace(state, attached=(*state.attached, attached))
        act = {"do": "attach", "id": attached.id, "attacher": name, "functions": [function]}
        acts.append({**act, "slot": slot})
    results = _ask(target, 1 + len(acts), op="acts", acts=acts, functions=[])["results"]
    refused = tuple(
        f"{name} was refused: {errno_names.name(result['errno'])} ({result['errno']})"
        for name, result in zip(attachers, results, strict=True)
        if result["errno"]
    )
    text = _ask(target, 1, op="read", path=REGISTRY)["text"]
    if text is None:
        raise InfraError(f"the kernel has no {REGISTRY}")
    return text, refused


def _ask(target: Target, steps: int, **message: Any) -> Mapping[str, Any]:
    result: Mapping[str, Any] = target.request(message, steps * STEP_TIMEOUT)["result"]
    return result
