# SPDX-License-Identifier: GPL-2.0-only
"""The table of functions, and what kmods/ and bpf_progs/ have for each of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from harness.agent import abi
from harness.policy.attachers import ATTACHERS
from harness.scenario.functions import FUNCTIONS, TEST_MODULE, Function

REPOSITORY = Path(__file__).resolve().parents[2]
KMODS = REPOSITORY / "kmods"


def source(name: str) -> str:
    """A source file without comments, continued lines joined."""
    text = (KMODS / name).read_text(encoding="utf-8")
    text = re.sub(r"/\*.*?\*/|//[^\n]*", "", text, flags=re.DOTALL)
    return re.sub(r"\\\n", " ", text)


BODIES = source("bodies.h")


def macro(text: str, name: str) -> str:
    """The definition of a macro."""
    found = re.search(rf"^#define {name}(?:\([^)]*\))?[ \t]+(.*)$", text, re.MULTILINE)
    assert found, f"there is no {name}"
    return " ".join(found[1].split())


def c_table() -> dict[str, tuple[int, str, str]]:
    """Number of arguments, object and kind of each X() of bodies.h, in its order."""
    lists = macro(BODIES, "COHABIT_VMLINUX_FUNCTIONS") + macro(BODIES, "COHABIT_TEST_FUNCTIONS")
    rows = re.findall(r"X\((\w+), *(\d+), *(\w+), *(\w+)\)", lists)
    assert len({row[0] for row in rows}) == len(rows) == lists.count("X(")
    return {name: (int(nr), where, kind) for name, nr, where, kind in rows}


def c_lanes() -> list[str]:
    """The functions that COHABIT_ALL_LANES of bodies.h makes, in its order."""
    prefix = macro(BODIES, "COHABIT_LANE_PREFIX").strip('"')
    tens = re.findall(r"X\(tens##(\d)\)", macro(BODIES, "COHABIT_TEN_LANES"))
    parts = re.findall(
        r"COHABIT_TEN_LANES\(X, (\d+)\)|X\((\d+)\)", macro(BODIES, "COHABIT_ALL_LANES")
    )
    numbers: list[str] = []
    for ten, single in parts:
        numbers += [ten + digit for digit in tens] if ten else [single]
    return [prefix + number for number in numbers]


TABLE = c_table()
LANES = [f.name for f in FUNCTIONS.values() if f.lane is not None]
#: Kinds of bodies: how each is witnessed, whether it sleeps, can be held, is to be hammered.
KINDS = {
    "text": ("text", False, False, False),
    "errno": ("errno", False, False, False),
    "test": ("tag", False, False, False),
    "sleep": ("tag", True, False, False),
    "hold": ("tag", False, True, False),
    "hot": ("tag", False, False, True),
}


def test_both_tables_have_the_same_functions() -> None:
    assert [*TABLE, *LANES] == list(FUNCTIONS)


@pytest.mark.parametrize("name", TABLE)
def test_both_tables_say_the_same(name: str) -> None:
    function = FUNCTIONS[name]
    count, where, kind = TABLE[name]
    assert count == function.nr_args
    assert where == (function.module or "vmlinux")
    shown = (function.witnessed, function.may_sleep, function.holds, function.hot)
    assert KINDS[kind] == shown


def test_lanes() -> None:
    assert LANES == c_lanes() == [abi.lane_function(n) for n in range(abi.LANES)]
    for number, name in enumerate(LANES):
        assert FUNCTIONS[name] == Function(
            name, 6, "ioctl", "tag", module=TEST_MODULE, fmod_ret=True, lane=number
        )


def test_lanes_in_c() -> None:
    """All alike: one type and one body, whose arguments are those of cohabit_f6."""
    assert int(macro(BODIES, "COHABIT_LANE_ARGS")) == 6
    assert macro(BODIES, "COHABIT_ARGS_lane") == macro(BODIES, "COHABIT_ARGS_cohabit_f6")
    functions = source("functions.c")
    assert "COHABIT_ALL_LANES(LANE)" in functions
    assert 'COHABIT_BODY_test(6, "original", COHABIT_TAG_ORIGINAL)' in macro(functions, "LANE")
    assert "BODIES(lane, 6, cohabit_funcs, test)" in source("bodies.c")
    livepatch = source("livepatch.c")
    assert "BODY(lane, 6, cohabit_funcs, test)" in livepatch
    assert "{ COHABIT_ALL_LANES(LANE_NAME) }" in livepatch


@pytest.mark.parametrize("name", TABLE)
def test_arguments_in_c(name: str) -> None:
    count, _, kind = TABLE[name]
    parameters = macro(BODIES, f"COHABIT_ARGS_{name}")
    if count == 0:
        assert parameters == "void"
        return
    assert len(parameters.split(",")) == count
    names = [p.split()[-1].lstrip("*") for p in parameters.split(",")]
    assert len(set(names)) == count
    if kind in ("test", "sleep", "hold", "hot"):
        assert names == [f"a{n}" for n in range(count)]
    if kind == "text":
        assert names[0] == "m"  # COHABIT_BODY_text prints into it


@pytest.mark.parametrize("kind", sorted({row[2] for row in TABLE.values()}))
def test_each_kind_has_a_body_and_a_return_type(kind: str) -> None:
    assert macro(BODIES, f"COHABIT_BODY_{kind}").startswith("{")
    assert macro(BODIES, f"COHABIT_RET_{kind}") == ("u64" if KINDS[kind][0] == "tag" else "int")


def test_bodies_tell_themselves_as_the_agent_reads_them() -> None:
    assert '"cohabit: %s\\n", text' in macro(BODIES, "COHABIT_BODY_text")
    assert "return -(COHABIT_ERRNO_BASE + (tag))" in macro(BODIES, "COHABIT_BODY_errno")
    for kind in ("test", "sleep", "hold"):
        assert "return COHABIT_RESULT(tag, COHABIT_SUM_##nr)" in macro(
            BODIES, f"COHABIT_BODY_{kind}"
        )
    # It counts in *a0, wherever that is, and its callers here say 0.
    hot = macro(BODIES, "COHABIT_BODY_hot")
    assert "if (a0) ++*(u64 *)(unsigned long)a0;" in hot
    assert "return COHABIT_RESULT(tag, COHABIT_SUM_##nr - a0)" in hot
    assert macro(BODIES, "COHABIT_RESULT") == "((u64)(tag) << 32 | (u32)(sum))"


@pytest.mark.parametrize(
    "count", sorted({f.nr_args for f in FUNCTIONS.values() if f.witnessed == "tag"})
)
def test_checksum_in_c_is_the_one_in_python(count: int) -> None:
    expression = f"COHABIT_SUM_{count}"
    while found := re.search(r"COHABIT_SUM_(\d+)", expression):
        expression = expression.replace(found[0], macro(BODIES, found[0]))
    expression = expression.replace("ULL", "")
    assert re.fullmatch(r"[a0-9 ()*+]+", expression)
    args = abi.arguments(count, may_sleep=False)
    values = {f"a{n}": arg for n, arg in enumerate(args)}
    assert eval(expression, {"__builtins__": {}}, values) & 0xFFFFFFFF == abi.checksum(args)


def test_only_the_original_waits() -> None:
    assert "COHABIT_HOLD(a0)" in macro(BODIES, "COHABIT_BODY_hold")
    assert "#ifndef COHABIT_HOLD\n#define COHABIT_HOLD(wait)\tdo { } while (0)\n#endif" in BODIES
    defining = [p.name for p in KMODS.glob("*.c") if "#define COHABIT_HOLD(" in source(p.name)]
    assert defining == ["functions.c"]


def test_hammers_know_the_hot_function_by_its_name() -> None:
    hot = [f.name for f in FUNCTIONS.values() if f.hot]
    assert hot == ["cohabit_hot"]
    assert f"EXPORT_SYMBOL_GPL({hot[0]});" in source("functions.c")
    assert f"symbol_get({hot[0]})" in source("hammers.c")
    # The weights of its checksum, without that of the argument which says where to count.
    assert "u32 sum = 2 * a1 + 3 * a2 + 4 * a3 + 5 * a4 + 6 * a5;" in source("hammer.c")


def test_callers_pass_all_arguments() -> None:
    text = source("functions.c")
    types = {0: "void"}
    for count in sorted({f.nr_args for f in FUNCTIONS.values() if f.module == TEST_MODULE}):
        found = re.search(rf"^#define PASS_{count}\b(.*)$", text, re.MULTILINE)
        assert found
        words = [word.strip() for word in found[1].split(",") if word.strip()]
        assert words == [f"a[{n}]" for n in range(count)]
        expression = macro(text, f"TYPE_{count}")
        for known, expansion in types.items():
            expression = expression.replace(f"TYPE_{known}", expansion)
        types[count] = expression
        assert expression == (", ".join(["u64"] * count) or "void")
        assert re.search(rf"^CALLER\({count}\)$", text, re.MULTILINE)
    for entry in ("TEST_FUNCTION", "FUNCTION_ENTRY"):
        assert f"COHABIT_TEST_FUNCTIONS({entry})" in text
    assert "COHABIT_ALL_LANES(LANE_ENTRY)" in text
    assert macro(text, "FUNCTION_ENTRY").startswith("{ #name, name, call_##nr,")


def test_ipmodify_has_a_body_for_each_function_and_slot() -> None:
    text = source("bodies.c")
    assert "COHABIT_FUNCTIONS(BODIES)" in text
    assert "COHABIT_FUNCTIONS(ELEMENT_OF)" in text
    slots = [str(slot) for slot in range(ATTACHERS["ipmodify"].slots)]
    assert re.findall(r"SLOT_BODY\((\d), name, nr, kind\)", macro(text, "BODIES")) == slots
    assert re.findall(r"cohabit_ipmodify_(\d)_##name", macro(text, "ENTRY_OF")) == slots
    body = macro(text, "SLOT_BODY")
    assert '"ipmodify-" #slot' in body
    assert "COHABIT_TAG_IPMODIFY + slot" in body


@pytest.mark.parametrize("slot", range(abi.LIVEPATCHES))
def test_livepatches_have_a_body_for_each_function(slot: int) -> None:
    letter = "abcd"[slot]
    text = source(f"cohabit_klp_{letter}.c")
    assert macro(text, "COHABIT_KLP_TAG") == f"(COHABIT_TAG_LIVEPATCH + {slot})"
    assert macro(text, "COHABIT_KLP_BODY") == f'"{abi.body_of_tag(abi.TAG_LIVEPATCH + slot)}"'
    assert abi.body_of_tag(abi.TAG_LIVEPATCH + slot) == f"livepatch-{letter}"
    assert f"cohabit_klp_{letter}.o" in (KMODS / "Kbuild").read_text(encoding="utf-8")
    shared = source("livepatch.c")
    assert '#include "livepatch.c"' in text
    assert "COHABIT_FUNCTIONS(BODY)" in shared
    assert f'object->name = "{TEST_MODULE}"' in shared


def test_there_are_as_many_livepatches_as_slots() -> None:
    found = sorted(path.name for path in KMODS.glob("cohabit_klp_?.c"))
    assert len(found) == abi.LIVEPATCHES == ATTACHERS["livepatch"].slots


def test_there_are_as_many_trampolines_as_direct_uses() -> None:
    numbers = [str(n) for n in range(2 * abi.SLOTS)]
    direct = source("direct.c")
    assert re.findall(r"X\((\d+)\)", macro(direct, "COHABIT_TRAMPS")) == numbers
    assert re.findall(r"^TRAMP\((\d+)\)$", source("direct_x86.S"), re.MULTILINE) == numbers


def test_bpf_records_as_many_arguments_as_there_are() -> None:
    text = (REPOSITORY / "bpf_progs" / "attach.bpf.c").read_text(encoding="utf-8")
    assert int(macro(text, "MAX_ARGS")) == abi.MAX_ARGS
    for name in ("FENTRY", "FEXIT", "FMOD_RET"):
        assert re.search(rf"^#define {name}\(", text, re.MULTILINE)


# --- the table itself -----------------------------------------------------------------------


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=lambda f: f.name)
def test_what_a_function_needs(function: Function) -> None:
    assert FUNCTIONS[function.name] is function
    assert 0 <= function.nr_args <= abi.MAX_ARGS
    assert (function.trigger == "read") is (function.witnessed == "text") is bool(function.path)
    assert (function.trigger == "ioctl") is (function.witnessed == "tag")
    assert (function.trigger == "ioctl") is (function.module == TEST_MODULE)
    if function.path:
        assert function.path.startswith("/proc/")
    # kernel/bpf/verifier.c: check_attach_modify_return; ours are not error-injectable.
    assert function.fmod_ret is function.name.startswith("security_")


def test_the_names_fit_the_abi() -> None:
    assert all(len(name) < abi.NAME_LEN for name in FUNCTIONS)


def test_the_kinds_of_functions_that_matter_are_there() -> None:
    """None and many arguments, on registers and beyond, sleeping, modules, fmod_ret."""
    counts = {f.nr_args for f in FUNCTIONS.values()}
    assert {0, 1, 6, 8} <= counts
    assert max(counts) > 6
    assert any(f.may_sleep for f in FUNCTIONS.values())
    assert any(f.fmod_ret for f in FUNCTIONS.values())
    assert {f.module for f in FUNCTIONS.values()} == {None, TEST_MODULE}
    assert {f.witnessed for f in FUNCTIONS.values()} == {"text", "errno", "tag"}
