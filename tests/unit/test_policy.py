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
    outcome,
    run,
)

from harness.policy import rules
from harness.policy.attachers import ATTACHERS
from harness.policy.profile import NAMED, Profile, choose, semantics_for
from harness.policy.state import State
from harness.scenario.steps import Attach, Call, Detach

# --- every ordered pair ---------------------------------------------------------------------

# Rows are attached first, columns second, both in this order:
ORDER = (
    "livepatch", "ipmodify", "direct", "direct-share", "fentry", "fexit", "fmod_ret", "ops",
    "ops-regs",
)  # fmt: skip
# . both are on; i EBUSY one-ipmodify; d EBUSY one-direct; x EINVAL one-direct;
# a EBUSY direct-must-agree.
MATRIX: dict[str, str] = {
    # Before sharing: whoever is direct excludes whoever modifies IP.
    "v5.10": """
        . i i i i i i . .
        i i i i i i i . .
        i i d d d d d . .
        i i d d d d d . .
        i i d d . . . . .
        i i d d . . . . .
        i i d d . . . . .
        . . . . . . . . .
        . . . . . . . . .""",
    # With sharing: only a direct call that has no ops_func does.
    "v6.1": """
        . i a . . . . . .
        i i a . . . . . .
        a a d d d d d . .
        . . d d d d d . .
        . . d d . . . . .
        . . d d . . . . .
        . . d d . . . . .
        . . . . . . . . .
        . . . . . . . . .""",
    # x86-64 from 7.0 on: BPF comes through update_ftrace_direct_add.
    "v7.2": """
        . i a . . . . . .
        i i a . . . . . .
        a a d d x x x . .
        . . d d x x x . .
        . . d d . . . . .
        . . d d . . . . .
        . . d d . . . . .
        . . . . . . . . .
        . . . . . . . . .""",
}
MATRIX["v6.12"] = MATRIX["v6.1"]
MATRIX["v7.3"] = MATRIX["v7.2"]
LETTERS = {
    "i": (errno.EBUSY, "one-ipmodify"),
    "d": (errno.EBUSY, "one-direct"),
    "x": (errno.EINVAL, "one-direct"),
    "a": (errno.EBUSY, "direct-must-agree"),
    ".": (0, "record-counts-ops"),
}


def test_the_table_has_every_attacher_and_profile() -> None:
    assert sorted(ORDER) == sorted(ATTACHERS)
    assert sorted(MATRIX) == sorted(semantics_for(v).name for v in NAMED)


@pytest.mark.parametrize("version", NAMED, ids=lambda v: f"{v[0]}.{v[1]}")
def test_every_ordered_pair(version: tuple[int, int]) -> None:
    profile = choose(f"{version[0]}.{version[1]}", {})
    for first, row in zip(ORDER, MATRIX[profile.name].strip().splitlines(), strict=True):
        for second, letter in zip(ORDER, row.split(), strict=True):
            expected = LETTERS[letter]
            assert outcome(profile, first, second) == expected, f"{first}, then {second}"


@pytest.mark.parametrize("profile", [V5_10, V6_12, V7_2], ids=lambda p: p.name)
def test_on_different_functions_nobody_minds(profile: Profile) -> None:
    for first, second in itertools.product(ATTACHERS, repeat=2):
        if second == "fmod_ret":
            continue
        steps = [Attach("a", first, F), Attach("b", second, OTHER)]
        found, state = run(profile, *steps, functions=(F, OTHER))
        assert [p.errno for p in found] == [(0,), (0,)], f"{first}, then {second}"
        assert len(state.attached) == 2


@pytest.mark.parametrize("profile", [V5_10, V6_1, V6_12, V7_2], ids=lambda p: p.name)
def test_a_refusal_leaves_no_trace(profile: Profile) -> None:
    for first, second in itertools.product(ATTACHERS, repeat=2):
        alone, state = run(profile, *attach(first))
        both, after = run(profile, *attach(first, second))
        if both[1].errno == (0,):
            continue
        assert after == state
        assert both[1].registry == alone[0].registry
        assert both[1].behaviour == alone[0].behaviour
        assert both[1].livepatch == alone[0].livepatch
        # And when the first has left, the second is welcome.
        found, _ = run(profile, Detach("a"), Attach("b", second, F), state=after)
        assert [p.errno for p in found] == [(0,), (0,)]


def test_only_a_refused_livepatch_is_in_the_log() -> None:
    for first, second in itertools.product(ATTACHERS, repeat=2):
        found, _ = run(V6_12, *attach(first, second))
        refused = second == "livepatch" and found[1].errno != (0,)
        text = f"livepatch: failed to register ftrace handler for function '{F}' (-16)"
        assert found[1].log == ((text,) if refused else ())


# --- three at a time ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("profile", "attachers", "expected"),
    [
        # The livepatch and its like see both: a direct call that agrees doesn't open the
        # door for a second IPMODIFY ops.
        (V6_12, ("livepatch", "fexit", "ipmodify"), (errno.EBUSY, "one-ipmodify")),
        (V6_12, ("livepatch", "fexit", "livepatch"), (0, "record-counts-ops")),
        (V6_12, ("livepatch", "fexit", "fentry"), (0, "record-counts-ops")),
        (V6_12, ("ops", "direct", "livepatch"), (errno.EBUSY, "direct-must-agree")),
        (V6_12, ("livepatch", "fentry", "direct"), (errno.EBUSY, "one-direct")),
        (V7_2, ("ops", "direct-share", "fexit"), (errno.EINVAL, "one-direct")),
        (V5_10, ("ops", "livepatch", "fexit"), (errno.EBUSY, "one-ipmodify")),
        (V5_10, ("fexit", "fentry", "livepatch"), (errno.EBUSY, "one-ipmodify")),
        (V5_10, ("livepatch", "livepatch", "ops-regs"), (0, "record-counts-ops")),
    ],
    ids=lambda v: "+".join(v) if isinstance(v, tuple) and isinstance(v[0], str) else None,
)
def test_third(profile: Profile, attachers: tuple[str, ...], expected: tuple[int, str]) -> None:
    found, _ = run(profile, *attach(*attachers))
    assert (found[2].errno[0], found[2].rule.name) == expected


# --- kernel.ftrace_enabled ------------------------------------------------------------------

PERMANENT = {
    "v5.10": {"livepatch", "direct", "direct-share", "fentry", "fexit", "fmod_ret"},
    "v6.1": {"livepatch"},
    "v6.12": {"livepatch"},
    "v7.2": {"livepatch"},
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


def test_a_conflict_is_named_before_the_sysctl() -> None:
    """Both say EBUSY; a report names the one that would still be there with ftrace on."""
    found, _ = run(V6_12, OFF, Attach("a", "ipmodify", F), Attach("b", "livepatch", F))
    assert (found[2].errno[0], found[2].rule.name) == (errno.EBUSY, "one-ipmodify")


@pytest.mark.parametrize("attacher", ["", *ATTACHERS])
def test_from_7_3_on_ftrace_stays_on(attacher: str) -> None:
    steps = attach(attacher) if attacher else []
    found, state = run(V7_3, *steps, OFF, ON)
    refused, rewritten = found[-2:]
    assert (refused.errno, refused.rule) == ((errno.EOPNOTSUPP,), rules.DISABLING_DEPRECATED)
    assert (refused.ftrace_enabled, rewritten.errno) == (1, (0,))
    assert state.ftrace_enabled


@pytest.mark.parametrize("attacher", [a for a in ATTACHERS if a != "livepatch"])
def test_off_is_off_and_on_brings_back(attacher: str) -> None:
    found, _ = run(V6_12, *attach(attacher), OFF, ON, Detach("a"))
    attached, off, on, gone = found
    assert off.behaviour[F].body == "original"
    assert off.behaviour[F].hits == dict.fromkeys(attached.behaviour[F].hits, 0)
    assert (on.registry, on.behaviour) == (attached.registry, attached.behaviour)
    assert gone.registry == {F: None}


def test_writing_what_is_there_already() -> None:
    found, state = run(V6_12, ON, OFF, OFF, ON)
    assert [p.errno for p in found] == [(0,)] * 4
    assert [p.ftrace_enabled for p in found] == [1, 0, 0, 1]
    assert state == State()


# --- arguments of a BPF trampoline ----------------------------------------------------------


@pytest.mark.parametrize("attacher", ["fentry", "fexit"])
def test_arguments_on_the_stack(attacher: str) -> None:
    for profile, expected in ((V5_10, 524), (V6_1, 524), (V6_12, 0), (V7_2, 0), (V7_3, 0)):
        steps = attach(attacher, function="cohabit_f8")
        found, _ = run(profile, *steps, functions=("cohabit_f8",))
        assert found[0].errno == (expected,)
        assert found[0].rule.name == ("trampoline-args" if expected else "record-counts-ops")
    found, _ = run(V6_1, *attach(attacher, function="cohabit_f6"), functions=("cohabit_f6",))
    assert found[0].errno == (0,)
    assert semantics_for((6, 5)).trampoline_args < 8 <= semantics_for((6, 6)).trampoline_args


def test_only_bpf_minds_arguments() -> None:
    for attacher in ("livepatch", "direct", "direct-share", "ipmodify", "ops", "ops-regs"):
        steps = attach(attacher, function="cohabit_f8")
        assert run(V5_10, *steps, functions=("cohabit_f8",))[0][0].errno == (0,)


# --- the rules themselves -------------------------------------------------------------------


def test_rules_have_names_sources_and_texts() -> None:
    names = [rule.name for rule in rules.RULES]
    assert len(set(names)) == len(names)
    for rule in rules.RULES:
        assert rule.text.endswith("."), rule.name
        assert rule.source.startswith(("kernel/", "arch/")), rule.name
    assert set(rules.ATTACH_RULES) <= set(rules.RULES)


def test_every_rule_decides_something() -> None:
    """A rule that nothing can break would be a promise without a witness."""
    seen = set()
    for profile in PROFILES.values():
        for first, second in itertools.product(ATTACHERS, repeat=2):
            steps = [*attach(first, second), OFF, Detach("a"), Detach("b")]
            seen |= {p.rule.name for p in run(profile, *steps)[0]}
            seen |= {p.rule.name for p in run(profile, OFF, *attach(first))[0]}
        f8 = run(profile, *attach("fentry", function="cohabit_f8"), functions=("cohabit_f8",))
        seen |= {p.rule.name for p in f8[0]}
    seen |= {p.rule.name for p in run(V6_12, Call())[0]}
    # Its witness is that nothing changed: see harness/oracle.py.
    assert seen == {rule.name for rule in rules.RULES} - {rules.REFUSED_NO_TRACE.name}
