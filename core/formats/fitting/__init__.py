"""The hot searches: from weights to the blocks that store them, and back. On a CPU through compiled lanes, elsewhere
through the torch reference; both give the same bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

# Rows are widened and quantized in pieces of about this many weights, so that copies stay in cache.
PIECE = 1 << 18


def quantize_blocks(type_name: str, w: Tensor, importance: Tensor | None = None) -> Tensor:
    """uint8 [rows, row bytes]: llama.cpp's bytes for floating [rows, columns], on w's device.

    raises  NonFinite, OutOfRange naming the row; CalibrationError for importance that makes no sense
    """
    import torch

    from core.formats.checks import checked_importance, require_finite
    from core.formats.fitting import reference
    from core.formats.ggml.types import ggml_type

    kind = ggml_type(type_name)
    rows, columns = w.shape
    imp = checked_importance(importance, columns)
    if imp is not None:
        imp = imp.to(w.device)
    out = torch.empty(rows, kind.row_bytes(columns), dtype=torch.uint8, device=w.device)
    step = max(1, PIECE // max(1, columns))
    require_finite(w)
    for start in range(0, rows, step):
        out[start : start + step] = reference.quantize(type_name, w[start : start + step].float(), imp)
    return out


def dequantize_blocks(type_name: str, blocks: Tensor, columns: int) -> Tensor:
    """float32 [rows, columns] of uint8 [rows, row bytes]."""
    from core.formats.ggml.decode import dequantize

    return dequantize(type_name, blocks, columns)
