# SPDX-License-Identifier: GPL-2.0-only
"""A comparison as text for the answer to a mail: at most 72 columns, no colours."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Iterable, Iterator, Sequence

from harness.report.compare import KINDS, Change, Comparison, Item, Side, Surprise, grouped
from harness.report.words import duration, plural, printable

WIDTH = 72
#: So many scenarios of one cause are named; the rest is counted.
SHOWN = 6

_COUNTED = {
    "broken": "broken", "untested": "without a result", "fixed": "fixed",
    "differs": "different", "gone": "only in the base", "new": "only in the head",
}  # fmt: skip


def render_text(comparison: Comparison, surprise: Surprise | None = None) -> str:
    """The comparison as text with a newline at its end.

    ``surprise``: what came of an expectation, where there was one.
    """
    lines = [*environment(comparison), "", *_wrapped(summary(comparison))]
    last = ""
    for item in [*comparison.items, *grouped(comparison.still)]:
        if item.kind != last:
            last = item.kind
            lines += ["", heading(comparison, item.kind)]
        lines += _item(item)
    if comparison.incomplete:
        lines += ["", "Not everything could be compared"]
        for line in comparison.incomplete:
            lines += _wrapped(line, 2)
    if surprise is not None:
        lines += ["", *_expected(surprise)]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def summary(comparison: Comparison) -> str:
    """The outcome in one line: ``2 broken, 25 different, 1 still failing; 745 as before``."""
    parts = [
        f"{len({c.subject for c in comparison.changes if c.kind == kind})} {word}"
        for kind, word in _COUNTED.items()
        if comparison.count(kind)
    ]
    if messages := comparison.count("message"):
        parts.append(plural(messages, "new kernel message"))
    if comparison.still:
        parts.append(f"{len(comparison.still)} still failing")
    return f"{', '.join(parts) or 'nothing changed'}; {comparison.same} as before"


def heading(comparison: Comparison, kind: str) -> str:
    """The heading of a kind, with the number of its scenarios or messages."""
    changes = comparison.still if kind == "still" else comparison.changes
    number = len({change.subject for change in changes if change.kind == kind})
    return f"{KINDS.get(kind, 'Still failing')} ({number})"


def environment(comparison: Comparison) -> Iterator[str]:
    """The lines about both kernels, the machines, and how to repeat the comparison."""
    base, head = comparison.base, comparison.head
    versions = dict.fromkeys(side.cohabit for side in (base, head))
    yield f"cohabit {', '.join(versions)} compared two kernels"
    for name, side in (("base", base), ("head", head)):
        for number, text in enumerate((*_kernel(side), _measure(side))):
            yield from _labelled("" if number else name, text)
    machines = dict.fromkeys(_machine(side) for side in (base, head))
    for machine in machines:
        yield from _labelled("on", machine)
    # The two runs of one `cohabit compare` have its command line.
    for number, command in enumerate(dict.fromkeys((base.command, head.command))):
        yield from _command("and" if number else "repeat", shlex.split(command))


def _kernel(side: Side) -> list[str]:
    kernel = side.kernel
    policy = f"held to {kernel.profile}" if kernel.profile else ""
    first = f"{kernel.release} ({kernel.arch}), {kernel.reference}"
    return list(filter(None, (first, kernel.origin, policy)))


def _measure(side: Side) -> str:
    """Verdicts, time and sizes."""
    counts = ", ".join(f"{number} {verdict}" for verdict, number in sorted(side.counts.items()))
    parts = [counts or "no scenario", f"run {duration(side.seconds)}"]
    if side.size.build_s is not None:
        parts.append(f"build {duration(side.size.build_s)}")
    if side.size.image_bytes is not None:
        parts.append(f"image {side.size.image_bytes} bytes")
    return "; ".join(parts)


def _machine(side: Side) -> str:
    vm = side.vm
    if vm is None:
        return "no VM"
    why = f" ({vm.accel_why})" if vm.accel_why else ""
    return f"{vm.accel}{why}, QEMU {vm.qemu}, CPU {vm.cpu} x {vm.cpus}, {vm.memory_mb} MB"


def _item(item: Item) -> Iterator[str]:
    """A cause and who shows it."""
    first = item.changes[0]
    if item.kind == "message":
        yield from _wrapped(first.subject, 2)
        yield from _names(first.scenarios)
        return
    if item.cause:
        alone = len(item.changes) == 1
        yield from _wrapped(first.detail if alone else item.cause, 2)
    yield from _names([_named(change) for change in item.changes])


def _named(change: Change) -> str:
    return f"{change.subject} ({change.step})" if change.step else change.subject


def _names(names: Sequence[str]) -> Iterator[str]:
    for name in names[:SHOWN]:
        yield from _wrapped(name, 4)
    if len(names) > SHOWN:
        yield f"    and {len(names) - SHOWN} more"


def _expected(surprise: Surprise) -> Iterator[str]:
    if not surprise:
        yield "Exactly the expected changes happened."
        return
    for title, lines in (
        ("Unexpected", _ids(surprise.unexpected)),
        ("Expected, but not seen", surprise.missing),
    ):
        if lines:
            yield f"{title} ({len(lines)})"
            yield from _names(lines)


def _ids(changes: Iterable[Change]) -> list[str]:
    return list(dict.fromkeys(change.id for change in changes))


def _labelled(label: str, text: str) -> list[str]:
    lines = _wrapped(text, 9)
    return [f"  {label:7}{lines[0][9:]}", *lines[1:]]


def _command(label: str, words: Sequence[str]) -> list[str]:
    """A command that can be pasted: cut between words, with backslashes."""
    lines = [""]
    for word in map(shlex.quote, words):
        line = f"{lines[-1]} {word}".strip()
        # The backslash and the blank before it must fit too.
        if lines[-1] and len(line) > WIDTH - 9 - 2:
            lines.append(word)
        else:
            lines[-1] = line
    ended = [*(f"{line} \\" for line in lines[:-1]), lines[-1]]
    return [f"  {label if n == 0 else '':7}{line}" for n, line in enumerate(ended)]


def _wrapped(text: str, indent: int = 0) -> list[str]:
    """Cut at blanks; a word is cut only where it fits no line."""
    blank = " " * indent
    return textwrap.wrap(
        printable(text), WIDTH, initial_indent=blank, subsequent_indent=blank,
        break_on_hyphens=False,
    ) or [blank]  # fmt: skip
