"""The safetensors container: its header checked strictly, its tensors mapped. Folders of several such files are in
huggingface.py.

The header is parsed here, not by the safetensors package: offsets are needed exactly, and without importing torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from core.checkpoints.base import Checkpoint
from core.checkpoints.jsontext import parse_object, short
from core.checkpoints.mapped import CUT_OFF, MappedFile, as_rows, read_bytes, regular_size, row_range, stamp
from core.errors import CorruptFile, UnsupportedFormat
from core.ordering import natural_order, order_of
from core.tensors import DTYPES, TensorInfo

if TYPE_CHECKING:
    import torch

# The safetensors package refuses longer headers too.
MAX_HEADER_BYTES = 100_000_000
METADATA_KEY = "__metadata__"
# The container's words. Torch archives know complex128 beyond these.
_BITS = {name: dtype.bits for name, dtype in DTYPES.items() if name != "C128"}
# 6-bit floats are part of the container's language; nothing here can read them.
_FOREIGN = frozenset({"F6_E2M3", "F6_E3M2"})
_MAX = (1 << 63) - 1

Span = tuple[int, int]


class Safetensors(Checkpoint):
    """One .safetensors file. Opening reads the header only.

    raises  CorruptFile, UnsupportedFormat (a dtype that is not in core.tensors.DTYPES), CheckpointError
    """

    kind = "safetensors"

    def __init__(self, path: Path) -> None:
        size = regular_size(path)
        self._file = MappedFile(path)
        header = read_header(path, size)
        self.path = path
        self.files = (path,)
        self.config = None
        self._digest = hashlib.sha256(header).digest()
        infos, self._spans, metadata = parse_header(header, size, path)
        infos = natural_order(infos, attrgetter("name"))
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType({t.name: t for t in infos})
        self.metadata: Mapping[str, Any] = MappingProxyType(metadata)

    def span(self, name: str) -> Span:
        """First byte and the one behind the last, in the file."""
        return self._spans[name]

    def _rows(self, info: TensorInfo, start: int, stop: int | None) -> tuple[int, int, int]:
        """Byte range in the file, and number of rows."""
        first, last = row_range(info, start, stop)
        bits = info.columns * _BITS[info.dtype]
        if bits * first % 8 or bits * last % 8:
            raise UnsupportedFormat(
                f"{info.dtype} rows of {info.columns} columns do not begin at whole bytes", where=info.name
            )
        begin = self._spans[info.name][0]
        return begin + bits * first // 8, begin + bits * last // 8, last - first

    def raw(self, name: str, start: int = 0, stop: int | None = None) -> memoryview:
        begin, end, _ = self._rows(self.tensors[name], start, stop)
        return self._file.view(begin, end)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        info = self.tensors[name]
        if not DTYPES[info.dtype].torch_name:
            raise UnsupportedFormat(f"{info.dtype} cannot be read as numbers here", where=name)
        begin, end, rows = self._rows(info, start, stop)
        return as_rows(self._file.tensor(begin, end), info, rows)

    def fingerprint(self) -> str:
        return hashlib.sha256(repr((self.path.name, stamp(self.path))).encode() + self._digest).hexdigest()

    def close(self) -> None:
        self._file.close()


def looks_like(head: bytes) -> bool:
    """Whether a file begins with a header length and an opening brace."""
    length = int.from_bytes(head[:8], "little")
    return len(head) > 8 and 2 <= length <= MAX_HEADER_BYTES and head[8:9] in b"{ \t\r\n"


def read_header(path: Path, size: int) -> bytes:
    """The JSON of the header. Raises CorruptFile."""
    if size < 8:
        raise CorruptFile(f"{size} bytes are too few for a safetensors file", CUT_OFF, path, offset=size)
    length = int.from_bytes(read_bytes(path, 8), "little")
    if length > MAX_HEADER_BYTES:
        raise CorruptFile(
            f"the header would be {length:,} bytes long, more than safetensors allows",
            "is it another kind of file?",
            path,
            0,
        )
    if 8 + length > size:
        raise CorruptFile(f"the header ends at byte {8 + length:,} of a file of {size:,}", CUT_OFF, path, offset=size)
    return read_bytes(path, length, 8)


def parse_header(header: bytes, size: int, where: Path) -> tuple[list[TensorInfo], dict[str, Span], dict[str, str]]:
    """Tensors in the header's order, their byte ranges in the file, and the metadata. Raises as Safetensors does."""
    entries = parse_object(header, where, "the header", strict=True, offset=8)
    metadata = _metadata(entries.pop(METADATA_KEY, None), where)
    base = 8 + len(header)
    infos: list[TensorInfo] = []
    spans: dict[str, Span] = {}
    for name in list(entries):
        # Taken out one by one: dropped all at once, so many small objects hold up every other thread.
        entry = entries.pop(name)
        dtype, shape, begin, end = _fields(name, entry, where)
        nbytes = end - begin
        wanted = _bits(name, shape, dtype, where)
        if nbytes * 8 != wanted:
            raise CorruptFile(
                f"tensor {short(name)}: {nbytes:,} bytes stored, but {dtype} {list(shape)} takes {wanted / 8:,.10g}",
                where=where,
            )
        infos.append(TensorInfo(name, shape, dtype, nbytes))
        spans[name] = (base + begin, base + end)
    _check_cover(spans, base, size, where)
    return infos, spans, metadata


def _fields(name: str, entry: Any, where: Path) -> tuple[str, tuple[int, ...], int, int]:
    """dtype, shape and relative byte range of one entry, of the right types and within 63 bits."""
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        sound = (
            type(dtype) is str
            and type(shape) is list
            and type(entry["data_offsets"]) is list
            and type(begin) is int
            and type(end) is int
            and 0 <= begin <= end <= _MAX
        )
        for n in shape:
            sound = sound and type(n) is int and 0 <= n <= _MAX
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        raise CorruptFile(
            f"tensor {short(name)}: dtype, shape or data_offsets missing or not what they must be", where=where
        )
    return dtype, tuple(shape), begin, end


def _bits(name: str, shape: tuple[int, ...], dtype: str, where: Path) -> int:
    """Bits that the shape takes. Raises UnsupportedFormat, CorruptFile."""
    bits = _BITS.get(dtype)
    if bits is None:
        if dtype in _FOREIGN:
            raise UnsupportedFormat(f"tensor {short(name)}: {dtype} is not read here", where=where)
        raise CorruptFile(f"tensor {short(name)}: unknown dtype {short(dtype)}", where=where)
    total, empty = bits, False
    for n in shape:
        empty = empty or not n
        total *= n or 1
        if total > _MAX:
            raise CorruptFile(f"tensor {short(name)}: shape {short(list(shape))} overflows", where=where)
    return 0 if empty else total


def _check_cover(spans: dict[str, Span], base: int, size: int, where: Path) -> None:
    """Tensors must cover the data exactly: no overlap, no gap, nothing behind."""
    at = base
    names = list(spans)
    # Of two at one place, the one without bytes first.
    for i in order_of([2 * begin + (end > begin) for begin, end in spans.values()]):
        name = names[i]
        begin, end = spans[name]
        if begin != at:
            problem = "overlaps the one before it" if begin < at else f"leaves {begin - at:,} bytes unused before it"
            raise CorruptFile(f"tensor {short(name)} {problem}", where=where, offset=min(begin, size))
        at = end
    if at > size:
        raise CorruptFile(f"the tensors end at byte {at:,} of a file of {size:,}", CUT_OFF, where, offset=size)
    if at < size:
        raise CorruptFile(f"{size - at:,} bytes follow the last tensor", where=where, offset=at)


def _metadata(given: Any, where: Path) -> dict[str, str]:
    if given is None:
        return {}
    if not isinstance(given, dict) or not all(isinstance(v, str) for v in given.values()):
        raise CorruptFile(f"{METADATA_KEY} must map text to text", where=where)
    return given
