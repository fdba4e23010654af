"""GPTQ's inner step on one CPU core: a few columns one after the other, 64 rows side by side. Rows do not depend on
each other, and those of a tile stay in the cache while all columns pass."""

from __future__ import annotations

import numpy as np

from core.formats.fitting.compiled import helper, kernel

F = np.float32
W = 64
# Adding and subtracting 1.5 · 2^23 rounds to the nearest whole number, ties to even.
_ROUND = F(12582912.0)
# Up to this many levels they are counted off, all rows at once; more are searched by halving.
FEW = 16


@helper
def _made_up(x, a, e, k, r, n, out):
    """out[i] = x_k + Σ_{j<k} e_j · a_jk for rows r … r + n."""
    row = x[k]
    for i in range(n):
        out[i] = row[r + i]
    whole = k // 4 * 4
    for j in range(0, whole, 4):
        c0, c1, c2, c3 = a[j, k], a[j + 1, k], a[j + 2, k], a[j + 3, k]
        e0, e1, e2, e3 = e[j], e[j + 1], e[j + 2], e[j + 3]
        for i in range(n):
            out[i] += (c0 * e0[r + i] + c1 * e1[r + i]) + (c2 * e2[r + i] + c3 * e3[r + i])
    for j in range(whole, k):
        c0, e0 = a[j, k], e[j]
        for i in range(n):
            out[i] += c0 * e0[r + i]


@kernel
def whole_levels(w, x, a, run, step, zero, shift, low, high, e, index):
    """Columns of levels one apart, low … high. Writes errors e and positions on the ladder.

    w, x   float32 [columns, rows]: the weights, and what earlier errors have made of them
    a      float32 [columns, columns], feedback among these
    run    int32 [columns], row of step, zero and shift (float32 [runs, rows])
    e      float32 [columns, rows];  index  uint8 [columns, rows]
    """
    columns, rows = x.shape
    acc = np.empty(W, np.float32)
    none = min(max(F(0), low), high)
    for r in range(0, rows, W):
        n = min(W, rows - r)
        for k in range(columns):
            _made_up(x, a, e, k, r, n, acc)
            s, z, h = step[run[k]], zero[run[k]], shift[run[k]]
            own, err, pos = w[k], e[k], index[k]
            for i in range(n):
                size = s[r + i]
                t = (acc[i] - h[r + i]) / size + z[r + i]
                t = t if size != F(0) else none + z[r + i]
                t = min(max(t, low), high)
                t = (t + _ROUND) - _ROUND
                err[r + i] = own[r + i] - ((t - z[r + i]) * size + h[r + i])
                pos[r + i] = np.uint8(np.int32(t - low))


@kernel
def listed_levels(w, x, a, run, step, zero, shift, values, bounds, e, index):
    """As whole_levels, for any levels: values float32 [levels], ascending, bounds between them [levels − 1]."""
    columns, rows = x.shape
    levels = values.size
    acc = np.empty(W, np.float32)
    count = np.empty(W, np.int32)
    for r in range(0, rows, W):
        n = min(W, rows - r)
        for k in range(columns):
            _made_up(x, a, e, k, r, n, acc)
            s, z, h = step[run[k]], zero[run[k]], shift[run[k]]
            own, err, pos = w[k], e[k], index[k]
            for i in range(n):
                size = s[r + i]
                t = (acc[i] - h[r + i]) / size + z[r + i]
                acc[i] = t if size != F(0) else z[r + i]
                count[i] = 0
            if levels <= FEW:
                for b in range(levels - 1):
                    bound = bounds[b]
                    for i in range(n):
                        count[i] += np.int32(1) if acc[i] > bound else np.int32(0)
            else:
                for i in range(n):
                    first, last = 0, levels - 1
                    while first < last:
                        middle = (first + last) >> 1
                        if acc[i] > bounds[middle]:
                            first = middle + 1
                        else:
                            last = middle
                    count[i] = first
            for i in range(n):
                err[r + i] = own[r + i] - ((values[count[i]] - z[r + i]) * s[r + i] + h[r + i])
                pos[r + i] = np.uint8(count[i])
