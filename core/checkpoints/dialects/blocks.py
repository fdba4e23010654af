"""8-bit floats with a scale per block of any size: what several dialects store, under different names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from core.checkpoints.base import Checkpoint
from core.checkpoints.dialects.base import QuantizedWeight
from core.errors import CorruptFile, UnsupportedFormat
from core.tensors import TensorInfo

if TYPE_CHECKING:
    import torch

VALUES = ("F8_E4M3", "F8_E5M2")
# uint8 and E8M0 hold exponents.
EXPONENTS = ("U8", "F8_E8M0")
SCALES = ("F32", "F16", "BF16", *EXPONENTS)


@dataclass(frozen=True)
class BlockFloats(QuantizedWeight):
    """pieces are the values and the scales, then those that say nothing of the weight.

    block  rows and columns that share a scale; blocks at the edges may be smaller
    """

    block: tuple[int, int]

    def read(self, inner: Checkpoint, start: int, stop: int) -> torch.Tensor:
        values = inner.read(self.pieces[0], start, stop).float()
        high, wide = self.block
        first, last = start // high, -(-stop // high)
        scale = self._scales(inner)[first:last]
        if high > 1:
            scale = scale.repeat_interleave(high, 0)[start - first * high :][: stop - start]
        if wide > 1 and scale.shape[1] > 1:
            scale = scale.repeat_interleave(wide, 1)[:, : self.columns]
        return values.mul_(scale)

    def _scales(self, inner: Checkpoint) -> torch.Tensor:
        """float32 [blocks down, blocks across]"""
        import torch

        from core.formats.mx import powers

        high, wide = self.block
        info = inner.tensors[self.pieces[1]]
        stored = inner.read(self.pieces[1]).reshape(-(-self.rows // high), -(-self.columns // wide))
        return powers(stored.view(torch.uint8)) if info.dtype in EXPONENTS else stored.float()


def block_floats(
    tensors: Mapping[str, TensorInfo],
    codes: str,
    scale: str,
    asked: tuple[int, int] | None,
    where: str,
    silent: tuple[str, ...] = (),
) -> BlockFloats:
    """The weight of these two tensors.

    asked   rows and columns of a block as the config says, None where it does not
    silent  further tensors that belong to it and say nothing of the weight
    raises  CorruptFile, UnsupportedFormat
    """
    if scale not in tensors:
        raise CorruptFile(f"the quantized weight has no {scale}", "is a shard missing?", where)
    values, scales = tensors[codes], tensors[scale]
    if len(values.shape) != 2 or not values.numel:
        raise CorruptFile(f"{codes} has the shape {list(values.shape)}", where=where)
    if scales.dtype not in SCALES:
        raise UnsupportedFormat(f"scales of type {scales.dtype}", where=where)
    block = _block(values.shape, scales, asked)
    if block is None:
        raise CorruptFile(f"{list(scales.shape)} scales do not divide {list(values.shape)} weights", where=where)
    kind = "MXFP8" if scales.dtype in EXPONENTS and block == (1, 32) else "FP8"
    return BlockFloats((codes, scale, *silent), values.shape, f"{kind}-{values.dtype.removeprefix('F8_')}", block)


def _block(shape: tuple[int, ...], scales: TensorInfo, asked: tuple[int, int] | None) -> tuple[int, int] | None:
    """Rows and columns that share a scale, or None where the shapes do not belong together."""
    rows, columns = shape
    if scales.numel == 1:
        return rows, columns
    if scales.numel == rows and (len(scales.shape) == 1 or scales.shape[1] == 1):
        return 1, columns
    if len(scales.shape) != 2:
        return None
    down, across = scales.shape
    if asked is not None and (-(-rows // asked[0]), -(-columns // asked[1])) == (down, across):
        return asked
    return None if rows % down or columns % across else (rows // down, columns // across)
