"""What GPTQ's and AWQ's folders have in common: a weight is stored as `X.qweight`, `X.qzeros` and `X.scales`, codes and
zero points in words of 32 bits. What is in the words is each dialect's own business.
"""

from __future__ import annotations

from core.checkpoints.base import Checkpoint
from core.errors import CorruptFile, UnsupportedFormat
from core.tensors import TensorInfo

PARTS = ("qweight", "qzeros", "scales")
_WORDS, _FLOATS = ("I32",), ("F16", "BF16", "F32")


def stems(checkpoint: Checkpoint) -> list[str]:
    """The X of every X.qweight, in the checkpoint's order."""
    return [name.removesuffix(".qweight") for name in checkpoint.tensors if name.endswith(".qweight")]


def pieces_of(checkpoint: Checkpoint, stem: str) -> tuple[TensorInfo, TensorInfo, TensorInfo]:
    """Codes, zero points and scales of a weight: matrices, none of them empty.

    raises  CorruptFile when one is missing or of another shape, UnsupportedFormat for one of another dtype
    """
    where, tensors = place_of(checkpoint, stem), checkpoint.tensors
    names = [f"{stem}.{part}" for part in PARTS]
    for name in names:
        if name not in tensors:
            raise CorruptFile(f"the quantized weight has no {name}", "is a shard missing?", where)
    codes, zeros, scales = (tensors[name] for name in names)
    for info, dtypes in ((codes, _WORDS), (zeros, _WORDS), (scales, _FLOATS)):
        if info.dtype not in dtypes:
            raise UnsupportedFormat(f"{info.name} is {info.dtype}, not {' or '.join(dtypes)}", where=where)
        if len(info.shape) != 2 or not info.numel:
            raise CorruptFile(f"{info.name} has the shape {list(info.shape)}", where=where)
    return codes, zeros, scales


def place_of(checkpoint: Checkpoint, stem: str) -> str:
    """How errors name a weight."""
    return f"{checkpoint.path}: {stem}"


def apart(codes: TensorInfo, zeros: TensorInfo, scales: TensorInfo, hint: str, where: str) -> CorruptFile:
    """The error for pieces whose shapes are not of one weight."""
    shapes = f"codes {list(codes.shape)}, zero points {list(zeros.shape)} and scales {list(scales.shape)}"
    return CorruptFile(f"{shapes} do not belong together", hint, where)
