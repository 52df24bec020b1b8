# SPDX-License-Identifier: GPL-2.0-only
"""The policy on arm64: what its kernels do otherwise than those of x86-64.

Written from the kernel's source (6.12, 7.2, 7.3), not from harness/policy.
"""

from __future__ import annotations

import errno
import itertools
from pathlib import Path

import pytest
from policy_help import (
    ARM6_12,
    ARM7_2,
    ARM7_3,
    ARM_BARE,
    OFF,
    ON,
    OTHER,
    V7_2,
    F,
    attach,
    on,
    outcome,
    run,
    shown,
)

from harness import oracle
from harness.errno_names import ENOTSUPP
from harness.ftrace import parse
from harness.policy import known
from harness.policy.attachers import ATTACHERS
from harness.policy.profile import Profile, choose
from harness.scenario import catalogue
from harness.scenario.steps import Call, Detach, Load, Misuse, Modify, Step, Unload

DATA = Path(__file__).parent.parent / "data" / "registry"
STOCK = {"6.12": ARM6_12, "7.2": ARM7_2, "7.3": ARM7_3}
stock = pytest.mark.parametrize("profile", STOCK.values(), ids=STOCK)

KPROBES = ("kprobe", "kprobe-post", "kretprobe")
DIRECT = ("direct", "direct-share", "direct-refuse")
BPF = ("fentry", "fexit", "fmod_ret")

# --- who is refused -------------------------------------------------------------------------

#: As in test_policy.py: rows are attached first, columns second.
ALIKE = {
    "K": ("livepatch", "livepatch-replace"),
    "I": ("ipmodify",),
    "D": ("direct",),
    "S": ("direct-share",),
    "R": ("direct-refuse",),
    "B": BPF,
    "p": KPROBES,
    "o": ("ops", "fprobe", "fprobe-exit", "kprobe-multi", "instance"),
    "t": ("function-tracer", "function-graph"),
}
MATRIX = """
      K I D S R B p o t
    K . i s . u . . . .
    I i i s . u . . . .
    D p p d d d d . . .
    S . . d d d d . . .
    R w w d d d d . . .
    B . . d d d . . . .
    p . . . . . . . . .
    o . . . . . . . . .
    t . . . . . . . . ."""
LETTERS = {
    "i": (errno.EBUSY, "one-ipmodify"),
    "d": (errno.EBUSY, "one-direct"),
    "s": (errno.EBUSY, "self-must-agree"),
    "u": (errno.EXDEV, "self-must-agree"),
    "p": (errno.EBUSY, "peer-must-agree"),
    "w": (errno.EXDEV, "peer-must-agree"),
    ".": (0, "welcome"),
}


@stock
def test_every_ordered_pair(profile: Profile) -> None:
    seconds, *rows = (row.split() for row in MATRIX.strip().splitlines())
    done = 0
    for row in rows:
        for letter, second_kind in zip(row[1:], seconds, strict=True):
            for first, second in itertools.product(ALIKE[row[0]], ALIKE[second_kind]):
                found = outcome(profile, first, second)
                assert found == LETTERS[letter], f"{first}, then {second}"
                done += 1
    # All but ops-regs.
    assert done == (len(ATTACHERS) - 1) ** 2


@stock
def test_nobody_gets_all_registers(profile: Profile) -> None:
    found, state = run(profile, on("a", "ops-regs"))
    assert (found[0].errno, found[0].rule.name) == ((errno.EINVAL,), "save-regs-needs-support")
    assert state.attached == ()
    # kernel/trace/ftrace.c: ftrace_startup asks that first.
    found, _ = run(profile, Misuse("kill-ftrace", F), on("a", "ops-regs"))
    assert (found[1].errno, found[1].rule.name) == ((errno.ENODEV,), "dead-ftrace")


@pytest.mark.parametrize("attacher", [*DIRECT, *BPF])
def test_without_call_ops_there_are_no_direct_calls(attacher: str) -> None:
    """include/linux/ftrace.h: register_ftrace_direct; kernel/bpf/trampoline.c: register_fentry."""
    bpf = attacher in BPF
    rule = "bpf-needs-direct" if bpf else "direct-needs-call-ops"
    found, state = run(ARM_BARE, on("a", attacher), Modify("a", 1), Detach("a"))
    assert [(p.errno, p.rule.name) for p in found] == [((ENOTSUPP if bpf else errno.ENODEV,), rule)]
    assert state.attached == ()
    # Whoever is there already, and with nothing alive.
    for before in (on("b", "ipmodify"), on("b", "livepatch"), Misuse("kill-ftrace", F)):
        assert run(ARM_BARE, before, on("a", attacher))[0][1].rule.name == rule
    # arm64 had none at all before 6.4, and 7.3 has a way without CALL_OPS.
    old = choose("6.3.0", {}, arch="arm64")
    assert run(old, on("a", attacher))[0][0].rule.name == rule
    options = {f"CONFIG_DYNAMIC_FTRACE_WITH_{what}": "y" for what in ("ARGS", "DIRECT_CALLS")}
    new = choose("7.3.0", options, arch="arm64")
    found, _ = run(new, on("a", attacher))
    assert found[0].errno == (0,)
    assert shown(found[0].registry[F]) == (1, "DM")


def test_what_bpf_looks_at_before_it_needs_a_direct_call() -> None:
    found, _ = run(ARM_BARE, on("a", "fmod_ret", OTHER), functions=(OTHER,))
    assert found[0].rule.name == "fmod_ret-where"
    # Whoever it is that a stub answers.
    for what in ("unregister-unknown", "modify-unknown", "register-twice", "no-filter"):
        found, _ = run(ARM_BARE, Misuse(f"direct-{what}", F))
        assert found[0].errno == (errno.ENODEV,)
        assert run(ARM7_2, Misuse(f"direct-{what}", F))[0][0].errno == (errno.EINVAL,)


@pytest.mark.parametrize(("release", "most"), [("6.12", 38), ("7.1", 38), ("7.2", 37), ("7.3", 37)])
def test_how_many_programs(release: str, most: int) -> None:
    profile = choose(release, {}, arch="arm64")
    found, _ = run(profile, *(on(f"n{n}", "fentry") for n in range(39)))
    assert [p.errno[0] for p in found] == [0] * most + [errno.E2BIG] * (39 - most)


@stock
def test_eight_arguments_go_in_registers(profile: Profile) -> None:
    found, _ = run(profile, *attach(*BPF[:2], function="cohabit_f8"), functions=("cohabit_f8",))
    assert {p.errno for p in found} == {(0,)}


# --- the record -----------------------------------------------------------------------------

RECORDS = {
    "livepatch": "1:IOM klp_ftrace_handler",
    "livepatch livepatch": "1:IOM klp_ftrace_handler",
    "livepatch livepatch-replace": "1:IOM klp_ftrace_handler",
    "ipmodify": "1:IOM cohabit_ipmodify_hit",
    "direct": "1:DOM call_direct_funcs",
    "direct-share": "1:DOM call_direct_funcs",
    "direct-refuse": "1:DOM call_direct_funcs",
    "fentry": "1:DOM call_direct_funcs",
    "fentry fexit fmod_ret": "1:DOM call_direct_funcs",
    "ops": "1:O cohabit_ops_hit",
    "ops ops": "2:",
    "ops ops ops": "3:",
    "livepatch ops": "2:IM",
    "ops livepatch": "2:IM",
    "livepatch fexit": "2:IDM",
    "direct-share ipmodify ops": "3:IDM",
    "function-tracer": "1:O function_trace_call",
    "instance": "1:O function_trace_call",
    "function-graph": "1:O ftrace_graph_func",
    "instance instance": "2:",
    # The second tracer takes the first one's place.
    "function-tracer function-graph": "1:O ftrace_graph_func",
    # Of kprobes ftrace knows nothing.
    "kprobe": "0:",
    "kprobe-post kretprobe": "0:",
    "kprobe-post ops": "1:O cohabit_ops_hit",
    "livepatch kprobe-post": "1:IOM klp_ftrace_handler",
    "fexit kprobe-post kretprobe": "1:DOM call_direct_funcs",
    "ops kprobe ops": "2:",
}
#: From 6.14 on; before, arm64 has no fprobes.
FPROBES = {
    "fprobe": "1:O fprobe_ftrace_entry",
    "fprobe kprobe-multi": "1:O fprobe_ftrace_entry",
    "fprobe-exit": "1:O ftrace_graph_func",
    "fprobe-exit fprobe-exit": "1:O ftrace_graph_func",
    "fprobe-exit function-graph": "1:O ftrace_graph_func",
    "fprobe fprobe-exit": "2:",
}


def text(record: object) -> str:
    count, flags = shown(record) or (0, "")  # type: ignore[arg-type]
    named = getattr(record, "ops", None)
    return f"{count}:{flags}" + (f" {named}" if named else "")


@pytest.mark.parametrize("attachers", [*RECORDS, *FPROBES])
@stock
def test_record(attachers: str, profile: Profile) -> None:
    if attachers in FPROBES and profile is ARM6_12:
        return
    found, state = run(profile, *attach(*attachers.split()))
    assert {p.errno for p in found} == {(0,)}
    assert text(found[-1].registry[F]) == (RECORDS | FPROBES)[attachers]
    record = found[-1].registry[F]
    assert record is None or record.jmp is False
    assert state.kept_regs == state.post_armed == frozenset()


def test_every_attacher_has_a_record() -> None:
    assert {a for row in RECORDS | FPROBES for a in row.split()} == set(ATTACHERS) - {"ops-regs"}


@stock
def test_who_stays_behind_is_named(profile: Profile) -> None:
    """kernel/trace/ftrace.c: __ftrace_hash_rec_update, on removal."""
    steps: list[Step] = [on("i", "ipmodify"), on("x", "fexit"), on("o", "ops"), on("k", "kprobe")]
    for order, names in (
        ("oix", ["", "call_direct_funcs"]),
        ("xoi", ["", "cohabit_ipmodify_hit"]),
        ("ixo", ["", "cohabit_ops_hit"]),
    ):
        found, _ = run(profile, *steps, *(Detach(i) for i in order), Detach("k"))
        left = [p.registry[F] for p in found[4:]]
        assert [r.ops or "" for r in left[:2] if r] == names, order
        assert left[2:] == [None, None]
        # Nothing but M depends on the way here.
        flags = [r.flags - {"M"} for r in left[:2] if r]
        assert "O" not in flags[0]
        assert "O" in flags[1]


def test_m_is_set_when_the_pointer_before_the_function_changes() -> None:
    third = [on("a", "ops"), on("b", "ops"), on("c", "livepatch")]
    for profile in STOCK.values():
        assert run(profile, *third)[1].modified == frozenset()
        assert run(profile, *third[1:])[1].modified == {F}
        assert run(profile, *third, Detach("a"), Detach("b"))[1].modified == {F}
    # Without CALL_OPS the second user changes nothing of the call site.
    found, state = run(ARM_BARE, *third[1:], Detach("b"))
    assert [text(p.registry[F]) for p in found] == ["1:", "2:I", "1:I"]
    assert state.modified == frozenset()
    assert run(ARM_BARE, on("c", "livepatch"))[1].modified == {F}


#: What real kernels printed, and who was on the function.
PRINTED = {
    "7.2.13-arm64-direct": ["direct"],
    "7.2.13-arm64-fentry": ["fentry"],
    "7.2.13-arm64-ipmodify": ["ipmodify"],
    "7.2.13-arm64-ipmodify_bpf": ["ipmodify", "fexit"],
    "7.2.13-arm64-ipmodify_direct": ["ipmodify", "direct-share"],
    "7.2.13own-arm64-livepatch": ["livepatch"],
    "7.2.13own-arm64-livepatch_bpf": ["livepatch", "fexit"],
}


@pytest.mark.parametrize("name", PRINTED)
def test_the_model_says_what_was_printed(name: str) -> None:
    (record,) = parse((DATA / f"{name}.txt").read_text(encoding="ascii")).records
    seen = oracle._record_json(record)
    assert seen is not None
    found, _ = run(ARM7_2, *attach(*PRINTED[name]))
    predicted = found[-1].registry[F]
    assert predicted is not None
    said = predicted.to_json()
    for key in ("count", "flags", "jmp"):
        assert said[key] == seen[key]
    # Modules there had names of their own.
    assert ("ops" in said) is ("ops" in seen)
    if seen.get("ops") not in (None, "cb"):
        assert said["ops"] == seen["ops"]
    assert bool(said["direct"]) is bool(seen["direct"])


# --- kprobes --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KPROBES)
@stock
def test_kprobes_need_no_ftrace(profile: Profile, kind: str) -> None:
    hits = []
    steps = [on("o", "ops"), on("k", kind)]
    if profile is not ARM7_3:
        found, _ = run(profile, *steps, OFF, Detach("k"), on("k", kind), ON)
        hits = [p.behaviour[F].hits for p in found[2:]]
        assert hits == [{"o": 0, "k": 1}, {"o": 0}, {"o": 0, "k": 1}, {"o": 1, "k": 1}]
        assert found[2].registry[F] is None
    dead = Misuse("kill-ftrace", F)
    found, state = run(profile, dead, on("k", kind), on("i", "ipmodify"), Detach("k"))
    assert [p.errno[0] for p in found] == [0, 0, errno.ENODEV, 0]
    assert found[1].behaviour[F].hits == {"k": 1}
    assert found[1].registry[F] is None
    assert state.attached == ()


@stock
def test_no_direct_call_is_asked_about_a_kprobe(profile: Profile) -> None:
    steps = [on("d", "direct-share"), on("p", "kprobe-post"), Detach("p")]
    found, _ = run(profile, *steps)
    assert {p.behaviour[F].shares["d"] for p in found} == {(0, 0, 0)}
    # Nor does one that refuses keep it away.
    assert outcome(profile, "direct-refuse", "kprobe-post") == (0, "welcome")


@stock
def test_everybody_at_the_exit_sees_the_patched_body(profile: Profile) -> None:
    lane = "security_cohabit_000"
    steps = attach("livepatch", "fexit", "kretprobe", "function-graph", function=lane)
    found, _ = run(profile, *steps, functions=(lane,))
    call = found[-1].behaviour[lane]
    assert call.body == "livepatch-a"
    assert call.hits == {"b": 1, "c": 1, "d": 1}
    assert call.ret == run(V7_2, *steps, functions=(lane,))[0][-1].behaviour[lane].ret


@stock
def test_a_kprobe_does_not_hold_the_module(profile: Profile) -> None:
    where = "cohabit_f1"
    steps: list[Step] = [on("k", "kprobe-post", where), Unload(), Detach("k"), Load(), Call()]
    found, state = run(profile, *steps, functions=(where,))
    assert [p.errno[0] for p in found] == [0] * 5
    assert state.attached == ()


# --- known differences ----------------------------------------------------------------------


def test_what_is_known_of_x86_64_only() -> None:
    """Each of them is about kprobes that are ftrace's, registers, or one ops for all of BPF."""
    both = {k.name for k in known.KNOWN if k.there((7, 2), "arm64")}
    assert both == {"fgraph-bit-zero"}
    splat = "WARNING: CPU: 0 PID: 168 at kernel/trace/ftrace.c:3180 ftrace_shutdown.part.0+0x19e"
    stale = "ops-regs/ftrace_enabled:detach-while-off/then:ops"
    assert known.of_report(stale, (7, 2), splat)
    assert not known.of_report(stale, (7, 2), splat, arch="arm64")
    lost = known.Contradiction("attach kprobe-post", "errno", "EBUSY (16)", "0")
    name = "livepatch+kprobe-post/attach:ab/detach:ab"
    assert known.of_contradiction(name, (7, 2), lost)
    assert not known.of_contradiction(name, (7, 2), lost, "arm64")
    assert known.breaks(stale, (7, 2))
    assert not known.breaks(stale, (7, 2), "arm64")


def test_a_vm_is_not_given_up_for_what_only_x86_64_leaves_behind() -> None:
    ends = [s.name for s in catalogue.default() if s.ends_vm]
    assert not any(known.spares(name, "x86-64") for name in ends)
    assert [name for name in ends if not known.spares(name, "arm64")] == [
        "livepatch/pending/force",
        "misuse/ops-register-twice",
        "misuse/ipmodify-and-direct",
        "misuse/kill-ftrace",
        "misuse/kill-ftrace/kprobe",
    ]
