# SPDX-License-Identifier: GPL-2.0-only
"""The registry's grammar on texts of real kernels and of newer ones, and its words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from harness.ftrace import (
    Ops,
    Record,
    Registry,
    SubOps,
    Symbol,
    Trampoline,
    diff,
    parse,
    render,
)

DATA = Path(__file__).parent.parent / "data" / "registry"
GOLDEN = sorted(DATA.glob("*.txt"))


def golden(name: str) -> str:
    # Bytes, not text mode: that would turn line ends into others.
    return (DATA / f"{name}.txt").read_bytes().decode("ascii")


def only(text: str) -> Record:
    registry = parse(text)
    assert registry.unknown == ()
    (record,) = registry.records
    return record


def named(name: str, size: int, module: str | None = None) -> Symbol:
    where = f" [{module}]" if module else ""
    return Symbol(f"{name}+0x0/{size:#x}{where}", name, 0, size, module)


def address(value: int) -> Symbol:
    return Symbol(f"{value:#x}", "", address=value)


# --- golden texts: what kernels really printed ---------------------------------------

CMDLINE = "cmdline_proc_show"
REGS_TRAMP = Trampoline(named("ftrace_regs_caller", 0x58), named("call_direct_funcs", 0x20))
ARM_TRAMP = Trampoline(named("ftrace_caller", 0x9C), named("call_direct_funcs", 0x10))

EXPECTED = {
    "5.10.0-46-amd64-livepatch": Record(
        CMDLINE,
        count=1,
        flags=frozenset("RI"),
        tramp=(
            Trampoline(
                address(0xFFFFFFFFC0377000),
                named("klp_ftrace_handler", 0xA0),
                named("ftrace_ops_assist_func", 0x110),
            ),
        ),
    ),
    "5.10.0-46-amd64-bpf": Record(
        CMDLINE,
        count=1,
        flags=frozenset("RID"),
        tramp=(REGS_TRAMP,),
        direct=named("bpf_trampoline_35537_1", 0x1000),
    ),
    "6.12.117-amd64-livepatch": Record(
        CMDLINE,
        count=1,
        flags=frozenset("IM"),
        tramp=(
            Trampoline(
                address(0xFFFFFFFFC0271000),
                named("klp_ftrace_handler", 0x100),
                named("klp_ftrace_handler", 0x100),
            ),
        ),
    ),
    "6.12.117-amd64-livepatch_bpf": Record(
        CMDLINE,
        count=2,
        flags=frozenset("RIDM"),
        call=named("arch_ftrace_ops_list_func", 0x1D0),
        direct=named("bpf_trampoline_6442500515", 0x121),
    ),
    "7.2.13-amd64-bpf_fexit": Record(
        CMDLINE,
        count=1,
        flags=frozenset("RDM"),
        tramp=(REGS_TRAMP,),
        direct=named("bpf_trampoline_6442502537", 0x120),
        direct_jmp=True,
    ),
    "7.2.13-arm64-touched_after_detach": Record(CMDLINE, flags=frozenset("M")),
    "7.2.13-arm64-ipmodify": Record(
        CMDLINE,
        count=1,
        flags=frozenset("IOM"),
        ops=(Ops(named("ops", 0xC8, "ipmod"), named("cb", 0x28, "ipmod")),),
    ),
    "7.2.13-arm64-ipmodify_direct": Record(
        CMDLINE, count=2, flags=frozenset("IDM"), direct=named("my_tramp", 0x30, "direct")
    ),
    "7.2.13-arm64-direct": Record(
        CMDLINE,
        count=1,
        flags=frozenset("DOM"),
        tramp=(ARM_TRAMP,),
        ops=(Ops(named("direct", 0xC8, "direct"), named("call_direct_funcs", 0x10)),),
        direct=named("my_tramp", 0x30, "direct"),
    ),
    "7.2.12-amd64-function_graph_twice": Record(
        CMDLINE,
        count=1,
        tramp=(
            Trampoline(
                address(0xFFFFFFFFC0400000),
                named("ftrace_graph_func", 0x70),
                named("ftrace_graph_func", 0x70),
                (
                    SubOps(
                        entry=named("trace_graph_entry", 0x10),
                        ret=named("trace_graph_return", 0x130),
                    ),
                )
                * 2,
            ),
        ),
    ),
    "7.3.4-amd64-kprobe_function": Record(
        CMDLINE, count=2, flags=frozenset("R"), call=named("arch_ftrace_ops_list_func", 0x220)
    ),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_golden_fields(name: str) -> None:
    text = golden(name)
    assert only(text) == replace(EXPECTED[name], raw=text.removesuffix("\n"))


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_is_understood(path: Path) -> None:
    text = golden(path.stem)
    registry = parse(text)
    assert "".join(f"{record.raw}\n" for record in registry.records) == text
    assert registry.unknown == ()
    for record in registry.records:
        assert (record.unknown, record.errors) == ((), ()), record.raw
        assert (record.direct is not None) == ("D" in record.flags)


# --- what is newer than this grammar -------------------------------------------------


def test_a_new_column_is_kept_apart_and_hides_no_other() -> None:
    record = only("f (1) R J   M  ->g+0x0/0x10\n")
    assert record.flags == {"R", "M"}
    assert record.unknown == ("J",)
    assert record.call == named("g", 0x10)


def test_new_pieces_are_kept_and_the_rest_is_understood() -> None:
    record = only(
        "f [m] (3)   I\ttramp: 0x10 (g+0x0/0x1) cpu:3\thot: 7"
        "\tops: o+0x0/0x1 (g+0x0/0x1)\tsubops: {s+0x0/0x1} {new:1}\n"
        "\tdirect(ret)-->t+0x0/0x1\n\tdirect-->u+0x0/0x1\n\tsize 5\n"
    )
    assert record.unknown == (
        "cpu:3",
        "hot: 7",
        "{new:1}",
        "direct(ret)-->t+0x0/0x1",
        "size 5",
    )
    assert record.tramp == (Trampoline(address(0x10), named("g", 1)),)
    assert record.ops == (Ops(named("o", 1), named("g", 1), (SubOps(func=named("s", 1)),)),)
    assert record.direct == named("u", 1)
    assert record.raw.count("\n") == 3


def test_a_second_direct_line_is_not_taken_for_the_first() -> None:
    record = only("f (1)     D\n\tdirect-->a+0x0/0x1\n\tdirect(jmp)-->b+0x0/0x1\n")
    assert (record.direct, record.direct_jmp) == (named("a", 1), False)
    assert record.unknown == ("direct(jmp)-->b+0x0/0x1",)


def test_a_direct_line_without_its_record_is_unknown() -> None:
    text = "\tdirect-->a+0x0/0x1\nf (1)\nnoise\n\tdirect-->b+0x0/0x1\n"
    registry = parse(text)
    assert registry.unknown == ("\tdirect-->a+0x0/0x1", "noise", "\tdirect-->b+0x0/0x1")
    assert [record.direct for record in registry.records] == [None]


def test_subops_without_an_owner_are_unknown() -> None:
    record = only("f (1)\ttramp: ERROR!\tsubops: {s+0x0/0x1}\n")
    assert record.errors == ("tramp: ERROR!",)
    assert record.unknown == ("subops: {s+0x0/0x1}",)


def test_subops_belong_to_the_entry_right_before_them() -> None:
    record = only(
        "f (1)\ttramp: 0x10 (g+0x0/0x1)\tsubops: {s+0x0/0x1}\tsubops: {t+0x0/0x1}"
        "\tops: ERROR!\tsubops: {u+0x0/0x1}\n"
    )
    assert record.tramp[0].subops == (SubOps(func=named("s", 1)),)
    assert record.unknown == ("subops: {t+0x0/0x1}", "subops: {u+0x0/0x1}")


def test_a_cut_symbol_is_not_taken_for_a_shorter_one() -> None:
    record = only("f (1) R   D\ttramp: ftrace_regs_caller+0x0/0x58 (call_dir")
    assert record.tramp == ()
    assert record.unknown == ("tramp: ftrace_regs_caller+0x0/0x58 (call_dir",)


def test_lines_without_a_count_are_unknown() -> None:
    assert parse("#### all functions enabled ####\nf\nf [m]\nf (x)\n") == Registry(
        (), ("#### all functions enabled ####", "f", "f [m]", "f (x)")
    )


# --- looking up ----------------------------------------------------------------------


def test_get_prefers_vmlinux_and_an_exact_module() -> None:
    registry = parse("f [m] (1)\nf [n] (2)\nf (3)\nf (4)\ng [m] (5)\nfoo (6)\n")
    counts = {
        (name, module): found.count if (found := registry.get(name, module)) else None
        for name, module in (
            ("f", None),
            ("f", "m"),
            ("f", "n"),
            ("f", "o"),
            ("g", None),
            ("g", "n"),
            ("fo", None),
        )
    }
    assert counts == {
        ("f", None): 3,
        ("f", "m"): 1,
        ("f", "n"): 2,
        ("f", "o"): None,
        ("g", None): 5,
        ("g", "n"): None,
        ("fo", None): None,
    }


def test_functions_are_titles_without_invalid_sites() -> None:
    registry = parse("f [m] (1)\n__ftrace_invalid_address___304\nf (1)\n")
    assert registry.functions() == ("f [m]", "f")
    assert [record.invalid for record in registry.records] == [False, True, False]


# --- words ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "line"),
    [
        (
            "5.10.0-46-amd64-livepatch",
            f"{CMDLINE} (1) R I; tramp: 0x.. (klp_ftrace_handler) ->ftrace_ops_assist_func",
        ),
        (
            "7.2.13-amd64-bpf_fexit",
            f"{CMDLINE} (1) R D M; tramp: ftrace_regs_caller (call_direct_funcs); "
            "direct(jmp)-->bpf_trampoline_6442502537",
        ),
        (
            "7.2.13-arm64-direct",
            f"{CMDLINE} (1) D O M; tramp: ftrace_caller (call_direct_funcs); "
            "ops: direct [direct] (call_direct_funcs); direct-->my_tramp [direct]",
        ),
        (
            "6.12.117-amd64-livepatch_bpf",
            f"{CMDLINE} (2) R I D M; ->arch_ftrace_ops_list_func; "
            "direct-->bpf_trampoline_6442500515",
        ),
    ],
)
def test_render(name: str, line: str) -> None:
    assert render(only(golden(name))) == line


def test_render_subops_offsets_and_trouble() -> None:
    text = (
        "f [m] (1)\ttramp: 0xff00 (g+0x4/0x8)"
        "\tsubops: {ent:e+0x0/0x1 ret:0x0} {0xee (h+0x0/0x1)} ->i+0x0/0x1 {j+0x0/0x1}"
        "\tops: ERROR!\t\x1b[31m\n"
    )
    assert render(only(text)) == (
        "f [m] (1); tramp: 0x.. (g+0x4) subops: {ent:e ret:0x0} {0x.. (h)} ->i {j}; "
        "ops: ERROR!; not understood: '\\x1b[31m'"
    )
    assert render(only("__ftrace_invalid_address___304\n")) == (
        "__ftrace_invalid_address___304 (0); not a function any more"
    )


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (
            "7.2.13-amd64-bpf_fexit",
            "7.2.13-amd64-livepatch_bpf_fexit",
            (
                "the count went from 1 to 2",
                "flag I was set",
                "the direct jmp became a call",
                "the call site reaches arch_ftrace_ops_list_func, before call_direct_funcs",
            ),
        ),
        (
            "7.2.13own-arm64-livepatch_bpf",
            "7.2.13own-arm64-livepatch",
            (
                "the count went from 2 to 1",
                "flag O was set",
                "flag D was cleared",
                "the direct call to bpf_trampoline_6442502190 went",
                "the call site reaches klp_ftrace_handler, before nothing that is printed",
            ),
        ),
        (
            "7.2.13-arm64-ipmodify_direct",
            "7.2.13-arm64-ipmodify_bpf",
            ("the direct target changed from my_tramp [direct] to bpf_trampoline_6442525057",),
        ),
        (
            "6.12.117-amd64-livepatch",
            "6.12.117-amd64-livepatch_bpf",
            (
                "the count went from 1 to 2",
                "flag R was set",
                "flag D was set",
                "a direct call to bpf_trampoline_6442500515 came",
                "the call site reaches arch_ftrace_ops_list_func, before klp_ftrace_handler",
            ),
        ),
    ],
)
def test_diff(before: str, after: str, said: tuple[str, ...]) -> None:
    assert diff(only(golden(before)), only(golden(after))) == said


def test_diff_of_records_that_came_and_went() -> None:
    record = only("f (1)   I\n")
    assert diff(None, None) == ()
    assert diff(None, record) == ("the record appeared: f (1) I",)
    assert diff(record, None) == ("the record went: f (1) I",)


def test_diff_drops_addresses_and_sizes_but_not_markers() -> None:
    before = only("f (1)     D\ttramp: 0x10 (g+0x0/0x1) ->g+0x0/0x1\n\tdirect-->t+0x0/0xb8\n")
    after = only("f (1)     D  \ttramp: 0x20 (g+0x0/0x2) ->g+0x0/0x2\n\tdirect-->t+0x0/0x11c\n")
    assert diff(before, after) == ()
    broken = replace(after, errors=("ops: ERROR!",))
    assert diff(before, broken) == ("marker 'ops: ERROR!' appeared",)
    assert diff(broken, before) == ("marker 'ops: ERROR!' went",)
