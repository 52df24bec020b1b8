# SPDX-License-Identifier: GPL-2.0-only
"""Console bytes to lines, and the monitor on noise."""

from __future__ import annotations

import pytest
from console_help import run
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.monitor import Finding, LineSplitter, Monitor, boot_failure, lines, patterns

# --- lines ----------------------------------------------------------------------------------


def split(data: bytes) -> list[tuple[str, float | None, str]]:
    splitter = LineSplitter()
    got = splitter.feed(data) + splitter.flush()
    return [(line.text, line.time, line.caller) for line in got]


@pytest.mark.parametrize(
    ("data", "want"),
    [
        (b"[    4.688453] hello\r\n", [("hello", 4.688453, "")]),
        (b"[    4.688453][    T1] hello\n", [("hello", 4.688453, "T1")]),
        (b"[12345.000001][   C12] \r\n", [("", 12345.000001, "C12")]),
        (b"[    1.000000][ T1@C0] x\n", [("x", 1.0, "T1")]),
        (b"no stamp [1.5] here\n", [("no stamp [1.5] here", None, "")]),
        (b"open[    1.000000] k\n", [("open", None, ""), ("k", 1.0, "")]),
        (b"[    1.000000] torn[    1.000001] k\n", [("torn", 1.0, ""), ("k", 1.000001, "")]),
        (b"5%\r6%\r[    1.000000] k\r\r\n", [("5%", None, ""), ("6%", None, ""), ("k", 1.0, "")]),
        (b"\x1bc\x1b[?7l\x1b[2J\x1b[0mSeaBIOS\n", [("SeaBIOS", None, "")]),
        (b"\x1b]0;title\x07a\x1b(Bb\n", [("ab", None, "")]),
        (b"\x1b[1;31m[    1.000000] \x1b[0mred\n", [("red", 1.0, "")]),
        (b"a\x00b\x07c\n", [("abc", None, "")]),
        (b"caf\xc3\xa9 \xff\n", [("caf\xe9 \\xff", None, "")]),
        (b"\n\r\n", [("", None, ""), ("", None, "")]),
        (b"partial", [("partial", None, "")]),
        (b"", []),
    ],
)
def test_lines(data: bytes, want: list[tuple[str, float | None, str]]) -> None:
    assert split(data) == want


def test_a_line_shows_what_it_was() -> None:
    (line,) = LineSplitter().feed(b"[    1.000000][    T1] \x1b[1mtext\r\n")
    assert line.full == "[    1.000000][    T1] text"


def test_long_lines_are_cut_and_kept_apart_from_records() -> None:
    limit = lines.LINE_LIMIT
    assert [len(text) for text, *_ in split(b"x" * (3 * limit))] == [limit] * 3
    for length in range(limit - 40, limit + 1):
        got = split(b"x" * length + b"[    1.000000] Kernel panic - not syncing: y\n")
        assert got[-1] == ("Kernel panic - not syncing: y", 1.0, "")
        assert sum(len(text) for text, *_ in got[:-1]) == length


def test_long_lines_are_cut_alike_in_any_chunks() -> None:
    data = b"".join(b"%05d" % number for number in range(5000))
    want = split(data)
    for size in (1000, 5000, 8191, 8192, 8193, 20_000):
        splitter = LineSplitter()
        got = [
            line.text
            for at in range(0, len(data), size)
            for line in splitter.feed(data[at : at + size])
        ]
        got += [line.text for line in splitter.flush()]
        assert got == [text for text, *_ in want]


def test_the_splitter_keeps_no_more_than_a_line() -> None:
    splitter = LineSplitter()
    splitter.feed(b"[" * 1_000_000)
    assert len(splitter._pending) <= lines.LINE_LIMIT


# --- noise ----------------------------------------------------------------------------------

FRAGMENTS = [
    b"\n", b"\r\n", b"\r", b"[    1.000000] ", b"[    2.500000][    T7] ", b"[   12.", b"\x1b[",
    b"\x1b]0;", b"\x00", b"\xff", b"------------[ cut here ]------------",
    b"WARNING: CPU: 0 PID: 1 at a.c:1 f+0x1/0x2", b"BUG: KASAN: x in f+0x1/0x2", b"=" * 40,
    b"Call Trace:", b" f+0x1/0x2", b" ? g+0x1/0x2", b"---[ end trace 0 ]---",
    b"Kernel panic - not syncing: x", b"rcu: INFO: rcu_sched self-detected stall on CPU",
    b"Oops: 0000 [#1]", b"NMI backtrace for cpu 1", b"user text", b"x" * 5000,
]  # fmt: skip
NOISE = st.lists(st.sampled_from(FRAGMENTS) | st.binary(max_size=20), max_size=40).map(b"".join)


@settings(deadline=None)
@given(st.binary(max_size=400) | NOISE)
def test_nothing_raises(data: bytes) -> None:
    found = run(data)
    assert all(f.kind in patterns.KINDS and f.lines and f.fingerprint for f in found)
    boot_failure(data.decode("latin-1").split("\n"))
    seen = Monitor()
    seen.feed_records([(6, 1.0, data.decode("latin-1"))])
    seen.finish()


@settings(deadline=None)
@given(NOISE, st.lists(st.integers(0, 6000), max_size=8))
def test_any_chunks(data: bytes, cuts: list[int]) -> None:
    seen = Monitor()
    found: list[Finding] = []
    at = 0
    for cut in [*sorted(cuts), len(data)]:
        found += seen.feed(data[at : max(at, cut)])
        at = max(at, cut)
    found += seen.finish()
    assert tuple(found) == seen.findings == run(data)
