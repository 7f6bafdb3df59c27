"""NumPy arrays as bytes and back: exact dtype (byte order, structured, padding), shape and C or Fortran order.

    u32 length of the description · description (msgpack: [dtype, order, shape]) · the elements as they lie in memory

A dtype is described by its own string (`<f8`), or as ["sub", dtype, shape], or as ["rec", names, dtypes, offsets,
titles, itemsize, aligned].  The .npy format was not taken: it loses alignment and overlapping fields, and its header is
Python source.  Imported only when an array is seen; NumPy itself is needed by no one else.

Invariants:
  I1  No element is ever a Python object: such dtypes are refused when writing, and again when reading.
  I2  Reading checks every number against the bytes that are there before it allocates.
  I3  What comes back is a writable array of its own.
"""

from __future__ import annotations

import math
import re
import struct
from typing import Any, Final

import msgpack
import numpy

DIMENSIONS_LIMIT: Final = 64
NESTING_LIMIT: Final = 32

_LENGTH: Final = struct.Struct("<I")
_SIMPLE: Final = re.compile(
    r"[<>|](?:[biufcSUV][0-9]{1,10}|[mM]8(?:\[[0-9]{0,10}[A-Za-z]{1,7}\])?|[qQlLgG?])", re.ASCII
)


def encode_array(array: numpy.ndarray[Any, Any]) -> bytes:
    """Bytes of an array; TypeError for dtypes with Python objects or of other packages."""
    fortran = bool(array.flags.f_contiguous and not array.flags.c_contiguous)
    description = msgpack.packb([_describe(array.dtype, 0), fortran, array.shape])
    if array.nbytes == 0:
        return _LENGTH.pack(len(description)) + bytes(description)
    # The view of the elements as bytes costs no copy, and also works for dtypes that export no buffer (datetime64).
    elements = array.ravel(order="F" if fortran else "C").view(numpy.uint8)
    return b"".join((_LENGTH.pack(len(description)), description, elements.data))


def decode_array(data: bytes) -> numpy.ndarray[Any, Any]:
    """The array that `encode_array` stored; ValueError or TypeError if the bytes are no array."""
    view = memoryview(data)
    if len(view) < _LENGTH.size:
        raise ValueError("array header is cut short")
    start = _LENGTH.size + _LENGTH.unpack_from(view)[0]
    if start > len(view):
        raise ValueError("array description is longer than the value")
    parts = msgpack.unpackb(view[_LENGTH.size : start], strict_map_key=True)
    if type(parts) is not list or len(parts) != 3:
        raise ValueError("array description has not three parts")
    dtype, fortran, shape = _restore(parts[0], 0), parts[1], _shape(parts[2])
    if type(fortran) is not bool:
        raise ValueError("array order is neither C nor Fortran")
    if dtype.hasobject or dtype.subdtype is not None:
        raise ValueError(f"array of dtype {dtype!r} cannot have been stored")
    size_bytes = len(view) - start
    if math.prod(shape) * dtype.itemsize != size_bytes:
        raise ValueError(f"array of shape {shape} and {dtype.itemsize} bytes an element has {size_bytes} bytes of data")
    elements = bytearray(view[start:])
    array: numpy.ndarray[Any, Any] = numpy.ndarray(shape, dtype, buffer=elements, order="F" if fortran else "C")
    return array


def _describe(dtype: numpy.dtype[Any], depth: int) -> Any:
    """The dtype as str and lists; TypeError if it could not come back the same."""
    if dtype.hasobject:
        raise TypeError(
            f"arrays of dtype {dtype} hold Python objects and are not stored; convert it with astype, or store "
            f"array.tolist()"
        )
    if depth > NESTING_LIMIT:
        raise ValueError(f"dtype is nested more than {NESTING_LIMIT} deep; flatten it")
    if dtype.metadata is not None:
        raise TypeError(f"dtype {dtype} carries metadata, which is not stored; use array.view with a dtype without it")
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return ["sub", _describe(base, depth + 1), list(shape)]
    if dtype.names is not None and dtype.fields is not None:
        fields = [dtype.fields[name] for name in dtype.names]
        titles = [field[2] if len(field) > 2 else None for field in fields]
        if not all(title is None or type(title) is str for title in titles):
            raise TypeError(f"dtype {dtype} has a title that is no str and cannot be stored")
        return [
            "rec",
            list(dtype.names),
            [_describe(field[0], depth + 1) for field in fields],
            [field[1] for field in fields],
            titles,
            dtype.itemsize,
            dtype.isalignedstruct,
        ]
    text = dtype.str
    if dtype.kind in "iufc" and numpy.dtype(text).char != dtype.char:
        text = text[0] + dtype.char  # long and long long are both <i8, and still two types
    if _SIMPLE.fullmatch(text) is None or numpy.dtype(text) != dtype or type(numpy.dtype(text)) is not type(dtype):
        raise TypeError(
            f"arrays of dtype {dtype!r} are not stored; convert with astype to one of NumPy's own types of fixed size"
        )
    return text


def _restore(spec: Any, depth: int) -> numpy.dtype[Any]:
    if type(spec) is str:
        if _SIMPLE.fullmatch(spec) is None:
            raise ValueError(f"array dtype {spec[:40]!r} is none that is stored")
        return numpy.dtype(spec)
    if type(spec) is not list or not spec or depth > NESTING_LIMIT:
        raise ValueError("array dtype is malformed")
    if spec[0] == "sub" and len(spec) == 3:
        return numpy.dtype((_restore(spec[1], depth + 1), _shape(spec[2])))
    if spec[0] != "rec" or len(spec) != 7:
        raise ValueError("array dtype is malformed")
    _, names, specs, offsets, titles, itemsize, aligned = spec
    if type(names) is not list:
        raise ValueError("array dtype is malformed")
    if not all(type(part) is list and len(part) == len(names) for part in (specs, offsets, titles)):
        raise ValueError("array dtype is malformed")
    if not all(type(number) is int and 0 <= number < 1 << 31 for number in (*offsets, itemsize)):
        raise ValueError("array dtype has an offset or a size out of range")
    if type(aligned) is not bool or not all(type(name) is str for name in names):
        raise ValueError("array dtype is malformed")
    formats = [_restore(part, depth + 1) for part in specs]
    if any(offset + part.itemsize > itemsize for offset, part in zip(offsets, formats, strict=True)):
        raise ValueError("array dtype has a field past its end")
    layout: Any = {"names": names, "formats": formats, "offsets": offsets, "itemsize": itemsize}
    if any(title is not None for title in titles):
        layout["titles"] = titles
    dtype: numpy.dtype[Any] = numpy.dtype(layout, align=aligned)
    return dtype


def _shape(spec: Any) -> tuple[int, ...]:
    if type(spec) is not list or len(spec) > DIMENSIONS_LIMIT:
        raise ValueError("array shape is malformed")
    if not all(type(size) is int and 0 <= size < 1 << 62 for size in spec):
        raise ValueError("array shape has a size that is no count")
    return tuple(spec)
