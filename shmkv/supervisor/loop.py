"""The event loop: descriptors, signals and deadlines become calls, one after another, in one thread.

Why here: everything that waits is in this file, so nothing else in the supervisor may.

Invariants:
  I1  A signal handler does nothing: the interpreter writes the signal's number to a socket, and the
      loop reads it (so a signal can arrive at any instruction).
  I2  `call_at` with a key that is armed moves that deadline; a key is armed at most once.
  I3  The clock is injected; it is monotonic, in seconds.
"""

from __future__ import annotations

import selectors
import signal
import socket
import time
from collections.abc import Callable, Mapping
from types import FrameType

Callback = Callable[[float], None]


class Loop:
    """A selector with deadlines by key."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.selector = selectors.DefaultSelector()
        self.clock = clock
        self._deadlines: dict[str, tuple[float, Callback]] = {}

    def watch(self, descriptor: int, callback: Callback) -> None:
        """Call `callback(now_s)` whenever the descriptor is readable or at its end."""
        self.selector.register(descriptor, selectors.EVENT_READ, callback)

    def forget(self, descriptor: int) -> None:
        """Watch it no more; an unknown one is a KeyError."""
        self.selector.unregister(descriptor)

    def watches(self, descriptor: int) -> bool:
        """Whether it is watched."""
        return descriptor in self.selector.get_map()

    def call_at(self, key: str, at_s: float, callback: Callback) -> None:
        """Call once when the clock has reached `at_s`."""
        self._deadlines[key] = (at_s, callback)

    def cancel(self, key: str) -> None:
        """Disarm a deadline, armed or not."""
        self._deadlines.pop(key, None)

    def turn(self) -> None:
        """Wait for the next event or deadline and make the calls that are due."""
        now_s = self.clock()
        nearest_s = min((at_s for at_s, _ in self._deadlines.values()), default=None)
        timeout_s = None if nearest_s is None else max(0.0, nearest_s - now_s)
        for key, _ in self.selector.select(timeout_s):
            # An earlier call of this turn may have closed this descriptor.
            if self.selector.get_map().get(key.fd) is key:
                key.data(self.clock())
        now_s = self.clock()
        for name, (at_s, callback) in list(self._deadlines.items()):
            if at_s <= now_s and self._deadlines.get(name) == (at_s, callback):
                del self._deadlines[name]
                callback(now_s)

    def close(self) -> None:
        """Give the selector's descriptor back."""
        self.selector.close()


class Signals:
    """Turns signals into calls of the loop, for as long as it is open; only in the main thread."""

    def __init__(self, loop: Loop, handlers: Mapping[signal.Signals, Callback]) -> None:
        self._loop = loop
        self._handlers = handlers
        self._read, self._write = socket.socketpair()
        self._read.setblocking(False)
        self._write.setblocking(False)
        self._old_wakeup = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        # A signal that our parent ignores (nohup) stays ignored.
        self._old = {
            number: signal.signal(number, _do_nothing)
            for number in handlers
            if signal.getsignal(number) is not signal.SIG_IGN or number is not signal.SIGHUP
        }
        loop.watch(self._read.fileno(), self._deliver)

    def _deliver(self, now_s: float) -> None:
        for number in self._read.recv(256):
            handler = self._handlers.get(signal.Signals(number))
            if handler is not None:
                handler(now_s)

    def close(self) -> None:
        """Put back what was there before."""
        self._loop.forget(self._read.fileno())
        for number, handler in self._old.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_wakeup)
        self._read.close()
        self._write.close()


def _do_nothing(number: int, frame: FrameType | None) -> None:
    """The wakeup descriptor already has the number."""
