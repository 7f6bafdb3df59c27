"""shmkv: a durable key-value store in shared memory, shared by all processes of a machine.

    db = shmkv.attach("orders")         a running store, by name
    with shmkv.launch() as db: ...      a private one, gone at the end

Each name is loaded when it is first asked for: the processes of a store pass through here as well, and each
millisecond of theirs is one of a restart.
"""

from __future__ import annotations

# What type checkers take for true; importing the real one costs more than all else here.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from shmkv.attaching import attach
    from shmkv.backup import BackupInfo, RestoreInfo, SnapshotInfo
    from shmkv.codecs import UnknownCodec, register_codec
    from shmkv.errors import (
        CorruptData,
        DiskFull,
        DurabilityUnknown,
        IncompatibleStore,
        InvalidName,
        KeyNotFound,
        KeyTooLarge,
        LockTimeout,
        LogStalled,
        MemoryLimitExceeded,
        ReadOnly,
        ShmkvError,
        StoreExists,
        StoreNotFound,
        StoreUnavailable,
        TransactionConflict,
        ValueTooLarge,
        WrongKey,
    )
    from shmkv.launching import launch
    from shmkv.stats import Entry, Stats
    from shmkv.store import Store

__version__ = "0.1.0"

__all__ = [
    "BackupInfo",
    "CorruptData",
    "DiskFull",
    "DurabilityUnknown",
    "Entry",
    "IncompatibleStore",
    "InvalidName",
    "KeyNotFound",
    "KeyTooLarge",
    "LockTimeout",
    "LogStalled",
    "MemoryLimitExceeded",
    "ReadOnly",
    "RestoreInfo",
    "ShmkvError",
    "SnapshotInfo",
    "Stats",
    "Store",
    "StoreExists",
    "StoreNotFound",
    "StoreUnavailable",
    "TransactionConflict",
    "UnknownCodec",
    "ValueTooLarge",
    "WrongKey",
    "attach",
    "launch",
    "register_codec",
]

# No module has the name of a function: importing it would put the module in the function's place.
_MODULES = {
    "BackupInfo": "shmkv.backup",
    "RestoreInfo": "shmkv.backup",
    "SnapshotInfo": "shmkv.backup",
    "Entry": "shmkv.stats",
    "Stats": "shmkv.stats",
    "Store": "shmkv.store",
    "UnknownCodec": "shmkv.codecs",
    "attach": "shmkv.attaching",
    "launch": "shmkv.launching",
    "register_codec": "shmkv.codecs",
}


def __getattr__(name: str) -> Any:
    """Load what was asked for, once."""
    if name not in __all__:
        raise AttributeError(f"module 'shmkv' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_MODULES.get(name, "shmkv.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
