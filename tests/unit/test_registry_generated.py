# SPDX-License-Identifier: GPL-2.0-only
"""The registry's grammar on generated, damaged and hostile texts."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from harness.ftrace import (
    Column,
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

GOLDEN = sorted((Path(__file__).parent.parent / "data" / "registry").glob("*.txt"))


# A busy machine is no failure.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def address(value: int) -> Symbol:
    return Symbol(f"{value:#x}", "", address=value)


def assert_nothing_lost(text: str) -> Registry:
    """Each line that is not empty is in one place, in the order of the text."""
    registry = parse(text)
    lines = [line for line in text.split("\n") if line]
    owned = [line for record in registry.records for line in record.raw.split("\n")]
    assert Counter(owned) + Counter(registry.unknown) == Counter(lines)
    for kept in (owned, registry.unknown):
        rest = iter(lines)
        assert all(line in rest for line in kept), "out of order"
    return registry


# --- generated records, printed as each release prints them --------------------------


@dataclass(frozen=True)
class Form:
    """What one release's printer does on one architecture."""

    columns: str
    arrow: bool
    invalid: bool = False
    subops: bool = False
    jmp: bool = False


FORMS = {
    "5.10-amd64": Form("RID", arrow=True),
    "6.1-amd64": Form("RID", arrow=True, invalid=True),
    "6.1-arm64": Form("RID", arrow=False),
    "6.12-amd64": Form("RIDOM", arrow=True, invalid=True),
    "6.12-arm64": Form("RIDOM", arrow=False),
    "7.3-amd64": Form("RIDOM", arrow=True, invalid=True, subops=True, jmp=True),
    "7.3-arm64": Form("RIDOM", arrow=False, subops=True),
    "permanent-v1": Form("RPI", arrow=True),
}


def printed(record: Record, columns: str) -> str:
    """The text of a record, put together in the order of t_show."""
    where = f" [{record.module}]" if record.module else ""
    if record.invalid:
        return record.function + where
    out = f"{record.function}{where} ({record.count})"
    for letter in columns:
        out += f" {letter}" if letter in record.flags else "  "
        out += " " if letter == "M" else ""
    if record.call:
        out += f" ->{record.call.text}"
    for tramp in record.tramp:
        out += f"\ttramp: {tramp.trampoline.text} ({tramp.func.text})"
        out += f" ->{tramp.call.text}" if tramp.call else ""
        out += printed_subops(tramp.subops)
    out += "".join(f"\t{mark}" for mark in record.errors)
    for ops in record.ops:
        out += f"\tops: {ops.ops.text} ({ops.func.text}){printed_subops(ops.subops)}"
    if record.direct:
        out += f"\n\tdirect{'(jmp)' if record.direct_jmp else ''}-->{record.direct.text}"
    return out


def printed_subops(subops: tuple[SubOps, ...]) -> str:
    out = "\tsubops:" if subops else ""
    for sub in subops:
        if sub.entry and sub.ret:
            out += f" {{ent:{sub.entry.text} ret:{sub.ret.text}}}"
        elif sub.trampoline and sub.func:
            out += f" {{{sub.trampoline.text} ({sub.func.text})}}"
            out += f" ->{sub.call.text}" if sub.call else ""
        elif sub.func:
            out += f" {{{sub.func.text}}}"
    return out


LETTERS = "abzAZ_09"
NAMES = st.one_of(
    st.builds(
        "{}{}{}".format,
        st.sampled_from("_aR"),
        st.text(LETTERS, max_size=12),
        st.sampled_from(["", ".isra.0", ".constprop.0.cold", "$LT$", ".llvm.123"]),
    ),
    st.sampled_from(["R", "tramp", "ops", "direct", "subops", "ent", "__x64_sys_getpgid"]),
)
MODULES = st.none() | st.builds("{}{}".format, st.sampled_from("_m"), st.text(LETTERS, max_size=8))
NUMBERS = st.integers(0, 2**64 - 1)


@st.composite
def symbols(draw: st.DrawFn) -> Symbol:
    if draw(st.integers(0, 3)) == 0:
        return address(draw(NUMBERS))
    name, module = draw(NAMES), draw(MODULES)
    offset, size = draw(NUMBERS), draw(NUMBERS)
    where = f" [{module}]" if module else ""
    return Symbol(f"{name}+{offset:#x}/{size:#x}{where}", name, offset, size, module)


def subops(form: Form) -> st.SearchStrategy[tuple[SubOps, ...]]:
    if not form.subops:
        return st.just(())
    calls = st.none() | symbols() if form.arrow else st.none()
    one = st.one_of(
        st.builds(SubOps, entry=symbols(), ret=symbols()),
        st.builds(SubOps, func=symbols()),
        st.builds(SubOps, func=symbols(), trampoline=symbols(), call=calls),
    )
    return st.lists(one, max_size=3).map(tuple)


@st.composite
def records(draw: st.DrawFn, form: Form) -> Record:
    module = draw(MODULES)
    if form.invalid and draw(st.integers(0, 9)) == 0:
        # The offset is a signed number that may never have been set.
        offset = draw(st.integers(-(2**63), 2**63 - 1))
        name = f"__ftrace_invalid_address___{offset}"
        record = Record(name, module, invalid=True)
    else:
        flags = frozenset(draw(st.sets(st.sampled_from(form.columns))))
        calls = st.none() | symbols() if form.arrow else st.none()
        tramps = st.builds(Trampoline, symbols(), symbols(), calls, subops(form))
        tramp = tuple(draw(st.lists(tramps, max_size=3)))
        marks = {"tramp: ERROR!"} if not tramp else set()
        ops: tuple[Ops, ...] = ()
        if "O" in flags:
            ops = tuple(
                draw(st.lists(st.builds(Ops, symbols(), symbols(), subops(form)), max_size=1))
            )
            marks |= {"ops: ERROR!"} if not ops else set()
        errors = draw(st.sets(st.sampled_from(sorted(marks)))) if marks else set()
        direct = draw(st.none() | symbols()) if "D" in flags else None
        record = Record(
            draw(NAMES | NUMBERS.map("{:#x}".format)),
            module,
            draw(st.integers(0, 2**20)),
            flags,
            tramp,
            draw(calls) if not tramp and "tramp: ERROR!" not in errors else None,
            ops,
            direct,
            draw(st.booleans()) if form.jmp and direct else False,
            errors=tuple(sorted(errors, reverse=True)),
        )
    return replace(record, raw=printed(record, form.columns))


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
@settings(unhurried, max_examples=40)
@given(data=st.data())
def test_valid_records_come_back_exactly(form: Form, data: st.DataObject) -> None:
    wanted = tuple(data.draw(st.lists(records(form), max_size=5)))
    text = "".join(f"{record.raw}\n" for record in wanted)
    assert parse(text) == Registry(wanted)
    assert parse(text.removesuffix("\n")) == Registry(wanted)


@unhurried
@given(data=st.data())
def test_each_cut_of_a_valid_text_is_taken(data: st.DataObject) -> None:
    form = FORMS["7.3-amd64"]
    wanted = data.draw(st.lists(records(form), min_size=1, max_size=3))
    text = "".join(f"{record.raw}\n" for record in wanted)
    registry = assert_nothing_lost(text[: data.draw(st.integers(0, len(text)))])
    # Records before the one that was cut are whole.
    whole = len(registry.records) - 1
    assert registry.records[: max(whole, 0)] == tuple(wanted[: max(whole, 0)])


@unhurried
@given(data=st.data())
def test_a_damaged_text_loses_nothing(data: st.DataObject) -> None:
    text = data.draw(st.sampled_from(GOLDEN)).read_bytes().decode("ascii")
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(at, min(len(text), at + 8)))
        text = text[:at] + data.draw(st.text(alphabet=FRAGMENT, max_size=4)) + text[end:]
    assert_nothing_lost(text)


# --- any text ------------------------------------------------------------------------

FRAGMENT = st.sampled_from("\n\t (){}[]->:+0x1RIDM_a\r\x00\u2028é\ud800")
PIECES = st.sampled_from(
    [
        "\n",
        "\t",
        " ",
        "f (1)",
        "f [m] (2)",
        " R",
        " M ",
        " J",
        " ->",
        "a+0x0/0x1",
        "0xffff",
        "\ttramp: ",
        "\tops: ",
        "\tsubops:",
        " {ent:",
        " ret:",
        "}",
        " (",
        ")",
        "\n\tdirect-->",
        "\n\tdirect(jmp)-->",
        "__ftrace_invalid_address___1",
        "\ttramp: ERROR!",
        "#### all functions enabled ####\n",
    ]
)


@unhurried
@given(st.text() | st.lists(PIECES, max_size=40).map("".join))
@example("f (1)\n\n\tdirect-->a+0x0/0x1\n")
@example("\tdirect-->a+0x0/0x1\n")
@example("f (" + "9" * 5000 + ")\n")  # int() refuses more than 4300 digits
@example("f (\u0661)\n")  # a digit to str.isdigit and \d, not to the kernel
@example("f (1)\x0b\x0c\x1c\x85\u2028g (1)\n")  # line ends to str.splitlines only
def test_any_text_is_taken_and_nothing_lost(text: str) -> None:
    for record in assert_nothing_lost(text).records:
        assert record.flags <= {column.value for column in Column}
        # What was not understood is said; words may be taken apart at blanks only.
        for piece in record.unknown:
            assert piece in record.raw
            assert piece.strip(" ")
        assert "\n" not in render(record)


MEGABYTE = 1_000_000


def big(text: str) -> None:
    """Parse a big text; the full comparison of lines would take longer than that."""
    registry = parse(text)
    lines = [line for line in text.split("\n") if line]
    kept = sum(len(record.raw.split("\n")) for record in registry.records)
    assert kept + len(registry.unknown) == len(lines)


# Anything worse than linear does not come to an end in the next three tests.
@pytest.mark.parametrize(
    "unit",
    [
        "a",
        " ",
        "\t",
        "\n",
        "(",
        "a ",
        "a+0x",
        "0x0",
        " ->",
        " {ent:",
        "\tops: a+0x0/0x1 (a+0x0/0x1)",
        "\tsubops: {a+0x0/0x1}",
        " {a+0x0/0x1",
        "f (1)\n",
        "\n\tdirect-->a+0x0/0x1",
        "\ud800\x00",
    ],
    ids=ascii,
)
@pytest.mark.parametrize(
    "start", ["", "f (1)", "f (1)  \ttramp: a+0x0/0x1 (b+0x0/0x1)\tsubops:"], ids=["", "f", "tramp"]
)
def test_much_of_one_thing(start: str, unit: str) -> None:
    big(start + unit * (MEGABYTE // len(unit)))


@pytest.mark.parametrize("unit", ["a", "a+0x", " {ent:a+0x0/0x1 ret:0x0}"])
def test_one_line_of_ten_megabytes(unit: str) -> None:
    big("f (1)\ttramp: a+0x0/0x1 (b+0x0/0x1)\tsubops:" + unit * (10 * MEGABYTE // len(unit)))


def test_ten_megabytes_of_noise() -> None:
    big(random.Random(7).randbytes(10 * MEGABYTE).decode("latin-1"))


@unhurried
@given(data=st.data())
def test_diff_of_a_record_with_itself_is_empty(data: st.DataObject) -> None:
    record = data.draw(records(FORMS["7.3-amd64"]))
    assert diff(record, record) == ()
