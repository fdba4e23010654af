"""What is to be said about the shape of a distribution: how far out its farthest weight is, whether it has two humps,
and whether a rule for the width of bins can be kept. No Qt."""

from __future__ import annotations

import numpy as np

from app.plotting.words import percent, short
from core.analysis.counts import Counts
from core.analysis.histogram import BINS, HistogramResult

# Bins in which humps are looked for: finer ones show the noise of sampling.
HUMP_BINS = 64


def spread(result: HistogramResult) -> str:
    moments = result.moments
    if moments.minimum == moments.maximum:
        return f"All weights are {short(moments.minimum)}"
    if not moments.std:
        return ""
    farthest = max((moments.minimum, moments.maximum), key=lambda w: abs(w - moments.mean))
    return f"Farthest weight {short(farthest)}, {abs(farthest - moments.mean) / moments.std:.1f} σ from the mean"


def other_bins(result: HistogramResult) -> str:
    """Why bins are not as wide as Freedman and Diaconis ask for, and which there are instead; "" where they are, or
    where there is nothing to count."""
    counts, moments = result.original, result.moments
    if not counts.total:
        return ""
    step = (counts.high - counts.low) / counts.counts.size
    width = counts.freedman_diaconis
    if width >= step:
        return ""
    if width < step:
        why = f"{short(width)} wide is finer than weights are counted"
        return f"No FD bins: {why} · {short(step)} wide instead, {counts.counts.size:,} bins in all"
    if moments.finite == 1:
        why = "there is only one weight"
    elif moments.minimum == moments.maximum:
        why = "all weights are equal"
    elif 2 * moments.zeros >= moments.finite:
        why = f"{percent(100 * moments.zeros / moments.finite)} of the weights are 0"
    else:
        why = f"the middle half of the weights lies in one counted bin, {short(step)} wide"
    return f"No FD bins: {why} · at most {BINS} bins in view instead"


def humps_of(counts: Counts, view: tuple[float, float]) -> tuple[float, float] | None:
    """Where the two humps of a distribution are; None where it has one, or a comb of levels.

    A hump is a run of smoothed bins that stands out by half of its height, and holds a tenth of all weights.
    """
    part = counts.rebinned(*view, HUMP_BINS)
    if part.counts.size < 16 or not part.counts.sum():
        return None
    window = np.array([1, 2, 3, 4, 3, 2, 1], np.float64)
    smooth = np.convolve(part.counts, window / window.sum(), mode="same")
    centers = (part.edges[:-1] + part.edges[1:]) / 2
    inner = np.flatnonzero((smooth[1:-1] > smooth[:-2]) & (smooth[1:-1] >= smooth[2:])) + 1
    peaks = [int(i) for i in inner if smooth[i] > smooth.max() / 5]
    kept: list[int] = []
    for peak in peaks:
        # Of two with no valley between them the higher one stays.
        if kept and smooth[kept[-1] : peak + 1].min() > min(smooth[kept[-1]], smooth[peak]) / 2:
            kept[-1] = max(kept[-1], peak, key=lambda i: smooth[i])
        else:
            kept.append(peak)
    if len(kept) != 2:
        return None
    valley = kept[0] + int(smooth[kept[0] : kept[1] + 1].argmin())
    share = float(part.counts[:valley].sum()) / float(part.counts.sum())
    return (float(centers[kept[0]]), float(centers[kept[1]])) if 0.1 < share < 0.9 else None
