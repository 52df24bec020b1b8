# SPDX-License-Identifier: GPL-2.0-only
"""Programs that the agent runs: here on this machine."""

from __future__ import annotations

import os
import select
import signal
import sys

import pytest

from harness.agent import programs


def test_status_and_both_streams_in_order() -> None:
    result = programs.run(["sh", "-c", "echo one; echo two >&2; echo three; exit 7"], 60.0)
    assert (result["status"], result["output"]) == (7, "one\ntwo\nthree\n")
    assert 0 < result["seconds"] < 60


def test_signal() -> None:
    assert programs.run(["sh", "-c", "kill -9 $$"], 60.0)["status"] == -signal.SIGKILL


def test_no_such_program() -> None:
    with pytest.raises(FileNotFoundError):
        programs.run(["/nonexistent/program"], 60.0)


def test_too_slow() -> None:
    result = programs.run(["sh", "-c", "echo begun; sleep 1000"], 0.5)
    assert (result["status"], result["output"]) == (None, "begun\n")


def test_what_it_left_running_is_killed() -> None:
    """And it is not waited for, though it has the output open."""
    code = "import os, time; pid = os.fork(); time.sleep(1000) if pid == 0 else print(pid)"
    result = programs.run([sys.executable, "-c", code], 60.0)
    assert result["status"] == 0
    try:
        child = os.pidfd_open(int(result["output"]))
    except ProcessLookupError:
        return
    try:
        ended, _, _ = select.select([child], [], [], 60.0)
        assert ended
    finally:
        os.close(child)


def test_only_the_end_of_a_long_output() -> None:
    limit = programs.OUTPUT_LIMIT
    code = f"import sys; sys.stdout.write('a' * {limit} + 'z' * {limit})"
    assert programs.run([sys.executable, "-c", code], 60.0)["output"] == "z" * limit


def test_output_that_is_no_text() -> None:
    assert programs.run(["printf", "\\377"], 60.0)["output"] == "\\xff"
