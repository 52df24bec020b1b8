# SPDX-License-Identifier: GPL-2.0-only
"""One JSON object that sums a run up, for scripts; every detail is in events.jsonl.

Each scenario is one line: a full run has thousands.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from harness.report import differences, matrix, sites, stirred, traces
from harness.report.matrix import Cell, Matrix
from harness.report.model import RunModel, exit_status
from harness.report.views import Group, Report, Scenario, Step, Vm, tally
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
    """The summary as JSON, a line for each key and each scenario, with a newline at its end."""
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
        "groups": [_group(model, group) for group in model.groups.values()],
        "scenarios": [
            _scenario(model, s, counts=s.id in counting) for s in model.attempts.values()
        ],
        "notes": [dataclasses.asdict(note) for note in model.notes],
    }
    return "{\n" + ",\n".join(f"{json.dumps(k)}: {_lines(v)}" for k, v in summary.items()) + "\n}\n"


def _lines(value: Any) -> str:
    """JSON with a line for each item of a list."""
    if not isinstance(value, list) or not value:
        return json.dumps(value)
    return "[\n" + ",\n".join(f" {json.dumps(item)}" for item in value) + "\n]"


def _kernel(model: RunModel, kernel: str) -> dict[str, Any]:
    return {
        **dataclasses.asdict(model.kernel_of(kernel)),
        "vms": [_vm(vm) for vm in model.vms_of(kernel)],
        "matrix": _matrix(matrix.build(model, kernel)),
        "triples": [
            {
                "attachers": list(triple.attachers),
                "counts": tally(triple.scenarios),
            }
            for triple in matrix.triples(model, kernel)
        ],
    }


def _matrix(found: Matrix | None) -> dict[str, Any] | None:
    """``rows`` has the worst letter of each pair, ``orders`` one for each order of departure."""
    if found is None:
        return None
    return {
        "attachers": list(found.attachers),
        "rows": ["".join(_worst(pair) for pair in row) for row in found.rows],
        "orders": [
            {
                "departure": list(departure),
                "rows": ["".join(pair[n].mark for pair in row) for row in found.rows],
            }
            for n, departure in enumerate(found.departures)
        ],
        "legend": matrix.LEGEND,
    }


def _worst(cells: Sequence[Cell]) -> str:
    return matrix.worst(s for cell in cells for s in cell.scenarios)


def _vm(vm: Vm) -> dict[str, Any]:
    shown = dataclasses.asdict(vm)
    for key in ("kernel", "command", "console_tail", "backtraces", "decoded", "started_t"):
        del shown[key]
    return shown


def _group(model: RunModel, group: Group) -> dict[str, Any]:
    return {
        "id": group.id,
        "vm": group.vm,
        "kernel": group.kernel,
        "scenarios": list(group.scenarios),
        "verdict": group.verdict,
        "reason": group.reason,
        "attributed": model.attributed(group),
        "disputed": group.disputed,
    }


def _scenario(model: RunModel, scenario: Scenario, counts: bool) -> dict[str, Any]:
    return {
        "id": scenario.id,
        "name": scenario.name,
        "kernel": scenario.kernel,
        "vm": scenario.vm,
        "attempt": scenario.attempt,
        "counts": counts,
        "group": scenario.group or None,
        "regrouped": scenario.regrouped or None,
        "disputed": scenario.disputed,
        "functions": list(scenario.functions),
        "attachers": list(scenario.attachers or scenario.attacher_of.values()),
        "matrix": scenario.matrix and list(scenario.matrix),
        "verdict": scenario.verdict,
        "reason": scenario.reason,
        "xfail": scenario.xfail,
        "seconds": round(scenario.seconds, 3),
        "planned_steps": len(scenario.planned),
        "steps": [_step(model, scenario, step) for step in scenario.steps],
        "reports": [_report(report) for report in model.reports_of(scenario)],
        "repeat": repeat_command(model, scenario.kernel, scenario.name),
    }


def _report(report: Report) -> dict[str, Any]:
    """``trace`` leaves out registers and the like."""
    return {
        "id": report.id,
        "index": report.index,
        "when": report.when,
        "kind": report.kind,
        "title": report.title,
        "fingerprint": report.fingerprint,
        "decoded": bool(report.decoded),
        "trace": traces.shown(report),
    }


def _step(model: RunModel, scenario: Scenario, step: Step) -> dict[str, Any]:
    account = stirred.of_scenario(model, scenario)
    return {
        "index": step.index,
        "title": step_title(step.spec, scenario.attacher_of),
        "errno": step.errno,
        "errno_name": errno_name(step.errno),
        "as_predicted": step.as_predicted and not step.mismatches,
        "bodies": bodies(step),
        "hits": hits(step),
        "flags": {f: sorted(letters) for f, letters in flags(step).items()},
        **({"sites": found} if (found := dict(sites.of_step(step))) else {}),
        **({"stirred": stirred.as_json(account)} if account and account.step is step else {}),
        "agent_s": step.agent_s,
        "group_s": step.group_s,
        "mismatches": [dataclasses.asdict(m) for m in step.mismatches],
    }
