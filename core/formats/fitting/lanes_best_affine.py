"""Effort `best` for Q2_K, Q4_K and Q5_K on one CPU core: from llama.cpp's answer on, the quantized scales and mins of
all sub-blocks and the 16-bit d and dmin above them are refined in turn, sixteen super-blocks side by side. Errors are
those of the stored numbers under llama.cpp's own weights, and only what lowers them is taken. searches_best.py says the
same in torch, operation by operation.

Kernels: (x float32 [rows, columns], importance float32 [columns] or None, out uint8 [rows, bytes]), out holding
llama.cpp's blocks, which are refined in place.
"""

from __future__ import annotations

import numpy as np

from core.formats.fitting.compiled import helper, vector_kernel
from core.formats.fitting.lanes_bits import from_half, half_at, put_half, to_half
from core.formats.fitting.lanes_room import empty, empty_rows, flattened
from core.formats.fitting.lanes_super import (
    mean_square,
    put_crumbs,
    put_five_high,
    put_nibbles,
    put_rows,
    put_six,
    reciprocal,
    take,
    take_importance,
    weigh,
)
from core.formats.fitting.lanes_vector import (
    at_least,
    at_most,
    clipped,
    load,
    magnitude,
    rint,
    root,
    splat,
    store,
    table,
    where,
)

F = np.float32
U8 = np.uint8
HALF_MAX = F(65504)
# Scales tried on either side, rounds of them, as in searches_best.py.
REACH, ROUNDS = 5, 3
# Rows of a kernel's table. Codes, scales and mins become bytes; the others are the weights, what their errors weigh,
# and one value per sub-block or super-block.
CODES, SCALES, MINS, X, WEIGHTS = 0, 256, 272, 288, 544
BEST, ERRORS, SUM_W, SUM_X, WHOLE, LOW, NEW, ROWS = 800, 816, 832, 848, 864, 865, 866, 868


@helper
def _error(t, x, w, n, nmax, step, shift):
    """Σ w·(step·q − shift − x)² of n rows, q the nearest code."""
    inverse = reciprocal(step)
    error = splat(F(0))
    for i in range(n):
        v = load(t, x + i)
        e = step * clipped((v + shift) * inverse, F(0), nmax) - shift - v
        error += load(t, w + i) * (e * e)
    return error


@helper
def _errors(t, x, w, n, nmax, step, a, b, c):
    """The same for three shifts at once."""
    inverse = reciprocal(step)
    of_a = splat(F(0))
    of_b, of_c = of_a, of_a
    for i in range(n):
        v, u = load(t, x + i), load(t, w + i)
        e = step * clipped((v + a) * inverse, F(0), nmax) - a - v
        of_a += u * (e * e)
        e = step * clipped((v + b) * inverse, F(0), nmax) - b - v
        of_b += u * (e * e)
        e = step * clipped((v + c) * inverse, F(0), nmax) - c - v
        of_c += u * (e * e)
    return of_a, of_b, of_c


@helper
def _refine_scales(t, x, w, k, sub, nmax, top):
    """Scale and min of sub-block k under the present d and dmin: a scale within REACH, and the min that suits its codes
    best or one of that one's neighbours."""
    whole, low = load(t, WHOLE), load(t, LOW)
    from_scale, from_min = load(t, SCALES + k), load(t, MINS + k)
    scale, least = from_scale, from_min
    best, sw, sx = load(t, BEST + k), load(t, SUM_W + k), load(t, SUM_X + k)
    den = low * sw
    usable = den > F(0)
    den = where(usable, den, F(1))
    shift = low * from_min
    for move in range(-REACH, REACH + 1):
        tried = at_least(at_most(from_scale + F(move), top), F(0))
        step = whole * tried
        inverse = reciprocal(step)
        sq = splat(F(0))
        for i in range(sub):
            sq += load(t, w + i) * clipped((load(t, x + i) + shift) * inverse, F(0), nmax)
        fit = at_least(at_most(rint((step * sq - sx) / den), top), F(0))
        middle = where(usable, fit, from_min)
        below = at_least(at_most(middle - F(1), top), F(0))
        above = at_least(at_most(middle + F(1), top), F(0))
        middle = at_least(at_most(middle, top), F(0))
        a, b, c = _errors(t, x, w, sub, nmax, step, low * below, low * middle, low * above)
        better = a < best
        best, scale, least = where(better, a, best), where(better, tried, scale), where(better, below, least)
        better = b < best
        best, scale, least = where(better, b, best), where(better, tried, scale), where(better, middle, least)
        better = c < best
        best, scale, least = where(better, c, best), where(better, tried, scale), where(better, above, least)
    store(t, BEST + k, best)
    store(t, SCALES + k, scale)
    store(t, MINS + k, least)


@helper
def _fit(t, sub, nmax):
    """d and dmin by least squares over the super-block, x ≈ d·(scale·q) − dmin·min, into rows NEW and NEW + 1; the
    present ones where there is no such answer."""
    zero = splat(F(0))
    aa, bb, cc, xx, yy = zero, zero, zero, zero, zero
    whole, low = load(t, WHOLE), load(t, LOW)
    for k in range(256 // sub):
        scale, least = load(t, SCALES + k), load(t, MINS + k)
        shift = low * least
        inverse = reciprocal(whole * scale)
        sq, sqq, sxq = zero, zero, zero
        for i in range(k * sub, (k + 1) * sub):
            v = load(t, X + i)
            q = clipped((v + shift) * inverse, F(0), nmax)
            u = load(t, WEIGHTS + i) * q
            sq += u
            sqq += u * q
            sxq += u * v
        aa += scale * scale * sqq
        bb += scale * least * sq
        cc += least * least * load(t, SUM_W + k)
        xx += scale * sxq
        yy += least * load(t, SUM_X + k)
    det = aa * cc - bb * bb
    usable = det > F(0)
    det = where(usable, det, F(1))
    a, b = (xx * cc - bb * yy) / det, (bb * xx - aa * yy) / det
    usable = usable & (a > F(0)) & (b > F(0)) & (a <= HALF_MAX) & (b <= HALF_MAX)
    store(t, NEW, where(usable, a, whole))
    store(t, NEW + 1, where(usable, b, low))
    for g in range(16):
        t[NEW, g] = from_half(to_half(t[NEW, g]))
        t[NEW + 1, g] = from_half(to_half(t[NEW + 1, g]))


@helper
def _refine(x, imp, first, sub, nmax, top, energy, absolute, t, room, few, out):
    """Refines sixteen super-blocks, whose d, dmin, scales and mins are in the table; out uint8 [16, 288] gets codes,
    scales and mins, d and dmin stay in the table. Scratch as in lanes_kquants.py."""
    per = 256 // sub
    take(x, first, room, t, X)
    mean = splat(F(0))
    if imp is not None:
        take_importance(x, imp, first, room, t, WEIGHTS)
        mean = mean_square(t, X, energy)
    for k in range(per):
        start, w = X + k * sub, WEIGHTS + k * sub
        if imp is not None:
            weigh(t, start, w, sub, mean, w)
        else:
            base = splat(F(0))
            if not absolute:
                for i in range(sub):
                    v = load(t, start + i)
                    base += v * v
                base = root(base / F(sub))
            for i in range(sub):
                store(t, w + i, base + magnitude(load(t, start + i)))
        sw, sx = splat(F(0)), splat(F(0))
        for i in range(sub):
            u = load(t, w + i)
            sw += u
            sx += u * load(t, start + i)
        store(t, SUM_W + k, sw)
        store(t, SUM_X + k, sx)
        step, shift = load(t, WHOLE) * load(t, SCALES + k), load(t, LOW) * load(t, MINS + k)
        store(t, BEST + k, _error(t, start, w, sub, nmax, step, shift))
    for _ in range(ROUNDS):
        for k in range(per):
            _refine_scales(t, X + k * sub, WEIGHTS + k * sub, k, sub, nmax, top)
        _fit(t, sub, nmax)
        whole, low = load(t, NEW), load(t, NEW + 1)
        before, after = splat(F(0)), splat(F(0))
        for k in range(per):
            step, shift = whole * load(t, SCALES + k), low * load(t, MINS + k)
            error = _error(t, X + k * sub, WEIGHTS + k * sub, sub, nmax, step, shift)
            store(t, ERRORS + k, error)
            before += load(t, BEST + k)
            after += error
        better = after < before
        for k in range(per):
            store(t, BEST + k, where(better, load(t, ERRORS + k), load(t, BEST + k)))
        store(t, WHOLE, where(better, whole, load(t, WHOLE)))
        store(t, LOW, where(better, low, load(t, LOW)))
    for k in range(per):
        inverse, shift = reciprocal(load(t, WHOLE) * load(t, SCALES + k)), load(t, LOW) * load(t, MINS + k)
        for i in range(k * sub, (k + 1) * sub):
            store(t, CODES + i, clipped((load(t, X + i) + shift) * inverse, F(0), nmax))
    put_rows(t, CODES, 288, few, out)


@helper
def _take_six(data, at, t, g):
    """Eight scales and mins of 6 bits from 12 bytes into lane g; the inverse of put_six."""
    for k in range(4):
        a, b, c = np.int32(data[at + k]), np.int32(data[at + 4 + k]), np.int32(data[at + 8 + k])
        t[SCALES + k, g] = F(a & 63)
        t[MINS + k, g] = F(b & 63)
        t[SCALES + 4 + k, g] = F(c & 15 | a >> 6 << 4)
        t[MINS + 4 + k, g] = F(c >> 4 | b >> 6 << 4)


@helper
def _sixes(x, imp, out, nmax, size):
    """Q4_K and Q5_K."""
    count = x.size // 256
    flat = flattened(out)
    t, room, few, made = table(ROWS), empty(F, 4096), empty(U8, 4608), empty_rows(U8, 16, 288)
    for first in range(0, count, 16):
        for g in range(16):
            at = min(first + g, count - 1) * size
            t[WHOLE, g] = half_at(flat, at)
            t[LOW, g] = half_at(flat, at + 2)
            _take_six(flat, at + 4, t, g)
        _refine(x, imp, first, 32, nmax, F(63), F(2), False, t, room, few, made)
        for g in range(min(16, count - first)):
            at = (first + g) * size
            put_half(flat, at, to_half(t[WHOLE, g]))
            put_half(flat, at + 2, to_half(t[LOW, g]))
            put_six(flat, at + 4, made[g, 256:264], made[g, 272:280])
            if size == 176:
                put_five_high(flat[at + 16 :], made[g])
            put_nibbles(flat[at + size - 128 :], made[g])


@vector_kernel
def q4_k(x, imp, out):
    _sixes(x, imp, out, F(15), 144)


@vector_kernel
def q5_k(x, imp, out):
    _sixes(x, imp, out, F(31), 176)


@vector_kernel
def q2_k(x, imp, out):
    count = x.size // 256
    flat = flattened(out)
    t, room, few, made = table(ROWS), empty(F, 4096), empty(U8, 4608), empty_rows(U8, 16, 288)
    for first in range(0, count, 16):
        for g in range(16):
            at = min(first + g, count - 1) * 84
            t[WHOLE, g] = half_at(flat, at + 80)
            t[LOW, g] = half_at(flat, at + 82)
            for k in range(16):
                both = np.int32(flat[at + k])
                t[SCALES + k, g] = F(both & 15)
                t[MINS + k, g] = F(both >> 4)
        _refine(x, imp, first, 16, F(3), F(15), F(1), True, t, room, few, made)
        for g in range(min(16, count - first)):
            at = (first + g) * 84
            for k in range(16):
                flat[at + k] = made[g, 256 + k] | U8(made[g, 272 + k] << U8(4))
            put_crumbs(flat[at + 16 :], made[g])
            put_half(flat, at + 80, to_half(t[WHOLE, g]))
            put_half(flat, at + 82, to_half(t[LOW, g]))
