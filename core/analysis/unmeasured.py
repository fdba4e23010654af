"""Weights that are NaN or infinite where two tensors meet: those that are so on both sides are equal and left out of
the sums; those of one side only stay, and make an error NaN.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from core.analysis.error import ErrorSums

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Unmeasured:
    """How many weights are NaN or infinite; adding two gives those of both.

    alike           the same on both sides (all NaN are)
    only_a, only_b  on one side, and an ordinary number on the other
    unlike          on both sides, but not the same
    """

    alike: int = 0
    only_a: int = 0
    only_b: int = 0
    unlike: int = 0

    def __add__(self, other: Unmeasured) -> Unmeasured:
        return Unmeasured(
            self.alike + other.alike,
            self.only_a + other.only_a,
            self.only_b + other.only_b,
            self.unlike + other.unlike,
        )

    @property
    def apart(self) -> int:
        """Those for which the two sides differ."""
        return self.only_a + self.only_b + self.unlike

    def words(self) -> str:
        """What differs, or else what is alike; "" when all weights are ordinary numbers."""
        parts = [(self.only_a, "in A only"), (self.only_b, "in B only"), (self.unlike, "in both, but not the same")]
        if not self.apart:
            parts = [(self.alike, "in both")]
        found = [(n, where) for n, where in parts if n]
        if not found:
            return ""
        first, where = found[0]
        begin = f"{first:,} {'weight is' if first == 1 else 'weights are'} NaN or infinite {where}"
        return ", ".join([begin, *(f"{n:,} {where}" for n, where in found[1:])])


def sums_of(x: torch.Tensor, y: torch.Tensor) -> tuple[ErrorSums, Unmeasured]:
    """Sums of y against x over all weights but those that are NaN or infinite alike.

    x, y  floating, any dtype, of the same shape; values are looked at in float32, a float64 beyond its range counts as
          infinite
    """
    import torch

    a, b = _wide(x), y.float()
    sums = ErrorSums().add(a, b)
    # A weight that is NaN or infinite never leaves the sum of squares finite.
    if math.isfinite(sums.e2):
        return sums, Unmeasured()
    x, y = (t.float() if t.element_size() == 1 else t for t in (x, y))
    odd_a, odd_b = ~torch.isfinite(a.float()), ~torch.isfinite(b)
    both = odd_a & odd_b
    alike = both & ((x == y) | (torch.isnan(x) & torch.isnan(y)))
    found = Unmeasured(*(int(torch.count_nonzero(m)) for m in (alike, odd_a & ~odd_b, odd_b & ~odd_a, both & ~alike)))
    if found.alike:
        kept = ~alike
        sums = ErrorSums().add(a[kept], b[kept])
    return sums, found


def _wide(x: torch.Tensor) -> torch.Tensor:
    # float8 has no arithmetic of its own; anything else is widened inside the sums.
    return x.float() if x.element_size() == 1 else x
