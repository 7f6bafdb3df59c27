"""The queue of jobs and its thread: order, events, failure, cancellation; the wish for a sync."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from shmkv import errors
from shmkv.dataclass import replace
from shmkv.wal import jobs
from shmkv.wal.channel import Events, Orders
from shmkv.wal.cipher import BadTag
from shmkv.wal.jobs import Cancelled, Context, Job, Jobs, JobSettings, SyncWish, error_kind, find_job

NOTHING = cast(Any, None)
CONTEXT = Context(
    arena=NOTHING,
    files=NOTHING,
    data_dir="/data",
    keys=NOTHING,
    slots=NOTHING,
    directory=NOTHING,
    generations=NOTHING,
    settings=JobSettings("test", {}, 1 << 20),
    wall_ms=lambda: 0,
    wait_durable=lambda _lsn, _timeout_s: None,
)


class Bench:
    """Jobs whose work is a function of the test; `threads` makes real ones, else work is done at once."""

    def __init__(self, run: Job, *, threads: bool = False) -> None:
        self._read_fd, write_fd = os.pipe()
        os.set_blocking(self._read_fd, False)
        self.now_s = 100.0
        self.threads: list[threading.Thread] = []
        self.spawned = 0
        self._real = threads
        self.jobs = Jobs(
            replace(CONTEXT), Events(write_fd), spawn=self._spawn, find=lambda _kind: run, clock_s=lambda: self.now_s
        )

    def _spawn(self, work: Callable[[], None]) -> None:
        self.spawned += 1
        if self._real:
            self.threads.append(threading.Thread(target=work))
            self.threads[-1].start()
        else:
            work()

    def events(self) -> list[dict[str, Any]]:
        try:
            return [json.loads(line) for line in os.read(self._read_fd, 1 << 16).splitlines()]
        except BlockingIOError:
            return []

    def states(self) -> list[tuple[str, str]]:
        return [(event["job"], event["state"]) for event in self.events()]


def test_a_job_tells_that_it_runs_and_how_it_ended() -> None:
    bench = Bench(lambda _context, arguments: {"got": arguments["path"]})
    bench.jobs.submit("7", "snapshot", {"path": "x"})
    running, done = bench.events()
    assert running == {
        "event": "job",
        "job": "7",
        "kind": "snapshot",
        "state": "running",
        "done_bytes": 0,
        "of_bytes": 0,
    }
    assert done == {"event": "job", "job": "7", "kind": "snapshot", "state": "done", "result": {"got": "x"}}
    assert bench.jobs.idle
    assert [(outcome.job, outcome.error) for outcome in bench.jobs.outcomes] == [("7", "")]


def test_progress_is_told_at_most_five_times_a_second() -> None:
    bench = Bench(lambda _context, _arguments: {})

    def work(context: Context, _arguments: dict[str, Any]) -> dict[str, Any]:
        for number in range(1000):
            bench.now_s += 0.01
            context.progress(number, 1000)
        return {}

    other = Bench(work)
    other.jobs._clock_s = lambda: bench.now_s
    other.jobs.submit("1", "snapshot", {})
    running = [event for event in other.events() if event["state"] == "running"]
    assert 45 <= len(running) <= 51
    assert running[-1]["done_bytes"] > 900


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (errors.CorruptData("bad block"), "CorruptData"),
        (BadTag("bad tag"), "CorruptData"),
        (errors.WrongKey("another"), "WrongKey"),
        (OSError(errno.ENOSPC, "full"), "DiskFull"),
        (OSError(errno.EIO, "broken"), "OSError"),
        (FileNotFoundError(errno.ENOENT, "gone"), "FileNotFoundError"),
        (ValueError("argument"), "ValueError"),
        (KeyError("path"), "ShmkvError"),
        (RuntimeError("a mistake"), "ShmkvError"),
    ],
)
def test_what_a_job_raises_is_told_and_the_next_one_runs(
    error: Exception, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    def work(_context: Context, arguments: dict[str, Any]) -> dict[str, Any]:
        if arguments["fail"]:
            raise error
        return {}

    bench = Bench(work)
    bench.jobs.submit("1", "backup", {"fail": True})
    bench.jobs.submit("2", "backup", {"fail": False})
    assert error_kind(error) == kind
    failed, done = [event for event in bench.events() if event["state"] != "running"]
    assert (failed["job"], failed["state"], failed["error_kind"]) == ("1", "failed", kind)
    assert str(error) in failed["error"]
    assert (done["job"], done["state"]) == ("2", "done")
    is_a_mistake = not isinstance(error, errors.ShmkvError | OSError)
    assert ("Traceback" in capfd.readouterr().err) is is_a_mistake


def test_one_runs_at_a_time_in_the_order_in_which_they_came() -> None:
    running = threading.Semaphore(1)
    order: list[int] = []

    def work(_context: Context, arguments: dict[str, Any]) -> dict[str, Any]:
        assert running.acquire(blocking=False), "two at once"
        time.sleep(0.001)
        order.append(arguments["number"])
        running.release()
        return {}

    bench = Bench(work, threads=True)
    for number in range(20):
        bench.jobs.submit(str(number), "snapshot", {"number": number})
    assert bench.jobs.wait(10)
    assert order == list(range(20))
    assert [job for job, state in bench.states() if state == "done"] == [str(number) for number in range(20)]
    for thread in bench.threads:
        thread.join(10)
    assert bench.spawned <= 20


def test_close_gives_up_what_runs_and_fails_what_waits_and_what_comes() -> None:
    started = threading.Event()

    def work(context: Context, _arguments: dict[str, Any]) -> dict[str, Any]:
        started.set()
        deadline_s = time.monotonic() + 10
        while not context.cancelled():
            assert time.monotonic() < deadline_s
            time.sleep(0.001)
        raise Cancelled

    bench = Bench(work, threads=True)
    bench.jobs.submit("runs", "snapshot", {})
    bench.jobs.submit("waits", "snapshot", {})
    assert started.wait(10)
    assert not bench.jobs.idle
    assert not bench.jobs.wait(0.01)
    bench.jobs.close()
    bench.jobs.submit("comes", "snapshot", {})
    assert bench.jobs.wait(10)
    ends = {event["job"]: event for event in bench.events() if event["state"] != "running"}
    assert sorted(ends) == ["comes", "runs", "waits"]
    assert all(end["state"] == "failed" and "stops" in end["error"] for end in ends.values())


def test_a_machine_without_threads_fails_the_job_and_not_the_loop() -> None:
    bench = Bench(lambda _context, _arguments: {})

    def refuse(_work: Callable[[], None]) -> None:
        raise RuntimeError("can't start new thread")

    bench.jobs._spawn = refuse
    bench.jobs.submit("1", "snapshot", {})
    assert bench.events()[-1]["error"] == "can't start new thread"
    bench.jobs._spawn = bench._spawn
    bench.jobs.submit("2", "snapshot", {})
    assert bench.events()[-1]["state"] == "done"


def test_one_last_job_runs_after_the_close() -> None:
    bench = Bench(lambda context, _arguments: {"cancelled": context.cancelled()})
    bench.jobs.close()
    bench.jobs.run_last("final", "snapshot", {})
    assert bench.events()[-1]["result"] == {"cancelled": False}


def test_an_unknown_kind_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="known are snapshot"):
        find_job("dance")
    assert callable(find_job("snapshot"))


def test_the_thread_is_nicer_than_the_process_and_leaves_the_process_alone() -> None:
    found: list[int] = []
    done = threading.Event()

    def work() -> None:
        found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        done.set()

    before = os.getpriority(os.PRIO_PROCESS, 0)
    jobs.in_thread(work)
    assert done.wait(10)
    assert found == [min(19, before + jobs.NICE)]
    assert os.getpriority(os.PRIO_PROCESS, os.getpid()) == before


# ---- the wish for a sync -----------------------------------------------------------------------------------------


@pytest.fixture
def waiting() -> Iterator[Callable[[SyncWish, int], list[BaseException | None]]]:
    threads: list[threading.Thread] = []

    def wait(wish: SyncWish, lsn: int) -> list[BaseException | None]:
        came: list[BaseException | None] = []

        def run() -> None:
            try:
                wish.wait(lsn, 10)
            except errors.LogStalled as stalled:
                came.append(stalled)
            else:
                came.append(None)

        threads.append(threading.Thread(target=run))
        threads[-1].start()
        return came

    yield wait
    for thread in threads:
        thread.join(10)


def until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.001)


def test_a_wish_is_seen_by_the_loop_and_answered(
    waiting: Callable[[SyncWish, int], list[BaseException | None]],
) -> None:
    durable = 100
    wish = SyncWish(lambda: durable)
    came = waiting(wish, 500)
    until(lambda: wish.wanted_lsn == 500)
    durable = 500
    wish.answer()
    until(lambda: came == [None])
    assert wish.wanted_lsn == 0


def test_what_is_durable_already_needs_no_wish() -> None:
    SyncWish(lambda: 500).wait(500, 0)


def test_a_wish_that_is_not_answered_in_time_or_refused_is_an_error(
    waiting: Callable[[SyncWish, int], list[BaseException | None]],
) -> None:
    wish = SyncWish(lambda: 100)
    with pytest.raises(errors.LogStalled, match="LSN 500"):
        wish.wait(500, 0.001)
    came = waiting(wish, 500)
    until(lambda: wish.wanted_lsn == 500)
    wish.refuse("the log has failed (broken)")
    until(lambda: len(came) == 1)
    assert "the log has failed (broken)" in str(came[0])
    with pytest.raises(errors.LogStalled, match="failed"):
        wish.wait(500, 10)


# ---- commands ----------------------------------------------------------------------------------------------------


def orders_of(*lines: bytes) -> Orders:
    read_fd, write_fd = os.pipe()
    os.write(write_fd, b"".join(line + b"\n" for line in lines))
    os.close(write_fd)
    orders = Orders()
    orders._read(read_fd)
    os.close(read_fd)
    return orders


def test_requests_are_kept_in_order_until_the_first_order() -> None:
    orders = orders_of(
        b'{"do":"job","job":"1","kind":"snapshot"}',
        b"rubbish",
        b'["list"]',
        b'{"do":"dance"}',
        b'{"do":"job","job":"2","kind":"backup","path":"/x"}',
        b'{"do":"retire","switch":12}',
        b'{"do":"job","job":"3","kind":"snapshot"}',
        b'{"do":"stop"}',
    )
    assert [request["job"] for request in orders.requests] == ["1", "2"]
    assert (orders.pending, orders.switch) == ("retire", 12)


@pytest.mark.parametrize("switch", [b"", b',"switch":null', b',"switch":"x"'])
def test_a_plain_retirement_switches_to_nothing(switch: bytes) -> None:
    orders = orders_of(b'{"do":"retire"' + switch + b"}")
    assert (orders.pending, orders.switch) == ("retire", None)


def test_the_end_of_the_pipe_is_a_stop() -> None:
    assert orders_of().pending == "stop"


def test_events_of_several_threads_are_whole_lines() -> None:
    read_fd, write_fd = os.pipe()
    events = Events(write_fd)
    data = bytearray()

    def say(number: int) -> None:
        for count in range(200):
            events.emit("job", job=number, count=count, text="x" * 100)

    threads = [threading.Thread(target=say, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    os.set_blocking(read_fd, False)
    deadline_s = time.monotonic() + 10
    while data.count(b'"event":"job"') < 800 or not data.endswith(b"\n"):
        assert time.monotonic() < deadline_s
        events.emit("progress", droppable=True)
        with contextlib.suppress(BlockingIOError):
            data += os.read(read_fd, 1 << 16)
    for thread in threads:
        thread.join(10)
    found = [json.loads(line) for line in bytes(data).rpartition(b"\n")[0].splitlines()]
    for number in range(4):
        assert [event["count"] for event in found if event.get("job") == number] == list(range(200))
