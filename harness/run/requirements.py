# SPDX-License-Identifier: GPL-2.0-only
"""What a scenario needs of a kernel, and the reason when that is not there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.policy.attachers import ATTACHERS
from harness.scenario.functions import FUNCTIONS
from harness.scenario.steps import Attach, Scenario


def needs_compiler(scenario: Scenario) -> bool:
    """Whether BPF programs are needed."""
    return any(ATTACHERS[name].bpf for name in scenario.attachers)


def skip_reason(scenario: Scenario, facts: Mapping[str, Any]) -> str | None:
    """Why the kernel with these facts (the agent's) cannot run it; None if it can."""
    attachers = scenario.attachers
    if "livepatch" in attachers and not facts["livepatch"]:
        return "this kernel has no livepatch (CONFIG_LIVEPATCH)"
    if attachers & {"direct", "direct-share"} and not facts["direct"]:
        return "this kernel has no direct calls for modules"
    if "direct-share" in attachers and not facts["ops_func"]:
        return "a direct ops has no ops_func before 6.0"
    if needs_compiler(scenario):
        if not facts["vmlinux_btf"]:
            return "this kernel has no BTF (CONFIG_DEBUG_INFO_BTF)"
        for step in scenario.steps:
            if (
                isinstance(step, Attach)
                and ATTACHERS[step.attacher].bpf
                and FUNCTIONS[step.function].module
                and not facts["module_btf"]
            ):
                return "no BTF for modules: BPF programs cannot be loaded for their functions"
    return None
