# SPDX-License-Identifier: GPL-2.0-only
"""Would an attach succeed?  The policy's answer, for a function that is known by its record only.

A record does not tell everything, so there are several *worlds*: things that may be
behind it.  The policy (policy/refusals.py) is asked in each of them, for each release
that is possible.  What no record can tell at all becomes a condition.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from harness.ftrace import Record
from harness.policy import profile as profiles
from harness.policy import refusals, rules
from harness.policy.attachers import ATTACHERS, Attacher
from harness.policy.known import KNOWN
from harness.policy.profile import FIRST, Profile, Version
from harness.policy.state import Attached, State

from . import words
from .form import RELEASES, Kernels
from .users import User

#: What can be asked for, in words.  Not ``direct-refuse``: only cohabit has one.
TITLES: dict[str, str] = {
    "livepatch": "a livepatch",
    "direct": "a direct call without an ops_func",
    "direct-share": "a direct call whose ops_func agrees",
    "fentry": "a BPF fentry program",
    "fexit": "a BPF fexit program",
    "fmod_ret": "a BPF fmod_ret program",
    "ipmodify": "an ftrace_ops with IPMODIFY",
    "ops": "an ftrace_ops",
    "ops-regs": "an ftrace_ops that saves all registers",
    "kprobe": "a kprobe",
    "kprobe-post": "a kprobe with a post_handler",
    "kretprobe": "a kretprobe",
    "fprobe": "an fprobe",
    "fprobe-exit": "an fprobe with an exit handler",
    "kprobe-multi": "a BPF kprobe-multi link",
    "function-tracer": "the function tracer",
    "function-graph": "the function graph tracer",
    "instance": "the function tracer in an instance",
    "livepatch-replace": "a livepatch with replace",
}

#: Attachers whose presence can decide about another.
DECIDING = frozenset(
    name
    for name, kind in ATTACHERS.items()
    if kind.ipmodify or kind.direct or kind.ops in ("livepatch", "bpf", "kprobe")
)
#: Both need facts about the function that are not in the registry: see _conditions.
_NOT_ASKED = frozenset({rules.NOT_MODIFIABLE.name, rules.TRAMPOLINE_ARGS.name})
#: Stands for any other function.
_ELSEWHERE = " elsewhere"
_F = "f"


@dataclass(frozen=True)
class Outcome:
    """What the attach gives: ``errno`` 0 where it succeeds, None where no number is sure;
    ``rule``: the name of the rule that decides, or nothing; ``why``: words beside it."""

    ok: bool
    errno: int | None = 0
    rule: str = ""
    why: str = ""


@dataclass(frozen=True)
class Case:
    """An outcome and when it is that: each of ``when`` is one set of facts that make it."""

    outcome: Outcome
    when: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Condition:
    """Something that the attach needs as well and no record tells.

    Without it ``errno`` refuses by ``rule``; 0 or no rule where that is not of the policy.
    """

    text: str
    errno: int
    rule: str


@dataclass(frozen=True)
class Answer:
    """On which kernels (first and last release of each architecture) what would come of it.

    ``yes``, ``no`` or ``depends``, as all, none or some of the ``cases`` succeed; ``unknown``
    where the record is not complete.
    """

    kernels: tuple[tuple[str, Version, Version], ...]
    cases: tuple[Case, ...]
    conditions: tuple[Condition, ...] = ()

    @property
    def verdict(self) -> str:
        """One word."""
        fine = {case.outcome.ok for case in self.cases}
        if not fine:
            return "unknown"
        return "depends" if len(fine) == 2 else "yes" if True in fine else "no"


@dataclass(frozen=True)
class _World:
    """What may be behind a record: the facts that were chosen, by what they are about."""

    facts: tuple[tuple[str, str], ...] = ()
    attachers: tuple[str, ...] = ()
    post_armed: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Surroundings:
    """What the rest of the text tells of a kprobe with a post_handler on another function."""

    armed: bool = False
    maybe_armed: bool = False


def what_if(
    name: str,
    record: Record | None,
    found: Sequence[User],
    attacher: str,
    kernels: Kernels,
    surroundings: Surroundings = Surroundings(),
) -> tuple[Answer, ...]:
    """Whether an attacher could come to a function now, for each kernel that is possible.

    ``record`` is None for a function that has none; ``found`` its users (users.py).
    Answers that are equal on neighbouring releases are one.
    """
    answers: dict[tuple[tuple[Case, ...], tuple[Condition, ...]], Answer] = {}
    for arch, versions in kernels.items():
        for cases, first, last in _ranges(record, found, attacher, arch, versions, surroundings):
            conditions: tuple[Condition, ...] = ()
            if any(case.outcome.ok for case in cases):
                kind = ATTACHERS[attacher]
                conditions = tuple(_conditions(name, record, found, kind, arch, first, last))
            old = answers.get((cases, conditions))
            spans = (*(old.kernels if old else ()), (arch, first, last))
            answers[cases, conditions] = Answer(spans, cases, conditions)
    return tuple(answers.values())


def _ranges(
    record: Record | None, found: Sequence[User], attacher: str, arch: str,
    versions: Iterable[Version], surroundings: Surroundings,
) -> list[tuple[tuple[Case, ...], Version, Version]]:  # fmt: skip
    """The outcomes with the first and the last release that have them."""
    ranges: list[tuple[tuple[Case, ...], Version, Version]] = []
    # Few releases changed the policy.
    known: dict[object, tuple[Case, ...]] = {}
    for version in versions:
        doubt = _doubt(attacher, arch, version)
        key = _missing(attacher, arch, version), _profile(arch, version).semantics, doubt
        if key not in known:
            known[key] = _cases(record, found, attacher, arch, version, surroundings)
        cases, first = known[key], version
        if ranges and ranges[-1][0] == cases:
            first = ranges.pop()[1]
        ranges.append((cases, first, version))
    return ranges


def _cases(
    record: Record | None, found: Sequence[User], attacher: str, arch: str, version: Version,
    surroundings: Surroundings,
) -> tuple[Case, ...]:  # fmt: skip
    if record and record.invalid:
        why = "this is no function any more: the linker dropped it, and ftrace keeps its place off"
        return (Case(Outcome(False, None, "", why)),)
    if missing := _missing(attacher, arch, version):
        return (Case(missing),)
    profile = _profile(arch, version)
    doubt = _doubt(attacher, arch, version)
    worlds = _worlds(record, found, profile, surroundings)
    results = [(world, _outcome(world, attacher, profile, doubt)) for world in worlds]
    if all(outcome.ok for _, outcome in results) and len({outcome for _, outcome in results}) > 1:
        # Whom it joins, if anybody, makes no difference.
        return (Case(Outcome(True)),)
    return _gathered(results)


@functools.cache
def _profile(arch: str, version: Version) -> Profile:
    """The policy of a release on an architecture, without a name."""
    profile = profiles.choose(words.release(version), {}, arch=arch)
    return replace(profile, semantics=replace(profile.semantics, name=""), without=_NOT_ASKED)


def _missing(attacher: str, arch: str, version: Version) -> Outcome | None:
    """Where a kernel has no such attacher."""
    kind = ATTACHERS[attacher]
    if kind.ops in ("fprobe", "fprobe-exit") and version < (first := FIRST["fprobe"][arch]):
        where = "there are" if arch == "x86-64" else f"{arch} has"
        return Outcome(False, None, "", f"{where} no fprobes before {words.release(first)}")
    if kind.direct and version < (first := FIRST["direct"].get(arch, (0, 0))):
        rule = rules.BPF_NEEDS_DIRECT if kind.bpf else rules.DIRECT_NEEDS_CALL_OPS
        why = f"{arch} has no direct calls before {words.release(first)}"
        return Outcome(False, rule.errno, rule.name, why)
    if attacher == "direct-share" and version < (6, 0):
        return Outcome(False, None, "", "a direct ops has no ops_func before 6.0")
    if kind.ops == "livepatch" and version < (first := FIRST["livepatch"].get(arch, (0, 0))):
        return Outcome(False, None, "", f"{arch} has no livepatch before {words.release(first)}")
    return None


def _doubt(attacher: str, arch: str, version: Version) -> str:
    """What else is known of a refusal on that release."""
    lost = next(known for known in KNOWN if known.name == "kprobe-arm-lost")
    # Also of later releases than the last one that was run.
    if attacher == "kprobe-post" and version >= lost.first and arch in lost.arches:
        return f"register_kprobe() may say 0 all the same: {lost.page}"
    return ""


def _outcome(world: _World, attacher: str, profile: Profile, doubt: str) -> Outcome:
    """What the policy says in one world; ``doubt`` goes with a refusal."""
    state = State(
        tuple(
            Attached(str(number), name, (_F,), number)
            for number, name in enumerate(world.attachers)
        ),
        post_armed=world.post_armed,
    )
    new = Attached("new", attacher, (_F,), 0)
    refused = refusals.refusal(state, new, profile)
    if refused and "direct-refuse" in world.attachers and refused[1] in _SHARING:
        # In the policy it is cohabit's own, which gives one errno.
        why = "what its ops_func gives"
        return Outcome(False, None, rules.REFUSAL_IS_VERBATIM.name, why)
    if refused:
        return Outcome(False, refused[0], refused[1].name, doubt)
    joined = next((a for a in world.attachers if _joins(attacher, a)), None)
    return Outcome(True, 0, _JOINED[ATTACHERS[attacher].ops] if joined else "")


_SHARING = (rules.PEER_MUST_AGREE, rules.SELF_MUST_AGREE)
#: By the shared ftrace_ops: the rule that lets an attacher join the one that is there.
_JOINED = {
    "livepatch": rules.LIVEPATCHES_SHARE_OPS.name,
    "bpf": rules.BPF_SHARES_TRAMPOLINE.name,
    "kprobe": rules.KPROBES_SHARE_OPS.name,
}


def _joins(new: str, old: str) -> bool:
    ops = ATTACHERS[new].ops
    return ops in _JOINED and ATTACHERS[old].ops == ops


# --- worlds -----------------------------------------------------------------------------------

_DIRECT_WORDS = {
    "fentry": "the direct call is BPF's",
    "direct-share": "the direct call has an ops_func and it agrees to share",
    "direct": "the direct call has no ops_func",
    "direct-refuse": "the direct call has an ops_func and it refuses to share",
}
_HOLDER_WORDS = {
    "livepatch": "the user behind I is a livepatch",
    "ipmodify": "the user behind I is a module's ftrace_ops",
    "kprobe-post": "the users behind I are kprobes",
}


_KPROBES = [
    ("kprobes", "there are kprobes on it", "kprobe"),
    ("kprobes", "there are no kprobes on it", ""),
]


def _worlds(
    record: Record | None, found: Sequence[User], profile: Profile, surroundings: Surroundings
) -> list[_World]:
    if record is None or not record.count:
        return [_World()]
    old = profile.semantics.direct_is_ipmodify
    sure: list[str] = []
    choices: list[list[tuple[str, str, str]]] = []
    for user in found:
        if user.kind == "direct" and old:
            # No direct ops had an ops_func.
            there = [name for name in user.attachers if name in ("fentry", "direct")]
            choices.append(_choice("direct", there, _DIRECT_WORDS))
        elif user.kind == "direct":
            choices.append(_choice("direct", user.attachers, _DIRECT_WORDS))
        elif user.known == "flag" and not (old and "D" in record.flags):
            choices.append(_choice("holder", user.attachers, _HOLDER_WORDS))
        elif user.known in ("flag", "untold"):
            # On 5.19 and older the I beside D is the direct call's own, and the user that
            # was taken to have it is just another one.
            if {"kprobe", "kprobe-post"} & set(user.attachers) and _KPROBES not in choices:
                choices.append(_KPROBES)
        else:
            sure += [name for name in user.attachers[:1] if name not in sure]
    if surroundings.armed or surroundings.maybe_armed:
        armed = ("armed", "a kprobe with a post_handler is on another function", _ELSEWHERE)
        none = ("armed", "no kprobe with a post_handler is on another function", "")
        choices.append([armed] if surroundings.armed else [armed, none])
    worlds = [_world(sure, chosen) for chosen in itertools.product(*choices)]
    return [world for world in worlds if _possible(world, record, old)]


def _choice(
    about: str, attachers: Sequence[str], words: dict[str, str]
) -> list[tuple[str, str, str]]:
    return [(about, words[name], name) for name in attachers]


def _world(sure: Sequence[str], chosen: Iterable[tuple[str, str, str]]) -> _World:
    facts, attachers, armed = [], list(sure), set()
    for about, text, name in chosen:
        facts.append((about, text))
        if name == _ELSEWHERE:
            armed.add(_ELSEWHERE)
        elif name:
            attachers.append(name)
    if "kprobe-post" in attachers:
        armed.add(_F)
    return _World(tuple(facts), tuple(attachers), frozenset(armed))


def _possible(world: _World, record: Record, old: bool) -> bool:
    """Whether the policy would have let all of these come together."""
    there = set(world.attachers)
    if {"kprobe", "kprobe-post"} <= there:
        # All kprobes of a function have one ftrace_ops (kernel/kprobes.c).
        return False
    # A direct call without an ops_func does not share its function, but see rule
    # peers-asked-at-registration: a kprobe may come to it all the same.
    alone = "I" not in record.flags or not {"direct", "direct-refuse"} & there
    return old or alone or "kprobe-post" in there


def _gathered(results: Sequence[tuple[_World, Outcome]]) -> tuple[Case, ...]:
    """The outcomes with the facts that make them, without those that make no difference."""
    told: dict[tuple[tuple[str, str], ...], Outcome] = {w.facts: o for w, o in results}
    for about in dict.fromkeys(about for facts in told for about, _ in facts):
        rest: dict[tuple[tuple[str, str], ...], set[Outcome]] = {}
        for facts, outcome in told.items():
            rest.setdefault(_without(facts, about), set()).add(outcome)
        if all(len(outcomes) == 1 for outcomes in rest.values()):
            told = {facts: outcomes.pop() for facts, outcomes in rest.items()}
    cases: dict[Outcome, list[tuple[str, ...]]] = {}
    for facts, outcome in told.items():
        when = tuple(text for _, text in facts)
        if when not in cases.setdefault(outcome, []):
            cases[outcome].append(when)
    if len(cases) == 1:
        return (Case(next(iter(cases))),)
    order = sorted(cases, key=lambda outcome: not outcome.ok)
    return tuple(Case(outcome, tuple(cases[outcome])) for outcome in order)


def _without(facts: tuple[tuple[str, str], ...], about: str) -> tuple[tuple[str, str], ...]:
    return tuple(fact for fact in facts if fact[0] != about)


# --- conditions -------------------------------------------------------------------------------


def _conditions(
    name: str, record: Record | None, found: Sequence[User], kind: Attacher, arch: str,
    first: Version, last: Version,
) -> Iterable[Condition]:  # fmt: skip
    """What must hold besides, on any release from the first to the last."""
    old = profiles.semantics_for(first, arch)
    if record is None:
        yield Condition("ftrace knows the function (see available_filter_functions)", 0, "")
    if kind.ops == "livepatch":
        yield _condition("no livepatch is in transition", rules.ONE_TRANSITION)
    if record is None and (kind.permanent or (kind.direct and old.direct_is_permanent)):
        # A function in enabled_functions shows that tracing is on.
        yield _condition("kernel.ftrace_enabled is 1", rules.PERMANENT_NEEDS_ENABLED)
    if kind.name == "fmod_ret" and not name.startswith("security_"):
        yield _condition("the function is error-injectable", rules.NOT_MODIFIABLE)
    rule = rules.BPF_NEEDS_DIRECT if kind.bpf else rules.DIRECT_NEEDS_CALL_OPS
    if kind.direct and rule.holds(arch, first) and not _tells_call_ops(record):
        text = "the kernel has CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS (not with CFI or gcc's -Os)"
        yield _condition(text, rule)
    limit = rules.TRAMPOLINE_ARGS.span(arch)[1]
    if kind.bpf and limit and first <= limit:
        until = f" (up to {limit[0]}.{limit[1]})" if last > limit else ""
        text = f"the function has at most {old.trampoline_args} arguments{until}"
        yield _condition(text, rules.TRAMPOLINE_ARGS)
    if kind.bpf and any("fentry" in user.attachers for user in found):
        text = f"fewer than {_most_links(arch, first, last)} BPF programs are on it"
        yield _condition(text, rules.TOO_MANY_PROGRAMS)
    if kind.exclusive:
        yield Condition("what is in current_tracer may be replaced", 0, rules.ONE_TRACER.name)


def _tells_call_ops(record: Record | None) -> bool:
    """Whether a record of arm64 shows that there are direct calls, which need CALL_OPS."""
    return record is not None and bool({"O", "D"} & record.flags)


def _most_links(arch: str, first: Version, last: Version) -> str:
    """How many programs a trampoline takes on the last release, and before on others."""
    most = profiles.semantics_for(last, arch).trampoline_links
    before: list[str] = []
    later = last, most
    for version in reversed([v for v in RELEASES if first <= v <= last]):
        links = profiles.semantics_for(version, arch).trampoline_links
        if links != later[1]:
            before.append(f"{links} before {words.release(later[0])}")
        later = version, links
    return f"{most} ({', '.join(before)})" if before else f"{most}"


def _condition(text: str, rule: rules.Rule) -> Condition:
    return Condition(text, rule.errno, rule.name)
