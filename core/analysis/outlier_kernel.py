"""One pass over a slice of rows on one CPU core, compiled. What is gathered is said in outliers.py, which also has the
same in numpy.

Sums run 16 abreast or along the columns, so that they vectorise; the bits of a float without its sign are a whole
number that grows with it, so that maxima do too.
"""

from __future__ import annotations

import numpy as np

from core.formats.fitting.compiled import kernel

W = 16
# Columns at work at once: their sums stay in the first cache.
TILE = 1024
EXPONENT = 0x7F800000
SIZE = 0x7FFFFFFF


@kernel
def survey_rows(
    x, bits, ends, sums, row_ends, row_sums, column_bad, row_bad, counts, energy, heat, first, steps, shift
):
    """Adds a slice. Values that are not finite are counted as bad and take part in nothing else.

    x           float32 [n, m], and the same as int32 in bits
    ends        float32 [2, m]: lowest and highest of each column; row_ends [n, 2] those of the rows
    sums        float64 [4, m]: Σw, Σw², Σw³, Σw⁴ of each column; row_sums [n, 4]
    counts      int64, and energy, float64: weights and Σw² by |w|, whose bits >> shift are the index
    heat        int32 [h, w]: bits of the largest |w| of cells of steps[0] × steps[1] weights
    first       number of the slice's first row
    """
    n, m = x.shape
    low = np.empty(W, np.float32)
    high = np.empty(W, np.float32)
    s = np.empty((4, W), np.float64)
    for tile in range(0, m, TILE):
        stop = min(m, tile + TILE)
        whole = tile + (stop - tile) // W * W
        for i in range(n):
            bad = 0
            for j in range(tile, stop):
                bad += 1 if (bits[i, j] & EXPONENT) == EXPONENT else 0
            if bad:
                row_bad[i] += bad
                for j in range(tile, stop):
                    if (bits[i, j] & EXPONENT) == EXPONENT:
                        column_bad[j] += 1
                        continue
                    v = x[i, j]
                    d = np.float64(v)
                    q = d * d
                    ends[0, j] = min(ends[0, j], v)
                    ends[1, j] = max(ends[1, j], v)
                    row_ends[i, 0] = min(row_ends[i, 0], v)
                    row_ends[i, 1] = max(row_ends[i, 1], v)
                    sums[0, j] += d
                    sums[1, j] += q
                    sums[2, j] += q * d
                    sums[3, j] += q * q
                    row_sums[i, 0] += d
                    row_sums[i, 1] += q
                    row_sums[i, 2] += q * d
                    row_sums[i, 3] += q * q
                    k = (bits[i, j] & SIZE) >> shift
                    counts[k] += 1
                    energy[k] += q
                    c = j // steps[1]
                    h = (first + i) // steps[0]
                    heat[h, c] = max(heat[h, c], bits[i, j] & SIZE)
                continue
            for j in range(tile, stop):
                v = x[i, j]
                d = np.float64(v)
                q = d * d
                ends[0, j] = v if v < ends[0, j] else ends[0, j]
                ends[1, j] = v if v > ends[1, j] else ends[1, j]
                sums[0, j] += d
                sums[1, j] += q
                sums[2, j] += q * d
                sums[3, j] += q * q
            for k in range(W):
                low[k], high[k] = np.float32(np.inf), np.float32(-np.inf)
                s[0, k] = s[1, k] = s[2, k] = s[3, k] = 0.0
            for j in range(tile, whole, W):
                for k in range(W):
                    v = x[i, j + k]
                    d = np.float64(v)
                    q = d * d
                    low[k] = v if v < low[k] else low[k]
                    high[k] = v if v > high[k] else high[k]
                    s[0, k] += d
                    s[1, k] += q
                    s[2, k] += q * d
                    s[3, k] += q * q
            for j in range(whole, stop):
                v = x[i, j]
                d = np.float64(v)
                q = d * d
                low[0] = v if v < low[0] else low[0]
                high[0] = v if v > high[0] else high[0]
                s[0, 0] += d
                s[1, 0] += q
                s[2, 0] += q * d
                s[3, 0] += q * q
            for k in range(W):
                row_ends[i, 0] = min(row_ends[i, 0], low[k])
                row_ends[i, 1] = max(row_ends[i, 1], high[k])
                for p in range(4):
                    row_sums[i, p] += s[p, k]
            for j in range(tile, stop):
                k = (bits[i, j] & SIZE) >> shift
                d = np.float64(x[i, j])
                counts[k] += 1
                energy[k] += d * d
            h = (first + i) // steps[0]
            j = tile
            while j < stop:
                c = j // steps[1]
                end = min(stop, (c + 1) * steps[1])
                most = heat[h, c]
                for p in range(j, end):
                    b = bits[i, p] & SIZE
                    most = b if b > most else most
                heat[h, c] = most
                j = end
