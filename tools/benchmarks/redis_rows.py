"""The row that starts two stores from their snapshots: ours, and redis-server from its RDB file with the same data.

Why here: the only row that needs another program; without it the row says so and is not measured.

Invariants:
  I1  Both sides are measured from exec to the first right answer to a get, in turns, with a warm page cache.
  I2  Both hold the same keys and values, and both were stopped cleanly: nothing but the snapshot is read.
"""

from __future__ import annotations

import os
import shutil
import socket
import statistics
import subprocess
from collections.abc import Iterator
from time import monotonic, sleep

from harness.service import Service, ServiceFailed

import shmkv
from benchmarks.data import fresh_keys, fresh_values, key
from benchmarks.disk_rows import load_singly
from benchmarks.row import Row

PIPELINE = 1000
ANSWER_TIMEOUT_S = 60.0
POLL_S = 0.001


class Redis:
    """A redis-server on a unix socket in a directory of its own, without any but explicit saves."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self._path = f"{directory}/socket"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Exec; returns at once."""
        # Without compression, which would only cost it time here.
        settings = {"port": 0, "unixsocket": self._path, "save": "", "rdbcompression": "no", "dir": self.directory}
        options = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
        self._process = subprocess.Popen(
            ["redis-server", *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def connect(self) -> socket.socket:
        """A connection, as soon as it listens."""
        deadline_s = monotonic() + ANSWER_TIMEOUT_S
        while True:
            stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                stream.connect(self._path)
            except (FileNotFoundError, ConnectionRefusedError):
                stream.close()
                if monotonic() > deadline_s:
                    raise
                sleep(POLL_S)
                continue
            stream.settimeout(ANSWER_TIMEOUT_S)
            return stream

    def fill(self, keys: int) -> None:
        """The keys and values of the other side, then SAVE."""
        with self.connect() as stream:
            for batch in _commands(keys):
                stream.sendall(b"".join(batch))
                _read_lines(stream, len(batch))
            stream.sendall(b"SAVE\r\n")
            _read_lines(stream, 1)

    def first_answer(self, name: str) -> None:
        """Ask for a key until there is a value: while it loads, it answers with an error."""
        with self.connect() as stream:
            while True:
                stream.sendall(b"GET " + name.encode() + b"\r\n")
                if stream.recv(4096).startswith(b"$100"):
                    return
                sleep(POLL_S)

    def stop(self) -> None:
        """End it without another save."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None
            if os.path.exists(self._path):
                os.unlink(self._path)


def _commands(keys: int) -> Iterator[list[bytes]]:
    batch = []
    for name, value in zip(fresh_keys(list(range(keys))), fresh_values(keys, 1), strict=True):
        batch.append(b"*3\r\n$3\r\nSET\r\n$16\r\n" + name.encode() + b"\r\n$100\r\n" + value + b"\r\n")
        if len(batch) == PIPELINE:
            yield batch
            batch = []
    if batch:
        yield batch


def _read_lines(stream: socket.socket, count: int) -> None:
    seen = 0
    while seen < count:
        data = stream.recv(65536)
        if not data or data.startswith(b"-"):
            raise RuntimeError(f"redis-server refused: {data[:200]!r}")
        seen += data.count(b"\n")


def cold_start(directory: str, keys: int, rounds: int) -> list[Row]:
    """Cold starts from a snapshot, beside redis-server's from an RDB file; no row where there is no redis-server."""
    title = f"cold start from a snapshot of {keys:,} items / redis-server from RDB"
    if shutil.which("redis-server") is None:
        return [Row("cold_snapshot", title, float("nan"), None, "x", False, "not measured: no redis-server here")]
    their_directory = f"{directory}/bench-redis-{os.getpid()}"
    os.mkdir(their_directory)
    redis = Redis(their_directory)
    memory = 96_000_000 + 260 * keys
    try:
        with Service(f"bench-cold-{os.getpid()}", parent_dir=directory, memory=memory, expected_items=keys) as service:
            redis.start()
            redis.fill(keys)
            redis.stop()
            service.start()
            with shmkv.attach(service.name, log_timeout=60.0) as db:
                load_singly(db, keys)
            service.stop()
            measured = [(_ours(service, keys), _theirs(redis, keys)) for _ in range(rounds + 1)][1:]
    finally:
        redis.stop()
        shutil.rmtree(their_directory)
    ratio = statistics.median(ours / theirs for ours, theirs in measured)
    ours, theirs = (statistics.median(each[i] for each in measured) for i in range(2))
    compared = f"exec to first answer {ours * 1000:,.0f} ms / {theirs * 1000:,.0f} ms"
    return [Row("cold_snapshot", title, ratio, 0.5, "x", False, compared)]


def _ours(service: Service, keys: int) -> float:
    start = service.start(key(keys // 2))
    if start.warm:
        raise ServiceFailed(f"expected a cold start, but the supervisor said: {start.line}")
    service.stop()
    return start.first_read_s


def _theirs(redis: Redis, keys: int) -> float:
    began_s = monotonic()
    redis.start()
    redis.first_answer(key(keys // 2))
    took_s = monotonic() - began_s
    redis.stop()
    return took_s
