# SPDX-License-Identifier: GPL-2.0-only
"""The monitor on texts that no recording has: written from the printers' source."""

from __future__ import annotations

import pytest
from console_help import BENIGN, CONSOLES, CRASH, SPLAT, one, recorded, run, stamped

from harness.monitor import monitor, parse_lines, patterns

# --- written from the printers' source ------------------------------------------------------
#
# The stock kernels that the recordings come from are built without these checkers
# and formats, or QEMU has not the hardware: no recording exists yet.  Functions
# and numbers are made up; the shapes are the printers', which are named in
# harness/monitor/patterns.py.

LOCKDEP = """
======================================================
WARNING: possible circular locking dependency detected
6.12.0-debug #1 Not tainted
------------------------------------------------------
insmod/88 is trying to acquire lock:
ffffffff82a5b1c8 (text_mutex){+.+.}-{3:3}, at: ftrace_arch_code_modify_prepare+0xe/0x20

but task is already holding lock:
ffffffff82b0f9a8 (ftrace_lock){+.+.}-{3:3}, at: register_ftrace_function+0x22/0x80

which lock already depends on the new lock.

the existing dependency chain (in reverse order) is:

-> #1 (ftrace_lock){+.+.}-{3:3}:
       __lock_acquire+0x49c/0x840
       lock_acquire+0xbe/0x2b0
       chain_only_fn+0x90/0xb0

-> #0 (text_mutex){+.+.}-{3:3}:
       lock_acquire+0xbe/0x2b0
       __mutex_lock+0x7f/0x9c0

other info that might help us debug this:

 Possible unsafe locking scenario:

       CPU0                    CPU1
       ----                    ----
  lock(ftrace_lock);

 *** DEADLOCK ***

1 lock held by insmod/88:
 #0: ffffffff82b0f9a8 (ftrace_lock){+.+.}-{3:3}, at: register_ftrace_function+0x22/0x80

stack backtrace:
CPU: 0 UID: 0 PID: 88 Comm: insmod Not tainted 6.12.0-debug #1
Hardware name: QEMU Standard PC
Call Trace:
 <TASK>
 dump_stack_lvl+0x7e/0xb0
 print_circular_bug.cold+0x38/0x48
 check_noncircular+0x14a/0x160
 __lock_acquire+0x49c/0x840
 lock_acquire+0xbe/0x2b0
 ? ftrace_arch_code_modify_prepare+0xe/0x20
 ftrace_arch_code_modify_prepare+0xe/0x20
 ftrace_run_update_code+0x16/0x70
 </TASK>
"""

KASAN = """
==================================================================
BUG: KASAN: slab-use-after-free in klp_release+0x51/0x90
Read of size 8 at addr ffff88810a1b2c08 by task kworker/u8:1/47

CPU: 1 UID: 0 PID: 47 Comm: kworker/u8:1 Not tainted 6.12.0-debug #1
Workqueue: events klp_free_work
Call Trace:
 <TASK>
 dump_stack_lvl+0x7e/0xb0
 print_report+0xce/0x630
 kasan_report+0xc6/0xf0
 ? klp_release+0x51/0x90
 klp_release.isra.0+0x51/0x90
 process_one_work+0x4a5/0xa00
 </TASK>

Allocated by task 47:
 kasan_save_stack+0x24/0x50
 never_in_the_frames+0x38/0x70

Freed by task 47:
 kfree+0x121/0x3a0

The buggy address belongs to the object at ffff88810a1b2c00
==================================================================
"""

KCSAN = """
==================================================================
BUG: KCSAN: data-race in ftrace_ops_list_func / register_ftrace_function

write to 0xffffffff82b0f9a8 of 8 bytes by task 88 on cpu 0:
 register_ftrace_function+0x44/0x80
 do_init_module+0x60/0x230

read to 0xffffffff82b0f9a8 of 8 bytes by interrupt on cpu 1:
 ftrace_ops_list_func+0x91/0x1f0

Reported by Kernel Concurrency Sanitizer on:
CPU: 1 UID: 0 PID: 0 Comm: swapper/1 Not tainted 6.12.0-debug #1
==================================================================
"""

SLEEPING = """
BUG: sleeping function called from invalid context at kernel/locking/mutex.c:585
in_atomic(): 1, irqs_disabled(): 0, non_block: 0, pid: 88, name: insmod
preempt_count: 1, expected: 0
RCU nest depth: 0, expected: 0
INFO: lockdep is turned off.
CPU: 0 UID: 0 PID: 88 Comm: insmod Not tainted 6.12.0-debug #1
Call Trace:
 <TASK>
 dump_stack_lvl+0x7e/0xb0
 __might_resched.cold+0xe6/0x140
 __mutex_lock+0x7f/0x9c0
 bad_caller+0x30/0x60 [demo]
 </TASK>
"""

ARM64_OOPS = """
Unable to handle kernel NULL pointer dereference at virtual address 0000000000000008
Mem abort info:
  ESR = 0x0000000096000044
  EC = 0x25: DABT (current EL), IL = 32 bits
Data abort info:
  ISV = 0, ISS = 0x00000044, ISS2 = 0x00000000
[0000000000000008] user address but active_mm is swapper
Internal error: Oops: 0000000096000044 [#1] SMP
Modules linked in: demo(OE+)
CPU: 0 UID: 0 PID: 88 Comm: insmod Tainted: G           OE      7.2.0-arm64 #1 PREEMPT
Hardware name: linux,dummy-virt (DT)
pstate: 60400005 (nZCv daif +PAN -UAO -TCO -DIT -SSBS BTYPE=--)
pc : null_store+0x10/0x20 [demo]
lr : demo_init+0x30/0x1000 [demo]
sp : ffff800080c3bb20
x29: ffff800080c3bb20 x28: 0000000000000000 x27: ffffa4c0f3a1e000
Call trace:
 null_store+0x10/0x20 [demo] (P)
 demo_init+0x30/0x1000 [demo]
 do_one_initcall+0x60/0x2d0
Code: d2800100 f9000001 d65f03c0 d503201f (b9000001)
---[ end trace 0000000000000000 ]---
"""

UBSAN = """
================================================================================
UBSAN: array-index-out-of-bounds in kernel/demo.c:88:5
index 6 is out of range for type 'int [4]'
CPU: 0 UID: 0 PID: 88 Comm: insmod Not tainted 6.12.0-debug #1
Call Trace:
 <TASK>
 dump_stack_lvl+0x7e/0xb0
 ubsan_epilogue+0x5/0x30
 __ubsan_handle_out_of_bounds.cold+0x46/0x4b
 demo_store+0x15/0x20
================================================================================
"""

HARD_LOCKUP = """
watchdog: Watchdog detected hard LOCKUP on cpu 1
Modules linked in: demo(OE)
irq event stamp: 1204
CPU: 1 UID: 0 PID: 88 Comm: stuck task Kdump: loaded Tainted: G           OE      6.12.0 #1
RIP: 0010:delay_tsc+0x20/0x60
Code: 0f 1f 44 00 00
Call Trace:
 <TASK>
 irqs_off_loop+0x30/0x60 [demo]
 </TASK>
"""

WORKQUEUE = """
BUG: workqueue lockup - pool cpus=0 node=0 flags=0x0 nice=0 stuck for 32s!
Showing busy workqueues and worker pools:
workqueue events: flags=0x0
  pwq 2: cpus=0 node=0 flags=0x0 nice=0 active=2 refcnt=3
    in-flight: 7:demo_work
pool 2: cpus=0 node=0 flags=0x0 nice=0 hung=32s workers=3 idle: 23 24
"""

FTRACE_BUG_AGAIN = """
------------[ ftrace bug ]------------
ftrace faulted on writing
[<ffffffffc0285104>] victim+0x4/0x10 [demo]
Setting ftrace call site to call ftrace function
ftrace record flags: 80000001
 (1)  \x20
 expected tramp: ffffffffa2002000
livepatch: enabling patch 'demo'
"""

# text, severity, kind, title, cpu, process, fingerprint after the kind
WRITTEN = {
    "lockdep": (LOCKDEP, SPLAT, "lockdep", "WARNING: possible circular", 0, "insmod/88",
                "ftrace_arch_code_modify_prepare < ftrace_run_update_code"),
    "lockdep without its rule": (
        LOCKDEP.split("\n", 2)[2], SPLAT, "lockdep", "WARNING: possible circular", 0, "insmod/88",
        "ftrace_arch_code_modify_prepare < ftrace_run_update_code"),
    "lockdep, another check": (
        "=====\n".join(("=" * 40, "WARNING: some check of the future\n-----\nCall Trace:\n"
                        " demo_fn+0x1/0x2")), SPLAT, "lockdep",
        "WARNING: some check of the future", None, "", "demo_fn"),
    "bad unlock": (
        "=" * 41 + "\n[ BUG: Invalid wait context ]\n6.12.0 Not tainted\n-----------\n"
        "Call Trace:\n demo_fn+0x1/0x2", SPLAT, "lockdep",
        "[ BUG: Invalid wait context ]", None, "", "demo_fn"),
    "static key": (
        "INFO: trying to register non-static key.\nThe code is fine but needs lockdep annotation,"
        " or maybe\nyou didn't initialize this object before use?\nCall Trace:\n demo_fn+0x1/0x2",
        SPLAT, "lockdep", "INFO: trying to register", None, "", "demo_fn"),
    "KASAN": (KASAN, SPLAT, "KASAN", "BUG: KASAN: slab-use-after-free in klp_release", 1,
              "kworker/u8:1/47", "klp_release < process_one_work"),
    "KCSAN": (KCSAN, SPLAT, "KCSAN", "BUG: KCSAN: data-race in ftrace_ops_list_func", 1,
              "swapper/1/0", "register_ftrace_function < do_init_module < ftrace_ops_list_func"),
    "KMSAN": (KASAN.replace("KASAN", "KMSAN"), SPLAT, "KMSAN", "BUG: KMSAN: ", 1,
              "kworker/u8:1/47", "klp_release < process_one_work"),
    "UBSAN, 5.10": (UBSAN, SPLAT, "UBSAN", "UBSAN: array-index-out-of-bounds", 0, "insmod/88",
              "demo_store"),
    "sleeping": (SLEEPING, SPLAT, "sleeping-in-atomic", "BUG: sleeping function", 0, "insmod/88",
                 "__mutex_lock < bad_caller"),
    "arm64 oops": (ARM64_OOPS, CRASH, "oops", "Unable to handle kernel NULL pointer", 0,
                   "insmod/88", "null_store < demo_init < do_one_initcall"),
    "hard lockup": (HARD_LOCKUP, SPLAT, "hard-lockup", "watchdog: Watchdog detected hard LOCKUP",
                    1, "stuck task/88", "delay_tsc < irqs_off_loop"),
    "workqueue": (WORKQUEUE, SPLAT, "workqueue", "BUG: workqueue lockup", None, "",
                  "BUG: workqueue lockup - pool cpus=# node=# flags=# nice=# stuck for #s!"),
    # ftrace_bug() ends in a WARN_ON_ONCE: the second one comes without it.
    "ftrace bug, again": (FTRACE_BUG_AGAIN, SPLAT, "ftrace-bug", "ftrace faulted on writing",
                          None, "", "victim"),
    "trampoline": ("Bad trampoline accounting at: 000000005db64a61 (demo_fn+0x4/0x10) (1)\nmore",
                   SPLAT, "trampoline", "Bad trampoline accounting at", None, "",
                   "Bad trampoline accounting at: # (demo_fn+#/#) (#)"),
    "list_add": ("list_add corruption. next->prev should be prev (a), but was b. (next=c).\n"
                 "------------[ cut here ]------------\nkernel BUG at lib/list_debug.c:29!\n"
                 "---[ end trace 0000000000000000 ]---",
                 SPLAT, "list-corruption", "list_add corruption", None, "", "list_add"),
    "cfi": ("Missing ENDBR: demo_fn+0x0/0x10\n------------[ cut here ]------------\n"
            "kernel BUG at arch/x86/kernel/cet.c:102!\nOops: invalid opcode: 0000 [#1] SMP\n"
            "---[ end trace 0000000000000000 ]---", SPLAT, "cfi", "Missing ENDBR", None, "",
            "Missing ENDBR: demo_fn"),
    "WARN since 6.19": (
        "------------[ cut here ]------------\nWARNING: kernel/demo.c:7 at demo_fn+0x10/0x20, "
        "CPU#1: kworker/1:2/88\nRIP: 0010:demo_fn+0x10/0x20\n---[ end trace 0000000000000000 ]---",
        SPLAT, "WARN", "WARNING: kernel/demo.c:7 at", 1, "kworker/1:2/88", "demo_fn"),
    "WARN, marker lost": (
        "WARNING: CPU: 0 PID: 7 at kernel/demo.c:7 demo_fn+0x10/0x20\nRIP: 0010:demo_fn+0x10/0x20\n"
        "---[ end trace 0000000000000000 ]---", SPLAT, "WARN", "WARNING: CPU: 0", None, "",
        "demo_fn"),
    "text that looks like another report": (
        "------------[ cut here ]------------\nrefused: BUG: not one\n"
        "WARNING: CPU: 0 PID: 7 at kernel/demo.c:7 demo_fn+0x10/0x20\n"
        "---[ end trace 0000000000000000 ]---", SPLAT, "WARN", "refused: BUG: not one", None, "",
        "refused"),
    "text that looks like a first line": (
        "------------[ cut here ]------------\nBUG: text of a WARN()\n"
        "WARNING: CPU: 0 PID: 7 at kernel/demo.c:7 demo_fn+0x10/0x20\nRIP: 0010:demo_fn+0x10/0x20\n"
        "---[ end trace 0000000000000000 ]---", SPLAT, "WARN", "BUG: text of a WARN()", None, "",
        "demo_fn"),
    "double fault": ("traps: PANIC: double fault, error_code: 0x0\nCPU: 0 PID: 7 Comm: a b"
                     " Not tainted\n---[ end trace 0 ]---", CRASH, "oops",
                     "traps: PANIC: double fault", 0, "a b/7", ""),
    "divide, 5.10": ("divide error: 0000 [#1] SMP NOPTI\n---[ end trace 1 ]---", CRASH, "oops",
                     "divide error", None, "", ""),
    "recursive": ("Fixing recursive fault but reboot is needed!", CRASH, "oops", "Fixing", None,
                  "", ""),
    "SError": ("SError Interrupt on CPU0, code 0x00000000be000011 -- SError\n"
               "---[ end trace 0 ]---", CRASH, "oops", "SError", None, "", ""),
    "expedited stall": (
        "rcu: INFO: rcu_preempt detected expedited stalls on CPUs/tasks: { 1-.... } 21 jiffies s: 5"
        " root: 0x2/.", SPLAT, "rcu-stall", "rcu: INFO: rcu_preempt detected expedited", None, "",
        ""),
    "starved": ("rcu: rcu_preempt kthread starved for 6000 jiffies! g5 f0x0", SPLAT, "rcu-stall",
                "rcu: rcu_preempt kthread starved", None, "", ""),
    "hung in I/O": ("INFO: task jbd2/vda:77 blocked in I/O wait for more than 120 seconds.", SPLAT,
                    "hung-task", "INFO: task jbd2", None, "jbd2/vda/77", ""),
    "spinlock": ("BUG: spinlock bad magic on CPU#0, insmod/88", SPLAT, "spinlock", "BUG: spin",
                 None, "", ""),
    "preemptible": ("BUG: using smp_processor_id() in preemptible [00000000] code: insmod/88",
                    SPLAT, "preemptible", "BUG: using", None, "", ""),
    "bad page": ("BUG: Bad page state in process insmod  pfn:01234", SPLAT, "bad-page", "BUG: Bad",
                 None, "", ""),
    "unwinder": ("WARNING: kernel stack regs at 0000000012345678 in insmod:88 has bad 'bp' value",
                 SPLAT, "unwinder", "WARNING: kernel stack regs", None, "", ""),
    "kmemleak": ("kmemleak: 3 new suspected memory leaks (see /sys/kernel/debug/kmemleak)", SPLAT,
                 "kmemleak", "kmemleak: 3 new", None, "", ""),
    "any other BUG": ("BUG: something of the future", SPLAT, "BUG", "BUG: something", None, "", ""),
    "page allocation": ("python3: page allocation failure: order:9, mode:0xcc0(GFP_KERNEL)",
                        BENIGN, "no-memory", "python3: page", None, "", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
def test_written_from_the_source(name: str) -> None:
    text, severity, kind, title, cpu, process, place = WRITTEN[name]
    finding = one(stamped(text) + stamped("Freeing unused kernel image memory: 1K", 99))
    assert (finding.severity, finding.kind) == (severity, kind)
    assert finding.title.startswith(title)
    assert (finding.cpu, finding.process) == (cpu, process)
    if finding.frames:
        assert finding.fingerprint == f"{kind}: {place}"
    else:
        assert finding.fingerprint.startswith(f"{kind}: {place}")
    assert not any("Freeing unused" in line for line in finding.lines)


FIRST_LINES = (CONSOLES / "first-lines.txt").read_text().splitlines()


@pytest.mark.parametrize("row", FIRST_LINES)
def test_first_lines(row: str) -> None:
    kind, text = row.split(": ", 1)
    finding = one(stamped(text))
    assert (finding.kind, finding.title) == (kind, text)


@pytest.mark.parametrize("name", ["lockdep", "KASAN", "KCSAN", "UBSAN, 5.10", "arm64 oops"])
def test_a_written_report_is_taken_whole(name: str) -> None:
    text = WRITTEN[name][0].strip("\n")
    finding = one(stamped(text) + stamped("unrelated", 99))
    assert [parse_lines(line)[0].text for line in finding.lines] == text.split("\n")


def test_all_kinds_are_tested() -> None:
    seen = {kind for rows in recorded().values() for _, kind, *_ in rows}
    seen |= {row[2] for row in WRITTEN.values()}
    assert seen == patterns.KINDS


@pytest.mark.parametrize(
    "text",
    [
        "demo: loading out-of-tree module taints kernel.",
        "demo: module verification failed: signature and/or required key missing - tainting kernel",
        "demo: tainting kernel with TAINT_LIVEPATCH",
        "livepatch: enabling patch 'demo'",
        "livepatch: 'demo': starting patching transition",
        "livepatch: 'demo': patching complete",
        "livepatch: signaling remaining tasks",
        "livepatch: reverting patch 'demo' on unloading module 'target'",
        "INFO: lockdep is turned off.",
        "INFO: NMI handler (perf_event_nmi_handler) took too long to run: 1.2 msecs",
        "Spectre V2 : WARNING: Unprivileged eBPF is enabled with eIBRS on",
        "rcu: Hierarchical RCU implementation.",
        "rcu: srcu_init: Setting srcu_struct sizes based on contention.",
        "rcu_tasks_wait_gp: rcu_tasks grace period number 5 (since boot) is 250 jiffies old.",
        "sched_clock: Marking stable (2692119947, 23681652)->(2722217493, -6415894)",
        "x86/bugs: return thunk changed",
        "Kernel command line: console=ttyS0 oops=panic panic=-1",
        "Lockdep: everything is fine",
        "kmemleak: Kernel memory leak detector initialized (mem pool available: 15679)",
        "workqueue: round-robin CPU selection forced, expect performance impact",
        "hung_task: done",
        "reboot: Power down",
        "clocksource: timekeeping watchdog on CPU0: Marking clocksource 'tsc' as unstable",
        "Modules linked in: demo(OE)",
        "Call Trace:",
        " dump_stack+0x10/0x20",
        "---[ end trace 0000000000000000 ]---",
        "=" * 60,
        "=" * 60 + "\nunrelated\nWARNING: a driver's own words",
        "WARNING: a driver's own words",
    ],
)
def test_no_finding(text: str) -> None:
    assert run(stamped(text).encode()) == ()
    assert run(f"{text}\n".encode()) == ()


def kinds(text: str) -> list[str]:
    return [finding.kind for finding in run(stamped(text).encode())]


def test_what_follows_a_report_is_not_in_it() -> None:
    for text in (LOCKDEP, SLEEPING, HARD_LOCKUP):
        finding = one(stamped(text + "unrelated, at once"))
        assert not any("unrelated" in line for line in finding.lines)


def test_patience_ends() -> None:
    text = "watchdog: BUG: soft lockup - CPU#0 stuck for 3s! [x:1]" + "\nunrelated" * 100
    assert len(one(stamped(text)).lines) == 13


def test_a_panic_or_a_second_fault_ends_a_report() -> None:
    first = "BUG: unable to handle page fault for address: 0\nOops: 2 [#1]\nCall Trace:\n f+0x1/0x2"
    second = "BUG: unable to handle page fault for address: 1\nOops: 0002 [#2]"
    assert kinds(f"{first}\n{second}") == ["oops", "oops"]
    assert kinds(f"{patterns.CUT}\nKernel panic - not syncing: x") == ["WARN", "panic"]


def test_a_harmless_line_does_not_end_a_report() -> None:
    text = f"{patterns.CUT}\nWARNING: CPU: 0 PID: 1 at a.c:1\nx[7]: segfault at 8 ip 0"
    text += "\n---[ end trace 0 ]---\nx[7]: segfault at 8 ip 0"
    assert kinds(text) == ["WARN", "user-fault"]


def test_bpf_and_compiler_names_do_not_change_a_fingerprint() -> None:
    def trace(prog: str, image: str, suffix: str) -> str:
        return stamped(
            f"BUG: Bad rss\nCall Trace:\n bpf_prog_{prog}_entry+0x1/0x2\n"
            f" bpf_trampoline_{image}+0x1/0x2\n demo_fn{suffix}+0x1/0x2"
        )

    first = one(trace("6deef7357e7b4530", "6442525057", ".isra.0"))
    second = one(trace("0123456789abcdef", "6442500000", ".constprop.0.cold"))
    assert first.fingerprint == second.fingerprint
    assert first.fingerprint == "bad-page: bpf_prog_*_entry < bpf_trampoline_* < demo_fn"


def test_a_backtrace_within_a_stall_is_part_of_it() -> None:
    text = (
        "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:\nrcu: \t1-...!: (0 ticks this GP)\n"
        "Sending NMI from CPU 0 to CPUs 1:\nNMI backtrace for cpu 1\nCall Trace:\n loop+0x1/0x2\n"
        "rcu: rcu_preempt kthread starved for 6000 jiffies!"
    )
    finding = one(stamped(text))
    assert (finding.kind, len(finding.lines), finding.frames) == ("rcu-stall", 7, ("loop",))


def test_a_report_that_never_ends_is_bounded() -> None:
    flood = "\n".join(["------------[ cut here ]------------"] + ["so much to say"] * 5000)
    finding = one(stamped(flood))
    assert len(finding.lines) == monitor.MAX_REPORT_LINES
