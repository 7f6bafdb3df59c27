"""The exceptions of shmkv: one tree, and each is also the built-in that fits, so that plain code can catch it.

Why here: the C core raises most of them (`shmkv.segment` hands it this table), files and supervisor the others; one
table keeps a name from meaning two things.

Invariants:
  I1  Every exception that shmkv raises on purpose is a ShmkvError or a plain ValueError or TypeError of an argument.
  I2  A message says what happened, the number seen, the limit, and what to do next.
  I3  Nothing is imported here: every module of shmkv may import this one.
"""

from __future__ import annotations


class ShmkvError(Exception):
    """Base of all exceptions of shmkv."""


class KeyNotFound(ShmkvError, KeyError):
    """There is no such key; `args[0]` is the key that was asked for."""

    def __str__(self) -> str:
        return f"no key {self.args[0]!r} in the store" if len(self.args) == 1 else super().__str__()


class StoreNotFound(ShmkvError, FileNotFoundError):
    """No store of that name runs; the message names those that do."""


class StoreExists(ShmkvError, FileExistsError):
    """A store of that name, or on that data directory, runs already."""


class StoreUnavailable(ShmkvError, ConnectionError):
    """The store does not answer in time: it starts, restarts, has ended, or all its thread slots are taken."""


class InvalidName(ShmkvError, ValueError):
    """The name of a store breaks the rule, which the message quotes."""


class ReadOnly(ShmkvError, PermissionError):
    """A write through a read-only handle, or to a store whose log has failed."""


class MemoryLimitExceeded(ShmkvError, MemoryError):
    """The store is full and may not evict; nothing was written."""


class KeyTooLarge(ShmkvError, ValueError):
    """The key is longer than 65,535 bytes."""


class ValueTooLarge(ShmkvError, ValueError):
    """The encoded value is larger than the smaller of 4 GiB and a quarter of the ring."""


class TransactionConflict(ShmkvError, RuntimeError):
    """A key that the transaction read was changed before it could commit; nothing was written, run it again."""


class LockTimeout(ShmkvError, TimeoutError):
    """A lock stayed busy until the deadline; nothing was written. The message names the thread that holds it."""


class LogStalled(ShmkvError, TimeoutError):
    """The log is behind by more than the ring or the lag limit allows, until the deadline; nothing was written."""


class DiskFull(ShmkvError, OSError):
    """The disk of the data directory is full: writes are refused before they happen, reads go on."""


class DurabilityUnknown(ShmkvError, RuntimeError):
    """The write happened and is visible, but it is not known to be on disk."""


class CorruptData(ShmkvError, ValueError):
    """Bytes in memory or in a file are not what was written; the message says where, and what is still good."""

    offset: int | None = None
    """Where the first bad bytes are in the file, if that is known: its byte, or the block or frame that holds it."""


class IncompatibleStore(ShmkvError, ValueError):
    """The store was made by another version, C library or pid namespace; the message says what was found and needed."""


class WrongKey(ShmkvError, ValueError):
    """The encryption key is not the one that the data was written with."""
