"""The exact head of a GGUF file: key-values, tensor records, padding, and where each tensor's bytes go."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

from core.checkpoints.gguf import Value, encode_pair, encode_string
from core.errors import TargetError
from core.formats.ggml.types import GGML_TYPES
from core.targets.base import StoredTensor

VERSION = 3
DEFAULT_ALIGNMENT = 32
# llama.cpp keeps names in 64 bytes, the last one zero.
MAX_NAME_BYTES = 63
_HEAD = struct.Struct("<4sIQQ")


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
    _check_names(tensors, max_name_bytes)
    pieces = [_HEAD.pack(b"GGUF", VERSION, len(tensors), len(pairs))]
    pieces += [encode_pair(key, value) for key, value in pairs]
    tails = [struct.Struct(f"<I{n}QIQ") for n in range(8)]
    relative: list[int] = []
    at = 0
    for tensor in tensors:
        dims = tensor.shape[::-1]
        pieces.append(encode_string(tensor.name))
        pieces.append(tails[len(dims)].pack(len(dims), *dims, GGML_TYPES[tensor.dtype].id, at))
        relative.append(at)
        at += _padded(tensor.nbytes, alignment)
    head = b"".join(pieces)
    head += b"\0" * (_padded(len(head), alignment) - len(head))
    return head, [len(head) + offset for offset in relative], len(head) + at


def _padded(nbytes: int, alignment: int) -> int:
    return -(-nbytes // alignment) * alignment


def _check_names(tensors: Sequence[StoredTensor], limit: int | None) -> None:
    seen: set[str] = set()
    for tensor in tensors:
        if tensor.name in seen:
            raise TargetError("two tensors would have this name in the GGUF", "rename one of them", tensor.name)
        seen.add(tensor.name)
        if limit is not None and len(tensor.name.encode()) > limit:
            raise TargetError(f"the name is longer than the {limit} bytes that llama.cpp reads", where=tensor.name)
