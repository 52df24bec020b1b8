# SPDX-License-Identifier: GPL-2.0-only
"""The main job on stock kernels: what each release promises, and what it does."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator

import pytest
import world as places
from conftest import Warm
from world import Event, Running, World, of_type, verdicts

from harness.kernels import modules
from harness.kernels.store import default_root
from harness.policy import known
from harness.policy.attachers import ATTACHERS, CORE
from harness.scenario import catalogue
from harness.scenario.company import sociable

#: What the default kernel is known for, and by which name.
KNOWN = {
    "ops-regs/ftrace_enabled:detach-while-off/then:ops": "stale-regs",
    "kprobe+kprobe-post/attach:ab/detach:ab": "kprobe-post",
    "kprobe-post+kretprobe/attach:ba/detach:ba": "kprobe-post",
}
#: The kernel forgets that this is refused.
KPROBE_POST = "livepatch+kprobe-post/attach:ab/detach:ab"
GRAPH = "livepatch+function-graph/attach:ab/detach:ab"
FPROBE_AND_GRAPH = "fprobe-exit+function-graph/attach:ab/detach:ab"
RELEASES = ("5.10", "6.1", "6.12", "7.2", "7.3")
#: Pairs that tell the releases apart, one of each way to call a function, each kind of record.
TELLING = (
    "livepatch+f*/attach:*",
    "livepatch+direct*/attach:*",
    "direct+f*/attach:*",
    "fexit+ipmodify/*",
    FPROBE_AND_GRAPH,
    KPROBE_POST,
    "ops/ftrace_enabled:off-on",
    "fentry/ftrace_enabled:*",
    "ops-regs/alone*",
    "fentry/alone/on:cohabit_f*",
)


@pytest.fixture(scope="module")
def shared(warm: Warm) -> Iterator[World]:
    """A place with the user's own cache, for what breaks nothing."""
    with places.world(warm.options) as made:
        made.environment["COHABIT_CACHE"] = str(default_root())
        yield made


@pytest.fixture(scope="module")
def default_run(shared: World) -> Running:
    """``cohabit run``, once."""
    run = shared.start("run")
    run.end(patience=1200)
    return run


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


def graph_count(run: Running) -> int | None:
    """How many ops a function has with a fprobe for exits and the graph tracer.

    None where the kernel has no fprobes: Debian's 6.1 is built without.
    """
    start = of_type(run.events, "scenario_start", name=FPROBE_AND_GRAPH)[0]
    ends = of_type(run.events, "step_end", scenario=start["scenario"], index=1)
    if not ends:
        return None
    (record,) = ends[0]["observed"]["registry"].values()
    return int(record["count"])


def assert_ran_on(run: Running, release: str) -> None:
    """Its VMs really ran that release."""
    ready = of_type(run.events, "vm_ready")
    assert ready, run.told
    assert all(e["facts"]["release"].startswith(f"{release}.") for e in ready)


def test_default_run(default_run: Running) -> None:
    run = default_run
    assert run.popen.returncode == 0, run.told
    assert_ran_on(run, "6.12")
    chosen = [s for s in catalogue.default() if s.arch in ("", "x86_64")]
    found = verdicts(run.events)
    names = [n.partition("#")[0] for n in found]
    assert sorted(names) == sorted(s.name for s in chosen)
    expected = {s.name for s in chosen if any(k.concerns(s.name, (6, 12)) for k in known.KNOWN)}
    assert expected == set(KNOWN)
    ends = of_type(run.events, "scenario_end", verdict="XFAIL")
    assert {e["scenario"].partition("/")[2]: e["xfail"] for e in ends} == {
        f"{name}#1": value for name, value in KNOWN.items()
    }
    assert {n.partition("#")[0] for n, v in found.items() if v != "PASS"} == set(KNOWN)
    # Nobody had to be asked again alone: what was seen side by side was beyond doubt.
    assert {e["verdict"] for e in of_type(run.events, "group_end")} == {"PASS"}
    steps = of_type(run.events, "step_end")
    assert len(steps) >= 3000
    wrong = [e for e in steps if e["mismatches"]]
    assert {e["scenario"].partition("/")[2].partition("#")[0] for e in wrong} <= set(KNOWN)
    matrix = {tuple(e["matrix"]) for e in of_type(run.events, "scenario_start") if "matrix" in e}
    assert {name for cell in matrix for name in cell} == set(CORE)
    twice = [name for name in CORE if ATTACHERS[name].twice]
    assert len(matrix) == len(CORE) * (len(CORE) - 1) + len(twice) == 322
    assert "Pair matrix of 6.12" in run.out
    run.world.assert_nothing_left()


def test_no_rule_is_idle(default_run: Running) -> None:
    """Whichever rule the model forgets or gets wrong, a step of that run contradicts."""
    rules = default_run.world.run("rules", "--survivors", str(default_run.output))
    assert rules.end() == 0, rules.told
    assert "SURVIVED" not in rules.out
    assert ", 0 of them unnoticed" in rules.out


#: Pairs of all kinds that can go side by side.
TOGETHER = (
    "livepatch+direct*/attach:*",
    "livepatch+fexit/attach:*",
    "livepatch+ipmodify/attach:*",
    "livepatch+livepatch/*",
    "direct+fentry/attach:*",
    "direct+ops/attach:*",
    "fexit+function-graph/*",
    "ipmodify+kprobe/attach:*",
    "ops+ops-regs/*",
    "ops-regs+fprobe/*",
    "fmod_ret+kprobe-multi/*",
    "kretprobe+instance/*",
)


def seen(run: Running) -> dict[str, list[object]]:
    """The verdict of each scenario, and what its steps did, whichever lane and slot it had."""
    found: dict[str, list[object]] = {}
    for start in of_type(run.events, "scenario_start"):
        identity = start["scenario"]
        (end,) = of_type(run.events, "scenario_end", scenario=identity)
        told = found[start["name"]] = [end["verdict"]]
        # The body of each attachment, by its slot: a livepatch's is a letter.
        bodies: dict[str, str] = {}
        for begun in of_type(run.events, "step_start", scenario=identity):
            act = begun["step"]
            if act["do"] == "attach" and act["slot"] is not None:
                slot = "abcd"[act["slot"]] if act["attacher"] == "livepatch" else act["slot"]
                bodies[f"{act['attacher']}-{slot}"] = act["id"]
        for step in of_type(run.events, "step_end", scenario=identity):
            observed = step["observed"]
            (record,) = observed["registry"].values()
            (behaviour,) = observed["behaviour"].values()
            if record is not None:
                # M stays on a function from the scenario before. R stays on one that a
                # kprobe left while there are others (rule filter-change-keeps-regs).
                kprobes = any(ATTACHERS[name].ops == "kprobe" for name in start["attachers"])
                flags = [f for f in record["flags"] if f != "M" and not (kprobes and f == "R")]
                direct = re.sub(r"\d+$", "", record["direct"] or "")
                record = {**record, "flags": flags, "direct": direct}
            body = bodies.get(behaviour["body"], behaviour["body"])
            told.append((observed["errno"], record, body, behaviour["hits"]))
    return found


def test_side_by_side_is_as_alone(shared: World) -> None:
    together = shared.run("run", *TOGETHER, "--jobs", "1")
    alone = shared.run("run", *TOGETHER, "--jobs", "1", "--together", "1")
    for run in (together, alone):
        assert run.end() == 0, run.told
        assert_ran_on(run, "6.12")
    groups = of_type(together.events, "group_start")
    selected = catalogue.select(TOGETHER)
    names = {s.name for s in selected}
    assert sum(len(e["scenarios"]) for e in groups) == sum(map(sociable, selected)) >= 20
    assert not of_type(alone.events, "group_start")
    first, second = seen(together), seen(alone)
    assert set(first) == set(second) == names
    assert {n: (first[n], second[n]) for n in names if first[n] != second[n]} == {}
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
    found = {n.partition("#")[0]: v for n, v in verdicts(run.events).items()}
    assert found[KPROBE_POST] == ("XFAIL" if newer else "PASS")
    ends = of_type(run.events, "scenario_end", verdict="XFAIL")
    assert [e["xfail"] for e in ends] == (["kprobe-arm-lost"] if newer else [])
    assert found[GRAPH] == "PASS"
    # 6.14 and newer: both are users of the one ops of the function graph.
    assert graph_count(run) == (None if release in ("5.10", "6.1") else 1)
    off = outcomes(run.events, "ops/ftrace_enabled:off-on")[1]
    assert off == ("write", errno.EOPNOTSUPP if release == "7.3" else 0)


@pytest.mark.parametrize(
    ("release", "profile", "refused"), [("5.10", "v6.1", True), ("6.12", "v5.10", False)]
)
def test_other_releases_policy(shared: World, release: str, profile: str, refused: bool) -> None:
    """Held to the other's policy, just the steps are named in which they differ."""
    pairs = ("livepatch+fexit", "fentry+ipmodify", "livepatch+ops")
    scenarios = [f"{pair}/attach:*" for pair in pairs]
    options = ("--kernel", f"debian:{release}", "--profile", profile)
    run = shared.start("run", *scenarios, *options, kernel=False)
    assert run.end() == 1, run.told
    assert_ran_on(run, release)
    differing = {n.partition("#")[0] for n, v in verdicts(run.events).items() if v == "FAIL"}
    names = {e["name"] for e in of_type(run.events, "scenario_start")}
    assert differing == {n for n in names if "livepatch+ops" not in n}
    # One livepatch for several is refused them all; they were asked again, each alone.
    finished = {e["scenario"] for e in of_type(run.events, "scenario_end")}
    for end in of_type(run.events, "step_end"):
        if end["scenario"] not in finished:
            continue
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
