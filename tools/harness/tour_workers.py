"""Writers and readers of the tour, each in a forked process, and the parent's side of their pipes.

Why here: acknowledgements must not go through the thing under test, so they go through pipes.

Invariants:
  I1  A writer sends an acknowledgement only after the call has returned; one write of a pipe, never torn.
  I2  The parent reads what is in the pipe of a dead writer before it decides what was in flight.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import random
import struct
from dataclasses import dataclass

import shmkv
from harness.processes import Process, fork
from harness.tour_input import File, content_of, digest_matches, facts_of
from harness.tour_ledger import WRITER_STEPS, Ledger, Progress, Step, Task

ACK = struct.Struct("<II")
COUNTER = "counter"
READS_PER_ACK = 16
PIPE_BYTES = 1 << 20
NICENESS = 5  # whoever kills them must get its turn on a machine that they keep busy
FD_LIMIT = 4096
LOG_TIMEOUT_S = 60.0  # a slow disk is no failure of the tour


@dataclass(slots=True)
class Worker:
    """A forked writer (with progress) or reader (without), and the reading end of its pipe."""

    process: Process
    pipe: int
    progress: Progress | None
    checked: int = 0
    wrong: int = 0
    rest: bytes = b""


def start_writer(name: str, files: list[File], tasks: list[Task], durability: str | None) -> Worker:
    """Fork a process that does these tasks in order and ends."""
    return _start(Progress(tasks), _write, name, files, tasks, durability)


def start_reader(name: str, files: list[File], seed: int, stop: mmap.mmap) -> Worker:
    """Fork a process that verifies random values until the first byte of `stop`, shared memory, is not 0."""
    return _start(None, _read, name, files, seed, stop)


def _start(progress: Progress | None, function: object, *arguments: object) -> Worker:
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    process = fork(_run, function, write_end, arguments)
    os.close(write_end)
    os.set_blocking(read_end, False)
    fcntl.fcntl(read_end, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    return Worker(process, read_end, progress)


def _run(function: object, write_end: int, arguments: tuple[object, ...]) -> None:
    os.nice(NICENESS)
    # The ends of other workers' pipes came along: with them open, nobody would notice that the tool is gone.
    os.closerange(3, write_end)
    os.closerange(write_end + 1, FD_LIMIT)
    try:
        function(write_end, *arguments)  # type: ignore[operator]
    except BrokenPipeError:
        return  # the tool is gone


def _write(pipe: int, name: str, files: list[File], tasks: list[Task], durability: str | None) -> None:
    with shmkv.attach(name, timeout=30.0, durability=durability, log_timeout=LOG_TIMEOUT_S) as db:
        for index, generation in tasks:
            file = files[index]
            db[file.content_key] = content_of(file, generation)
            os.write(pipe, ACK.pack(index, Step.CONTENT))
            db[file.facts_key] = facts_of(file, generation)
            os.write(pipe, ACK.pack(index, Step.FACTS))
            db.incr(COUNTER)
            os.write(pipe, ACK.pack(index, Step.COUNT))


def _read(pipe: int, name: str, files: list[File], seed: int, stop: mmap.mmap) -> None:
    chance = random.Random(seed)
    with shmkv.attach(name, timeout=30.0, log_timeout=LOG_TIMEOUT_S) as db:
        good = 0
        while not stop[0]:
            index = chance.randrange(len(files))
            value = db.get(files[index].content_key)
            if value is None:
                continue
            good += 1
            if not digest_matches(files[index], value):
                os.write(pipe, ACK.pack(index, Step.WRONG))
            elif good % READS_PER_ACK == 0:
                os.write(pipe, ACK.pack(READS_PER_ACK, Step.CHECKED))
                db.incr(COUNTER)
                os.write(pipe, ACK.pack(0, Step.COUNT))


def drain(worker: Worker, ledger: Ledger) -> bool:
    """Take in what a worker has sent, without waiting; False once its pipe has ended."""
    while True:
        try:
            data = os.read(worker.pipe, 65536)
        except BlockingIOError:
            return True
        if not data:
            return False
        data = worker.rest + data
        whole = len(data) - len(data) % ACK.size
        worker.rest = data[whole:]
        for index, number in ACK.iter_unpack(data[:whole]):
            _take(worker, ledger, index, Step(number))


def _take(worker: Worker, ledger: Ledger, index: int, step: Step) -> None:
    if worker.progress is not None and step in WRITER_STEPS:
        ledger.acknowledge(worker.progress, index, step)
    elif step is Step.COUNT:
        ledger.increments += 1
    elif step is Step.CHECKED:
        worker.checked += index
    else:
        worker.wrong += 1


def bury(worker: Worker, ledger: Ledger) -> int:
    """Wait for the end of a worker, take in its last words, and return its exit code."""
    code = worker.process.reap()
    drain(worker, ledger)
    os.close(worker.pipe)
    if code != 0:
        ledger.died(worker.progress)
    return code
