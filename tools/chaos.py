"""make chaos: random SIGKILLs at full speed; not a write may be lost, not a value torn, no survivor may hang.

Workers (mixed calls on keys of their own, shared counters, values that carry a checksum) are killed and replaced all
the time, now and then persister, keeper or supervisor, and every few seconds everything at once, which is then adopted
again and checked exactly. What must be in the store is kept outside of it, in one mapped journal for each worker. Exit
code 1 if a single check failed. Leaves nothing behind.
"""

from __future__ import annotations

import argparse
import mmap
import os
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field

from harness.chaos_journal import SHARED_KEYS, Journal, Word
from harness.chaos_worker import complain, settle, state_in_store, work
from harness.processes import Parent, Process, fork
from harness.service import Service, ServiceFailed, ended_by_signal
from rich.console import Console
from rich.table import Table

import shmkv

CALM_S = 2.0
# How often each is killed; a worker is the rule.
TARGETS = {"worker": 300, "persister": 3, "keeper": 4, "supervisor": 2}
SURVIVOR_LIMIT_S = 30.0  # a call that takes longer hangs
ATTACH_TIMEOUT_S = 10.0


@dataclass(slots=True)
class Totals:
    """What a run found."""

    kills: Counter[str] = field(default_factory=Counter)
    rounds: int = 0
    findings: int = 0
    counters_wrong: int = 0
    lengths_wrong: int = 0
    crashed_workers: int = 0
    starts_ms: list[float] = field(default_factory=list)
    windows: list[str] = field(default_factory=lambda: ["calm"])
    seconds: float = 0.0


class Chaos:
    """One run over one store."""

    def __init__(self, options: argparse.Namespace, service: Service, console: Console) -> None:
        self._options = options
        self._service = service
        self._console = console
        self._chance = random.Random(options.seed)
        self._parent = Parent()
        self._window = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("B").cast("q")
        self._journals = [Journal(f"{service.directory}/journal-{slot}", slot) for slot in range(options.workers)]
        self._workers: dict[int, Process] = {}
        self.totals = Totals()
        self.stats: dict[str, int] = {}

    def run(self) -> None:
        """Calm, then kills for the given time with a check of everything now and then, then a start from the disk."""
        self._start()
        self._hire()
        self._calm()
        began_s = time.monotonic()
        next_round_s = began_s + self._options.every
        while time.monotonic() < began_s + self._options.seconds:
            time.sleep(self._chance.expovariate(1000 / self._options.kill_every_ms))
            self._bury_crashed()
            if time.monotonic() >= next_round_s:
                self._kill_everything()
                self._hire()
                next_round_s = time.monotonic() + self._options.every
            else:
                self._kill_one()
        self.totals.seconds = time.monotonic() - began_s
        self._kill_everything()
        self._finish()

    def _calm(self) -> None:
        end_s = time.monotonic() + min(CALM_S, self._options.seconds / 5)
        while time.monotonic() < end_s:
            time.sleep(self._options.kill_every_ms / 1000)
            self._next_window("calm")

    def _finish(self) -> None:
        """A clean stop, a start from the disk alone, and the same checks again."""
        self.stats = self._service.stats()
        self._service.stop()
        self._start()
        self._check_all("from the disk")
        self._service.stop()

    # ---- killing --------------------------------------------------------------------------------

    def _next_window(self, what: str) -> None:
        self.totals.windows.append(what)
        self._window[0] = len(self.totals.windows) - 1

    def _kill_one(self) -> None:
        target = self._chance.choices(list(TARGETS), list(TARGETS.values()))[0]
        self._next_window(target)
        if target == "worker":
            slot = self._chance.randrange(len(self._journals))
            self._workers[slot].kill()
            self._workers.pop(slot).reap()
            self._hire()
            self.totals.kills[target] += 1
            return
        # One that is not there at the moment, because it was killed just before, can't be killed.
        self.totals.kills[target] += self._service.kill(target)
        if target == "supervisor":
            self._start()

    def _kill_everything(self) -> None:
        workers = list(self._workers.values())
        self._next_window("everything")
        died = self._service.kill(also=workers)
        for process in workers:
            process.reap()
        self._workers.clear()
        self.totals.kills["everything"] += died + len(workers)
        self._start()
        self._check_all("adopted")
        self.totals.rounds += 1

    def _hire(self) -> None:
        for slot, journal in enumerate(self._journals):
            if slot not in self._workers:
                seed = self._chance.randrange(2**32)
                self._workers[slot] = fork(work, self._service.name, journal, self._window, seed, self._parent)

    def _bury_crashed(self) -> None:
        for slot, process in list(self._workers.items()):
            if process.has_ended():
                self._workers.pop(slot).reap()
                self.totals.crashed_workers += 1
                self._hire()

    def _start(self) -> None:
        start = self._service.start()
        self.totals.starts_ms.append(start.first_read_s * 1000)

    # ---- checking -------------------------------------------------------------------------------

    def _check_all(self, when: str) -> None:
        """No worker runs: each own key must be exactly what its journal says, each counter within its bounds."""
        totals = self.totals
        with shmkv.attach(self._service.name, timeout=ATTACH_TIMEOUT_S) as db:
            keys = 0
            for journal in self._journals:
                settle(db, journal)
                for key in journal.own_keys():
                    seen, state = state_in_store(db, journal, key), journal.state(key)
                    keys += state != 0
                    if seen != state:
                        complain(journal, key, seen, f"expected {state} ({when})")
            unknown = sum(journal.words[Word.UNKNOWN] for journal in self._journals)
            for number in range(SHARED_KEYS):
                acknowledged = sum(journal.shared(number) for journal in self._journals)
                counter = db.get(f"shared:{number}", 0)
                keys += counter != 0
                if not acknowledged <= counter <= acknowledged + unknown:
                    totals.counters_wrong += 1
                    self._say(
                        f"shared counter {number} is {counter}, acknowledged {acknowledged}, open {unknown} ({when})"
                    )
            if len(db) != keys:
                totals.lengths_wrong += 1
                self._say(f"the store holds {len(db)} keys, the journals say {keys} ({when})")
        findings = self._service.audit()
        totals.findings += len(findings)
        for finding in findings[:5]:
            self._say(f"audit ({when}): {finding}")

    def _sum(self, word: Word) -> int:
        return sum(journal.words[word] for journal in self._journals)

    def stalls_ms(self) -> dict[str, list[float]]:
        """Longest call of any worker in the time after each kill, by what was killed, sorted."""
        found: dict[str, list[float]] = {}
        for number, what in enumerate(self.totals.windows):
            found.setdefault(what, []).append(max(journal.stall_ns(number) for journal in self._journals) / 1e6)
        return {what: sorted(stalls) for what, stalls in found.items()}

    def verdicts(self) -> dict[str, int]:
        """Everything that must be 0."""
        totals = self.totals
        longest_ms = max(max(stalls) for stalls in self.stalls_ms().values())
        return {
            "lost writes": self._sum(Word.LOST),
            "torn values": self._sum(Word.TORN),
            "audit findings": totals.findings,
            "shared counters out of bounds": totals.counters_wrong,
            "wrong numbers of keys": totals.lengths_wrong,
            "workers that ended by themselves": totals.crashed_workers,
            f"calls longer than {SURVIVOR_LIMIT_S:g} s": int(longest_ms > SURVIVOR_LIMIT_S * 1000),
        }

    def tables(self) -> list[Table]:
        """What happened, what had to be 0, and how long survivors waited."""
        totals, operations = self.totals, self._sum(Word.OPERATIONS)
        done = Table("what", "number", title="shmkv chaos")
        for what, number in totals.kills.items():
            done.add_row(f"killed: {what}", f"{number:,}")
        for name in ("repairs", "repairs_committed", "settled"):
            done.add_row(f"killed inside a write: {name}", f"{self.stats.get(name, 0):,}")
        done.add_row("calls acknowledged", f"{operations:,} ({operations / max(totals.seconds, 0.1):,.0f}/s)")
        done.add_row("calls refused, nothing changed", f"{self._sum(Word.REFUSED):,}")
        done.add_row("times killed as a whole, adopted, checked", f"{totals.rounds:,}")
        starts = sorted(totals.starts_ms)
        done.add_row("exec to first read, median / longest", f"{quantile(starts, 0.5):.0f} / {starts[-1]:.0f} ms")
        for what, number in self.verdicts().items():
            done.add_row(what, f"[red]{number:,}[/red]" if number else "[green]0[/green]")
        stalls = Table("after a kill of", "times", "p50 ms", "p99 ms", "max ms", title="longest call of a survivor")
        for what, found in self.stalls_ms().items():
            if what != "everything":
                numbers = [f"{quantile(found, share):.1f}" for share in (0.5, 0.99, 1.0)]
                stalls.add_row("nothing" if what == "calm" else what, f"{len(found):,}", *numbers)
        return [done, stalls]

    def _say(self, text: str) -> None:
        self._console.print(text, style="red", markup=False)

    def close(self) -> None:
        """End every worker that is left, unmap the journals."""
        for process in self._workers.values():
            process.kill()
            process.reap()
        for journal in self._journals:
            journal.close()


def quantile(values: list[float], share: float) -> float:
    """Of a sorted list; 0 for an empty one."""
    return values[min(len(values) - 1, int(share * len(values)))] if values else 0.0


def arguments(argv: list[str]) -> argparse.Namespace:
    """Options of the command."""
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__)
    parser.add_argument(
        "--seed", type=int, default=int.from_bytes(os.urandom(4), "big"), help="repeats the choices of a run"
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to kill (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument(
        "--kill-every-ms", type=float, default=25.0, help="mean pause between two kills (default: %(default)s)"
    )
    parser.add_argument(
        "--every", type=float, default=8.0, help="seconds between two kills of everything (default: %(default)s)"
    )
    parser.add_argument("--durability", default="interval", choices=("always", "interval", "none"))
    parser.add_argument("--memory", default="256MiB")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Run chaos; 0 if nothing was lost, torn, found or left behind."""
    options = arguments(argv)
    console = Console()
    ended_by_signal()
    console.print(
        f"shmkv chaos, seed {options.seed}: {options.workers} workers, {options.seconds:g} s, "
        f"durability {options.durability}"
    )
    service = Service(f"chaos-{os.getpid()}", memory=options.memory, durability=options.durability, snapshot_interval=1)
    finished = False
    with service:
        chaos = Chaos(options, service, console)
        try:
            chaos.run()
            finished = True
        except (ServiceFailed, TimeoutError, shmkv.ShmkvError) as error:
            console.print(f"chaos could not go on: {type(error).__name__}: {error}", style="red", markup=False)
        tables, failures = chaos.tables(), sum(chaos.verdicts().values())
        chaos.close()
        left = service.destroy()
    for table in tables:
        console.print(table)
    if left:
        console.print(f"left behind: {', '.join(left)}", style="red")
    good = finished and not failures and not left
    console.print("nothing lost, nothing torn" if good else "FAILED", style="green" if good else "red")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
