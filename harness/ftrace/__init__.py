# SPDX-License-Identifier: GPL-2.0-only
"""The registry's grammar: ``enabled_functions`` and ``touched_functions`` of tracefs.

``parse`` turns the text into typed records, for kernels 5.10 to 7.3 on x86-64
and arm64 (the printer is kernel/trace/ftrace.c:t_show); ``render`` and ``diff``
put records into words for reports.  Pure code: no I/O, no knowledge of policy.
"""

from __future__ import annotations

from harness.ftrace.describe import diff, render
from harness.ftrace.parse import blocks, parse
from harness.ftrace.records import Column, Ops, Record, Registry, SubOps, Symbol, Trampoline

__all__ = [
    "Column",
    "Ops",
    "Record",
    "Registry",
    "SubOps",
    "Symbol",
    "Trampoline",
    "blocks",
    "diff",
    "parse",
    "render",
]
