"""The notify protocol of systemd: one datagram for each change, to the socket that it names.

Why here: forty lines instead of a library; a supervisor that nobody waits for sends nothing.
"""

import os
import socket
from collections.abc import Mapping

from shmkv.supervisor.loop import Loop


class Notifier:
    """Sends READY, STATUS, WATCHDOG and STOPPING to $NOTIFY_SOCKET; without it every call does nothing."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        # A leading @ names a socket in the abstract namespace.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket: socket.socket | None = None
        self._ready_status = ""
        watchdog_us = environ.get("WATCHDOG_USEC", "")
        wanted = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        # Half of what systemd allows, as its manual asks for.
        self.watchdog_interval_s = int(watchdog_us) / 2e6 if watchdog_us.isdecimal() and wanted else None
        if self._address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)

    def send(self, *lines: str) -> None:
        """Send state lines such as READY=1; never blocks. A manager that is gone or busy stops nothing."""
        if self._socket is None:
            return
        try:
            self._socket.sendto("\n".join(lines).encode(), self._address)
        except (BlockingIOError, ConnectionError, FileNotFoundError):
            # The next WATCHDOG=1 repeats the only message whose loss has a consequence.
            return

    def ready(self, status: str) -> None:
        """`attach` works from now on."""
        self._ready_status = status
        self.send("READY=1", f"STATUS={status}")

    def status(self, status: str) -> None:
        """One line for `systemctl status`; empty = what was said with READY again."""
        self.send(f"STATUS={status or self._ready_status}")

    def alive(self) -> None:
        """The loop turns; to be sent every `watchdog_interval_s`."""
        self.send("WATCHDOG=1")

    def feed_watchdog(self, loop: Loop) -> None:
        """Say that the loop turns, now and every `watchdog_interval_s`, if systemd asked for that."""
        if self.watchdog_interval_s:
            self.alive()
            loop.call_at("watchdog", loop.clock() + self.watchdog_interval_s, lambda _: self.feed_watchdog(loop))

    def stopping(self, status: str) -> None:
        """The stop began."""
        self.send("STOPPING=1", f"STATUS={status}")

    def close(self) -> None:
        """Give the descriptor back."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
