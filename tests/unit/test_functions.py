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


TABLE = c_table()
KINDS = {"text": ("text", False), "errno": ("errno", False), "test": ("tag", False),
         "sleep": ("tag", True)}  # fmt: skip


def test_both_tables_have_the_same_functions() -> None:
    assert list(TABLE) == list(FUNCTIONS)


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=lambda f: f.name)
def test_both_tables_say_the_same(function: Function) -> None:
    count, where, kind = TABLE[function.name]
    assert count == function.nr_args
    assert where == (function.module or "vmlinux")
    assert KINDS[kind] == (function.witnessed, function.may_sleep)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_arguments_in_c(name: str) -> None:
    count, _, kind = TABLE[name]
    parameters = macro(BODIES, f"COHABIT_ARGS_{name}")
    if count == 0:
        assert parameters == "void"
        return
    assert len(parameters.split(",")) == count
    names = [p.split()[-1].lstrip("*") for p in parameters.split(",")]
    assert len(set(names)) == count
    if kind in ("test", "sleep"):
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
    for kind in ("test", "sleep"):
        assert "return COHABIT_RESULT(tag, COHABIT_SUM_##nr)" in macro(
            BODIES, f"COHABIT_BODY_{kind}"
        )
    assert macro(BODIES, "COHABIT_RESULT") == "((u64)(tag) << 32 | (u32)(sum))"


@pytest.mark.parametrize(
    "count", sorted({f.nr_args for f in FUNCTIONS.values() if f.witnessed == "tag"})
)
def test_checksum_in_c_is_the_one_in_python(count: int) -> None:
    expression = f"COHABIT_SUM_{count}"
    while found := re.search(r"COHABIT_SUM_(\d)", expression):
        expression = expression.replace(found[0], macro(BODIES, found[0]))
    expression = expression.replace("ULL", "")
    assert re.fullmatch(r"[a0-8 ()*+]+", expression)
    args = abi.arguments(count, may_sleep=False)
    values = {f"a{n}": arg for n, arg in enumerate(args)}
    assert eval(expression, {"__builtins__": {}}, values) & 0xFFFFFFFF == abi.checksum(args)


def test_callers_pass_all_arguments() -> None:
    text = source("cohabit_funcs.c")
    for count in {f.nr_args for f in FUNCTIONS.values() if f.module == TEST_MODULE}:
        found = re.search(rf"^#define PASS_{count}\b(.*)$", text, re.MULTILINE)
        assert found
        words = [word.strip() for word in found[1].split(",") if word.strip()]
        assert words == [f"a[{n}]" for n in range(count)]
    for entry in ("TEST_FUNCTION", "CALLER", "CALLER_ENTRY"):
        assert f"COHABIT_TEST_FUNCTIONS({entry})" in text


def test_ipmodify_has_a_body_for_each_function_and_slot() -> None:
    text = source("bodies.c")
    assert "COHABIT_FUNCTIONS(BODIES)" in text
    assert "COHABIT_FUNCTIONS(ENTRY_OF)" in text
    slots = [str(slot) for slot in range(ATTACHERS["ipmodify"].slots)]
    assert re.findall(r"SLOT_BODY\((\d), name, nr, kind\)", macro(text, "BODIES")) == slots
    assert re.findall(r"cohabit_ipmodify_(\d)_##name", macro(text, "ENTRY_OF")) == slots
    body = macro(text, "SLOT_BODY")
    assert '"ipmodify-" #slot' in body
    assert "COHABIT_TAG_IPMODIFY + slot" in body


@pytest.mark.parametrize("letter", "ab")
def test_livepatches_have_a_body_for_each_function(letter: str) -> None:
    text = source(f"cohabit_klp_{letter}.c")
    tag = macro(text, "COHABIT_KLP_TAG").removeprefix("COHABIT_")
    assert macro(text, "COHABIT_KLP_BODY") == f'"{abi.body_of_tag(getattr(abi, tag))}"'
    assert abi.body_of_tag(getattr(abi, tag)) == f"livepatch-{letter}"
    shared = source("livepatch.c")
    assert '#include "livepatch.c"' in text
    assert "COHABIT_FUNCTIONS(BODY)" in shared
    assert f'object->name = "{TEST_MODULE}"' in shared


def test_there_are_as_many_livepatches_as_slots() -> None:
    found = sorted(path.name for path in KMODS.glob("cohabit_klp_?.c"))
    assert len(found) == ATTACHERS["livepatch"].slots


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
