# SPDX-License-Identifier: GPL-2.0-only
"""A report for programs: one JSON object (docs/explain.md), a line for each function."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from harness import errno_names
from harness.policy.rules import RULES

from . import words
from .form import Kernels
from .report import Block, Report
from .show import rules_of
from .what_if import Answer


def dump(report: Report) -> Iterator[str]:
    """The lines of the object."""
    head = {
        "functions": report.functions,
        "kernels": _kernels(report.kernels),
        "printed_by": {
            "kernels": _kernels(report.printed.kernels),
            "because": report.printed.reasons,
            "contradiction": report.printed.contradiction,
        },
        "notes": report.notes,
        "not_understood": {"lines": report.unknown_lines, "first": report.unknown},
        "rules": {
            name: {"text": RULES[name].text, "source": RULES[name].source}
            for name in dict.fromkeys(rules_of(report))
        },
    }
    yield f'{json.dumps(head)[:-1]}, "records": ['
    # A line is kept back, for the last one has no comma.
    before = ""
    for block in report.blocks:
        # All of a block but the titles is put together once; there may be many of those.
        said = json.dumps(_block(block, report.kernels))[1:]
        text = '"text": null'
        if block.record:
            text = json.dumps(block.record.raw.removeprefix(block.record.title))[1:]
        for title in block.titles:
            if before:
                yield f"{before},"
            name, _, module = title.partition(" [")
            where = json.dumps(module.removesuffix("]") or None)
            # A record's title is made of characters that JSON takes as they are.
            own = f'"text": "{title}{text}' if block.record else text
            before = f'{{"function": {json.dumps(name)}, "module": {where}, {own}, {said}'
    if before:
        yield before
    yield "]}"


def _block(block: Block, kernels: Kernels) -> dict[str, Any]:
    record = block.record
    said: dict[str, Any] = {
        "count": record.count if record else 0,
        "flags": dict(words.flags(record, kernels)) if record else {},
        "users": [
            {
                "kind": user.kind, "known": user.known, "who": user.who, "name": user.name,
                "hint": user.hint, "number": user.number,
            }
            for user in block.users
        ],
        "path": words.path(record, block.users) if record else "",
        "errors": record.errors if record else (),
        "warnings": block.warnings,
        "not_understood": record.unknown if record else (),
    }  # fmt: skip
    if block.answers:
        said["what_if"] = {
            attacher: [_answer(answer) for answer in answers]
            for attacher, answers in block.answers.items()
        }
    return said


def _answer(answer: Answer) -> dict[str, Any]:
    return {
        "kernels": [
            {"arch": arch, "from": words.release(first), "to": words.release(last)}
            for arch, first, last in answer.kernels
        ],
        "answer": answer.verdict,
        "cases": [
            {
                "succeeds": case.outcome.ok, "errno": case.outcome.errno,
                "errno_name": _errno_name(case.outcome.errno), "rule": case.outcome.rule or None,
                "why": case.outcome.why, "if": case.when,
            }
            for case in answer.cases
        ],
        "conditions": [
            {
                "needs": condition.text, "errno": condition.errno,
                "errno_name": _errno_name(condition.errno), "rule": condition.rule or None,
            }
            for condition in answer.conditions
        ],
    }  # fmt: skip


def _errno_name(number: int | None) -> str | None:
    return errno_names.name(number) if number else None


def _kernels(kernels: Kernels) -> dict[str, dict[str, str]]:
    return {
        arch: {"from": words.release(versions[0]), "to": words.release(versions[-1])}
        for arch, versions in kernels.items()
    }
