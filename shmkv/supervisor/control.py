"""The control socket: a unix socket in the runtime directory, requests and answers as JSON lines.

Why here: server and client of one small protocol in one file. A request is {"do": NAME, ...}, its
answer {"ok": true, ...} or {"ok": false, "error": TEXT}; handlers return data, the client prints.

Invariants:
  I1  The socket lies in a directory that only this user may enter, and the caller's user id is checked.
  I2  A line that is too long, is no JSON object or comes too slowly ends that connection, no other.
  I3  Nothing here blocks the supervisor: all sockets are non-blocking, an answer that can't be written
      at once ends its connection.
  I4  A client that asked for a shutdown sees the end of the connection when the supervisor has ended.
"""

from __future__ import annotations

import os
import selectors
import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from shmkv import errors, paths
from shmkv.supervisor.lines import LineReader, Message, ProtocolError, encode

CONNECTION_LIMIT = 16
REQUEST_DEADLINE_S = 5.0
READ_BYTES = 65536

Handler = Callable[[Message], Message]


class Connection:
    """One client of the control socket."""

    def __init__(self, stream: socket.socket, deadline_s: float) -> None:
        self.stream = stream
        self.deadline_s = deadline_s
        self.reader = LineReader()
        self.keep = False


class ControlServer:
    """Listens in a selector that it shares with the loop; `handlers` maps a request's "do" to its function."""

    def __init__(self, runtime_dir: str, selector: selectors.BaseSelector, handlers: Mapping[str, Handler]) -> None:
        """Bind; a socket file that is there is a dead one, since the lock of this directory is ours."""
        self.path = paths.control_path(runtime_dir)
        self._selector = selector
        self._handlers = handlers
        self._connections: dict[int, Connection] = {}
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        if os.path.exists(self.path):
            os.unlink(self.path)
        with short_path(self.path) as address:
            self._listener.bind(address)
        os.chmod(self.path, 0o600)
        self._listener.listen(CONNECTION_LIMIT)
        selector.register(self._listener, selectors.EVENT_READ, self.accept)

    def accept(self, now_s: float) -> None:
        """Take one client; too many, or another user's, are closed at once."""
        try:
            stream, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        stream.setblocking(False)
        if len(self._connections) >= CONNECTION_LIMIT or peer_user(stream) not in (os.geteuid(), 0):
            stream.close()
            return
        connection = Connection(stream, now_s + REQUEST_DEADLINE_S)
        self._connections[stream.fileno()] = connection
        self._selector.register(stream, selectors.EVENT_READ, lambda now_s: self._serve(connection, now_s))

    def _serve(self, connection: Connection, now_s: float) -> None:
        try:
            data = connection.stream.recv(READ_BYTES)
            if not data:
                self._drop(connection)
                return
            for request in connection.reader.feed(data):
                connection.stream.sendall(encode(self._answer(connection, request)))
                connection.deadline_s = now_s + REQUEST_DEADLINE_S
        except ProtocolError as error:
            # The last word of this connection; a client that does not read it has lost nothing.
            connection.stream.send(encode({"ok": False, "error": str(error)}), socket.MSG_DONTWAIT)
            self._drop(connection)
        except OSError:
            self._drop(connection)

    def _answer(self, connection: Connection, request: Message) -> Message:
        name = request.get("do")
        handler = self._handlers.get(name) if isinstance(name, str) else None
        if handler is None:
            known = ", ".join(sorted(self._handlers))
            return {"ok": False, "error": f"unknown request {str(name)[:40]!r}; known are {known}"}
        answer = handler(request)
        connection.keep = connection.keep or bool(answer.get("until_end"))
        return {"ok": True, **answer}

    def drop_late(self, now_s: float) -> None:
        """Close connections whose deadline is over, except those that wait for the end."""
        for connection in list(self._connections.values()):
            if now_s > connection.deadline_s and not connection.keep:
                self._drop(connection)

    def next_deadline(self) -> float | None:
        """Monotonic second of the next deadline."""
        return min((each.deadline_s for each in self._connections.values() if not each.keep), default=None)

    def _drop(self, connection: Connection) -> None:
        self._connections.pop(connection.stream.fileno(), None)
        self._selector.unregister(connection.stream)
        connection.stream.close()

    def stop_listening(self) -> None:
        """Remove the socket file; who is connected stays so until `close`."""
        self._selector.unregister(self._listener)
        self._listener.close()
        if os.path.exists(self.path):
            os.unlink(self.path)

    def close(self) -> None:
        """Close the connections, after `stop_listening`: to who waits for it, this is the end."""
        for connection in list(self._connections.values()):
            self._drop(connection)


def peer_user(stream: socket.socket) -> int:
    """User id of the process at the other end."""
    credentials = stream.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[1])


@contextmanager
def short_path(path: str) -> Iterator[str]:
    """An address for a socket file whose path may be longer than a socket address: through its directory."""
    if len(os.fsencode(path)) <= paths.SOCKET_PATH_LIMIT:
        yield path
        return
    directory = os.open(os.path.dirname(path), os.O_PATH | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{os.path.basename(path)}"
    finally:
        os.close(directory)


def find_control(name: str) -> str | None:
    """Path of the control socket of a running supervisor; None if none answers."""
    for runtime in paths.runtime_dirs(name):
        path = paths.control_path(runtime)
        try:
            connect(path, 1.0).close()
        except OSError:
            continue
        return path
    return None


def connect(path: str, timeout_s: float) -> socket.socket:
    """A connection to a control socket; OSError if nobody listens."""
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    stream.settimeout(timeout_s)
    try:
        with short_path(path) as address:
            stream.connect(address)
    except BaseException:
        stream.close()
        raise
    return stream


def ask(path: str, request: Message, timeout_s: float = 5.0, *, until_end: bool = False) -> dict[str, Any]:
    """Send one request and return the answer; with `until_end` also wait until the supervisor has ended.

    Raises StoreUnavailable when nobody answers in time, or the answer is a refusal.
    """
    try:
        stream = connect(path, timeout_s)
        with stream:
            stream.sendall(encode(request))
            reader = LineReader()
            messages: list[Message] = []
            while not messages:
                data = stream.recv(READ_BYTES)
                if not data:
                    raise ConnectionError("the supervisor closed the connection")
                messages = reader.feed(data)
            while until_end and stream.recv(READ_BYTES):
                pass
    except OSError as error:
        raise errors.StoreUnavailable(
            f"control socket {path} did not answer within {timeout_s:g} s ({error}); is the supervisor running?"
        ) from None
    if not messages[0].get("ok"):
        raise errors.StoreUnavailable(f"the supervisor refused: {messages[0].get('error')}")
    return messages[0]
