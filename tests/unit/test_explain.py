# SPDX-License-Identifier: GPL-2.0-only
"""`cohabit explain` on recorded texts: which kernel, who is on it, who may still come."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from harness.errors import UsageError
from harness.explain import TITLES, Block, Report, explain
from harness.explain.form import RELEASES
from harness.explain.jsonout import dump
from harness.explain.show import show
from harness.explain.what_if import Answer
from harness.policy.profile import Version

REGISTRY = Path(__file__).parent.parent / "data" / "registry"
GOLDEN = sorted(path.stem for path in REGISTRY.glob("*.txt"))


def golden(name: str) -> bytes:
    return (REGISTRY / f"{name}.txt").read_bytes()


def recorded_on(name: str) -> tuple[str, Version]:
    """Architecture and release of the kernel that a text is from."""
    match = re.match(r"(\d+)\.(\d+)\.\S*?-(?:\d+-)?(amd64|arm64)-", name)
    assert match
    return {"amd64": "x86-64"}.get(match[3], match[3]), (int(match[1]), int(match[2]))


def text(report: Report, width: int = 100) -> str:
    return "\n".join(show(report, width, color=False))


def as_json(report: Report) -> Any:
    return json.loads("\n".join(dump(report)))


def only(report: Report) -> Block:
    assert len(report.blocks) == 1
    return report.blocks[0]


def answer_for(answers: tuple[Answer, ...], arch: str, version: Version) -> Answer:
    """The answer for one kernel; there is exactly one."""
    found = [
        answer
        for answer in answers
        for a, first, last in answer.kernels
        if a == arch and first <= version <= last
    ]
    assert len(found) == 1, answers
    return found[0]


# --- which kernel ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", GOLDEN)
def test_the_kernel_that_printed_it_is_among_those_that_are_possible(name: str) -> None:
    arch, version = recorded_on(name)
    report = explain(golden(name))
    assert not report.printed.contradiction
    assert version in report.kernels[arch]
    assert not report.notes
    assert not report.unknown_lines
    # Named, it is taken without a doubt.
    assert explain(golden(name), release=version, arch=arch).kernels == {arch: (version,)}
    assert not explain(golden(name), release=version, arch=arch).notes


@pytest.mark.parametrize(
    ("line", "kernels"),
    [
        ("f (1) R I D\ttramp: 0xff00 (g+0x0/0x1) ->g+0x0/0x1", {"x86-64": ((5, 10), (5, 19))}),
        ("f (2) R I D ->g+0x0/0x1", {"x86-64": ((5, 10), (6, 2))}),
        ("f (1)   I    \ttramp: 0xff00 (g+0x0/0x1) ->g+0x0/0x1", {"x86-64": ((6, 3), (6, 3))}),
        ("f (1)         ->g+0x0/0x1", {"x86-64": ((6, 3), (6, 3))}),
        ("f (1)            ->g+0x0/0x1", {"x86-64": ((6, 4), (7, 3))}),
        (
            "f (1)   D \tops: 0xff00 (call_direct_funcs+0x0/0x1)",
            {"arm64": ((6, 4), (7, 3))},
        ),
        (
            "f (1) R   D   M \ttramp: a+0x0/0x1 (b+0x0/0x1)\n\tdirect(jmp)-->c+0x0/0x1",
            {"x86-64": ((6, 19), (7, 3))},
        ),
        (
            "f (1)   I     M \ttramp: 0xff00 (klp_ftrace_handler+0x0/0x1)",
            {"x86-64": ((6, 4), (7, 3)), "arm64": ((6, 17), (7, 3))},
        ),
        ("f (1) R D M  \ttramp: 0xff00 (g+0x0/0x1) ->g+0x0/0x1", {"x86-64": ((6, 4), (7, 3))}),
        ("f (1) R    \tramp", {"x86-64": ((5, 10), (6, 2)), "arm64": ((5, 10), (6, 1))}),
        ("f (1)     \ttramp: 0xff00 (fprobe_handler+0x0/0x1) ->b+0x0/0x1",
         {"x86-64": ((5, 18), (6, 13))}),
    ],
)  # fmt: skip
def test_the_form_tells_the_release(line: str, kernels: dict[str, tuple[Version, Version]]) -> None:
    report = explain(f"{line}\n".encode())
    assert {arch: (v[0], v[-1]) for arch, v in report.kernels.items()} == kernels
    for versions in report.kernels.values():
        first, last = RELEASES.index(versions[0]), RELEASES.index(versions[-1])
        assert versions == RELEASES[first : last + 1]


def test_reasons_are_those_that_say_something() -> None:
    report = explain(golden("6.12.117-amd64-livepatch_bpf"))
    assert report.printed.reasons == ("columns for R I D O M", "`->`")


def test_a_release_that_does_not_print_so_is_taken_with_a_doubt() -> None:
    report = explain(golden("6.12.117-amd64-bpf"), release=(5, 10))
    assert report.kernels == {"x86-64": ((5, 10),)}
    assert report.notes == ("what --release and --arch say does not print in this form",)
    report = explain(golden("6.12.117-amd64-bpf"), arch="arm64")
    assert report.kernels == {"arm64": RELEASES}
    assert report.notes == ("what --release and --arch say does not print in this form",)


def test_a_newer_release_is_taken_to_print_like_the_newest() -> None:
    report = explain(golden("7.3.4-amd64-kprobe_function"), release=(7, 9))
    assert report.kernels == {"x86-64": ((7, 9),)}
    assert report.notes == ("cohabit knows how 5.10 to 7.3 print; 7.9 is not of them",)


def test_texts_of_two_kernels_do_not_go_together() -> None:
    report = explain(golden("5.10.0-46-amd64-bpf") + golden("7.2.13-arm64-fentry"))
    assert report.printed.contradiction
    assert "no kernel from 5.10 to 7.3 prints all of this" in report.notes[0]
    assert len(report.blocks) == 2


# --- who is on it ---------------------------------------------------------------------------

WHO = {
    "5.10.0-46-amd64-bpf": ["bpf"],
    "5.10.0-46-amd64-function_graph": ["function-graph"],
    "5.10.0-46-amd64-kprobe": ["kprobe"],
    "5.10.0-46-amd64-kprobe_function": ["unknown*2"],
    "5.10.0-46-amd64-livepatch": ["livepatch"],
    "6.1.0-56-amd64-function_twice": ["unknown*2"],
    "6.1.0-56-amd64-kprobe": ["kprobe"],
    "6.12.117-amd64-bpf": ["bpf"],
    "6.12.117-amd64-fprobe": ["fprobe"],
    "6.12.117-amd64-function_glob": ["function-tracer"],
    "6.12.117-amd64-livepatch": ["livepatch"],
    "6.12.117-amd64-livepatch_bpf": ["bpf", "ipmodify"],
    "7.2.12-amd64-function_graph_fprobe": ["fprobe", "function-graph*2"],
    "7.2.12-amd64-function_graph_twice": ["function-graph*2"],
    "7.2.13-amd64-bpf_fexit": ["bpf"],
    "7.2.13-amd64-livepatch_bpf_fexit": ["bpf", "ipmodify"],
    "7.2.13-arm64-direct": ["direct"],
    "7.2.13-arm64-fentry": ["bpf"],
    "7.2.13-arm64-ipmodify": ["ipmodify"],
    "7.2.13-arm64-ipmodify_bpf": ["bpf", "ipmodify"],
    "7.2.13-arm64-ipmodify_direct": ["direct", "ipmodify"],
    "7.2.13-arm64-touched_after_detach": [],
    "7.2.13own-arm64-livepatch": ["livepatch"],
    "7.2.13own-arm64-livepatch_bpf": ["bpf", "ipmodify"],
    "7.3.4-amd64-function_graph": ["function-graph"],
    "7.3.4-amd64-kprobe_function": ["unknown*2"],
}


def test_all_recorded_texts_are_here() -> None:
    assert sorted(WHO) == GOLDEN


@pytest.mark.parametrize("name", GOLDEN)
def test_who_is_on_it(name: str) -> None:
    said = [
        user.kind + (f"*{user.number}" if user.number > 1 else "")
        for user in only(explain(golden(name))).users
    ]
    assert said == WHO[name]


@pytest.mark.parametrize(
    ("line", "known", "words"),
    [
        (
            "f (1) R I     M \ttramp: 0xff00 (kprobe_ftrace_handler+0x0/0x1) ->g+0x0/0x1",
            "named",
            "one of them with a post_handler: kprobe_ftrace_handler",
        ),
        (
            "f (1)   I     M \ttramp: 0xff00 (cb+0x0/0x1 [m]) ->cb+0x0/0x1 [m]",
            "named",
            "an ftrace_ops of module m that may change where the call goes: cb [m]",
        ),
        ("f (1)           \ttramp: 0xff00 (cb+0x0/0x1 [m])", "named", "an ftrace_ops of module m"),
        (
            "f (1)           \ttramp: 0xff00 (function_stack_no_repeats_trace_call+0x0/0x1)",
            "named",
            "the function tracer: function_stack_no_repeats_trace_call",
        ),
        ("f (1)            ->function_trace_call+0x0/0x1", "named", "the function tracer"),
        (
            "f (1)           \ttramp: 0xff00 (perf_ftrace_function_call+0x0/0x1)",
            "named",
            "perf's event",
        ),
        (
            "f (1)           \ttramp: 0xff00 (ftrace_graph_func+0x0/0x1)"
            "\tsubops: {ent:entry+0x0/0x1 [m] ret:0x0}",
            "named",
            "a user of the function graph of module m: entry [m]",
        ),
        ("f (1) R   D   M \n\tdirect-->0xff00", "flag", "a trampoline without a name"),
        ("f (1) R   D   M ", "flag", "a trampoline without a name"),
        ("f (2) R I     M  ->arch_ftrace_ops_list_func+0x0/0x1", "flag", "kprobes with a post"),
        ("f (2)   I     M  ->arch_ftrace_ops_list_func+0x0/0x1", "untold", "another user of whom"),
        (
            "f (9)         M  ->arch_ftrace_ops_list_func+0x0/0x1",
            "untold",
            "nothing is told of them",
        ),
        ("f (9) R   D   M  ->arch_ftrace_ops_list_func+0x0/0x1", "untold", "8 more users of whom"),
        ("f (1)    ", "untold", "nothing is told of it"),
    ],
)
def test_users_by_what_is_printed(line: str, known: str, words: str) -> None:
    report = explain(f"{line}\n".encode())
    assert known in {user.known for user in only(report).users}
    assert words in re.sub(r"\s+", " ", text(report))


def test_i_without_r_is_no_kprobe() -> None:
    report = explain(b"f (2)   I     M  ->arch_ftrace_ops_list_func+0x0/0x1\n")
    assert "post_handler" not in text(report)


def test_the_users_are_as_many_as_the_count() -> None:
    for name in GOLDEN:
        for block in explain(golden(name)).blocks:
            assert block.record
            if not any(owner.subops for owner in block.record.tramp):
                assert sum(user.number for user in block.users) == block.record.count, name


def test_a_bpf_trampoline_tells_the_type() -> None:
    # include/linux/bpf_verifier.h: bpf_trampoline_compute_key
    (user,) = only(explain(golden("6.12.117-amd64-bpf"))).users
    assert user.hint == "in `bpftool link`: target_obj_id 1, target_btf_id 49571"
    (user,) = only(explain(golden("5.10.0-46-amd64-bpf"))).users
    assert user.hint == "BTF type 35537"


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("5.10.0-46-amd64-livepatch", "call site -> trampoline 0xffffffffc0377000 of its own -> "
         "ftrace_ops_assist_func -> klp_ftrace_handler"),
        ("5.10.0-46-amd64-function_graph",
         "call site -> ftrace_graph_caller -> prepare_ftrace_return"),
        ("6.12.117-amd64-livepatch_bpf", "call site -> ftrace_regs_caller -> "
         "arch_ftrace_ops_list_func, which calls each user, then bpf_trampoline_6442500515"),
        ("6.12.117-amd64-bpf", "call site -> bpf_trampoline_6442500515"),
        ("7.2.13-amd64-bpf_fexit", "call site jumps to bpf_trampoline_6442502537"),
        ("7.2.13-arm64-ipmodify", "call site -> ftrace_caller -> cb [ipmod]"),
        ("7.2.13-arm64-direct",
         "call site -> my_tramp (through ftrace_caller where that is too far away)"),
        ("7.2.13-arm64-ipmodify_bpf",
         "call site -> ftrace_caller -> a list of all users, then bpf_trampoline_6442525057"),
    ],
)  # fmt: skip
def test_the_way_of_a_call(name: str, way: str) -> None:
    assert as_json(explain(golden(name)))["records"][0]["path"] == way


def test_the_kernel_s_own_alarms_are_loud() -> None:
    for mark in ("tramp: ERROR!", "ops: ERROR!"):
        report = explain(f"f (1)     D O M \t{mark}\n".encode())
        assert f"!! {mark}  The kernel contradicts itself" in text(report)
        assert as_json(report)["records"][0]["errors"] == [mark]
        assert "\x1b[1;37;41m" in "\n".join(show(report, 80, color=True))


def test_what_was_not_understood_is_said() -> None:
    report = explain(b"f (1) J       M \ttramp: ?\x1b[31m\nsome words\nf (1\n")
    assert "not understood, so this may be incomplete: 'J', 'tramp: ?\\x1b[31m'" in text(report)
    assert "2 lines not understood and left out: 'some words', 'f (1'" in text(report)
    assert "\x1b" not in text(report)
    assert as_json(report)["not_understood"] == {"lines": 2, "first": ["some words", "f (1"]}


def test_an_invalid_record() -> None:
    report = explain(b"__ftrace_invalid_address___304\n", attachers=["ops"])
    assert "a weak one that the linker dropped" in text(report)
    assert only(report).answers["ops"][0].verdict == "no"


def test_an_empty_registry() -> None:
    for data in (b"", b"\n"):
        report = explain(data, wanted=["vfs_read"], attachers=["livepatch"])
        assert "The registry is empty" in text(report)
        assert only(report).answers["livepatch"][0].verdict == "yes"
        needs = [c.rule for c in only(report).answers["livepatch"][0].conditions]
        assert needs == ["", "one-transition", "permanent-needs-enabled"]


# --- functions ------------------------------------------------------------------------------

FUNCTIONS = b"".join(
    b"%s (1)           \ttramp: 0xff00 (function_trace_call+0x0/0x1) ->g+0x0/0x1\n" % title
    for title in (b"vfs_read", b"vfs_write", b"init [ext4]")
)


@pytest.mark.parametrize(
    ("wanted", "titles"),
    [
        ([], {"vfs_read", "vfs_write", "init [ext4]"}),
        (["vfs_read"], {"vfs_read"}),
        (["vfs_*"], {"vfs_read", "vfs_write"}),
        (["*[ext4]", "vfs_?ead"], {"vfs_read", "init [ext4]"}),
        (["init"], {"init [ext4]"}),
        (["init [ext4]"], {"init [ext4]"}),
        (["init [xfs]"], {"init [xfs]"}),
    ],
)
def test_only_some_functions(wanted: list[str], titles: set[str]) -> None:
    report = explain(FUNCTIONS, wanted)
    assert {title for block in report.blocks for title in block.titles} == titles
    assert {(r["function"], r["module"]) for r in as_json(report)["records"]} == {
        (title.partition(" ")[0], title.partition("[")[2].strip("]") or None) for title in titles
    }


def test_a_glob_that_matches_nothing_is_said() -> None:
    report = explain(FUNCTIONS, ["tcp_*", "vfs_read"])
    assert report.notes == ("nothing is called tcp_*",)


def test_functions_that_are_alike_are_told_together() -> None:
    assert len(explain(FUNCTIONS).blocks) == 1
    said = text(explain(golden("6.12.117-amd64-function_glob")))
    assert "\n22 functions alike\n  execdomains_proc_show, irq_spurious_proc_show," in said
    assert said.count("the function tracer") == 1


def test_functions_with_trampolines_of_their_own_are_told_together_if_they_are_many() -> None:
    def bpf(number: int) -> bytes:
        return (
            f"f{number} (1) R   D   M \ttramp: ftrace_regs_caller+0x0/0x1 "
            f"(call_direct_funcs+0x0/0x1)\n\tdirect-->bpf_trampoline_{number}+0x0/0x1\n"
        ).encode()

    few = text(explain(b"".join(map(bpf, range(3)))))
    assert few.count("BPF programs") == 3 + 1  # and what a user is
    many = text(explain(b"".join(map(bpf, range(4)))))
    assert "4 functions alike\n  f0 (bpf_trampoline_0), f1 (bpf_trampoline_1)," in many
    assert many.count("BPF programs") == 1 + 1


def test_each_record_of_json_has_its_own_text() -> None:
    records = as_json(explain(golden("6.12.117-amd64-function_glob")))["records"]
    lines = golden("6.12.117-amd64-function_glob").decode().splitlines()
    assert [record["text"] for record in records] == lines


# --- the text -------------------------------------------------------------------------------


def test_the_whole_text() -> None:
    report = explain(golden("7.2.13-amd64-bpf_fexit"), attachers=["livepatch"])
    assert (
        text(report, 80)
        == """\
1 function, as printed by Linux 6.19 to 7.3 on x86-64, for it has columns for R
I D O M, `direct(jmp)`.

cmdline_proc_show
  1 user
    - BPF programs on a trampoline that is jumped to (so one is fexit, fmod_ret
      or fsession): bpf_trampoline_6442502537 (in `bpftool link`: target_obj_id
      1, target_btf_id 51593)
  call site jumps to bpf_trampoline_6442502537
  R  all registers are saved, because a user asks for it
  D  direct call: the function's calls go to a trampoline that is no ftrace_ops'
     own
  M  history: an IPMODIFY user or a direct call is or was here since boot; never
     cleared
  would a livepatch attach? yes
    provided that no livepatch is in transition (else EBUSY (16), rule
      one-transition)

Rules
  one-transition: While a transition is pending no other livepatch comes or
    goes.
    kernel/livepatch/core.c: __klp_enable_patch, __klp_disable_patch

A user is one ftrace_ops. All livepatches of a function are one user, and so are
its BPF programs, and its kprobes."""
    )


@pytest.mark.parametrize("width", [1, 60, 80, 100, 500])
@pytest.mark.parametrize("name", GOLDEN)
def test_lines_fit(name: str, width: int) -> None:
    report = explain(golden(name), attachers=list(TITLES))
    room = min(max(width, 60), 110)
    plain = list(show(report, width, color=False))
    assert [line for line in plain if len(line) > room and " " in line.strip()] == []
    colored = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in show(report, width, color=True)]
    assert colored == plain


def test_not_a_registry() -> None:
    for data, words in (
        (b"hello\n", "enabled_functions"),
        (b"vfs_read\nvfs_write\ninit [ext4]\n", "names only"),
        (b"\x7fELF\0\0\0", "NUL bytes"),
        (b"#### all functions enabled ####\n", "enabled_functions"),
    ):
        with pytest.raises(UsageError) as error:
            explain(data)
        assert error.value.message == "this is no text of ftrace's function registry"
        assert words in error.value.remedy
