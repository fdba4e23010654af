"""Bars of one view: lines that share a bar show their extreme, those that reach the threshold are marked. No Qt."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Threshold lines higher than this many times the highest bar do not stretch the axis.
FAR = 4.0
# A threshold is a float32: bars that were made of it are equal to it, up to this.
EQUAL = 1e-7


@dataclass(frozen=True, eq=False)
class Profile:
    """One view's bars. edges float64 [n + 1]; high, low, beyond float64 [n]: tops, bottoms, and the tops of those bars
    that reach the threshold (the zero line elsewhere). base, top: the y axis; with `logarithmic`, all are log₁₀."""

    edges: NDArray[np.float64]
    high: NDArray[np.float64]
    low: NDArray[np.float64]
    beyond: NDArray[np.float64]
    base: float
    top: float
    logarithmic: bool


def profile_of(
    tops: NDArray[np.floating],
    bottoms: NDArray[np.floating],
    view: tuple[float, float],
    bars: int,
    limit: float,
    *,
    mirrored: bool,
    logarithmic: bool,
) -> Profile:
    """tops, bottoms [lines], NaN where unknown; limit: NaN for none; mirrored: bottoms have a threshold too, and there
    is no logarithm."""
    if not tops.size:  # a tensor without rows, or without columns
        nothing = np.zeros(0)
        return Profile(np.zeros(1), nothing, nothing, nothing, 0.0, 1.0, False)
    first = min(max(0, math.floor(view[0])), max(0, tops.size - 1))
    last = max(first + 1, min(tops.size, math.ceil(view[1]) + 1))
    step = -(-(last - first) // max(1, bars))
    first = first // step * step
    starts = np.arange(0, last - first, step)
    high = np.fmax.reduceat(tops[first:last].astype(np.float64), starts)
    low = np.fmin.reduceat(bottoms[first:last].astype(np.float64), starts)
    edges = first + np.append(starts, last - first) - 0.5
    with np.errstate(invalid="ignore"):
        marked = high >= limit * (1 - EQUAL)
        if mirrored:
            marked |= low <= -limit * (1 - EQUAL)
    known = tops[np.isfinite(tops)].astype(np.float64)
    top = max(float(known.max(initial=0.0)), 0.0) or 1.0
    if limit < FAR * top:
        top = max(top, 1.15 * limit)
    if logarithmic and not mirrored:
        positive = known[known > 0]
        zero = base = math.floor(math.log10(float(positive.min()))) if positive.size else -1.0
        with np.errstate(divide="ignore", invalid="ignore"):
            high = np.log10(np.maximum(high, 10.0**base))
        top, low = max(math.log10(top), base + 0.1), np.full_like(high, base)
    else:
        zero, base = 0.0, float(min(0.0, np.nanmin(bottoms, initial=0.0)))
        logarithmic, low = False, np.where(np.isnan(low), 0.0, low)
    high = np.where(np.isnan(high), zero, high)
    room = 0.06 * (top - base)
    below = room if base < zero else 0.0
    return Profile(edges, high, low, np.where(marked, high, zero), base - below, top + room, logarithmic)
