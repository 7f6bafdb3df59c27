"""The directories of one run, and the locks that keep other supervisors out of them.

Why here: they are taken first and given back last, whatever happens in between.

Invariants:
  I1  The runtime directory goes at the end, the data directory stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from selectors import BaseSelector
from typing import NamedTuple

from shmkv import paths
from shmkv.supervisor import arena as arenas
from shmkv.supervisor.arena import Refused
from shmkv.supervisor.control import ControlServer, Handler
from shmkv.supervisor.states import Exit


class Places(NamedTuple):
    """Directories of this run; None where the store has none. `runtime` holds lock and control socket."""

    data: str | None
    runtime: str | None


class HeldPlaces:
    """The locks of both directories."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._locks: list[tuple[str, int, bool]] = []

    def take(self) -> None:
        """Make and lock the directories. Raises Refused, naming path and holder."""
        try:
            if self._places.data is not None:
                paths.make_durable_dir(self._places.data)
                self._locks.append((self._places.data, arenas.lock_directory(self._places.data), False))
            if self._places.runtime is not None:
                paths.make_private_dir(self._places.runtime)
                self._locks.append((self._places.runtime, arenas.lock_directory(self._places.runtime), True))
        except OSError as error:
            raise _cannot_set_up(error) from None

    def listen(self, selector: BaseSelector, handlers: Mapping[str, Handler]) -> ControlServer | None:
        """The control socket in the runtime directory; None if there is none. Raises Refused."""
        if self._places.runtime is None:
            return None
        try:
            return ControlServer(self._places.runtime, selector, handlers)
        except OSError as error:
            raise _cannot_set_up(error) from None

    def give_back(self) -> None:
        """Unlock, and remove what is not to stay."""
        for directory, fd, remove in self._locks:
            arenas.unlock_directory(directory, fd, remove=remove)
            if remove:
                paths.remove_if_empty(directory)
        self._locks = []


def _cannot_set_up(error: OSError) -> Refused:
    return Refused(Exit.CANNOT_CREATE, "StoreUnavailable", f"cannot set up the directories: {error}")
