# SPDX-License-Identifier: GPL-2.0-only
"""Why a boot did not get as far as the agent, in one line."""

from __future__ import annotations

import re
from collections.abc import Iterable

from harness.monitor.lines import parse_lines

_PANIC = "Kernel panic - not syncing"

# What the kernel says before the panic that it leads to: init/do_mounts.c,
# init/main.c (run_init_process and its callers), init/initramfs.c.
_CAUSE = re.compile(
    r"VFS: (?:Cannot open root device|Unable to mount root|Insert )"
    r"|Failed to execute |Starting init: .* exists but couldn't execute it"
    r"|Requested init .* failed|Warning: unable to open an initial console"
    r"|Initramfs unpacking failed"
)

# These end a boot without a panic: the decompressor (arch/x86/boot/compressed,
# error() adds "-- System halted"), the EFI stub.
_HALTED = re.compile(r"-- System halted|EFI stub: ERROR")

# QEMU's own words (util/error-report.c: the program's name comes first), and
# KVM's when a guest can't run at all.  Warnings and the note of the signal that
# ended it are no reason.
_QEMU = re.compile(
    r"(?:\S*/)?qemu(?:-system-\w+|-kvm)?: (?!warning:|info:|terminating on signal)"
    r"|KVM internal error|error: kvm run failed"
)


# An assertion of its own that did not hold (glib's or libc's words): seen now and then with
# several emulated CPUs, while the guest sizes a BAR (hw/pci/msix.c: msix_table_mmio_write).
_EMULATOR = re.compile(
    r"^(?:\S*/)?qemu(?:-system-\w+|-kvm)?: .*Assertion .*failed|^ERROR:.*assertion"
)


def emulator_failed(reason: str) -> bool:
    """Whether what ``boot_failure`` gave is a bug of QEMU, not of the kernel under test."""
    return bool(_EMULATOR.search(reason))


def boot_failure(lines: Iterable[str]) -> str | None:
    """Return why the boot failed, in one line, or None if nothing says so.

    ``lines`` are console lines as shown, QEMU's own messages among them.  A
    panic's title comes first, with the message that led to it behind; then a
    halt, then QEMU's error, which is often only the echo of one.
    """
    panic = cause = halted = qemu = ""
    for shown in lines:
        for line in parse_lines(shown):
            text = line.text.strip()
            if text.startswith(_PANIC):
                panic = panic or text
            elif not panic and _CAUSE.match(text):
                cause = cause or text
            elif _HALTED.search(text):
                halted = halted or text
            elif line.time is None and _QEMU.match(text):
                qemu = qemu or text
    if panic:
        return f"{panic} ({cause})" if cause and cause not in panic else panic
    return halted or qemu or None
