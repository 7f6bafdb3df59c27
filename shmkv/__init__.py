"""shmkv: a durable key-value store in shared memory, shared by all processes of a machine.

    db = shmkv.attach("orders")         a running store, by name
    with shmkv.launch() as db: ...      a private one, gone at the end

`attach` and `launch` are bound after the modules of the same names were loaded, so the names always mean the functions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shmkv.attach import attach
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
from shmkv.launch import launch
from shmkv.store import Store

if TYPE_CHECKING:
    from shmkv.codecs import UnknownCodec, register_codec
    from shmkv.stats import Entry, Stats

__version__ = "0.1.0"

__all__ = [
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
    "ShmkvError",
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

_LAZY = {
    "Entry": "shmkv.stats",
    "Stats": "shmkv.stats",
    "UnknownCodec": "shmkv.codecs",
    "register_codec": "shmkv.codecs",
}


def __getattr__(name: str) -> Any:
    """What costs an import that most programs never need is loaded when it is asked for."""
    if name not in _LAZY:
        raise AttributeError(f"module 'shmkv' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
