# SPDX-License-Identifier: GPL-2.0-only
"""What the host must have, as far as building from trees adds to it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from harness import needs
from harness.kernels import workspace


def need(name: str, cache: Path) -> needs.Need:
    (found,) = [each for each in needs.needs(True, cache) if each.name.startswith(name)]
    return found


def test_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "git"
    program.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert need("git", tmp_path).found == str(program)
    program.unlink()
    missing = need("git", tmp_path)
    assert missing.found is None
    assert "source trees" in missing.why
    assert "apt install git" in missing.remedy


def test_room_for_builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told where it is short; nothing that a run needs is missing for it."""
    monkeypatch.setattr(needs, "ROOM", 0)
    monkeypatch.setattr(workspace, "ROOM", {"plain": 0})
    assert str(need("room", tmp_path).found).endswith(" GB free")
    huge = (shutil.disk_usage(tmp_path).total // 10**9 + 1) * 10**9
    monkeypatch.setattr(workspace, "ROOM", {"plain": 4 * 10**9, "kasan": huge})
    told = f"; the first build from a tree takes 4 GB (plain), {huge / 1e9:.0f} GB (kasan)"
    assert str(need("room", tmp_path).found).endswith(f" GB free{told}")
