# SPDX-License-Identifier: GPL-2.0-only
"""What a scenario needs of a kernel, and the reason when that is not there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.arch import X86_64, named
from harness.policy import rules
from harness.policy.attachers import ATTACHERS
from harness.policy.profile import FIRST, release_version
from harness.scenario.functions import FUNCTIONS
from harness.scenario.steps import ANY, Attach, Misuse, Modify, Scenario, TraceAll

_TRACERS = {
    "function-tracer": "function",
    "instance": "function",
    "function-graph": "function_graph",
}
#: Those in the top instance.
_TOPS = {"function-tracer", "function-graph"}
_GRAPH_IN_INSTANCES = (6, 12)


def needs_compiler(scenario: Scenario) -> bool:
    """Whether BPF programs are needed."""
    return any(ATTACHERS[name].bpf or name == "kprobe-multi" for name in scenario.attachers)


def skip_reason(scenario: Scenario, facts: Mapping[str, Any]) -> str | None:
    """Why the kernel with these facts (the agent's) cannot run it; None if it can."""
    attachers = set(scenario.attachers)
    if scenario.arch and scenario.arch != named(str(facts["machine"])).name:
        return f"this is a scenario for {scenario.arch}"
    # arch/arm64/mm/init.c: without KASLR the kernel lies where BPF's addresses begin.
    if scenario.reach == "far" and not facts["kaslr"] and any(ATTACHERS[a].bpf for a in attachers):
        return "BPF trampolines are far only with KASLR (CONFIG_RANDOMIZE_BASE, a seed)"
    if any(ATTACHERS[a].ops == "livepatch" for a in attachers) and not facts["livepatch"]:
        return f"this kernel has no livepatch (CONFIG_LIVEPATCH; {_since('livepatch')})"
    if any(ATTACHERS[a].family == "direct" for a in attachers) and not facts["direct"]:
        return "this kernel has no direct calls for modules"
    if attachers & {"direct-share", "direct-refuse"} and not facts["ops_func"]:
        return "a direct ops has no ops_func before 6.0"
    if attachers & {"fprobe", "fprobe-exit"} and not facts["fprobe"]:
        return f"this kernel has no fprobes for modules (CONFIG_FPROBE; {_since('fprobe')})"
    for attacher, tracer in _TRACERS.items():
        if attacher in attachers and tracer not in facts["tracers"]:
            return f"this kernel has no tracer {tracer}"
    if reason := _not_stirred(scenario, facts):
        return reason
    if any(isinstance(step, Modify) for step in scenario.all_steps) and not facts["has_modify"]:
        return "direct calls of modules cannot be modified here"
    if needs_compiler(scenario):
        if not facts["vmlinux_btf"]:
            return "this kernel has no BTF (CONFIG_DEBUG_INFO_BTF)"
        if not facts["module_btf"] and any(_bpf_on_module(step) for step in scenario.all_steps):
            return "no BTF for modules: BPF programs cannot be loaded for their functions"
        if "kprobe-multi" in attachers and not facts["kprobe_multi"]:
            return f"this kernel has no kprobe-multi links (CONFIG_FPROBE; {_since('fprobe')})"
    for step in scenario.steps:
        if isinstance(step, Misuse):
            first = rules.MISUSES[step.what][0].since
            if release_version(str(facts["release"])) < first:
                return f"there is no such call before {first[0]}.{first[1]}"
    return None


def _not_stirred(scenario: Scenario, facts: Mapping[str, Any]) -> str | None:
    """Why nothing can be stirred there; None if it can, or the scenario does not want it."""
    stir = scenario.stir
    if stir is None:
        return None
    release = release_version(str(facts["release"]))
    for step in stir.steps:
        if isinstance(step, TraceAll) and step.tracer not in (*facts["tracers"], "nop"):
            return f"this kernel has no tracer {step.tracer}"
    # kernel/trace/trace.c: trace_ok_for_array; then the agent takes the top for it.
    everywhere = TraceAll("function_graph") in stir.steps
    if everywhere and _TOPS & set(scenario.attachers) and release < _GRAPH_IN_INSTANCES:
        return "before 6.12 function_graph is for the top instance only, which is in use"
    # arch/arm64/kernel/patching.c: one instruction is written at once.
    if stir.widen_us and named(str(facts["machine"])) is not X86_64:
        return "call sites are patched in one step here: there is no window to hold open"
    return None


def _since(what: str) -> str:
    """The first releases that have it."""
    first = {arch: f"from {a}.{b}" for arch, (a, b) in FIRST[what].items()}
    own = [first["x86-64"]] if "x86-64" in first else []
    return ", ".join([*own, f"on arm64 {first['arm64']}"])


def _bpf_on_module(step: object) -> bool:
    return (
        isinstance(step, Attach)
        and ATTACHERS[step.attacher].bpf
        and any(f != ANY and FUNCTIONS[f].module is not None for f in step.functions)
    )
