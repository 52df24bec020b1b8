# SPDX-License-Identifier: GPL-2.0-only
"""The channel: whole messages out of any bytes, or a ChannelError, never anything else."""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.agent.channel import MAX_MESSAGE, ChannelError, Reader, pack

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

messages = st.dictionaries(
    st.text(max_size=5),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
        max_leaves=6,
    ),
    max_size=5,
)


def stream(data: bytes, cuts: list[int]) -> Callable[[int], bytes]:
    """read(n) that gives the data in pieces of these sizes, then in whatever is asked for."""
    place, sizes = 0, iter(cuts)

    def read(size: int) -> bytes:
        nonlocal place
        assert size > 0
        piece = data[place : place + min(size, next(sizes, size))]
        place += len(piece)
        return piece

    return read


def read_all(data: bytes, cuts: list[int] | None = None) -> list[dict[str, Any]]:
    reader = Reader(stream(data, cuts or []))
    found = []
    while (message := reader.message()) is not None:
        found.append(message)
    return found


@unhurried
@given(st.lists(messages, max_size=5), st.lists(st.integers(1, 9), max_size=200))
def test_any_split(sent: list[dict[str, Any]], cuts: list[int]) -> None:
    assert read_all(b"".join(map(pack, sent)), cuts) == sent


@unhurried
@given(st.lists(messages, min_size=1, max_size=3), st.data())
def test_cut_short(sent: list[dict[str, Any]], data: st.DataObject) -> None:
    packed = [pack(message) for message in sent]
    whole = b"".join(packed)
    end = data.draw(st.integers(0, len(whole)))
    ends = [sum(map(len, packed[:n])) for n in range(len(packed) + 1)]
    if end in ends:
        assert read_all(whole[:end]) == sent[: ends.index(end)]
        return
    reader = Reader(stream(whole[:end], []))
    for message in sent[: sum(e <= end for e in ends) - 1]:
        assert reader.message() == message
    with pytest.raises(ChannelError, match="in the middle of a message"):
        reader.message()


def test_every_place_to_stop() -> None:
    whole = pack({"op": "observe", "id": 7})
    for end in range(1, len(whole)):
        with pytest.raises(ChannelError, match="in the middle"):
            read_all(whole[:end])
    assert read_all(b"") == []


def test_form() -> None:
    assert pack({"op": "é"}) == struct.pack(">I", 15) + b'{"op":"\\u00e9"}'


@pytest.mark.parametrize("size", [MAX_MESSAGE + 1, 0x7FFFFFFF, 0xFFFFFFFF])
def test_oversized_is_refused_before_it_is_read(size: int) -> None:
    asked: list[int] = []
    source = stream(struct.pack(">I", size) + b"x" * 100, [])

    def read(count: int) -> bytes:
        asked.append(count)
        return source(count)

    with pytest.raises(ChannelError, match=f"{size} bytes: the stream is garbled"):
        Reader(read).message()
    assert asked == [4]


def test_text_from_somewhere_else() -> None:
    """What a shell, a kernel message or a terminal might put into the stream."""
    for text in (b"bash: no job control in this shell\n", b"\x1b[0m# ", b"[    1.0] BUG: x\n" * 9):
        with pytest.raises(ChannelError):
            read_all(text)


@pytest.mark.parametrize(
    "body",
    [b"", b" ", b"{", b"{}x", b"nul", b"[1]", b"7", b'"text"', b"null", b"true", b"\xff\xfe",
     b"\xff" * 20, b'{"a":}', b"{'a': 1}", b"[" * 100_000, b'{"a":' * 50_000,
     b'{"a":' + b"9" * 5000 + b"}"],
    ids=lambda b: repr(b[:8]),
)  # fmt: skip
def test_not_a_message(body: bytes) -> None:
    with pytest.raises(ChannelError):
        read_all(struct.pack(">I", len(body)) + body)


@unhurried
@given(st.binary(max_size=300), st.lists(st.integers(1, 9), max_size=50))
def test_garbage(data: bytes, cuts: list[int]) -> None:
    try:
        found = read_all(data, cuts)
    except ChannelError:
        return
    assert all(isinstance(message, dict) for message in found)


@unhurried
@given(messages, st.data())
def test_one_wrong_byte(message: dict[str, Any], data: st.DataObject) -> None:
    packed = bytearray(pack(message))
    packed[data.draw(st.integers(0, len(packed) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        found = read_all(bytes(packed))
    except ChannelError:
        return
    assert all(isinstance(m, dict) for m in found)


def test_unfinished_business_of_one_side_is_no_end() -> None:
    """Over a real socket, both ways at a time, with messages larger than any buffer."""
    ours, theirs = socket.socketpair()
    text = "x" * 3_000_000

    def answer() -> None:
        reader = Reader(theirs.recv)
        while (request := reader.message()) is not None:
            theirs.sendall(pack({"id": request["id"], "text": request["text"]}))
        theirs.close()

    other = threading.Thread(target=answer)
    other.start()
    reader = Reader(ours.recv)
    for number in range(3):
        ours.sendall(pack({"id": number, "text": text}))
        assert reader.message() == {"id": number, "text": text}
    ours.shutdown(socket.SHUT_WR)
    assert reader.message() is None
    other.join()
    ours.close()


def test_pipe_that_is_closed_in_the_middle() -> None:
    read_end, write_end = os.pipe()
    whole = pack({"op": "step"})
    os.write(write_end, whole + whole[:-1])
    os.close(write_end)
    reader = Reader(lambda size: os.read(read_end, size))
    assert reader.message() == {"op": "step"}
    with pytest.raises(ChannelError):
        reader.message()
    os.close(read_end)


def test_largest_message_is_taken() -> None:
    body = json.dumps({"a": "x" * (MAX_MESSAGE - 9)}).encode()
    assert len(body) == MAX_MESSAGE
    (found,) = read_all(struct.pack(">I", len(body)) + body)
    assert len(found["a"]) == MAX_MESSAGE - 9
