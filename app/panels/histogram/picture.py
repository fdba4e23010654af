"""From counts to curves: the part of a histogram that is in view, as shares, plain or logarithmic; its values as CSV;
numbers in words. No Qt."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from app.plotting.words import percent, short
from core.analysis.counts import Counts
from core.analysis.histogram import BINS, HistogramResult

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Curve", "Picture", "csv_of", "percent", "picture_of", "short", "tick_places"]


@dataclass(frozen=True, eq=False)
class Curve:
    """Steps: edges float64 [n + 1], heights float64 [n] in percent of all weights, or their decimal logarithm."""

    edges: NDArray[np.float64]
    heights: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Picture:
    """One view's curves.

    others             of tensors laid over it, as shares in bins as wide as the original's; names: theirs
    top, residual_top  the upper end of the y axes; bottom: the lower one (0, or a logarithm)
    """

    original: Curve
    dequantized: Curve | None
    residual: Curve | None
    bottom: float
    top: float
    residual_top: float
    logarithmic: bool
    others: tuple[Curve, ...] = ()
    names: tuple[str, ...] = ()

    def shares(self, curve: Curve) -> NDArray[np.float64]:
        """Percent, whatever the axis."""
        if not self.logarithmic:
            return curve.heights
        return np.where(curve.heights > self.bottom, 10**curve.heights, 0.0)


def picture_of(
    result: HistogramResult,
    low: float,
    high: float,
    logarithmic: bool,
    by_spread: bool = False,
    others: Sequence[HistogramResult] = (),
) -> Picture:
    """Curves for a view from low to high. by_spread: bins by Freedman and Diaconis, else BINS of them."""
    total = max(1, result.original.total)
    floor = math.log10(100 / total / 2) if logarithmic else 0.0

    width = result.original.freedman_diaconis if by_spread else math.nan

    def curve(counts: Counts, against: float = math.nan) -> Curve:
        part = counts.rebinned(low, high, BINS, width)
        share: NDArray[np.float64] = part.counts * np.float64(
            100 / (total if math.isnan(against) else counts.total or 1)
        )
        if not math.isnan(against):
            share = share * (against / (part.edges[1] - part.edges[0]))
        return Curve(part.edges, np.log10(np.maximum(share, 10**floor)) if logarithmic else share)

    original = curve(result.original)
    dequantized = curve(result.dequantized) if result.dequantized is not None else None
    residual = curve(result.residual) if result.residual is not None else None
    step = float(original.edges[1] - original.edges[0])
    laid_over = tuple(curve(other.original, step) for other in others)
    top = max(map(_top, (original, *laid_over)))
    if dequantized is not None:
        # A grid shared by many weights puts them on few levels: those peaks may leave the picture.
        peak = _top(dequantized)
        top = max(top, peak if logarithmic else min(peak, 2 * top))
    return Picture(
        original,
        dequantized,
        residual,
        floor,
        _headroom(floor, top),
        _headroom(floor, _top(residual) if residual is not None else floor),
        logarithmic,
        laid_over,
        tuple(other.name for other in others),
    )


def csv_of(picture: Picture) -> str:
    """The bins as comma-separated values: curve (or the name of a tensor laid over), from, to, percent of all weights;
    of tensors laid over, percent in a bin as wide as the original's."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["curve", "from", "to", "percent"])
    for name, curve in (
        ("original", picture.original),
        ("dequantized", picture.dequantized),
        ("residual", picture.residual),
        *zip(picture.names, picture.others, strict=True),
    ):
        if curve is None:
            continue
        for a, b, value in zip(curve.edges[:-1], curve.edges[1:], picture.shares(curve), strict=True):
            writer.writerow([name, repr(float(a)), repr(float(b)), f"{value:.6g}"])
    return out.getvalue()


def tick_places(levels: NDArray[np.floating] | None, pixel: float) -> list[float]:
    """Where ticks go. Levels that are nearly a pixel apart would run into a pattern that says nothing: there, ticks
    stand between them as well, and they are a bar."""
    if levels is None:
        return []
    levels = levels[np.isfinite(levels)]
    gaps = np.diff(levels)
    close = (gaps > 0) & (gaps < 2 * pixel)
    return np.concatenate((levels, levels[:-1][close] + gaps[close] / 2)).tolist()


def _top(curve: Curve) -> float:
    return float(curve.heights.max()) if curve.heights.size else 0.0


def _headroom(floor: float, top: float) -> float:
    return top + 0.06 * (top - floor) if top > floor else floor + 1.0
