"""NumPy arrays come back with their dtype, shape, order and bytes; everything else is refused, garbage too."""

from __future__ import annotations

import random
from typing import Any

import pytest

np = pytest.importorskip("numpy")

from shmkv import codecs, values  # noqa: E402
from shmkv.arrays import decode_array, encode_array  # noqa: E402
from shmkv.errors import CorruptData  # noqa: E402
from shmkv.values import decode, encode  # noqa: E402

RECORD = np.dtype([("name", "S5"), ("position", "<f8", (2, 3)), ("inner", [("a", ">i2"), ("b", "U3")])])
ALIGNED = np.dtype([("a", "u1"), ("b", "f8"), ("c", "u2")], align=True)
OVERLAPPING = np.dtype({"names": ["all", "low"], "formats": ["<u4", "<u2"], "offsets": [0, 0], "itemsize": 8})
TITLED = np.dtype([(("a title", "a"), "<i4"), ("b", "<i4")])

DTYPES = [*"?bBhHiIlLqQefdgFDG", "<i4", ">i4", ">u8", ">f8", ">c16", "S1", "S7", "<U4", ">U4", "V3", "M8", "M8[ns]",
          ">M8[D]", "m8[25s]", "m8",
          RECORD, ALIGNED, OVERLAPPING, TITLED]  # fmt: skip


def assert_same(left: Any, right: Any) -> None:
    assert type(left) is np.ndarray
    assert left.dtype == right.dtype
    assert left.dtype.char == right.dtype.char
    assert left.dtype.byteorder == right.dtype.byteorder
    assert left.dtype.isalignedstruct == right.dtype.isalignedstruct
    assert left.dtype.fields == right.dtype.fields
    assert left.shape == right.shape
    assert left.flags.c_contiguous == right.flags.c_contiguous or not (
        right.flags.c_contiguous or right.flags.f_contiguous
    )
    assert bits(left) == bits(right)


def bits(array: Any) -> list[bytes]:
    """The bytes of the elements, without the padding of records: NumPy itself does not copy that."""
    if array.dtype.names is None:
        return [array.tobytes()]
    return [part for name in array.dtype.names for part in bits(array[name])]


def sample(dtype: Any, shape: tuple[int, ...]) -> Any:
    dtype = np.dtype(dtype)
    size = int(np.prod(shape)) * dtype.itemsize
    return (
        np.frombuffer(random.Random(size).randbytes(size), dtype).reshape(shape).copy()
        if size
        else np.zeros(shape, dtype)
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 4), (2, 0, 3), (2, 1, 3)], ids=str)
def test_array_comes_back_exactly(dtype: Any, shape: tuple[int, ...]) -> None:
    array = sample(dtype, shape)
    kind, data = encode(array)
    assert kind == values.TYPE_ARRAY
    assert_same(decode(kind, data), array)
    assert_same(decode(*encode({"k": (array,)}))["k"][0], array)
    fortran = np.asfortranarray(array) if shape else array
    back = decode(*encode(fortran))
    assert_same(back, fortran)
    assert back.flags.f_contiguous == fortran.flags.f_contiguous


@pytest.mark.parametrize("view", ["[::2]", "[::-1]", ".T[1:]", "[:, 1]", "[2:5, 1:3]", "[None]"])
def test_a_view_with_strides_comes_back_compact(view: str) -> None:
    array = eval(f"array{view}", {"array": np.arange(42).reshape(6, 7), "None": None})
    back = decode(*encode(array))
    assert back.flags.c_contiguous or back.flags.f_contiguous
    assert np.array_equal(back, array)


def test_an_array_is_a_writable_copy() -> None:
    array = np.arange(5)
    back = decode(*encode(array))
    back += 1
    assert array.tolist() == [0, 1, 2, 3, 4]
    assert back.tolist() == [1, 2, 3, 4, 5]
    array.flags.writeable = False
    assert decode(*encode(array)).flags.writeable


@pytest.mark.skipif(not hasattr(np, "dtypes") or not hasattr(np.dtypes, "StringDType"), reason="NumPy before 2.0")
def test_text_of_any_length_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="StringDType"):
        encode(np.array(["a"], np.dtypes.StringDType()))


class Sub(np.ndarray):  # type: ignore[misc]
    pass


@pytest.mark.parametrize(
    "value",
    [np.array([1, "a"], object), np.zeros(2, [("a", "O")]), np.zeros(2, np.dtype((np.void, 0))).view(Sub),
     np.ma.array([1]), np.recarray((2,), [("a", "i4")]),
     np.zeros(2, np.dtype("i4", metadata={"unit": "m"}))],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_other_arrays_are_type_errors(value: Any) -> None:
    for shape in (value, [value], {"k": (value,)}):
        with pytest.raises(TypeError):
            encode(shape)


@pytest.mark.parametrize(
    "value",
    [np.float64(1), np.int64(1), np.bool_(True), np.str_("a"), np.datetime64("2026-01-01")],
    ids=lambda value: type(value).__name__,
)
def test_numpy_scalars_are_type_errors_that_name_item(value: Any) -> None:
    for shape in (value, [value], {"k": (value,)}, {value: 1}):
        with pytest.raises(TypeError, match=r"\.item\(\)"):
            encode(shape)


def test_no_codec_for_arrays_can_be_registered() -> None:
    with pytest.raises(ValueError, match="itself"):
        codecs.register_codec(np.ndarray, "mine", lambda array: b"", lambda data: np.zeros(1))


@pytest.mark.parametrize("spec",
                         ["O", "|O8", "f8,O", "object", "<i4,<i4", "T", "a5", "float64", "=f8", "<f7",
                          "|V99999999999", "<M8[lightyears]", "", ["sub", "|O8", [1]],
                                  ["rec", ["a"], ["O"], [0], [None], 8, False],
                                  ["rec", ["a"], ["<i4"], [6], [None], 8, False],
                                  ["rec", ["a"], ["<i4"], [-1], [None], 8, False],
                                  ["rec", ["a", "a"], ["<i4", "<i4"], [0, 4], [None, None], 8, False],
                                  ["rec", [], [], [], [], 8], ["sub", "<i4", [-1]],
                                  ["sub", "<i4", [1 << 40, 1 << 40]], ["sub", "<i4", [2]], [], None, 7])  # fmt: skip
def test_a_description_that_no_encoder_writes_is_corrupt(spec: Any) -> None:
    import msgpack

    description = msgpack.packb([spec, False, [1]])
    data = len(description).to_bytes(4, "little") + description + bytes(8)
    with pytest.raises(CorruptData):
        decode(values.TYPE_ARRAY, data)


@pytest.mark.parametrize("shape", [[2], [-1], [1 << 63], [1 << 40, 1 << 40], [0] * 65, [1.0], None, [None], [True]])
def test_a_shape_that_does_not_fit_the_bytes_is_corrupt(shape: Any) -> None:
    import msgpack

    description = msgpack.packb(["<f8", False, shape])
    data = len(description).to_bytes(4, "little") + description + bytes(8)
    with pytest.raises(CorruptData):
        decode(values.TYPE_ARRAY, data)


def test_truncations_flips_and_deep_descriptions_are_refused_or_harmless() -> None:
    for array in (np.arange(3, dtype=">i2"), sample(RECORD, (2,)), sample("<U4", (2,))):
        data = encode_array(array)
        for length in range(len(data)):
            with pytest.raises(CorruptData):
                decode(values.TYPE_ARRAY, data[:length])
        for place in range(len(data)):
            for change in (1, 0x80, 0xFF):
                changed = data[:place] + bytes((data[place] ^ change,)) + data[place + 1 :]
                try:
                    decode(values.TYPE_ARRAY, changed)
                except CorruptData:
                    continue
    deep = b"\x93" + b"\x93\xa3sub" * 500 + b"\xa3<i4"
    with pytest.raises(CorruptData):
        decode(values.TYPE_ARRAY, len(deep).to_bytes(4, "little") + deep)


def test_direct_use_needs_no_dispatcher() -> None:
    array = np.arange(6).reshape(2, 3)
    assert_same(decode_array(encode_array(array)), array)
