# SPDX-License-Identifier: GPL-2.0-only
"""What the monitor reports: findings, how bad they are, and when two are one."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass


class Severity(enum.IntEnum):
    """How bad a finding is; comparable."""

    BENIGN = 0
    """Worth a look, no fault of the kernel: asked-for backtraces, refusals."""
    SPLAT = 1
    """The kernel complained and went on."""
    CRASH = 2
    """The kernel panicked or oopsed: nothing after it can be trusted."""


FINGERPRINT_FRAMES = 5

# Functions that are on the stack because a report is being made, not because
# of what went wrong: printers, traps, checkers, the timer tick.
_MACHINERY = re.compile(
    r"""(?: _*dump_stack(?:_lvl)? | dump_backtrace | show_(?:stack|regs|trace_log_lvl)
    | v?panic | check_panic_on_warn | _?v?printk | nmi_\w+ | \w*trigger_\w+backtrace\w*
    | _*warn(?:_\w+)? | _*report_bug\w* | handle_bug\w* | call_break_hook | bug_(?:brk_)?handler
    | brk_handler | do_debug_exception | el1h?_\w+ | _*die(?:_\w+)? | oops_\w+ | make_task_dead
    | (?:asm_)?(?:exc|sysvec)_\w+ | __sysvec_\w+ | \w*page_fault_oops | no_context
    | _*bad_area\w* | do_(?:error_)?trap | do_page_fault | do_kern_addr_fault
    | do_translation_fault | do_mem_abort | fixup_exception
    | lockdep_rcu_suspicious | print_\w+ | check_(?:noncircular|prevs?_add|deadlock)
    | validate_chain | mark_(?:lock|usage|held_locks)\w* | __lock_acquire | lock_acquire
    | __schedule_bug | __might_(?:resched|sleep) | ___might_sleep
    | (?:_*kasan|_*asan|_*kcsan|_*tsan|_*kmsan|_*msan|kfence|_*ubsan)_\w+ | check_region_inline
    | refcount_warn_saturate | _*list_(?:add|del)_(?:entry_)?valid\w* | ftrace_bug | warn_alloc
    | debug_(?:print_)?object\w* | object_err | check_bytes_and_report | slab_\w*(?:bug|err)\w*
    | watchdog_\w+ | softlockup_\w+ | rcu_(?:dump_cpu_stacks|sched_clock_irq|check_\w+)
    | update_process_times | tick_\w+ | _*hrtimer_\w+ | local_apic_timer_interrupt
    | (?:smp_)?apic_timer_interrupt | asm_call_\w+ | report_cfi_failure | handle_cfi_failure
    )""",
    re.VERBOSE,
)
# What the compiler adds to a name, and what differs between two loads of one
# BPF program (kernel/bpf/core.c, bpf_get_prog_name(); trampoline.c).
_COMPILER_SUFFIX = re.compile(r"(?:\.(?:isra|constprop|part|cold|llvm)(?:\.\d+)?)+$")
_BPF_NAME = re.compile(r"^(bpf_prog|bpf_trampoline)_[0-9a-f]+")
_NUMBER = re.compile(r"\b(?:0x)?[0-9a-f]*\d[0-9a-f]*\b|\d+")


@dataclass(frozen=True)
class Finding:
    """One report of the kernel, from its first line to its last.

    ``kind`` is a short stable word (``patterns.KINDS``); ``title`` the first
    line that says something, without its stamp; ``lines`` the report as shown;
    ``time`` the kernel's seconds of the title, None if unstamped; ``cpu`` and
    ``process`` (``comm/pid``) where the report names them; ``frames`` the
    functions of its call trace, innermost first, the unsure ones (``?``) left
    out; ``expected`` whether the caller announced it, which makes a SPLAT
    BENIGN and never changes a CRASH.
    """

    severity: Severity
    kind: str
    title: str
    lines: tuple[str, ...]
    time: float | None
    cpu: int | None
    process: str
    frames: tuple[str, ...]
    expected: bool = False

    @property
    def fingerprint(self) -> str:
        """The same for two reports of one fault: the kind and where it was.

        The first five frames without those that only report, compiler suffixes
        and BPF's numbers; without frames the title with its numbers masked.
        """
        frames = [plain_function(name) for name in self.frames]
        frames = [name for name in frames if not _MACHINERY.fullmatch(name)]
        if frames:
            return f"{self.kind}: " + " < ".join(frames[:FINGERPRINT_FRAMES])
        return f"{self.kind}: " + _NUMBER.sub("#", self.title)


def plain_function(name: str) -> str:
    """Return a function's name as in the source, BPF's generated ones masked."""
    return _BPF_NAME.sub(r"\1_*", _COMPILER_SUFFIX.sub("", name))
