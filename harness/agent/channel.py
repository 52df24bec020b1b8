# SPDX-License-Identifier: GPL-2.0-only
"""Length-prefixed JSON over a byte stream: four bytes (big endian), then text.

Both ends use this file: the agent on a virtio-serial port, the harness on the
socket behind it.
"""

from __future__ import annotations

import json
import struct
from typing import Any, Callable, Optional

#: A longer message is a broken stream, not a message.
MAX_MESSAGE = 64 << 20


class ChannelError(Exception):
    """The stream ended, or what came is no message."""


def pack(message: dict[str, Any]) -> bytes:
    """The bytes of one message."""
    body = json.dumps(message, separators=(",", ":")).encode()
    return struct.pack(">I", len(body)) + body


class Reader:
    """Takes messages from a stream.

    ``read(n)`` gives up to n bytes and b"" at the end of the stream.
    """

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read

    def _exactly(self, size: int) -> Optional[bytearray]:
        data = bytearray()
        while len(data) < size:
            more = self._read(min(size - len(data), 1 << 16))
            if not more:
                if data:
                    raise ChannelError("the stream ended in the middle of a message")
                return None
            data += more
        return data

    def message(self) -> Optional[dict[str, Any]]:
        """The next message, or None where the stream ended between messages.

        Raises ChannelError for a stream that ends inside one or is garbled.
        """
        head = self._exactly(4)
        if head is None:
            return None
        (size,) = struct.unpack(">I", head)
        if size > MAX_MESSAGE:
            raise ChannelError("a message of %d bytes: the stream is garbled" % size)
        body = self._exactly(size)
        if body is None:
            raise ChannelError("the stream ended in the middle of a message")
        try:
            message = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise ChannelError("not JSON: %s" % error) from error
        if not isinstance(message, dict):
            raise ChannelError("not a message: %r" % (message,))
        return message
