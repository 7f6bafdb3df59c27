"""The interpreter of the first persister, started before the supervisor has loaded its own modules.

Why here: both load for about as long, so side by side they cost a start half the time.

Invariants:
  I1  Until it is given its arguments that process touches nothing: it loads its modules and waits for a line.
  I2  It becomes a persister at most once; unused it is killed and reaped by `close`. When the supervisor dies before,
      the end of its pipe ends it.
"""

from __future__ import annotations

import os
import signal

from shmkv.supervisor.spawn import Spawned, spawn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shmkv.supervisor.child import Process
    from shmkv.supervisor.lines import Message

PERSISTER_MODULE = "shmkv.wal.persister"
# In the place of the arguments: they come as the first line of standard input.
ARGUMENTS_FOLLOW = "-"


class EarlyPersister:
    """`start_process` is what `Crew` takes; it makes processes as `child.Process` does, but for the first persister."""

    def __init__(self, *, wanted: bool) -> None:
        """`wanted`: whether the store will have a persister, as far as can be told. OSError when the machine can't."""
        self._spawned: Spawned | None = spawn(PERSISTER_MODULE, ARGUMENTS_FOLLOW) if wanted else None

    def start_process(self, module: str, arguments: Message, extra_fd: int | None) -> Process:
        """A running child with its arguments; OSError when the machine can't."""
        from shmkv.supervisor.child import Process

        if module != PERSISTER_MODULE or self._spawned is None:
            return Process(module, arguments, extra_fd)
        spawned, self._spawned = self._spawned, None
        return Process(module, arguments, spawned=spawned)

    def close(self) -> None:
        """End the interpreter if nobody has used it."""
        if self._spawned is not None:
            spawned, self._spawned = self._spawned, None
            signal.pidfd_send_signal(spawned.pidfd, signal.SIGKILL)
            os.waitpid(spawned.pid, 0)
            spawned.close()
