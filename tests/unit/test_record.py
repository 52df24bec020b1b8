# SPDX-License-Identifier: GPL-2.0-only
"""The record of a run: whole lines, no gaps, and words for a disk that is full."""

from __future__ import annotations

import contextlib
import json
import resource
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from harness.errors import InfraError, UsageError
from harness.report.model import read
from harness.run.record import FORMAT, Record, new_directory

REPOSITORY = Path(__file__).resolve().parents[2]


def events(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "events.jsonl").read_text().splitlines()]


def test_each_event_is_a_line_at_once(tmp_path: Path) -> None:
    with Record(tmp_path) as record:
        record.event("run_start", format=FORMAT, argv=["run"])
        # Whoever reads the file while the run goes on sees it.
        (first,) = events(tmp_path)
        assert first == {"seq": 0, "t": first["t"], "type": "run_start", "format": 1,
                         "argv": ["run"]}  # fmt: skip
        record.note("line one\nline two", "warning")
        assert len(events(tmp_path)) == 2
    last = events(tmp_path)[-1]
    assert (last["type"], last["text"], last["level"]) == ("note", "line one\nline two", "warning")
    assert 0 <= first["t"] <= last["t"]
    assert record.console("vm3") == tmp_path / "console-vm3.log"


def test_text_of_any_kind_stays_one_line(tmp_path: Path) -> None:
    texts = ["\u2028\x85\x0b\r", "\x00\x1b[31m", "ü€😀", "\udc80 from surrogateescape"]
    with Record(tmp_path) as record:
        for text in texts:
            record.note(text)
    data = (tmp_path / "events.jsonl").read_bytes()
    assert data.count(b"\n") == len(texts)
    assert [json.loads(line)["text"] for line in data.split(b"\n")[:-1]] == texts


def test_no_gaps_from_several_threads(tmp_path: Path) -> None:
    heard: list[int] = []

    def listen(event: Mapping[str, Any]) -> None:
        heard.append(event["seq"])

    threads, each = 8, 200
    with Record(tmp_path, (listen,)) as record:
        start = threading.Barrier(threads)

        def write(number: int) -> None:
            start.wait()
            for count in range(each):
                record.event("note", text=f"{number}:{count}", level="info")

        workers = [threading.Thread(target=write, args=(n,)) for n in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    found = events(tmp_path)
    assert [e["seq"] for e in found] == list(range(threads * each)) == heard
    times = [e["t"] for e in found]
    assert times == sorted(times)
    for number in range(threads):
        mine = [e["text"] for e in found if e["text"].startswith(f"{number}:")]
        assert mine == [f"{number}:{count}" for count in range(each)]


def test_listeners_hear_what_is_written_in_their_order(tmp_path: Path) -> None:
    heard: list[tuple[str, object]] = []
    with Record(
        tmp_path, (lambda e: heard.append(("one", e)), lambda e: heard.append(("two", e)))
    ) as record:
        record.note("x")
    (event,) = events(tmp_path)
    assert heard == [("one", event), ("two", event)]


def test_what_json_cannot_say_leaves_no_half_line(tmp_path: Path) -> None:
    with Record(tmp_path) as record:
        record.note("before")
        with pytest.raises(TypeError):
            record.event("note", text=object())
        record.note("after")
    assert [e["seq"] for e in events(tmp_path)] == [0, 1]


def full_disk(directory: Path) -> Path:
    """A directory whose events.jsonl has no room at all."""
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    (directory / "events.jsonl").symlink_to("/dev/full")
    return directory


def test_full_disk(tmp_path: Path) -> None:
    heard: list[object] = []
    directory = full_disk(tmp_path)
    with (
        pytest.raises(InfraError, match="No space left") as caught,
        Record(directory, (heard.append,)) as record,
    ):
        record.note("x")
    assert str(tmp_path) in caught.value.message
    assert "COHABIT_CACHE" in caught.value.remedy
    assert caught.value.exit_status == 3
    assert heard == [], "a listener heard of what is not in the record"


def test_full_disk_at_the_end(tmp_path: Path) -> None:
    """A caller that goes on after the error meets it again, not a traceback."""
    directory = full_disk(tmp_path)
    with (
        pytest.raises(InfraError, match="No space left"),
        Record(directory) as record,
        contextlib.suppress(InfraError),
    ):
        record.note("x")


def test_two_runs_never_write_to_one_record(tmp_path: Path) -> None:
    with Record(tmp_path) as first:
        first.event("a")
        with pytest.raises(UsageError, match="another run") as caught:
            Record(tmp_path)
        assert "--output" in caught.value.remedy
        first.event("b")
        assert len((tmp_path / "events.jsonl").read_text().splitlines()) == 2
    with Record(tmp_path) as second:
        second.event("c")
    (line,) = (tmp_path / "events.jsonl").read_text().splitlines()
    assert json.loads(line)["type"] == "c"


def test_another_exception_is_not_hidden(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Record(tmp_path) as record:
        record.note("x")
        raise KeyboardInterrupt
    assert len(events(tmp_path)) == 1


KILLED = """
import os, signal, sys
from pathlib import Path
from harness.run.record import Record
record = Record(Path(sys.argv[1]))
record.event("run_start", format=1, argv=["run"])
for number in range(50):
    record.note(str(number))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_run_has_a_readable_record(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], cwd=REPOSITORY, check=False
    )
    assert done.returncode == -9
    assert [e["seq"] for e in events(tmp_path)] == list(range(51))
    assert read(tmp_path / "events.jsonl").cut_short


LIMITED = """
import sys
from pathlib import Path
from harness.errors import InfraError
from harness.run.record import Record
try:
    with Record(Path(sys.argv[1])) as record:
        for number in range(10000):
            record.note("x" * 100)
except InfraError as error:
    print(error.message)
"""


def test_a_limit_of_the_user_is_not_called_a_full_disk(tmp_path: Path) -> None:
    """EFBIG (ulimit -f)."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)],
        cwd=REPOSITORY,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"cannot write the run's record in {tmp_path}: File too large\n"


def test_new_directory(tmp_path: Path) -> None:
    runs = tmp_path / "not" / "yet"
    made = [new_directory(runs) for _ in range(5)]
    assert len(set(made)) == 5
    assert all(directory.is_dir() and directory.parent == runs for directory in made)
    # As `cohabit report` finds the newest.
    assert sorted(made) == made


def test_where_no_record_can_be(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    for attempt in (lambda: new_directory(file), lambda: Record(file), lambda: Record(file / "x")):
        with pytest.raises(InfraError, match="cannot write") as caught:
            attempt()
        assert "--output" in caught.value.remedy
