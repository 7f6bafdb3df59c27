"""JSON objects, one a line, over pipes and sockets: how supervisor, children and administration talk.

Why here: one framing with one size limit for all of them.

Invariants:
  I1  A line is at most LINE_LIMIT bytes; a longer one ends the conversation, it is never cut in two.
  I2  Only objects are messages; anything else is a ProtocolError, which names what came.
"""

import json
from typing import Any

LINE_LIMIT = 65536
Message = dict[str, Any]


class ProtocolError(ValueError):
    """The other side sent something that is not a line with a JSON object."""


class LineReader:
    """Collects bytes and gives back the messages that are complete."""

    def __init__(self, limit: int = LINE_LIMIT) -> None:
        self._limit = limit
        self._rest = b""

    def feed(self, data: bytes) -> list[Message]:
        """Messages that end within `data`; ProtocolError for a line that is too long or no object."""
        *complete, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > self._limit or any(len(line) > self._limit for line in complete):
            raise ProtocolError(f"a line is longer than {self._limit} bytes")
        return [decode(line) for line in complete if line.strip()]


def decode(line: bytes) -> Message:
    """One message of one line."""
    try:
        message = json.loads(line)
    except ValueError:
        raise ProtocolError(f"not JSON: {line[:60]!r}") from None
    if not isinstance(message, dict):
        raise ProtocolError(f"not an object: {line[:60]!r}")
    return message


def encode(message: Message) -> bytes:
    """One line of one message."""
    return json.dumps(message, separators=(",", ":"), default=str).encode() + b"\n"
