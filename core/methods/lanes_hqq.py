"""HQQ's iterations on one CPU core: one group after the other, all its iterations while it lies in cache. The same
operations in the same precision as the torch form in hqq.py; sums are float64, 16 side by side."""

from __future__ import annotations

import math

import numpy as np

from core.formats.fitting.compiled import helper, kernel
from core.formats.fitting.lanes_bits import bits_of, float_of, from_half, to_half

F = np.float32
U = np.uint32
W = 16
ZERO_CODES = {"whole": 0, "shift": 1, "offset": 2}
DTYPE_CODES = {"F32": 0, "F16": 1, "BF16": 2}

# log2 m = s · (2/ln 2) · (1 + s²/3 + s⁴/5 + …), s = (m − 1) / (m + 1), 1 ≤ m < 2; highest power first.
LOG2 = tuple(float(F(2 / math.log(2) / k)) for k in (13, 11, 9, 7, 5, 3, 1))
# 2^f = Σ (f ln 2)^k / k!, |f| ≤ 1/2; highest power first.
EXP2 = tuple(float(F(math.log(2) ** k / math.factorial(k))) for k in range(7, -1, -1))
_L0, _L1, _L2, _L3, _L4, _L5, _L6 = (F(c) for c in LOG2)
_E0, _E1, _E2, _E3, _E4, _E5, _E6, _E7 = (F(c) for c in EXP2)
# Adding and subtracting 1.5 · 2^23 rounds to the nearest whole number, ties to even.
_ROUND = F(12582912.0)
# By dtype code: the smallest positive number.
_SMALLEST = (F(2.0**-149), F(2.0**-24), F(2.0**-133))
_LARGEST_BF16 = F((2 - 2.0**-7) * 2.0**127)


@helper
def _power(size, exponent):
    b = bits_of(size)
    m = float_of(U((b & U(0x7FFFFF)) | U(0x3F800000)))
    s = (m - F(1)) / (m + F(1))
    q = s * s
    series = (((((_L0 * q + _L1) * q + _L2) * q + _L3) * q + _L4) * q + _L5) * q + _L6
    y = (F(np.int32(b >> U(23)) - np.int32(127)) + series * s) * exponent
    whole = (y + _ROUND) - _ROUND
    f = y - whole
    r = ((((((_E0 * f + _E1) * f + _E2) * f + _E3) * f + _E4) * f + _E5) * f + _E6) * f + _E7
    return float_of(U((np.int32(whole) + np.int32(127)) << np.int32(23))) * r


@helper
def _as_stored(x, dtype):
    """x rounded to float16 (1), bfloat16 (2) or not at all; infinities become the largest number."""
    if dtype == 1:
        return min(max(from_half(to_half(x)), F(-65504.0)), F(65504.0))
    if dtype == 2:
        b = bits_of(F(x))
        y = float_of(U((b + U(0x7FFF) + ((b >> U(16)) & U(1))) & U(0xFFFF0000)))
        return min(max(y, -_LARGEST_BF16), _LARGEST_BF16)
    return x


@helper
def _assign(x, step, offset, top, codes, error, sums):
    """Fills codes and error; returns Σ|error|."""
    n = x.size
    for i in range(n):
        v = (x[i] - offset) / step
        c = min(max(v, F(-1)), top + F(1))
        c = (c + _ROUND) - _ROUND
        c = min(max(c, F(0)), top)
        codes[i] = c
        error[i] = x[i] - (step * c + offset)
    return _added(error, sums)


@helper
def _added(values, sums):
    """Σ|values| in float64."""
    n = values.size
    whole = n // W * W
    for j in range(W):
        sums[j] = 0.0
    for i in range(0, whole, W):
        for j in range(W):
            sums[j] += np.float64(abs(values[i + j]))
    for i in range(whole, n):
        sums[0] += np.float64(abs(values[i]))
    total = 0.0
    for j in range(W):
        total += sums[j]
    return total


@kernel
def solve(x, step, offset, qmin, top, zero, dtype, exponent, beta, iterations, refine):
    """Replaces step and offset, float32 [groups], by the best found; x float32 [groups, weights of a group]."""
    groups, n = x.shape
    codes, error, target = np.empty(n, np.float32), np.empty(n, np.float32), np.empty(n, np.float32)
    a, b, c, d = np.empty(W, np.float64), np.empty(W, np.float64), np.empty(W, np.float64), np.empty(W, np.float64)
    smallest = _SMALLEST[dtype]
    whole = n // W * W
    for g in range(groups):
        w = x[g]
        h, o = step[g], offset[g]
        if not h > F(0):
            continue
        best = _assign(w, h, o, top, codes, error, a)
        for _ in range(iterations):
            for i in range(n):
                size = abs(error[i]) / h
                left = max(size - _power(size, exponent) / beta, F(0)) * h
                target[i] = w[i] - (left if error[i] > F(0) else -left)
            for j in range(W):
                a[j] = b[j] = c[j] = d[j] = 0.0
            for i in range(0, whole, W):
                for j in range(W):
                    t, q = np.float64(target[i + j]), np.float64(codes[i + j])
                    a[j] += t
                    b[j] += q
                    c[j] += t * q
                    d[j] += q * q
            for i in range(whole, n):
                t, q = np.float64(target[i]), np.float64(codes[i])
                a[0] += t
                b[0] += q
                c[0] += t * q
                d[0] += q * q
            sum_t, sum_q, sum_tq, sum_qq = 0.0, 0.0, 0.0, 0.0
            for j in range(W):
                sum_t += a[j]
                sum_q += b[j]
                sum_tq += c[j]
                sum_qq += d[j]
            if refine:
                spread = n * sum_qq - sum_q * sum_q
                if spread > 0.0:
                    slope = (n * sum_tq - sum_t * sum_q) / spread
                    if slope > 0.0:
                        h = F(slope)
            o = F((sum_t - np.float64(h) * sum_q) / n)
            h = max(_as_stored(h, dtype), smallest)
            if zero == 2:
                o = _as_stored(o, dtype)
            else:
                code = min(max(qmin - o / h, qmin), qmin + top)
                code = (code + _ROUND) - _ROUND if zero == 0 else _as_stored(code, dtype)
                o = h * (qmin - code)
            total = _assign(w, h, o, top, codes, error, a)
            if not total < best:
                break
            best = total
            step[g], offset[g] = h, o
