"""Row sources of a converted model: rows in the order llama.cpp's rotary embedding wants, and tensors that are
computed. No names and no configs here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from core.checkpoints.base import Checkpoint
from core.targets.base import Plain, RowSource

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class FromGguf(Plain):
    """A tensor that is in a GGUF already, so that whatever is kept of it can stay byte by byte."""


@dataclass(frozen=True)
class Interleaved(RowSource):
    """The two halves of every head interleaved: row h·d + 2i + s of the output is row h·d + s·d/2 + i of the source.

    heads   d = rows / heads is even
    vector  a bias: one row, whose columns move instead
    """

    name: str
    heads: int
    vector: bool = False

    def names(self) -> tuple[str, ...]:
        return (self.name,)

    def read(self, checkpoint: Checkpoint, start: int, stop: int) -> torch.Tensor:
        if self.vector:
            return self._moved(checkpoint.read(self.name, start, stop).T, self.heads).T
        size = checkpoint.tensors[self.name].rows // self.heads
        first, last = start // size * size, -(-stop // size) * size
        moved = self._moved(checkpoint.read(self.name, first, last), (last - first) // size)
        return moved[start - first : stop - first]

    @staticmethod
    def _moved(rows: torch.Tensor, heads: int) -> torch.Tensor:
        if not heads:
            return rows
        size = rows.shape[0] // heads
        return rows.reshape(heads, 2, size // 2, -1).transpose(1, 2).reshape(heads * size, -1)


@dataclass(frozen=True)
class RopeFactors(RowSource):
    """Divisors of the rotary frequencies as Llama 3.1 scales them, float32 [1, head_dim / 2].

    Short waves stay, long ones are stretched by `factor`, those between are blended. source: transformers'
    `rope_type` "llama3"
    """

    theta: float
    head_dim: int
    factor: float
    low: float
    high: float
    original: int

    def names(self) -> tuple[str, ...]:
        return ()

    def read(self, checkpoint: Checkpoint, start: int, stop: int) -> torch.Tensor:
        import torch

        exponent = torch.arange(0, self.head_dim, 2, dtype=torch.float32) / self.head_dim
        wavelength = 2 * math.pi * self.theta**exponent
        smooth = ((self.original / wavelength - self.low) / (self.high - self.low)).clamp(0, 1)
        return (1 / ((1 - smooth) / self.factor + smooth))[None][start:stop]
