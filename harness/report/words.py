# SPDX-License-Identifier: GPL-2.0-only
"""How steps, outcomes and contradictions are put into words, alike in every format."""

from __future__ import annotations

import itertools
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from harness import errno_names
from harness.report.model import RunModel
from harness.report.views import Mismatch, Scenario, Step
from harness.scenario import catalogue

#: Keys of a prediction that say how to compare, not what to see.
_NOT_COMPARED = frozenset({"why_either"})

_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def printable(text: str) -> str:
    """Text of a guest made safe to show and to put into XML.

    Terminal escapes go, tabs become spaces, other control characters become
    ``?``; newlines stay.
    """
    lines = (_ESCAPES.sub("", line).expandtabs(8) for line in text.split("\n"))
    return _CONTROL.sub("?", "\n".join(line.rstrip("\r") for line in lines))


def errno_name(number: int | None) -> str:
    """``EBUSY`` for 16, ``ok`` for 0, ``no result`` for None."""
    if number is None:
        return "no result"
    if number == 0:
        return "ok"
    return errno_names.name(number)


def step_title(spec: Mapping[str, Any], attachers: Mapping[str, str]) -> str:
    """What a step does, from its step object; ``attachers`` maps attachment ids."""
    do, name = str(spec.get("do", "?")), str(spec.get("id", ""))
    if do == "attach":
        return f"attach {spec.get('attacher')} as {name} to {spec.get('function')}"
    if do == "detach":
        return f"detach {name} ({attachers.get(name, '?')})"
    if do == "write":
        return f"write {spec.get('value')} to {spec.get('sysctl')}"
    rest = [f"{key}={value}" for key, value in spec.items() if key != "do"]
    return " ".join([do, *rest])


def outcome(step: Step) -> str:
    """What came of a step, in a few words."""
    if step.observed is None:
        return "no result"
    if step.refused:
        promised = "as predicted" if step.as_predicted else "not predicted"
        return f"refused: {errno_name(step.errno)} ({promised})"
    return "ok"


def bodies(step: Step) -> dict[str, str]:
    """Function to the name of the body that ran."""
    seen = (step.observed or {}).get("behaviour") or {}
    return {str(f): str(b.get("body")) for f, b in seen.items() if b}


def hits(step: Step) -> dict[str, int]:
    """Attachment id to hits per call, over all functions."""
    found: dict[str, int] = {}
    for behaviour in ((step.observed or {}).get("behaviour") or {}).values():
        for attachment, count in ((behaviour or {}).get("hits") or {}).items():
            found[str(attachment)] = found.get(str(attachment), 0) + int(count)
    return found


def flags(step: Step) -> dict[str, frozenset[str]]:
    """Function to the set of its flag letters; a function without a record has none."""
    registry = (step.observed or {}).get("registry") or {}
    return {str(f): frozenset((r or {}).get("flags") or ()) for f, r in registry.items()}


def effect(step: Step) -> str:
    """What the functions did after a step: bodies and hits."""
    if step.observed is None:
        return ""
    parts = [body if len(bodies(step)) == 1 else f"{f}: {body}" for f, body in bodies(step).items()]
    counted = " ".join(f"{attachment}={n}" for attachment, n in hits(step).items())
    return "; ".join(filter(None, [", ".join(parts), f"hits {counted}" if counted else ""]))


def subject(mismatch: Mismatch) -> str:
    """Which witness contradicts, and where."""
    if not mismatch.what or mismatch.what == mismatch.witness:
        return mismatch.witness
    return f"{mismatch.witness}: {mismatch.what}"


def diff(mismatch: Mismatch) -> list[tuple[str, str]]:
    """The contradiction as (``-`` expected or ``+`` seen, text) pairs, equal parts left out."""
    expected, seen = mismatch.expected, mismatch.seen
    if isinstance(expected, Mapping) and isinstance(seen, Mapping):
        keys = dict.fromkeys([*expected, *seen])
        lines: list[tuple[str, str]] = []
        for key in keys:
            if key in _NOT_COMPARED or expected.get(key) == seen.get(key):
                continue
            lines += [("-", f"{key}: {_value(expected[key])}")] if key in expected else []
            lines += [("+", f"{key}: {_value(seen[key])}")] if key in seen else []
        return lines
    if mismatch.witness == "errno":
        return [("-", _errnos(expected)), ("+", _errnos(seen))]
    return [("-", _value(expected)), ("+", _value(seen))]


def brief(text: str) -> str:
    """A long text (a traceback) as one line: its first line and its last."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [""]
    return lines[0] if len(lines) == 1 else f"{lines[0]} \N{HORIZONTAL ELLIPSIS} {lines[-1]}"


def repeat_command(model: RunModel, scenario: Scenario) -> str:
    """The command that runs one scenario on one kernel again."""
    kernel = model.kernel_of(scenario.kernel)
    argv = model.run.argv
    # A scenario from a file cannot be named; which of several files it was is not recorded.
    files = [
        word
        for option, value in itertools.pairwise((*argv, ""))
        for word in ((option, value) if option == "--replay" else (option,))
        if option.startswith("--replay")
    ]
    what = [scenario.name]
    if files and scenario.name not in {s.name for s in catalogue.everything()}:
        what = files
    return shlex.join(["cohabit", "run", "--kernel", kernel.reference, *what])


def state_of_run(model: RunModel) -> list[str]:
    """What a reader must know before believing the counts; empty for a complete run."""
    lines = []
    if model.run.interrupted:
        lines.append("The run was interrupted: what is missing was not tested.")
    elif model.cut_short:
        lines.append(
            "The run was cut short: its record has no end. What was open counts as failed."
        )
    if model.truncated:
        lines.append("The last line of the record was cut off and is not in this report.")
    if missing := model.not_started():
        lines.append(f"{missing} of {model.run.planned} planned scenarios never began.")
    repeated: dict[str, list[str]] = {}
    for first in model.repeated():
        why = f"repeated on {first.kernel} after {first.verdict} ({brief(first.reason)})"
        repeated.setdefault(why, []).append(first.name)
    for why, names in repeated.items():
        lines.append(f"{plural(len(names), 'scenario')} {why}: {some(names)}")
    return lines


def command_line(model: RunModel) -> str:
    """The command that made the run."""
    argv = model.run.argv
    return shlex.join(argv if argv[:1] == ("cohabit",) else ("cohabit", *argv))


def some(names: Sequence[str], limit: int = 6) -> str:
    """The first names, and how many more there are."""
    more = [f"and {len(names) - limit} more"] if len(names) > limit else []
    return ", ".join([*names[:limit], *more])


def duration(seconds: float) -> str:
    """``4.2 s``, ``3 min 05 s``, ``1 h 02 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"


def plural(number: int, noun: str) -> str:
    """``1 step``, ``2 steps``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _errnos(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return " or ".join(_errnos(v) for v in value)
    return errno_name(value) if isinstance(value, int) else str(value)


def _value(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence) and all(isinstance(v, str) for v in value):
        return " ".join(value) or "(nothing)"
    return json.dumps(value, ensure_ascii=False)
