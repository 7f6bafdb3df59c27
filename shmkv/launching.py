"""`shmkv.launch`: a private store with its own supervisor as a child, for a script, a notebook, a test."""

from __future__ import annotations

import os
import weakref
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from shmkv import config
from shmkv.attaching import ATTACH_TIMEOUT_S
from shmkv.lookup import find_arena
from shmkv.store import Attachment, Store

if TYPE_CHECKING:
    from shmkv.lookup import Found
    from shmkv.supervisor.embedded import Embedded


class LaunchedStore(Store):
    """A handle whose `close` also ends the store, in the process that launched it.

    Forgotten or left open it ends with the process, however that ends. A pickle of it is an ordinary handle.
    """

    __slots__ = ("_end",)

    def __init__(self, found: Found, attachment: Attachment, embedded: Embedded) -> None:
        super().__init__(found, attachment)
        self._end = weakref.finalize(self, embedded.stop)

    def close(self) -> None:
        """Close the handle and end the store; in a forked child close the handle only. Twice is harmless.

        Blocks until the store has written its log and is gone, at most its `stop_timeout` and a few seconds.
        """
        super().close()
        self._end()


def launch(
    name: str | None = None,
    *,
    memory: int | str | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    expected_items: int | None = None,
    eviction: str | None = None,
    timeout: float | timedelta = 30.0,
    **settings: Any,
) -> LaunchedStore:
    """Start a private store and attach to it; closing the handle, or leaving its `with` block, ends the store.

    `name`: None makes one up. `memory`: bytes or "256MB" (the default), the size of the whole shared object.
    `data_dir`: where the data stays; None = nowhere, no file is written and the data is gone at the end.
    `expected_items`: how many keys it is laid out for; None = by memory. `eviction`: "noeviction". `timeout`: seconds
    until it must be ready. Every other setting (durability, ring, lag_limit ...) is given by its name.

    Raises StoreExists, MemoryLimitExceeded (no room in /dev/shm), InvalidName, InvalidSetting, WrongKey, CorruptData (a
    damaged log; `accept_loss=True` gives up what is damaged), StoreUnavailable. Blocks until the store is ready.
    When this process is killed the store ends by itself; data with a directory stays there.
    """
    from shmkv.supervisor.embedded import start_embedded

    timeout_s = config.parse_duration(timeout)
    chosen = {"memory": memory, "expected_items": expected_items, "eviction": eviction, **settings}
    embedded = start_embedded(name, data_dir=data_dir, timeout_s=timeout_s, **chosen)
    try:
        limits = embedded.settings
        attachment = Attachment(limits.name, ATTACH_TIMEOUT_S, False, limits.lock_timeout, limits.log_timeout, None)
        found = find_arena(attachment.name, timeout_s, read_only=False)
        try:
            return LaunchedStore(found, attachment, embedded)
        finally:
            os.close(found.fd)
    except BaseException:
        embedded.stop()
        raise
