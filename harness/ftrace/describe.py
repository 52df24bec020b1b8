# SPDX-License-Identifier: GPL-2.0-only
"""Records in words: one canonical line each, and how two of them differ."""

from __future__ import annotations

from harness.ftrace.records import Column, Ops, Record, SubOps, Symbol, Trampoline


def render(record: Record) -> str:
    """Return the record as one line, the same on every boot and build.

    Flags come in the order of ``Column``; addresses, sizes and column spacing
    are left out.  Pieces that were not understood come quoted and escaped.
    """
    parts = [" ".join([f"{record.title} ({record.count})", *_ordered(record.flags)])]
    if record.invalid:
        parts.append("not a function any more")
    if record.call:
        parts.append(f"->{record.call.label}")
    for tramp in record.tramp:
        parts.append(f"tramp: {_tramp(tramp)}")
    for ops in record.ops:
        parts.append(f"ops: {ops.ops.label} ({ops.func.label}){_subops(ops)}")
    if record.direct:
        parts.append(f"direct{'(jmp)' if record.direct_jmp else ''}-->{record.direct.label}")
    parts += record.errors
    parts += [f"not understood: {piece!a}" for piece in record.unknown]
    return "; ".join(parts)


def diff(before: Record | None, after: Record | None) -> tuple[str, ...]:
    """Return short sentences on what changed; none if nothing did.

    Compared are the count, the flags, the direct trampoline and whether it is
    jumped to, the functions that the call site reaches, and error markers: by
    name, never by address or size.  None stands for a function without a record.
    """
    if before is None or after is None:
        if after is not None:
            return (f"the record appeared: {render(after)}",)
        return (f"the record went: {render(before)}",) if before is not None else ()
    said: list[str] = []
    if before.count != after.count:
        said.append(f"the count went from {before.count} to {after.count}")
    said += [f"flag {flag} was set" for flag in _ordered(after.flags - before.flags)]
    said += [f"flag {flag} was cleared" for flag in _ordered(before.flags - after.flags)]
    said += _diff_direct(before, after)
    old, new = _reached(before), _reached(after)
    if old != new:
        said.append(f"the call site reaches {_listed(new)}, before {_listed(old)}")
    said += [f"marker '{mark}' appeared" for mark in after.errors if mark not in before.errors]
    said += [f"marker '{mark}' went" for mark in before.errors if mark not in after.errors]
    return tuple(said)


def _diff_direct(before: Record, after: Record) -> list[str]:
    old = before.direct.label if before.direct else ""
    new = after.direct.label if after.direct else ""
    if not old or not new:
        if new:
            return [f"a direct {_way(after)} to {new} came"]
        return [f"the direct {_way(before)} to {old} went"] if old else []
    said = []
    if old != new:
        said.append(f"the direct target changed from {old} to {new}")
    if before.direct_jmp != after.direct_jmp:
        said.append(f"the direct {_way(before)} became a {_way(after)}")
    return said


def _way(record: Record) -> str:
    return "jmp" if record.direct_jmp else "call"


def _ordered(flags: frozenset[str]) -> list[str]:
    return [column.value for column in Column if column in flags]


def _reached(record: Record) -> tuple[str, ...]:
    """Names of the functions that the call site reaches, as far as it is printed."""
    if record.call:
        return (record.call.label,)
    if record.tramp:
        return tuple((tramp.call or tramp.func).label for tramp in record.tramp)
    return tuple(ops.func.label for ops in record.ops)


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names) or "nothing that is printed"


def _tramp(tramp: Trampoline) -> str:
    call = f" ->{tramp.call.label}" if tramp.call else ""
    return f"{tramp.trampoline.label} ({tramp.func.label}){call}{_subops(tramp)}"


def _subops(owner: Trampoline | Ops) -> str:
    if not owner.subops:
        return ""
    return " subops: " + " ".join(map(_one_subops, owner.subops))


def _one_subops(sub: SubOps) -> str:
    if sub.entry:
        return f"{{ent:{sub.entry.label} ret:{_or_none(sub.ret)}}}"
    func = _or_none(sub.func)
    if not sub.trampoline:
        return f"{{{func}}}"
    call = f" ->{sub.call.label}" if sub.call else ""
    return f"{{{sub.trampoline.label} ({func})}}{call}"


def _or_none(symbol: Symbol | None) -> str:
    return symbol.label if symbol else "none"
