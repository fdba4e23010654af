"""Effort `best` for blocks with a 16-bit scale of their own on one CPU core, W blocks side by side: from llama.cpp's
scale (and minimum) on, a few others are tried, and the best one is refitted to its codes. Errors are those of the
stored numbers, and only what lowers them is taken. searches_best.py says the same in torch, operation by operation.

Kernels: (x float32 [rows, columns], importance float32 [columns] or [0], out uint8 [rows, bytes]), out holding
llama.cpp's blocks, which are refined in place. Types that llama.cpp writes without importance do not look at it.
"""

from __future__ import annotations

import numpy as np

from core.formats.fitting.compiled import helper, inlined, kernel
from core.formats.fitting.lanes_bits import float_of, half_at, put_half, to_half
from core.formats.fitting.lanes_few import _put_q2_0, _put_tq1_0, _put_tq2_0
from core.formats.fitting.lanes_iq4 import _codes as nearest_uneven
from core.formats.fitting.lanes_iq4 import _level
from core.formats.fitting.lanes_iq4 import _load as load_uneven
from core.formats.fitting.lanes_legacy import _load as load_weighted
from core.formats.fitting.lanes_legacy import _put_five, _put_four, _row_means
from core.formats.fitting.lanes_search import W
from core.formats.fitting.tries import FACTORS, LINES, REFITS

F = np.float32
HALF_MAX = F(65504)
NONE = np.zeros(0, F)
Q4_0, Q5_0, Q8_0, TERNARY, Q2_0 = (np.array(FACTORS[k], F) for k in ("Q4_0", "Q5_0", "Q8_0", "TQ1_0", "Q2_0"))
WEIGHTED, UNEVEN = np.array(FACTORS["weighted"], F), np.array(FACTORS["IQ4_NL"], F)
Q4_1, Q5_1, WEIGHTED_LINES = (np.array(LINES[k], F) for k in ("Q4_1", "Q5_1", "weighted"))


@inlined
def _halved(d):
    """d rounded to a half's precision, in arithmetic that vectorises. Beyond 65504 it stays too large."""
    t = d * F(8193)
    return (d + F(0.75)) - F(0.75) if abs(d) < F(2.0**-14) else t - (t - d)


@helper
def _load(x, n, first, lanes_x):
    """Blocks of n from `first` on into lanes; the last one fills up."""
    count = x.size // n
    flat = x.reshape(-1)
    for j in range(W):
        block = min(first + j, count - 1)
        source = flat[block * n : (block + 1) * n]
        for i in range(n):
            lanes_x[i, j] = source[i]


@inlined
def _errors(x, w, n, bottom, top, kind, step, err):
    """Σ (step·q − x)² of every lane, weighted or not, q the nearest level. kind as in _refine_scaled."""
    inv = np.empty(W, F)
    for j in range(W):
        inv[j] = F(1) / step[j] if step[j] != 0 else F(0)
        err[j] = F(0)
    for i in range(n):
        if kind == 0:
            for j in range(W):
                e = step[j] * max(bottom, min(top, np.rint(x[i, j] * inv[j]))) - x[i, j]
                err[j] += e * e
        elif kind == 1:
            for j in range(W):
                e = step[j] * max(bottom, min(top, np.rint(x[i, j] * inv[j]))) - x[i, j]
                err[j] += w[i, j] * (e * e)
        else:
            for j in range(W):
                e = step[j] * _level(x[i, j] * inv[j]) - x[i, j]
                err[j] += w[i, j] * (e * e)


@inlined
def _sums(x, w, n, bottom, top, kind, step, a, b):
    """a = Σ w·x·q and b = Σ w·q² of every lane."""
    inv = np.empty(W, F)
    for j in range(W):
        inv[j] = F(1) / step[j] if step[j] != 0 else F(0)
        a[j] = F(0)
        b[j] = F(0)
    for i in range(n):
        if kind == 0:
            for j in range(W):
                q = max(bottom, min(top, np.rint(x[i, j] * inv[j])))
                a[j] += x[i, j] * q
                b[j] += q * q
        elif kind == 1:
            for j in range(W):
                q = max(bottom, min(top, np.rint(x[i, j] * inv[j])))
                v = w[i, j] * q
                a[j] += v * x[i, j]
                b[j] += v * q
        else:
            for j in range(W):
                q = _level(x[i, j] * inv[j])
                v = w[i, j] * q
                a[j] += v * x[i, j]
                b[j] += v * q


@helper
def _refine_scaled(x, imp, out, n, size, at, bottom, top, kind, factors, refits):
    """Blocks of n weights and `size` bytes, the scale at byte `at`.

    kind     0: levels bottom … top, all weights alike; 1: the same, weighted by importance; 2: IQ4's levels, weighted
    factors  of llama.cpp's scale, tried after itself
    """
    count = x.size // n
    flat, target = x.reshape(-1), out.reshape(-1)
    lanes_x, lanes_w, s = np.empty((256, W), F), np.empty((33, W), F), np.empty((7, W), F)
    start, step, new, best, err, a, b = s
    codes, tail, means = np.empty(256, np.uint8), np.zeros(20, np.uint8), np.empty(x.shape[0], F)
    if kind == 1:
        _row_means(x, means)
    for first in range(0, count, W):
        if kind == 0:
            _load(x, n, first, lanes_x)
        elif kind == 1:
            load_weighted(x, imp, means, first, lanes_x, lanes_w)
        else:
            load_uneven(x, imp, first, 1, lanes_x, lanes_w, start)
        for j in range(W):
            start[j] = half_at(target, min(first + j, count - 1) * size + at)
            step[j] = start[j]
        for c in range(factors.size + 1 + refits):
            if c == 0:
                for j in range(W):
                    new[j] = start[j]
                    best[j] = F(np.inf)
            elif c <= factors.size:
                factor = factors[c - 1]
                for j in range(W):
                    d = _halved(start[j] * factor)
                    new[j] = d if abs(d) <= HALF_MAX else start[j]
            else:
                _sums(lanes_x, lanes_w, n, bottom, top, kind, step, a, b)
                for j in range(W):
                    usable = b[j] > 0
                    d = _halved(a[j] / (b[j] if usable else F(1)))
                    new[j] = d if usable and d != 0 and abs(d) <= HALF_MAX else step[j]
            _errors(lanes_x, lanes_w, n, bottom, top, kind, new, err)
            for j in range(W):
                better = err[j] < best[j]
                best[j] = err[j] if better else best[j]
                step[j] = new[j] if better else step[j]
        for j in range(min(W, count - first)):
            block = first + j
            d = step[j]
            inv = F(1) / d if d != 0 else F(0)
            run, to = flat[block * n : (block + 1) * n], target[block * size : (block + 1) * size]
            if kind == 2:
                nearest_uneven(run, inv, codes)
            elif size == 34:
                for i in range(32):
                    q = max(bottom, min(top, np.rint(run[i] * inv)))
                    to[2 + i] = np.uint8(np.int32(q) & np.int32(255))
            else:
                for i in range(n):
                    codes[i] = np.uint8(np.int32(max(bottom, min(top, np.rint(run[i] * inv))) - bottom))
            h = to_half(d)
            if n == 32:
                put_half(to, 0, h)
                if size == 18:
                    _put_four(to[2:], codes)
                elif size == 22:
                    _put_five(to[2:], codes)
            elif n == 64:
                _put_q2_0(to, h, codes)
            elif size == 54:
                _put_tq1_0(to, h, codes, tail)
            else:
                _put_tq2_0(to, h, codes)


@kernel
def q4_0(x, imp, out):
    kind, factors = (1, WEIGHTED) if imp.size else (0, Q4_0)
    _refine_scaled(x, imp, out, 32, 18, 0, F(-8), F(7), kind, factors, REFITS)


@kernel
def q5_0(x, imp, out):
    kind, factors = (1, WEIGHTED) if imp.size else (0, Q5_0)
    _refine_scaled(x, imp, out, 32, 22, 0, F(-16), F(15), kind, factors, REFITS)


@kernel
def q8_0(x, imp, out):
    _refine_scaled(x, NONE, out, 32, 34, 0, F(-128), F(127), 0, Q8_0, 1)


@kernel
def iq4_nl(x, imp, out):
    _refine_scaled(x, imp, out, 32, 18, 0, F(0), F(0), 2, UNEVEN, REFITS)


@kernel
def tq1_0(x, imp, out):
    _refine_scaled(x, NONE, out, 256, 54, 52, F(-1), F(1), 0, TERNARY, REFITS)


@kernel
def tq2_0(x, imp, out):
    _refine_scaled(x, NONE, out, 256, 66, 64, F(-1), F(1), 0, TERNARY, REFITS)


@kernel
def q2_0(x, imp, out):
    _refine_scaled(x, NONE, out, 64, 18, 0, F(-1), F(2), 0, Q2_0, REFITS)


# --- scale and minimum ------------------------------------------------------------------------------------------------


@helper
def _refine_shifted(x, imp, out, nmax, size, lines, refits):
    """Q4_1 and Q5_1; lines [·, 2]: factors of llama.cpp's scale, and how many of its steps the minimum moves."""
    count = x.size // 32
    flat, target = x.reshape(-1), out.reshape(-1)
    lanes_x, lanes_w, s = np.empty((32, W), F), np.empty((33, W), F), np.empty((15, W), F)
    start, start_low, step, low, new, new_low, best, err, inv, sw, sx, sq, sqq, sxq, _spare = s
    codes, means = np.empty(32, np.uint8), np.empty(x.shape[0], F)
    weighted = imp.size > 0
    if weighted:
        _row_means(x, means)
    for first in range(0, count, W):
        if weighted:
            load_weighted(x, imp, means, first, lanes_x, lanes_w)
        else:
            _load(x, 32, first, lanes_x)
        for j in range(W):
            at = min(first + j, count - 1) * size
            start[j] = half_at(target, at)
            start_low[j] = half_at(target, at + 2)
            step[j] = start[j]
            low[j] = start_low[j]
            best[j] = F(np.inf)
            sw[j] = F(0)
            sx[j] = F(0)
        for i in range(32):
            if weighted:
                for j in range(W):
                    sw[j] += lanes_w[i, j]
                    sx[j] += lanes_w[i, j] * lanes_x[i, j]
            else:
                for j in range(W):
                    sw[j] += F(1)
                    sx[j] += lanes_x[i, j]
        for c in range(lines.shape[0] + 1 + refits):
            if c == 0:
                for j in range(W):
                    new[j] = start[j]
                    new_low[j] = start_low[j]
            elif c <= lines.shape[0]:
                factor, moved = lines[c - 1, 0], lines[c - 1, 1]
                for j in range(W):
                    d, m = _halved(start[j] * factor), _halved(start_low[j] + moved * start[j])
                    usable = abs(d) <= HALF_MAX and abs(m) <= HALF_MAX
                    new[j] = d if usable else start[j]
                    new_low[j] = m if usable else start_low[j]
            else:
                for j in range(W):
                    inv[j] = F(1) / step[j] if step[j] != 0 else F(0)
                    sq[j] = F(0)
                    sqq[j] = F(0)
                    sxq[j] = F(0)
                for i in range(32):
                    if weighted:
                        for j in range(W):
                            q = max(F(0), min(nmax, np.rint((lanes_x[i, j] - low[j]) * inv[j])))
                            v = lanes_w[i, j] * q
                            sq[j] += v
                            sqq[j] += v * q
                            sxq[j] += v * lanes_x[i, j]
                    else:
                        for j in range(W):
                            q = max(F(0), min(nmax, np.rint((lanes_x[i, j] - low[j]) * inv[j])))
                            sq[j] += q
                            sqq[j] += q * q
                            sxq[j] += q * lanes_x[i, j]
                for j in range(W):
                    det = sw[j] * sqq[j] - sq[j] * sq[j]
                    usable = det > 0
                    safe = det if usable else F(1)
                    d = _halved((sw[j] * sxq[j] - sx[j] * sq[j]) / safe)
                    m = _halved((sqq[j] * sx[j] - sq[j] * sxq[j]) / safe)
                    usable = usable and d > 0 and d <= HALF_MAX and abs(m) <= HALF_MAX
                    new[j] = d if usable else step[j]
                    new_low[j] = m if usable else low[j]
            for j in range(W):
                inv[j] = F(1) / new[j] if new[j] != 0 else F(0)
                err[j] = F(0)
            for i in range(32):
                if weighted:
                    for j in range(W):
                        q = max(F(0), min(nmax, np.rint((lanes_x[i, j] - new_low[j]) * inv[j])))
                        e = new[j] * q + new_low[j] - lanes_x[i, j]
                        err[j] += lanes_w[i, j] * (e * e)
                else:
                    for j in range(W):
                        q = max(F(0), min(nmax, np.rint((lanes_x[i, j] - new_low[j]) * inv[j])))
                        e = new[j] * q + new_low[j] - lanes_x[i, j]
                        err[j] += e * e
            for j in range(W):
                better = err[j] < best[j]
                best[j] = err[j] if better else best[j]
                step[j] = new[j] if better else step[j]
                low[j] = new_low[j] if better else low[j]
        for j in range(min(W, count - first)):
            block = first + j
            d, m = step[j], low[j]
            inverse = F(1) / d if d != 0 else F(0)
            run, to = flat[block * 32 : (block + 1) * 32], target[block * size : (block + 1) * size]
            for i in range(32):
                codes[i] = np.uint8(np.int32(max(F(0), min(nmax, np.rint((run[i] - m) * inverse)))))
            put_half(to, 0, to_half(d))
            put_half(to, 2, to_half(m))
            if size == 20:
                _put_four(to[4:], codes)
            else:
                _put_five(to[4:], codes)


@kernel
def q4_1(x, imp, out):
    _refine_shifted(x, imp, out, F(15), 20, WEIGHTED_LINES if imp.size else Q4_1, REFITS)


@kernel
def q5_1(x, imp, out):
    _refine_shifted(x, imp, out, F(31), 24, WEIGHTED_LINES if imp.size else Q5_1, REFITS)


# --- powers of two ----------------------------------------------------------------------------------------------------


@inlined
def _step_of(e):
    """float32 2^(e − 128) for a scale byte."""
    return float_of(np.uint32((1 << 21) << e if e < 2 else (e - 1) << 23))


@kernel
def mxfp4(x, imp, out):
    count = x.size // 32
    flat, target = x.reshape(-1), out.reshape(-1)
    lanes_x, s = np.empty((32, W), F), np.empty((4, W), F)
    inv, best, err, move = s
    codes = np.empty(32, np.uint8)
    for first in range(0, count, W):
        _load(x, 32, first, lanes_x)
        for j in range(W):
            e = np.int32(target[min(first + j, count - 1) * 17])
            # At the ends of the range of bytes llama.cpp's choice stays.
            inv[j] = F(1) / _step_of(e) if 3 <= e <= 252 else F(0)
            best[j] = F(np.inf)
            move[j] = F(1)
        for c in range(3):
            unit = F(1) if c == 0 else (F(2) if c == 1 else F(0.5))
            for j in range(W):
                err[j] = F(0)
            for i in range(32):
                for j in range(W):
                    u = abs(lanes_x[i, j] * inv[j])
                    v = u / unit
                    q = (F(1) if v > F(0.5) else F(0)) + (F(1) if v > F(1.5) else F(0))
                    q += (F(1) if v > F(2.5) else F(0)) + (F(1) if v > F(3.5) else F(0))
                    q += (F(2) if v > F(5) else F(0)) + (F(2) if v > F(7) else F(0)) + (F(4) if v > F(10) else F(0))
                    e = unit * q - u
                    err[j] += e * e
            for j in range(W):
                better = err[j] < best[j]
                best[j] = err[j] if better else best[j]
                move[j] = unit if better else move[j]
        for j in range(min(W, count - first)):
            if move[j] == F(1):
                continue
            block = first + j
            to = target[block * 17 : (block + 1) * 17]
            e = np.int32(to[0]) + (1 if move[j] > F(1) else -1)
            scale = F(1) / _step_of(e)
            for i in range(32):
                u = flat[block * 32 + i] * scale
                v = abs(u)
                k = np.int32(v > F(0.5)) + np.int32(v > F(1.5)) + np.int32(v > F(2.5)) + np.int32(v > F(3.5))
                k += np.int32(v > F(5)) + np.int32(v > F(7)) + np.int32(v > F(10))
                codes[i] = np.uint8(k + 8 * (np.int32(u < F(0)) & np.int32(k > 0)))
            to[0] = np.uint8(e)
            _put_four(to[1:], codes)
