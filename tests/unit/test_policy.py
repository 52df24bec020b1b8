# SPDX-License-Identifier: GPL-2.0-only
"""The rules of the model, each in every direction.

The tables here were written from the kernel's source and its mailing lists, not
from harness/policy: two readers of the policy must agree.
"""

from __future__ import annotations

import errno
import itertools

import pytest
from policy_help import (
    OFF,
    ON,
    OTHER,
    PROFILES,
    V5_10,
    V6_1,
    V6_12,
    V7_2,
    V7_3,
    F,
    attach,
    on,
    outcome,
    run,
    untold,
)

from harness.policy import rules
from harness.policy.attachers import ATTACHERS, CORE
from harness.policy.profile import NAMED, Profile, choose, semantics_for
from harness.policy.state import State
from harness.scenario.functions import FUNCTIONS
from harness.scenario.steps import Call, Detach

# --- every ordered pair ---------------------------------------------------------------------

#: Attachers that the policy treats alike, by a letter.
ALIKE = {
    "K": ("livepatch", "livepatch-replace"),
    "I": ("ipmodify",),
    "P": ("kprobe-post",),
    "D": ("direct",),
    "S": ("direct-share",),
    "R": ("direct-refuse",),
    "B": ("fentry", "fexit", "fmod_ret"),
    "p": ("kprobe", "kretprobe"),
    "o": ("ops", "ops-regs", "fprobe", "fprobe-exit", "kprobe-multi", "instance"),
    "t": ("function-tracer", "function-graph"),
}
# Rows are attached first, columns second.
# . both are on; i EBUSY one-ipmodify; d EBUSY one-direct; x EINVAL one-direct;
# s EBUSY self-must-agree; u EXDEV of the same; p EBUSY peer-must-agree; w EXDEV of the same.
MATRIX: dict[str, str] = {
    # Before sharing: whoever is direct excludes whoever modifies IP.
    "v5.10": """
          K I P D S R B p o t
        K . i i i i i i . . .
        I i i i i i i i . . .
        P i i . i i i i . . .
        D i i i d d d d . . .
        S i i i d d d d . . .
        R i i i d d d d . . .
        B i i i d d d . . . .
        p . . . . . . . . . .
        o . . . . . . . . . .
        t . . . . . . . . . .""",
    # With sharing: a direct call that has no ops_func does, or whose ops_func says no.
    "v6.1": """
          K I P D S R B p o t
        K . i i s . u . . . .
        I i i i s . u . . . .
        P i i . s . u . . . .
        D p p p d d d d . . .
        S . . . d d d d . . .
        R w w w d d d d . . .
        B . . . d d d . . . .
        p . . . . . . . . . .
        o . . . . . . . . . .
        t . . . . . . . . . .""",
}
MATRIX["v6.12"] = MATRIX["v6.1"]
# x86-64 from 7.0 on: BPF comes through update_ftrace_direct_add.
MATRIX["v7.2"] = MATRIX["v6.1"].replace("d d d d . . .", "d d d x . . .")
MATRIX["v7.3"] = MATRIX["v7.2"]
LETTERS = {
    "i": (errno.EBUSY, "one-ipmodify"),
    "d": (errno.EBUSY, "one-direct"),
    "x": (errno.EINVAL, "one-direct"),
    "s": (errno.EBUSY, "self-must-agree"),
    "u": (errno.EXDEV, "self-must-agree"),
    "p": (errno.EBUSY, "peer-must-agree"),
    "w": (errno.EXDEV, "peer-must-agree"),
    ".": (0, "welcome"),
}


def kinds(name: str) -> list[list[str]]:
    return [row.split() for row in MATRIX[name].strip().splitlines()]


def test_the_table_has_every_attacher_and_profile() -> None:
    assert sorted(a for alike in ALIKE.values() for a in alike) == sorted(ATTACHERS)
    assert sorted(MATRIX) == sorted(semantics_for(v).name for v in NAMED)
    for name in MATRIX:
        head, *rows = kinds(name)
        assert head == [row[0] for row in rows] == list(ALIKE)


@pytest.mark.parametrize("version", NAMED, ids=lambda v: f"{v[0]}.{v[1]}")
def test_every_ordered_pair(version: tuple[int, int]) -> None:
    profile = choose(f"{version[0]}.{version[1]}", {})
    seconds, *rows = kinds(profile.name)
    done = 0
    for row in rows:
        for letter, second_kind in zip(row[1:], seconds, strict=True):
            for first, second in itertools.product(ALIKE[row[0]], ALIKE[second_kind]):
                found = outcome(profile, first, second)
                assert found == LETTERS[letter], f"{first}, then {second}"
                done += 1
    assert done == len(ATTACHERS) ** 2


def both_stay(first: str, second: str) -> bool:
    """Whether the second does not take the first one's place: there is one tracer."""
    return first == second or {first, second} != {"function-tracer", "function-graph"}


@pytest.mark.parametrize("profile", [V5_10, V6_12, V7_2], ids=lambda p: p.name)
def test_on_different_functions_nobody_minds(profile: Profile) -> None:
    for first, second in itertools.product(ATTACHERS, repeat=2):
        if second == "fmod_ret":
            continue
        found, state = run(profile, on("a", first), on("b", second, OTHER), functions=(F, OTHER))
        assert [p.errno for p in found] == [(0,), (0,)], f"{first}, then {second}"
        assert len(state.attached) == (2 if both_stay(first, second) else 1)


@pytest.mark.parametrize("profile", [V5_10, V6_1, V6_12, V7_2], ids=lambda p: p.name)
def test_a_refusal_leaves_no_trace(profile: Profile) -> None:
    for first, second in itertools.product(ATTACHERS, repeat=2):
        alone, state = run(profile, *attach(first))
        both, after = run(profile, *attach(first, second))
        if both[1].errno == (0,):
            continue
        assert untold(after) == untold(state)
        assert both[1].registry == alone[0].registry
        assert both[1].behaviour == alone[0].behaviour
        assert both[1].livepatch == alone[0].livepatch
        # And when the first has left, the second is welcome.
        found, _ = run(profile, Detach("a"), on("b", second), state=after)
        assert [p.errno for p in found] == [(0,), (0,)]


def test_only_a_refused_livepatch_is_in_the_log() -> None:
    for first, second in itertools.product(ATTACHERS, repeat=2):
        found, _ = run(V6_12, *attach(first, second))
        refused = second.startswith("livepatch") and found[1].errno != (0,)
        error = found[1].errno[0]
        text = f"livepatch: failed to register ftrace handler for function '{F}' (-{error})"
        assert found[1].log == ((text,) if refused else ())


def test_of_several_functions_the_log_names_one_that_nobody_knows() -> None:
    lanes = ("security_cohabit_000", "security_cohabit_001")
    found, _ = run(V6_12, on("x", "ipmodify", lanes[1]), on("a", "livepatch", *lanes))
    assert found[1].log == ("livepatch: failed to register ftrace handler for function '",)


# --- three at a time ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("profile", "attachers", "letter"),
    [
        # The livepatch and its like see both: a direct call that agrees doesn't open the
        # door for a second IPMODIFY ops.
        (V6_12, ("livepatch", "fexit", "ipmodify"), "i"),
        (V6_12, ("livepatch", "fexit", "livepatch"), "."),
        (V6_12, ("livepatch", "fexit", "fentry"), "."),
        (V6_12, ("ops", "direct", "livepatch"), "p"),
        (V6_12, ("livepatch", "fentry", "direct"), "d"),
        (V6_12, ("kprobe", "kprobe-post", "livepatch"), "."),
        (V6_12, ("kprobe-post", "kprobe", "livepatch"), "i"),
        (V6_12, ("kprobe-post", "kretprobe", "direct"), "s"),
        (V7_2, ("ops", "direct-share", "fexit"), "x"),
        (V5_10, ("ops", "livepatch", "fexit"), "i"),
        (V5_10, ("fexit", "fentry", "livepatch"), "i"),
        (V5_10, ("livepatch", "livepatch", "ops-regs"), "."),
    ],
    ids=lambda v: "+".join(v) if isinstance(v, tuple) else None,
)
def test_third(profile: Profile, attachers: tuple[str, ...], letter: str) -> None:
    found, _ = run(profile, *attach(*attachers))
    assert (found[2].errno[0], found[2].rule.name) == LETTERS[letter]


def test_a_kprobe_stays_armed_as_it_was() -> None:
    """kernel/kprobes.c: who comes first on a function decides for the others (kprobe-post)."""
    steps = [*attach("kprobe-post", "kprobe"), Detach("a")]
    found, _ = run(V6_12, *steps, on("c", "ipmodify"), Detach("b"), on("c", "ipmodify"))
    assert [p.errno[0] for p in found[-3:]] == [errno.EBUSY, 0, 0]


# --- kernel.ftrace_enabled ------------------------------------------------------------------

LIVEPATCHES = set(ALIKE["K"])
PERMANENT = {
    "v5.10": {a for letter in "KDSRB" for a in ALIKE[letter]},
    "v6.1": LIVEPATCHES,
    "v6.12": LIVEPATCHES,
    "v7.2": LIVEPATCHES,
}


@pytest.mark.parametrize("attacher", ATTACHERS)
@pytest.mark.parametrize("profile", [V5_10, V6_1, V6_12, V7_2], ids=lambda p: p.name)
def test_permanent_keeps_enabled(profile: Profile, attacher: str) -> None:
    found, state = run(profile, *attach(attacher), OFF)
    if attacher in PERMANENT[profile.name]:
        assert (found[1].errno, found[1].rule) == ((errno.EBUSY,), rules.PERMANENT_KEEPS_ENABLED)
        assert found[1].ftrace_enabled == 1
        assert found[1].behaviour == found[0].behaviour
        assert found[1].registry == found[0].registry
    else:
        assert (found[1].errno, found[1].rule) == ((0,), rules.OFF_IS_OFF)
        assert found[1].ftrace_enabled == 0
        assert found[1].registry == {F: None}
    assert len(state.attached) == 1


@pytest.mark.parametrize("attacher", ATTACHERS)
@pytest.mark.parametrize("profile", [V5_10, V6_1, V6_12, V7_2], ids=lambda p: p.name)
def test_permanent_needs_enabled(profile: Profile, attacher: str) -> None:
    found, state = run(profile, OFF, *attach(attacher))
    if attacher in PERMANENT[profile.name]:
        assert (found[1].errno[0], found[1].rule.name) == (errno.EBUSY, "permanent-needs-enabled")
        assert state.attached == ()
    else:
        assert found[1].errno == (0,)
    assert found[1].registry == {F: None}


def test_a_conflict_is_named_before_the_sysctl_where_the_kernel_looks_first() -> None:
    """All say EBUSY; but a peer is asked before the sysctl is looked at, IPMODIFY after."""
    for first, rule in (("ipmodify", "permanent-needs-enabled"), ("direct", "peer-must-agree")):
        found, _ = run(V6_12, OFF, on("a", first), on("b", "livepatch"))
        assert (found[2].errno[0], found[2].rule.name) == (errno.EBUSY, rule)


def test_one_direct_ops_is_permanent_but_once() -> None:
    """5.10: direct_ops is registered with its first function, and only looked at then."""
    _, state = run(V5_10, on("a", "direct"))
    off = State(attached=state.attached, ftrace_enabled=False)
    found, _ = run(V5_10, on("b", "fentry", OTHER), on("c", "livepatch", OTHER), state=off)
    assert [(p.errno[0], p.rule.name) for p in found] == [
        (0, "welcome"), (errno.EBUSY, "permanent-needs-enabled"),
    ]  # fmt: skip


@pytest.mark.parametrize("attacher", ["", *ATTACHERS])
def test_from_7_3_on_ftrace_stays_on(attacher: str) -> None:
    steps = attach(attacher) if attacher else []
    found, state = run(V7_3, *steps, OFF, ON)
    refused, rewritten = found[-2:]
    assert (refused.errno, refused.rule) == ((errno.EOPNOTSUPP,), rules.DISABLING_DEPRECATED)
    assert (refused.ftrace_enabled, rewritten.errno) == (1, (0,))
    assert state.ftrace_enabled


@pytest.mark.parametrize("attacher", [a for a in ATTACHERS if a not in LIVEPATCHES])
def test_off_is_off_and_on_brings_back(attacher: str) -> None:
    found, _ = run(V6_12, *attach(attacher), OFF, ON, Detach("a"))
    attached, off, back, gone = found
    assert off.behaviour[F].body == "original"
    assert off.behaviour[F].hits == dict.fromkeys(attached.behaviour[F].hits, 0)
    assert attached.behaviour[F].hits == {"a": 1}
    assert (back.registry, back.behaviour) == (attached.registry, attached.behaviour)
    assert gone.registry == {F: None}


def test_writing_what_is_there_already() -> None:
    found, state = run(V6_12, ON, OFF, OFF, ON)
    assert [p.errno for p in found] == [(0,)] * 4
    assert [p.ftrace_enabled for p in found] == [1, 0, 0, 1]
    assert state == State()


# --- where BPF programs go, and how many ----------------------------------------------------


@pytest.mark.parametrize("attacher", ["fentry", "fexit"])
def test_arguments_on_the_stack(attacher: str) -> None:
    for profile, expected in ((V5_10, 524), (V6_1, 524), (V6_12, 0), (V7_2, 0), (V7_3, 0)):
        steps = attach(attacher, function="cohabit_f8")
        found, _ = run(profile, *steps, functions=("cohabit_f8",))
        assert found[0].errno == (expected,)
        assert found[0].rule.name == ("trampoline-args" if expected else "welcome")
    found, _ = run(V6_1, *attach(attacher, function="cohabit_f6"), functions=("cohabit_f6",))
    assert found[0].errno == (0,)
    assert semantics_for((6, 5)).trampoline_args < 8 <= semantics_for((6, 6)).trampoline_args


def test_only_bpf_minds_arguments() -> None:
    for attacher in set(ATTACHERS) - set(ALIKE["B"]):
        steps = attach(attacher, function="cohabit_f8")
        assert run(V5_10, *steps, functions=("cohabit_f8",))[0][0].errno == (0,), attacher


@pytest.mark.parametrize("function", FUNCTIONS)
def test_fmod_ret_goes_on_some_functions_only(function: str) -> None:
    (found,), _ = run(V6_12, *attach("fmod_ret", function=function), functions=(function,))
    if function.startswith("security_"):
        assert found.errno == (0,)
    else:
        assert (found.errno[0], found.rule.name) == (errno.EINVAL, "fmod_ret-where")


@pytest.mark.parametrize(
    ("profile", "programs", "most"),
    # Before 6.0 40, and fmod_ret is not counted, then 38 of all kinds, and 36 since 7.2.
    [(V5_10, ("fentry",), 40), (V5_10, ("fentry", "fexit"), 40), (V6_1, ("fentry", "fexit"), 38),
     (V6_1, ("fentry", "fmod_ret"), 38), (V7_2, ("fexit",), 36)],
    ids=lambda v: "+".join(v) if isinstance(v, tuple) else None,
)  # fmt: skip
def test_as_many_programs_as_there_may_be(
    profile: Profile, programs: tuple[str, ...], most: int
) -> None:
    steps = [on(f"n{n}", programs[n % len(programs)]) for n in range(most)]
    found, state = run(profile, *steps, on("more", "fentry"), Detach("n1"), on("more", "fentry"))
    assert {p.errno for p in found[:most]} == {(0,)}
    assert [(p.errno[0], p.rule.name) for p in found[most:]] == [
        (errno.E2BIG, "trampoline-links"), (0, "detach-always"), (0, "welcome"),
    ]  # fmt: skip
    assert len(state.attached) == most


def test_fmod_ret_programs_were_not_counted_before_6_0() -> None:
    steps = [on(f"n{n}", "fmod_ret" if n % 2 else "fentry") for n in range(42)]
    found, _ = run(V5_10, *steps)
    assert {p.errno for p in found} == {(0,)}


# --- many functions -------------------------------------------------------------------------

LANES = ("security_cohabit_000", "security_cohabit_001", "security_cohabit_002")


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("attacher", [a for a in CORE if not ATTACHERS[a].single])
def test_one_function_refuses_for_all(attacher: str, place: int) -> None:
    alone = outcome(V6_12, "ipmodify", attacher)
    steps = [on("x", "ipmodify", LANES[place]), on("a", attacher, *LANES)]
    found, state = run(V6_12, *steps, functions=LANES)
    assert (found[1].errno[0], found[1].rule.name) == alone
    shown = [f for f in LANES if found[1].registry[f]]
    assert shown == ([LANES[place]] if alone[0] else list(LANES))
    assert [a.id for a in state.attached] == (["x"] if alone[0] else ["x", "a"])


def test_an_ops_that_is_there_is_asked_only_for_new_functions() -> None:
    """A livepatch joins the first one's ops on one function, and is refused on the other."""
    steps = [on("a", "livepatch", LANES[0]), on("i", "ipmodify", LANES[1])]
    found, _ = run(V6_12, *steps, on("b", "livepatch", LANES[0]), on("c", "livepatch", *LANES[:2]))
    assert [p.errno[0] for p in found] == [0, 0, 0, errno.EBUSY]


# --- the rules themselves -------------------------------------------------------------------


def test_rules_have_names_sources_and_texts() -> None:
    for name, rule in rules.RULES.items():
        assert rule.name == name
        assert rule.text.endswith("."), name
        assert rule.source.startswith(("kernel/", "arch/", "include/")), name
        assert rule.scenarios, name
        assert set(rule.arches) <= {"x86-64", "arm64"}
        assert rule.until is None or rule.since <= rule.until, name


def test_every_refusal_is_one_of_the_rules() -> None:
    """And what is refused nowhere here has no business among the refusals."""
    seen = set()
    for profile in PROFILES.values():
        for first, second in itertools.product(ATTACHERS, repeat=2):
            for steps in ([*attach(first, second), OFF, Detach("a")], [OFF, *attach(first)]):
                seen |= {p.rule for p in run(profile, *steps)[0]}
    seen |= {p.rule for p in run(V6_12, Call())[0]}
    assert {rule.name for rule in seen} == {
        "welcome", "detach-always", "each-sees-each-call", "off-is-off", "one-ipmodify",
        "one-direct", "self-must-agree", "peer-must-agree", "permanent-needs-enabled",
        "permanent-keeps-enabled", "disabling-deprecated",
    }  # fmt: skip
    assert seen <= set(rules.RULES.values())
