"""Counts of values in even bins, and their moments: the records that a plot receives, and the counters that fill them
slice by slice. Which values are counted, and of what, is the business of histogram.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

# From this many values on, the compiled counter is worth loading.
COMPILED_FROM = 1 << 18
# Shares of all weights below the percentiles that are told.
QUANTILES = (0.001, 0.01, 0.99, 0.999)


@dataclass(frozen=True, eq=False)
class Counts:
    """How many values fell into each of n even bins from low to high; the edges and rules of numpy.histogram.

    counts        int64 [n], read-only
    below, above  values outside [low, high]
    """

    low: float
    high: float
    counts: NDArray[np.int64]
    below: int = 0
    above: int = 0

    def __post_init__(self) -> None:
        self.counts.setflags(write=False)

    @cached_property
    def edges(self) -> NDArray[np.float64]:
        """float64 [n + 1]."""
        return np.linspace(self.low, self.high, self.counts.size + 1)

    @cached_property
    def _running(self) -> NDArray[np.int64]:
        return np.concatenate(([0], np.cumsum(self.counts))) + self.below

    @property
    def total(self) -> int:
        return int(self._running[-1]) + self.above

    def share_below(self, value: float) -> float:
        """Share of all values under `value`, even inside a bin; NaN when there are none."""
        return float(np.interp(value, self.edges, self._running)) / self.total if self.total else math.nan

    def quantile(self, share: float) -> float:
        """The value with this share of all values below it, exact to one bin; NaN when there are none."""
        if not self.total:
            return math.nan
        wanted = share * self.total
        at = int(np.searchsorted(self._running, wanted, side="left"))
        if at == 0:
            filled = np.flatnonzero(self.counts)
            return float(self.edges[filled[0]]) if filled.size and not self.below else self.low
        if at > self.counts.size:
            return self.high
        before, inside = int(self._running[at - 1]), int(self.counts[at - 1])
        step = (wanted - before) / inside if inside else 0.0
        return float(self.edges[at - 1] + step * (self.edges[at] - self.edges[at - 1]))

    @property
    def freedman_diaconis(self) -> float:
        """The bin width 2·IQR/∛n (Freedman and Diaconis 1981); NaN where half of all values are equal, or lie in one of
        the counted bins: what a quartile is inside a bin is not known."""
        spread = self.quantile(0.75) - self.quantile(0.25)
        step = (self.high - self.low) / self.counts.size
        return 2 * spread / self.total ** (1 / 3) if self.total and spread > step else math.nan

    def rebinned(self, low: float, high: float, bins: int, width: float = math.nan) -> Counts:
        """The part from low to high (and a bin more at either side) in at most `bins` bins, whole bins joined.

        width  of a bin, as nearly as whole bins allow, instead of their number; NaN for none
        What lies outside the part is in below and above.
        """
        n = self.counts.size
        step = (self.high - self.low) / n
        first = min(n - 1, max(0, math.floor((low - self.low) / step)))
        last = max(first + 1, min(n, math.ceil((high - self.low) / step)))
        # Multiples of powers of two: joined bins keep their place while the view moves.
        joined = 1 << max(0, math.ceil(math.log2((last - first) / bins)))
        if not math.isnan(width):
            joined = min(n, max(1, round(width / step)))
        first = first // joined * joined
        last = min(n, -(-last // joined) * joined)
        part = self.counts[first:last]
        whole = -(-part.size // joined) * joined
        counts = np.pad(part, (0, whole - part.size)).reshape(-1, joined).sum(1)
        edge = self.low + (first + whole) * step
        return Counts(
            self.low + first * step,
            edge,
            counts,
            self.below + int(self.counts[:first].sum()),
            self.above + int(self.counts[last:].sum()),
        )


@dataclass(frozen=True, slots=True)
class Moments:
    """What is known of the weights without bins. Those that are not finite are counted, and in nothing else.

    mean, std, minimum, maximum  NaN when there is no finite weight; std is that of the population
    """

    count: int = 0
    zeros: int = 0
    nan: int = 0
    infinite: int = 0
    minimum: float = math.nan
    maximum: float = math.nan
    total: float = 0.0
    squares: float = 0.0

    @property
    def finite(self) -> int:
        return self.count - self.nan - self.infinite

    @property
    def mean(self) -> float:
        return self.total / self.finite if self.finite else math.nan

    @property
    def std(self) -> float:
        return math.sqrt(max(0.0, self.squares / self.finite - self.mean**2)) if self.finite else math.nan

    def add(self, x: NDArray[np.float32]) -> Moments:
        """With one more slice."""
        finite = np.isfinite(x)
        values = x if finite.all() else x[finite]
        nan = int(np.count_nonzero(np.isnan(x))) if values.size < x.size else 0
        sums = replace(
            self,
            count=self.count + x.size,
            nan=self.nan + nan,
            infinite=self.infinite + x.size - values.size - nan,
        )
        if not values.size:
            return sums
        wide = values.astype(np.float64).reshape(-1)
        return replace(
            sums,
            zeros=self.zeros + values.size - int(np.count_nonzero(values)),
            minimum=float(np.fmin(self.minimum, values.min())),
            maximum=float(np.fmax(self.maximum, values.max())),
            total=self.total + float(wide.sum()),
            # Not np.dot: BLAS spreads it over all cores, waits there in a loop, and the sum depends on their number.
            squares=self.squares + float(np.einsum("i,i->", wide, wide)),
        )


class Counter:
    """Counts slices into bins that are known beforehand."""

    def __init__(self, low: float, high: float, bins: int) -> None:
        assert low < high, f"bins from {low} to {high}"
        self.low, self.high = low, high
        self._edges = np.linspace(low, high, bins + 1)
        self._out = np.zeros(bins + 2, np.int64)

    def add(self, x: NDArray[np.float32]) -> None:
        """x float32 [n], contiguous; NaN and infinities are left out."""
        add_counts(x, self._edges, self._out)

    def counts(self) -> Counts:
        return Counts(self.low, self.high, self._out[1:-1].copy(), int(self._out[0]), int(self._out[-1]))


class MirrorCounter:
    """Counts slices into bins from −r to r, where r is a power of two that grows with the values: nothing is outside,
    and the counts are those of one pass with the final r."""

    def __init__(self, bins: int) -> None:
        assert bins % 4 == 0, f"{bins} bins cannot be joined in pairs around zero"
        self._bins = bins
        self._reach = 0.0
        self._zeros = 0  # seen while no other value was
        self._out = np.zeros(bins + 2, np.int64)

    def add(self, x: NDArray[np.float32]) -> None:
        """x float32 [n], contiguous and finite."""
        size = float(np.max(np.abs(x), initial=0.0))
        if size and size >= self._reach:
            # Strictly above: the last bin holds its upper edge, and joined bins could not give it back.
            self._grow(2.0 ** math.frexp(size)[1])
        if self._reach:
            add_counts(x, self._edges, self._out)
        else:
            self._zeros += x.size

    def counts(self) -> Counts | None:
        """None while every value was 0, or there was none."""
        if not self._reach:
            return None
        return Counts(-self._reach, self._reach, self._out[1:-1].copy())

    def _grow(self, reach: float) -> None:
        inner = self._out[1:-1]
        if not self._reach:
            inner[self._bins // 2] = self._zeros
        else:
            while self._reach < reach:
                quarter = self._bins // 4
                joined = inner.reshape(-1, 2).sum(1)
                inner[:] = 0
                inner[quarter : 3 * quarter] = joined
                self._reach *= 2
        self._reach = reach
        self._edges = np.linspace(-reach, reach, self._bins + 1)


def quantiles_of(x: NDArray[np.float32]) -> tuple[float, ...]:
    """QUANTILES of what is finite; () when nothing is."""
    finite = x[np.isfinite(x)]
    return tuple(float(q) for q in np.quantile(finite, QUANTILES)) if finite.size else ()


def add_counts(x: NDArray[np.float32], edges: NDArray[np.float64], out: NDArray[np.int64]) -> None:
    """count_kernel.count_into, compiled for many values and in numpy for few."""
    from core.formats.fitting.compiled import available

    if x.size >= COMPILED_FROM and available():
        from core.analysis.count_kernel import count_into

        count_into(x, edges, out)
    else:
        add_counts_numpy(x, edges, out)


def add_counts_numpy(x: NDArray[np.float32], edges: NDArray[np.float64], out: NDArray[np.int64]) -> None:
    """The same, bin by bin, without a compiler."""
    bins = edges.size - 1
    low, high = edges[0], edges[-1]
    v = x[np.isfinite(x)].astype(np.float64)
    out[0] += np.count_nonzero(v < low)
    out[-1] += np.count_nonzero(v > high)
    v = v[(v >= low) & (v <= high)]
    k = np.minimum(((v - low) * (bins / (high - low))).astype(np.int64), bins - 1)
    k -= v < edges[k]
    k += (v >= edges[k + 1]) & (k + 1 < bins)
    out[1:-1] += np.bincount(k, minlength=bins)
