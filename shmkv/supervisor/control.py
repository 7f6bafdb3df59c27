"""The control socket: a unix socket in the runtime directory, requests and answers as JSON lines.

Why here: server and client of one small protocol in one file. A request is {"do": NAME, ...}, its
answer {"ok": true, ...} or {"ok": false, "error": TEXT, "kind": CLASS}; handlers return data, the client prints.
A client that follows a job gets the events of that job behind the answer, one a line.

Invariants:
  I1  The socket lies in a directory that only this user may enter, and the caller's user id is checked.
  I2  A line that is too long, is no JSON object or comes too slowly ends that connection, no other.
  I3  Nothing here blocks the supervisor: all sockets are non-blocking, an answer that can't be written
      at once ends its connection.
  I4  A client that asked for a shutdown sees the end of the connection when the supervisor has ended.
  I5  A follower gets the last event of its job, or the end of its connection.
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

CONNECTION_LIMIT = 64
REQUEST_DEADLINE_S = 5.0
READ_BYTES = 65536
ANSWER_TIMEOUT_S = 5.0
MEMORY_ONLY = (
    "this store is memory only: it has no data directory for that; start it with one (--data-dir, or "
    "launch(data_dir=...)), or copy its keys with shmkv-admin export"
)

Handler = Callable[[Message], Message]


class RequestRefused(Exception):
    """A handler can't do what was asked: the name of a class of shmkv.errors (or a built-in), and the reason."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


class Connection:
    """One client of the control socket."""

    def __init__(self, stream: socket.socket, deadline_s: float) -> None:
        self.stream = stream
        self.deadline_s = deadline_s
        self.reader = LineReader()
        self.keep = False
        self.follows: set[str] = set()

    @property
    def is_waiting(self) -> bool:
        """Whether it is our turn to speak, however long that takes."""
        return self.keep or bool(self.follows)


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
        try:
            answer = handler(request)
        except RequestRefused as refusal:
            return {"ok": False, "error": str(refusal), "kind": refusal.kind}
        connection.keep = connection.keep or bool(answer.get("until_end"))
        if "follow" in answer:
            connection.follows.add(answer["follow"])
        return {"ok": True, **answer}

    def publish(self, topic: str, message: Message, last: bool) -> None:
        """Send one event to all who follow; one that can't take it at once loses its connection."""
        for connection in list(self._connections.values()):
            if topic not in connection.follows:
                continue
            if last:
                connection.follows.discard(topic)
            try:
                connection.stream.sendall(encode(message))
            except OSError:
                self._drop(connection)

    def drop_late(self, now_s: float) -> None:
        """Close connections whose deadline is over, except those that wait for the end, or for a job."""
        for connection in list(self._connections.values()):
            if connection.is_waiting:
                connection.deadline_s = now_s + REQUEST_DEADLINE_S
            elif now_s > connection.deadline_s:
                self._drop(connection)

    def next_deadline(self) -> float | None:
        """Monotonic second of the next deadline."""
        return min((each.deadline_s for each in self._connections.values() if not each.is_waiting), default=None)

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
    check_answer(messages[0])
    return messages[0]


def check_answer(answer: Message) -> None:
    """Raise what a refusal says."""
    if not answer.get("ok"):
        kind = answer.get("kind")
        if kind:
            raise error_of(kind, str(answer.get("error")))
        raise errors.StoreUnavailable(f"the supervisor refused: {answer.get('error')}")


def error_of(kind: str, text: str) -> Exception:
    """An error of the other side as an exception of this one; ShmkvError for a class that is not known here."""
    known = getattr(errors, kind, None)
    if isinstance(known, type) and issubclass(known, errors.ShmkvError) and known is not errors.KeyNotFound:
        return known(text)
    builtin = {"ValueError": ValueError, "TypeError": TypeError, "OSError": OSError, "TimeoutError": TimeoutError,
               "FileNotFoundError": FileNotFoundError, "PermissionError": PermissionError}  # fmt: skip
    return builtin.get(kind, errors.ShmkvError)(text)


def follow(path: str, request: Message, timeout_s: float | None = None) -> Iterator[Message]:
    """Start a job and yield its events until the last one, whose state is "done" or "failed".

    `timeout_s`: longest silence. Closing the iterator leaves the job running. Raises what the supervisor refused with,
    StoreUnavailable when it ends before the job does.
    """
    try:
        stream = connect(path, ANSWER_TIMEOUT_S)
        with stream:
            stream.sendall(encode({**request, "do": "start_job", "follow": True}))
            reader = LineReader()
            answered = False
            while data := stream.recv(READ_BYTES):
                for message in reader.feed(data):
                    if not answered:
                        check_answer(message)
                        answered = True
                        stream.settimeout(timeout_s)
                    yield message
                    if message.get("state") in ("done", "failed"):
                        return
    except TimeoutError:
        raise errors.StoreUnavailable(
            f"the supervisor said nothing about the job for {timeout_s or ANSWER_TIMEOUT_S:g} s; it may still run: "
            f"look with shmkv-admin stats"
        ) from None
    except OSError as error:
        if isinstance(error, errors.ShmkvError):
            raise
        raise errors.StoreUnavailable(f"control socket {path} failed ({error}); is the supervisor running?") from None
    raise errors.StoreUnavailable("the supervisor ended before the job did")
