# SPDX-License-Identifier: GPL-2.0-only
"""The main job on a stock arm64 kernel, whatever the host is."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import world as places
from world import Running, World, of_type, verdicts

from harness.arch import ARM64
from harness.cli.setup import DEFAULT_KERNELS
from harness.kernels.store import default_root
from harness.policy import known
from harness.policy.attachers import ATTACHERS
from harness.scenario import catalogue
from harness.scenario.steps import Scenario

VERSION = (7, 2)


@pytest.fixture(scope="module")
def shared() -> Iterator[World]:
    """A place with the user's own cache, for what breaks nothing."""
    with places.world() as made:
        made.environment["COHABIT_CACHE"] = str(default_root())
        yield made


@pytest.fixture(scope="module")
def default_run(shared: World) -> Running:
    """``cohabit run --arch arm64``, once."""
    run = shared.start("run", "--arch", "arm64", kernel=False)
    run.end(patience=1200)
    return run


def assert_ran_on_arm64(run: Running) -> None:
    """Its VMs really were of that architecture, and of the default kernel."""
    ready = of_type(run.events, "vm_ready")
    assert ready, run.told
    assert {e["facts"]["machine"] for e in ready} == {"aarch64"}
    assert all(e["facts"]["release"].startswith("7.2.") for e in ready)


def needs_livepatch(scenario: Scenario) -> bool:
    return any(ATTACHERS[name].ops == "livepatch" for name in scenario.attachers)


def test_default_run(default_run: Running) -> None:
    run = default_run
    assert run.popen.returncode == 0, run.told
    assert DEFAULT_KERNELS["arm64"] == "debian:7.2"
    assert_ran_on_arm64(run)
    starts = of_type(run.events, "vm_start")
    assert {(e["engine"], e["start"]) for e in starts} == {("direct", "snapshot")}
    chosen = [s for s in catalogue.default() if s.arch in ("", "arm64")]
    found = {name.partition("#")[0]: verdict for name, verdict in verdicts(run.events).items()}
    assert sorted(found) == sorted(s.name for s in chosen)
    # Debian's arm64 kernels have no livepatch: that is said, and nothing else is left out.
    skipped = {name for name, verdict in found.items() if verdict == "SKIP"}
    assert skipped == {s.name for s in chosen if needs_livepatch(s)}
    excused = {
        s.name
        for s in chosen
        if not needs_livepatch(s)
        and any(k.concerns(s.name, VERSION, ARM64.policy) for k in known.KNOWN)
    }
    others = {name for name, verdict in found.items() if verdict not in ("SKIP", "PASS")}
    assert others <= excused
    assert {found[name] for name in others} <= {"XFAIL"}
    assert len(found) - len(skipped) > 650
    steps = of_type(run.events, "step_end")
    assert len(steps) > 2400


def test_what_only_arm64_has(default_run: Running) -> None:
    """Calls that name their ops, probes beside ftrace, no saved registers."""
    ends = of_type(default_run.events, "step_end")
    starts = {
        (e["scenario"], e["index"]): e["step"] for e in of_type(default_run.events, "step_start")
    }
    seen: dict[str, set[tuple[int, object]]] = {}
    for end in ends:
        scenario = end["scenario"].partition("/")[2].partition("#")[0]
        step = starts[end["scenario"], end["index"]]
        if re.fullmatch(r"[\w-]+/alone", scenario) and step["do"] == "attach":
            (record,) = end["observed"]["registry"].values()
            # M stays from whoever had that lane before, on the same VM.
            told = tuple(f for f in record["flags"] if f != "M") if record else None
            seen.setdefault(step["attacher"], set()).add((end["observed"]["errno"], told))
    assert seen["ops"] == {(0, ("O",))}
    assert seen["fentry"] == {(0, ("D", "O"))}
    assert seen["kprobe"] == seen["kprobe-post"] == seen["kretprobe"] == {(0, None)}
    assert seen["ops-regs"] == {(22, None)}


def test_the_engine_virtme(shared: World) -> None:
    """The same by virtme-ng: the other engine, with the root over virtiofs."""
    names = ("ops/alone", "direct/alone", "fexit/alone/on:cohabit_f8", "fexit+ipmodify/*")
    run = shared.run("run", *names, "--arch", "arm64", "--engine", "virtme", kernel=False)
    assert run.end() == 0, run.told
    assert_ran_on_arm64(run)
    assert {e["engine"] for e in of_type(run.events, "vm_start")} == {"virtme"}
    assert set(verdicts(run.events).values()) == {"PASS"}


def test_a_shell(shared: World) -> None:
    run = shared.run("shell", "--arch", "arm64", "--command", "uname -m; exit 7", kernel=False)
    assert run.end() == 7, run.told
    assert run.out.split() == ["aarch64"]
    shared.assert_nothing_left()
