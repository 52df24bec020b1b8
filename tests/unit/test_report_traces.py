# SPDX-License-Identifier: GPL-2.0-only
"""The kernel's own reports in each format: where they came, decoded, and no longer than need be."""

from __future__ import annotations

import json
import re
from typing import Any

from sample_events import Event, Recorder
from test_report_model import model_of

from harness.report import html, jsonout, junit, ktap, text, traces
from harness.report.model import RunModel

KERNEL = "7.2.12-cohabit"
STAMP = "[    6.135321] "
RAW = (
    "------------[ cut here ]------------",
    "WARNING: kernel/bpf/syscall.c:3655 at bpf_tracing_link_release+0x45/0x50, CPU#0: python3/55",
    "Modules linked in: cohabit_funcs(O) cohabit(O)",
    "CPU: 0 UID: 0 PID: 55 Comm: python3 Tainted: G           O        7.2.12-cohabit #2 PREEMPT",
    "Tainted: [O]=OOT_MODULE",
    "Hardware name: QEMU Standard PC (Q35 + ICH9, 2009), BIOS 1.16.3 04/01/2014",
    "RIP: 0010:bpf_tracing_link_release+0x45/0x50",
    "Code: 40 e8 0f 40 06 00 85 c0 75 20 48 8b bb 90 00 <0f> 0b eb dc 0f 1f 80 00",
    "RSP: 0018:ffa0000000143ea0 EFLAGS: 00010282",
    "R13: ff11000002c84000 R14: ff1100000298bda0 R15: 0000000000000000",
    "FS:  00007fe079317780(0000) GS:ff110000bc686000(0000) knlGS:0000000000000000",
    "CR2: 00000000006e9a70 CR3: 0000000003c87000 CR4: 0000000000751eb0",
    "PKRU: 55555554",
    "Call Trace:",
    " <TASK>",
    " bpf_link_free+0x4c/0x100",
    " ? t_start+0xa6/0x140",
    " entry_SYSCALL_64_after_hwframe+0x4b/0x53",
    "RIP: 0033:0x7fe0793ab3a7",
    "RSP: 002b:00007fff75387e90 EFLAGS: 00000202 ORIG_RAX: 0000000000000003",
    " </TASK>",
    "---[ end trace 0000000000000000 ]---",
)
PLACES = {
    "bpf_tracing_link_release+0x45/0x50": "bpf_tracing_link_release (kernel/bpf/syscall.c:3655)",
    "bpf_link_free+0x4c/0x100": "bpf_link_free (kernel/bpf/syscall.c:3412)",
}
SHOWN = [
    "WARNING: kernel/bpf/syscall.c:3655 at bpf_tracing_link_release "
    "(kernel/bpf/syscall.c:3655), CPU#0: python3/55",
    "CPU: 0 UID: 0 PID: 55 Comm: python3 Tainted: G           O        7.2.12-cohabit #2 PREEMPT",
    "RIP: 0010:bpf_tracing_link_release (kernel/bpf/syscall.c:3655)",
    "Call Trace:",
    " <TASK>",
    " bpf_link_free (kernel/bpf/syscall.c:3412)",
    " entry_SYSCALL_64_after_hwframe+0x4b/0x53",
    " </TASK>",
]
STEPS = [
    {"do": "attach", "id": "a", "attacher": "fexit", "function": "cmdline_proc_show"},
    {"do": "detach", "id": "a"},
]
OTHER_LINE = "livepatch: an unrelated message"


class Run:
    """Builds a run; ``report`` tells of RAW, which ``decoded`` has the addresses of replaced."""

    def __init__(self, planned: int = 1) -> None:
        self.rec = Recorder()
        self.number = 0
        self.rec.emit("run_start", format=1, cohabit="0", argv=["run"], planned=planned)
        self.rec.emit("kernel", kernel=KERNEL, reference="tree:.", release=KERNEL, arch="x86_64")
        self.rec.emit("vm_start", vm="vm0", kernel=KERNEL)

    def start(self, name: str, **keys: Any) -> str:
        self.rec.emit("scenario_start", scenario=name, name=name, kernel=KERNEL, vm="vm0",
                      attempt=1, functions=["cmdline_proc_show"], steps=STEPS, **keys)  # fmt: skip
        return name

    def step(self, name: str, index: int, log: bool = False, bad: bool = False) -> None:
        self.rec.emit("step_start", scenario=name, index=index, step=STEPS[index], predicted={})
        mismatch = {"witness": "log", "what": "kernel report", "expected": "none", "seen": RAW[1],
                    "rule": "welcome"}  # fmt: skip
        lines = [{"level": 4, "t": 6.135321, "text": t} for t in (*RAW, OTHER_LINE)] if log else []
        self.rec.emit("step_end", scenario=name, index=index, observed={"errno": 0}, log=lines,
                      mismatches=[mismatch] if bad else [])  # fmt: skip

    def report(self, *names: str, when: str = "step", raw: tuple[str, ...] = RAW,
               **keys: Any) -> str:  # fmt: skip
        identity = f"vm0:r{self.number}"
        self.number += 1
        if names:
            keys["scenarios"] = list(names)
        self.rec.emit("report", report=identity, vm="vm0", when=when, kind="WARN", title=RAW[1],
                      fingerprint="WARN: bpf_link_free", lines=[STAMP + x for x in raw],
                      **keys)  # fmt: skip
        return identity

    def decoded(self, identity: str) -> None:
        lines = [re.sub("|".join(map(re.escape, PLACES)), lambda m: PLACES[m[0]], x) for x in RAW]
        self.rec.emit("decoded", report=identity, lines=[STAMP + x for x in lines])

    def end(self, name: str, verdict: str, **keys: str) -> None:
        self.rec.emit("scenario_end", scenario=name, verdict=verdict, reason=RAW[1], **keys)

    def over(self, **keys: Any) -> list[Event]:
        self.rec.emit("vm_end", vm="vm0", **{"reason": "done", **keys})
        self.rec.emit("run_end", counts={}, steps=0, exit_status=1, interrupted=False)
        return self.rec.events


def splat(decoded: bool = True, verdict: str = "SPLAT") -> list[Event]:
    """One scenario with a report in its second step."""
    run = Run()
    name = run.start("fexit/alone")
    run.step(name, 0)
    identity = run.report(name, index=1)
    run.step(name, 1, log=True, bad=True)
    run.end(name, verdict, **({"xfail": "odd-link"} if verdict == "XFAIL" else {}))
    if decoded:
        run.decoded(identity)
    return run.over()


def indented(lines: list[str], by: int) -> list[str]:
    return [" " * by + line for line in lines]


def contains(report: str, lines: list[str]) -> bool:
    """Whether the lines follow one another in the report."""
    return "\n".join(lines) in report


# --- what is worth reading ------------------------------------------------------------------


def test_registers_and_guesses_are_left_out() -> None:
    (report,) = model_of(splat()).reports.values()
    assert traces.shown(report) == SHOWN
    assert traces.shown(report, 8) == SHOWN
    assert traces.shown(report, 3) == [*SHOWN[:3], "(5 more lines in the record, report vm0:r0)"]


def test_registers_of_arm64() -> None:
    kept = (
        "WARNING: kernel/trace/fprobe.c:683 at fprobe_return+0x17c/0x190, CPU#0: python3/69",
        "pc : fprobe_return+0x17c/0x190",
        "lr : fprobe_return+0x178/0x190",
        "Call trace:",
        " fprobe_return+0x17c/0x190 (P)",
        " return_to_handler+0x2c/0x58",
    )
    registers = (
        "pstate: 81402005 (Nzcv daif +PAN -UAO -TCO +DIT -SSBS BTYPE=--)",
        "sp : ffff80008018bba0",
        "x29: ffff80008018bba0 x28: ffff0000015a5e80 x27: ffffffffffffffff",
        "x8 : ffff0000015a5e80 x7 : ffff0000015a5e80 x6 : 0000000000000004",
    )
    run = Run()
    name = run.start("fexit/alone")
    run.report(name, index=1, raw=(*kept[:3], *registers, *kept[3:]))
    run.end(name, "SPLAT")
    (report,) = model_of(run.over()).reports.values()
    assert traces.shown(report) == list(kept)


def test_what_was_not_decoded_is_shown_as_it_was() -> None:
    (report,) = model_of(splat(decoded=False)).reports.values()
    assert traces.shown(report)[2] == RAW[6]
    assert len(traces.shown(report)) == len(SHOWN)


def test_lines_without_stamps() -> None:
    run = Run()
    run.rec.emit("report", report="r", vm="vm0", when="boot", lines=list(RAW))
    (report,) = model_of(run.over()).reports.values()
    assert traces.shown(report)[-1] == " </TASK>"


def test_locks_stay() -> None:
    lines = (
        "======================================================",
        "WARNING: possible circular locking dependency detected",
        "python3/128 is trying to acquire lock:",
        "ffffffff82a1b2c8 (ftrace_lock){+.+.}-{4:4}, at: register_ftrace_function+0x1f/0x40",
        "-> #1 (text_mutex){+.+.}-{4:4}:",
        "       __mutex_lock+0xa0/0xd30",
    )
    run = Run()
    run.report(raw=lines, when="boot")
    (report,) = model_of(run.over()).reports.values()
    assert traces.shown(report) == list(lines[1:])


# --- text -----------------------------------------------------------------------------------


def test_text_has_the_trace_in_the_step() -> None:
    report = text.render(model_of(splat()))
    place = "     the kernel's report in step 2 (detach a):"
    after = [place, *indented(SHOWN, 7), "     kernel log:", f"       <4>{STAMP}{OTHER_LINE}"]
    assert contains(report, after)
    assert report.count("bpf_link_free") == 1


def test_text_of_an_old_record_has_the_log() -> None:
    events = [e for e in splat() if e["type"] not in ("report", "decoded")]
    for number, event in enumerate(events):
        event["seq"] = number
    report = text.render(model_of(events))
    assert "the kernel's report" not in report
    assert contains(report, ["     kernel log:", f"       <4>{STAMP}{RAW[0]}"])


def test_text_bounds_a_long_report() -> None:
    run = Run()
    name = run.start("long")
    run.step(name, 0)
    run.report(name, index=0, raw=tuple(f" f{n}+0x1/0x2" for n in range(100)))
    run.end(name, "CRASH")
    report = text.render(model_of(run.over()))
    assert "f39+0x1" in report
    assert "f40+0x1" not in report
    assert "(60 more lines in the record, report vm0:r0)" in report


def test_text_says_when_it_was_not_in_a_step() -> None:
    for when, words in (
        ("begin", "before the first step"), ("clean", "while what was left was removed"),
    ):  # fmt: skip
        run = Run()
        name = run.start("x")
        run.report(name, when=when)
        run.end(name, "SPLAT")
        assert f"     the kernel's report {words}:" in text.render(model_of(run.over()))


def test_text_has_known_reports_once() -> None:
    run = Run()
    for number in range(3):
        name = run.start(f"x{number}")
        identity = run.report(name, index=1)
        run.end(name, "XFAIL", xfail="odd-link")
        run.decoded(identity)
    report = text.render(model_of(run.over()))
    place = f"  odd-link, {KERNEL}: in step 2 (detach a) of x0, and of 2 more scenarios"
    assert contains(report, ["Reports of the kernel that are known differences", place,
                             *indented(SHOWN, 4)])  # fmt: skip
    assert report.count("bpf_link_free") == 1


def test_text_is_silent_on_known_reports_that_were_not_decoded() -> None:
    report = text.render(model_of(splat(decoded=False, verdict="XFAIL")))
    assert "known differences" not in report
    assert "bpf_link_free" not in report


def group(alone: str) -> list[Event]:
    """Two scenarios side by side; the first failed by itself, the other one's start is void."""
    run = Run(2)
    run.rec.emit("group_start", group="vm0:g1", vm="vm0", kernel=KERNEL, scenarios=["p", "q"])
    for name in ("p", "q"):
        run.start(name, group="vm0:g1")
    identity = run.report("p", "q", index=0, group="vm0:g1")
    for name in ("p", "q"):
        run.step(name, 0, bad=name == "p")
    run.end("p", "FAIL")
    run.rec.emit("scenario_regroup", scenario="q", reason=RAW[1])
    run.rec.emit("group_end", group="vm0:g1", verdict="SPLAT", reason=RAW[1])
    run.rec.emit("scenario_start", scenario="q#alone", name="q", kernel=KERNEL, vm="vm0",
                 attempt=1, steps=STEPS)  # fmt: skip
    run.end("q#alone", alone)
    run.decoded(identity)
    return run.over()


def test_text_of_a_group_names_the_step() -> None:
    report = text.render(model_of(group("PASS")))
    assert contains(report, ["  the kernel's report in step 1 (attach a):", *indented(SHOWN, 4)])
    assert report.count("bpf_link_free") == 1
    assert "the kernel's report in step 1 (attach a), as in group vm0:g1: WARNING:" in report


def test_text_of_a_member_has_it_where_the_group_is_not_told() -> None:
    report = text.render(model_of(group("SPLAT")))
    assert "group vm0:g1, 7.2" not in report
    place = "     the kernel's report in step 1 (attach a):"
    assert contains(report, [place, *indented(SHOWN, 7)])


def boot_failure() -> list[Event]:
    run = Run()
    identity = run.report(when="boot")
    run.decoded(identity)
    run.rec.emit("decoded", vm="vm0", lines=["CPU 0: somewhere", " f (a.c:1)"])
    return run.over(reason="died", verdict="BOOT_FAIL", detail="panic",
                    backtraces=["CPU 0: somewhere", " f+0x1/0x2"])  # fmt: skip


def test_a_boot_failure_has_its_report_and_decoded_stacks() -> None:
    model = model_of(boot_failure())
    report = text.render(model)
    assert contains(report, ["  the kernel's report while it booted:", *indented(SHOWN, 4)])
    assert contains(report, ["  stacks:", "    CPU 0: somewhere", "     f (a.c:1)"])
    page = html.render(model)
    assert "f (a.c:1)" in page
    assert "f+0x1/0x2" not in page
    assert "The kernel&#39;s report while it booted" in page.replace("'", "&#39;")
    assert "f (a.c:1)" in ktap.render(model)


# --- the other formats ----------------------------------------------------------------------


def test_html_has_the_decoded_lines_in_place_of_the_raw_ones() -> None:
    for verdict in ("SPLAT", "XFAIL"):
        page = html.render(model_of(splat(verdict=verdict)))
        assert "report in step 2 (detach a): <b>WARNING: kernel/bpf" in page
        assert f"{STAMP} bpf_link_free (kernel/bpf/syscall.c:3412)\n" in page
        assert "bpf_link_free+0x4c" not in page
        assert f"{STAMP}PKRU: 55555554\n" in page
        assert page.count("PKRU") == 1
        assert OTHER_LINE in page


def test_html_of_a_group_has_its_report() -> None:
    page = html.render(model_of(group("PASS")))
    card = page[page.index("group vm0:g1</h3>") :]
    assert "bpf_link_free (kernel/bpf/syscall.c:3412)" in card[: card.index("</article>")]


def test_ktap_and_junit_carry_it() -> None:
    model = model_of(splat())
    lines = ["report of the kernel in step 2 (detach a):", *(f"   {x}" for x in SHOWN)]
    assert contains(ktap.render(model), [f"  # {x}" for x in lines])
    told = junit.render(model).replace("&lt;", "<").replace("&gt;", ">")
    assert contains(told, lines)
    assert "PKRU" not in told


def test_json_carries_it() -> None:
    (scenario,) = json.loads(jsonout.render(model_of(splat())))["scenarios"]
    assert scenario["reports"] == [
        {
            "id": "vm0:r0", "index": 1, "when": "step", "kind": "WARN", "title": RAW[1],
            "fingerprint": "WARN: bpf_link_free", "decoded": True, "trace": SHOWN,
        }
    ]  # fmt: skip
    (vm,) = json.loads(jsonout.render(model_of(boot_failure())))["kernels"][0]["vms"]
    assert "decoded" not in vm


# --- the model ------------------------------------------------------------------------------


def test_reports_belong_to_what_they_came_in() -> None:
    model = model_of(group("PASS"))
    (report,) = model.reports.values()
    assert model.reports_of(model.attempts["p"]) == [report]
    assert model.reports_of(model.attempts["q"]) == [report]
    assert model.reports_of(model.attempts["q#alone"]) == []
    assert model.reports_of(model.groups["vm0:g1"]) == [report]
    assert model.reports_of(model.vms["vm0"]) == []


def test_keys_that_are_not_there() -> None:
    model = RunModel()
    for event in Run().rec.events:
        model.feed(event)
    model.feed({"seq": 3, "t": 1, "type": "report", "report": "vm0:r0", "vm": "vm0"})
    (report,) = model.reports.values()
    assert (traces.where(model, report), traces.shown(report)) == ("", [])
