"""make powercut: real power cuts under a running store; nothing that was acknowledged as durable may be lost.

A store lies on an ext4 of its own (in a file, on a loop device). Writers change keys, one group with durability
`always`, one without waiting; snapshots are taken all the time. Then the file system is shut down without a flush of
its cache, as when the power fails: while it writes, while it stops, or while it starts. Every process dies, the shared
memory goes, the disk is mounted again, and the store starts from it. Checked each time: every change that was
acknowledged as durable is there; what is there is a prefix of each writer's changes, and of the log; the audit is
clean. Needs root. Exit code 1 if a single check failed, 77 where no disk can be mounted. Leaves nothing behind.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from harness.disk import FLUSH_JOURNAL, FLUSH_NOTHING, DiskFailed, LoopDisk, unavailable
from harness.powercut_writer import Journal, Word, changes_in, describe, ordered, seed_of, work
from harness.processes import Parent, Process, fork
from harness.service import DISK_DIR, Service, ServiceFailed, ended_by_signal
from rich.console import Console
from rich.table import Table

import shmkv
from shmkv import paths

DISK_BYTES = 384 << 20
MOMENTS = {"writing": 7, "stopping": 2, "starting": 2}
WRITE_S = (0.1, 1.2)
STOP_S = (0.0, 0.3)
START_S = (0.0, 0.6)
LEVELS = ("always", "always", "none")
SKIPPED = 77


@dataclass(slots=True)
class Totals:
    """What a run found."""

    cuts: Counter[str] = field(default_factory=Counter)
    changes: int = 0
    durable: int = 0
    undone: list[int] = field(default_factory=list)
    torn: int = 0
    snapshots: int = 0
    refused_starts: int = 0
    lost: int = 0
    disordered: int = 0
    findings: int = 0
    starts_ms: list[float] = field(default_factory=list)


class PowerCuts:
    """One run: cycles on one disk, with a fresh store now and then."""

    def __init__(self, options: argparse.Namespace, disk: LoopDisk, console: Console) -> None:
        self._options = options
        self._disk = disk
        self._console = console
        self._chance = random.Random(options.seed)
        self._parent = Parent()
        self._workers: list[Process] = []
        self._journals: list[Journal] = []
        self._service: Service | None = None
        self._generations: list[int] = []
        self.totals = Totals()

    def run(self) -> None:
        """All cycles; raises when a store can't go on."""
        for cycle in range(self._options.cycles):
            if cycle % self._options.fresh_every == 0:
                self._fresh(cycle)
            self._cycle()
            if not self._check(cycle):
                self._fresh(cycle)
        self._end_store()

    # ---- one store --------------------------------------------------------------------------------

    def _fresh(self, cycle: int) -> None:
        """An empty data directory, with a level of its own, and writers that begin at 0."""
        self._end_store()
        level = ("always", "interval")[cycle // self._options.fresh_every % 2]
        self._service = Service(
            f"powercut-{os.getpid()}-{cycle}", memory="64MiB", durability=level, log_file="2MiB", ring="2MiB",
            sync_interval="100ms", snapshot_interval="300ms", snapshot_log="1MiB",
            **dict(item.split("=", 1) for item in self._options.set),
        )  # fmt: skip
        self._service.data_dir = str(self._disk.path / f"data-{cycle}")
        self._journals = [Journal(f"w{number}", kind) for number, kind in enumerate(LEVELS)]

    def _end_store(self) -> None:
        if self._service is None:
            return
        self._kill_all()
        service, self._service = self._service, None
        service.destroy()
        # One that failed may lie on a disk that does not even let go of its files; the next one is empty anyway.
        shutil.rmtree(service.data_dir, ignore_errors=True)
        for journal in self._journals:
            journal.close()
        self.totals.snapshots += max(self._generations, default=0)
        self._generations.clear()

    def _kill_all(self) -> None:
        assert self._service is not None
        self._service.kill(also=self._workers)
        for process in self._workers:
            process.reap()
        self._workers.clear()
        if paths.object_inode(self._service.name) is not None:
            self._service.remove_arena()

    # ---- one cycle --------------------------------------------------------------------------------

    def _cycle(self) -> None:
        """Start, write, cut, kill, mount again."""
        service = self._service
        assert service is not None
        moment = self._chance.choices(list(MOMENTS), list(MOMENTS.values()))[0]
        flush = self._chance.choice((FLUSH_NOTHING, FLUSH_NOTHING, FLUSH_JOURNAL))
        service.start()
        self._write(self._chance.uniform(*WRITE_S))
        if moment == "stopping":
            self._ask_to_stop()
            time.sleep(self._chance.uniform(*STOP_S))
        self._disk.cut_power(flush)
        self._boot()
        if moment == "starting":
            # What the first cut left is being recovered.
            cutter = fork(self._cut_later, self._chance.uniform(*START_S), flush)
            try:
                service.start()
            except (ServiceFailed, shmkv.ShmkvError):
                # As it should be, without a disk.
                self.totals.refused_starts += 1
            cutter.reap()
            self._boot()
        self.totals.cuts[f"{moment}, {'journal flushed' if flush == FLUSH_JOURNAL else 'nothing flushed'}"] += 1

    def _boot(self) -> None:
        """After a cut: no process, no memory, only what is on the disk."""
        self._kill_all()
        self._disk.unmount()
        self._disk.mount()

    def _cut_later(self, after_s: float, flush: int) -> None:
        time.sleep(after_s)
        self._disk.cut_power(flush)

    def _write(self, seconds: float) -> None:
        assert self._service is not None
        for journal in self._journals:
            self._workers.append(fork(work, self._service.name, journal, self._parent))
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s or not all(self._moved()):
            if time.monotonic() > end_s + 10:
                raise ServiceFailed(f"a writer does not move; the supervisor said:\n{self._service.said()}")
            time.sleep(0.01)

    def _moved(self) -> list[bool]:
        return [journal.words[Word.BEGUN] > 0 for journal in self._journals]

    def _ask_to_stop(self) -> None:
        assert self._service is not None
        for role, process in self._service.family().items():
            if role == "supervisor":
                process.kill(15)
            process.close()

    # ---- checks -----------------------------------------------------------------------------------

    def _check(self, cycle: int) -> bool:
        """Start from the disk and compare; False if that store is of no use any more."""
        service, totals = self._service, self.totals
        assert service is not None
        before = totals.lost + totals.disordered + totals.findings
        try:
            start = service.start()
        except ServiceFailed as error:
            totals.lost += 1
            self._say(f"cycle {cycle}: the store does not start after the cut: {error}")
            return False
        totals.starts_ms.append(start.ready_s * 1000)
        counts = []
        with shmkv.attach(service.name) as db:
            for journal in self._journals:
                matching = list(changes_in(db, journal))
                if not matching:
                    totals.lost += 1
                    self._say(f"cycle {cycle}: no prefix: {describe(db, journal)}")
                    continue
                counts.append(matching[-1])
        if len(counts) < len(self._journals):
            return False
        if not ordered(self._journals, counts):
            totals.disordered += 1
            self._say(f"cycle {cycle}: no prefix of the log: {counts}")
        for journal, count in zip(self._journals, counts, strict=True):
            totals.undone.append(int(journal.words[Word.RETURNED]) - count)
            totals.changes += count
            totals.durable += int(journal.words[Word.DURABLE])
            journal.go_on_from(count)
        findings = service.audit()
        totals.findings += len(findings)
        for finding in findings[:3]:
            self._say(f"cycle {cycle}: audit: {finding}")
        totals.torn += "torn record" in service.said()
        snapshots = sorted(Path(service.data_dir).glob("snapshot/*.snapshot"))
        self._generations.append(int(snapshots[-1].stem) if snapshots else 0)
        self._kill_all()
        return before == totals.lost + totals.disordered + totals.findings

    def verdicts(self) -> dict[str, int]:
        """Everything that must be 0."""
        totals = self.totals
        return {
            "stores that lost something, or did not start": totals.lost,
            "stores that were no prefix of the log": totals.disordered,
            "audit findings": totals.findings,
        }

    def table(self) -> Table:
        """What was cut, what was checked."""
        totals = self.totals
        table = Table("what", "number", title="shmkv powercut")
        for what, number in sorted(totals.cuts.items()):
            table.add_row(f"power cut while {what}", f"{number:,}")
        table.add_row("starts that the cut ended", f"{totals.refused_starts:,}")
        table.add_row("changes found, of them acknowledged as durable", f"{totals.changes:,}, {totals.durable:,}")
        undone = sorted(totals.undone)
        if undone:
            table.add_row("changes not durable that a cut undid, most", f"{undone[-1]:,}")
        table.add_row("torn tails", f"{totals.torn:,}")
        table.add_row("snapshots that were begun", f"{totals.snapshots:,}")
        starts = sorted(totals.starts_ms)
        if starts:
            table.add_row("cold start, median / longest", f"{starts[len(starts) // 2]:.0f} / {starts[-1]:.0f} ms")
        for what, number in self.verdicts().items():
            table.add_row(what, f"[red]{number:,}[/red]" if number else "[green]0[/green]")
        return table

    def _say(self, text: str) -> None:
        self._console.print(text, style="red", markup=False)

    def close(self) -> None:
        """End every process, remove the store."""
        self._end_store()


def arguments(argv: list[str]) -> argparse.Namespace:
    """Options of the command."""
    parser = argparse.ArgumentParser(prog="powercut", description=__doc__)
    parser.add_argument("--cycles", type=int, default=30, help="how many power cuts (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=seed_of(), help="repeats the choices of a run")
    parser.add_argument(
        "--fresh-every", type=int, default=10, help="cycles until the next empty store (default: %(default)s)"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="another setting of the store; may be repeated"
    )
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Run the cycles; 0 if every check held."""
    options = arguments(argv)
    console = Console()
    if reason := unavailable():
        console.print(f"powercut needs a disk of its own: {reason}", style="red")
        return SKIPPED
    ended_by_signal()
    console.print(f"shmkv powercut, seed {options.seed}: {options.cycles} cycles")
    finished = False
    with (
        tempfile.TemporaryDirectory(prefix="shmkv-powercut-", dir=DISK_DIR) as directory,
        LoopDisk(directory, DISK_BYTES) as disk,
    ):
        cuts = PowerCuts(options, disk, console)
        try:
            cuts.run()
            finished = True
        except (ServiceFailed, DiskFailed, OSError, shmkv.ShmkvError) as error:
            console.print(f"powercut could not go on: {type(error).__name__}: {error}", style="red", markup=False)
        finally:
            cuts.close()
    console.print(cuts.table())
    good = finished and not sum(cuts.verdicts().values())
    console.print("nothing durable was lost" if good else "FAILED", style="green" if good else "red")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
