"""The binding of the C core: two types over one mapping. Store is what users call, Arena what services call."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, final

from typing_extensions import Buffer, disjoint_base

LAYOUT_VERSION: int
LAYOUT_HASH: int
LSN_GAP: int
KEY_LIMIT: int
CURSOR_END: int

def plan(
    *, size_bytes: int, max_size_bytes: int = 0, ring_bytes: int = 0, expected_items: int = 0, stripes: int = 0
) -> dict[str, int]:
    """Layout of an arena of that size, as numbers; ValueError with the least size if it is too small.

    size_bytes, max_size_bytes, ring_bytes, ring_offset, stripes, buckets, expected_items, pages_offset, page_count.
    """

def format_arena(
    fd: int,
    *,
    size_bytes: int,
    max_size_bytes: int = 0,
    ring_bytes: int = 0,
    expected_items: int = 0,
    stripes: int = 0,
    name: str,
    store_id: bytes,
    incarnation: int,
    first_lsn: int,
    has_log: bool,
    hash_key: Buffer | None = None,
) -> None:
    """Write an empty arena (state CREATING) into fd, whose size_bytes must be reserved and zero.

    hash_key: 16 bytes, as info() of another arena gives them; None = random ones. With the same key every entry of
    stripe s of n falls into stripes s * m // n to (s + 1) * m // n of an arena with m stripes.
    """

def read_header(fd: int, /) -> dict[str, Any]:
    """Header and ring words of any layout version, as Arena.info gives them; CorruptData if neither copy is good."""

def verify(
    data: Buffer,
    *,
    store_id: Buffer,
    incarnation: int,
    first_lsn: int,
    limit_lsn: int = 2**64 - 1,
    limit_wall_ms: int = 2**64 - 1,
) -> dict[str, Any]:
    """Check log records.

    consumed_bytes, next_lsn, records, applied, durable_before, wall_ms, mark_lsn, stopped (None or why). wall_ms and
    mark_lsn are those of the last mark (0: there was none). "limit" is why it stopped before the first record whose LSN
    is past limit_lsn, or before the first mark later than limit_wall_ms. Records between the last mark that is early
    enough and that one were taken already: to end at a time, verify first, then apply with limit_lsn=mark_lsn. Lets the
    GIL go.
    """

def check_entries(data: Buffer, /) -> dict[str, Any]:
    """Check entry images as Arena.load does, without an arena (so "stripe" is never what stopped it), applied is 0.

    Lets the GIL go.
    """

def crc32c(data: Buffer, crc: int = 0) -> int:
    """CRC-32C of the bytes, going on from crc."""

def set_codec(encode: Callable[[Any], tuple[int, bytes]], decode: Callable[[int, bytes], Any]) -> None:
    """Register the Python side of the values that C does not encode itself."""

def set_errors(table: Mapping[str, type[BaseException]], /) -> None:
    """Register the exception classes, by name; called once, by shmkv.segment."""

@disjoint_base
class Store:
    """One attachment; all methods thread-safe. See shmkv.Store for the public documentation."""

    def __init__(
        self,
        fd: int,
        name: str,
        *,
        read_only: bool = False,
        lock_timeout_s: Any = 5.0,
        log_timeout_s: Any = 5.0,
        durability: str | None = None,
    ) -> None: ...
    def __init_subclass__(cls) -> None: ...
    @property
    def name(self) -> str: ...
    @property
    def read_only(self) -> bool: ...
    @property
    def closed(self) -> bool: ...
    @property
    def store_id(self) -> bytes: ...
    @property
    def incarnation(self) -> int: ...
    @property
    def last_lsn(self) -> int:
        """Version that the last write of this thread made through this mapping; 0 if there was none."""

    def get(self, key: str | bytes, default: Any = None) -> Any: ...
    def set(
        self,
        key: str | bytes,
        value: Any,
        *,
        ttl: Any = None,
        expires_at: Any = None,
        keep_ttl: bool = False,
        if_absent: bool = False,
        if_present: bool = False,
        if_version: int | None = None,
        pin: bool = False,
        durability: str | None = None,
    ) -> bool: ...
    def delete(self, key: str | bytes, *, if_version: int | None = None) -> bool: ...
    def get_many(self, keys: Iterable[str | bytes], /) -> dict[str | bytes, Any]: ...
    def set_many(self, mapping: Mapping[Any, Any], *, ttl: Any = None) -> None: ...
    def delete_many(self, keys: Iterable[str | bytes], /) -> int: ...
    def incr(self, key: str | bytes, amount: Any = 1, *, initial: Any = 0, ttl: Any = None) -> Any: ...
    def decr(self, key: str | bytes, amount: Any = 1, *, initial: Any = 0, ttl: Any = None) -> Any: ...
    def append(self, key: str | bytes, data: str | bytes, /) -> int:
        """The new length in bytes, of a str in UTF-8."""

    def clear(self) -> None: ...
    def sync(self, lsn: int | None = None, timeout: Any = None) -> None: ...
    def close(self) -> None: ...
    def _entry(self, key: str | bytes, /) -> tuple[Any, int, int, int, int] | None:
        """(value, version, expires_ms or 0, flags, value length in bytes)."""

    def _scan(self, cursor: int, with_values: bool, /) -> tuple[int, list[Any]]:
        """(next cursor, keys or (key, value) pairs of one or more buckets); starts at 0, ends at CURSOR_END.

        A cursor belongs to one arena: StoreUnavailable if the store restarted since.
        """

    def _stats(self) -> dict[str, int]: ...
    def _reattach(self) -> int:
        """Hook, called when the arena has ended: a descriptor of the next one, which the caller closes.

        Raises StoreUnavailable; this one always does.
        """

    def _explain_stall(self) -> tuple[int, str] | None:
        """Hook, called when a write has waited for the log until its deadline: why no wait will help.

        (descriptor of the arena that the handle goes on in, or -1; text of the StoreUnavailable); the caller closes the
        descriptor. None, as this one always says: the arena still has its name, and the write ends as LogStalled.
        """

    def _incr_slow(self, key: str | bytes, amount: Any, initial: Any, ttl: Any, /) -> Any:
        """Hook, called for floats and beyond 64 bits; this one raises OverflowError."""

    def __getitem__(self, key: str | bytes, /) -> Any: ...
    def __setitem__(self, key: str | bytes, value: Any, /) -> None: ...
    def __delitem__(self, key: str | bytes, /) -> None: ...
    def __contains__(self, key: object, /) -> bool: ...
    def __len__(self) -> int: ...

@final
class Arena:
    """Maintenance of one arena: supervisor, persister, keeper, admin. What takes locks waits 5 s at most."""

    def __new__(cls, fd: int, *, read_only: bool = False, prefault: bool = True) -> Arena: ...
    def info(self) -> dict[str, Any]:
        """Header and control. state: CREATING READY RETIRED; log_state: OK DISK_FULL FAILED; durability: a name."""

    def set_state(
        self,
        *,
        state: str | None = None,
        supervisor_pid: int | None = None,
        log_state: str | None = None,
        lag_limit_ms: int | None = None,
        durability: str | None = None,
        condemned: bool | None = None,
        adopted: bool = False,
    ) -> None:
        """Change words of the control page, the state last; `adopted` counts the epoch up."""

    def ring(self) -> dict[str, int]:
        """tail, head, written_lsn, durable_lsn, durable_time_ms, now_ms, sync_wanted_lsn, ring_bytes."""

    def ring_wait(self, after_lsn: int, timeout_s: Any, /) -> int:
        """Wait until the tail passed after_lsn and it pays to write, a sync is wanted, or timeout_s; the tail.

        Without the GIL, in slices of 50 ms with a look at signals in between.
        """

    def ring_collect(self, after_lsn: int, timeout_s: Any, limit_bytes: int, /) -> tuple[int, int, bytes | None]:
        """ring_wait, then what it is for in one call: (tail, now_ms, records).

        records: a copy of the ring from after_lsn to the tail if a sync behind after_lsn is wanted, after_lsn is not
        below the head, and they are at most limit_bytes; else None.
        """

    def ring_pieces(self, start_lsn: int, end_lsn: int, /) -> tuple[memoryview, ...]:
        """No, one or two read-only views of the ring; valid until its head passes them."""

    def publish_written(self, lsn: int, /) -> None: ...
    def publish_durable(self, lsn: int, collected_ms: int, /) -> None: ...
    def attend(self) -> None:
        """The keeper's sign of life, for a store without a log.

        Without one for the lag limit, and without a supervisor, writers wait, then get StoreUnavailable.
        """

    def set_lsn(self, lsn: int, /) -> None:
        """Where the log goes on after recovery; only while CREATING."""

    def mark(self, wall_ms: int, /) -> int:
        """Append a mark record; its LSN."""

    def apply(
        self,
        data: Buffer,
        *,
        store_id: Buffer,
        incarnation: int,
        first_lsn: int,
        limit_lsn: int = 2**64 - 1,
        limit_wall_ms: int = 2**64 - 1,
    ) -> dict[str, Any]:
        """As verify, and apply the records where they are newer; only while CREATING, one thread at a time."""

    def fill(self, cursor: int, buffer: Buffer, /) -> tuple[int, int, int, int, int]:
        """Copy entry images of one stripe into buffer: (next_cursor, used_bytes, entries, stripe, needed_bytes).

        cursor starts at 0 and ends at CURSOR_END. One call never passes the end of a stripe, and gives no entries where
        that has no more. needed_bytes > 0: the next entry alone is larger than the buffer; nothing was copied, the
        cursor stays. An image: 24 bytes of header (version first), 8 of expiry if it has one, the key padded to 8, the
        value padded to 8. All namespaces, live and expired entries, none below a clear. Checksums are checked:
        CorruptData names stripe and key hash. Works on a retired arena and on a read-only handle, too. Without the GIL;
        waits up to 5 s for a stripe's lock (LockTimeout) only when 64 tries without it failed.
        """

    def load(self, data: Buffer, /, *, first_stripe: int = 0, end_stripe: int | None = None) -> dict[str, Any]:
        """Check entry images and put them where they are newer; only while CREATING.

        consumed_bytes, entries, applied, highest_version, stopped: None or what is wrong with the next image: "length",
        "version", "body crc", "stripe" (its key is not of first_stripe <= stripe < end_stripe, in this arena). Without
        the GIL. Threads may load at once if their ranges of stripes are disjoint and none applies. MemoryLimitExceeded:
        the arena is full. A call over all stripes moves entries to make room; one over a range can't, so wait for the
        other threads, then load the same data again over all stripes. data must not change meanwhile.
        """

    def sweep(self, stripe: int, /) -> None: ...
    def compact(self, stripe: int, /) -> int:
        """Move entries together; pages that came free."""

    def collapse(self, offset: int, length: int, /) -> bool:
        """Put a range of the arena on huge pages; False if the kernel can't."""

    def audit(self, *, deep: bool = True) -> list[dict[str, Any]]:
        """What is wrong, at most 64 findings a stripe: what, stripe (-1 = none), offset, found, expected."""

    def slots(self) -> list[dict[str, int]]:
        """The slots that are taken: slot, pid, tid, start_time, alive, last_lsn, verdict, counters by name."""

    def reap(self) -> int:
        """Free the slots of dead threads; how many."""

    def retire(self) -> None:
        """End the arena: no write is accepted any more."""

    def stats(self) -> dict[str, int]: ...
    def close(self) -> None: ...
