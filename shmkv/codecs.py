"""Codecs that the user registers, for types that the store does not know.

The name of a codec is stored with each value; the functions never are.  So reading can only run what this process has
registered by name itself, and pickle is used only by whoever registers it.  One registry serves the process, because
types do, too: a handle that is unpickled in a worker must find the same codecs as every other handle there.

Invariants:
  I1  One codec a type, one type a name.  The same class registered again (a reloaded module) replaces the old one.
  I2  Readers see a complete table: a change swaps in new dicts, it never edits the ones in use.
"""

from __future__ import annotations

import datetime
import decimal
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from shmkv.errors import ShmkvError

NAME_LIMIT_BYTES: Final = 255

BUILT_IN_TYPES: Final[frozenset[type]] = frozenset(
    {
        type(None),
        bool,
        int,
        float,
        bytes,
        str,
        list,
        tuple,
        dict,
        datetime.datetime,
        decimal.Decimal,
        uuid.UUID,
    }
)

T = TypeVar("T")


class UnknownCodec(ShmkvError, ValueError):
    """A value was stored with a codec whose name, `codec`, is not registered in this process."""

    codec: str = ""


@dataclass(frozen=True, slots=True)
class Codec:
    """How values of one exact type become bytes and come back."""

    type: type[Any]
    name: str
    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]


class CodecRegistry:
    """The codecs of a process, by type for writing and by name for reading."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_type: dict[type[Any], Codec] = {}
        self._by_name: dict[str, Codec] = {}

    def add(self, codec: Codec) -> None:
        """Add a codec, or replace that of the same class; ValueError if type or name is another codec's."""
        with self._lock:
            named = self._by_name.get(codec.name)
            if named is not None and not _same_class(named.type, codec.type):
                raise ValueError(
                    f"the codec name {codec.name!r} belongs to {_qualified(named.type)}; "
                    f"choose another name for {_qualified(codec.type)}"
                )
            typed = self._by_type.get(codec.type)
            if typed is not None and typed.name != codec.name:
                raise ValueError(
                    f"{_qualified(codec.type)} has the codec {typed.name!r}; a type has only one, "
                    f"because values must come back as they went in"
                )
            by_type = {known: other for known, other in self._by_type.items() if other.name != codec.name}
            self._by_type = {**by_type, codec.type: codec}
            self._by_name = {**self._by_name, codec.name: codec}

    def for_type(self, kind: type[Any]) -> Codec | None:
        return self._by_type.get(kind)

    def for_name(self, name: str) -> Codec:
        codec = self._by_name.get(name)
        if codec is None:
            error = UnknownCodec(
                f"the value was stored with the codec {name!r}, which is not registered in this process; call "
                f"shmkv.register_codec(type, {name!r}, encode, decode) before reading it"
            )
            error.codec = name
            raise error
        return codec


REGISTRY: Final = CodecRegistry()


def register_codec(kind: type[T], name: str, encode: Callable[[T], bytes], decode: Callable[[bytes], T]) -> None:
    """Let values of exactly the type `kind` be stored: `encode(value)` gives bytes, `decode(bytes)` the value again.

    `name` (1 to 255 bytes of UTF-8) is stored with each value; every process that reads it must have registered the
    same name.  Holds for the whole process, nested values included.  Raises TypeError for what is no class or no
    function, ValueError for built-in value types and for a type or name that is taken.
    """
    if not isinstance(kind, type):
        raise TypeError(f"register_codec needs a class, not {kind!r}")
    if not callable(encode) or not callable(decode):
        raise TypeError("register_codec needs two callables: encode(value) -> bytes and decode(bytes) -> value")
    if type(name) is not str:
        raise TypeError(f"the name of a codec is a str, not {type(name).__name__}")
    if not 1 <= len(name.encode()) <= NAME_LIMIT_BYTES:
        raise ValueError(f"the name of a codec has 1 to {NAME_LIMIT_BYTES} bytes, not {len(name.encode())}")
    if kind in BUILT_IN_TYPES or (kind.__module__ == "numpy" and kind.__name__ == "ndarray"):
        raise ValueError(f"{_qualified(kind)} is stored by shmkv itself and can have no other codec")
    REGISTRY.add(Codec(kind, name, encode, decode))


def _same_class(old: type[Any], new: type[Any]) -> bool:
    return old is new or (old.__module__, old.__qualname__) == (new.__module__, new.__qualname__)


def _qualified(kind: type[Any]) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
