"""`shmkv.attach`: a handle on a running store, by its name."""

from __future__ import annotations

from datetime import timedelta

from shmkv import config
from shmkv.paths import check_name
from shmkv.store import Attachment, Store, open_store

ATTACH_TIMEOUT_S = 5.0


def attach(
    name: str,
    timeout: float | timedelta = ATTACH_TIMEOUT_S,
    read_only: bool = False,
    *,
    lock_timeout: float | timedelta | None = None,
    log_timeout: float | timedelta | None = None,
    durability: str | None = None,
) -> Store:
    """Attach to the running store `name`; the handle may be used by any number of threads and in forked children.

    `timeout`: seconds to wait for a store that starts or restarts, now and later. `read_only`: the memory is mapped so
    that this process cannot write it. `lock_timeout`, `log_timeout`: seconds until LockTimeout and LogStalled; None =
    the settings of the store as this process sees them (file, environment), else 5. `durability`: what the writes of
    this handle wait for, "always", "interval" or "none"; None = as the store is set up.

    Raises InvalidName, StoreNotFound (at once; names the stores that there are), StoreUnavailable (not ready in time),
    IncompatibleStore (another version, C library or pid namespace), PermissionError, CorruptData.
    Blocks up to `timeout`, without the GIL. A kill of this process at any moment harms nobody.
    """
    check_name(name)
    timeout_s = config.parse_duration(timeout)
    lock_timeout_s, log_timeout_s = _timeouts(name, lock_timeout, log_timeout)
    return open_store(Attachment(name, timeout_s, bool(read_only), lock_timeout_s, log_timeout_s, durability))


def _timeouts(
    name: str, lock_timeout: float | timedelta | None, log_timeout: float | timedelta | None
) -> tuple[float, float]:
    if lock_timeout is not None and log_timeout is not None:
        return config.parse_duration(lock_timeout), config.parse_duration(log_timeout)
    settings = config.load(name)
    return (
        settings.lock_timeout if lock_timeout is None else config.parse_duration(lock_timeout),
        settings.log_timeout if log_timeout is None else config.parse_duration(log_timeout),
    )
