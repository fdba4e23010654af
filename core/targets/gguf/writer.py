"""The exact head of a GGUF file: key-values, tensor records, padding, and where each tensor's bytes go."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

from core.checkpoints.gguf import Value, encode_pair
from core.errors import TargetError
from core.formats.ggml.types import GGML_TYPES
from core.ordering import PIECE
from core.targets.base import StoredTensor

VERSION = 3
DEFAULT_ALIGNMENT = 32
# llama.cpp keeps names in 64 bytes, the last one zero.
MAX_NAME_BYTES = 63
_HEAD = struct.Struct("<4sIQQ")
_U64 = struct.Struct("<Q")


def build(
    pairs: Iterable[tuple[str, Value]],
    tensors: Sequence[StoredTensor],
    alignment: int = DEFAULT_ALIGNMENT,
    max_name_bytes: int | None = MAX_NAME_BYTES,
) -> tuple[bytes, list[int], int]:
    """Head bytes, each tensor's offset in the file, and the size of the whole file.

    Tensors lie in the given order, each padded to the alignment, the last one too.
    raises  TargetError for a name that is too long or appears twice
    """
    pairs = list(pairs)
    names = _encoded(tensors, max_name_bytes)
    pieces = [_HEAD.pack(b"GGUF", VERSION, len(tensors), len(pairs))]
    pieces += [encode_pair(key, value) for key, value in pairs]
    # What stands between name and offset. Many tensors, few shapes.
    records: dict[tuple[str, tuple[int, ...]], bytes] = {}
    relative: list[int] = []
    at = 0
    for name, (_, dtype, shape, nbytes) in zip(names, tensors, strict=True):
        record = records.get((dtype, shape))
        if record is None:
            dims = shape[::-1]
            record = struct.pack(f"<I{len(dims)}QI", len(dims), *dims, GGML_TYPES[dtype].id)
            records[dtype, shape] = record
        pieces += (_U64.pack(len(name)), name, record, _U64.pack(at))
        relative.append(at)
        at += -(-nbytes // alignment) * alignment
    # Piece by piece, so that no other thread waits for long.
    joined = [b"".join(pieces[start : start + PIECE]) for start in range(0, len(pieces), PIECE)]
    length = sum(map(len, joined))
    head = b"".join((*joined, b"\0" * (_padded(length, alignment) - length)))
    return head, [len(head) + offset for offset in relative], len(head) + at


def _padded(nbytes: int, alignment: int) -> int:
    return -(-nbytes // alignment) * alignment


def _encoded(tensors: Sequence[StoredTensor], limit: int | None) -> list[bytes]:
    """The names as they are stored, each of them possible."""
    names = [t.name.encode() for t in tensors]
    if len(set(names)) == len(names) and (limit is None or max(map(len, names), default=0) <= limit):
        return names
    seen: set[bytes] = set()
    for tensor, name in zip(tensors, names, strict=True):
        if name in seen:
            raise TargetError("two tensors would have this name in the GGUF", "rename one of them", tensor.name)
        seen.add(name)
        if limit is not None and len(name) > limit:
            raise TargetError(f"the name is longer than the {limit} bytes that llama.cpp reads", where=tensor.name)
    raise AssertionError
