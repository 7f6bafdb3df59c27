"""The handle that users hold: a mutable mapping over one arena.

The C class does what lies on the path of a get or a set; here stands what is made of several such steps. Each of those
is a loop of "read with its version, then write if that is still the version", so it is atomic, needs no lock, and a
kill in the middle leaves either all of it or nothing.

Invariants:
  I1  No method of the C class is wrapped: `db[key]` runs no Python.
  I2  An iteration holds nothing between its steps; its cursor belongs to one arena, so a restart ends it with an error.
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, ItemsView, Iterable, Iterator, Mapping, MutableMapping, ValuesView
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from shmkv.errors import KeyNotFound, ReadOnly, StoreUnavailable
from shmkv.lookup import Found, Life, explain_stall, find_arena
from shmkv.segment import _core
from shmkv.views import Items, Key, Values, canonical, pairs_of

if TYPE_CHECKING:
    from shmkv.backup import BackupInfo, RestoreInfo, SnapshotInfo
    from shmkv.stats import Entry, Stats

UPDATE_BATCH = 1000
ENTRY_PINNED = 1
_MISSING: Any = object()
_NO_DEFAULT: Any = object()


class Attachment(NamedTuple):
    """How a handle was made; a pickle of the handle carries this and nothing else."""

    name: str
    timeout_s: float
    read_only: bool
    lock_timeout_s: float
    log_timeout_s: float
    durability: str | None


class Store(_core.Store, MutableMapping[Key, Any]):
    """A store, attached by `shmkv.attach` or started by `shmkv.launch`; never made directly.

    Used as a mapping of str or bytes keys to values. Any number of threads and forked children may use one handle, and
    it pickles to its name. A value that is read is a copy: changing it changes nothing in the store.
    After `close` every use is a ValueError.
    """

    __slots__ = ("_attachment", "_owner_uid", "_pop_cursor", "_wall_minus_boot_ms")

    _pop_cursor: int

    def __init__(self, found: Found, attachment: Attachment) -> None:
        super().__init__(
            found.fd, attachment.name, read_only=attachment.read_only, lock_timeout_s=attachment.lock_timeout_s,
            log_timeout_s=attachment.log_timeout_s, durability=attachment.durability,
        )  # fmt: skip
        self._attachment = attachment
        self._remember(found)

    # ---- many keys -----------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Key]:
        return self._steps(with_values=False)

    def scan(self, *, prefix: Key | None = None, match: Key | None = None) -> Iterator[Key]:
        """Iterate over keys; only those that start with `prefix` and fit the glob `match` (`* ? [a-z] [^a]`).

        A key that is there all the time comes exactly once; one that is set or deleted meanwhile may come or not.
        Writers are never blocked: each step reads one or a few buckets, and nothing is held between steps.
        Raises StoreUnavailable if the store restarts meanwhile.
        """
        if prefix is None and match is None:
            return self._steps(with_values=False)
        from shmkv.glob import key_filter, prefix_filter

        keys = self._steps(with_values=False)
        if prefix is not None:
            keys = filter(prefix_filter(prefix), keys)
        if match is not None:
            keys = filter(key_filter(match), keys)
        return keys

    def items(self) -> ItemsView[Key, Any]:
        """A live view of (key, value) pairs; iterating has the guarantees of `scan`."""
        return Items(self)

    def values(self) -> ValuesView[Any]:
        """A live view of the values; iterating has the guarantees of `scan`."""
        return Values(self)

    def _pairs(self) -> Iterator[tuple[Key, Any]]:
        return self._steps(with_values=True)

    def _steps(self, *, with_values: bool) -> Iterator[Any]:
        self._check_open()
        return _steps(self, with_values)

    def update(self, other: Any = (), /, **more: Any) -> None:
        """Set many keys, from a mapping or from pairs; each key is atomic, the call is not."""
        self._check_writable()
        if type(other) is dict:
            self.set_many(other)
        else:
            self._set_pairs(pairs_of(other))
        if more:
            self.set_many(more)

    def _set_pairs(self, pairs: Iterable[tuple[Key, Any]]) -> None:
        batch: dict[Key, Any] = {}
        for key, value in pairs:
            # Text and bytes may name the same key: a repeated one must come after all that came before it.
            if key in batch or len(batch) >= UPDATE_BATCH:
                self.set_many(batch)
                batch = {}
            batch[key] = value
        if batch:
            self.set_many(batch)

    def __ior__(self, other: Any) -> Self:
        self.update(other)
        return self

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Mapping):
            return NotImplemented
        theirs = {canonical(key): value for key, value in other.items()}
        return len(theirs) == len(other) and dict(self._pairs()) == theirs

    __hash__ = None  # type: ignore[assignment]

    # ---- read, then write if nothing changed ---------------------------------------------------------------------

    def pop(self, key: Key, default: Any = _NO_DEFAULT) -> Any:
        """Delete a key and return the value that it had; `default`, or KeyNotFound, if there is none."""
        self._check_writable()
        while (found := self._entry(key)) is not None:
            if self.delete(key, if_version=found[1]):
                return found[0]
        if default is _NO_DEFAULT:
            raise KeyNotFound(key)
        return default

    def popitem(self) -> tuple[Key, Any]:
        """Delete some key and return it with its value; KeyNotFound if the store is empty."""
        self._check_writable()
        # A handle that empties a store goes on where it was, or it would walk the same empty buckets each time.
        for cursor in (self._pop_cursor, 0):
            while cursor != _core.CURSOR_END:
                self._pop_cursor = cursor
                try:
                    cursor, keys = self._scan(cursor, False)
                except StoreUnavailable:
                    if cursor == 0 or self._pop_cursor != 0:
                        raise
                    break  # the cursor was of an arena that has ended, and the next one is there
                for key in keys:
                    value = self.pop(key, _MISSING)
                    if value is not _MISSING:
                        return key, value
        raise KeyNotFound("*")

    def setdefault(self, key: Key, default: Any = None) -> Any:
        """The value of a key; if there is none, `default`, which is set first. Atomic."""
        self._check_writable()
        while True:
            value = self.get(key, _MISSING)
            if value is not _MISSING:
                return value
            if self.set(key, default, if_absent=True):
                return default

    def modify(self, key: Key, function: Callable[[Any], Any], *, default: Any = _NO_DEFAULT, ttl: Any = None) -> Any:
        """Replace the value of a key by `function(value)` and return the new one; atomic.

        `function` may run several times: again whenever another writer was faster; it gets a fresh copy each time.
        `default`: what it gets if there is no such key, else KeyNotFound. `ttl`: as in `set`; without one a key keeps
        its expiry. An exception of `function` changes nothing.
        """
        self._check_writable()
        while True:
            found = self._entry(key)
            if found is None:
                if default is _NO_DEFAULT:
                    raise KeyNotFound(key)
                value = function(copy.deepcopy(default))
                done = self.set(key, value, ttl=ttl, if_absent=True)
            else:
                value = function(found[0])
                pinned = bool(found[3] & ENTRY_PINNED)
                done = self.set(key, value, ttl=ttl, keep_ttl=ttl is None, if_version=found[1], pin=pinned)
            if done:
                return value

    def _incr_slow(self, key: Key, amount: Any, initial: Any, ttl: Any) -> int | float:
        """What the core leaves to Python: numbers beyond 64 bits, and floats."""
        for number, what in ((amount, "amount"), (initial, "initial")):
            if type(number) not in (int, float):
                raise TypeError(f"{what} is an int or a float, not {type(number).__name__}")
        while True:
            found = self._entry(key)
            old = initial if found is None else found[0]
            if type(old) not in (int, float):
                raise TypeError(
                    f"the value of {key!r} is {type(old).__name__}, no number; incr needs an int or a float"
                )
            new: int | float = old + amount
            if found is None:
                done = self.set(key, new, ttl=ttl, if_absent=True)
            else:
                pinned = bool(found[3] & ENTRY_PINNED)
                done = self.set(key, new, keep_ttl=True, if_version=found[1], pin=pinned)
            if done:
                return new

    # ---- entries and their expiry --------------------------------------------------------------------------------

    def entry(self, key: Key) -> Entry | None:
        """Value, version, time to live (s) and stored size (bytes) of a key at one moment; None if there is none."""
        from shmkv.stats import Entry

        found = self._entry(key)
        if found is None:
            return None
        value, version, expires_ms, _, size = found
        return Entry(canonical(key), value, version, self._ttl_of(expires_ms), size)

    def ttl(self, key: Key) -> float | None:
        """Seconds until a key expires, None if it never does; KeyNotFound if there is no such key."""
        found = self._entry(key)
        if found is None:
            raise KeyNotFound(key)
        return self._ttl_of(found[2])

    def expire(self, key: Key, ttl: Any) -> bool:
        """Let a key expire `ttl` (seconds or timedelta) from now; whether there was such a key.

        Writes the value again, under a new version.
        """
        if ttl is None:
            raise TypeError(
                "ttl is a number of seconds or a timedelta, not None; use persist to let a key live for ever"
            )
        self._check_writable()
        while (found := self._entry(key)) is not None:
            if self.set(key, found[0], ttl=ttl, if_version=found[1], pin=bool(found[3] & ENTRY_PINNED)):
                return True
        return False

    def persist(self, key: Key) -> bool:
        """Let a key live for ever; whether it had a time to live. Writes the value again, under a new version."""
        self._check_writable()
        while (found := self._entry(key)) is not None and found[2] != 0:
            if self.set(key, found[0], if_version=found[1], pin=bool(found[3] & ENTRY_PINNED)):
                return True
        return False

    def _ttl_of(self, expires_ms: int) -> float | None:
        if expires_ms == 0:
            return None
        now_ms = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000 + self._wall_minus_boot_ms
        return max(0, expires_ms - now_ms) / 1000

    # ---- the handle itself ---------------------------------------------------------------------------------------

    def stats(self) -> Stats:
        """Counts, sizes and the state of log and snapshots, as of now; the latter from the supervisor, if it answers.

        Blocks for about a millisecond, at most half a second.
        """
        from shmkv.stats import Stats, service_status

        numbers = self._stats()
        return Stats.of(self.name, numbers, service_status(self.name) if numbers["has_log"] else None)

    def snapshot(self, *, timeout: float | None = None) -> SnapshotInfo:
        """Write a snapshot into the data directory, which makes the next start short; writers go on meanwhile.

        Blocks until it counts; `timeout`: longest silence in s. Raises StoreUnavailable (no supervisor),
        IncompatibleStore (memory only), OSError.
        """
        from shmkv.backup import snapshot_store

        self._check_open()
        return snapshot_store(self.name, timeout_s=timeout)

    def backup(self, path: str | os.PathLike[str], **options: Any) -> BackupInfo:
        """Write all data, as of one LSN, into one verified file, while writers go on; or to any address of fsspec.

        `options`: compression ("none", "zstd"), timeout_s, progress(done, of) in bytes. Killed in the middle it leaves
        nothing under that name. Raises as `snapshot`, FileExistsError (what has that name is no backup).
        """
        from shmkv.backup import back_up_store

        self._check_open()
        return back_up_store(self.name, path, **options)

    def restore(self, path: str | os.PathLike[str], **options: Any) -> RestoreInfo:
        """Replace all data by that of a backup (or snapshot) file: everything or nothing, whoever is killed.

        `options`: to_lsn, to_time (aware datetime, Unix seconds): go on from there along the log in log_dirs (default:
        the store's own, and its archive); timeout_s, progress(done, of). Writes go on until the data is ready, and are
        replaced with the rest; handles then attach anew by themselves. Raises as `snapshot`, CorruptData, WrongKey,
        MemoryLimitExceeded.
        """
        from shmkv.backup import restore_store

        self._check_writable()
        return restore_store(self.name, path, **options)

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else "read-only" if self.read_only else "open"
        return f"<{type(self).__module__.partition('.')[0]}.{type(self).__name__} {self.name!r} {state}>"

    def __reduce__(self) -> tuple[Any, ...]:
        self._check_open()
        return attach_again, (self._attachment,)

    def _reattach(self) -> int:
        """Called by the core when the arena has ended: a descriptor of the next one."""
        # What the core is mapped to, not what was last found: another thread may be between look-up and mapping.
        ended, timeout_s = Life(self.store_id, self.incarnation), self._attachment.timeout_s
        found = find_arena(self.name, timeout_s, read_only=self.read_only, ended=ended, owner_uid=self._owner_uid)
        self._remember(found)
        return found.fd

    def _explain_stall(self) -> tuple[int, str] | None:
        """Called by the core when a write has waited for the log in vain."""
        life, numbers = Life(self.store_id, self.incarnation), self._stats()
        found, text = explain_stall(self.name, life, self._owner_uid, numbers)
        if found is not None:
            self._remember(found)
        return (-1 if found is None else found.fd, text) if text else None

    def _remember(self, found: Found) -> None:
        self._pop_cursor = 0
        self._owner_uid = found.owner_uid
        self._wall_minus_boot_ms = found.wall_minus_boot_ms

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError(f"this handle of store {self.name!r} is closed; attach anew")

    def _check_writable(self) -> None:
        self._check_open()
        if self.read_only:
            raise ReadOnly("nothing was written: this handle is read-only; attach without read_only=True")


def attach_again(attachment: Attachment) -> Store:
    """What a pickled handle becomes."""
    return open_store(Attachment(*attachment))


def open_store(attachment: Attachment) -> Store:
    """A handle on the store of that name, as `shmkv.attach` describes."""
    found = find_arena(attachment.name, attachment.timeout_s, read_only=attachment.read_only)
    try:
        return Store(found, attachment)
    finally:
        os.close(found.fd)


def _steps(store: Store, with_values: bool) -> Iterator[Any]:
    cursor = 0
    while cursor != _core.CURSOR_END:
        cursor, found = store._scan(cursor, with_values)
        yield from found


def _encode_first(value: Any) -> tuple[int, bytes]:
    """Loads the codecs at the first value that needs them: most stores hold str, bytes and numbers."""
    from shmkv.values import decode, encode

    _core.set_codec(encode, decode)
    return encode(value)


def _decode_first(kind: int, data: bytes) -> Any:
    from shmkv.values import decode, encode

    _core.set_codec(encode, decode)
    return decode(kind, data)


_core.set_codec(_encode_first, _decode_first)
