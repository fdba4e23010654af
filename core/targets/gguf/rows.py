"""Row sources of a converted model: rows in the order llama.cpp wants, transposed, merged and shifted tensors, and
those that are computed. No names and no configs here."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from core.checkpoints.base import Checkpoint
from core.targets.base import Plain, RowSource

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class FromGguf(Plain):
    """A tensor that is in a GGUF already, so that whatever is kept of it can stay byte by byte.

    parts  others of 32-bit floats that tell how it is read, with their shapes: scales of NVFP4
    """

    parts: tuple[tuple[str, tuple[int, ...]], ...] = ()

    def beside(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.parts)

    def kind(self) -> Hashable:
        return type(self), tuple((name.rpartition(".")[2], shape) for name, shape in self.parts)


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
class Transposed(RowSource):
    """A matrix stored [in, out], as GPT-2's Conv1D stores it: the output's rows are the source's columns."""

    name: str

    def names(self) -> tuple[str, ...]:
        return (self.name,)

    def read(self, checkpoint: Checkpoint, start: int, stop: int) -> torch.Tensor:
        return checkpoint.read(self.name)[:, start:stop].T


@dataclass(frozen=True)
class Behind(RowSource):
    """A tensor without its first rows."""

    name: str
    first: int

    def names(self) -> tuple[str, ...]:
        return (self.name,)

    def read(self, checkpoint: Checkpoint, start: int, stop: int) -> torch.Tensor:
        return checkpoint.read(self.name, self.first + start, self.first + stop)


@dataclass(frozen=True)
class PlusOne(RowSource):
    """Float32 of the tensor plus one: norms that models store as their distance from one."""

    name: str

    def names(self) -> tuple[str, ...]:
        return (self.name,)

    def read(self, checkpoint: Checkpoint, start: int, stop: int) -> torch.Tensor:
        return checkpoint.read(self.name, start, stop).float() + 1


@dataclass(frozen=True)
class Stacked(RowSource):
    """Matrices of one shape, one below the other: the experts of a layer.

    each  rows of one of them
    """

    parts: tuple[str, ...]
    each: int

    def names(self) -> tuple[str, ...]:
        return self.parts

    def read(self, checkpoint: Checkpoint, start: int, stop: int) -> torch.Tensor:
        import torch

        pieces = []
        for index in range(start // self.each, -(-stop // self.each)):
            first = index * self.each
            pieces.append(checkpoint.read(self.parts[index], max(start - first, 0), min(stop - first, self.each)))
        if not pieces:
            return checkpoint.read(self.parts[0], 0, 0)
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


@dataclass(frozen=True)
class Blocks(RowSource):
    """Some runs of `size` rows of a tensor in another order: run j of the output is run order[j] of the source.

    vector  a bias: one row, whose columns are taken instead
    """

    name: str
    size: int
    order: tuple[int, ...]
    vector: bool = False

    def names(self) -> tuple[str, ...]:
        return (self.name,)

    def read(self, checkpoint: Checkpoint, start: int, stop: int) -> torch.Tensor:
        import torch

        if self.vector:
            columns = checkpoint.read(self.name, start, stop)
            runs = [columns[:, at * self.size : (at + 1) * self.size] for at in self.order]
            return torch.cat(runs, 1)
        pieces = []
        for index in range(start // self.size, -(-stop // self.size)):
            first, at = index * self.size, self.order[index] * self.size
            low, high = max(start - first, 0), min(stop - first, self.size)
            pieces.append(checkpoint.read(self.name, at + low, at + high))
        if not pieces:
            return checkpoint.read(self.name, 0, 0)
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


@dataclass(frozen=True)
class Listed(RowSource):
    """One row of numbers from config.json, float32 [1, n]."""

    values: tuple[float, ...]

    def names(self) -> tuple[str, ...]:
        return ()

    def read(self, checkpoint: Checkpoint, start: int, stop: int) -> torch.Tensor:
        import torch

        return torch.tensor([self.values], dtype=torch.float32)[start:stop]


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
