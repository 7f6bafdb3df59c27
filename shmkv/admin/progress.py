"""How far a long command is: a bar on a terminal, nothing elsewhere.

Why here: all long commands show the same, and none has to know whether somebody looks.

Invariants:
  I1  Standard output is never touched: the bar goes to standard error, and is gone when the work ends.
  I2  Rich is imported only when a bar is shown; at most TELLS_PER_S times a second something is drawn, however often
      the work reports.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

TELLS_PER_S: Final = 8


class Advance(Protocol):
    """What the work reports to: `advance(n)` = n more are done, `advance.set(done, total)` = so many are."""

    def __call__(self, count: int = 1, /) -> None: ...

    def set(self, done: int, total: int | None = None) -> None: ...


class Silent:
    """Nobody looks."""

    def __call__(self, count: int = 1, /) -> None:
        pass

    def set(self, done: int, total: int | None = None) -> None:
        pass


class Bar:
    """One line on the terminal."""

    def __init__(self, shown: Progress, task: TaskID, total: int | None) -> None:
        self._shown, self._task = shown, task
        self._done, self._total = 0, total
        self._next_s = 0.0

    def __call__(self, count: int = 1, /) -> None:
        self.set(self._done + count)

    def set(self, done: int, total: int | None = None) -> None:
        self._done = done
        self._total = total if total is not None else self._total
        now_s = time.monotonic()
        if now_s >= self._next_s:
            self._next_s = now_s + 1 / TELLS_PER_S
            self.draw()

    def draw(self) -> None:
        """Show what was reported last."""
        self._shown.update(self._task, completed=self._done, total=self._total, refresh=True)


@contextmanager
def progress(label: str, total: int | None = None, unit: str = "bytes", *, shown: bool = True) -> Iterator[Advance]:
    """Report through what this gives: `advance(n)`, or `advance.set(done, total)` when the numbers come from elsewhere.

    `total` None = not known (yet); `unit` "bytes" is shown as sizes, any other as counts of that. `shown` False: no bar
    in any case, as when the result itself goes to the terminal. Not for several threads at once.
    """
    if not (shown and sys.stderr.isatty()):
        yield Silent()
        return
    with line(unit) as bars:
        bar = Bar(bars, bars.add_task(label, total=total), total)
        bar.draw()
        yield bar
        bar.draw()


def line(unit: str) -> Progress:
    """The columns of a bar."""
    from rich import progress as parts
    from rich.console import Console

    counted = (
        (parts.DownloadColumn(), parts.TransferSpeedColumn())
        if unit == "bytes"
        else (parts.TextColumn("{task.completed:,.0f} " + unit.replace("{", "{{").replace("}", "}}")),)
    )
    return parts.Progress(
        parts.TextColumn("{task.description}", markup=False),
        parts.BarColumn(),
        *counted,
        parts.TimeRemainingColumn(elapsed_when_finished=True),
        console=Console(stderr=True),
        transient=True,
        auto_refresh=False,
    )
