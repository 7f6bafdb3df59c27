"""The live views of a store, and what else makes it look like a dict.

Why here: the ready-made views of `collections.abc` would look up each key anew; these read bucket by bucket.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, Iterator, Mapping, ValuesView
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from shmkv.store import Store

Key: TypeAlias = str | bytes


class Items(ItemsView[Key, Any]):
    """Live (key, value) pairs."""

    def __iter__(self) -> Iterator[tuple[Key, Any]]:
        return _store_of(self)._pairs()


class Values(ValuesView[Any]):
    """Live values."""

    def __iter__(self) -> Iterator[Any]:
        return (value for _, value in _store_of(self)._pairs())

    def __contains__(self, value: object) -> bool:
        return any(found is value or found == value for found in self)


def canonical(key: Key) -> Key:
    """The key as iteration gives it: str if it is valid UTF-8."""
    if not isinstance(key, bytes):
        return key
    try:
        return key.decode()
    except UnicodeDecodeError:
        return key


def pairs_of(other: Any) -> Iterable[tuple[Key, Any]]:
    """What dict.update takes: a mapping, anything with keys(), or pairs."""
    if isinstance(other, Mapping):
        return other.items()
    if hasattr(other, "keys"):
        return ((key, other[key]) for key in other.keys())  # noqa: SIM118 - it need not be iterable itself
    return other  # type: ignore[no-any-return]


def _store_of(view: Any) -> Store:
    store: Store = view._mapping
    return store
