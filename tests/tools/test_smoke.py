"""Each tool runs with tiny parameters, says what it should, and leaves nothing behind."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from harness.disk import unavailable

from shmkv import paths

TOOLS = Path(__file__).resolve().parent.parent.parent / "tools"
TIMEOUT_S = 150


def run(tool: str, *options: str, scratch: Path) -> subprocess.CompletedProcess[str]:
    """Run one tool whose files go to `scratch`; fails the test if it leaves a file, a shared object or a process."""
    environment = {**os.environ, "TMPDIR": str(scratch), "COLUMNS": "200"}
    command = [sys.executable, str(TOOLS / f"{tool}.py"), *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert not any(scratch.iterdir()), done.stdout + done.stderr
    assert not [name for name in paths.store_names() if name.startswith(tool)]
    assert not processes_in(scratch)
    return done


def processes_in(scratch: Path) -> list[str]:
    """Command lines that name the scratch directory."""
    lines = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                lines.append((entry / "cmdline").read_bytes().decode(errors="replace"))
            except (FileNotFoundError, ProcessLookupError):
                continue
    return [line for line in lines if str(scratch) in line]


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    directory = tmp_path / "scratch"
    directory.mkdir()
    return directory


@pytest.mark.slow
def test_the_tour_holds_every_check(scratch: Path) -> None:
    done = run(
        "tour", "--files", "60", "--kills", "12", "--writers", "2", "--readers", "1", "--seed", "1", scratch=scratch
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every check held" in done.stdout


@pytest.mark.slow
def test_chaos_loses_and_tears_nothing(scratch: Path) -> None:
    done = run(
        "chaos",
        "--seconds",
        "3",
        "--every",
        "1.5",
        "--workers",
        "2",
        "--memory",
        "48MB",
        "--seed",
        "1",
        scratch=scratch,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing lost, nothing torn" in done.stdout


@pytest.mark.slow
def test_the_bench_writes_its_rows_with_seed_commit_and_machine(scratch: Path, tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    rows = "get_hot,get_many,set,bytes,durable_1,warm,cold"
    done = run("bench", "--quick", "--rows", rows, "--json", str(file), "--directory", str(scratch), scratch=scratch)
    assert done.returncode == 0, done.stdout + done.stderr
    saved = json.loads(file.read_text())
    assert sorted(row["name"] for row in saved["rows"]) == sorted(rows.split(","))
    assert all(row["measured"] > 0 for row in saved["rows"])
    assert {"commit", "cores", "kernel", "python"} <= set(saved["machine"])


def test_an_unknown_row_of_the_bench_is_a_usage_error(scratch: Path) -> None:
    done = run("bench", "--rows", "get_hotter", scratch=scratch)
    assert done.returncode == 2
    assert "get_hotter" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(bool(unavailable()), reason=unavailable() or "there are loop disks")
def test_power_cuts_lose_nothing_durable(scratch: Path) -> None:
    done = run("powercut", "--cycles", "2", "--fresh-every", "1", "--seed", "3", scratch=scratch)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing durable was lost" in done.stdout
    assert str(scratch) not in Path("/proc/mounts").read_text()
