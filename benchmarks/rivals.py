"""Other libraries' encoders of our formats, each behind the same two calls: llama.cpp, bitsandbytes, torchao."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from core.formats import Format
from tests.core.formats import llama

# What they say about parts of themselves that are for other machines.
for _name in ("torchao", "bitsandbytes", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)

Encode = Callable[[Tensor, "Tensor | None"], Any]


@dataclass(frozen=True)
class Rival:
    """
    library   whose code it is
    encode    what it makes of [rows, columns], float32 or bf16, and importance (float32 [columns]) or None
    decode    what that stands for, [rows, columns]
    by_rows   leaves the use of several threads to its caller, as llama.cpp does: rows are shared out
    on_gpu    runs where the weights are
    """

    library: str
    encode: Encode
    decode: Callable[[Any], Tensor]
    by_rows: bool = False
    on_gpu: bool = True


def rival(f: Format, columns: int) -> Rival | None:
    """The encoder to compare a format with, for rows of this length; None when there is none."""
    if f.family == "ggml":
        return _ggml(f.name.upper(), columns)
    kind = f.name.removesuffix("-dq")
    if kind in ("nf4", "fp4"):
        return _bitsandbytes_4bit(kind, f.name != kind)
    if f.name == "llm-int8":
        return _bitsandbytes_int8()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if f.name in _AFFINE:
            return _torchao_affine(*_AFFINE[f.name])
        if f.name in _FLOAT8:
            return _torchao_float8(*_FLOAT8[f.name])
        if f.name == "mxfp8":
            return _torchao_mxfp8()
        if f.name == "nvfp4":
            return _torchao_nvfp4()
    return None


def _ggml(name: str, columns: int) -> Rival:
    def encode(w: Tensor, importance: Tensor | None) -> Any:
        return llama.quantize(name, w.float().numpy(), None if importance is None else importance.numpy())

    def decode(blocks: Any) -> Tensor:
        return torch.from_numpy(llama.dequantize(name, blocks, columns))

    return Rival("ggml", encode, decode, by_rows=True, on_gpu=False)


def _bitsandbytes_4bit(kind: str, nested: bool) -> Rival:
    import bitsandbytes.functional as bnb

    return Rival(
        "bitsandbytes",
        lambda w, _: bnb.quantize_4bit(w, blocksize=64, compress_statistics=nested, quant_type=kind),
        lambda made: bnb.dequantize_4bit(*made),
    )


def _bitsandbytes_int8() -> Rival:
    import bitsandbytes.functional as bnb

    return Rival(
        "bitsandbytes",
        lambda w, _: bnb.int8_vectorwise_quant(w.to(torch.float16))[:2],
        lambda made: bnb.int8_vectorwise_dequant(*made),
    )


# Columns per group (0: the whole row), smallest and largest code, symmetric.
_AFFINE = {
    "int8": (0, -127, 127, True),
    "int8-asym": (0, 0, 255, False),
    "int4": (0, -8, 7, True),
    "int4-g32": (32, -8, 7, True),
    "int4-g64": (64, -8, 7, True),
    "int4-g128": (128, -8, 7, True),
    "int4-g128-asym": (128, 0, 15, False),
    "int8-g128": (128, -128, 127, True),
    "int8-g128-asym": (128, 0, 255, False),
}


def _torchao_affine(group: int, low: int, high: int, symmetric: bool) -> Rival:
    from torchao.quantization.quant_primitives import (
        MappingType,
        choose_qparams_affine,
        dequantize_affine,
        quantize_affine,
    )

    mapping = MappingType.SYMMETRIC if symmetric else MappingType.ASYMMETRIC
    dtype = torch.int8 if symmetric else torch.uint8

    def encode(w: Tensor, _: Tensor | None) -> Any:
        run = (1, group or w.shape[1])
        scale, zero = choose_qparams_affine(w, mapping, run, dtype, low, high)
        return quantize_affine(w, run, scale, zero, dtype, low, high), run, scale, zero

    return Rival("torchao", encode, lambda made: dequantize_affine(*made, dtype, low, high))


_FLOAT8 = {
    "fp8-e4m3": (torch.float8_e4m3fn, True),
    "fp8-e4m3-tensor": (torch.float8_e4m3fn, False),
    "fp8-e5m2": (torch.float8_e5m2, True),
    "fp8-e5m2-tensor": (torch.float8_e5m2, False),
}


def _torchao_float8(dtype: torch.dtype, rows: bool) -> Rival:
    from torchao.quantization.quant_primitives import _choose_scale_float8, _quantize_affine_float8

    def encode(w: Tensor, _: Tensor | None) -> Any:
        scale = _choose_scale_float8(w, [1 if rows else w.shape[0], w.shape[1]], dtype)
        return _quantize_affine_float8(w, scale, dtype), scale

    return Rival("torchao", encode, lambda made: made[0].float() * made[1].float())


def _torchao_mxfp8() -> Rival:
    from torchao.prototype.mx_formats.mx_tensor import to_mx

    def decode(made: Any) -> Tensor:
        scale, values = made
        wide: Tensor = values.float().unflatten(-1, (-1, 32)) * scale.float().unsqueeze(-1)
        return wide.flatten(-2)

    return Rival("torchao", lambda w, _: to_mx(w, torch.float8_e4m3fn, 32), decode)


def _torchao_nvfp4() -> Rival:
    from torchao.prototype.mx_formats.kernels import f4_unpacked_to_f32, unpack_uint4
    from torchao.prototype.mx_formats.nvfp4_tensor import nvfp4_quantize

    def encode(w: Tensor, _: Tensor | None) -> Any:
        whole = w.abs().amax().float() / (448 * 6)
        return (*nvfp4_quantize(w, 16, per_tensor_scale=whole), whole)

    def decode(made: Any) -> Tensor:
        scale, codes, whole = made
        levels = f4_unpacked_to_f32(unpack_uint4(codes)).unflatten(-1, (-1, 16))
        wide: Tensor = levels * (scale.float() * whole).view(*levels.shape[:-1], 1)
        return wide.flatten(-2)

    return Rival("torchao", encode, decode)
