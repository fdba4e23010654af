"""GPTQ's inner step on one CPU core: a few columns one after the other, 32 rows side by side. Rows do not depend on
each other; those of a tile are turned in scratch, where they stay in the first cache while all columns pass. (Read in
place, columns of a matrix with 4096 of them fall on the same few lines of a cache, and every one is a miss.)"""

from __future__ import annotations

import numpy as np

from core.formats.fitting.compiled import inlined, kernel

F = np.float32
W = 32
# Adding and subtracting 1.5 · 2^23 rounds to the nearest whole number, ties to even.
_ROUND = F(12582912.0)
# Up to this many levels they are counted off, all rows at once; more are searched by halving.
FEW = 16


@inlined
def _turned(a, start, n, out):
    """out[k, j] = a[start + j, start + k] for j < k < n."""
    for k in range(n):
        for j in range(k):
            out[k, j] = a[start + j, start + k]


@inlined
def _into(w, x, r, start, m, n, own, e):
    """A tile of weights, and what has been made of them: m rows from r, n columns from start."""
    for i in range(m):
        for k in range(n):
            own[k, i] = w[r + i, start + k]
            e[k, i] = x[r + i, start + k]


@inlined
def _back(e, pos, r, start, m, n, x, codes):
    for i in range(m):
        for k in range(n):
            x[r + i, start + k] = e[k, i]
            codes[r + i, start + k] = pos[k, i]


@inlined
def _made_up(e, at, k, out):
    """out = e_k + Σ_{j<k} e_j · a_jk, where e_k is still what earlier columns have made of the weights."""
    for i in range(W):
        out[i] = e[k, i]
    whole = k // 8 * 8
    for j in range(0, whole, 8):
        c0, c1, c2, c3 = at[k, j], at[k, j + 1], at[k, j + 2], at[k, j + 3]
        c4, c5, c6, c7 = at[k, j + 4], at[k, j + 5], at[k, j + 6], at[k, j + 7]
        for i in range(W):
            out[i] += ((c0 * e[j, i] + c1 * e[j + 1, i]) + (c2 * e[j + 2, i] + c3 * e[j + 3, i])) + (
                (c4 * e[j + 4, i] + c5 * e[j + 5, i]) + (c6 * e[j + 6, i] + c7 * e[j + 7, i])
            )
    for j in range(whole, k):
        c0 = at[k, j]
        for i in range(W):
            out[i] += c0 * e[j, i]


@inlined
def _lines(step, zero, shift, run, r, m, s, z, h):
    for i in range(m):
        s[i], z[i], h[i] = step[run, r + i], zero[run, r + i], shift[run, r + i]


@kernel
def whole_levels(w, x, codes, a, start, run, step, zero, shift, low, high, first):
    """Columns from `start` on, as many as there are in `run`, of levels one apart, low … high.

    w      float32 [rows, columns]: the weights
    x      float32 [rows, columns]: what earlier errors have made of them; their own errors are written in its place
    codes  uint8 [rows, columns], written: the lowest level's is `first`
    a      float32 [columns, columns], feedback
    run    int32 [n], row of step, zero and shift (float32 [runs, rows])
    """
    rows, n = x.shape[0], run.size
    at = np.empty((n, n), np.float32)
    _turned(a, start, n, at)
    own, e, pos = np.zeros((n, W), np.float32), np.zeros((n, W), np.float32), np.zeros((n, W), np.uint8)
    acc = np.empty(W, np.float32)
    s, z, h = np.ones(W, np.float32), np.zeros(W, np.float32), np.zeros(W, np.float32)
    none = min(max(F(0), low), high)
    for r in range(0, rows, W):
        m = min(W, rows - r)
        _into(w, x, r, start, m, n, own, e)
        for k in range(n):
            _made_up(e, at, k, acc)
            _lines(step, zero, shift, run[k], r, m, s, z, h)
            for i in range(W):
                t = (acc[i] - h[i]) / s[i] + z[i]
                t = t if s[i] != F(0) else none + z[i]
                t = min(max(t, low), high)
                t = (t + _ROUND) - _ROUND
                e[k, i] = own[k, i] - ((t - z[i]) * s[i] + h[i])
                pos[k, i] = np.uint8(np.int32(t - low)) + first
        _back(e, pos, r, start, m, n, x, codes)


@kernel
def listed_levels(w, x, codes, a, start, run, step, zero, shift, values, bounds, table):
    """As whole_levels, for any levels: values float32 [levels], ascending, bounds between them [levels − 1], and their
    codes, uint8 [levels]."""
    rows, n, levels = x.shape[0], run.size, values.size
    at = np.empty((n, n), np.float32)
    _turned(a, start, n, at)
    own, e, pos = np.zeros((n, W), np.float32), np.zeros((n, W), np.float32), np.zeros((n, W), np.uint8)
    acc, count = np.empty(W, np.float32), np.empty(W, np.int32)
    s, z, h = np.ones(W, np.float32), np.zeros(W, np.float32), np.zeros(W, np.float32)
    for r in range(0, rows, W):
        m = min(W, rows - r)
        _into(w, x, r, start, m, n, own, e)
        for k in range(n):
            _made_up(e, at, k, acc)
            _lines(step, zero, shift, run[k], r, m, s, z, h)
            for i in range(W):
                t = (acc[i] - h[i]) / s[i] + z[i]
                acc[i] = t if s[i] != F(0) else z[i]
                count[i] = 0
            if levels <= FEW:
                for b in range(levels - 1):
                    bound = bounds[b]
                    for i in range(W):
                        count[i] += np.int32(1) if acc[i] > bound else np.int32(0)
            else:
                for i in range(W):
                    lower, upper = 0, levels - 1
                    while lower < upper:
                        middle = (lower + upper) >> 1
                        if acc[i] > bounds[middle]:
                            lower = middle + 1
                        else:
                            upper = middle
                    count[i] = lower
            for i in range(W):
                e[k, i] = own[k, i] - ((values[count[i]] - z[i]) * s[i] + h[i])
                pos[k, i] = table[count[i]]
        _back(e, pos, r, start, m, n, x, codes)
