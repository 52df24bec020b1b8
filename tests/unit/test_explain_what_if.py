# SPDX-License-Identifier: GPL-2.0-only
"""`cohabit explain --what-if`: on recorded texts, and held against the model."""

from __future__ import annotations

import errno
import itertools
import json
import re

import pytest
from policy_help import F, attach, run
from test_explain import GOLDEN, answer_for, as_json, golden, only, recorded_on, text

from harness.errno_names import ENOTSUPP
from harness.explain import TITLES, explain
from harness.policy import profile, refusals
from harness.policy.attachers import ATTACHERS
from harness.policy.predict import RecordPrediction
from harness.policy.profile import Profile, Version
from harness.policy.state import Attached, State

EBUSY, EINVAL = errno.EBUSY, errno.EINVAL


@pytest.mark.parametrize(
    ("name", "attacher", "number", "rule"),
    [
        # Seen on these kernels: docs/findings and the runs in tests/data/runs.
        ("5.10.0-46-amd64-livepatch", "fentry", EBUSY, "one-ipmodify"),
        ("5.10.0-46-amd64-bpf", "livepatch", EBUSY, "one-ipmodify"),
        ("5.10.0-46-amd64-bpf", "fexit", 0, "bpf-shares-trampoline"),
        ("5.10.0-46-amd64-livepatch", "kprobe", 0, ""),
        ("5.10.0-46-amd64-livepatch", "kprobe-post", EBUSY, "one-ipmodify"),
        ("6.12.117-amd64-livepatch", "fexit", 0, ""),
        ("6.12.117-amd64-livepatch", "livepatch", 0, "livepatches-share-ops"),
        ("6.12.117-amd64-livepatch", "direct", EBUSY, "self-must-agree"),
        ("6.12.117-amd64-livepatch", "direct-share", 0, ""),
        ("6.12.117-amd64-livepatch", "ipmodify", EBUSY, "one-ipmodify"),
        ("6.12.117-amd64-bpf", "livepatch", 0, ""),
        ("6.12.117-amd64-bpf", "direct", EBUSY, "one-direct"),
        ("6.12.117-amd64-livepatch_bpf", "direct-share", EBUSY, "one-direct"),
        ("6.12.117-amd64-livepatch_bpf", "ops", 0, ""),
        ("6.1.0-56-amd64-kprobe", "kprobe-post", 0, "kprobes-share-ops"),
        ("7.2.13-arm64-fentry", "direct", EBUSY, "one-direct"),
        ("7.2.13-arm64-direct", "fentry", EBUSY, "one-direct"),
        ("7.2.13-arm64-ipmodify", "livepatch", EBUSY, "one-ipmodify"),
        ("7.2.13own-arm64-livepatch", "kprobe-post", 0, ""),
        ("7.2.13own-arm64-livepatch", "ops-regs", EINVAL, "save-regs-needs-support"),
    ],
)
def test_what_if(name: str, attacher: str, number: int, rule: str) -> None:
    arch, version = recorded_on(name)
    # With what is known, and from the form alone.
    for report in (
        explain(golden(name), attachers=[attacher], release=version, arch=arch),
        explain(golden(name), attachers=[attacher]),
    ):
        answer = answer_for(only(report).answers[attacher], arch, version)
        assert [(c.outcome.errno, c.outcome.rule) for c in answer.cases] == [(number, rule)]
        assert answer.verdict == ("no" if number else "yes")
        said = as_json(report)["records"][0]["what_if"][attacher]
        assert rule == "" or rule in json.dumps(said)
        assert rule == "" or f"\n  {rule}: " in text(report)


def test_an_unknown_ipmodify_user_makes_it_depend() -> None:
    report = explain(golden("6.12.117-amd64-livepatch_bpf"), attachers=["livepatch"])
    answer = answer_for(only(report).answers["livepatch"], "x86-64", (6, 12))
    assert answer.verdict == "depends"
    assert {(c.outcome.errno, c.outcome.rule): c.when for c in answer.cases} == {
        (0, "livepatches-share-ops"): (("the user behind I is a livepatch",),),
        (EBUSY, "one-ipmodify"): (
            ("the user behind I is a module's ftrace_ops",),
            ("the users behind I are kprobes",),
        ),
    }


def test_an_unknown_ops_func_makes_it_depend() -> None:
    line = (
        b"f (1) R   D   M \ttramp: ftrace_regs_caller+0x0/0x1 (call_direct_funcs+0x0/0x1)"
        b"\n\tdirect-->my_tramp+0x0/0x1 [m]\n"
    )
    answer = only(explain(line, attachers=["livepatch"])).answers["livepatch"][0]
    assert {(c.outcome.ok, c.outcome.errno, c.outcome.rule) for c in answer.cases} == {
        (True, 0, ""),
        (False, EBUSY, "peer-must-agree"),
        (False, None, "refusal-is-verbatim"),
    }
    # The errno for a BPF program changed with 7.0, on x86-64.
    answers = only(explain(line, attachers=["fentry"])).answers["fentry"]
    for version, number in (((6, 19), EBUSY), ((7, 0), EINVAL)):
        case = answer_for(answers, "x86-64", version).cases[0]
        assert (case.outcome.errno, case.outcome.rule) == (number, "one-direct")


def test_who_shares_has_agreed() -> None:
    # A direct call beside an IPMODIFY ops of 6.0 or newer has an ops_func that agrees.
    report = explain(golden("7.2.13-arm64-ipmodify_direct"), attachers=["livepatch"])
    answer = answer_for(only(report).answers["livepatch"], "arm64", (7, 2))
    assert all("ops_func" not in fact for c in answer.cases for when in c.when for fact in when)


def test_a_kprobe_elsewhere_lets_another_pass_a_direct_call() -> None:
    """docs/findings/filter-skips-direct.md."""
    direct = (
        b"f (1) R   D   M \ttramp: ftrace_regs_caller+0x0/0x1 (call_direct_funcs+0x0/0x1)"
        b"\n\tdirect-->my_tramp+0x0/0x1 [m]\n"
    )
    post = (
        b"g (1) R I     M \ttramp: 0xff00 (kprobe_ftrace_handler+0x0/0x1) "
        b"->kprobe_ftrace_handler+0x0/0x1\n"
    )
    maybe = b"g (2) R I     M  ->arch_ftrace_ops_list_func+0x0/0x1\n"
    answers = {}
    for others in (b"", post, maybe):
        report = explain(direct + others, ["f"], ["kprobe-post"], (6, 12), "x86-64")
        answers[others] = only(report).answers["kprobe-post"][0]
    assert answers[b""].verdict == "depends"
    assert answers[post].verdict == "yes"
    assert any(
        "a kprobe with a post_handler is on another function" in when
        for case in answers[maybe].cases
        for when in case.when
    )


def test_a_refusal_that_gets_lost_is_said() -> None:
    """docs/findings/kprobe-arm-lost.md."""
    for version, said in (((6, 12), False), ((7, 2), True)):
        report = explain(golden("6.12.117-amd64-livepatch"), (), ["kprobe-post"], version)
        words = re.sub(r"\s+", " ", text(report))
        assert "no: EBUSY (16), by rule one-ipmodify" in words
        assert ("register_kprobe() may say 0 all the same" in words) is said


def test_whom_it_would_join_makes_no_difference() -> None:
    line = b"f (2) R       M  ->arch_ftrace_ops_list_func+0x0/0x1\n"
    (answer,) = only(explain(line, attachers=["kprobe"])).answers["kprobe"]
    assert [(case.outcome.ok, case.outcome.rule, case.when) for case in answer.cases] == [
        (True, "", ())
    ]


@pytest.mark.parametrize(
    ("attacher", "version", "arch", "number", "why"),
    [
        ("fprobe", (5, 17), "x86-64", None, "there are no fprobes before 5.18"),
        ("kprobe-multi", (5, 10), "x86-64", None, "there are no fprobes before 5.18"),
        ("direct-share", (5, 19), "x86-64", None, "a direct ops has no ops_func before 6.0"),
        ("livepatch", (6, 16), "arm64", None, "arm64 has no livepatch before 6.17"),
        ("fentry", (6, 3), "arm64", ENOTSUPP, "arm64 has no direct calls before 6.4"),
    ],
)
def test_what_a_kernel_does_not_have(
    attacher: str, version: Version, arch: str, number: int | None, why: str
) -> None:
    answer = only(explain(b"", ["f"], [attacher], version, arch)).answers[attacher][0]
    outcome = answer.cases[0].outcome
    assert (outcome.ok, outcome.errno, outcome.why) == (False, number, why)


def test_conditions_are_what_no_record_tells() -> None:
    line = b"%s (1)           \ttramp: 0xff00 (function_trace_call+0x0/0x1) ->g+0x0/0x1\n"
    for name, needed in ((b"vfs_read", ["fmod_ret-where"]), (b"security_file_open", [])):
        report = explain(line % name, attachers=["fmod_ret"], release=(6, 12))
        assert [c.rule for c in only(report).answers["fmod_ret"][0].conditions] == needed
    # Asked together they are told apart.
    both = line % b"vfs_read" + line % b"security_file_open"
    assert len(explain(both, attachers=["fmod_ret"]).blocks) == 2
    assert len(explain(both, attachers=["fexit"]).blocks) == 1
    old = only(explain(line % b"f", attachers=["fexit"], release=(6, 1))).answers["fexit"][0]
    assert [(c.text, c.errno) for c in old.conditions] == [
        ("the function has at most 6 arguments", ENOTSUPP)
    ]


def test_every_attacher_can_be_asked_for() -> None:
    assert set(TITLES) == {name for name, kind in ATTACHERS.items() if not kind.refuses}
    for name in GOLDEN:
        report = explain(golden(name), attachers=list(TITLES))
        assert as_json(report)["records"][0]["what_if"].keys() == TITLES.keys()
        assert "would a livepatch attach?" in text(report)


# --- what if, held against the model ----------------------------------------------------------

HANDLERS = {
    "livepatch": "klp_ftrace_handler",
    "ipmodify": "cohabit_ipmodify [cohabit]",
    "ops": "cohabit_ops [cohabit]",
    "kprobe": "kprobe_ftrace_handler",
    "kprobe-post": "kprobe_ftrace_handler",
    "fprobe": "fprobe_handler",
}


def printed(record: RecordPrediction | None, state: State, version: Version) -> bytes:
    """A record as x86-64 prints it; the handlers' names are those of HANDLERS."""
    if record is None:
        return b""
    letters = "RIDOM" if version >= (6, 4) else "RIDO" if version == (6, 3) else "RID"
    line = f"{F} ({record.count})"
    for letter in letters:
        line += f" {letter}" if letter in record.flags else "  "
        line += " " if letter == "M" else ""
    if record.count > 1:
        line += " ->arch_ftrace_ops_list_func+0x0/0x1d0"
    elif record.direct:
        line += "\ttramp: ftrace_regs_caller+0x0/0x65 (call_direct_funcs+0x0/0x20)"
    else:
        name, _, module = HANDLERS[state.on(F)[0].attacher].partition(" ")
        func = f"{name}+0x0/0x10{' ' if module else ''}{module}"
        line += f"\ttramp: 0xffffffffc0332000 ({func}) ->{func}"
    if record.direct:
        where = f"{record.direct}6442500515" if record.direct.endswith("_") else record.direct
        module = " [cohabit]" if record.direct.startswith("cohabit") else ""
        line += f"\n\tdirect{'(jmp)' if record.jmp else ''}-->{where}+0x0/0x120{module}"
    return f"{line}\n".encode()


COMPANY = ("livepatch", "direct", "direct-share", "fentry", "fexit", "ipmodify", "ops", "kprobe",
           "kprobe-post", "fprobe")  # fmt: skip
ASKED = ("livepatch", "direct", "direct-share", "fexit", "ipmodify", "ops", "kprobe", "kprobe-post")


@pytest.mark.parametrize("version", [(5, 10), (6, 0), (6, 3), (6, 12), (7, 0)])
def test_no_definite_answer_contradicts_the_model(version: Version) -> None:
    """Whatever of three attachers is on a function, its record must not mislead."""
    chosen: Profile = profile.choose(f"{version[0]}.{version[1]}", {})
    definite = 0
    for there in itertools.chain(
        itertools.permutations(COMPANY, 2), itertools.combinations(COMPANY, 3)
    ):
        if (version < (6, 0) and "direct-share" in there) or (
            "fprobe" in there and not (5, 18) <= version < (6, 14)
        ):
            continue
        predictions, state = run(chosen, *attach(*there))
        data = printed(predictions[-1].registry[F], state, version)
        report = explain(data, attachers=ASKED)
        assert version in report.kernels["x86-64"], data
        for attacher in ASKED:
            if version < (6, 0) and attacher == "direct-share":
                continue
            new = Attached("new", attacher, (F,), 0)
            refused = refusals.refusal(state, new, chosen)
            truth = (refused[0], refused[1].name) if refused else (0, None)
            answer = answer_for(only(report).answers[attacher], "x86-64", version)
            said = [
                (c.outcome.errno, None if c.outcome.ok else c.outcome.rule) for c in answer.cases
            ]
            assert truth in said, (there, attacher, data)
            definite += len(said) == 1
            # One user is named, and then nothing is in doubt but a module's ops_func.
            alone = predictions[-1].registry[F]
            if alone and alone.count == 1 and not str(alone.direct).startswith("cohabit"):
                assert len(said) == 1, (there, attacher, data)
    assert definite


def printed_by_arm64(record: RecordPrediction | None) -> bytes:
    """A record as arm64 of 6.4 and newer prints it."""
    if record is None:
        return b""
    line = f"{F} ({record.count})"
    for letter in "RIDOM":
        line += f" {letter}" if letter in record.flags else "  "
    line += " "
    if record.direct and record.count == 1:
        line += "\ttramp: ftrace_caller+0x0/0x9c (call_direct_funcs+0x0/0x10)"
    if record.ops:
        module = " [cohabit]" if record.ops.startswith("cohabit") else ""
        line += f"\tops: 0xffff000004962f00 ({record.ops}+0x0/0x10{module})"
    if record.direct:
        where = f"{record.direct}6442500515" if record.direct.endswith("_") else record.direct
        module = " [cohabit]" if record.direct.startswith("cohabit") else ""
        line += f"\n\tdirect-->{where}+0x0/0x120{module}"
    return f"{line}\n".encode()


@pytest.mark.parametrize("version", [(6, 12), (7, 2), (7, 3)])
def test_no_definite_answer_contradicts_the_model_on_arm64(version: Version) -> None:
    chosen = profile.choose(f"{version[0]}.{version[1]}", {}, arch="arm64")
    later = {"livepatch": (6, 17), "fprobe": (6, 14)}
    company, asked = (
        [name for name in names if version >= later.get(name, (0, 0))] for names in (COMPANY, ASKED)
    )
    definite = 0
    for there in itertools.chain(
        itertools.permutations(company, 2), itertools.combinations(company, 3)
    ):
        predictions, state = run(chosen, *attach(*there))
        record = predictions[-1].registry[F]
        data = printed_by_arm64(record)
        report = explain(data, [F], asked, version, "arm64")
        # With nothing but the text it is taken for arm64's as well.
        assert version in explain(data, [F], asked).kernels["arm64"], data
        for attacher in asked:
            refused = refusals.refusal(state, Attached("new", attacher, (F,), 0), chosen)
            truth = (refused[0], refused[1].name) if refused else (0, None)
            answer = answer_for(only(report).answers[attacher], "arm64", version)
            said = [
                (c.outcome.errno, None if c.outcome.ok else c.outcome.rule) for c in answer.cases
            ]
            assert truth in said, (there, attacher, data)
            definite += len(said) == 1
            if record and record.count == 1 and not str(record.direct).startswith("cohabit"):
                assert len(said) == 1, (there, attacher, data)
            # Kprobes are not seen, and refuse nobody.
            if attacher.startswith("kprobe"):
                assert said == [(0, None)]
    assert definite


@pytest.mark.parametrize(
    ("attacher", "version", "needed"),
    [
        ("fexit", (7, 2), ["bpf-needs-direct"]),
        ("direct-share", (6, 12), ["direct-needs-call-ops"]),
        ("fexit", (7, 3), []),
        ("ops", (7, 2), []),
    ],
)
def test_on_arm64_direct_calls_are_a_matter_of_configuration(
    attacher: str, version: Version, needed: list[str]
) -> None:
    answer = only(explain(b"", ["f"], [attacher], version, "arm64")).answers[attacher][0]
    assert [c.rule for c in answer.conditions if "direct" in c.rule] == needed
    # On x86-64 it is not, nor where the kernel shows O.
    answer = only(explain(b"", ["f"], [attacher], version, "x86-64")).answers[attacher][0]
    assert not any("direct" in c.rule for c in answer.conditions)
    line = b"f (1)       O   \tops: global_ops+0x0/0x1 (function_trace_call+0x0/0x1)\n"
    answer = only(explain(line, ["f"], [attacher], version, "arm64")).answers[attacher][0]
    assert not any("direct" in c.rule for c in answer.conditions)


def test_how_many_programs_is_each_architectures_own() -> None:
    line = (
        b"f (1)     D   M \ttramp: ftrace_regs_caller+0x0/0x1 (call_direct_funcs+0x0/0x1)"
        b"\n\tdirect-->bpf_trampoline_6442500515+0x0/0x1\n"
    )
    for arch, first, words in (
        ("x86-64", (7, 2), "fewer than 36 BPF programs are on it"),
        ("arm64", (7, 2), "fewer than 37 BPF programs are on it"),
        ("arm64", (6, 12), "fewer than 38 BPF programs are on it"),
    ):
        answer = only(explain(line, ["f"], ["fexit"], first, arch)).answers["fexit"][0]
        assert words in [c.text for c in answer.conditions]
    (answer,) = only(explain(line, ["f"], ["fexit"], None, "arm64")).answers["fexit"]
    assert "fewer than 37 (38 before 7.2) BPF programs are on it" in [
        c.text for c in answer.conditions
    ]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("7.2.13-arm64-fentry", "BPF programs; kprobes of arm64 are breakpoints, and no users."),
        ("7.2.12-amd64-function_graph_fprobe", "its BPF programs, and its kprobes."),
    ],
)
def test_whose_kprobes_are_users(name: str, said: str) -> None:
    words = re.sub(r"\s+", " ", text(explain(golden(name))))
    assert words.endswith(said)
