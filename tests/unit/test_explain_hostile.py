# SPDX-License-Identifier: GPL-2.0-only
"""`cohabit explain` on damaged, foreign and hostile texts: right, or a clear error."""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_explain import GOLDEN, answer_for, golden, recorded_on

from harness.errors import UsageError
from harness.explain import Report, explain
from harness.explain.jsonout import dump
from harness.explain.show import show
from harness.explain.text import MAX_BYTES, MAX_LINE, MAX_LINES, MAX_SHAPES

REPOSITORY = Path(__file__).resolve().parents[2]
ASKED = ("livepatch", "direct", "fexit", "kprobe-post", "fmod_ret")
MEGABYTES = 10_000_000


def everything(data: bytes) -> Report | UsageError:
    """All that can be made of a text; no error but the one for people."""
    try:
        report = explain(data, attachers=ASKED)
    except UsageError as error:
        assert error.remedy
        return error
    said = "\n".join(show(report, 80, color=False))
    assert said.replace("\n", "").isprintable()
    json.loads("\n".join(dump(report)))
    return report


# --- cut short ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in GOLDEN if "glob" not in name])
def test_a_text_cut_at_any_byte_never_misleads(name: str) -> None:
    arch, version = recorded_on(name)
    data = golden(name)
    whole = explain(data, attachers=ASKED, release=version, arch=arch)
    for end in range(len(data) + 1):
        try:
            report = explain(data[:end], attachers=ASKED, release=version, arch=arch)
        except UsageError:
            # Nothing but a part of the function's name, or of its count.
            assert b")" not in data[:end]
            continue
        assert not end or data[end - 1 : end] == b"\n" or "may be cut short" in report.notes[0]
        assert not any("Traceback" in line for line in show(report, 80, color=False))
        for block in report.blocks:
            for attacher in ASKED:
                answer = answer_for(block.answers[attacher], arch, version)
                truth = answer_for(whole.blocks[0].answers[attacher], arch, version)
                outcomes = {case.outcome for case in answer.cases}
                if answer.verdict in ("yes", "no") and truth.verdict != "depends":
                    rules = {(c.outcome.ok, c.outcome.errno) for c in truth.cases}
                    assert {(o.ok, o.errno) for o in outcomes} == rules, data[:end]


def test_the_last_record_alone_is_cut() -> None:
    whole = b"f (1)     D O M \tops: 0xff00 (call_direct_funcs+0x0/0x1)\n"
    report = explain(whole + b"g (2)   I", attachers=["livepatch"], arch="arm64")
    verdicts = {block.titles: block.answers["livepatch"][-1].verdict for block in report.blocks}
    assert verdicts == {("f",): "depends", ("g",): "unknown"}
    # One that looks like the others is told apart, too.
    report = explain(b"f (1)   \ng (1)   ", attachers=["ops"], arch="arm64")
    assert [(b.titles, b.answers["ops"][0].verdict) for b in report.blocks] == [
        (("f",), "yes"),
        (("g",), "unknown"),
    ]
    assert "the text ends here: flags and users may be missing" in report.blocks[1].warnings


def test_a_text_that_begins_in_the_middle() -> None:
    for name in GOLDEN:
        data = golden(name)
        for start in range(min(len(data), 300)):
            with contextlib.suppress(UsageError):
                explain(data[start:])


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    name=st.sampled_from(GOLDEN),
    edits=st.lists(
        st.tuples(st.integers(0, 5000), st.integers(0, 9), st.binary(max_size=6)), max_size=5
    ),
)
def test_a_damaged_text(name: str, edits: list[tuple[int, int, bytes]]) -> None:
    data = golden(name)
    for at, length, new in edits:
        start = at % (len(data) + 1)
        data = data[:start] + new + data[start + length :]
    everything(data)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary() | st.text().map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes(data: bytes) -> None:
    everything(data)


# --- what becomes of a text on its way --------------------------------------------------------


@pytest.mark.parametrize("name", GOLDEN)
@pytest.mark.parametrize(
    ("note", "change"),
    [
        ("the lines ended in CRLF", lambda data: data.replace(b"\n", b"\r\n")),
        ("the text was UTF-16", lambda data: data.decode().encode("utf-16")),
        ("the text was UTF-16", lambda data: b"\xfe\xff" + data.decode().encode("utf-16-be")),
        ("", lambda data: b"\xef\xbb\xbf" + data),
        ("tabs had become blanks", lambda data: data.decode().expandtabs(8).encode()),
        ("tabs had become blanks", lambda data: data.replace(b"\t", b" ")),
    ],
    ids=["crlf", "utf-16", "utf-16-be", "bom", "expanded", "blanks"],
)
def test_the_same_after_a_paste(name: str, note: str, change: Callable[[bytes], bytes]) -> None:
    before = explain(golden(name))
    changed = change(golden(name))
    after = explain(changed)
    assert [block.users for block in after.blocks] == [block.users for block in before.blocks]
    assert after.functions == before.functions
    # Blanks that are not the kernel's own say nothing about the release.
    assert set(after.kernels) >= set(before.kernels)
    if note and b"\t" in golden(name):
        assert note in after.notes[0]
    elif not note:
        assert after == before


def test_other_locales() -> None:
    """What surrounds the text may be in any language and encoding."""
    for words in ("# как есть\n", "日本語\n", "é\n"):
        for encoding in ("utf-8", "utf-16", "koi8-r", "euc-jp", "latin-1"):
            data = words.encode(encoding, "replace") + golden("6.12.117-amd64-bpf")
            if encoding != "utf-16":
                report = everything(data)
                assert isinstance(report, Report)
                assert (report.functions, report.unknown_lines) == (1, 1)
            else:
                everything(data)


# --- big ones -------------------------------------------------------------------------------


def many(unit: bytes, size: int = MEGABYTES) -> bytes:
    return unit * (size // len(unit))


TRACED = (
    b"f%d (1)           \ttramp: 0xffffffffc0332000 (function_trace_call+0x0/0x110) "
    b"->function_trace_call+0x0/0x110\n"
)
PATCHED = b"f%d (1)   I     M \ttramp: 0x%x (klp_ftrace_handler+0x0/0x100)\n"


def each(unit: bytes, number: int) -> bytes:
    return b"".join(unit.replace(b"%d", b"%d" % n).replace(b"%x", b"%x" % n) for n in range(number))


#: How to make it (each is big), and what is said about it.
ERRORS: dict[str, tuple[Callable[[], bytes], str]] = {
    "letters": (lambda: many(b"a"), "this is no text"),
    "a record's line": (lambda: b"f (1)" + many(b"a"), "this is no text"),
    "tabs after a head": (lambda: b"f (1)" + many(b"\t"), "this is no text"),
    "blanks": (lambda: many(b" "), "this is no text"),
    "blanks before a tramp": (lambda: many(b" ") + b"tramp: ", "this is no text"),
    "tabs": (lambda: many(b"\t"), "this is no text"),
    "newlines": (lambda: many(b"\n"), "no kernel has so many functions"),
    "NULs": (lambda: many(b"\0"), "this is no text"),
    "noise": (lambda: random.Random(7).randbytes(MEGABYTES), "this is no text"),
    "short records": (lambda: many(b"a (1)\n"), "no kernel has so many functions"),
    "different records": (lambda: each(b"f (%d)\n", MAX_LINES - 1), "records that differ"),
    "too much": (lambda: many(b"f (1)\n", MAX_BYTES + 6), "more than 32 MB"),
}
#: How to make it, and how many functions are in it.
TEXTS: dict[str, tuple[Callable[[], bytes], int]] = {
    "one tracer everywhere": (lambda: each(TRACED, 90_000), 90_000),
    "one tracer, CRLF": (lambda: each(TRACED, 90_000).replace(b"\n", b"\r\n"), 90_000),
    "one tracer, UTF-16": (lambda: each(TRACED, 45_000).decode().encode("utf-16"), 45_000),
    "one tracer, blanks": (lambda: each(TRACED, 90_000).replace(b"\t", b"   "), 90_000),
    "as many livepatched as can be": (lambda: each(PATCHED, MAX_SHAPES), MAX_SHAPES),
    "lines below one record": (lambda: b"f (1)\n" + b"\tx\n" * (MAX_LINES - 2), 1),
    "long lines": (lambda: many(b"f (1)" + b"\t" * (MAX_LINE - 10) + b"\n"), 152),
    "a line that is too long": (lambda: b"f (1)\n" + many(b"\t"), 1),
    "long subops": (
        lambda: many(
            b"f (1)\ttramp: a+0x0/0x1 (b+0x0/0x1)\tsubops:" + b" {a+0x0/0x1}" * 5000 + b"\n"
        ),
        166,
    ),
}


# What is worse than linear does not come to an end in the next tests.
@pytest.mark.parametrize("what", ERRORS)
def test_big_and_no_registry(what: str) -> None:
    make, words = ERRORS[what]
    with pytest.raises(UsageError) as error:
        explain(make(), attachers=ASKED)
    assert words in error.value.message
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("what", TEXTS)
def test_big_and_right(what: str) -> None:
    make, functions = TEXTS[what]
    report = explain(make(), attachers=ASKED)
    assert report.functions == functions
    # What a person is shown has a bound, whatever came in.
    assert sum(len(line) for line in show(report, 80, color=False)) < 100_000
    first, *records, last = dump(report)
    assert first.endswith('"records": [')
    assert last == "]}"
    assert json.loads(records[-1])["function"]
    assert len(records) == functions


def test_many_different_ones_can_be_asked_for_by_name() -> None:
    data = each(PATCHED, 20_000)
    with pytest.raises(UsageError, match="--function"):
        explain(data)
    report = explain(data, ["f4711", "f123?"], ["livepatch"])
    assert sorted(title for block in report.blocks for title in block.titles) == sorted(
        ["f4711", *(f"f123{digit}" for digit in range(10))]
    )
    assert {b.answers["livepatch"][0].verdict for b in report.blocks} == {"yes"}


# Not getrusage(): that counts what this process had when it forked.
MEASURED = """
import re, sys
from pathlib import Path
from harness.cli.main import main
status = main(["explain", "--what-if", "livepatch", *sys.argv[1:]])
print(re.search("VmHWM:(.*)kB", Path("/proc/self/status").read_text())[1], file=sys.stderr)
sys.exit(status)
"""


@pytest.mark.parametrize("options", [(), ("--json",)], ids=["text", "json"])
@pytest.mark.parametrize("what", ["letters", "noise", "newlines", "short records", *TEXTS])
def test_memory(what: str, options: tuple[str, ...], tmp_path: Path) -> None:
    """The whole program needs less than 200 MB."""
    make, _ = ERRORS[what] if what in ERRORS else TEXTS[what]
    file = tmp_path / "text"
    file.write_bytes(make())
    with (tmp_path / "out").open("wb") as out:
        command = [sys.executable, "-c", MEASURED, str(file), *options]
        done = subprocess.run(
            command, cwd=REPOSITORY, stdout=out, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == (2 if what in ERRORS else 0)
    assert "Traceback" not in done.stderr
    assert int(done.stderr.split()[-1]) < 200_000
