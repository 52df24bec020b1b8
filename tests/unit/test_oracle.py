# SPDX-License-Identifier: GPL-2.0-only
"""The oracle on what real kernels answered, and on those answers with one lie in them."""

from __future__ import annotations

import copy
import errno
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from obedient import Obedient
from policy_help import V6_12, V7_2, on
from recorded import Recorded, everything

from harness.oracle import (
    Mismatch,
    Observation,
    compare,
    compare_own,
    compare_shared,
    compare_watched,
    errno_text,
    observation,
    unexpected,
)
from harness.policy import rules
from harness.policy.predict import Prediction, applies, predict
from harness.policy.profile import Profile
from harness.policy.state import State
from harness.scenario.steps import Attach, Detach, Hold, Misuse, Modify, Release, Step, Unload

Reply = dict[str, Any]
RECORDED = everything()


def replay(run: Recorded) -> list[tuple[Prediction, Reply]]:
    """Each step's prediction beside the reply that a real kernel gave."""
    state = run.begin()
    result = []
    replies = {index: (step, reply) for index, step, reply in run.steps}
    for index, step in enumerate(run.scenario.steps):
        if not applies(state, step):
            assert index not in replies, f"step {index} was done on the kernel"
            continue
        prediction, state = predict(state, step, run.scenario.functions, run.profile)
        result.append((unasked(prediction), replies[index][1]))
    return result


def unasked(prediction: Prediction) -> Prediction:
    """Without what direct calls were asked, which was not recorded then."""
    calls = {f: replace(b, shares={}) for f, b in prediction.behaviour.items()}
    return replace(prediction, behaviour=calls)


def judge(prediction: Prediction, reply: Reply, findings: tuple[str, ...] = ()) -> list[Mismatch]:
    seen = observation(reply, findings)
    return list(compare(prediction, seen, list(reply["calls"])))


@pytest.mark.parametrize("run", RECORDED, ids=lambda r: r.title)
def test_policy_agrees_with_what_kernels_did(run: Recorded) -> None:
    found = [m for prediction, reply in replay(run) for m in judge(prediction, reply)]
    if run.verdict == "PASS":
        assert found == []
    else:
        # The known difference: ftrace has shut itself down, so its sysctl can't be read.
        assert [m.what for m in found] == ["kernel.ftrace_enabled"]


def test_recordings_are_of_five_kernels() -> None:
    assert {r.profile.name for r in RECORDED} == {"v5.10", "v6.1", "v6.12", "v7.2", "v7.3"}
    assert sum(len(r.steps) for r in RECORDED) > 200


def step_of(name: str, index: int, profile: str = "v6.12") -> tuple[Prediction, Reply]:
    """A recorded step, counted among those that were done."""
    run = next(r for r in RECORDED if r.scenario.name == name and r.profile.name == profile)
    prediction, reply = replay(run)[index]
    return prediction, copy.deepcopy(reply)


BOTH = ("livepatch+fexit/attach:ab/detach:ab", 1)
RECORD = rules.RECORD_COUNTS_OPS.name
BEHAVIOUR = rules.CALLS.name


def _text(old: str, new: str) -> Callable[[Reply], None]:
    def lie(reply: Reply) -> None:
        assert old in reply["enabled_functions"]
        reply["enabled_functions"] = reply["enabled_functions"].replace(old, new)

    return lie


def _set(*path_and_value: Any) -> Callable[[Reply], None]:
    *path, last, value = path_and_value

    def lie(reply: Reply) -> None:
        place: Any = reply
        for key in path:
            place = place[key]
        assert place.get(last) != value
        place[last] = value

    return lie


CALL = ("calls", "cmdline_proc_show")
#: What the witness says instead, then witness, what and rule of the one mismatch.
LIES: list[tuple[str, Callable[[Reply], None], str, str, str]] = [
    ("errno", _set("errno", 16), "errno", "the step", rules.WELCOME.name),
    ("count", _text("(2)", "(3)"), "registry", "cmdline_proc_show count", RECORD),
    ("flag gone", _text(" R I D", " R   D"), "registry", "cmdline_proc_show flags", RECORD),
    ("flag more", _text("I D   M", "I D O M"), "registry", "cmdline_proc_show flags", RECORD),
    ("target", _text(">bpf_tramp", ">other_tramp"), "registry", "cmdline_proc_show direct call",
     RECORD),
    ("jmp", _text("direct-->", "direct(jmp)-->"), "registry", "cmdline_proc_show direct(jmp)",
     RECORD),
    ("no record", _set("enabled_functions", ""), "registry", "cmdline_proc_show", RECORD),
    ("no file", _set("enabled_functions", None), "registry", "cmdline_proc_show", RECORD),
    ("body", _set(*CALL, "body", "original"), "behaviour", "cmdline_proc_show body", BEHAVIOUR),
    ("no hit", _set(*CALL, "seen", "b", {"hits": 0, "args": []}), "behaviour",
     "cmdline_proc_show hits of b", BEHAVIOUR),
    ("two hits", _set(*CALL, "seen", "b", "hits", 2), "behaviour", "cmdline_proc_show hits of b",
     BEHAVIOUR),
    ("no counter", _set(*CALL, "seen", {}), "behaviour", "cmdline_proc_show hits of b", BEHAVIOUR),
    ("somebody else hit", _set(*CALL, "seen", "x", {"hits": 1, "args": []}), "behaviour",
     "cmdline_proc_show hits of x", BEHAVIOUR),
    ("return value", _set(*CALL, "seen", "b", "ret", 7), "behaviour",
     "cmdline_proc_show return value at exit by b", BEHAVIOUR),
    ("transition", _set("livepatch", "cohabit_klp_a", "transition", 1), "registry",
     "livepatch sysfs", RECORD),
    ("disabled", _set("livepatch", "cohabit_klp_a", "enabled", 0), "registry", "livepatch sysfs",
     RECORD),
    ("no patch", _set("livepatch", {}), "registry", "livepatch sysfs", RECORD),
    ("another patch", _set("livepatch", "other", {"enabled": 1, "transition": 0}), "registry",
     "livepatch sysfs", RECORD),
    ("sysctl", _set("ftrace_enabled", 0), "registry", "kernel.ftrace_enabled",
     rules.PERMANENT_KEEPS_ENABLED.name),
    ("log lost", _set("log_complete", False), "log", "completeness", "log-complete"),
]  # fmt: skip


@pytest.mark.parametrize(("lie", "witness", "what", "rule"), [x[1:] for x in LIES],
                         ids=[x[0] for x in LIES])  # fmt: skip
def test_one_lie_is_one_mismatch(
    lie: Callable[[Reply], None], witness: str, what: str, rule: str
) -> None:
    prediction, reply = step_of(*BOTH)
    assert judge(prediction, reply) == []
    lie(reply)
    (found,) = judge(prediction, reply)
    assert (found.witness, found.what, found.rule) == (witness, what, rule)
    assert found.expected != found.seen
    assert str(found) == f"{witness}: {what}: expected {found.expected}, saw {found.seen}"


def test_kernel_report_is_a_mismatch() -> None:
    prediction, reply = step_of(*BOTH)
    (found,) = judge(prediction, reply, ("WARNING: CPU: 0 PID: 1 at kernel/trace/ftrace.c:1",))
    assert (found.witness, found.what) == ("log", "kernel report")
    assert found.rule == prediction.rule.name


def test_a_function_nobody_asked_about_is_a_mismatch() -> None:
    prediction, reply = step_of(*BOTH)
    reply["enabled_functions"] += "vfs_read (1)\n"
    (found,) = judge(prediction, reply)
    assert (found.what, found.seen) == ("other functions", "vfs_read (1)")
    assert found.rule == rules.REFUSED_NO_TRACE.name


def test_text_that_is_no_record_is_a_mismatch() -> None:
    prediction, reply = step_of(*BOTH)
    reply["enabled_functions"] = "what is this?\n" + reply["enabled_functions"]
    (found,) = judge(prediction, reply)
    assert (found.what, found.seen) == ("other functions", "what is this?")


def test_function_of_that_name_in_another_module_is_a_stranger() -> None:
    prediction, reply = step_of("fexit/alone/on:cohabit_f8", 0)
    reply["enabled_functions"] = reply["enabled_functions"].replace("[cohabit_funcs]", "[other]")
    assert [m.what for m in judge(prediction, reply)] == ["cohabit_f8", "other functions"]


def test_error_marker_in_the_registry() -> None:
    prediction, reply = step_of("fexit+fmod_ret/attach:ab/detach:ab", 0)
    reply["enabled_functions"] = (
        "security_task_getpgid (1) R   D   M \ttramp: ERROR!\n"
        + (reply["enabled_functions"].split("\n", 1)[1])
    )
    (found,) = judge(prediction, reply)
    assert (found.what, found.rule) == ("security_task_getpgid error marker", RECORD)


def test_jump_or_call_where_both_are_right() -> None:
    prediction, reply = step_of(*BOTH)
    record = prediction.registry["cmdline_proc_show"]
    assert record is not None
    either = replace(record, jmp=None, why_either="nobody knows")
    prediction = replace(prediction, registry={"cmdline_proc_show": either})
    assert judge(prediction, reply) == []
    _text("direct-->", "direct(jmp)-->")(reply)
    assert judge(prediction, reply) == []


def test_record_where_none_must_be() -> None:
    prediction, reply = step_of("livepatch+fexit/attach:ab/detach:ab", 3)
    assert prediction.registry == {"cmdline_proc_show": None}
    reply["enabled_functions"] = "cmdline_proc_show (1)   I     M \n"
    (found,) = judge(prediction, reply)
    assert (found.what, found.expected, found.seen) == (
        "cmdline_proc_show", "no record", "(1) I M"
    )  # fmt: skip


@pytest.mark.parametrize("position", range(8))
def test_each_argument_is_compared(position: int) -> None:
    prediction, reply = step_of("fexit/alone/on:cohabit_f8", 0)
    reply["calls"]["cohabit_f8"]["seen"]["a"]["args"][position] ^= 1 << 31
    (found,) = judge(prediction, reply)
    assert (found.what, found.expected, found.rule) == ("cohabit_f8 arguments", "intact", BEHAVIOUR)
    assert found.seen.startswith("a saw ")


def test_attachers_must_see_the_same_arguments_where_nobody_knows_them() -> None:
    prediction, reply = step_of("ops+ops/attach:ab/detach:ab", 1)
    seen = reply["calls"]["cmdline_proc_show"]["seen"]
    assert sorted(seen) == ["a", "b"]
    seen["b"]["args"][1] += 1
    (found,) = judge(prediction, reply)
    assert found.what == "cmdline_proc_show arguments"
    assert found.seen.startswith("b saw ")


def test_known_arguments_may_be_fewer() -> None:
    prediction, reply = step_of("direct/alone/on:cohabit_f6", 0)
    stat = reply["calls"]["cohabit_f6"]["seen"]["a"]
    for known in (6, 3, 0):
        stat["args"] = stat["args"][:known]
        assert judge(prediction, reply) == []


def test_every_fexit_programs_return_value_is_compared() -> None:
    prediction, reply = step_of("fexit+fexit/attach:ab/detach:ab", 1, "v6.1")
    seen = reply["calls"]["cmdline_proc_show"]["seen"]
    assert sorted(seen) == ["a", "b"]
    assert judge(prediction, reply) == []
    seen["b"]["ret"] = 5
    (found,) = judge(prediction, reply)
    assert (found.what, found.seen) == ("cmdline_proc_show return value at exit by b", "5")


def test_negative_return_value_of_an_int() -> None:
    prediction, reply = step_of("fexit+fmod_ret/attach:ab/detach:ab", 1)
    stat = reply["calls"]["security_task_getpgid"]["seen"]["a"]
    # A C int in 64 bits: what is in the upper half is nobody's business.
    for upper in (0, 0xFFFFFFFF):
        stat["ret"] = upper << 32 | (stat["ret"] & 0xFFFFFFFF)
        assert judge(prediction, reply) == []
    stat["ret"] = 0
    (found,) = judge(prediction, reply)
    assert (found.expected, found.seen) == ("-216", "0")


def test_refused_livepatch_must_be_in_the_log() -> None:
    prediction, reply = step_of("livepatch+direct/attach:ba/detach:ab", 1)
    assert prediction.errno == (errno.EBUSY,)
    reply["log"] = [r for r in reply["log"] if "failed to register" not in r["text"]]
    (found,) = judge(prediction, reply)
    assert (found.witness, found.what, found.seen) == ("log", "message", "none")
    assert found.rule == "peer-must-agree"


def test_accepted_where_it_must_be_refused() -> None:
    prediction, reply = step_of("livepatch+ipmodify/attach:ab/detach:ba", 1)
    reply["errno"] = 0
    (found,) = judge(prediction, reply)
    assert (found.expected, found.seen, found.rule) == ("EBUSY (16)", "0", "one-ipmodify")


def test_remark_names_the_call_that_failed() -> None:
    prediction, reply = step_of(*BOTH)
    reply.update(errno=22, remark="load")
    (found,) = judge(prediction, reply)
    assert (found.what, found.seen) == ("load", "EINVAL (22)")


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (16, "EBUSY (16)"), (524, "ENOTSUPP (524)")]
)
def test_errno_text(number: int, text: str) -> None:
    assert errno_text(number) == text


def test_modified_is_read_from_touched_functions() -> None:
    _, reply = step_of("fexit/alone/on:cohabit_f8", 0)
    reply["touched_functions"] = (
        "cohabit_f8 [cohabit_funcs] (0)         M \ncmdline_proc_show (0)\n"
        "cohabit_f6 [other] (0)         M \n"
    )
    functions = ("cohabit_f8", "cmdline_proc_show", "cohabit_f6", "cohabit_f1")
    assert observation(reply).modified(functions) == {"cohabit_f8"}
    reply["touched_functions"] = None
    assert observation(reply).modified(functions) == frozenset()


@pytest.mark.parametrize("run", RECORDED, ids=lambda r: r.title)
def test_observation_in_the_words_of_the_record(run: Recorded) -> None:
    """What goes into events.jsonl is what is there already."""
    for (_, _, reply), (_, again) in zip(run.steps, replay(run), strict=True):
        assert reply == again
        seen: Observation = observation(reply)
        data = seen.to_json()
        assert set(data) == {"errno", "remark", "registry", "behaviour", "livepatch", "sysctl"}
        for function, call in reply["calls"].items():
            behaviour = data["behaviour"][function]
            assert behaviour["body"] == call["body"]
            assert behaviour["hits"] == {i: s["hits"] for i, s in call["seen"].items()}
            assert behaviour["args"] == "agree"


# --- witnesses that only some steps have -----------------------------------------------------

LANE = "security_cohabit_000"


def last_step(
    *steps: Step, profile: Profile = V6_12, function: str = LANE
) -> tuple[Prediction, Reply]:
    """The prediction of the last of some steps, and what an obedient kernel says after it."""
    kernel, state = Obedient(profile), State()
    for step in steps:
        prediction, state = predict(state, step, (function,), profile)
        json = step.to_json()
        if isinstance(step, Attach):
            slot = kernel.state.free_slot(step.attacher, step.functions)
            json.update(functions=list(step.functions), slot=slot)
        reply = kernel.ask(op="acts", acts=[json], functions=[function])
    return prediction, {**reply, **reply["results"][-1]}


SHARED = on("i", "ipmodify", LANE), on("d", "direct-share", LANE), Modify("d", 1)
SEEN = ("calls", LANE, "seen", "d")


@pytest.mark.parametrize(
    ("lie", "what", "rule"),
    [
        (_set(*SEEN, "share", [1, 0, 0]), f"{LANE} calls of ops_func of d", "peer-told"),
        (_set(*SEEN, "share", [2, 0, 1]), f"{LANE} calls of ops_func of d", "peer-told"),
        (lambda reply: reply["calls"][LANE]["seen"]["d"].pop("share"),
         f"{LANE} calls of ops_func of d", "peer-told"),
        # The slot's other trampoline is eight further on.
        (_set(*SEEN, "via", 0), f"{LANE} trampoline of d", "modify-moves"),
        (_text("tramp_8+", "tramp_0+"), f"{LANE} direct call", RECORD),
    ],
    ids=["not asked again", "told", "not counted", "the first trampoline", "target"],
)  # fmt: skip
def test_lies_about_a_direct_call(lie: Callable[[Reply], None], what: str, rule: str) -> None:
    prediction, reply = last_step(*SHARED)
    assert judge(prediction, reply) == []
    lie(reply)
    (found,) = judge(prediction, reply)
    assert (found.what, found.rule) == (what, rule)


def test_what_is_written_of_a_direct_call() -> None:
    _, reply = last_step(*SHARED)
    call = observation(reply).to_json()["behaviour"][LANE]
    assert (call["shares"], call["via"]) == ({"d": [2, 0, 0]}, {"d": 1})
    _, reply = last_step(on("o", "ops", LANE))
    assert not {"shares", "via"} & set(observation(reply).to_json()["behaviour"][LANE])


@pytest.mark.parametrize("attacher", ["fexit", "kretprobe", "fprobe-exit"])
def test_all_who_see_the_return_value_are_compared(attacher: str) -> None:
    prediction, reply = last_step(on("k", "livepatch", LANE), on("x", attacher, LANE))
    assert judge(prediction, reply) == []
    # A livepatch's tag, and all 64 bits of it.
    assert reply["calls"][LANE]["seen"]["x"]["ret"] >> 32 == 2
    reply["calls"][LANE]["seen"]["x"]["ret"] ^= 1 << 33
    (found,) = judge(prediction, reply)
    assert found.what == f"{LANE} return value at exit by x"


def test_held_call() -> None:
    where = "cohabit_hold"
    steps = on("i", "ipmodify", where), Hold("h", where), Release("h")
    prediction, reply = last_step(*steps, function=where)
    seen = replace(observation(reply), held="ipmodify-0")
    assert compare(prediction, seen, [where]) == ()
    assert seen.to_json()["held"] == {"body": "ipmodify-0"}
    for wrong in ("original", None):
        (found,) = compare(prediction, replace(seen, held=wrong), [where])
        assert (found.what, found.expected, found.seen) == ("held call", "ipmodify-0", str(wrong))


def test_a_function_that_is_not_there() -> None:
    prediction, reply = last_step(on("o", "ops", LANE), Unload())
    assert reply["calls"][LANE] == {"body": "absent", "seen": {}}
    assert judge(prediction, reply) == []
    reply["calls"][LANE]["body"] = "original"
    (found,) = judge(prediction, reply)
    assert (found.expected, found.seen) == ("absent", "original")


def test_dead_ftrace_cannot_be_asked() -> None:
    prediction, reply = last_step(on("o", "ops", LANE), Misuse("kill-ftrace", LANE))
    assert (reply["ftrace_enabled"], reply["enabled_functions"]) == (-1, "")
    assert judge(prediction, reply) == []
    reply["ftrace_enabled"] = 1
    (found,) = judge(prediction, reply)
    assert (found.what, found.expected, found.seen) == ("kernel.ftrace_enabled", "-1", "1")


def test_a_report_that_must_be_there() -> None:
    prediction, reply = last_step(Misuse("ops-register-twice", LANE))
    title = "WARNING: CPU: 0 PID: 1 at kernel/trace/ftrace.c:344"
    assert judge(prediction, reply, (title,)) == []
    assert unexpected(prediction, (title,)) == []
    (found,) = judge(prediction, reply)
    assert (found.what, found.expected) == ("kernel report", "kernel/trace/ftrace.c")
    other = "WARNING: CPU: 0 PID: 1 at mm/slub.c:1"
    (found,) = judge(prediction, reply, (title, other))
    assert (found.expected, found.seen) == ("none", other)
    assert unexpected(prediction, (title, other)) == [other]
    # Nobody expects any otherwise.
    prediction, _ = last_step(on("o", "ops", LANE))
    assert unexpected(prediction, (title,)) == [title]


def test_own_witnesses_and_shared_ones() -> None:
    """Of scenarios side by side: what is one's own, and what is nobody's."""
    prediction, reply = last_step(*SHARED)
    reply["calls"][LANE]["body"] = "original"
    reply.update(errno=22, ftrace_enabled=0, livepatch={"x": {"enabled": 1, "transition": 0}})
    reply["enabled_functions"] += "vfs_read (1)\n"
    seen = observation(reply)
    assert [m.what for m in compare_own(prediction, seen, [LANE])] == [
        "the step", f"{LANE} body",
    ]  # fmt: skip
    assert [m.what for m in compare_shared(prediction, seen, [LANE])] == [
        "livepatch sysfs", "kernel.ftrace_enabled", "other functions",
    ]  # fmt: skip


# --- the registry while a step is done -------------------------------------------------------


def record_text(count: int, flags: str, direct: str = "") -> str:
    return f"{LANE} [cohabit_funcs] ({count}) {flags}\n{direct}"


TRAMPOLINE = "\tdirect-->bpf_trampoline_1+0x0/0x1\n"
JUMPED = TRAMPOLINE.replace("direct", "direct(jmp)", 1)


@pytest.mark.parametrize(
    ("steps", "text", "fits"),
    [
        ([on("o", "ops", LANE), on("k", "kprobe", LANE)], record_text(1, ""), True),
        ([on("o", "ops", LANE), on("k", "kprobe", LANE)], record_text(2, "R"), True),
        ([on("o", "ops", LANE), on("k", "kprobe", LANE)], record_text(2, ""), False),
        ([on("o", "ops", LANE), on("k", "kprobe", LANE)], "", False),
        ([on("o", "ops", LANE)], "", True),
        ([on("o", "ops", LANE)], record_text(2, ""), False),
        ([on("o", "ops", LANE), Detach("o")], "", True),
        ([on("o", "ops", LANE), Detach("o")], record_text(1, ""), True),
        ([on("o", "ops", LANE), Detach("o")], record_text(1, "R"), False),
        # A trampoline that begins to share is exchanged before the livepatch comes.
        ([on("x", "fexit", LANE), on("k", "livepatch", LANE)],
         record_text(1, "R D M", JUMPED), True),
        ([on("x", "fexit", LANE), on("k", "livepatch", LANE)],
         record_text(2, "R I D M", TRAMPOLINE), True),
        ([on("x", "fexit", LANE), on("k", "livepatch", LANE)],
         record_text(1, "R D M", TRAMPOLINE), True),
        ([on("x", "fexit", LANE), on("k", "livepatch", LANE)], record_text(1, "I M"), False),
        ([on("x", "fexit", LANE), on("k", "livepatch", LANE)], "", False),
    ],
)  # fmt: skip
def test_watched(steps: list[Step], text: str, fits: bool) -> None:
    before = last_step(*steps[:-1], profile=V7_2)[0] if steps[:-1] else None
    after, reply = last_step(*steps, profile=V7_2)
    reply["watched"] = {"reads": 3, "texts": [reply["enabled_functions"], text]}
    seen = observation(reply)
    assert len(seen.watched) == 2
    found = compare_watched(before, after, seen, [LANE])
    assert bool(found) is not fits
    assert compare_watched(before, after, observation({**reply, "watched": None}), [LANE]) == ()
    if found:
        (mismatch,) = found
        assert mismatch.what == f"{LANE} meanwhile"
        assert mismatch.seen in (text.split("\n")[0] or "no record", text.rstrip("\n"))
