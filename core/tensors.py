"""What a stored tensor is: name, shape, dtype, bytes. Also the dtypes themselves.

No file reading here (checkpoints/) and no bit layouts (formats/).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class DType:
    """A plain element type as safetensors names it.

    bits        stored bits of one element
    torch_name  attribute of `torch`, or "" where torch has none
    floating    whether it holds real numbers (only those are quantized)
    """

    name: str
    bits: int
    torch_name: str
    floating: bool

    @property
    def torch(self) -> torch.dtype:
        import torch

        return getattr(torch, self.torch_name)


DTYPES: dict[str, DType] = {
    d.name: d
    for d in (
        DType("F64", 64, "float64", True),
        DType("F32", 32, "float32", True),
        DType("F16", 16, "float16", True),
        DType("BF16", 16, "bfloat16", True),
        DType("F8_E4M3", 8, "float8_e4m3fn", True),
        DType("F8_E5M2", 8, "float8_e5m2", True),
        DType("F8_E4M3FNUZ", 8, "float8_e4m3fnuz", True),
        DType("F8_E5M2FNUZ", 8, "float8_e5m2fnuz", True),
        DType("F8_E8M0", 8, "float8_e8m0fnu", True),
        DType("F4", 4, "", True),
        DType("C64", 64, "complex64", False),
        DType("C128", 128, "complex128", False),
        DType("I64", 64, "int64", False),
        DType("I32", 32, "int32", False),
        DType("I16", 16, "int16", False),
        DType("I8", 8, "int8", False),
        DType("U64", 64, "uint64", False),
        DType("U32", 32, "uint32", False),
        DType("U16", 16, "uint16", False),
        DType("U8", 8, "uint8", False),
        DType("BOOL", 8, "bool", False),
    )
}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a checkpoint, from its header alone.

    shape   torch order, `[out, in]` for a Linear weight, `[experts, out, in]` for stacked experts; () for a scalar
    dtype   upper case: a key of DTYPES ("BF16"), or a GGML type ("Q4_K")
    nbytes  bytes stored in the file
    alias   the name whose storage this one shares (tied weights in torch archives), or ""
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    alias: str = ""

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def rows(self) -> int:
        """Rows of the matrix seen when all leading dimensions are flattened into one."""
        return math.prod(self.shape[:-1]) if self.shape else 1

    @property
    def columns(self) -> int:
        return self.shape[-1] if self.shape else 1

    @property
    def floating(self) -> bool:
        """Whether it holds real numbers, block-quantized ones included."""
        known = DTYPES.get(self.dtype)
        return known.floating if known else True
