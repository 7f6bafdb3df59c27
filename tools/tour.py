"""make tour: shmkv on real input while its writers, its servers and (as far as one can) its machine are killed.

Loads every file of this Python's standard library from several processes that are killed at random moments, then kills
everything at once and starts again from the shared memory, then once more from the disk alone. After each phase every
acknowledged value is compared byte for byte. Exit code 0 only if every check held. It asks nothing and leaves nothing.
"""

from __future__ import annotations

import argparse
import mmap
import os
import random
import select
import sys
import time
from dataclasses import dataclass

from harness.service import Service, ServiceFailed, Start, ended_by_signal
from harness.tour_input import File, generation_of_content, generation_of_facts, read_library
from harness.tour_ledger import Ledger, Step, Task
from harness.tour_workers import COUNTER, LOG_TIMEOUT_S, Worker, bury, drain, start_reader, start_writer
from rich.console import Console
from rich.table import Table

import shmkv

KILL_PAUSE_S = (0.005, 0.06)
MASS_KILL_AFTER_S = (0.8, 1.6)
ALONE_S = 0.3  # how long the readers go on without any server
PHASE_LIMIT_S = 100.0
LOAD_GOAL_S = 35.0
OVERWRITE_BYTES = 100_000
TURN_S = 0.05  # a pipe holds the acknowledgements of much more
REPAIR_COUNTERS = ("repairs", "repairs_committed", "settled")


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the final table."""

    phase: str
    what: str
    result: str
    good: bool


class Tour:
    """One run; `checks` is what it found."""

    def __init__(self, options: argparse.Namespace, service: Service, files: list[File], console: Console) -> None:
        self._options = options
        self._service = service
        self._files = files
        self._console = console
        self._chance = random.Random(options.seed)
        self._ledger = Ledger(len(files))
        order = list(range(len(files)))
        self._chance.shuffle(order)
        self._parts = [order[i :: options.writers] for i in range(options.writers)]
        self._generations = [0] * options.writers
        self._writers: dict[int, Worker] = {}
        self._readers: list[Worker] = []
        self._stop = mmap.mmap(-1, 1)
        self._durability: str | None = None
        self._repairs = dict.fromkeys(REPAIR_COUNTERS, 0)
        self.kills = 0
        self.checks: list[Check] = []

    # ---- phases ---------------------------------------------------------------------------------

    def run(self) -> None:
        """All phases; ServiceFailed or TimeoutError when one can't go on."""
        self._show_start("start", self._service.start())
        self._load()
        self._verify("load")
        self._kill_all_and_adopt()
        self._verify("warm")
        self._sync()
        self._kill_all_and_recover()
        self._verify("cold")
        self._end()

    def _load(self) -> None:
        shortest_ms, longest_ms = (1000 * pause_s for pause_s in KILL_PAUSE_S)
        self._say(
            f"loading with {self._options.writers} writers and {self._options.readers} readers; "
            f"killing a writer every {shortest_ms:.0f} to {longest_ms:.0f} ms"
        )
        began_s = time.monotonic()
        self._start_readers()
        self._start_writers([self._tasks(part, 0) for part in range(len(self._parts))])
        next_kill_s = began_s
        while not self._loaded(time.monotonic() - began_s):
            if time.monotonic() >= next_kill_s:
                self._kill_one()
                next_kill_s = time.monotonic() + self._chance.uniform(*KILL_PAUSE_S)
            self._turn(next_kill_s, began_s + PHASE_LIMIT_S)
        for part in list(self._writers):
            self._kill_writer(part)
        self._stop_readers("load")
        took_s = time.monotonic() - began_s
        self._say(
            f"{self._ledger.writes:,} acknowledged writes in {took_s:.1f} s; "
            f"{self.kills} writers killed with SIGKILL and replaced"
        )

    def _loaded(self, took_s: float) -> bool:
        wanted = self._options.kills if took_s < LOAD_GOAL_S else self._options.kills / 2
        return self.kills >= wanted and min(self._generations) > 0

    def _kill_all_and_adopt(self) -> None:
        self._start_readers()
        died = self._work_then_kill_all()
        time.sleep(ALONE_S)  # not a wait for something: the readers have to live without servers for a while
        self._say(
            f"killed {died} processes at once: supervisor, persister, keeper and writers; the readers read on alone"
        )
        start = self._service.start()
        self._show_start("warm", start)
        self._check("warm", "arena adopted", "warm" if start.warm else "not warm", start.warm)
        self._stop_readers("warm")

    def _kill_all_and_recover(self) -> None:
        self._durability = "always"
        died = self._work_then_kill_all()
        # Whoever locks next repairs: the audit does, so that the counters tell where these kills landed.
        self._check_audit("cold: the arena that is about to go")
        self._count_repairs()
        self._service.remove_arena()
        self._say(f"killed {died} processes at once, in the middle of durable writes, and removed the shared memory")
        log_bytes = self._service.log_bytes()
        start = self._service.start()
        self._show_start("cold", start)
        self._check("cold", "recovered from snapshot and log", f"{log_bytes / 1e6:,.0f} MB on disk", not start.warm)

    def _work_then_kill_all(self) -> int:
        self._start_writers([self._tasks(part, generation) for part, generation in enumerate(self._generations)])
        now_s = time.monotonic()
        end_s = now_s + self._chance.uniform(*MASS_KILL_AFTER_S)
        while time.monotonic() < end_s:
            self._turn(end_s, now_s + PHASE_LIMIT_S)
        writers = [worker.process for worker in self._writers.values()]
        died = self._service.kill(also=writers) + len(writers)
        self.kills += len(writers)
        for part in list(self._writers):
            bury(self._writers.pop(part), self._ledger)
        return died

    def _end(self) -> None:
        self._count_repairs()
        self._service.stop()
        left = self._service.destroy()
        self._check(
            "end", "clean stop; nothing left behind", ", ".join(left) or "no process, no object, no file", not left
        )

    # ---- workers --------------------------------------------------------------------------------

    def _tasks(self, part: int, generation: int) -> list[Task]:
        files = list(self._parts[part])
        if generation:
            # Once all are loaded, the many small ones do: the log keeps every generation.
            files = [index for index in files if len(self._files[index].content) <= OVERWRITE_BYTES]
            self._chance.shuffle(files)
        return [(index, generation) for index in files]

    def _start_writers(self, tasks: list[list[Task]]) -> None:
        for part, work in enumerate(tasks):
            self._writers[part] = start_writer(self._service.name, self._files, work, self._durability)

    def _start_readers(self) -> None:
        self._stop[0] = 0
        for _ in range(self._options.readers):
            seed = self._chance.randrange(2**32)
            self._readers.append(start_reader(self._service.name, self._files, seed, self._stop))

    def _stop_readers(self, phase: str) -> None:
        self._stop[0] = 1
        codes = []
        for reader in self._readers:
            while drain(reader, self._ledger):
                select.select([reader.pipe], [], [], PHASE_LIMIT_S)
            codes.append(bury(reader, self._ledger))
        checked = sum(reader.checked for reader in self._readers)
        wrong = sum(reader.wrong for reader in self._readers)
        good = wrong == 0 and not any(codes) and (checked > 0 or not self._readers)
        self._check(phase, "values read meanwhile, by SHA-256", f"{checked:,} verified, {wrong} wrong", good)
        self._readers.clear()

    def _turn(self, until_s: float, limit_s: float) -> None:
        """Sleep until the next kill is due, at most TURN_S, then take in acknowledgements.

        Waiting for the pipes instead would wake this process, and so stop a writer, at each acknowledgement: then
        most kills would find their victim there, and not inside a write.
        """
        now_s = time.monotonic()
        if now_s > limit_s:
            raise TimeoutError(
                f"a phase took more than {PHASE_LIMIT_S:g} s; the supervisor said:\n{self._service.said()}"
            )
        time.sleep(min(TURN_S, max(0.0, until_s - now_s)))
        for reader in self._readers:
            if not drain(reader, self._ledger):
                raise ServiceFailed("a reader ended by itself")
        for part, worker in list(self._writers.items()):
            if not drain(worker, self._ledger):
                self._advance(part)

    def _advance(self, part: int) -> None:
        if bury(self._writers.pop(part), self._ledger) != 0:
            raise ServiceFailed("a writer ended by itself before it was killed")
        self._generations[part] += 1
        tasks = self._tasks(part, self._generations[part])
        self._writers[part] = start_writer(self._service.name, self._files, tasks, self._durability)

    def _kill_one(self) -> None:
        part = self._chance.choice(sorted(self._writers))
        tasks = self._kill_writer(part)
        self._writers[part] = start_writer(self._service.name, self._files, tasks, self._durability)

    def _kill_writer(self, part: int) -> list[Task]:
        worker = self._writers.pop(part)
        worker.process.kill()
        if bury(worker, self._ledger) != 0:
            self.kills += 1
        assert worker.progress is not None
        return worker.progress.rest()

    # ---- checks ---------------------------------------------------------------------------------

    def _verify(self, phase: str) -> None:
        """Every value byte for byte, the counter, and a deep audit; no worker runs."""
        began_s = time.monotonic()
        wrong = []
        with shmkv.attach(self._service.name, timeout=10.0) as db:
            for index, file in enumerate(self._files):
                content = generation_of_content(file, db.get(file.content_key))
                if content is None or not self._ledger.saw(index, Step.CONTENT, content):
                    wrong.append(file.content_key)
                facts = generation_of_facts(file, db.get(file.facts_key))
                if facts is None or not self._ledger.saw(index, Step.FACTS, facts):
                    wrong.append(file.facts_key)
            counter = db.get(COUNTER, 0)
            keys = len(db)
        keys_wanted = 2 * len(self._files) + 1
        result = f"{keys_wanted - 1 - len(wrong):,} right, {len(wrong)} wrong" + (f" ({wrong[0]})" if wrong else "")
        self._check(phase, "acknowledged values, byte for byte", result, not wrong)
        self._check(phase, "number of keys", f"{keys:,} of {keys_wanted:,}", keys == keys_wanted)
        ledger = self._ledger
        bounds = f"{ledger.increments:,} acknowledged <= {counter:,} <= {ledger.increments + ledger.deaths:,}"
        self._check(phase, "counter", bounds, ledger.counter_is_good(counter))
        self._check_audit(phase)
        self._say(f"verified in {time.monotonic() - began_s:.1f} s")

    def _check_audit(self, phase: str) -> None:
        findings = self._service.audit()
        self._check(
            phase, "deep audit", f"{len(findings)} findings" + (f": {findings[0]}" if findings else ""), not findings
        )

    def _sync(self) -> None:
        with shmkv.attach(self._service.name, timeout=10.0, log_timeout=LOG_TIMEOUT_S) as db:
            db.incr(COUNTER)
            self._ledger.increments += 1
            db.sync(timeout=LOG_TIMEOUT_S)

    def _count_repairs(self) -> None:
        stats = self._service.stats()
        for name in REPAIR_COUNTERS:
            self._repairs[name] += stats[name]

    def _show_start(self, phase: str, start: Start) -> None:
        result = f"ready {start.ready_s * 1000:.0f} ms after exec, first read {start.first_read_s * 1000:.0f} ms"
        self._check(phase, "restart" if phase != "start" else "first start", result, True)

    def _check(self, phase: str, what: str, result: str, good: bool) -> None:
        self.checks.append(Check(phase, what, result, good))
        if not good:
            self._say(f"[red]FAILED[/red] {phase}: {what}: {result}")

    def _say(self, text: str) -> None:
        self._console.print(f"  {text}", highlight=False)

    def table(self) -> Table:
        """What was found, and where the kills landed."""
        table = Table(title="shmkv tour")
        for column in ("phase", "check", "result", ""):
            table.add_column(column)
        for check in self.checks:
            table.add_row(
                check.phase, check.what, check.result, "[green]held[/green]" if check.good else "[red]FAILED[/red]"
            )
        inside = ", ".join(f"{name} {number}" for name, number in self._repairs.items())
        table.add_row("all", f"{self.kills} writers killed; landed inside a write", inside, "")
        return table

    def close(self) -> None:
        """End every worker that is left."""
        for worker in (*self._writers.values(), *self._readers):
            worker.process.kill()
            bury(worker, self._ledger)


def memory_for(files: list[File]) -> tuple[int, int]:
    """(memory, ring) in bytes: the largest file fits a quarter of the ring; room for gaps and dead drafts."""
    largest = max(len(file.content) for file in files)
    ring = 1 << max(24, (4 * largest + (1 << 16)).bit_length())
    total = sum(len(file.content) for file in files)
    return ring + 3 * total + (96 << 20), ring


def arguments(argv: list[str]) -> argparse.Namespace:
    """Options of the command."""
    parser = argparse.ArgumentParser(prog="tour", description=__doc__)
    parser.add_argument(
        "--seed", type=int, default=int.from_bytes(os.urandom(4), "big"), help="repeats the choices of a run"
    )
    parser.add_argument(
        "--kills",
        type=int,
        default=100,
        help="writers to kill while loading; half of them will do on a machine that is slow (default: %(default)s)",
    )
    parser.add_argument("--writers", type=int, default=4)
    parser.add_argument("--readers", type=int, default=2)
    parser.add_argument("--files", type=int, help="take only so many files, spread evenly (default: all)")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Run the tour; 0 if every check held."""
    options = arguments(argv)
    console = Console(soft_wrap=False)
    ended_by_signal()
    began_s = time.monotonic()
    root, files = read_library(options.files)
    total = sum(len(file.content) for file in files)
    console.print(
        f"shmkv tour, seed {options.seed}: {len(files):,} files of {root}, {total / 1e6:.0f} MB", highlight=False
    )
    memory, ring = memory_for(files)
    service = Service(f"tour-{os.getpid()}", memory=memory, ring=ring, expected_items=4 * len(files), lag_limit=60)
    with service:
        tour = Tour(options, service, files, console)
        finished = False
        try:
            tour.run()
            finished = True
        except (ServiceFailed, TimeoutError, shmkv.ShmkvError) as error:
            console.print(f"the tour could not go on: {type(error).__name__}: {error}", style="red", markup=False)
        finally:
            tour.close()
    console.print(tour.table())
    good = finished and all(check.good for check in tour.checks)
    verdict = "every check held" if good else "NOT every check held"
    console.print(
        f"{verdict}; {time.monotonic() - began_s:.0f} s; seed {options.seed}", style="green" if good else "red"
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
