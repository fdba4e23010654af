"""The header of one GGUF file: key-values, tensor records, and where each tensor's bytes lie, all checked against the
file's size. Files that belong together, and reading, are in gguf.py."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from core.checkpoints.gguf_values import Buffer, Value, ValueType, end_of_value
from core.checkpoints.jsontext import short
from core.checkpoints.mapped import CUT_OFF
from core.errors import CorruptFile, UnsupportedFormat
from core.formats.ggml.types import GGML_BY_ID, GgmlType
from core.ordering import order_of
from core.tensors import TensorInfo

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT_KEY = "general.alignment"
DEFAULT_ALIGNMENT = 32
MAX_DIMENSIONS = 4
# Real keys and names are below a hundred bytes.
MAX_NAME_BYTES = 1 << 16
_MAX = (1 << 63) - 1
_HEAD = struct.Struct("<4sIQQ")
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_SMALLEST_PAIR = 8 + 4 + 1
_SMALLEST_RECORD = 8 + 4 + 4 + 8


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """values and infos in the file's order; spans: name → first byte and the one behind the last, in the file.

    nbytes     of header and records, without the padding before the data
    """

    version: int
    values: dict[str, Value]
    infos: list[TensorInfo]
    spans: dict[str, tuple[int, int]]
    alignment: int
    nbytes: int


def parse_header(file: Buffer, where: Path) -> GgufHeader:
    """The header of a mapped file. Raises CorruptFile with the offset, UnsupportedFormat for versions and types."""
    version, tensors, pairs = _fixed_part(file, where)
    try:
        values, at = _values(file, _HEAD.size, pairs)
        alignment = _alignment(values)
        infos, offsets, at = _records(file, at, tensors)
        data = -(-at // alignment) * alignment
        spans = _spans(infos, offsets, data, alignment, len(file))
    except CorruptFile as exc:
        raise CorruptFile(exc.message, exc.hint, where, exc.offset) from None
    except UnsupportedFormat as exc:
        raise UnsupportedFormat(exc.message, exc.hint, where) from None
    return GgufHeader(version, values, infos, spans, alignment, at)


def _fixed_part(file: Buffer, where: Path) -> tuple[int, int, int]:
    """Version, number of tensors, number of key-values."""
    if bytes(file[:4]) != MAGIC:
        raise UnsupportedFormat("is no GGUF file (it does not begin with GGUF)", where=where)
    if len(file) < 8:
        raise CorruptFile("ends inside the header", CUT_OFF, where, offset=len(file))
    version = _U32.unpack_from(file, 4)[0]
    if version not in VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        if swapped in (1, *VERSIONS):
            raise UnsupportedFormat("is a big-endian GGUF", "convert it with gguf-convert-endian", where)
        if version == 1:
            raise UnsupportedFormat("is a GGUF of version 1", "convert the model again: version 1 lasted days", where)
        raise UnsupportedFormat(f"is a GGUF of version {version}, known are 2 and 3", where=where)
    if len(file) < _HEAD.size:
        raise CorruptFile("ends inside the header", CUT_OFF, where, offset=len(file))
    _, _, tensors, pairs = _HEAD.unpack_from(file)
    if pairs * _SMALLEST_PAIR + tensors * _SMALLEST_RECORD > len(file) - _HEAD.size:
        raise CorruptFile(
            f"{tensors:,} tensors and {pairs:,} keys do not fit into {len(file):,} bytes", CUT_OFF, where, 8
        )
    return version, tensors, pairs


def _text(file: Buffer, at: int, what: str) -> tuple[str, int]:
    """A key or name, and the offset behind it."""
    if at + 8 > len(file):
        raise CorruptFile(f"ends inside {what}", CUT_OFF, offset=at)
    length = _U64.unpack_from(file, at)[0]
    begin = at + 8
    if length > MAX_NAME_BYTES:
        raise CorruptFile(f"{what} would be {length:,} bytes long", offset=at)
    if begin + length > len(file):
        raise CorruptFile(f"ends inside {what}", CUT_OFF, offset=at)
    try:
        return str(file[begin : begin + length], "utf-8"), begin + length
    except UnicodeDecodeError:
        raise CorruptFile(f"{what} is not UTF-8", offset=at) from None


def _values(file: Buffer, at: int, count: int) -> tuple[dict[str, Value], int]:
    values: dict[str, Value] = {}
    for _ in range(count):
        begin = at
        key, at = _text(file, at, "a key")
        if not key:
            raise CorruptFile("a key is empty", offset=begin)
        if key in values:
            raise CorruptFile(f"key {short(key)} appears twice", offset=begin)
        if at + 4 > len(file):
            raise CorruptFile(f"ends inside the value of {short(key)}", CUT_OFF, offset=at)
        kind = _U32.unpack_from(file, at)[0]
        at += 4
        try:
            end = end_of_value(file, kind, at)
        except CorruptFile as exc:
            raise CorruptFile(f"key {short(key)}: {exc.message}", exc.hint, offset=exc.offset) from None
        values[key] = Value(ValueType(kind), bytes(file[at:end]))
        at = end
    return values, at


def _alignment(values: dict[str, Value]) -> int:
    found = values.get(ALIGNMENT_KEY)
    if found is None:
        return DEFAULT_ALIGNMENT
    if found.type != ValueType.UINT32:
        raise CorruptFile(f"{ALIGNMENT_KEY} is no 32-bit number")
    alignment = int(found.value)
    if alignment < 1 or alignment & (alignment - 1):
        raise CorruptFile(f"{ALIGNMENT_KEY} is {alignment}, not a power of two")
    return alignment


def _records(file: Buffer, at: int, count: int) -> tuple[list[TensorInfo], list[int], int]:
    """Tensor records, their offsets in the data, and the offset behind the records."""
    infos: list[TensorInfo] = []
    offsets: list[int] = []
    names: set[str] = set()
    tails = [struct.Struct(f"<{n}QIQ") for n in range(MAX_DIMENSIONS + 1)]
    for _ in range(count):
        begin = at
        name, at = _text(file, at, "a tensor name")
        if name in names:
            raise CorruptFile(f"tensor {short(name)} appears twice", offset=begin)
        names.add(name)
        if at + 4 > len(file):
            raise CorruptFile(f"ends inside the record of {short(name)}", CUT_OFF, offset=at)
        dimensions = _U32.unpack_from(file, at)[0]
        if dimensions > MAX_DIMENSIONS:
            raise CorruptFile(
                f"tensor {short(name)}: {dimensions} dimensions, at most {MAX_DIMENSIONS} exist", offset=at
            )
        tail = tails[dimensions]
        if at + 4 + tail.size > len(file):
            raise CorruptFile(f"ends inside the record of {short(name)}", CUT_OFF, offset=at)
        *reversed_shape, kind, offset = tail.unpack_from(file, at + 4)
        at += 4 + tail.size
        shape = tuple(reversed_shape[::-1])
        known = GGML_BY_ID.get(kind)
        if known is None:
            raise UnsupportedFormat(f"tensor {short(name)}: type {kind} is none we know")
        infos.append(TensorInfo(name, shape, known.name, _nbytes(name, shape, known, begin)))
        offsets.append(offset)
    return infos, offsets, at


def _nbytes(name: str, shape: tuple[int, ...], kind: GgmlType, at: int) -> int:
    """Exact bytes; refuses rows that are no whole blocks, and shapes beyond 63 bits."""
    blocks = 1
    columns = shape[-1] if shape else 1
    if columns % kind.block:
        raise CorruptFile(
            f"tensor {short(name)}: {columns} columns are no whole {kind.name} blocks of {kind.block}", offset=at
        )
    bound = kind.type_size
    for n in (*shape[:-1], columns // kind.block):
        blocks *= n
        bound *= n or 1
        if bound * kind.block > _MAX:
            raise CorruptFile(f"tensor {short(name)}: shape {list(shape)} overflows", offset=at)
    return blocks * kind.type_size


def _spans(
    infos: list[TensorInfo], offsets: list[int], data: int, alignment: int, size: int
) -> dict[str, tuple[int, int]]:
    """Byte ranges in the file: aligned, inside it, and none over another."""
    spans: dict[str, tuple[int, int]] = {}
    for info, offset in zip(infos, offsets, strict=True):
        begin, end = data + offset, data + offset + info.nbytes
        if offset % alignment:
            raise CorruptFile(f"tensor {short(info.name)} begins at {offset}, no multiple of {alignment}", offset=begin)
        if end > size and info.nbytes:
            what = f"tensor {short(info.name)} ends at byte {end:,} of a file of {size:,}"
            raise CorruptFile(what, CUT_OFF, offset=size)
        spans[info.name] = (begin, end)
    at, before = data, ""
    names = list(spans)
    # Of two at one place, the one without bytes first.
    for i in order_of([2 * begin + (end > begin) for begin, end in spans.values()]):
        name = names[i]
        begin, end = spans[name]
        if begin < at and end > begin:
            raise CorruptFile(f"tensor {short(name)} overlaps {short(before)}", offset=begin)
        if end > at:
            at, before = end, name
    return spans
