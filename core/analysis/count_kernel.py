"""Counting into even bins on one CPU core, compiled. What the bins mean is in counts.py, which also has the same in
numpy."""

from __future__ import annotations

import numpy as np

from core.formats.fitting.compiled import kernel


@kernel
def count_into(x, edges, out):
    """Adds to out, int64 [bins + 2]: below the first edge, one count per bin, above the last edge. NaN and infinities
    count nowhere.

    x      float32 [n]
    edges  float64 [bins + 1], even steps; a bin holds its lower edge, the last one its upper edge too
    """
    bins = edges.size - 1
    low, high = edges[0], edges[bins]
    inverse = bins / (high - low)
    for i in range(x.size):
        v = np.float64(x[i])
        if not abs(v) < np.inf:
            continue
        if v < low:
            out[0] += 1
        elif v > high:
            out[bins + 1] += 1
        else:
            k = min(int((v - low) * inverse), bins - 1)
            # The product may round across an edge, by one bin at most.
            if v < edges[k]:
                k -= 1
            elif k + 1 < bins and v >= edges[k + 1]:
                k += 1
            out[k + 1] += 1
