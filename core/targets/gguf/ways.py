"""How a tensor of a GGUF comes out of those in the checkpoint: which shape these have, and the source of its rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

from core.targets.base import Plain, RowSource
from core.targets.gguf.hyper import Hyper
from core.targets.gguf.rows import Behind, Blocks, Interleaved, PlusOne, Stacked, Transposed

Shape = tuple[int, ...]


class Way(ABC):
    """One way. Instances hold no state of a model."""

    def shape(self, made: Shape) -> Shape:
        """The shape in the checkpoint of what becomes a tensor of shape `made`."""
        return made

    @abstractmethod
    def source(self, hyper: Hyper, names: Sequence[str], made: Shape) -> RowSource:
        """The rows of a tensor of shape `made`. names: one, or all experts of a stack. Raises TargetError."""


class _Straight(Way):
    def source(self, hyper: Hyper, names: Sequence[str], made: Shape) -> RowSource:
        return Plain(names[0])


class _PlusOne(Way):
    """Weights only: a bias stays."""

    def source(self, hyper: Hyper, names: Sequence[str], made: Shape) -> RowSource:
        return PlusOne(names[0]) if names[0].endswith("weight") else Plain(names[0])


class _Transposed(Way):
    def shape(self, made: Shape) -> Shape:
        return made[::-1]

    def source(self, hyper: Hyper, names: Sequence[str], made: Shape) -> RowSource:
        return Plain(names[0]) if len(made) == 1 else Transposed(names[0])


class _Stacked(Way):
    """Experts, each a matrix of its own."""

    def shape(self, made: Shape) -> Shape:
        return made[1:]

    def source(self, hyper: Hyper, names: Sequence[str], made: Shape) -> RowSource:
        return Stacked(tuple(names), made[-2])


@dataclass(frozen=True)
class _Half(Way):
    """One of two equal parts, in each expert, of what is stored one below the other."""

    which: int

    def shape(self, made: Shape) -> Shape:
        return (*made[:-2], 2 * made[-2], made[-1])

    def source(self, hyper: Hyper, names: Sequence[str], made: Shape) -> RowSource:
        return Blocks(names[0], made[-2], tuple(range(self.which, 2 * prod(made[:-2]), 2)))


@dataclass(frozen=True)
class Interleave(Way):
    """The halves of every head interleaved, as llama.cpp's first kind of rotary embedding wants them.

    heads  how many there are
    """

    heads: Callable[[Hyper], int]

    def source(self, hyper: Hyper, names: Sequence[str], made: Shape) -> RowSource:
        heads = self.heads(hyper)
        if made[0] // heads % 2:
            raise hyper.error(f"head_dim {made[0] // heads} is odd")
        return Interleaved(names[0], heads, vector=len(made) == 1)


@dataclass(frozen=True)
class Regroup(Way):
    """Query, key and value of a fused projection that are stored head by head, or group by group, made three blocks.

    groups  of heads: one per key-value head
    ratio   query heads per group
    """

    groups: Callable[[Hyper], int]
    ratio: Callable[[Hyper], int]

    def source(self, hyper: Hyper, names: Sequence[str], made: Shape) -> RowSource:
        groups, ratio = self.groups(hyper), self.ratio(hyper)
        each = ratio + 2
        starts = range(0, groups * each, each)
        queries = [start + i for start in starts for i in range(ratio)]
        order = (*queries, *(start + ratio for start in starts), *(start + ratio + 1 for start in starts))
        if made[0] % (groups * each):
            raise hyper.error(f"{made[0]} rows are not {groups * each} heads of one size")
        return Blocks(names[0], made[0] // (groups * each), order, vector=len(made) == 1)


@dataclass(frozen=True)
class WithoutFirst(Way):
    """All rows but the first few."""

    rows: int

    def shape(self, made: Shape) -> Shape:
        return (made[0] + self.rows, *made[1:])

    def source(self, hyper: Hyper, names: Sequence[str], made: Shape) -> RowSource:
        return Behind(names[0], self.rows)


STRAIGHT = _Straight()
PLUS_ONE = _PlusOne()
TRANSPOSED = _Transposed()
STACKED = _Stacked()
FIRST_HALF = _Half(0)
SECOND_HALF = _Half(1)
