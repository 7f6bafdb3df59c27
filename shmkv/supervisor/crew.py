"""The children of a store as one crew: starts them, hears them, restarts them, ends them.

Why here: between `child` (one process) and `service` (what a death means for the store).

Invariants:
  I1  A child's state moves only by the table in `states`.
  I2  What a child wrote before its end is heard before the end is acted on.
  I3  Nothing here waits: a stop is a command and a deadline, the end comes as an event.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from shmkv.supervisor.child import ManagedChild, Process, describe_exit
from shmkv.supervisor.lines import Message, ProtocolError
from shmkv.supervisor.loop import Loop
from shmkv.supervisor.report import Report
from shmkv.supervisor.states import Child, ChildDo, ChildEvent, Exit, backoff_s, child_event_of_exit

# What `Process` needs to start a child: module, arguments, a descriptor to hand over.
Recipe = tuple[str, Message, int | None]
StartProcess = Callable[[str, Message, int | None], Process]


class Hooks(NamedTuple):
    """What the crew asks and tells the store."""

    recipe: Callable[[ManagedChild], Recipe]
    message: Callable[[ManagedChild, Message], None]
    ready: Callable[[ManagedChild], None]
    died: Callable[[ManagedChild, str], bool]  # True: do not restart, the store ends
    refused: Callable[[ManagedChild], None]
    finished: Callable[[ManagedChild], None]
    ended: Callable[[ManagedChild], None]
    may_start: Callable[[], bool]


class Crew:
    """All children; `stop` and `start` return at once."""

    def __init__(self, loop: Loop, report: Report, hooks: Hooks, start_process: StartProcess = Process) -> None:
        self._loop = loop
        self._report = report
        self._hooks = hooks
        self._start_process = start_process

    def start(self, child: ManagedChild) -> None:
        """Start it; it is one that is down."""
        self._step(child, ChildEvent.START)

    def stop(self, child: ManagedChild, command: Message, allowed_s: float) -> None:
        """Ask it to end, kill it when it takes longer than `allowed_s`; `ended` tells when it is gone.

        As long as it tells of a job that makes progress, its time begins anew: a last snapshot may be large.
        """
        self._loop.cancel(f"start {child.role}")
        action = child.step(ChildEvent.STOP)
        if action is ChildDo.ASK and child.process is not None:
            child.process.send(command)
            self.hurry(child, allowed_s)
            child.patience_s = allowed_s
        elif action is ChildDo.ENDED:
            self._hooks.ended(child)

    def hurry(self, child: ManagedChild, allowed_s: float) -> None:
        """Kill it when it is not gone after `allowed_s`, whatever it tells."""
        child.patience_s = None
        self._loop.call_at(f"late {child.role}", self._loop.clock() + allowed_s, lambda _: self._late(child))

    def _be_patient(self, child: ManagedChild, allowed_s: float) -> None:
        self.hurry(child, allowed_s)
        child.patience_s = allowed_s

    def check_heartbeat(self, child: ManagedChild, limit_s: float) -> None:
        """Kill a child that was silent for too long, unless the disk holds it: a second one would hang as well."""
        silent_s = self._loop.clock() - child.heard_s
        if child.state not in (Child.UP, Child.BOOTING) or child.process is None:
            return
        if silent_s <= limit_s:
            if child.hangs:
                self._report.warn(f"the {child.role} (process {child.process.pid}) goes on")
            child.hangs = False
            return
        if child.process.waits_for_disk():
            if not child.hangs:
                self._report.warn(
                    f"the {child.role} (process {child.process.pid}) has waited for the disk for {silent_s:.0f} s; "
                    "writers wait with it when the ring or the lag limit is reached, reads go on; look at the disk"
                )
            child.hangs = True
            return
        if child.state is Child.BOOTING:
            # A start takes as long as it takes.
            return
        self._report.warn(
            f"the {child.role} (process {child.process.pid}) was silent for {silent_s:.0f} s and is killed"
        )
        self._step(child, ChildEvent.LATE)

    def _step(self, child: ManagedChild, event: ChildEvent) -> None:
        action = child.step(event)
        actions: dict[ChildDo, Callable[[ManagedChild], None]] = {
            ChildDo.SPAWN: self._spawn,
            ChildDo.ANNOUNCE: self._hooks.ready,
            ChildDo.SCHEDULE: self._schedule,
            ChildDo.GIVE_UP: self._hooks.refused,
            ChildDo.TELL: self._hooks.finished,
            ChildDo.KILL: self._kill,
            ChildDo.ENDED: self._hooks.ended,
        }
        if action in actions:
            actions[action](child)

    def _kill(self, child: ManagedChild) -> None:
        if child.process is not None:
            child.process.kill()

    def _spawn(self, child: ManagedChild) -> None:
        now_s = self._loop.clock()
        try:
            process = self._start_process(*self._hooks.recipe(child))
        except OSError as error:
            child.started(None, now_s)
            child.last_error = f"cannot be started: {error}"
            child.ended(Exit.RETRY, now_s)
            self._step(child, ChildEvent.DIED)
            return
        child.started(process, now_s)
        self._loop.watch(process.pidfd, partial(self._on_end, child, process))
        self._loop.watch(process.events, lambda _: self._hear(child, process))

    def _hear(self, child: ManagedChild, process: Process) -> None:
        self._on_messages(child, process)

    def _on_messages(self, child: ManagedChild, process: Process) -> bool:
        """Hear what came; True if there may be more."""
        try:
            messages = process.receive()
        except ProtocolError as error:
            self._report.warn(f"the {child.role} (process {process.pid}) talks nonsense and is killed: {error}")
            self._loop.forget(process.events)
            process.kill()
            return False
        if messages is None:
            self._loop.forget(process.events)
            return False
        for message in messages:
            child.heard_s = self._loop.clock()
            if message.get("event") == "failed":
                child.last_error = str(message.get("error", ""))
                child.last_kind = str(message.get("kind", ""))
            self._hooks.message(child, message)
            if child.patience_s is not None and message.get("event") == "job" and message.get("state") == "running":
                self._be_patient(child, child.patience_s)
            if message.get("event") == "ready":
                self._step(child, ChildEvent.READY)
        return bool(messages)

    def _on_end(self, child: ManagedChild, process: Process, now_s: float) -> None:
        code = process.reap()
        if code is None:
            return
        while self._loop.watches(process.events) and self._on_messages(child, process):
            pass
        if self._loop.watches(process.events):
            self._loop.forget(process.events)
        self._loop.forget(process.pidfd)
        self._loop.cancel(f"late {child.role}")
        child.ended(code, now_s)
        self._step(child, child_event_of_exit(child.state, code))

    def _schedule(self, child: ManagedChild) -> None:
        what = child.last_error or describe_exit(child.last_exit or 0)
        if self._hooks.died(child, what):
            return
        delay_s = backoff_s(child.failures)
        self._report.warn(f"the {child.role} {what}; next try in {delay_s:g} s")
        self._loop.call_at(f"start {child.role}", self._loop.clock() + delay_s, lambda _: self._due(child))

    def _due(self, child: ManagedChild) -> None:
        if self._hooks.may_start():
            self._step(child, ChildEvent.DUE)

    def _late(self, child: ManagedChild) -> None:
        if child.process is not None:
            self._report.warn(f"the {child.role} (process {child.process.pid}) did not end in time and is killed")
            self._step(child, ChildEvent.LATE)
