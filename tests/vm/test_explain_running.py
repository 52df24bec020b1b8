# SPDX-License-Identifier: GPL-2.0-only
"""`cohabit explain` on a running kernel: what it says is what the kernel then does."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from conftest import Warm
from world import KERNEL, REPOSITORY


def explained(warm: Warm, *attachers: str) -> tuple[Any, str]:
    """The function's record with answers about a livepatch and a direct call, and stderr."""
    present = [word for name in attachers for word in ("--with", name)]
    asked = ("--what-if", "livepatch", "--what-if", "direct", "--json")
    done = subprocess.run(
        [sys.executable, "-m", "harness.cli", "explain", "--kernel", KERNEL, *present, *asked,
         *warm.options],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (record,) = json.loads(done.stdout)["records"]
    assert record["function"] == "cmdline_proc_show"
    return record, done.stderr


def test_a_running_kernel(warm: Warm) -> None:
    record, said = explained(warm, "fexit", "livepatch", "direct")
    assert [user["kind"] for user in record["users"]] == ["bpf", "ipmodify"]
    assert record["count"] == 2
    # The kernel refused what the policy says that it refuses.
    (answer,) = record["what_if"]["direct"]
    assert (answer["answer"], answer["cases"][0]["errno"]) == ("no", 16)
    assert "direct was refused: EBUSY (16)" in said
