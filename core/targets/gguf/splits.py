"""A GGUF in several files: which tensors lie in which part, what the parts are called, and what they say of each
other."""

from __future__ import annotations

import re
from collections.abc import Sequence

from core.checkpoints.gguf import Value, ValueType
from core.errors import TargetError
from core.targets.base import StoredTensor
from core.targets.gguf.filetype import FILE_TYPES

# `split.no` and `split.count` are 16-bit numbers.
MAX_PARTS = (1 << 16) - 1
_PART = re.compile(r"-\d{5}-of-\d{5}$")


def parts(tensors: Sequence[StoredTensor], limit: int) -> list[list[StoredTensor]]:
    """The tensors in their order, cut where a part would hold more than `limit` bytes of them. A tensor that is larger
    has a part of its own. Raises TargetError."""
    found: list[list[StoredTensor]] = [[]]
    held = 0
    for tensor in tensors:
        if found[-1] and held + tensor.nbytes > limit:
            found.append([])
            held = 0
        found[-1].append(tensor)
        held += tensor.nbytes
    if len(found) > MAX_PARTS:
        raise TargetError(f"files of {limit:,} bytes make {len(found):,} parts, and {MAX_PARTS:,} are possible")
    return found


def file_name(stem: str, label: str, number: int, count: int) -> str:
    """ "Llama-3.1-8B-Q4_K_M-00001-of-00003.gguf"; without numbers where one part is all. llama.cpp finds the others by
    the first one's name.

    stem   of the model
    label  of the mixture, in the name if llama.cpp knows it
    """
    stem = _PART.sub("", stem) or "model"
    if label in FILE_TYPES and not stem.endswith(label):
        stem = f"{stem}-{label}"
    stem = re.sub(r"[^\w.+-]+", "-", stem).strip("-.") or "model"
    return f"{stem}-{number + 1:05d}-of-{count:05d}.gguf" if count > 1 else f"{stem}.gguf"


def pairs(number: int, count: int, tensors: int) -> list[tuple[str, Value]]:
    """What part `number`, from 0, says of itself. tensors: in all parts. Nothing where one part is all."""
    if count == 1:
        return []
    return [
        ("split.no", Value.of(ValueType.UINT16, number)),
        ("split.count", Value.of(ValueType.UINT16, count)),
        ("split.tensors.count", Value.of(ValueType.INT32, tensors)),
    ]
