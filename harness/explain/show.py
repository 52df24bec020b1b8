# SPDX-License-Identifier: GPL-2.0-only
"""A report for people."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterator, Sequence

from harness import errno_names
from harness.policy.rules import RULES

from . import words
from .report import Block, Report
from .users import User
from .what_if import TITLES, Answer, Case, Condition, Outcome

MIN_WIDTH, MAX_WIDTH = 60, 110
#: So many blocks that differ in their own trampolines only are shown as one.
_TOGETHER = 4
#: Names in the head of a block; more are in JSON only.
_NAMES = 60

_BOLD, _RED, _GREEN, _YELLOW, _ALARM = "1", "31", "32", "33", "1;37;41"
_VERDICTS = {"yes": _GREEN, "no": _RED, "depends": _YELLOW, "unknown": _YELLOW}


def show(report: Report, width: int, color: bool) -> Iterator[str]:
    """The report line by line, ``width`` columns wide within 60 to 110."""
    writer = _Writer(min(max(width, MIN_WIDTH), MAX_WIDTH), color)
    yield from writer.head(report)
    for blocks in _alike(report, writer):
        together = len(blocks) >= _TOGETHER
        for some in [blocks] if together else [[block] for block in blocks]:
            yield ""
            yield from writer.titles(some)
            yield from writer.body(some[0], report, together)
    yield from writer.tail(report)


def _alike(report: Report, writer: _Writer) -> list[list[Block]]:
    """The blocks that differ in nothing but their own trampolines, together."""
    alike: dict[tuple[str, ...], list[Block]] = {}
    for block in report.blocks:
        alike.setdefault(tuple(writer.body(block, report, brief=True)), []).append(block)
    return list(alike.values())


class _Writer:
    """Knows how wide lines are and whether they have colours."""

    def __init__(self, width: int, color: bool) -> None:
        self._width = width
        self._color = color

    def _paint(self, text: str, style: str) -> str:
        return f"\x1b[{style}m{text}\x1b[0m" if self._color and style else text

    def _lines(self, text: str, indent: str, first: str = "", style: str = "") -> Iterator[str]:
        """A paragraph; ``first`` stands in the indent of its first line."""
        for line in textwrap.wrap(
            text, self._width, initial_indent=first or indent, subsequent_indent=indent,
            break_long_words=False, break_on_hyphens=False,
        ):  # fmt: skip
            yield self._paint(line, style)

    def _marked(self, text: str, column: int, mark: str) -> Iterator[str]:
        """A paragraph that hangs from a mark."""
        return self._lines(text, " " * column, mark.ljust(column))

    def head(self, report: Report) -> Iterator[str]:
        """What the text as a whole says."""
        kernels = "; ".join(
            f"Linux {words.spans(versions)} on {arch}" for arch, versions in report.kernels.items()
        )
        if not report.functions:
            yield from self._lines(
                "The registry is empty: nothing is attached. (Or kernel.ftrace_enabled is 0, or "
                "ftrace has shut itself down; then the log has a report of it.)", "",
            )  # fmt: skip
        else:
            shown = sum(len(block.titles) for block in report.blocks if block.record)
            some = f"{shown} of " if shown != report.functions else ""
            because = f", for it has {', '.join(report.printed.reasons)}"
            yield from self._lines(
                f"{some}{words.plural(report.functions, 'function')}, as printed by {kernels}"
                f"{because if report.printed.reasons else ''}.", "",
            )  # fmt: skip
        for note in report.notes:
            yield from self._marked(note, 6, "note:")
        if report.unknown_lines:
            first = ", ".join(f"{_clip(line)!a}" for line in report.unknown)
            lines = words.plural(report.unknown_lines, "line")
            yield from self._marked(f"{lines} not understood and left out: {first}", 6, "note:")

    def titles(self, blocks: Sequence[Block]) -> Iterator[str]:
        """The functions that these blocks are about, with their own trampolines if several."""
        number = sum(len(block.titles) for block in blocks)
        if number == 1:
            yield self._paint(blocks[0].titles[0], _BOLD)
            return
        yield self._paint(f"{number} functions alike", _BOLD)
        each = (
            title + (f" ({own})" if (own := _own(block)) and len(blocks) > 1 else "")
            for block in blocks
            for title in block.titles
        )
        names = ", ".join(itertools.islice(each, _NAMES))
        if number > _NAMES:
            names += f" and {number - _NAMES} more (--json has all)"
        yield from self._lines(names, "  ")

    def body(self, block: Block, report: Report, brief: bool) -> Iterator[str]:
        """Everything about functions that are alike; ``brief``: but for their trampolines."""
        record = block.record
        for warning in block.warnings:
            style = _ALARM if "ERROR!" in warning else _YELLOW
            yield from self._lines(warning, "     ", "  !! ", style)
        if record is None:
            yield "  not in the registry: nothing is attached"
        elif not record.invalid:
            number = words.plural(record.count, "user")
            yield f"  {number if record.count else 'nobody is on it now'}"
            for user in block.users:
                yield from self._marked(_user(user, brief), 6, "    -")
            if way := words.path(record, block.users, brief):
                yield from self._lines(way, "    ", "  ")
            for letter, meaning in words.flags(record, report.kernels):
                yield from self._marked(meaning, 5, f"  {letter}")
        for attacher, answers in block.answers.items():
            yield from self._answers(attacher, answers)

    def _answers(self, attacher: str, answers: tuple[Answer, ...]) -> Iterator[str]:
        one = len(answers) == 1
        verdicts = {answer.verdict for answer in answers}
        verdict = verdicts.pop() if len(verdicts) == 1 else "depends"
        rest = ""
        if one and len(answers[0].cases) == 1:
            rest = _outcome(answers[0].cases[0].outcome).removeprefix(verdict)
        elif verdict == "unknown":
            rest = ": the record is not complete"
        painted = f"? {self._paint(verdict, _VERDICTS[verdict])}"
        question = f"would {TITLES[attacher]} attach? {verdict}{rest}"
        for line in self._lines(question, "    ", "  "):
            yield line.replace(f"? {verdict}", painted, 1)
        for answer in answers:
            indent = "    "
            if not one:
                yield f"    {_kernels(answer)}"
                indent = "      "
            if not one or len(answer.cases) > 1:
                for case in answer.cases:
                    yield from self._lines(_case(case), f"{indent}    ", f"{indent}- ")
            for condition in answer.conditions:
                yield from self._lines(_condition(condition), f"{indent}  ", indent)

    def tail(self, report: Report) -> Iterator[str]:
        """The rules that were named, and what a user is."""
        names = dict.fromkeys(rules_of(report))
        if names:
            yield ""
            yield self._paint("Rules", _BOLD)
        for name in names:
            rule = RULES[name]
            yield from self._lines(f"{name}: {rule.text}", "    ", "  ")
            yield from self._lines(rule.source, "      ", "    ")
        if any(block.record and block.record.count for block in report.blocks):
            yield ""
            kprobes = "; kprobes of arm64 are breakpoints, and no users"
            if "x86-64" in report.kernels:
                kprobes = f", and its kprobes{kprobes if 'arm64' in report.kernels else ''}"
            yield from self._lines(
                "A user is one ftrace_ops. All livepatches of a function are one user, and so are "
                f"its BPF programs{kprobes}.", "",
            )  # fmt: skip


def rules_of(report: Report) -> Iterator[str]:
    """The names of the rules in the answers, as they come."""
    for block in report.blocks:
        for answers in block.answers.values():
            for answer in answers:
                yield from (c.outcome.rule for c in answer.cases if c.outcome.rule)
                yield from (c.rule for c in answer.conditions if c.rule)


def _own(block: Block) -> str:
    return words.own(block.record, block.users) if block.record else ""


def _user(user: User, brief: bool) -> str:
    if brief and user.kind == "bpf":
        return user.who
    times = f"{user.number} times " if user.number > 1 and user.known == "named" else ""
    name = f": {user.name}" if user.name else ""
    return f"{times}{user.who}{name}{f' ({user.hint})' if user.hint else ''}"


def _kernels(answer: Answer) -> str:
    return "; ".join(
        f"Linux {words.span(first, last)} on {arch}" for arch, first, last in answer.kernels
    )


def _outcome(outcome: Outcome) -> str:
    rule = f", by rule {outcome.rule}" if outcome.rule else ""
    if outcome.ok:
        return f"yes{rule}"
    parts = ["no"]
    if outcome.errno:
        parts.append(_errno(outcome.errno))
    if outcome.why and not outcome.errno:
        parts.append(outcome.why)
        return f"{': '.join(parts)}{rule}"
    return f"{': '.join(parts)}{rule}{f' ({outcome.why})' if outcome.why else ''}"


def _errno(number: int) -> str:
    return f"{errno_names.name(number)} ({number})"


def _case(case: Case) -> str:
    when = ", or ".join(" and ".join(facts) for facts in case.when)
    return f"{_outcome(case.outcome)}{f', if {when}' if when else ''}"


def _condition(condition: Condition) -> str:
    if not condition.rule:
        return f"provided that {condition.text}"
    otherwise = f"else {_errno(condition.errno)}, " if condition.errno else ""
    return f"provided that {condition.text} ({otherwise}rule {condition.rule})"


def _clip(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:37]}..."
