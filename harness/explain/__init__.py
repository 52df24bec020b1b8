# SPDX-License-Identifier: GPL-2.0-only
"""A registry text explained: who is on each function, and who could still come.

Pure code: bytes go in (report.explain), a report comes out, and show.py and
jsonout.py put it into text and JSON.
"""

from __future__ import annotations

from harness.explain.report import Block, Report, explain
from harness.explain.what_if import TITLES

__all__ = ["TITLES", "Block", "Report", "explain"]
