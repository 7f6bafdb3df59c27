"""The two pipes of a persister: commands in, events out, one JSON object a line.

Why here: the loop must never wait for its supervisor. A reader thread sleeps in read(2) and leaves the order where
the loop looks; an event that does not fit into the pipe is kept or dropped, never waited for.

Invariants:
  I1  emit() does not block; any thread may call it. A heartbeat that does not fit is dropped; everything else is sent
      before the next event.
  I2  An order is final: the first one counts. The end of the command pipe (the supervisor died) is an order.
  I3  A request for a job is kept until the loop takes it; those behind an order are not read.
"""

from __future__ import annotations

import json
import os
import threading
from collections import deque
from typing import Any

STOP, RETIRE, JOB = "stop", "retire", "job"
READ_BYTES = 4096
LINE_LIMIT_BYTES = 65536


class Events:
    """Writes events to a descriptor that it makes non-blocking."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._unsent = b""
        self._closed = False
        self._lock = threading.Lock()
        os.set_blocking(fd, False)

    def emit(self, event: str, *, droppable: bool = False, **fields: Any) -> None:
        """Send one event."""
        line = json.dumps({"event": event, **fields}, separators=(",", ":"), default=str).encode() + b"\n"
        with self._lock:
            if not (droppable and self._unsent):
                self._unsent += line
            self._send()

    def _send(self) -> None:
        while self._unsent and not self._closed:
            try:
                self._unsent = self._unsent[os.write(self._fd, self._unsent) :]
            except BlockingIOError:
                return
            except BrokenPipeError:
                # The supervisor is gone; the end of the command pipe says so too.
                self._closed = True


class Orders:
    """The command pipe: `pending` is the order that came, None while there is none; `requests` are jobs to do.

    switch: with the order to retire, the generation that is the whole store from then on; None = none.
    """

    def __init__(self) -> None:
        self.pending: str | None = None
        self.switch: int | None = None
        self.requests: deque[dict[str, Any]] = deque()
        self._came = threading.Event()

    def listen(self, fd: int) -> None:
        """Read commands in a thread of its own, for the life of the process."""
        threading.Thread(target=self._read, args=(fd,), name="commands", daemon=True).start()

    def give(self, order: str, *, switch: int | None = None) -> None:
        """Set the order, unless there is one."""
        if self.pending is None:
            # Whoever sees the order sees what belongs to it.
            self.switch = switch
            self.pending = order
        self._came.set()

    def wait(self, timeout_s: float) -> None:
        """Until there is an order, or timeout_s."""
        self._came.wait(timeout_s)

    def _read(self, fd: int) -> None:
        rest = b""
        while self.pending is None and (data := os.read(fd, READ_BYTES)):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self._take(line)
            if len(rest) > LINE_LIMIT_BYTES:
                break
        self.give(STOP)

    def _take(self, line: bytes) -> None:
        """Obey one line; a command that a persister does not know is left alone."""
        try:
            message = json.loads(line)
        except ValueError:
            return
        order = message.get("do") if isinstance(message, dict) else None
        if order in (STOP, RETIRE):
            switch = message.get("switch")
            self.give(order, switch=switch if isinstance(switch, int) else None)
        elif order == JOB and self.pending is None:
            self.requests.append(message)
