# SPDX-License-Identifier: GPL-2.0-only
"""Everything about a text, put together."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from harness.ftrace import Record
from harness.policy.profile import Version

from . import form, text, users, what_if, words
from .form import Kernels, Printed
from .text import Shape
from .users import User
from .what_if import Answer, Surroundings


@dataclass(frozen=True)
class Block:
    """Functions whose records say the same.

    ``titles``: their names; ``record``: one of theirs, None where they have none;
    ``answers``: by attacher.
    """

    titles: tuple[str, ...]
    record: Record | None
    users: tuple[User, ...] = ()
    warnings: tuple[str, ...] = ()
    answers: Mapping[str, tuple[Answer, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """What a text says.

    ``kernels`` are those that it is explained for; ``printed`` those that can have
    printed it; ``notes`` and ``unknown``: what was odd about it; ``functions``: how many
    records it has.
    """

    blocks: tuple[Block, ...]
    functions: int
    kernels: Kernels
    printed: Printed
    notes: tuple[str, ...]
    unknown: tuple[str, ...]
    unknown_lines: int
    attachers: tuple[str, ...]


def explain(
    data: bytes,
    wanted: Sequence[str] = (),
    attachers: Sequence[str] = (),
    release: Version | None = None,
    arch: str | None = None,
) -> Report:
    """Explain a registry text.

    ``wanted``: functions by name or glob, all if empty; ``attachers``: what else to ask
    for each (what_if.TITLES); ``release`` and ``arch``: of the kernel, where they are
    known.  Raises UsageError for a text that is none.
    """
    taken = text.take(data)
    gathered = text.gather(taken, wanted)
    evidence = ((shape.record, not shape.cut) for shape in gathered.shapes)
    printed = form.printed(evidence, taken.columns)
    kernels, doubts = _kernels(printed, release, arch)
    found = [users.users(shape.record, kernels) for shape in gathered.shapes]
    answers = _Answers(attachers, kernels, _surroundings(found, gathered.whole))
    blocks = [
        block
        for shape, there in zip(gathered.shapes, found, strict=True)
        if shape.titles
        for block in _blocks(shape, there, answers)
    ]
    blocks += [
        Block((name,), None, answers=answers.ask(name, None, ())) for name in gathered.missing
    ]
    return Report(
        tuple(blocks),
        gathered.functions,
        kernels,
        printed,
        (*taken.notes, *doubts, *(f"nothing is called {glob}" for glob in gathered.idle)),
        gathered.unknown,
        gathered.unknown_lines,
        answers.attachers,
    )


def _kernels(
    printed: Printed, release: Version | None, arch: str | None
) -> tuple[Kernels, tuple[str, ...]]:
    """The kernels to explain for, and what speaks against those that were named."""
    doubts = []
    oldest, newest = form.RELEASES[0], form.RELEASES[-1]
    known = f"{words.release(oldest)} to {words.release(newest)}"
    if printed.contradiction:
        doubts.append(f"no kernel from {known} prints all of this: edited, or of several kernels?")
    like = release
    if release is not None and release not in form.RELEASES:
        like = max((one for one in form.RELEASES if one <= release), default=oldest)
        doubts.append(f"cohabit knows how {known} print; {words.release(release)} is not of them")
    archs = form.ARCHES if arch is None else (arch,)
    kernels: dict[str, tuple[Version, ...]] = {}
    for one in archs:
        possible = printed.kernels.get(one, ())
        if release is None and possible:
            kernels[one] = possible
        elif release is not None and like in possible:
            kernels[one] = (release,)
    if not kernels:
        doubts.append("what --release and --arch say does not print in this form")
        versions = form.RELEASES if release is None else (release,)
        kernels = dict.fromkeys((arch,) if arch else printed.kernels, versions)
    return kernels, tuple(doubts)


def _surroundings(found: Iterable[tuple[User, ...]], whole: bool) -> Surroundings:
    """Whether a kprobe with a post_handler is on any function; ``whole``: if all are known."""
    armed = maybe = False
    for user in itertools.chain.from_iterable(found):
        armed |= user.kind == "kprobe-post"
        maybe |= "kprobe-post" in user.attachers
    return Surroundings(armed, maybe or not whole)


class _Answers:
    """Asks the policy, once for each kind of record."""

    def __init__(
        self, attachers: Sequence[str], kernels: Kernels, surroundings: Surroundings
    ) -> None:
        self.attachers = tuple(dict.fromkeys(attachers))
        self._kernels = kernels
        self._surroundings = surroundings
        self._known: dict[object, dict[str, tuple[Answer, ...]]] = {}

    def ask(
        self, title: str, record: Record | None, found: tuple[User, ...]
    ) -> dict[str, tuple[Answer, ...]]:
        """What each attacher's attach would give."""
        key = (
            _is_hook(title),
            record and (record.invalid, bool(record.count), record.flags & {"I", "D"}),
            frozenset(
                (user.kind in ("bpf", "direct"), user.known, user.attachers)
                for user in found
                if what_if.DECIDING & set(user.attachers)
            ),
        )
        if key not in self._known:
            self._known[key] = {
                attacher: what_if.what_if(
                    title, record, found, attacher, self._kernels, self._surroundings
                )
                for attacher in self.attachers
            }
        return self._known[key]

    def unknown(self) -> dict[str, tuple[Answer, ...]]:
        """For a record that is not complete."""
        kernels = tuple((arch, v[0], v[-1]) for arch, v in self._kernels.items())
        return {attacher: (Answer(kernels, ()),) for attacher in self.attachers}


def _is_hook(title: str) -> bool:
    """Whether the name alone lets fmod_ret in (kernel/bpf/verifier.c)."""
    return title.startswith("security_")


def _blocks(shape: Shape, found: tuple[User, ...], answers: _Answers) -> Iterable[Block]:
    """One block, or two where an answer depends on the functions' names."""
    record = shape.record
    block = Block(shape.titles, record, found, words.warnings(record, shape.cut), {})
    if shape.cut:
        yield replace(block, answers=answers.unknown())
        return
    halves: Iterable[tuple[str, ...]] = (shape.titles,)
    if "fmod_ret" in answers.attachers:
        halves = (
            tuple(title for title in shape.titles if _is_hook(title) is hook)
            for hook in (False, True)
        )
    for titles in halves:
        if titles:
            yield replace(block, titles=titles, answers=answers.ask(titles[0], record, found))
