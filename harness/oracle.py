# SPDX-License-Identifier: GPL-2.0-only
"""Prediction against observation: what was seen, in the words of the prediction, and mismatches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from harness import errno_names
from harness.ftrace import Record, Registry, parse
from harness.ftrace.site import Site, of_agent
from harness.policy import rules
from harness.policy.behaviour import BehaviourPrediction
from harness.policy.predict import Prediction, RecordPrediction
from harness.policy.site import SitePrediction
from harness.scenario.functions import FUNCTIONS


@dataclass(frozen=True)
class Mismatch:
    """One witness that contradicts the policy, and the rule it contradicts."""

    witness: str
    what: str
    expected: str
    seen: str
    rule: str

    def to_json(self) -> dict[str, str]:
        """As in docs/events.md."""
        return dict(vars(self))

    def __str__(self) -> str:
        return f"{self.witness}: {self.what}: expected {self.expected}, saw {self.seen}"


@dataclass(frozen=True)
class Observation:
    """What the witnesses said after a step.

    ``calls`` is the agent's (harness/agent/observe.py); ``log`` the kernel's
    records; ``findings`` the titles of the reports among them; ``held`` the body
    that a call which was let go went through; ``watched`` the texts of the registry
    that were read while the step was done; ``sites``: the functions' call sites, where
    they were looked at; ``stirred``: what came of a ``stir`` (harness/consistency.py).
    """

    errno: int
    remark: str
    registry: Registry
    touched: Registry | None
    calls: Mapping[str, Mapping[str, Any]]
    livepatch: Mapping[str, Mapping[str, int]]
    ftrace_enabled: int
    log: Sequence[Mapping[str, Any]]
    log_complete: bool
    findings: Sequence[str] = ()
    held: str | None = None
    watched: Sequence[Registry] = ()
    sites: Mapping[str, Site] = field(default_factory=dict)
    stirred: Mapping[str, Any] | None = None

    def record(self, function: str) -> Record | None:
        """The function's record in enabled_functions."""
        return self.registry.get(function, FUNCTIONS[function].module)

    def modified(self, functions: Sequence[str]) -> frozenset[str]:
        """Which of these functions have M in touched_functions."""
        if self.touched is None:
            return frozenset()
        return frozenset(
            f
            for f in functions
            if (record := self.touched.get(f, FUNCTIONS[f].module)) and "M" in record.flags
        )

    def to_json(self) -> dict[str, Any]:
        """As in docs/events.md."""
        return {
            "errno": self.errno,
            "remark": self.remark,
            "registry": {f: _record_json(self.record(f)) for f in self.calls},
            "behaviour": {
                f: {
                    "body": call["body"],
                    "hits": {i: s["hits"] for i, s in call["seen"].items()},
                    "ret": next(iter(_seen_returns(f, call).values()), None),
                    "args": "agree" if not _args_differ(call, None) else "differ",
                    **_more_json(call),
                }
                for f, call in self.calls.items()
            },
            "livepatch": self.livepatch,
            "sysctl": {"kernel.ftrace_enabled": self.ftrace_enabled},
            **({"held": {"body": self.held}} if self.held else {}),
            **({"site": {f: s.to_json() for f, s in self.sites.items()}} if self.sites else {}),
            **({"stirred": dict(self.stirred)} if self.stirred is not None else {}),
        }


def _more_json(call: Mapping[str, Any]) -> dict[str, Any]:
    """What only direct calls have."""
    shares = {i: s["share"] for i, s in call["seen"].items() if "share" in s}
    via = {i: s["via"] // 8 for i, s in call["seen"].items() if "via" in s and s["hits"]}
    return {**({"shares": shares} if shares else {}), **({"via": via} if via else {})}


def observation(
    reply: Mapping[str, Any], findings: Sequence[str] = (), errno: int | None = None
) -> Observation:
    """The observation in an agent's reply to ``begin``, ``acts`` or ``observe``.

    Errno and remark of each act are to be added by who knows whose it was.
    """
    touched = reply.get("touched_functions")
    registry = parse(reply["enabled_functions"] or "")
    return Observation(
        errno=int(reply.get("errno", 0)) if errno is None else errno,
        remark=str(reply.get("remark", "")),
        registry=registry,
        touched=parse(touched) if touched is not None else None,
        calls=reply["calls"],
        livepatch=reply["livepatch"],
        ftrace_enabled=int(reply["ftrace_enabled"]),
        log=reply["log"],
        log_complete=bool(reply["log_complete"]),
        findings=findings,
        watched=tuple(parse(text) for text in (reply.get("watched") or {}).get("texts", ())),
        sites={
            function: of_agent(site, _direct_name(registry, function))
            for function, site in (reply.get("sites") or {}).items()
        },
    )


def _direct_name(registry: Registry, function: str) -> str:
    record = registry.get(function, FUNCTIONS[function].module)
    return record.direct.name if record and record.direct else ""


def _record_json(record: Record | None) -> dict[str, Any] | None:
    if record is None:
        return None
    return {
        "count": record.count,
        "flags": sorted(str(flag) for flag in record.flags),
        "direct": record.direct.name if record.direct else None,
        "jmp": record.direct_jmp,
        **({"ops": record.ops[0].func.name} if record.ops else {}),
    }


def errno_text(number: int) -> str:
    """``0`` or ``EBUSY (16)``."""
    if number == 0:
        return "0"
    return f"{errno_names.name(number)} ({number})"


def _signed(value: int) -> int:
    """A C int that a BPF program recorded as 64 bits."""
    low = value & 0xFFFFFFFF
    return low - (1 << 32) if low >> 31 else low


def _seen_returns(function: str, call: Mapping[str, Any]) -> dict[str, int]:
    """The return value that each fexit program saw, as the function's type."""
    whole = FUNCTIONS[function].witnessed == "tag"
    return {
        identity: int(stat["ret"]) if whole else _signed(int(stat["ret"]))
        for identity, stat in call["seen"].items()
        if "ret" in stat and stat["hits"]
    }


def _args_differ(call: Mapping[str, Any], expected: Sequence[int] | None) -> str | None:
    """Words for arguments that an attacher saw otherwise than the others, or than they were."""
    reference: Sequence[int] | None = expected
    for identity, stat in call["seen"].items():
        if not stat["hits"] or not stat["args"]:
            continue
        if reference is None:
            reference = stat["args"]
        common = min(len(reference), len(stat["args"]))
        if list(reference[:common]) != list(stat["args"][:common]):
            return f"{identity} saw {[hex(arg) for arg in stat['args']]}"
    return None


def compare(
    prediction: Prediction, seen: Observation, functions: Sequence[str]
) -> tuple[Mismatch, ...]:
    """Every witness that contradicts the prediction."""
    return (*compare_own(prediction, seen, functions), *compare_shared(prediction, seen, functions))


def compare_own(
    prediction: Prediction, seen: Observation, functions: Sequence[str]
) -> tuple[Mismatch, ...]:
    """The witnesses of a step and of its functions alone: errno, records, calls."""
    found: list[Mismatch] = []
    rule = prediction.rule.name
    if seen.errno not in prediction.errno:
        found.append(
            Mismatch(
                "errno",
                seen.remark or "the step",
                " or ".join(errno_text(e) for e in prediction.errno),
                errno_text(seen.errno),
                rule,
            )
        )
    if seen.held != prediction.held:
        found.append(Mismatch("behaviour", "held call", str(prediction.held), str(seen.held), rule))
    for function in functions:
        found += _compare_record(function, prediction.registry[function], seen.record(function))
        found += _compare_call(function, prediction.behaviour[function], seen.calls[function])
    for function, expected in prediction.site.items():
        found += _compare_site(function, expected, seen.sites.get(function))
    return tuple(found)


def _compare_site(function: str, expected: SitePrediction, seen: Site | None) -> list[Mismatch]:
    """A call site: what the addresses say, what the instruction says, what the ops before it."""
    rule = rules.BRANCH_RANGE.name
    if seen is None or (seen.errno and seen.path != expected.path):
        got = errno_text(seen.errno) if seen else "nothing"
        return [Mismatch("site", f"{function} call site", expected.path, got, rule)]
    distance = "" if seen.distance is None else f" ({seen.distance} bytes)"
    found = []
    for what, want, got in (
        ("trampoline", expected.reach, f"{seen.reach}{distance}"),
        ("call site", expected.path, f"{seen.path} ({seen.decoded})"),
        ("ops leads to the trampoline", expected.calls_back, str(seen.calls_back)),
    ):
        if str(want) != got.split(" ")[0]:
            found.append(Mismatch("site", f"{function} {what}", str(want), got, rule))
    return found


def compare_watched(
    before: Prediction | None, after: Prediction, seen: Observation, functions: Sequence[str]
) -> tuple[Mismatch, ...]:
    """Registry texts that were read while a step was done: as before it, or as after it.

    ftrace_lock is held both while records change and while they are shown
    (kernel/trace/ftrace.c: t_start), so nothing else may ever be seen.  ``before``
    None: nothing was attached.
    """
    for function in functions:
        earlier = before.registry[function] if before else None
        later = after.registry[function]
        allowed = [later, earlier]
        for known in (later, earlier):
            if known and known.direct:
                # A trampoline that begins or ends to share is exchanged before or after the
                # IPMODIFY ops itself moves (register_ftrace_function), and while it is,
                # __modify_ftrace_direct puts a stub on the function.
                allowed.append(replace(known, jmp=None))
                # With it the function has more than one user, so nobody is named.
                allowed.append(
                    replace(
                        known, jmp=None, count=known.count + 1, flags=known.flags - {"O"}, ops=None
                    )
                )
        for registry in seen.watched:
            record = registry.get(function, FUNCTIONS[function].module)
            differences = [_compare_record(function, expected, record) for expected in allowed]
            if all(differences):
                first = differences[0][0]
                text = record.raw if record else "no record"
                return (replace(first, what=f"{function} meanwhile", seen=text),)
    return ()


def _compare_record(
    function: str, expected: RecordPrediction | None, seen: Record | None
) -> list[Mismatch]:
    rule = rules.RECORD_COUNTS_OPS.name
    if expected is None or seen is None:
        if expected is None and seen is None:
            return []
        return [
            Mismatch(
                "registry",
                function,
                _record_text(expected.to_json()) if expected else "no record",
                _record_text(_record_json(seen)) if seen else "no record",
                rule,
            )
        ]
    found = []

    def differ(what: str, want: object, got: object) -> None:
        found.append(Mismatch("registry", f"{function} {what}", str(want), str(got), rule))

    if seen.count != expected.count:
        differ("count", expected.count, seen.count)
    flags = {str(flag) for flag in seen.flags}
    if flags != expected.flags:
        differ("flags", " ".join(sorted(expected.flags)) or "-", " ".join(sorted(flags)) or "-")
    target = seen.direct.name if seen.direct else None
    if (target or "").startswith(expected.direct or "\0") is not (expected.direct is not None) or (
        expected.direct is None and target is not None
    ):
        differ("direct call", expected.direct, target)
    if expected.jmp is not None and seen.direct_jmp != expected.jmp:
        differ("direct(jmp)", expected.jmp, seen.direct_jmp)
    named = seen.ops[0].func.name if seen.ops else None
    if named != expected.ops:
        differ("ops", expected.ops, named)
    if seen.errors:
        differ("error marker", "none", ", ".join(seen.errors))
    return found


def _record_text(record: Mapping[str, Any] | None) -> str:
    if record is None:
        return "no record"
    direct = f" direct{'(jmp)' if record['jmp'] else ''}-->{record['direct']}"
    return f"({record['count']}) {' '.join(record['flags'])}{direct if record['direct'] else ''}"


def _compare_call(
    function: str, expected: BehaviourPrediction, call: Mapping[str, Any]
) -> list[Mismatch]:
    rule = rules.CALLS.name
    found = []
    if call["body"] != expected.body:
        found.append(
            Mismatch("behaviour", f"{function} body", expected.body, str(call["body"]), rule)
        )
    hits = {identity: stat["hits"] for identity, stat in call["seen"].items()}
    for identity in sorted(expected.hits.keys() | hits.keys()):
        want, got = expected.hits.get(identity, 0), hits.get(identity)
        if want != got:
            found.append(
                Mismatch("behaviour", f"{function} hits of {identity}", str(want), str(got), rule)
            )
    for identity, ret in _seen_returns(function, call).items():
        if ret != expected.ret:
            what = f"{function} return value at exit by {identity}"
            found.append(Mismatch("behaviour", what, str(expected.ret), str(ret), rule))
    if differ := _args_differ(call, expected.args):
        found.append(Mismatch("behaviour", f"{function} arguments", "intact", differ, rule))
    more = _more_json(call)
    shares = {identity: list(counts) for identity, counts in expected.shares.items()}
    for what, wanted, got, told in (
        ("calls of ops_func of", shares, more.get("shares", {}), rules.PEER_TOLD.name),
        ("trampoline of", expected.via, more.get("via", {}), rules.MODIFY_MOVES.name),
    ):
        for identity, value in wanted.items():
            if got.get(identity) != value:
                seen = str(got.get(identity))
                what = f"{function} {what} {identity}"
                found.append(Mismatch("behaviour", what, str(value), seen, told))
    return found


def compare_shared(
    prediction: Prediction, seen: Observation, functions: Sequence[str]
) -> tuple[Mismatch, ...]:
    """The witnesses that all functions share: livepatches, sysctl, strangers, the log."""
    found = []
    patches = {name: dict(values) for name, values in seen.livepatch.items()}
    if patches != prediction.livepatch:
        found.append(
            Mismatch(
                "registry",
                "livepatch sysfs",
                str(prediction.livepatch),
                str(patches),
                rules.RECORD_COUNTS_OPS.name,
            )
        )
    if seen.ftrace_enabled != prediction.ftrace_enabled:
        found.append(
            Mismatch(
                "registry",
                "kernel.ftrace_enabled",
                str(prediction.ftrace_enabled),
                str(seen.ftrace_enabled),
                rules.PERMANENT_KEEPS_ENABLED.name,
            )
        )
    ours = {(f, FUNCTIONS[f].module) for f in functions}
    strangers = [
        r.raw.strip() for r in seen.registry.records if (r.function, r.module) not in ours
    ] + [text.strip() for text in seen.registry.unknown]
    if strangers:
        found.append(
            Mismatch(
                "registry",
                "other functions",
                "none",
                "; ".join(strangers[:3]),
                rules.REFUSED_NO_TRACE.name,
            )
        )
    texts = [str(record["text"]) for record in seen.log]
    for wanted in prediction.log:
        if not any(wanted in text for text in texts):
            found.append(Mismatch("log", "message", wanted, "none", prediction.rule.name))
    expected = [title for title in seen.findings if _is_report(prediction, title)]
    if prediction.report and not any(prediction.report[0] in title for title in expected):
        found.append(
            Mismatch("log", "kernel report", prediction.report[0], "none", prediction.rule.name)
        )
    for title in seen.findings:
        if title not in expected:
            found.append(Mismatch("log", "kernel report", "none", title, prediction.rule.name))
    if not seen.log_complete:
        found.append(
            Mismatch("log", "completeness", "all records", "records were lost", "log-complete")
        )
    return tuple(found)


def _is_report(prediction: Prediction, title: str) -> bool:
    return any(text in title for text in prediction.report)


def unexpected(prediction: Prediction, findings: Sequence[str]) -> list[str]:
    """The kernel's reports that the step was not meant to cause."""
    return [title for title in findings if not _is_report(prediction, title)]
