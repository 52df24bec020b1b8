# SPDX-License-Identifier: GPL-2.0-only
"""The monitor on recorded consoles: what it finds, however the bytes are cut or mixed."""

from __future__ import annotations

import copy
import re
from itertools import chain, zip_longest

import pytest
from console_help import BENIGN, CONSOLES, CRASH, SPLAT, one, read, recorded, run, stamped

from harness.monitor import (
    LineSplitter,
    Monitor,
    boot_failure,
    emulator_failed,
    parse_lines,
    patterns,
)

RECORDED = recorded()

# --- recorded consoles ----------------------------------------------------------------------


def test_each_recording_has_its_row() -> None:
    assert sorted(path.stem for path in CONSOLES.glob("*.log")) == sorted(RECORDED)


@pytest.mark.parametrize("name", sorted(RECORDED))
def test_recorded(name: str) -> None:
    found = run(read(name))
    got = [(f.severity.name, f.kind, f.process, f.title, f.fingerprint) for f in found]
    assert got == RECORDED[name]


@pytest.mark.parametrize("name", sorted(RECORDED))
def test_reports_are_quoted_word_for_word(name: str) -> None:
    data = read(name).decode()
    for finding in run(read(name)):
        assert finding.time is not None
        assert f"[{finding.time:12.6f}] {finding.title}" in data
        at = 0
        for line in finding.lines:
            at = data.index(line, at) + len(line)


@pytest.mark.parametrize("name", sorted(RECORDED))
def test_a_marked_report_ends_at_its_marker(name: str) -> None:
    for finding in run(read(name)):
        marks = [line for line in finding.lines if "---[ end trace" in line]
        if marks:
            assert marks == [finding.lines[-1]]
        if finding.kind in ("WARN", "BUG", "refcount"):
            assert marks or b"panic_on_warn" in read(name)


@pytest.mark.parametrize("name", sorted(RECORDED))
def test_records_say_the_same_as_the_console(name: str) -> None:
    records = [
        (6, line.time, line.text)
        for line in LineSplitter().feed(read(name))
        if line.time is not None
    ]
    seen = Monitor()
    seen.feed_records(records)
    seen.finish()
    key = [(f.kind, f.title, f.time, f.frames, f.lines) for f in seen.findings]
    assert key == [(f.kind, f.title, f.time, f.frames, f.lines) for f in run(read(name))]


def test_a_report_on_both_ways_is_one_finding() -> None:
    name = "6.12-warn"
    seen = Monitor()
    first = seen.feed(read(name))
    again = [
        (4, line.time, line.text)
        for line in LineSplitter().feed(read(name))
        if line.time is not None
    ]
    assert [f.kind for f in first] == ["WARN"]
    assert seen.feed_records(again) == []
    assert seen.finish() == []


def test_the_same_fault_twice_has_one_fingerprint() -> None:
    first, second = run(read("6.12-warn-twice"))
    assert first.title == second.title
    assert first.time != second.time
    assert first.fingerprint == second.fingerprint
    assert first.fingerprint != run(read("6.12-bug"))[0].fingerprint


# --- any split of the bytes -----------------------------------------------------------------


def clone(seen: Monitor) -> Monitor:
    """A copy that shares only what can't change (or is not used here: the log)."""
    twin = copy.copy(seen)
    twin._splitter = copy.copy(seen._splitter)
    twin._splitter._pending = seen._splitter._pending[:]
    twin._findings = seen._findings[:]
    twin._seen = seen._seen.copy()
    twin._console = console = copy.copy(seen._console)
    console._rules = console._rules.copy()
    console._open = {caller: copy.copy(report) for caller, report in console._open.items()}
    for report in console._open.values():
        report.lines, report.frames = report.lines[:], report.frames[:]
        report.loose = report.loose[:]
    return twin


def facts(seen: Monitor) -> object:
    """All that a monitor remembers, comparable."""
    return (
        seen._splitter._pending,
        seen._findings,
        seen._seen,
        {**vars(seen._console), "_open": None},
        {caller: vars(report) for caller, report in seen._console._open.items()},
    )


@pytest.mark.parametrize("name", sorted(RECORDED))
def test_two_chunks_at_every_byte(name: str) -> None:
    """Cut each line at every byte, from the true state before it to the true
    state after it: what comes later can't tell the difference."""
    data = read(name)
    whole = Monitor()
    for line in data.splitlines(keepends=True):
        before = clone(whole)
        whole.feed(line)
        after = facts(clone(whole))
        for cut in range(1, len(line)):
            seen = clone(before)
            seen.feed(line[:cut])
            seen.feed(line[cut:])
            assert facts(seen) == after, (line, cut)
    at_once = Monitor()
    at_once.feed(data)
    assert facts(at_once) == facts(whole)


@pytest.mark.parametrize("name", sorted(RECORDED))
def test_byte_by_byte(name: str) -> None:
    data = read(name)
    seen = Monitor()
    for number in range(len(data)):
        seen.feed(data[number : number + 1])
    seen.finish()
    assert seen.findings == run(data)


@pytest.mark.parametrize("name", ["6.12-hung-task", "6.12-livepatch-refused"])
def test_two_chunks_whole(name: str) -> None:
    """The plain form of the test above, on short consoles."""
    data = read(name)
    want = run(data)
    for cut in range(len(data)):
        seen = Monitor()
        seen.feed(data[:cut])
        seen.feed(data[cut:])
        seen.finish()
        assert seen.findings == want


# --- while it comes in ----------------------------------------------------------------------


def test_a_crash_is_known_from_its_first_line() -> None:
    data = read("6.12-sysrq-c")
    at = data.index(b"\n", data.index(b"] Kernel panic")) + 1
    seen = Monitor()
    assert (seen.feed(data[: at - 1]), seen.crashed) == ([], False)
    assert (seen.feed(data[at - 1 : at]), seen.crashed) == ([], True)
    assert seen.findings == ()
    (panic,) = seen.finish()
    assert panic.kind == "panic"
    assert panic.lines[-1].endswith("sysrq triggered crash")
    assert seen.finish() == []


def test_an_unfinished_report_is_a_finding() -> None:
    data = read("6.12-warn")
    for cut in range(data.index(b"cut here") + 30, data.index(b"end trace"), 16):
        assert [(f.kind, f.severity) for f in run(data[:cut])] == [("WARN", SPLAT)]
    opened = run(data[: data.index(b"cut here") + len("cut here ]------------")])
    assert [(f.kind, f.title) for f in opened] == [("WARN", patterns.CUT)]


def test_worst_counts_what_is_coming_in() -> None:
    seen = Monitor()
    assert seen.worst is BENIGN
    seen.feed(stamped("BUG: scheduling while atomic: insmod/144/0x00000201").encode())
    assert seen.findings == ()
    assert seen.worst is SPLAT
    assert not seen.crashed


@pytest.mark.parametrize("end", ["---[ end Kernel panic - not syncing: ]---", "Rebooting in 1 s.."])
def test_a_panic_is_complete_at_its_end(end: str) -> None:
    seen = Monitor()
    (panic,) = seen.feed(stamped(f"Kernel panic - not syncing: x\nCall Trace:\n{end}").encode())
    assert len(panic.lines) == 3


def test_a_record_of_many_lines() -> None:
    seen = Monitor()
    seen.feed_records([(4, 1.5, "BUG: Bad page state\nCall Trace:\n demo_fn+0x1/0x2")])
    (finding,) = seen.finish()
    assert finding.frames == ("demo_fn",)
    assert finding.lines[2] == "[    1.500000]  demo_fn+0x1/0x2"


def test_nothing_after_a_panic() -> None:
    end = "---[ end Kernel panic - not syncing: x ]---"
    splat = "refcount_t: underflow; use-after-free."
    for before_end in (splat, ""):
        text = stamped(f"Kernel panic - not syncing: x\n{before_end}\n{end}\n{splat}")
        assert [f.kind for f in run(text.encode())] == ["panic"]


# --- expected -------------------------------------------------------------------------------


def test_expected_splats_are_benign() -> None:
    data = read("6.12-warn-once")
    (plain,) = run(data)
    assert (plain.severity, plain.expected) == (SPLAT, False)
    for pattern in (r"text of a WARN_ONCE, number \d", r"WARNING: CPU: \d+ PID: \d+ at "):
        (known,) = run(data, "another", pattern)
        assert (known.severity, known.expected) == (BENIGN, True)
    (other,) = run(data, "number 8")
    assert other.severity is SPLAT
    seen = Monitor([re.compile("WARN_ONCE")])
    seen.feed(data)
    assert seen.worst is BENIGN


def test_a_crash_stays_one() -> None:
    (panic,) = run(read("6.12-sysrq-c"), "sysrq triggered crash")
    assert (panic.severity, panic.expected) == (CRASH, True)


# --- two at once ----------------------------------------------------------------------------


def texts(name: str, kind: str) -> str:
    (finding,) = (f for f in run(read(name)) if f.kind == kind)
    return "\n".join(parse_lines(line)[0].text for line in finding.lines)


def test_callers_keep_two_reports_apart() -> None:
    """No stock kernel sets CONFIG_PRINTK_CALLER: two recordings with callers
    written in (print_caller(), kernel/printk/printk.c), woven line by line."""
    one_cpu = stamped(texts("6.12-warn-once", "WARN"), caller="[  T143]").splitlines(keepends=True)
    other = stamped(texts("6.12-refcount", "refcount"), caller="[    C1]").splitlines(keepends=True)
    woven = chain.from_iterable(zip_longest(one_cpu, other, fillvalue=""))
    found = {f.kind: f for f in run("".join(woven).encode())}
    assert set(found) == {"WARN", "refcount"}
    assert found["WARN"].lines == tuple(line.rstrip() for line in one_cpu)
    assert found["refcount"].lines == tuple(line.rstrip() for line in other)
    assert found["WARN"].frames == run(read("6.12-warn-once"))[0].frames


def test_without_callers_both_are_still_seen() -> None:
    first = stamped(texts("6.12-warn-once", "WARN")).splitlines(keepends=True)
    second = stamped(texts("6.12-refcount", "refcount"), 20).splitlines(keepends=True)
    text = "".join(first[:20] + second + first[20:])
    assert [f.kind for f in run(text.encode())] == ["WARN", "refcount"]


def test_user_space_does_not_get_into_a_report() -> None:
    data = read("6.12-warn")
    noise = b"BUG: from user space\r\n------------[ cut here ]------------\r\n"
    noisy = b"".join(line + noise for line in data.splitlines(keepends=True) if b"] " in line)
    assert run(noisy) == run(data)


def test_user_space_without_newlines() -> None:
    """What user space leaves open, the kernel's next record ends."""
    data = read("6.12-warn")
    noisy = re.sub(rb"\n(?=\[ +\d)", b"\nprogress 50%\rprogress 60%", data)
    assert run(noisy) == run(data)
    flood = re.sub(rb"\n(?=\[ +\d+\.\d+\] -+\[ cut)", b"\n" + b"x" * 100_001, data)
    assert run(flood) == run(data)


def test_without_stamps() -> None:
    """printk.time=0: all lines may be the kernel's."""
    bare = re.sub(rb"(?m)^\[ *\d+\.\d+\] ", b"", read("6.12-bug"))
    (finding,) = run(bare)
    (want,) = run(read("6.12-bug"))
    assert (finding.kind, finding.title, finding.frames) == (want.kind, want.title, want.frames)
    assert finding.time is None


def test_an_unstamped_panic_counts_anywhere() -> None:
    text = stamped("Run /init as init process") + "Kernel panic - not syncing: torn\r\n"
    assert one(text).severity is CRASH


# --- boot -----------------------------------------------------------------------------------


def shown(name: str) -> list[str]:
    return read(name).decode().splitlines()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (
            "6.12-no-root",
            "Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)"
            ' (VFS: Cannot open root device "/dev/vda" or unknown-block(0,0): error -19)',
        ),
        (
            "6.12-no-init",
            "Kernel panic - not syncing: No working init found.  Try passing init= option to"
            " kernel. See Linux Documentation/admin-guide/init.rst for guidance."
            " (Failed to execute /init (error -2))",
        ),
        (
            "6.12-kill-init",
            "Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000300",
        ),
        (
            "qemu-no-kernel",
            "qemu: could not open kernel file '/no/such/kernel': No such file or directory",
        ),
        ("6.12-clean", None),
        ("6.12-warn", None),
    ],
)
def test_boot_failure(name: str, reason: str | None) -> None:
    assert boot_failure(shown(name)) == reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("qemu-system-x86_64: warning: TCG doesn't support requested feature", None),
        ("qemu-system-x86_64: terminating on signal 15 from pid 77 (python3)", None),
        *(
            (reason, reason)
            for reason in (
                "qemu-system-x86_64: -m 99T: ram size too large",
                "/opt/q/bin/qemu-system-aarch64: Could not open 'x'",
                "KVM internal error. Suberror: 1",
                "-- System halted",
                "EFI stub: ERROR: Failed to decompress kernel",
            )
        ),
        (stamped("qemu-system-x86_64: not its own line"), None),
        ("qemu-kvm: late\nKernel panic - not syncing: x", "Kernel panic - not syncing: x"),
        (
            "Kernel panic - not syncing: x\nFailed to execute /late (error -2)",
            "Kernel panic - not syncing: x",
        ),
        (stamped("Initramfs unpacking failed: invalid magic"), None),
    ],
)
def test_boot_failure_lines(text: str, reason: str | None) -> None:
    got = boot_failure(text.strip("\r\n").split("\n"))
    assert got == reason


@pytest.mark.parametrize(
    ("reason", "emulator"),
    [
        (
            "qemu-system-x86_64: hw/pci/msix.c:228: msix_table_mmio_write: Assertion `addr + size "
            "<= dev->msix_entries_nr * PCI_MSIX_ENTRY_SIZE' failed.",
            True,
        ),
        ("qemu-system-aarch64: cannot set up guest memory 'mem': Cannot allocate memory", False),
        ("Kernel panic - not syncing: Assertion failed", False),
        ("KVM internal error. Suberror: 1", False),
    ],
)
def test_a_bug_of_the_emulator_is_not_the_kernels(reason: str, emulator: bool) -> None:
    assert emulator_failed(reason) is emulator
