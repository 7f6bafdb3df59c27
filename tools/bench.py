"""make bench: one table of ratios against what this machine does in the same run, each beside its limit.

16-byte keys, 100-byte values, a million keys, durability interval, log on disk. Rounds of both sides take turns, key
objects are fresh in every round, medians are shown. Exit code 0, with --strict 1 if a row misses its limit.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from benchmarks.disk_rows import durable_one, restarts
from benchmarks.memory_rows import MemoryRows
from benchmarks.process_rows import durable_scaling, read_scaling
from benchmarks.redis_rows import cold_start
from benchmarks.row import Row
from benchmarks.snapshot_rows import encryption, snapshots
from harness import machine
from harness.service import DISK_DIR, Service, ended_by_signal
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import shmkv

MEMORY_ROWS = ("get_hot", "get_hot_scattered", "get_uniform", "set", "setitem", "get_many", "read_scaling", "bytes")
DURABLE_ROWS = ("durable_1", "durable_16")
RESTART_ROWS = ("warm", "warm_size", "cold")
SNAPSHOT_ROWS = ("snapshot_rate", "snapshot_p99", "snapshot_writers", "persister_memory")
ALL_ROWS = (*MEMORY_ROWS, *DURABLE_ROWS, *RESTART_ROWS, *SNAPSHOT_ROWS, "cold_snapshot", "encryption")


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    keys: int
    calls: int
    rounds: int
    memory: str  # of the restarted stores
    seconds: float
    durable_calls: int


FULL = Size(keys=1_000_000, calls=200_000, rounds=9, memory="1GiB", seconds=1.0, durable_calls=400)
QUICK = Size(keys=100_000, calls=50_000, rounds=3, memory="256MiB", seconds=0.3, durable_calls=50)


def memory_rows(names: set[str], size: Size, directory: str, seed: int, say: Callable[[str], None]) -> list[Row]:
    """Rows that need the million keys in this process's reach."""
    rows: list[Row] = []
    memory = 96_000_000 + 260 * size.keys
    with Service(f"bench-{os.getpid()}", parent_dir=directory, memory=memory, expected_items=size.keys) as service:
        service.start()
        with shmkv.attach(service.name, log_timeout=60.0) as db:
            say(f"loading {size.keys:,} keys into the store and into a dict")
            loaded = MemoryRows(db, size.keys, size.calls, size.rounds, seed)
            makers: dict[str, Callable[[], Row]] = {
                "bytes": loaded.bytes_per_item,
                "get_hot": loaded.get_hot,
                "get_hot_scattered": loaded.get_hot_scattered,
                "get_uniform": loaded.get_uniform,
                "get_many": loaded.get_many,
                "read_scaling": lambda: read_scaling(
                    service.name, size.keys, max(3, size.rounds // 2), size.seconds, seed
                ),
                "set": loaded.set_call,
                "setitem": loaded.set_item,
            }
            for name, make in makers.items():
                if name in names:
                    say(f"measuring {name}")
                    rows.append(make())
        service.stop()
    return rows


def durable_rows(names: set[str], size: Size, directory: str, seed: int, say: Callable[[str], None]) -> list[Row]:
    """Rows whose writers wait for the disk."""
    rows: list[Row] = []
    with Service(f"bench-durable-{os.getpid()}", parent_dir=directory, memory="256MiB", durability="always") as service:
        service.start()
        with shmkv.attach(service.name, log_timeout=60.0) as db:
            if "durable_1" in names:
                say("measuring durable_1")
                rows.append(durable_one(db, service.directory, 10_000, size.rounds, size.durable_calls, seed))
        if "durable_16" in names:
            say("measuring durable_16")
            rows.append(durable_scaling(service.name, max(3, size.rounds // 2), 2 * size.seconds))
        service.stop()
    return rows


def measure(options: argparse.Namespace, say: Callable[[str], None]) -> list[Row]:
    """All rows that were asked for, in the order of the table."""
    names, size = set(options.rows), QUICK if options.quick else FULL
    rows: list[Row] = []
    if names & set(MEMORY_ROWS):
        rows += memory_rows(names, size, options.directory, options.seed, say)
    if names & set(DURABLE_ROWS):
        rows += durable_rows(names, size, options.directory, options.seed, say)
    if names & set(RESTART_ROWS):
        say("measuring restarts")
        rows += restarts(options.directory, size.keys, size.memory, max(2, size.rounds // 2), names)
    if names & set(SNAPSHOT_ROWS):
        say("measuring snapshots")
        found = snapshots(options.directory, size.keys, max(3, size.rounds // 2), 2 * size.seconds, options.seed, say)
        rows += [row for row in found if row.name in names]
    if "cold_snapshot" in names:
        say("measuring cold_snapshot")
        rows += cold_start(options.directory, size.keys, max(3, size.rounds // 2))
    if "encryption" in names:
        say("measuring encryption")
        rows.append(encryption(options.directory, size.keys, max(3, size.rounds // 2), 2 * size.seconds, options.seed))
    return sorted(rows, key=lambda row: ALL_ROWS.index(row.name))


def table_of(rows: list[Row], title: str) -> Table:
    """What people see."""
    table = Table(title=title)
    for column in ("row", "measured", "limit", "", "compared (medians)"):
        table.add_column(column, justify="right" if column in ("measured", "limit") else "left")
    for row in rows:
        verdict = "" if row.limit is None else "[green]ok[/green]" if row.good else "[red]miss[/red]"
        table.add_row(escape(row.title), row.shown, row.shown_limit, verdict, row.compared)
    return table


def save(path: str, rows: list[Row], options: argparse.Namespace, facts: dict[str, str], took_s: float) -> None:
    """The same for machines, with everything that is needed to compare it later."""
    body = {
        "seed": options.seed,
        "quick": options.quick,
        "seconds": round(took_s, 1),
        "machine": facts,
        "rows": [{**asdict(row), "good": row.good} for row in rows],
    }
    with open(path, "w") as file:
        json.dump(body, file, indent=2)
        file.write("\n")


def arguments(argv: list[str]) -> argparse.Namespace:
    """Options of the command."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--seed", type=int, default=20, help="repeats the choices of a run (default: %(default)s)")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a tenth of the keys and fewer rounds: shows that it works, measures little",
    )
    parser.add_argument(
        "--rows", type=lambda text: text.split(","), default=list(ALL_ROWS), help=f"some of {','.join(ALL_ROWS)}"
    )
    parser.add_argument("--json", metavar="FILE", help="also write the figures there")
    parser.add_argument("--directory", default=DISK_DIR, help="where the logs go: a disk (default: %(default)s)")
    parser.add_argument("--strict", action="store_true", help="exit code 1 if a row misses its limit")
    options = parser.parse_args(argv)
    unknown = set(options.rows) - set(ALL_ROWS)
    if unknown:
        parser.error(f"unknown rows: {', '.join(sorted(unknown))}; known are {', '.join(ALL_ROWS)}")
    return options


def main(argv: list[str]) -> int:
    """Measure, show, save."""
    options = arguments(argv)
    console = Console()
    ended_by_signal()
    facts = machine.facts(options.directory)
    began_s = time.monotonic()
    rows = measure(options, lambda text: console.print(f"  {text}", highlight=False))
    took_s = time.monotonic() - began_s
    about = ", ".join(facts[name] for name in ("processor", "kernel", "python", "file_system"))
    console.print(
        table_of(
            rows,
            f"shmkv bench: {facts['cores']} x {about}; commit {facts['commit']}, seed {options.seed}, {took_s:.0f} s",
        )
    )
    console.print(f"load average before: {facts['load_average']}; on a busy machine only the ratios mean something")
    if options.json:
        save(options.json, rows, options, facts, took_s)
    missed = [row.name for row in rows if not row.good]
    return 1 if options.strict and missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
