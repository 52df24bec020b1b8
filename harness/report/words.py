# SPDX-License-Identifier: GPL-2.0-only
"""How steps, outcomes and contradictions are put into words, alike in every format."""

from __future__ import annotations

import functools
import itertools
import json
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from harness import errno_names
from harness.report.model import RunModel
from harness.report.views import Group, Mismatch, Scenario, Step, tally
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
    if text.isprintable():
        return text
    lines = (_ESCAPES.sub("", line).expandtabs(8) for line in text.split("\n"))
    return _CONTROL.sub("?", "\n".join(line.rstrip("\r") for line in lines))


def errno_name(number: int | None) -> str:
    """``EBUSY`` for 16, ``ok`` for 0, ``no result`` for None."""
    if number is None:
        return "no result"
    if number == 0:
        return "ok"
    return errno_names.name(number)


#: A direct call's trampolines (harness.scenario.steps.Modify).
_ALTERNATES = {0: "first", 1: "other", 2: "first far", 3: "other far"}


def step_title(spec: Mapping[str, Any], attachers: Mapping[str, str]) -> str:
    """What a step does, from its step object; ``attachers`` maps attachment ids."""
    do, name = str(spec.get("do", "?")), str(spec.get("id", ""))
    who = f"{name} ({attachers.get(name, '?')})"
    wait = ", without waiting" if spec.get("wait") is False else ""
    match do:
        case "attach":
            functions = spec.get("functions") or [spec.get("function")]
            replaces = ", replacing all others" if spec.get("replace") else ""
            to = some([str(f) for f in functions], 3)
            far = "far " if spec.get("far") else ""
            return f"attach {far}{spec.get('attacher')} as {name} to {to}{replaces}{wait}"
        case "detach" | "disable" | "enable" | "force":
            return f"{do} {who}{wait}"
        case "modify":
            return (
                f"modify {who} to its {_ALTERNATES.get(spec.get('alternate', 0), '?')} trampoline"
            )
        case "write":
            return f"write {spec.get('value')} to {spec.get('sysctl')}"
        case "hold":
            return f"hold a call of {spec.get('function')} as {name}"
        case "release":
            return f"release the held call {name}"
        case "unload" | "load":
            return f"{do} {spec.get('module')}"
        case "stir":
            return _stir_title(spec)
        case "trace-all":
            return f"tracer {spec.get('tracer')} on all functions"
        case "misuse":
            return f"misuse {spec.get('what')} on {spec.get('function')}"
        case "call":
            return f"call in {spec['context']} context" if spec.get("context") else "call"
    rest = [f"{key}={value}" for key, value in spec.items() if key != "do"]
    return " ".join([do, *rest])


def _stir_title(spec: Mapping[str, Any]) -> str:
    called = dict.fromkeys(str(h.get("function")) for h in spec.get("hammers") or ())
    by = [str(s.get("name")) for s in spec.get("stirrers") or ()]
    wide = f", windows widened by {spec['widen_us']} us" if spec.get("widen_us") else ""
    fault = f", fault {spec['fault']}" if spec.get("fault") else ""
    over = f" under calls of {some(list(called), 3)}" if called else ""
    return f"stir by {some(by, 9)}{over} (seed {spec.get('seed', '?')}{wide}{fault})"


def short_title(spec: Mapping[str, Any]) -> str:
    """The same for a narrow column."""
    do = str(spec.get("do", "?"))
    what = spec.get({"call": "context", "write": "value"}.get(do, "id"), "")
    return f"{do} {what}".strip()


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


def held(step: Step) -> Mapping[str, Any] | None:
    """What the call returned that the step let go: its body and value."""
    found = (step.observed or {}).get("held")
    return found if isinstance(found, Mapping) else None


def effect(step: Step) -> str:
    """What the functions did after a step: bodies, hits, a call that was held."""
    if step.observed is None:
        return ""
    by_body: dict[str, list[str]] = {}
    for function, body in bodies(step).items():
        by_body.setdefault(body, []).append(function)
    alone = sum(map(len, by_body.values())) == 1
    parts = [body if alone else f"{body} ({some(f, 3)})" for body, f in by_body.items()]
    counted = " ".join(f"{attachment}={n}" for attachment, n in hits(step).items())
    call = held(step)
    return "; ".join(
        filter(
            None,
            [
                ", ".join(parts),
                f"hits {counted}" if counted else "",
                f"the held call ran {call.get('body')}" if call else "",
            ],
        )
    )


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


def repeat_command(model: RunModel, kernel: str, name: str) -> str:
    """The command that runs one scenario on one kernel again."""
    argv = model.run.argv
    # A scenario from a file cannot be named; which of several files it was is not recorded.
    files = [
        word
        for option, value in itertools.pairwise((*argv, ""))
        for word in ((option, value) if option == "--replay" else (option,))
        if option.startswith("--replay")
    ]
    what = files if files and name not in _catalogue() else [name]
    asked = model.kernel_of(kernel)
    # A tree with a series on top is called so; --series is among the options.
    reference = asked.reference
    if "--series" in asked.options:
        reference = reference.partition(" with ")[0]
    command = ["cohabit", "run", "--kernel", reference, *asked.options, *what]
    if name in _stirring() or (files and name not in _catalogue()):
        command += _overridden(argv)
    return shlex.join(command)


#: What changes how a scenario stirs, and on how many CPUs (harness/cli/stirring.py).
_STIR_OPTIONS = ("--calls", "--patches", "--seconds", "--seed", "--widen-us", "--cpus")


def _overridden(argv: Sequence[str]) -> list[str]:
    """What a command line says of stirring."""
    found: list[str] = []
    for option, value in itertools.pairwise((*argv, "")):
        if option in _STIR_OPTIONS:
            found += [option, value]
        elif option.partition("=")[0] in _STIR_OPTIONS:
            found.append(option)
    return found


def whereabouts(scenario: Scenario) -> str:
    """Kernel, VM, and how it was tried."""
    parts = [scenario.kernel, scenario.vm or "no VM"]
    parts += [f"group {scenario.group}"] if scenario.group else []
    parts += [f"attempt {scenario.attempt}"] if scenario.attempt > 1 else []
    return ", ".join(parts)


@functools.cache
def _catalogue() -> frozenset[str]:
    return frozenset(s.name for s in catalogue.everything()) | _stirring()


@functools.cache
def _stirring() -> frozenset[str]:
    """Those beside it, of which some stir."""
    return frozenset(s.name for s in catalogue.beside() if s.stir)


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
    regrouped: Counter[str] = Counter()
    for first in model.repeated():
        if first.disputed:
            continue
        if first.regrouped:
            regrouped[f"run again alone on {first.kernel} ({brief(first.regrouped)})"] += 1
        else:
            why = f"repeated on {first.kernel} after {first.verdict} ({brief(first.reason)})"
            repeated.setdefault(why, []).append(first.name)
    for why, names in repeated.items():
        lines.append(f"{plural(len(names), 'scenario')} {why}: {some(names)}")
    lines += [f"{plural(number, 'scenario')} {why}" for why, number in regrouped.items()]
    return lines + _disputes(model)


def _disputes(model: RunModel) -> list[str]:
    """What became of failures in restored VMs."""
    confirmed, lines = 0, []
    for first, others in model.disputes():
        if not others:
            lines.append(f"{first.name} failed in a restored VM and was not run in a booted one.")
        elif all(other.verdict == first.verdict for other in others):
            confirmed += 1
        else:
            then = ", ".join(f"{o.verdict} ({brief(o.reason)})".replace(" ()", "") for o in others)
            lines.append(
                f"{first.name} on {first.kernel}: {first.verdict} in a restored VM "
                f"({brief(first.reason)}), but {then} in one that was booted, which counts"
            )
    for group in model.groups.values():
        if group.disputed and model.settled(group) and not model.attributed(group):
            lines.append(
                f"{group.id} on {group.kernel}: {group.verdict} in a restored VM "
                f"({brief(group.reason)}), not seen again in one that was booted"
            )
    if confirmed:
        what = plural(confirmed, "failure")
        lines.append(f"{what} in restored VMs confirmed in VMs that were booted.")
    return lines


def group_lines(model: RunModel, group: Group) -> list[str]:
    """What is to say of a group in trouble: its members, and what became of them."""
    members = [model.attempts[i] for i in group.scenarios if i in model.attempts]
    names = some([m.name for m in members])
    lines = [f"{plural(len(group.scenarios), 'scenario')} side by side: {names}"]
    counting = {s.id for s in model.scenarios}
    if alone := model.alone(group):
        found = ", ".join(f"{n} {verdict}" for verdict, n in tally(alone).items())
        lines.append(f"not seen again when they ran alone: {found}")
    left = [m for m in members if not m.finished and m.id in counting]
    if left:
        places = dict.fromkeys(map(_place, left))
        lines.append(f"{plural(len(left), 'scenario')} not finished: {some(list(places))}")
    return lines


def _place(scenario: Scenario) -> str:
    """How far a scenario came that was not finished."""
    if not scenario.steps:
        return "before the first step"
    last = scenario.steps[-1]
    before = "after" if last.observed is not None else "in"
    return f"{before} step {last.index + 1} ({short_title(last.spec)})"


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
