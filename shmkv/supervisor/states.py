"""The rules of supervision as two tables [state][event] -> (next state, what to do), and the exit codes.

Why here: every case is visible at one glance, and a test can walk all of them. Nothing in this file
does anything, and it imports nothing of shmkv: `loop` feeds events in and carries out what comes back.

A store:

    OPENING --log--> STARTING --ready--> SERVING --stop--> QUIETING --helpers gone--> DRAINING --> ENDED
       |  ^             |                   ^                                            |
       |  +--finished---+                   |     lost or condemned: the same way, then  |
       +---no log---------------------------+     OPENING again <-----------again--------+

A restore over a running store is a switch: the same way as lost, and the next arena comes from the restored data.

Invariants:
  I1  An event that a state does not list is a mistake of the loop, and raises.
  I2  A store is announced (SERVING) only after its persister said that it is ready.
  I3  The persister is asked to stop only when no keeper and no worker runs any more.
  I4  A child is spawned only from DOWN or WAITING, where no process of it exists: never two persisters.
"""

from enum import Enum, IntEnum, auto


class Exit(IntEnum):
    """Exit codes of supervisor, persister and keeper; the supervisor passes on what a child said."""

    CLEAN = 0
    RETRY = 1  # failed, may work the next time
    USAGE = 2
    DAMAGED_LOG = 65  # do not restart: needs a backup, or --accept-loss
    CANNOT_CREATE = 73  # no room for the arena or the log, or no permission
    LOCK_HELD = 75  # another supervisor has this store
    BAD_CONFIG = 78


FINAL_EXITS = frozenset({Exit.DAMAGED_LOG, Exit.CANNOT_CREATE, Exit.BAD_CONFIG})
# The exception that a program gets which launched the store.
KIND_OF_EXIT = {
    Exit.DAMAGED_LOG: "CorruptData",
    Exit.CANNOT_CREATE: "StoreUnavailable",
    Exit.BAD_CONFIG: "InvalidSetting",
}


class Child(Enum):
    """States of one child."""

    DOWN = auto()  # no process, none wanted
    BOOTING = auto()  # process runs, has not reported ready
    UP = auto()
    WAITING = auto()  # no process; the next one starts when the back-off is over
    STOPPING = auto()  # was asked to end


class ChildEvent(Enum):
    """What can happen to a child."""

    START = auto()
    READY = auto()
    DIED = auto()  # ended, a new one may do better
    REFUSED = auto()  # ended with one of FINAL_EXITS
    FINISHED = auto()  # ended cleanly before it was ready: there was nothing to adopt
    DUE = auto()  # the back-off is over
    STOP = auto()
    LATE = auto()  # a deadline passed: no heartbeat, or no end after STOP


class ChildDo(Enum):
    """What the loop does with it."""

    NOTHING = auto()
    SPAWN = auto()
    ANNOUNCE = auto()
    SCHEDULE = auto()  # arm the back-off
    GIVE_UP = auto()  # tell the store: this child can't run
    TELL = auto()  # tell the store: the old arena is finished
    ASK = auto()  # send the stop command, arm the deadline
    KILL = auto()
    ENDED = auto()  # tell the store: gone, as wanted


CHILD_TABLE: dict[Child, dict[ChildEvent, tuple[Child, ChildDo]]] = {
    Child.DOWN: {
        ChildEvent.START: (Child.BOOTING, ChildDo.SPAWN),
        ChildEvent.STOP: (Child.DOWN, ChildDo.ENDED),
    },
    Child.BOOTING: {
        ChildEvent.READY: (Child.UP, ChildDo.ANNOUNCE),
        ChildEvent.DIED: (Child.WAITING, ChildDo.SCHEDULE),
        ChildEvent.REFUSED: (Child.DOWN, ChildDo.GIVE_UP),
        ChildEvent.FINISHED: (Child.DOWN, ChildDo.TELL),
        ChildEvent.STOP: (Child.STOPPING, ChildDo.ASK),
        ChildEvent.LATE: (Child.BOOTING, ChildDo.KILL),
    },
    Child.UP: {
        ChildEvent.READY: (Child.UP, ChildDo.NOTHING),
        ChildEvent.DIED: (Child.WAITING, ChildDo.SCHEDULE),
        ChildEvent.REFUSED: (Child.DOWN, ChildDo.GIVE_UP),
        ChildEvent.STOP: (Child.STOPPING, ChildDo.ASK),
        ChildEvent.LATE: (Child.UP, ChildDo.KILL),
    },
    Child.WAITING: {
        ChildEvent.DUE: (Child.BOOTING, ChildDo.SPAWN),
        ChildEvent.STOP: (Child.DOWN, ChildDo.ENDED),
    },
    Child.STOPPING: {
        ChildEvent.READY: (Child.STOPPING, ChildDo.NOTHING),
        ChildEvent.DIED: (Child.DOWN, ChildDo.ENDED),
        ChildEvent.REFUSED: (Child.DOWN, ChildDo.ENDED),
        ChildEvent.STOP: (Child.STOPPING, ChildDo.NOTHING),
        ChildEvent.LATE: (Child.STOPPING, ChildDo.KILL),
    },
}


class Phase(Enum):
    """States of a store."""

    OPENING = auto()  # looking at, or making, the arena
    STARTING = auto()  # the first persister recovers or adopts
    SERVING = auto()
    QUIETING = auto()  # keeper and workers end
    DRAINING = auto()  # the persister writes what is left
    ENDED = auto()


class Event(Enum):
    """What can happen to a store."""

    OPENED_WITH_LOG = auto()
    OPENED_WITHOUT_LOG = auto()
    PERSISTER_READY = auto()
    OLD_ARENA_FINISHED = auto()  # the persister drained what could not be adopted, and ended
    FAILED = auto()  # a child can't run
    STOP = auto()
    LOST = auto()  # the name leads elsewhere, or the arena is condemned: begin anew
    SWITCH = auto()  # restored data lies ready: end this arena, begin anew with that
    HELPERS_GONE = auto()
    PERSISTER_GONE = auto()
    AGAIN = auto()  # after LOST or SWITCH


class Do(Enum):
    """What the loop does with it."""

    NOTHING = auto()
    OPEN = auto()
    START_PERSISTER = auto()
    ANNOUNCE = auto()  # set READY, start the helpers, say so
    STOP_HELPERS = auto()
    STOP_PERSISTER = auto()
    FINISH = auto()  # remove what is left; then end, or AGAIN


STORE_TABLE: dict[Phase, dict[Event, tuple[Phase, Do]]] = {
    Phase.OPENING: {
        Event.OPENED_WITH_LOG: (Phase.STARTING, Do.START_PERSISTER),
        Event.OPENED_WITHOUT_LOG: (Phase.SERVING, Do.ANNOUNCE),
    },
    Phase.STARTING: {
        Event.PERSISTER_READY: (Phase.SERVING, Do.ANNOUNCE),
        Event.OLD_ARENA_FINISHED: (Phase.OPENING, Do.OPEN),
        Event.FAILED: (Phase.DRAINING, Do.STOP_PERSISTER),
        Event.STOP: (Phase.DRAINING, Do.STOP_PERSISTER),
    },
    Phase.SERVING: {
        Event.PERSISTER_READY: (Phase.SERVING, Do.NOTHING),
        Event.FAILED: (Phase.QUIETING, Do.STOP_HELPERS),
        Event.STOP: (Phase.QUIETING, Do.STOP_HELPERS),
        Event.LOST: (Phase.QUIETING, Do.STOP_HELPERS),
        Event.SWITCH: (Phase.QUIETING, Do.STOP_HELPERS),
    },
    Phase.QUIETING: {
        Event.PERSISTER_READY: (Phase.QUIETING, Do.NOTHING),
        Event.FAILED: (Phase.QUIETING, Do.NOTHING),
        Event.STOP: (Phase.QUIETING, Do.NOTHING),
        Event.LOST: (Phase.QUIETING, Do.NOTHING),
        Event.HELPERS_GONE: (Phase.DRAINING, Do.STOP_PERSISTER),
    },
    Phase.DRAINING: {
        Event.PERSISTER_READY: (Phase.DRAINING, Do.NOTHING),
        Event.FAILED: (Phase.DRAINING, Do.NOTHING),
        Event.STOP: (Phase.DRAINING, Do.NOTHING),
        Event.LOST: (Phase.DRAINING, Do.NOTHING),
        Event.PERSISTER_GONE: (Phase.ENDED, Do.FINISH),
    },
    Phase.ENDED: {
        Event.STOP: (Phase.ENDED, Do.NOTHING),
        Event.AGAIN: (Phase.OPENING, Do.OPEN),
    },
}


def child_step(state: Child, event: ChildEvent) -> tuple[Child, ChildDo]:
    """Next state of a child and what to do; KeyError if the table does not know the case."""
    return CHILD_TABLE[state][event]


def store_step(phase: Phase, event: Event) -> tuple[Phase, Do]:
    """Next phase of a store and what to do; KeyError if the table does not know the case."""
    return STORE_TABLE[phase][event]


BACKOFF_FIRST_S = 0.1
BACKOFF_LIMIT_S = 30.0
STABLE_AFTER_S = 60.0  # a child that lived that long starts at the first step again


def next_failures(failures: int, lived_s: float) -> int:
    """How many deaths in a row count, after one more."""
    return 1 if lived_s >= STABLE_AFTER_S else failures + 1


def backoff_s(failures: int) -> float:
    """Seconds to wait before the next try: 0.1, 0.2, 0.4 ... 30."""
    return min(BACKOFF_LIMIT_S, BACKOFF_FIRST_S * 2.0 ** (min(failures, 32) - 1)) if failures > 0 else 0.0


def child_event_of_exit(state: Child, code: int) -> ChildEvent:
    """What an exit code says in this state; a negative one is the signal that ended the child."""
    if code in FINAL_EXITS:
        return ChildEvent.REFUSED
    return ChildEvent.FINISHED if code == Exit.CLEAN and state is Child.BOOTING else ChildEvent.DIED
