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

from shmkv.config import Settings
from shmkv.supervisor import opening
from shmkv.supervisor.arena import Refused, arena_kept
from shmkv.supervisor.child import ManagedChild, describe_exit
from shmkv.supervisor.control import ControlServer
from shmkv.supervisor.crew import Crew, Hooks, Recipe
from shmkv.supervisor.early import PERSISTER_MODULE, EarlyPersister
from shmkv.supervisor.jobs import Jobs
from shmkv.supervisor.lines import Message
from shmkv.supervisor.loop import Loop, Signals
from shmkv.supervisor.places import HeldPlaces, Places
from shmkv.supervisor.recipes import KEEPER_MODULE, keeper_arguments, persister_arguments
from shmkv.supervisor.report import Report, audit_text, log_text, recovery_text, seconds_since_exec
from shmkv.supervisor.states import KIND_OF_EXIT, Child, Do, Event, Exit, Phase, store_step
from shmkv.supervisor.status import store_status
from shmkv.supervisor.systemd import Notifier

HEALTH_INTERVAL_S = 1.0
HELPER_STOP_S = 10.0
HURRY_S = 1.0
REOPEN_LIMIT = 3


class Supervisor:
    """One run: `run` returns the exit code when everything has ended."""

    def __init__(
        self, settings: Settings, places: Places, report: Report, loop: Loop, *,
        early: EarlyPersister, owner_fd: int | None = None,
    ) -> None:  # fmt: skip
        """`owner_fd`: pidfd of the process with whose end the store ends, for `launch`."""
        self.settings = settings
        self._places = places
        self._report = report
        self._loop = loop
        self._early = early
        self._owner_fd = owner_fd
        self._notifier = Notifier()
        # Asked now: a terminal that has hung up is none any more.
        self._on_terminal = os.isatty(0)
        self._phase = Phase.OPENING
        self._after = Event.STOP  # why we stop: STOP, LOST, SWITCH or FAILED
        self._stop_wanted = False  # asked while a lost or switched arena was on its way down
        self._refusal: Refused | None = None
        self._held = HeldPlaces(places)
        self._control: ControlServer | None = None
        self._opened: opening.Opened | None = None
        self._opens = 0
        self._opened_s = 0.0  # when the arena after the first one was begun
        self._ready: Message = {}
        self._log_error = ""
        self._persister = ManagedChild("persister") if places.data is not None else None
        self._jobs = Jobs(self._persister, settings.memory, lambda: self._phase is Phase.SERVING)
        self._keeper = ManagedChild("keeper")
        self._helpers = [self._keeper]
        self._crew = Crew(loop, report, Hooks(
            recipe=self._recipe, message=self._on_message, ready=self._on_ready, died=self._on_died,
            refused=self._on_refused, finished=self._on_finished, ended=self._on_ended, may_start=self._may_start,
        ), early.start_process)  # fmt: skip

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
        self._held.take()
        self._control = self._held.listen(self._loop.selector, {
            "status": self._on_status, "shutdown": self._on_shutdown,
            "start_job": self._jobs.on_start, "job": self._jobs.on_look,
        })  # fmt: skip
        if self._control is not None:
            self._jobs.publish_to(self._control.publish)

    def _close(self, signals: Signals) -> None:
        self._early.close()
        if self._opened is not None:
            self._opened.close()
        if self._control is not None:
            self._jobs.store_ended()
            self._control.stop_listening()
        self._held.give_back()
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
        # Of a later arena: since the first step towards it.
        age_s = seconds_since_exec() if self._opened_s == 0 else self._loop.clock() - self._opened_s
        control = self._control.path if self._control else None
        self._notifier.ready(self._report.announce(
            age_s, warm=not self._opened.created, data_dir=self._places.data, control=control, told=self._ready
        ))  # fmt: skip
        self._jobs.store_serves()
        self._check_health(self._loop.clock())
        self._notifier.feed_watchdog(self._loop)

    # ---- children -----------------------------------------------------------------------------

    def _recipe(self, child: ManagedChild) -> Recipe:
        assert self._opened is not None
        if child is not self._persister:
            has_log = self._persister is not None
            fresh, owner = self._opened.created, self._owner_fd
            return KEEPER_MODULE, keeper_arguments(self.settings, has_log, fresh, owner is not None), owner
        # A restart while serving finds the arena alive, however it began.
        created = self._opened.created and not self._opened.serving
        assert self._places.data is not None
        return PERSISTER_MODULE, persister_arguments(self.settings, self._places.data, created), None

    def _on_message(self, child: ManagedChild, message: Message) -> None:
        kind = message.get("event")
        if child is self._persister and isinstance(message.get("snapshots"), list):
            self._jobs.know_snapshots(message["snapshots"])
        if kind == "ready" and child is self._persister and self._phase is Phase.STARTING:
            self._ready = message
        elif kind == "job":
            self._on_job(message)
        elif kind in ("progress", "recovering"):
            child.progress = message
            if kind == "recovering":
                self._notifier.status(recovery_text(message))
        elif kind == "log_state":
            self._log_error = str(message.get("error") or "")
            self._report.warn(log_text(self._places.data, message))
            self._notifier.status(f"log: {message.get('state')}")
        elif kind == "audit":
            tell = self._report.warn if message.get("findings") or message.get("trouble") else self._report.note
            tell(audit_text(message))

    def _on_ready(self, child: ManagedChild) -> None:
        if child is not self._persister:
            return
        if self._opened is not None and (shortage := self._opened.file.shortage()):
            self._fail(shortage)
            self._after = Event.FAILED
            self._event(Event.FAILED)
        else:
            self._event(Event.PERSISTER_READY)

    def _on_died(self, child: ManagedChild, what: str) -> bool:
        if child is self._persister:
            self._jobs.persister_ended(what)
        if child is not self._persister or self._phase is not Phase.STARTING:
            return False
        if self._opened_s and self._opens < REOPEN_LIMIT:
            self._open_again(child, what)
            return True
        self._after = Event.FAILED
        held = child.last_exit == Exit.LOCK_HELD
        code, kind = (Exit.LOCK_HELD, "StoreExists") if held else (Exit.RETRY, "StoreUnavailable")
        assert self._opened is not None
        # A shortage of pages shows as SIGBUS in the persister, which says nothing of its cause.
        self._fail(self._opened.file.shortage() or Refused(code, kind, f"the persister did not start: {what}"))
        self._event(Event.FAILED)
        return True

    def _open_again(self, child: ManagedChild, what: str) -> None:
        """A store that served before does not end because one try to begin anew was killed."""
        self._report.warn(f"the persister {what} before the new arena was ready; it is made once more")
        self._crew.stop(child, {}, 0.0)
        if self._opened is not None and self._opened.created:
            self._opened.remove()
        self._event(Event.OLD_ARENA_FINISHED)

    def _on_refused(self, child: ManagedChild) -> None:
        code = Exit(child.last_exit or 0)
        text = child.last_error or f"the {child.role} {describe_exit(code)}"
        if child is self._persister:
            self._jobs.persister_ended(text)
        # A configuration is wrong in many ways; a key that is not the one has a name of its own.
        kind = child.last_kind if child.last_kind == "WrongKey" else KIND_OF_EXIT[code]
        self._fail(Refused(code, kind, text))
        self._after = Event.FAILED
        if self._phase in (Phase.STARTING, Phase.SERVING):
            self._event(Event.FAILED)

    def _on_finished(self, child: ManagedChild) -> None:
        if self._phase is Phase.STARTING:
            self._event(Event.OLD_ARENA_FINISHED)
        elif self._phase is Phase.SERVING and child is self._persister:
            self._lose("the arena could not be adopted again")

    def _on_ended(self, child: ManagedChild) -> None:
        if child is self._persister:
            self._jobs.persister_ended("it was asked to end")
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
        elif self._begins_anew() and not self._stop_wanted:
            self._stop_wanted = True
            self._report.note("stopping as soon as the old arena has ended")

    def _asked_to_stop(self, now_s: float) -> None:
        if self._phase in (Phase.STARTING, Phase.SERVING) or (self._begins_anew() and not self._stop_wanted):
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

    def _begins_anew(self) -> bool:
        return self._after in (Event.LOST, Event.SWITCH)

    def _ends_arena(self) -> bool:
        return self._begins_anew() or (self._after is Event.STOP and not self.settings.keep_arena)

    def _stop_command(self, child: ManagedChild) -> Message:
        is_last = child is (self._persister or self._keeper)
        command: Message = {"do": "retire" if is_last and self._ends_arena() else "stop"}
        if is_last and self._after is Event.SWITCH:
            command["switch"] = self._jobs.restored_generation
        return command

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
            # The end of a switch is finished by the next persister, whatever the last one had done of it.
            goes_on = self._after is Event.SWITCH and not self._stop_wanted
            if self._ends_arena() and self._persister is not None and not goes_on:
                self._fail(arena_kept(describe_exit(self._persister.last_exit or 0), self._persister.last_error))
        if not self._begins_anew() or self._refusal is not None or self._stop_wanted:
            return
        if self._persister is None:
            self._fail(Refused(
                Exit.RETRY, "StoreUnavailable",
                "the shared memory is lost, and with it all data of this memory-only store; start it again",
            ))  # fmt: skip
            return
        self._after = Event.STOP
        self._opened_s = self._loop.clock()
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
        if reason := self._opened.trouble():
            self._lose(reason)
        return bool(reason)

    # ---- control socket -----------------------------------------------------------------------

    def _children(self) -> list[ManagedChild]:
        return ([self._persister] if self._persister is not None else []) + self._helpers

    def _on_status(self, request: Message) -> Message:
        return store_status(
            self.settings, self._places, self._phase, self._opened, self._persister, self._children(), self._ready,
            self._loop.clock(),
        ) | {"snapshots": self._jobs.snapshots, "jobs": self._jobs.status(), "log_error": self._log_error}  # fmt: skip

    def _on_shutdown(self, request: Message) -> Message:
        self._loop.call_at("shutdown", self._loop.clock(), lambda _: self._stop())
        return {"pid": os.getpid(), "until_end": True}

    def _on_job(self, message: Message) -> None:
        if self._jobs.is_restored(message, self._phase is Phase.SERVING):
            self._report.note("restored data is ready; the store begins anew with it")
            self._after = Event.SWITCH
            self._event(Event.SWITCH)
        if message.get("state") == "failed":
            self._report.warn(f"{message.get('kind')} {message.get('job')} failed: {message.get('error')}")
        self._notifier.status(self._jobs.text())
