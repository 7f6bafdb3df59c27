"""The keeper: a child that expires entries, reaps dead attachments, repairs and audits, stripe by stripe.

Why here: what must happen although nobody comes by. It is the only maintenance process that takes the
arena's locks, so the supervisor may kill it at any moment and start another.

Invariants:
  I1  Every stripe is swept once right after the start (whatever a kill left is repaired then), and at
      least every SWEEP_PERIOD_S afterwards, spread evenly: no burst, no long hold of a lock.
  I2  Between two stripes it looks at its commands. An audit, which walks everything, runs in a thread of its own.
  I3  When its supervisor dies it ends and leaves the arena; only a throw-away store whose owner is dead
      as well is retired and unlinked, by whoever is left: this process.
  I4  A store without a log gets a sign of life with each turn: without it, and without a supervisor, its writers
      stop at the lag limit, as those of a log do without a persister.
"""

from __future__ import annotations

import json
import os
import selectors
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import posix_ipc

from shmkv import errors, paths
from shmkv.segment import _core
from shmkv.supervisor.arena import ArenaFile
from shmkv.supervisor.lines import LineReader, Message, encode
from shmkv.supervisor.states import Exit

TICK_S = 0.1
REAP_PERIOD_S = 0.25
SWEEP_PERIOD_S = 8.0
HEARTBEAT_S = 1.0
# Huge pages: the kernel copies 2 MiB in 2-4 ms, so this takes about a seventh of a core until all is done.
COLLAPSE_TICK_BYTES = 8 << 20
COLLAPSE_FAILURES_MAX = 3
# States of the world that a sweep can meet; the next round tries again, and the heartbeat says so.
PASSING = (errors.LockTimeout, errors.LogStalled, errors.DiskFull, errors.ReadOnly, errors.DurabilityUnknown)


class Audit(threading.Thread):
    """One walk over the whole arena; `findings` and `trouble` are complete when the thread has ended."""

    def __init__(self, fd: int) -> None:
        super().__init__(name="audit", daemon=True)
        self._arena = _core.Arena(fd)
        self.findings: list[Any] = []
        self.trouble = ""

    def run(self) -> None:
        """Locks one stripe after another; a lock that stays busy ends the audit without a verdict."""
        try:
            self.findings = self._arena.audit()
        except (*PASSING, errors.StoreUnavailable) as error:
            self.trouble = f"{type(error).__name__}: {error}"
        self._arena.close()


class Keeper:
    """One arena under maintenance; `run` returns the exit code."""

    def __init__(self, file: ArenaFile, arguments: Message) -> None:
        self._file = file
        self._arena = _core.Arena(file.fd)
        self._event_fd: int | None = arguments["event_fd"]
        self._owner_fd: int | None = arguments["owner_fd"]
        self._audit = Audit(file.fd) if arguments["audit"] else None
        self._has_log: bool = arguments["has_log"]
        info = self._arena.info()
        self._stripes: int = info["stripes"]
        self._size_bytes: int = info["size_bytes"]
        self._selector = selectors.DefaultSelector()
        self._selector.register(0, selectors.EVENT_READ)
        self._reader = LineReader()
        self._next_stripe = 0
        self._swept = 0
        self._reaped = 0
        self._trouble = ""
        self._collapsed_bytes = 0
        self._collapse_failures = 0
        self._exit: Exit | None = None

    def run(self) -> Exit:
        """Work until a command, the supervisor's end, or the end of the arena."""
        next_reap_s = next_beat_s = 0.0
        self._say({"event": "ready"})
        while self._exit is None:
            if not self._has_log:
                self._arena.attend()
            now_s = time.monotonic()
            if now_s >= next_reap_s:
                self._guard(self._reap)
                next_reap_s = now_s + REAP_PERIOD_S
            for _ in range(self._stripes_of_tick()):
                self._guard(self._sweep)
            if self._swept >= self._stripes:
                if self._audit is not None:
                    self._follow_audit(self._audit)
                else:
                    self._collapse()
            if now_s >= next_beat_s:
                self._beat()
                next_beat_s = now_s + HEARTBEAT_S
            first_round = self._swept < self._stripes
            self._listen(0.0 if first_round and not self._trouble else TICK_S)
        if self._audit is not None and self._audit.is_alive():
            # It is inside the arena without the interpreter's lock: nothing may be unmapped under it.
            os._exit(self._exit)
        return self._exit

    def _stripes_of_tick(self) -> int:
        if self._exit is not None:
            return 0
        return 1 if self._swept < self._stripes else max(1, round(self._stripes * TICK_S / SWEEP_PERIOD_S))

    def _guard(self, work: Callable[[], None]) -> None:
        """Run one step; a passing trouble is told with the heartbeat, the end of the arena ends us."""
        if self._exit is not None:
            return
        try:
            work()
        except PASSING as error:
            self._trouble = f"{type(error).__name__}: {error}"
        except errors.StoreUnavailable:
            self._exit = Exit.CLEAN

    def _reap(self) -> None:
        self._reaped += self._arena.reap()

    def _sweep(self) -> None:
        stripe = self._next_stripe
        self._next_stripe = (stripe + 1) % self._stripes
        self._swept += 1
        self._arena.sweep(stripe)
        if self._next_stripe == 0:
            self._trouble = ""

    def _follow_audit(self, audit: Audit) -> None:
        if not audit.ident:
            audit.start()
        elif not audit.is_alive():
            self._audit = None
            if audit.findings:
                self._arena.set_state(condemned=True)
            told = {"findings": audit.findings[:20], "count": len(audit.findings), "trouble": audit.trouble}
            self._say({"event": "audit", **told})

    def _collapse(self) -> None:
        """Put the next piece of the arena on huge pages: a look-up then misses the TLB less often."""
        if self._collapsed_bytes >= self._size_bytes or self._collapse_failures >= COLLAPSE_FAILURES_MAX:
            return
        if not self._arena.collapse(self._collapsed_bytes, COLLAPSE_TICK_BYTES):
            self._collapse_failures += 1
        self._collapsed_bytes += COLLAPSE_TICK_BYTES

    def _beat(self) -> None:
        if self._arena.info()["retired"]:
            self._exit = Exit.CLEAN
        self._say({"event": "progress", "swept": self._swept, "reaped": self._reaped, "trouble": self._trouble})

    def _say(self, message: Message) -> None:
        if self._event_fd is None:
            return
        try:
            os.write(self._event_fd, encode(message))
        except BrokenPipeError:
            # The supervisor is gone; the command pipe says so, too, and decides.
            self._event_fd = None

    def _listen(self, timeout_s: float) -> None:
        for key, _ in self._selector.select(timeout_s):
            if key.fd != 0:
                self._retire()
                return
            data = os.read(0, 4096)
            if not data:
                self._orphan()
                return
            for command in self._reader.feed(data):
                self._obey(command)

    def _obey(self, command: Message) -> None:
        if command.get("do") == "retire" and not self._has_log:
            self._retire()
        elif command.get("do") in ("stop", "retire"):
            self._exit = Exit.CLEAN

    def _orphan(self) -> None:
        self._selector.unregister(0)
        if self._owner_fd is None or self._has_log:
            self._exit = Exit.CLEAN
        else:
            # The owner goes on using its store; from now on we wait for its end.
            self._selector.register(self._owner_fd, selectors.EVENT_READ)

    def _retire(self) -> None:
        self._exit = Exit.CLEAN
        try:
            self._arena.retire()
        finally:
            self._file.unlink()


def main(argv: list[str]) -> int:
    """`python -m shmkv.supervisor.keeper JSON`: name, event_fd, has_log, audit, owner_fd."""
    arguments = json.loads(argv[0])
    name = arguments["name"]
    try:
        file = ArenaFile(name, posix_ipc.SharedMemory(paths.object_name(name)).fd)
        keeper = Keeper(file, arguments)
    except (posix_ipc.ExistentialError, errors.ShmkvError) as error:
        said = {"event": "failed", "error": f"cannot attach to {name!r}: {error}", "exit": int(Exit.RETRY)}
        try:
            os.write(arguments["event_fd"], encode(said))
        except BrokenPipeError:
            # The supervisor is gone, too: nobody is left who wants to know.
            return Exit.CLEAN
        return Exit.RETRY
    return keeper.run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
