"""The progress of long commands: a bar on a terminal's standard error, nothing anywhere else."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

from shmkv.admin.progress import progress
from tests.conftest import ROOT

PROGRAM = """
from shmkv.admin.progress import progress
with progress("export [b]x[/b]", 100000, "entries") as advance:
    for _ in range(100000):
        advance()
with progress("copy", None, shown={shown}) as advance:
    advance.set(5, 10)
    advance.set(10)
print("done")
"""


def on_terminal(program: str) -> tuple[bytes, bytes]:
    """(standard output, what the terminal got on standard error)."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=slave,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )  # fmt: skip
    os.close(slave)
    shown = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:  # how Linux says that the other side is closed
            break
        if not piece:
            break
        shown += piece
    os.close(master)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    return output, shown


def test_a_terminal_gets_a_bar_and_standard_output_nothing_of_it() -> None:
    output, shown = on_terminal(PROGRAM.format(shown=True))
    assert output == b"done\n"
    for text in (b"export [b]x[/b]", b"100,000 entries", b"copy", b"10/10 bytes"):
        assert text in shown
    assert shown.count(b"export") < 30, "drawn at most some times a second"


def test_a_bar_may_be_unwanted() -> None:
    _, shown = on_terminal(PROGRAM.format(shown=False))
    assert b"copy" not in shown


def test_elsewhere_nothing_is_shown_and_rich_is_not_loaded() -> None:
    program = PROGRAM.format(shown=True) + "import sys; print('rich' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"done\nFalse\n", b"")


def test_an_error_of_the_work_passes() -> None:
    with pytest.raises(ZeroDivisionError), progress("work") as advance:
        advance(1)
        raise ZeroDivisionError
