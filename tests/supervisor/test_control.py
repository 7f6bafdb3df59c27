"""The control socket: answers, refusals, limits, and clients that misbehave."""

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from shmkv import errors
from shmkv.supervisor import control
from shmkv.supervisor.control import ControlServer, RequestRefused, ask, connect
from shmkv.supervisor.lines import Message
from shmkv.supervisor.loop import Loop


class Server:
    """A control server whose loop runs in a thread until `stop`."""

    def __init__(self, directory: Path) -> None:
        self.loop = Loop()
        self.control = ControlServer(
            str(directory), self.loop.selector, {"status": self.status, "shutdown": self.shutdown}
        )
        self.path = self.control.path
        self._wake_read, self._wake_write = os.pipe()
        self._stopping = False
        self.loop.watch(self._wake_read, self._stop_now)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def status(self, request: Message) -> Message:
        return {"name": "orders", "seen": request.get("n")}

    def shutdown(self, request: Message) -> Message:
        os.write(self._wake_write, b"x")
        return {"until_end": True}

    def _stop_now(self, now_s: float) -> None:
        self._stopping = True

    def _run(self) -> None:
        while not self._stopping:
            self.loop.turn()
        self.control.stop_listening()
        self.control.close()
        self.loop.close()

    def stop(self) -> None:
        os.write(self._wake_write, b"x")
        self._thread.join(5)
        os.close(self._wake_read)
        os.close(self._wake_write)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    result = Server(tmp_path)
    yield result
    result.stop()
    assert not Path(result.path).exists()


def test_a_request_gets_its_answer(server: Server) -> None:
    assert ask(server.path, {"do": "status", "n": 7}) == {"ok": True, "name": "orders", "seen": 7}


def test_an_unknown_request_is_refused_and_the_known_ones_are_named(server: Server) -> None:
    with pytest.raises(errors.StoreUnavailable, match="known are shutdown, status"):
        ask(server.path, {"do": "dance"})


@pytest.mark.parametrize("rubbish", [b"hello\n", b"[]\n", b"x" * 70000])
def test_rubbish_ends_its_connection_and_no_other(server: Server, rubbish: bytes) -> None:
    with connect(server.path, 5) as good, connect(server.path, 5) as bad:
        bad.sendall(rubbish)
        assert b'"ok":false' in bad.recv(9999)
        assert bad.recv(9999) == b""
        good.sendall(b'{"do":"status"}\n')
        assert b'"ok":true' in good.recv(9999)


def test_a_client_that_is_cut_byte_by_byte_is_understood(server: Server) -> None:
    with connect(server.path, 5) as stream:
        for byte in b'{"do":"status"}\n':
            stream.sendall(bytes([byte]))
        assert b'"ok":true' in stream.recv(9999)


def test_more_clients_than_the_limit_are_closed(server: Server) -> None:
    streams = [connect(server.path, 5) for _ in range(control.CONNECTION_LIMIT + 1)]
    assert streams[-1].recv(1) == b""
    streams[0].sendall(b'{"do":"status"}\n')
    assert b'"ok":true' in streams[0].recv(9999)
    for stream in streams:
        stream.close()


def test_a_slow_client_is_closed_after_its_deadline(tmp_path: Path) -> None:
    loop = Loop()
    server = ControlServer(str(tmp_path), loop.selector, {})
    with connect(server.path, 5) as stream:
        stream.sendall(b'{"do"')
        loop.turn()
        loop.turn()
        server.drop_late(loop.clock() + control.REQUEST_DEADLINE_S - 0.5)
        assert server.next_deadline() is not None
        server.drop_late(loop.clock() + control.REQUEST_DEADLINE_S + 0.5)
        assert server.next_deadline() is None
        assert stream.recv(1) == b""
    server.stop_listening()
    server.close()
    loop.close()


def test_a_shutdown_is_answered_and_its_end_can_be_waited_for(server: Server) -> None:
    assert ask(server.path, {"do": "shutdown"}, until_end=True)["ok"]
    assert not Path(server.path).exists()


def test_nobody_there_is_said_with_the_path(tmp_path: Path) -> None:
    with pytest.raises(errors.StoreUnavailable, match=str(tmp_path)):
        ask(str(tmp_path / "control"), {"do": "status"})


def test_a_dead_socket_file_is_replaced_and_the_new_one_is_private(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "control"))
    loop = Loop()
    server = ControlServer(str(tmp_path), loop.selector, {})
    assert os.stat(server.path).st_mode & 0o777 == 0o600
    server.stop_listening()
    server.close()
    loop.close()


def test_a_path_longer_than_a_socket_address_works(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    server = Server(deep)
    assert ask(server.path, {"do": "status"})["ok"]
    server.stop()


class Following(Server):
    """A server with one job, whose events the test decides."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.requests: list[Message] = []
        handlers = self.control._handlers
        assert isinstance(handlers, dict)
        handlers["start_job"] = self.start_job

    def start_job(self, request: Message) -> Message:
        self.requests.append(request)
        if request["kind"] == "forbidden":
            raise RequestRefused("IncompatibleStore", "memory only")
        return {"job": "7", "state": "running", "follow": "7"}

    def publish(self, state: str, *, last: bool = False, **fields: object) -> None:
        self.control.publish("7", {"job": "7", "state": state, **fields}, last)


@pytest.fixture
def following(tmp_path: Path) -> Iterator[Following]:
    result = Following(tmp_path)
    yield result
    result.stop()


def test_a_follower_gets_every_event_up_to_the_last(following: Following) -> None:
    events = control.follow(following.path, {"kind": "snapshot", "n": 1})
    assert next(events)["state"] == "running"
    assert following.requests == [{"do": "start_job", "kind": "snapshot", "n": 1, "follow": True}]
    following.publish("running", done_bytes=5)
    assert next(events)["done_bytes"] == 5
    following.publish("done", last=True, result={"x": 1})
    assert next(events)["result"] == {"x": 1}
    assert list(events) == []


def test_a_refusal_is_raised_as_what_it_is(following: Following) -> None:
    with pytest.raises(errors.IncompatibleStore, match="memory only"):
        next(control.follow(following.path, {"kind": "forbidden"}))


def test_a_follower_whose_supervisor_ends_is_told(following: Following) -> None:
    events = control.follow(following.path, {"kind": "snapshot"})
    next(events)
    os.write(following._wake_write, b"x")
    with pytest.raises(errors.StoreUnavailable, match="ended before the job did"):
        next(events)


def test_silence_has_a_limit_if_one_is_given(following: Following) -> None:
    events = control.follow(following.path, {"kind": "snapshot"}, 0.1)
    next(events)
    with pytest.raises(errors.StoreUnavailable, match=r"said nothing about the job for 0\.1 s"):
        next(events)


def test_a_follower_is_not_dropped_for_being_silent_and_one_that_is_gone_disturbs_nobody(
    following: Following, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "REQUEST_DEADLINE_S", 0.05)
    first, second = (control.follow(following.path, {"kind": "snapshot"}) for _ in range(2))
    next(first)
    next(second)
    second.close()
    following.control.drop_late(following.loop.clock() + 1000)
    following.publish("running", done_bytes=1)
    following.publish("done", last=True)
    assert [event["state"] for event in first] == ["running", "done"]
