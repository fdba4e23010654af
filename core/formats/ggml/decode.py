"""Stored bytes of any GGML type to float32, bit-equal to ggml. For files being read; formats decode through it too."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from core.errors import CorruptFile
from core.formats.fitting import decode_lanes
from core.formats.ggml.layout import layout
from core.formats.ggml.types import GgmlType, ggml_type

# Blocks decoded at once hold about this many weights: intermediates stay small.
PIECE = 1 << 19

_PLAIN = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F64": torch.float64,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
}

Array = TypeVar("Array", Tensor, np.ndarray)


def dequantize(type_name: str, blocks: Array, columns: int) -> Array:
    """float32 [rows, columns], of the kind (torch or numpy) and on the device of `blocks`.

    blocks   uint8, any shape; whole rows
    raises   UnsupportedFormat for an unknown type or columns that do not fit, CorruptFile for a broken row
    """
    if isinstance(blocks, np.ndarray):
        # torch warns about read-only memory; the packed bytes are small beside what they decode to.
        source = blocks if blocks.flags.writeable else blocks.copy()
        return dequantize(type_name, torch.from_numpy(source), columns).numpy()
    kind = ggml_type(type_name)
    row_bytes = kind.row_bytes(columns)
    flat_blocks = blocks.reshape(-1)
    if row_bytes == 0 or flat_blocks.numel() % row_bytes:
        raise CorruptFile(f"{flat_blocks.numel()} bytes are not whole {type_name} rows of {columns} columns")
    rows = flat_blocks.numel() // row_bytes
    if not kind.quantized:
        plain = _aligned(flat_blocks, kind.type_size).view(_PLAIN[type_name])
        return plain.to(torch.float32, copy=True).view(rows, columns)
    return _decode_blocks(kind, flat_blocks).view(rows, columns)


def _aligned(x: Tensor, size: int) -> Tensor:
    return x if x.data_ptr() % size == 0 and x.is_contiguous() else x.clone()


def _decode_blocks(kind: GgmlType, flat: Tensor) -> Tensor:
    blocks = flat.view(-1, kind.type_size)
    out = torch.empty(len(blocks), kind.block, dtype=torch.float32, device=flat.device)
    if decode_lanes(kind.name, flat, out):
        return out
    decode = layout(kind.name).decode
    step = max(1, PIECE // kind.block)
    for start in range(0, len(blocks), step):
        out[start : start + step] = decode(blocks[start : start + step])
    return out
