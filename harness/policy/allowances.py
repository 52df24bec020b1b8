# SPDX-License-Identifier: GPL-2.0-only
"""Refusals that no sequence of steps gives, only steps at the same time, and why each is right."""

from __future__ import annotations

import errno
from dataclasses import dataclass

from .rule import FTRACE, KLP, TRAMPOLINE


@dataclass(frozen=True)
class Allowance:
    """``source``: kernel file and functions; ``text``: what it says; ``errnos``: what it gives."""

    name: str
    source: str
    text: str
    errnos: frozenset[int]


PENDING_ELSEWHERE = Allowance(
    "pending-elsewhere",
    KLP + "core.c: __klp_enable_patch, __klp_disable_patch (klp_transition_patch)",
    "While the transition of another stirrer's livepatch is pending no other comes or goes.",
    frozenset({errno.EBUSY}),
)
TRAMPOLINE_LOCKED = Allowance(
    "trampoline-locked",
    TRAMPOLINE
    + "bpf_tramp_ftrace_ops_func (mutex_trylock(select_trampoline_lock(tr))); "
    + FTRACE
    + "prepare_direct_functions_for_ipmodify",
    "An IPMODIFY ops that comes to a function with a BPF program is told to ask again while a "
    "BPF program comes to or leaves any function: trampolines have 32 locks between them.",
    frozenset({errno.EAGAIN}),
)
HALF_PATCHED = Allowance(
    "half-patched",
    KLP + "core.c: __klp_enable_patch, klp_cancel_transition; patch.c: klp_patch_object",
    "A livepatch of several functions that one of them refuses was on the others meanwhile: "
    "whoever came then met it there, and was told what the policy tells him.",
    frozenset(),
)
FILES_VANISH = Allowance(
    "files-vanish",
    "fs/kernfs/file.c: kernfs_fop_write_iter (kernfs_get_active_of); "
    + KLP
    + "core.c: klp_free_patch_start",
    "A livepatch's file that was opened before the patch was gone is written to after it.",
    frozenset({errno.ENODEV, errno.ENOENT}),
)
MODULE_LOOKED_AT = Allowance(
    "module-looked-at",
    "kernel/kprobes.c: check_kprobe_address_safe (try_module_get); kernel/bpf/btf.c: "
    "btf_try_get_module; kernel/module/main.c: try_stop_module",
    "A module does not go while a kprobe or a BPF program is being put on one of its functions, "
    "or one of them is being called through its device.",
    frozenset({errno.EWOULDBLOCK}),
)
MODULE_MAY_BE_GONE = Allowance(
    "module-may-be-gone",
    FTRACE + "ftrace_set_filter_ip; kernel/kprobes.c: register_kprobe; kernel/bpf/verifier.c: "
    "bpf_check_attach_target",
    "Nothing comes to a function whose module is not loaded.",
    frozenset({errno.ENOENT, errno.EINVAL, errno.ESRCH, errno.ENODEV, errno.EILSEQ}),
)

#: All of them, by name.
ALLOWANCES: dict[str, Allowance] = {
    one.name: one
    for one in (
        PENDING_ELSEWHERE,
        TRAMPOLINE_LOCKED,
        HALF_PATCHED,
        FILES_VANISH,
        MODULE_LOOKED_AT,
        MODULE_MAY_BE_GONE,
    )
}
