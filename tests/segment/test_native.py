"""The native tests of the core, built and run: each program is one test here, and its output is the failure's text.

The C side (tests/native) says what is checked; make builds into build/native, so a second run builds nothing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NATIVE = ROOT / "tests" / "native"
BUILD = ROOT / "build" / "native"
SUITES = (
    "base",
    "arena",
    "heap",
    "table",
    "ring",
    "read",
    "write",
    "compact",
    "replay",
    "snapshot",
    "walk",
    "lock",
    "slot",
    "audit",
)
BUILD_TIMEOUT_S = 300
RUN_TIMEOUT_S = 180


def run(command: list[str], timeout_s: float) -> None:
    """Run a program to its end; fail with all that it printed."""
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        pytest.fail(f"{' '.join(command)} is not done after {timeout_s:.0f} s:\n{error.output or ''}", pytrace=False)
    if done.returncode != 0:
        pytest.fail(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}", pytrace=False)


def build(program: str) -> str:
    """Path of a built program, such as plain/unit."""
    for tool in ("make", "cc"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed: apt install build-essential")
    target = BUILD / program
    jobs = f"-j{os.cpu_count() or 1}"
    run(["make", "-s", jobs, "-f", str(NATIVE / "Makefile"), f"BUILD={BUILD}", str(target)], BUILD_TIMEOUT_S)
    return str(target)


def test_the_list_of_suites_is_that_of_the_program() -> None:
    listed = subprocess.run([build("asan/unit"), "-l"], capture_output=True, text=True, check=True).stdout.split()
    assert {line.split(".")[0] for line in listed} == set(SUITES)


@pytest.mark.parametrize("suite", SUITES)
def test_unit_tests_pass_under_sanitizers(suite: str) -> None:
    run([build("asan/unit"), suite], RUN_TIMEOUT_S)


def test_unit_tests_pass_as_released() -> None:
    run([build("plain/unit")], RUN_TIMEOUT_S)


def test_a_death_at_any_point_of_any_operation_is_survived() -> None:
    run([build("fault/killpoints")], RUN_TIMEOUT_S)


@pytest.mark.parametrize("mode", ["threads", "processes", "kills"])
def test_stress_ends_with_everything_in_order(mode: str) -> None:
    run([build("plain/stress"), "-t", "3", "-n", "3", mode], RUN_TIMEOUT_S)


def test_filling_and_loading_pass_where_threads_are_watched() -> None:
    run([build("tsan/unit"), "walk"], RUN_TIMEOUT_S)


@pytest.mark.parametrize("flavour", ["asan", "tsan"])
def test_stress_passes_under_sanitizers(flavour: str) -> None:
    run([build(f"{flavour}/stress"), "-t", "3", "-n", "3", "threads"], RUN_TIMEOUT_S)


@pytest.mark.slow
def test_every_double_crash_is_survived() -> None:
    run([build("fault/killpoints"), "-f"], 2 * RUN_TIMEOUT_S)


@pytest.mark.slow
def test_a_longer_stress_ends_with_everything_in_order() -> None:
    run([build("plain/stress"), "-t", "30", "threads", "processes", "kills"], 2 * RUN_TIMEOUT_S)


@pytest.mark.slow
def test_fuzzing_finds_nothing_in_a_few_seconds() -> None:
    if shutil.which("clang") is None:
        pytest.skip("clang is not installed: apt install clang")
    run(["make", "-s", "-f", str(NATIVE / "Makefile"), f"BUILD={BUILD}", "fuzz", "SECONDS=5"], BUILD_TIMEOUT_S)
