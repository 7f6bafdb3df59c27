"""What the supervisor says: lines for people, events for a program that launched it.

Why here: one place decides what goes to standard output, to standard error and to the event descriptor.

Invariants:
  I1  Nothing said here can end the supervisor: a reader that is gone, or too slow, loses lines.
"""

from __future__ import annotations

import os
import time

from shmkv.supervisor.lines import Message, encode


class Report:
    """Lines to standard output and error; with an event descriptor, events there and only warnings as lines."""

    def __init__(self, name: str, event_fd: int | None = None) -> None:
        self._name = name
        self._prefix = f'shmkv: store "{name}"'
        self._event_fd = event_fd
        if event_fd is not None:
            os.set_blocking(event_fd, False)

    def note(self, text: str) -> None:
        """What went as planned; silent for a program."""
        if self._event_fd is None:
            _write(2, f"{self._prefix}: {text}\n".encode())

    def warn(self, text: str) -> None:
        """What did not."""
        _write(2, f"{self._prefix}: {text}\n".encode())

    def announce(
        self, age_s: float, *, warm: bool, data_dir: str | None, control: str | None, told: Message
    ) -> str:  # fmt: skip
        """The store is ready: one line on standard output, or the event; `told`: what its persister said.

        Returns the same in a few words.
        """
        records = int(told.get("records", 0))
        kind = "warm" if warm else f"cold, {records} records"
        warnings = [str(warning) for warning in told.get("warnings", [])]
        if self._event_fd is None:
            where = f"data: {data_dir}" if data_dir else "memory only"
            socket = f"; control: {control}" if control else ""
            attach = f'attach: shmkv.attach("{self._name}")'
            line = f"{self._prefix} is ready in {age_s:.2f} s ({kind}); {attach}; {where}{socket}\n"
            _write(1, line.encode())
        else:
            _write(self._event_fd, encode({
                "event": "ready", "name": self._name, "pid": os.getpid(), "warm": warm, "records": records,
                "seconds": age_s, "data_dir": data_dir, "control": control, "warnings": warnings,
            }))  # fmt: skip
        for warning in warnings:
            self.warn(warning)
        return f"serving ({kind})"

    def failed(self, code: int, kind: str, reason: str) -> None:
        """The end, and why."""
        if self._event_fd is None:
            _write(2, f"{self._prefix}: {reason}\n".encode())
        else:
            _write(self._event_fd, encode({"event": "failed", "exit": code, "kind": kind, "error": reason}))


def log_text(data_dir: str | None, message: Message) -> str:
    """What became of the log."""
    return f"the log in {data_dir} is {message.get('state')}: {message.get('error') or 'all is well again'}"


def recovery_text(progress: Message) -> str:
    """How far a start is, for `systemctl status`."""
    return f"recovering: {_share(int(progress.get('bytes') or 0), int(progress.get('of_bytes') or 0))}"


def audit_text(message: Message) -> str:
    """What came of the audit after a warm start."""
    findings, trouble = message.get("findings") or [], message.get("trouble")
    text = f"not finished: {trouble}" if trouble else f"{message.get('count')} findings"
    return f"audit of the adopted arena: {text}" + (f", the first: {findings[0]}" if findings else "")


def job_text(event: Message) -> str:
    """How far a job is."""
    phase = f" ({event['phase']})" if event.get("phase") else ""
    return f"{event.get('kind')}{phase}: {_share(int(event.get('done_bytes') or 0), int(event.get('of_bytes') or 0))}"


def _share(done_bytes: int, of_bytes: int) -> str:
    share = f", {done_bytes / of_bytes:.0%}" if of_bytes else ""
    return f"{done_bytes / 1e6:.1f} of {of_bytes / 1e6:.1f} MB{share}"


def seconds_since_exec() -> float:
    """Age of this process, from its start time in /proc (10 ms steps)."""
    with open("/proc/self/stat", "rb") as file:
        ticks = int(file.read().rpartition(b") ")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def _write(descriptor: int, line: bytes) -> None:
    try:
        os.write(descriptor, line)
    except (BrokenPipeError, BlockingIOError, OSError):
        # I1: a closed terminal, a full pipe or a full disk under a log file must not stop a store.
        return
