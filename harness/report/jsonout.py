# SPDX-License-Identifier: GPL-2.0-only
"""One JSON object that sums a run up, for scripts; every detail is in events.jsonl."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from harness.report import differences, matrix
from harness.report.model import RunModel, exit_status
from harness.report.views import Scenario, Step, Vm
from harness.report.words import (
    bodies,
    errno_name,
    flags,
    hits,
    repeat_command,
    state_of_run,
    step_title,
)

SCHEMA = 1
"""Raised when a key changes its meaning; new keys may come at any time."""


def render(model: RunModel) -> str:
    """The summary as indented JSON, with a newline at its end."""
    run = model.run
    counting = {s.id for s in model.scenarios}
    summary = {
        "schema": SCHEMA,
        "cohabit": run.cohabit,
        "argv": list(run.argv),
        "started": run.started,
        "host": dict(run.host),
        "seconds": model.seconds,
        "exit_status": exit_status(model),
        "complete": not (model.cut_short or run.interrupted or model.not_started()),
        "interrupted": run.interrupted,
        "truncated": model.truncated,
        "state": state_of_run(model),
        "planned": run.planned,
        "not_started": model.not_started(),
        "counts": model.counts(),
        "witnessed_steps": model.witnessed_steps(),
        "kernels": [_kernel(model, k) for k in model.kernels],
        "differences": [dataclasses.asdict(d) for d in differences.find(model)],
        "scenarios": [
            _scenario(model, s, counts=s.id in counting) for s in model.attempts.values()
        ],
        "notes": [dataclasses.asdict(note) for note in model.notes],
    }
    return json.dumps(summary, indent=1) + "\n"


def _kernel(model: RunModel, kernel: str) -> dict[str, Any]:
    found = matrix.build(model, kernel)
    return {
        **dataclasses.asdict(model.kernel_of(kernel)),
        "vms": [_vm(vm) for vm in model.vms_of(kernel)],
        "matrix": None
        if found is None
        else {
            "attachers": list(found.attachers),
            "rows": ["".join(cell.mark for cell in row) for row in found.rows],
            "legend": matrix.LEGEND,
        },
    }


def _vm(vm: Vm) -> dict[str, Any]:
    shown = dataclasses.asdict(vm)
    for key in ("kernel", "command", "console_tail", "backtraces", "started_t"):
        del shown[key]
    return shown


def _scenario(model: RunModel, scenario: Scenario, counts: bool) -> dict[str, Any]:
    return {
        "id": scenario.id,
        "name": scenario.name,
        "kernel": scenario.kernel,
        "vm": scenario.vm,
        "attempt": scenario.attempt,
        "counts": counts,
        "functions": list(scenario.functions),
        "matrix": scenario.matrix and list(scenario.matrix),
        "verdict": scenario.verdict,
        "reason": scenario.reason,
        "xfail": scenario.xfail,
        "seconds": round(scenario.seconds, 3),
        "planned_steps": len(scenario.planned),
        "steps": [_step(scenario, step) for step in scenario.steps],
        "repeat": repeat_command(model, scenario),
    }


def _step(scenario: Scenario, step: Step) -> dict[str, Any]:
    return {
        "index": step.index,
        "title": step_title(step.spec, scenario.attachers()),
        "errno": step.errno,
        "errno_name": errno_name(step.errno),
        "as_predicted": step.as_predicted and not step.mismatches,
        "bodies": bodies(step),
        "hits": hits(step),
        "flags": {f: sorted(letters) for f, letters in flags(step).items()},
        "mismatches": [dataclasses.asdict(m) for m in step.mismatches],
    }
