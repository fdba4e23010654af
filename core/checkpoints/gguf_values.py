"""The key-values of a GGUF file: what types there are, and a value that is kept exactly as it was stored.

No tensors and no whole headers here: reading those is gguf.py, writing them is the GGUF target.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from core.checkpoints.mapped import CUT_OFF
from core.errors import CorruptFile

if TYPE_CHECKING:
    import numpy as np


class ValueType(IntEnum):
    """The numbers by which a GGUF file names the type of a value."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


# struct's letter of every type of fixed size; numpy's dtype is the same letter.
_LETTERS = {
    ValueType.UINT8: "B",
    ValueType.INT8: "b",
    ValueType.UINT16: "H",
    ValueType.INT16: "h",
    ValueType.UINT32: "I",
    ValueType.INT32: "i",
    ValueType.FLOAT32: "f",
    ValueType.BOOL: "?",
    ValueType.UINT64: "Q",
    ValueType.INT64: "q",
    ValueType.FLOAT64: "d",
}
_SIZES = {kind: struct.calcsize(f"<{letter}") for kind, letter in _LETTERS.items()}
_U64 = struct.Struct("<Q")
_ARRAY_HEAD = struct.Struct("<IQ")
_KINDS = {int(kind): kind for kind in ValueType}
# Vocabularies have some hundred thousand entries. Strings are passed over one by one: a bound keeps that quick.
MAX_STRINGS = 1 << 23
_MAX_DEPTH = 4

Buffer = bytes | memoryview


@dataclass(frozen=True, slots=True)
class Value:
    """One value of a GGUF file.

    type     of the value
    data     exactly the bytes that follow the type in the file; an array's begin with its element type and count.
             Key, type and these bytes written again make the same file.
    """

    type: ValueType
    data: bytes

    @classmethod
    def of(cls, type: ValueType, value: Any, element: ValueType | None = None) -> Value:
        """A value to be written. Arrays take a sequence or a numpy array, and the type of their elements.

        raises  ValueError, OverflowError or struct.error when the value is not of the type
        """
        if type != ValueType.ARRAY:
            return cls(type, _encode(type, value))
        assert element is not None, "an array needs the type of its elements"
        head = _ARRAY_HEAD.pack(element, len(value))
        if element in _LETTERS:
            return cls(type, head + _encode_numbers(element, value))
        return cls(type, head + b"".join(_encode(element, item) for item in value))

    @property
    def element(self) -> ValueType | None:
        """Type of an array's elements; None for anything else."""
        return _KINDS[_ARRAY_HEAD.unpack_from(self.data)[0]] if self.type == ValueType.ARRAY else None

    @property
    def count(self) -> int:
        """Elements of an array; 1 for anything else."""
        return int(_ARRAY_HEAD.unpack_from(self.data)[1]) if self.type == ValueType.ARRAY else 1

    @property
    def value(self) -> Any:
        """int, float, bool or str; a numpy array (read-only) of numbers; a list of str; a list of Values for arrays of
        arrays. Decoded anew at each call: keep a long one. Text that is not UTF-8 has its odd bytes replaced."""
        if self.type != ValueType.ARRAY:
            return _decode(self.type, self.data)
        element = self.element
        if element in _LETTERS:
            return _decode_numbers(element, self.data)
        if element == ValueType.STRING:
            return _decode_strings(self.data, self.count)
        return _decode_arrays(self.data, self.count)

    def __str__(self) -> str:
        if self.type != ValueType.ARRAY:
            return str(self.value)
        element = self.element
        assert element is not None
        return f"{self.count:,} × {element.name.lower()}"


def encode_string(text: str) -> bytes:
    """Length and UTF-8 bytes, as keys, names and values are stored."""
    data = text.encode("utf-8")
    return _U64.pack(len(data)) + data


def encode_pair(key: str, value: Value) -> bytes:
    """A key-value as it stands in the header."""
    return encode_string(key) + struct.pack("<I", value.type) + value.data


def end_of_value(buffer: Buffer, kind: int, at: int, depth: int = 0) -> int:
    """The offset behind the value of type `kind` that begins at `at`.

    raises  CorruptFile with the offset, without a file name: unknown type, or a value that leaves the buffer
    """
    known = _KINDS.get(kind)
    if known is None:
        raise CorruptFile(f"value type {kind} is none of GGUF's", offset=at)
    if known == ValueType.STRING:
        return _end_of_strings(buffer, at, 1)
    if known != ValueType.ARRAY:
        return _within(buffer, at, _SIZES[known])
    _within(buffer, at, _ARRAY_HEAD.size)
    element, count = _ARRAY_HEAD.unpack_from(buffer, at)
    inner = _KINDS.get(element)
    if inner is None:
        raise CorruptFile(f"array element type {element} is none of GGUF's", offset=at)
    at += _ARRAY_HEAD.size
    if inner in _SIZES:
        return _within(buffer, at, _SIZES[inner] * count)
    smallest = _U64.size if inner == ValueType.STRING else _ARRAY_HEAD.size
    _within(buffer, at, smallest * count)
    if count > MAX_STRINGS:
        raise CorruptFile(f"an array of {count:,} entries is longer than any vocabulary", offset=at)
    if inner == ValueType.STRING:
        return _end_of_strings(buffer, at, count)
    if depth >= _MAX_DEPTH:
        raise CorruptFile("arrays are nested too deeply", offset=at)
    for _ in range(count):
        at = end_of_value(buffer, ValueType.ARRAY, at, depth + 1)
    return at


def _within(buffer: Buffer, at: int, size: int) -> int:
    end = at + size
    if end > len(buffer):
        raise CorruptFile(f"a value of {size:,} bytes reaches beyond the end", CUT_OFF, offset=at)
    return end


def _end_of_strings(buffer: Buffer, at: int, count: int) -> int:
    unpack, last = _U64.unpack_from, len(buffer) - _U64.size
    for _ in range(count):
        if at > last:
            raise CorruptFile("a text reaches beyond the end", CUT_OFF, offset=at)
        at += unpack(buffer, at)[0] + 8
    if at > len(buffer):
        raise CorruptFile("a text reaches beyond the end", CUT_OFF, offset=len(buffer))
    return at


def _encode(kind: ValueType, value: Any) -> bytes:
    if kind == ValueType.STRING:
        return encode_string(value)
    if kind == ValueType.ARRAY:
        assert isinstance(value, Value), "arrays of arrays hold Values"
        return value.data
    return struct.pack(f"<{_LETTERS[kind]}", value)


def _encode_numbers(element: ValueType, value: Sequence[Any] | np.ndarray) -> bytes:
    import numpy as np

    if isinstance(value, np.ndarray):
        return value.astype(np.dtype(f"<{_LETTERS[element]}"), casting="safe").tobytes()
    return struct.pack(f"<{len(value)}{_LETTERS[element]}", *value)


def _decode(kind: ValueType, data: bytes) -> Any:
    if kind == ValueType.STRING:
        return data[8:].decode("utf-8", "replace")
    return struct.unpack(f"<{_LETTERS[kind]}", data)[0]


def _decode_numbers(element: ValueType, data: bytes) -> np.ndarray:
    import numpy as np

    if element == ValueType.BOOL:  # any byte but 0 is true; numpy would keep the byte
        return np.frombuffer(data, np.uint8, offset=_ARRAY_HEAD.size) != 0
    return np.frombuffer(data, np.dtype(f"<{_LETTERS[element]}"), offset=_ARRAY_HEAD.size)


def _decode_strings(data: bytes, count: int) -> list[str]:
    at, unpack = _ARRAY_HEAD.size, _U64.unpack_from
    texts = []
    for _ in range(count):
        begin = at + 8
        at = begin + unpack(data, at)[0]
        texts.append(data[begin:at].decode("utf-8", "replace"))
    return texts


def _decode_arrays(data: bytes, count: int) -> list[Value]:
    at, values = _ARRAY_HEAD.size, []
    for _ in range(count):
        end = end_of_value(data, ValueType.ARRAY, at)
        values.append(Value(ValueType.ARRAY, data[at:end]))
        at = end
    return values
