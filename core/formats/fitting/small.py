"""8-bit floats, MXFP8 and NVFP4 on lanes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.formats.fitting import raw_weights, whole_weights
from core.formats.fitting.lanes_small import (
    ABSMAX,
    CEIL,
    EVEN,
    FLOOR,
    GIVEN,
    RCEIL,
    decode,
    decode_nvfp4,
    encode,
    encode_nvfp4,
    largest_bits,
)
from core.tensors import DTYPES

# Bits of mantissa and exponent, largest number, first byte that is no number.
_KINDS = {"F8_E4M3": (3, 4, np.float32(448), 0x7F), "F8_E5M2": (2, 5, np.float32(57344), 0x7C)}
_RULES = {"floor": FLOOR, "even": EVEN, "rceil": RCEIL, "ceil": CEIL}
_NO_SCALE, _NO_POWERS = np.empty((0, 0), np.float32), np.empty((0, 0), np.uint8)


def largest(w: Tensor) -> Tensor:
    """float32 []: the largest magnitude of a matrix on the CPU; NaN or Inf where a weight is not finite."""
    bits = max((int(largest_bits(*raw_weights(piece))) for _, piece in whole_weights(w)), default=0)
    return torch.tensor(bits, dtype=torch.int32).view(torch.float32)


def quantize_fp8(w: Tensor, dtype: str, run: int, tall: int, scale: Tensor, fits: bool) -> Tensor | None:
    """Values, `dtype` [rows, columns]; None where a weight is not finite. w: floating [rows, columns] on the CPU.

    run, tall  columns and rows that share a scale
    scale      float32 [⌈rows/tall⌉, ⌈columns/run⌉], filled if it fits
    """
    return _quantize(w, run, tall, ABSMAX if fits else GIVEN, dtype, scale.numpy(), _NO_POWERS)


def quantize_mxfp8(w: Tensor, rule: str, powers: Tensor) -> Tensor | None:
    """Values, float8_e4m3fn [rows, columns]; None where a weight is not finite. Fills powers, uint8
    [rows, columns / 32]."""
    return _quantize(w, 32, 1, _RULES[rule], "F8_E4M3", _NO_SCALE, powers.numpy())


def _quantize(w: Tensor, run: int, tall: int, rule: int, dtype: str, scale: Any, powers: Any) -> Tensor | None:
    rows, columns = w.shape
    mantissa, exponent, top, _ = _KINDS[dtype]
    out = torch.empty(rows, columns, dtype=torch.uint8)
    # A strip as tall as everything has its scale already, and may be cut.
    for start, piece in whole_weights(w, tall if tall < rows else 1):
        stop = start + piece.shape[0]
        here = slice(start // tall, -(-stop // tall))
        values = out[start:stop].view(-1).numpy()
        x, brains = raw_weights(piece)
        bad = encode(
            x, brains, columns, run, tall, rule, mantissa, exponent, top, scale[here], powers[here], values
        )  # fmt: skip
        if bad >= 0:
            return None
    return out.view(DTYPES[dtype].torch)


def dequantize_values(values: Tensor, dtype: str, run: int, tall: int, scale: Tensor) -> Tensor:
    """float32 [rows, columns] of values as the two above make them; scale float32, or uint8 for powers of two."""
    mantissa, exponent, _, special = _KINDS[dtype]
    rows, columns = values.shape
    out = torch.empty(rows, columns)
    factors = scale.contiguous().numpy()
    both = (_NO_SCALE, factors) if scale.dtype == torch.uint8 else (factors, _NO_POWERS)
    codes = values.contiguous().view(torch.uint8).view(-1).numpy()
    decode(codes, columns, run, tall, mantissa, exponent, special, *both, out.view(-1).numpy())
    return out


def quantize_nvfp4(w: Tensor, inverse: Tensor, scale: Tensor) -> Tensor | None:
    """Codes, uint8 [rows, columns / 2], of a known scale of the tensor, float32 [1, 1]; None where a weight is not
    finite. Fills scale, uint8 [rows, columns / 16]."""
    rows, columns = w.shape
    out = torch.empty(rows, columns // 2, dtype=torch.uint8)
    divisor = np.float32(inverse.item())
    for start, piece in whole_weights(w):
        here = slice(start, start + piece.shape[0])
        sound = encode_nvfp4(
            *raw_weights(piece), divisor, scale[here].view(-1).numpy(), out[here].view(-1).numpy()
        )  # fmt: skip
        if not sound:
            return None
    return out


def dequantize_nvfp4(codes: Tensor, scale: Tensor, inverse: Tensor, shape: tuple[int, int]) -> Tensor:
    """float32 [rows, columns]."""
    out = torch.empty(shape)
    packed, factors = (t.contiguous().view(torch.uint8).view(-1).numpy() for t in (codes, scale))
    decode_nvfp4(packed, factors, np.float32(inverse.item()), out.view(-1).numpy())
    return out
