# SPDX-License-Identifier: GPL-2.0-only
"""What console and kernel messages mean: bytes in, findings out.  No I/O."""

from harness.monitor.boot import boot_failure, emulator_failed
from harness.monitor.findings import Finding, Severity
from harness.monitor.lines import Line, LineSplitter, parse_lines
from harness.monitor.monitor import Monitor, Record

__all__ = [
    "Finding",
    "Line",
    "LineSplitter",
    "Monitor",
    "Record",
    "Severity",
    "boot_failure",
    "emulator_failed",
    "parse_lines",
]
