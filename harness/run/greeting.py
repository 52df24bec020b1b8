# SPDX-License-Identifier: GPL-2.0-only
"""What an agent is told before anything else."""

from __future__ import annotations

import dataclasses
from typing import Any

from harness.policy.profile import release_version
from harness.scenario.functions import FUNCTIONS

from .programs import SOURCE

#: Seconds on a fast machine; the target scales them.
BOOT_TIMEOUT = 12.0
STEP_TIMEOUT = 6.0
COMPILE_TIMEOUT = 12.0
#: What the kernel has for what it does by itself (a livepatch transition).
PATIENCE = 3.0


def hello(release: str, slowdown: float) -> dict[str, Any]:
    """The first request to the agent on a kernel of ``release``; ``slowdown`` as in Target."""
    return {
        "op": "hello",
        "functions": {n: dataclasses.asdict(f) for n, f in FUNCTIONS.items()},
        "bpf_source": SOURCE.read_text(encoding="utf-8"),
        "patience": PATIENCE * slowdown,
        # Before 5.13 a program can be attached once in its life, and a
        # refused one not even that (commit f3a95075549e).
        "reload_bpf": release_version(release) < (5, 13),
    }
