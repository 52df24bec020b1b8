# SPDX-License-Identifier: GPL-2.0-only
"""Values out of step objects; each raises UsageError for one that is none."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from harness.errors import UsageError

from .functions import FUNCTIONS
from .steps import ANY

Data = Mapping[str, Any]


def text(data: Data, key: str) -> str:
    """A text that is not empty."""
    value = data.get(key)
    if not isinstance(value, str) or not value:
        raise UsageError(f"a step needs {key!r} as text: {json.dumps(dict(data))}")
    return value


def flag(data: Data, key: str, default: bool = False) -> bool:
    """True or false."""
    value = data.get(key, default)
    if not isinstance(value, bool):
        raise UsageError(f"{key!r} is true or false: {json.dumps(dict(data))}")
    return value


def number(data: Data, key: str, default: int, least: int = 0) -> int:
    """A whole number, from ``least`` on."""
    value = data.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UsageError(f"{key!r} is a whole number from {least} on, not {json.dumps(value)}")
    return value


def one_of(data: Data, key: str, known: Sequence[str], default: str | None = None) -> str:
    """One of the known values."""
    value = data.get(key, default) if default is not None else text(data, key)
    if value not in known:
        raise UsageError(f"there is no {key} {value!r}", f"known: {', '.join(filter(None, known))}")
    return str(value)


def function(name: object) -> str:
    """A function's name, or ANY."""
    if not isinstance(name, str) or (name != ANY and name not in FUNCTIONS):
        shown = [f.name for f in FUNCTIONS.values() if f.lane is None]
        raise UsageError(
            f"there is no function {name!r}",
            f"known: {ANY}, {', '.join(shown)}, and the lanes security_cohabit_000 ...",
        )
    return name
