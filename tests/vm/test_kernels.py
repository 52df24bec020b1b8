# SPDX-License-Identifier: GPL-2.0-only
"""The main job on stock kernels: what each release promises, and what it does."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest
import world as places
from conftest import Warm
from world import Event, Running, World, of_type, verdicts

from harness.kernels import modules
from harness.kernels.store import default_root

RELEASES = ("5.10", "6.1", "6.12", "7.2", "7.3")
#: Pairs that tell the releases apart, one of each way to call a function, each kind of record.
TELLING = (
    "livepatch+f*",
    "livepatch+direct*",
    "direct+f*",
    "fexit+ipmodify/*",
    "ops/ftrace_enabled:off-on",
    "fentry/ftrace_enabled:*",
    "ops-regs/alone*",
    "fentry/alone/on:cohabit_f*",
)
KNOWN = "ops-regs/ftrace_enabled:detach-while-off/then:ops"


@pytest.fixture
def shared(warm: Warm) -> Iterator[World]:
    """A place with the user's own cache, for what breaks nothing."""
    with places.world(warm.options) as made:
        made.environment["COHABIT_CACHE"] = str(default_root())
        yield made


def outcomes(events: list[Event], name: str) -> list[tuple[str, int]]:
    """What each step of a scenario was and its errno, in order."""
    start = of_type(events, "scenario_start", name=name)[-1]
    begun = {
        e["index"]: e["step"] for e in of_type(events, "step_start", scenario=start["scenario"])
    }
    return [
        (
            " ".join(str(begun[e["index"]].get(key, "")) for key in ("do", "attacher")).strip(),
            e["observed"]["errno"],
        )
        for e in of_type(events, "step_end", scenario=start["scenario"])
    ]


def assert_ran_on(run: Running, release: str) -> None:
    """Its VMs really ran that release."""
    ready = of_type(run.events, "vm_ready")
    assert ready, run.told
    assert all(e["facts"]["release"].startswith(f"{release}.") for e in ready)


def test_default_run(shared: World) -> None:
    run = shared.start("run")
    assert run.end() == 0, run.told
    assert_ran_on(run, "6.12")
    found = verdicts(run.events)
    assert {n.partition("#")[0] for n, v in found.items() if v != "PASS"} == {KNOWN}
    assert found[f"{KNOWN}#1"] == "XFAIL"
    assert len(found) >= 60
    steps = of_type(run.events, "step_end")
    assert len(steps) >= 400
    assert not [e["mismatches"] for e in steps if e["mismatches"] and KNOWN not in e["scenario"]]
    matrix = {tuple(e["matrix"]) for e in of_type(run.events, "scenario_start") if "matrix" in e}
    assert len(matrix) == 81
    assert "Pair matrix of 6.12" in run.out
    shared.assert_nothing_left()


@pytest.mark.parametrize("release", [r for r in RELEASES if r != "6.12"])
def test_release(shared: World, release: str) -> None:
    run = shared.start("run", *TELLING, "--kernel", f"debian:{release}", kernel=False)
    assert run.end() == 0, run.told
    assert_ran_on(run, release)
    refused = errno.EBUSY if release == "5.10" else 0
    for bpf in ("fentry", "fexit", "fmod_ret"):
        for order, second in (("ab", bpf), ("ba", "livepatch")):
            steps = outcomes(run.events, f"livepatch+{bpf}/attach:{order}/detach:{order}")
            assert steps[0][1] == 0
            assert steps[1] == (f"attach {second}", refused)
    # 7.0 and newer refuse a BPF trampoline beside another direct call with EINVAL.
    after_direct = outcomes(run.events, "direct+fentry/attach:ab/detach:ab")[1]
    newer = release in ("7.2", "7.3")
    assert after_direct == ("attach fentry", errno.EINVAL if newer else errno.EBUSY)
    off = outcomes(run.events, "ops/ftrace_enabled:off-on")[1]
    assert off == ("write", errno.EOPNOTSUPP if release == "7.3" else 0)


@pytest.mark.parametrize(
    ("release", "profile", "refused"), [("5.10", "v6.1", True), ("6.12", "v5.10", False)]
)
def test_other_releases_policy(shared: World, release: str, profile: str, refused: bool) -> None:
    """Held to the other's policy, just the steps are named in which they differ."""
    scenarios = ("livepatch+fexit/*", "fentry+ipmodify/*", "livepatch+ops/*")
    options = ("--kernel", f"debian:{release}", "--profile", profile)
    run = shared.start("run", *scenarios, *options, kernel=False)
    assert run.end() == 1, run.told
    assert_ran_on(run, release)
    differing = {n.partition("#")[0] for n, v in verdicts(run.events).items() if v == "FAIL"}
    names = {e["name"] for e in of_type(run.events, "scenario_start")}
    assert differing == {n for n in names if "livepatch+ops" not in n}
    for end in of_type(run.events, "step_end"):
        wrong = [m for m in end["mismatches"] if m["witness"] == "errno"]
        if "livepatch+ops" in end["scenario"] or end["index"] == 0:
            assert not end["mismatches"]
            continue
        assert [(m["expected"], m["seen"]) for m in wrong] == [
            ("0", "EBUSY (16)") if refused else ("EBUSY (16)", "0")
        ]


@pytest.mark.parametrize("release", RELEASES)
def test_modules_compile_without_a_warning(warm: Warm, release: str) -> None:
    setup = warm.setup
    built = setup.kmods(setup.kernel(f"debian:{release}"))
    assert {p.name for p in built.glob("*.ko")} >= {"cohabit.ko", "cohabit_klp_cmdline.ko"}
    assert (built / modules.WARNINGS).read_text(encoding="utf-8") == ""
