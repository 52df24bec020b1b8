# SPDX-License-Identifier: GPL-2.0-only
"""How the kernel's reports begin, go on and end: the rules as data.

Sources are the printers themselves, named at each rule; the rules cover the
formats from 5.10 to 7.3 on x86-64, and those of arm64 where they differ.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

from harness.monitor.findings import Severity


class End(enum.Enum):
    """What ends a report."""

    TRACE = enum.auto()
    """The first line that is no part of it, once its call trace was seen."""
    MARKED = enum.auto()
    """``---[ end trace`` (kernel/panic.c, print_oops_end_marker())."""
    RULED = enum.auto()
    """A line of ``=`` like the one before it (the sanitizers)."""
    PANIC = enum.auto()
    """``---[ end Kernel panic`` or the reboot."""


@dataclass(frozen=True)
class Start:
    """How a report of one kind begins.

    ``patience`` is the number of lines of unknown form that may come before
    its call trace; ``joins`` the kinds of an open report without call trace
    that such a line continues; ``nests`` those that it continues at any time.
    """

    kind: str
    severity: Severity
    pattern: re.Pattern[str]
    end: End = End.TRACE
    patience: int = 0
    joins: frozenset[str] = frozenset()
    nests: frozenset[str] = frozenset()

    @property
    def opens_cut(self) -> bool:
        """Whether this is "cut here", which leaves the kind open."""
        return self is _CUT


def _start(
    kind: str,
    severity: Severity,
    pattern: str,
    end: End = End.TRACE,
    patience: int = 0,
    joins: str = "",
    nests: str = "",
) -> Start:
    return Start(
        kind,
        severity,
        re.compile(pattern),
        end,
        patience,
        frozenset(joins.split()),
        frozenset(nests.split()),
    )


_B, _S, _C = Severity.BENIGN, Severity.SPLAT, Severity.CRASH

# What a subsystem's pr_fmt puts before the words below.
_PREFIX = re.compile(r"(?:(?:NMI watchdog|watchdog|rcu|traps|workqueue|CPU\d+|x86/[\w-]+): )+")

# Reports that are printed first and then followed by a WARN or BUG of their own.
_PRELUDES = "refcount list-corruption ftrace-bug cfi UBSAN slab trampoline"
_STALLS = "rcu-stall soft-lockup hard-lockup hung-task workqueue"

CUT = "------------[ cut here ]------------"
"""include/asm-generic/bug.h: opens WARN and BUG; which of them, and the text
that came with it, follow on the next lines."""

_CUT = _start("WARN", _S, re.escape(CUT), End.MARKED, joins=_PRELUDES)

# Tried in this order at the start of a message, prefixes skipped.
_ANCHORED = (
    # kernel/panic.c
    _start("panic", _C, r"Kernel panic - not syncing", End.PANIC),
    _CUT,
    # __warn(): "WARNING: CPU: 0 PID: 1 at file:line fn+0x…"; since 6.19
    # "WARNING: file:line at fn+0x…, CPU#0: comm/1".
    _start("WARN", _S, r"WARNING: (?:CPU: \d+ PID: \d+ at |\S+:\d+ at )", End.MARKED,
           joins=_PRELUDES),
    # lib/bug.c, report_bug(); arch/x86/kernel/traps.c
    _start("BUG", _S, r"kernel BUG at ", End.MARKED, joins=_PRELUDES),
    # kernel/trace/ftrace.c, ftrace_bug() and ftrace_get_addr_{new,curr}()
    _start("ftrace-bug", _S, r"-+\[ ftrace bug \]-+"),
    _start("trampoline", _S, r"Bad trampoline accounting at: "),
    # lib/refcount.c, lib/list_debug.c
    _start("refcount", _S, r"refcount_t: ", End.MARKED),
    _start("list-corruption", _S, r"h?list_(?:add|del)(?: corruption| double add)", End.MARKED),
    # arch/x86/kernel/cet.c, kernel/cfi.c
    _start("cfi", _S, r"Missing ENDBR: |CFI failure at ", End.MARKED),
    # lib/ubsan.c
    _start("UBSAN", _S, r"UBSAN: ", End.MARKED),
    # mm/kasan, kernel/kcsan, mm/kmsan, mm/kfence: report.c each
    _start("KASAN", _S, r"BUG: KASAN: ", End.RULED),
    _start("KCSAN", _S, r"BUG: KCSAN: ", End.RULED),
    _start("KMSAN", _S, r"BUG: KMSAN: ", End.RULED),
    _start("KFENCE", _S, r"BUG: KFENCE: ", End.RULED),
    # mm/slub.c, slab_bug()
    _start("slab", _S, r"BUG \S.* \((?:Not tainted|Tainted)[^)]*\): ", patience=60),
    # arch/x86/mm/fault.c, arch/x86/kernel/{dumpstack,traps}.c; arm64: mm/fault.c, kernel/traps.c
    _start(
        "oops", _C,
        r"BUG: (?:kernel NULL pointer dereference|unable to handle |.*stack guard page was hit)"
        r"|kernel tried to execute |Oops: |PANIC: double fault"
        r"|general protection fault, |[a-zA-Z0-9][\w ,/-]{2,48}: [0-9a-f]{4,16} \[#\d+\]"
        r"|Unable to handle kernel |Internal error: |SError Interrupt on CPU|Bad mode in "
        r"|Unhandled .* exception on CPU|Unexpected kernel BRK exception"
        r"|Insufficient stack space to handle exception",
        End.MARKED, joins="oops BUG list-corruption cfi UBSAN",
    ),
    # kernel/exit.c, make_task_dead()
    _start("oops", _C, r"Fixing recursive fault"),
    # kernel/sched/core.c
    _start("scheduling-while-atomic", _S, r"BUG: scheduling while atomic: ", patience=8),
    _start("sleeping-in-atomic", _S, r"BUG: sleeping function called from invalid context",
           patience=12),
    # kernel/watchdog.c, kernel/watchdog_perf.c
    _start("soft-lockup", _S, r"BUG: soft lockup - CPU", patience=12),
    _start("hard-lockup", _S, r"Watchdog detected hard LOCKUP on cpu", patience=12),
    # kernel/rcu/tree_stall.h, tree_exp.h, tasks.h
    _start("rcu-stall", _S,
           r"INFO: \w*rcu\w* (?:self-)?detected (?:expedited )?stall", patience=16),
    _start("rcu-stall", _S, r"\w*rcu\w* kthread (?:starved for|timer wakeup didn't happen)",
           patience=16, nests="rcu-stall"),
    # kernel/hung_task.c
    _start("hung-task", _S, r"INFO: task .+ blocked .*for more than \d+ seconds", patience=8),
    # kernel/workqueue.c
    _start("workqueue", _S, r"BUG: workqueue (?:lockup|leaked)", patience=16),
    # kernel/locking/spinlock_debug.c
    _start("spinlock", _S, r"BUG: (?:spin|rw)lock ", patience=4),
    # lib/smp_processor_id.c
    _start("preemptible", _S, r"BUG: using \S+ in preemptible", patience=4),
    # mm/page_alloc.c, mm/memory.c, kernel/fork.c
    _start("bad-page", _S, r"BUG: Bad ", patience=12),
    # kernel/locking/lockdep.c, without the line of "=" that comes before most
    _start("lockdep", _S,
           r"WARNING: (?:possible (?:circular|recursive|irq) |inconsistent lock state"
           r"|suspicious RCU|\w+-safe -> \w+-unsafe |bad unlock balance|lock held when"
           r"|held lock freed|Nested lock was not taken|bad contention|.* still has locks held)"
           r"|BUG: MAX_(?:LOCK|STACK)|INFO: trying to register non-static key",
           patience=300),
    # arch/x86/kernel/unwind_orc.c, unwind_frame.c
    _start("unwinder", _S,
           r"WARNING: (?:kernel stack |can't (?:access|dereference) registers"
           r"|stack (?:going|recursion)|unknown stack type|Unsupported unwind)"),
    # arch/x86/mm/extable.c, ex_handler_msr()
    _start("msr", _S, r"unchecked MSR access error: ", patience=2),
    # mm/kmemleak.c
    _start("kmemleak", _S, r"kmemleak: \d+ new suspected memory leaks"),
    _start("BUG", _S, r"BUG: ", patience=4),
    # lib/nmi_backtrace.c, drivers/tty/sysrq.c: somebody asked
    _start("backtrace", _B, r"NMI backtrace for cpu |sysrq: (?:Show|CPU\d+:)|Sending NMI from CPU",
           patience=4, joins="backtrace panic", nests=f"backtrace {_STALLS}"),
    # kernel/livepatch: refusals are a scenario's business, not the log's
    _start("livepatch-error", _B,
           r"livepatch: (?:failed |symbol .* not found|unresolvable |kallsyms size |invalid "
           r"|pre-patch callback failed|.* (?:refusing to load|is not compatible|is not marked))",
           joins="livepatch-error"),
)  # fmt: skip

# After a line of "=" (kernel/locking/lockdep.c, kernel/rcu/update.c).
_RULED_LOCKDEP = _start("lockdep", _S, r"WARNING: |\[ (?:BUG|INFO): ", patience=300)

# Messages that begin with a name of user space's choosing: a word that must be
# in the line, then the pattern.  None is the kernel's fault.
_NAMED = (
    (" segfault at ", _start("user-fault", _B, r".{0,40}\[\d+\]: segfault at ")),
    # arch/x86/kernel/traps.c, show_signal()
    ("traps: ", _start("user-fault", _B, r"traps: .{0,40}\[\d+\] \w")),
    # mm/oom_kill.c, mm/page_alloc.c: our VM is too small
    (" invoked oom-killer: ", _start("oom", _B, r".{0,40} invoked oom-killer: ", patience=2)),
    (": page allocation failure", _start("no-memory", _B, r".{0,40}: page allocation failure",
                                         patience=2)),
    (": vmalloc", _start("no-memory", _B, r".{0,40}: vmalloc(?: error)?: ", patience=2)),
)  # fmt: skip

KINDS = frozenset(
    start.kind for start in (*_ANCHORED, _RULED_LOCKDEP, *(start for _, start in _NAMED))
)
"""Every kind that a finding can have."""

# How all anchored messages and prefixes begin: most lines of a console stop here.
_FIRST = re.compile(
    r"[A-Z\[\-]|general|h?list_|kernel |kmemleak|livepatch|rcu|refcount|srcu|sysrq|traps|unchecked"
    r"|watchdog|workqueue|x86/|[a-z0-9][\w ,/-]{2,48}: [0-9a-f]{4,16} \[#"
)


def match_start(text: str, ruled: bool) -> Start | None:
    """Return how a report begins that this message begins, or None.

    ``ruled``: the message before it, of the same caller, was a line of ``=``.
    """
    for word, start in _NAMED:
        if word in text and start.pattern.match(text):
            return start
    if not _FIRST.match(text):
        return None
    prefix = _PREFIX.match(text)
    at = prefix.end() if prefix else 0
    for start in _ANCHORED:
        if start.pattern.match(text, at):
            return start
    if ruled and _RULED_LOCKDEP.pattern.match(text):
        return _RULED_LOCKDEP
    return None


BANNER = re.compile(r"-+\[ .* \]-+$")
"""A marker that says nothing by itself: "cut here", "ftrace bug"."""

RULE = re.compile(r"={20,}$")
END_TRACE = re.compile(r"---\[ end trace ")
END_PANIC = re.compile(r"---\[ end Kernel panic|Rebooting in |Rebooting automatically")

TRACE = re.compile(r"\s*(?:Call [Tt]race|Backtrace):")
"""Opens a call trace: show_trace_log_lvl() on x86, dump_backtrace() elsewhere."""

FRAME = re.compile(
    r"\s*(?:\[<[0-9a-f]+>\] )?(\? )?([A-Za-z_][\w.$]*)\+0x[0-9a-f]+/0x[0-9a-f]+(?:\s|$)"
)
"""A line of a call trace; group 1: the unwinder is not sure, group 2: the function."""

# x86: show_iret_regs() with %pS (a user-space RIP has no name); arm64: __show_regs().
REGISTER_FRAME = re.compile(r"(?:RIP: 0010:|pc : )([A-Za-z_][\w.$]*)\+0x[0-9a-f]+/0x")

_PART = re.compile(
    r"""\s | $ | </?[\#\w]+>$ | \w{2,8}:\ [0-9a-f]{4,16}\b | R?[SI]P:\ |R[A-Z0-9]{2}: |
    (?:pc|lr|sp|pstate|x\d+|PKRU|Code|CR2|FS|CS|DR\d|EFLAGS)\s*: |
    CPU:\ \d | Hardware\ name: | Tainted: | Modules\ linked\ in: | Workqueue: | Call\ [Tt]race: |
    Unloaded\ tainted\ modules: | \[last\ unloaded | task: | Sending\ NMI | NMI\ backtrace |
    rcu: | \(detected\ by | \(t=\d | Kernel\ Offset: | note: | Showing\ | \d+\ locks?\ held\ by |
    INFO:\ lockdep\ is\ turned\ off | irq\ event\ stamp | (?:hard|soft)irqs\ last |
    stack\ backtrace: |
    Preemption\ disabled\ at | preempt_count | in_atomic\(\) | RCU\ nest\ depth |
    Future\ hung\ task | "echo\ 0\ >\ | \[<[0-9a-f]+>\] | \#\d+:\ | ---\[ | Mem-Info: | FIX\ |
    ftrace\ (?:failed|faulted|record) | (?:Initializing|Setting|Updating)\ ftrace\ call |
    workqueue\ \w+: | pool\ \d+: | Disabling\ lock\ debugging
    """,
    re.VERBOSE,
)


def is_part(text: str) -> bool:
    """Whether a message has a form that only parts of reports have."""
    return _PART.match(text) is not None


# Where a report names its CPU and process: dump_stack_print_info() (lib/dump_stack.c;
# "UID:" since 6.11), the two forms of __warn(), the lockup detectors, hung_task.c.
CONTEXT = (
    re.compile(
        r"CPU: (?P<cpu>\d+)(?: UID: \d+)? PID: (?P<pid>\d+) Comm: (?P<comm>.+?) "
        r"(?:Kdump: loaded )?(?:Not tainted|Tainted:)"
    ),
    re.compile(r"WARNING: .*, CPU#(?P<cpu>\d+): (?P<comm>.+)/(?P<pid>\d+)"),
    re.compile(r".*BUG: soft lockup - CPU#(?P<cpu>\d+) stuck for .*\[(?P<comm>.+):(?P<pid>\d+)\]"),
    re.compile(r"INFO: task (?P<comm>.+):(?P<pid>\d+) (?:is )?blocked "),
    re.compile(r".*hard LOCKUP on cpu (?P<cpu>\d+)"),
)
