"""The supervisor of one store: feeds what happens into the tables of `states` and carries out what they say.

Why here: the only file that knows all parts: locks, arena, children, control socket, systemd, report.

Invariants:
  I1  What to do next is decided by the tables; this file looks up, acts, and reports.
  I2  The first reason for an end is the one that is told, and its exit code is ours.
  I3  An arena whose log is not complete is never removed: the next start goes on from it.
"""

from __future__ import annotations

import os
import signal
from typing import NamedTuple

from shmkv import paths
from shmkv.config import Settings
from shmkv.supervisor import arena as arenas
from shmkv.supervisor import opening
from shmkv.supervisor.arena import Refused
from shmkv.supervisor.child import EVENT_FD, EXTRA_FD, ManagedChild, describe_exit
from shmkv.supervisor.control import ControlServer
from shmkv.supervisor.crew import Crew, Hooks, Recipe
from shmkv.supervisor.lines import Message
from shmkv.supervisor.loop import Loop, Signals
from shmkv.supervisor.report import Report, seconds_since_exec
from shmkv.supervisor.states import Child, Do, Event, Exit, Phase, store_step
from shmkv.supervisor.systemd import Notifier

PERSISTER_MODULE = "shmkv.wal.persister"
KEEPER_MODULE = "shmkv.supervisor.keeper"
HEALTH_INTERVAL_S = 1.0
HELPER_STOP_S = 10.0
HURRY_S = 1.0
REOPEN_LIMIT = 3
KIND_OF_EXIT = {
    Exit.DAMAGED_LOG: "CorruptData",
    Exit.CANNOT_CREATE: "StoreUnavailable",
    Exit.BAD_CONFIG: "InvalidSetting",
}


class Places(NamedTuple):
    """Directories of this run; None where the store has none. `runtime` holds lock and control socket."""

    data: str | None
    runtime: str | None


class Supervisor:
    """One run: `run` returns the exit code when everything has ended."""

    def __init__(
        self, settings: Settings, places: Places, report: Report, loop: Loop, *, owner_fd: int | None = None
    ) -> None:
        """`owner_fd`: pidfd of the process with whose end the store ends, for `launch`."""
        self.settings = settings
        self._places = places
        self._report = report
        self._loop = loop
        self._owner_fd = owner_fd
        self._notifier = Notifier()
        # Asked now: a terminal that has hung up is none any more.
        self._on_terminal = os.isatty(0)
        self._phase = Phase.OPENING
        self._after = Event.STOP  # why we stop: STOP, LOST or FAILED
        self._refusal: Refused | None = None
        self._locks: list[tuple[str, int, bool]] = []
        self._control: ControlServer | None = None
        self._opened: opening.Opened | None = None
        self._opens = 0
        self._ready: Message = {}
        self._persister = ManagedChild("persister") if places.data is not None else None
        self._keeper = ManagedChild("keeper")
        self._helpers = [self._keeper]
        self._crew = Crew(loop, report, Hooks(
            recipe=self._recipe, message=self._on_message, ready=self._on_ready, died=self._on_died,
            refused=self._on_refused, finished=self._on_finished, ended=self._on_ended, may_start=self._may_start,
        ))  # fmt: skip

    # ---- life ---------------------------------------------------------------------------------

    def run(self) -> Exit:
        """Start, serve, end; tells why when it was not asked to end."""
        handlers = {
            signal.SIGTERM: self._asked_to_stop,
            signal.SIGINT: self._asked_to_stop,
            signal.SIGHUP: self._hung_up,
        }
        signals = Signals(self._loop, handlers)
        try:
            self._take_places()
            if self._owner_fd is not None:
                self._loop.watch(self._owner_fd, self._owner_died)
            self._open()
            while self._phase is not Phase.ENDED:
                self._loop.turn()
        except Refused as refusal:
            self._fail(refusal)
        finally:
            self._close(signals)
        if self._refusal is None:
            return Exit.CLEAN
        self._report.failed(self._refusal.code, self._refusal.kind, self._refusal.reason)
        return self._refusal.code

    def _take_places(self) -> None:
        try:
            if self._places.data is not None:
                os.makedirs(self._places.data, mode=0o700, exist_ok=True)
                self._locks.append((self._places.data, arenas.lock_directory(self._places.data), False))
            if self._places.runtime is not None:
                paths.make_private_dir(self._places.runtime)
                self._locks.append((self._places.runtime, arenas.lock_directory(self._places.runtime), True))
                handlers = {"status": self._on_status, "shutdown": self._on_shutdown}
                self._control = ControlServer(self._places.runtime, self._loop.selector, handlers)
        except OSError as error:
            raise Refused(Exit.CANNOT_CREATE, "StoreUnavailable", f"cannot set up the directories: {error}") from None

    def _close(self, signals: Signals) -> None:
        if self._opened is not None:
            self._opened.close()
        if self._control is not None:
            self._control.stop_listening()
        for directory, fd, remove in self._locks:
            arenas.unlock_directory(directory, fd, remove=remove)
            if remove:
                paths.remove_if_empty(directory)
        self._notifier.close()
        if self._control is not None:
            self._control.close()
        signals.close()
        self._loop.close()

    def _event(self, event: Event) -> None:
        self._phase, action = store_step(self._phase, event)
        actions = {
            Do.OPEN: self._open,
            Do.START_PERSISTER: self._start_persister,
            Do.ANNOUNCE: self._announce,
            Do.STOP_HELPERS: self._stop_helpers,
            Do.STOP_PERSISTER: self._stop_persister,
            Do.FINISH: self._finish,
        }
        if action is not Do.NOTHING:
            actions[action]()

    def _fail(self, refusal: Refused) -> None:
        if self._refusal is None:
            self._refusal = refusal

    # ---- start --------------------------------------------------------------------------------

    def _open(self) -> None:
        self._opens += 1
        if self._opens > REOPEN_LIMIT:
            raise Refused(
                Exit.RETRY, "StoreUnavailable",
                f"the arena could not be adopted {REOPEN_LIMIT} times in a row; look at the persister's messages",
            )  # fmt: skip
        if self._opened is not None:
            self._opened.close()
        self._opened = opening.open_arena(self.settings, has_log=self._persister is not None, report=self._report)
        self._event(Event.OPENED_WITH_LOG if self._persister is not None else Event.OPENED_WITHOUT_LOG)

    def _start_persister(self) -> None:
        assert self._persister is not None
        self._crew.start(self._persister)

    def _announce(self) -> None:
        assert self._opened is not None
        self._opened.serve(self.settings)
        self._opens = 0
        self._crew.start(self._keeper)
        warm = not self._opened.created
        records = int(self._ready.get("records", 0))
        age_s = seconds_since_exec()
        kind = "warm" if warm else f"cold, {records} records"
        where = f"data: {self._places.data}" if self._places.data else "memory only"
        control = f"; control: {self._control.path}" if self._control else ""
        line = f'is ready in {age_s:.2f} s ({kind}); attach: shmkv.attach("{self.settings.name}"); {where}{control}'
        self._report.ready(line, {
            "name": self.settings.name, "pid": os.getpid(), "warm": warm, "records": records, "seconds": age_s,
            "data_dir": self._places.data, "control": self._control.path if self._control else None,
            "warnings": self._ready.get("warnings", []),
        })  # fmt: skip
        for warning in self._ready.get("warnings", []):
            self._report.warn(str(warning))
        self._notifier.ready(f"serving ({kind})")
        now_s = self._loop.clock()
        self._check_health(now_s)
        if self._notifier.watchdog_interval_s:
            self._feed_watchdog(now_s)

    # ---- children -----------------------------------------------------------------------------

    def _recipe(self, child: ManagedChild) -> Recipe:
        assert self._opened is not None
        settings = self.settings
        if child is not self._persister:
            return KEEPER_MODULE, {
                "name": settings.name, "event_fd": EVENT_FD, "has_log": self._persister is not None,
                "audit": not self._opened.created, "owner_fd": EXTRA_FD if self._owner_fd is not None else None,
            }, self._owner_fd  # fmt: skip
        # A restart while serving finds the arena alive, however it began.
        created = self._opened.created and not self._opened.serving
        return PERSISTER_MODULE, {
            "name": settings.name, "data_dir": self._places.data, "created": created,
            "durability": settings.durability, "sync_interval_s": settings.sync_interval,
            "lag_limit_s": settings.lag_limit, "event_fd": EVENT_FD, "accept_loss": settings.accept_loss,
            "file_bytes": settings.log_file, "plan": opening.plan_of(settings),
        }, None  # fmt: skip

    def _on_message(self, child: ManagedChild, message: Message) -> None:
        kind = message.get("event")
        if kind == "ready" and child is self._persister and self._phase is Phase.STARTING:
            self._ready = message
        elif kind in ("progress", "recovering"):
            child.progress = message
            if kind == "recovering":
                self._notifier.status(
                    f"recovering: {message.get('bytes')} of {message.get('of_bytes')} bytes of the log"
                )
        elif kind == "log_state":
            self._report.warn(f"the log is {message.get('state')}: {message.get('error') or 'all is well again'}")
            self._notifier.status(f"log: {message.get('state')}")
        elif kind == "audit":
            findings, trouble = message.get("findings") or [], message.get("trouble")
            tell = self._report.warn if findings or trouble else self._report.note
            text = f"not finished: {trouble}" if trouble else f"{message.get('count')} findings"
            tell(f"audit of the adopted arena: {text}" + (f", the first: {findings[0]}" if findings else ""))

    def _on_ready(self, child: ManagedChild) -> None:
        if child is self._persister:
            self._event(Event.PERSISTER_READY)

    def _on_died(self, child: ManagedChild, what: str) -> bool:
        if child is not self._persister or self._phase is not Phase.STARTING:
            return False
        self._after = Event.FAILED
        held = child.last_exit == Exit.LOCK_HELD
        code, kind = (Exit.LOCK_HELD, "StoreExists") if held else (Exit.RETRY, "StoreUnavailable")
        self._fail(Refused(code, kind, f"the persister did not start: {what}"))
        self._event(Event.FAILED)
        return True

    def _on_refused(self, child: ManagedChild) -> None:
        code = Exit(child.last_exit or 0)
        text = child.last_error or f"the {child.role} {describe_exit(code)}"
        self._fail(Refused(code, KIND_OF_EXIT[code], text))
        self._after = Event.FAILED
        if self._phase in (Phase.STARTING, Phase.SERVING):
            self._event(Event.FAILED)

    def _on_finished(self, child: ManagedChild) -> None:
        if self._phase is Phase.STARTING:
            self._event(Event.OLD_ARENA_FINISHED)
        elif self._phase is Phase.SERVING and child is self._persister:
            self._lose("the arena could not be adopted again")

    def _on_ended(self, child: ManagedChild) -> None:
        if self._phase is Phase.QUIETING and all(helper.state is Child.DOWN for helper in self._helpers):
            self._event(Event.HELPERS_GONE)
        elif self._phase is Phase.DRAINING and child is self._persister:
            self._event(Event.PERSISTER_GONE)

    def _may_start(self) -> bool:
        # A persister that starts without its arena would fail for a reason that helps nobody.
        return self._phase is not Phase.SERVING or not self._arena_is_lost()

    # ---- stop ---------------------------------------------------------------------------------

    def _stop(self) -> None:
        if self._phase in (Phase.STARTING, Phase.SERVING):
            self._after = Event.STOP
            self._notifier.stopping("writing what is left")
            self._report.note("stopping")
            self._event(Event.STOP)

    def _asked_to_stop(self, now_s: float) -> None:
        if self._phase in (Phase.STARTING, Phase.SERVING):
            self._stop()
        else:
            self._report.warn("in a hurry: what hangs is killed, the shared memory stays for the next start")
            for child in self._children():
                self._crew.hurry(child, HURRY_S)

    def _hung_up(self, now_s: float) -> None:
        if self._on_terminal:
            self._asked_to_stop(now_s)
        else:
            self._report.note("SIGHUP ignored: settings are read at the start only")

    def _owner_died(self, now_s: float) -> None:
        assert self._owner_fd is not None
        self._loop.forget(self._owner_fd)
        self._stop()

    def _lose(self, reason: str) -> None:
        self._report.warn(f"{reason}; the arena is retired, its writers get an error")
        self._after = Event.LOST
        self._event(Event.LOST)

    def _ends_arena(self) -> bool:
        return self._after is Event.LOST or (self._after is Event.STOP and not self.settings.keep_arena)

    def _stop_command(self, child: ManagedChild) -> Message:
        is_last = child is (self._persister or self._keeper)
        return {"do": "retire" if is_last and self._ends_arena() else "stop"}

    def _stop_helpers(self) -> None:
        for child in self._helpers:
            self._crew.stop(child, self._stop_command(child), HELPER_STOP_S)

    def _stop_persister(self) -> None:
        if self._persister is None:
            self._event(Event.PERSISTER_GONE)
        else:
            self._crew.stop(self._persister, self._stop_command(self._persister), self.settings.stop_timeout)

    def _finish(self) -> None:
        assert self._opened is not None
        clean = self._persister is None or self._persister.last_exit == Exit.CLEAN
        self._loop.cancel("health")
        if not self._opened.serving:
            # Adopted and not served: as it was before. Made and not served: of no use to anybody.
            if self._opened.created:
                self._opened.remove()
        elif self._ends_arena() and clean:
            if trouble := self._opened.remove():
                self._report.warn(trouble)
        else:
            self._opened.leave()
            if self._ends_arena() and self._persister is not None:
                self._fail(Refused(
                    Exit.RETRY, "StoreUnavailable",
                    f"the persister {describe_exit(self._persister.last_exit or 0)} before the log was complete; the "
                    f"shared memory is kept, and the next start of this store goes on from it",
                ))  # fmt: skip
        if self._after is not Event.LOST or self._refusal is not None:
            return
        if self._persister is None:
            self._fail(Refused(
                Exit.RETRY, "StoreUnavailable",
                "the shared memory is lost, and with it all data of this memory-only store; start it again",
            ))  # fmt: skip
            return
        self._after = Event.STOP
        self._event(Event.AGAIN)

    # ---- every second -------------------------------------------------------------------------

    def _check_health(self, now_s: float) -> None:
        if self._phase is not Phase.SERVING or self._arena_is_lost():
            return
        for child in self._children():
            self._crew.check_heartbeat(child, self.settings.heartbeat_timeout)
        if self._control is not None:
            self._control.drop_late(now_s)
        self._loop.call_at("health", now_s + HEALTH_INTERVAL_S, self._check_health)

    def _arena_is_lost(self) -> bool:
        assert self._opened is not None
        reason = self._opened.trouble()
        if reason:
            self._lose(reason)
        return bool(reason)

    def _feed_watchdog(self, now_s: float) -> None:
        assert self._notifier.watchdog_interval_s is not None
        self._notifier.alive()
        self._loop.call_at("watchdog", now_s + self._notifier.watchdog_interval_s, self._feed_watchdog)

    # ---- control socket -----------------------------------------------------------------------

    def _children(self) -> list[ManagedChild]:
        return ([self._persister] if self._persister is not None else []) + self._helpers

    def _on_status(self, request: Message) -> Message:
        now_s = self._loop.clock()
        arena = self._opened.status() if self._opened is not None else {}
        return {
            "name": self.settings.name, "pid": os.getpid(), "phase": self._phase.name,
            "up_s": round(seconds_since_exec(), 2),
            "data_dir": self._places.data, "durability": self.settings.durability,
            "arena": arena,
            "children": [child.status(now_s) for child in self._children()],
        }  # fmt: skip

    def _on_shutdown(self, request: Message) -> Message:
        self._loop.call_at("shutdown", self._loop.clock(), lambda _: self._stop())
        return {"pid": os.getpid(), "until_end": True}
