"""Effort `best` for Q3_K, Q6_K and IQ4_XS on one CPU core: from llama.cpp's answer on, the signed scales of all
sub-blocks and the 16-bit d above them are refined in turn, sixteen super-blocks side by side. Errors and rules as in
lanes_best_affine.py; searches_best.py says the same in torch, operation by operation.

Kernels: (x float32 [rows, columns], importance float32 [columns] or None, out uint8 [rows, bytes]), out holding
llama.cpp's blocks, which are refined in place.
"""

from __future__ import annotations

import numpy as np

from core.formats.fitting.compiled import helper, vector_kernel
from core.formats.fitting.lanes_bits import from_half, half_at, put_half, to_half
from core.formats.fitting.lanes_iq4 import put_scales
from core.formats.fitting.lanes_legacy import _put_four
from core.formats.fitting.lanes_room import empty, empty_rows, flattened
from core.formats.fitting.lanes_super import (
    mean_square,
    put_q3_k,
    put_q6_k,
    put_rows,
    reciprocal,
    take,
    take_importance,
    weigh,
)
from core.formats.fitting.lanes_vector import at_least, at_most, clipped, load, magnitude, splat, store, table, where

F = np.float32
U8 = np.uint8
HALF_MAX = F(65504)
# Rows of a kernel's table.
CODES, SCALES, X, WEIGHTS = 0, 256, 272, 528
BEST, ERRORS, WHOLE, NEW, ROWS = 784, 800, 816, 817, 818


@helper
def _level(v):
    """The level of IQ4 nearest to v, the upper one of two equally near: the lowest one and all steps passed, exact
    sums. Spelled out from LEVELS of core/formats/ggml/codebook.py, as constants are quickest."""
    q = where(v >= F(-115.5), F(-104), F(-127)) + where(v >= F(-93.5), F(21), F(0))
    q += where(v >= F(-74), F(18), F(0)) + where(v >= F(-57), F(16), F(0))
    q += where(v >= F(-42), F(14), F(0)) + where(v >= F(-28.5), F(13), F(0))
    q += where(v >= F(-16), F(12), F(0)) + where(v >= F(-4.5), F(11), F(0))
    q += where(v >= F(7), F(12), F(0)) + where(v >= F(19), F(12), F(0))
    q += where(v >= F(31.5), F(13), F(0)) + where(v >= F(45.5), F(15), F(0))
    q += where(v >= F(61), F(16), F(0)) + where(v >= F(79), F(20), F(0))
    return q + where(v >= F(101), F(24), F(0))


@helper
def _code(v):
    """Its place among the levels, 0 … 15."""
    c = where(v >= F(-115.5), F(1), F(0)) + where(v >= F(-93.5), F(1), F(0))
    c += where(v >= F(-74), F(1), F(0)) + where(v >= F(-57), F(1), F(0))
    c += where(v >= F(-42), F(1), F(0)) + where(v >= F(-28.5), F(1), F(0))
    c += where(v >= F(-16), F(1), F(0)) + where(v >= F(-4.5), F(1), F(0))
    c += where(v >= F(7), F(1), F(0)) + where(v >= F(19), F(1), F(0))
    c += where(v >= F(31.5), F(1), F(0)) + where(v >= F(45.5), F(1), F(0))
    c += where(v >= F(61), F(1), F(0)) + where(v >= F(79), F(1), F(0))
    return c + where(v >= F(101), F(1), F(0))


@helper
def _nearest(v, bottom):
    """The nearest level: a whole number from bottom to −bottom − 1, or one of IQ4 where bottom is None."""
    if bottom is None:
        return _level(v)
    return clipped(v, bottom, -bottom - F(1))


@helper
def _errors(t, x, w, n, bottom, step, other):
    """Σ w·(step·q − x)² of n rows, q the nearest level; and the same for another step."""
    inverse, inverse2 = reciprocal(step), reciprocal(other)
    error = splat(F(0))
    error2 = error
    for i in range(n):
        v, u = load(t, x + i), load(t, w + i)
        e = step * _nearest(v * inverse, bottom) - v
        error += u * (e * e)
        e = other * _nearest(v * inverse2, bottom) - v
        error2 += u * (e * e)
    return error, error2


@helper
def _move(k, reach):
    """0, −reach … −1, 1 … reach; the first one again behind the last."""
    if k > 2 * reach:
        return F(0)
    return F(0) if k == 0 else F(k - reach - 1 if k <= reach else k - reach)


@helper
def _refine_scale(t, x, w, k, sub, bottom, most, reach, first):
    """The scale of sub-block k under the present d: within reach of the present one, in the first round of its opposite
    too. The present one comes first: its error is what the others must fall below."""
    whole, start = load(t, WHOLE), load(t, SCALES + k)
    scale, best = start, load(t, BEST + k)
    for side in range(2 if first else 1):
        about = -start if side else start
        for c in range(0, 2 * reach + 1, 2):
            a = at_least(at_most(_move(c, reach) + about, most - F(1)), -most)
            b = at_least(at_most(_move(c + 1, reach) + about, most - F(1)), -most)
            of_a, of_b = _errors(t, x, w, sub, bottom, whole * a, whole * b)
            better = of_a < best
            best, scale = where(better, of_a, best), where(better, a, scale)
            better = of_b < best
            best, scale = where(better, of_b, best), where(better, b, scale)
    store(t, BEST + k, best)
    store(t, SCALES + k, scale)


@helper
def _fit(t, sub, bottom):
    """d by least squares over the super-block into row NEW, the present one where there is no such answer."""
    zero = splat(F(0))
    xx, qq = zero, zero
    whole = load(t, WHOLE)
    for k in range(256 // sub):
        scale = load(t, SCALES + k)
        inverse = reciprocal(whole * scale)
        sqq, sxq = zero, zero
        for i in range(k * sub, (k + 1) * sub):
            v = load(t, X + i)
            q = _nearest(v * inverse, bottom)
            u = load(t, WEIGHTS + i) * q
            sqq += u * q
            sxq += u * v
        qq += scale * scale * sqq
        xx += scale * sxq
    usable = qq > F(0)
    fit = xx / where(usable, qq, F(1))
    usable = usable & (fit != F(0)) & (magnitude(fit) <= HALF_MAX)
    store(t, NEW, where(usable, fit, whole))
    for g in range(16):
        t[NEW, g] = from_half(to_half(t[NEW, g]))


@helper
def _refine(x, imp, first, sub, bottom, most, energy, reach, rounds, t, room, few, out):
    """Refines sixteen super-blocks, whose d and scales are in the table; out uint8 [16, 272] gets codes (from 0 on) and
    scales, d stays in the table. Scratch as in lanes_kquants.py.

    most     scales run from −most to most − 1
    energy   None: errors weigh as importance alone
    """
    per = 256 // sub
    take(x, first, room, t, X)
    if imp is None:
        for i in range(256):
            v = load(t, X + i)
            store(t, WEIGHTS + i, v * v)
    else:
        take_importance(x, imp, first, room, t, WEIGHTS)
        if energy is not None:
            weigh(t, X, WEIGHTS, 256, mean_square(t, X, energy), WEIGHTS)
    for k in range(per):
        store(t, BEST + k, splat(F(np.inf)))
    for turn in range(rounds):
        for k in range(per):
            _refine_scale(t, X + k * sub, WEIGHTS + k * sub, k, sub, bottom, most, reach, turn == 0)
        _fit(t, sub, bottom)
        new, whole = load(t, NEW), load(t, WHOLE)
        before, after = splat(F(0)), splat(F(0))
        for k in range(per):
            step = new * load(t, SCALES + k)
            error, _ = _errors(t, X + k * sub, WEIGHTS + k * sub, sub, bottom, step, step)
            store(t, ERRORS + k, error)
            before += load(t, BEST + k)
            after += error
        better = after < before
        for k in range(per):
            store(t, BEST + k, where(better, load(t, ERRORS + k), load(t, BEST + k)))
        store(t, WHOLE, where(better, new, whole))
    for k in range(per):
        inverse = reciprocal(load(t, WHOLE) * load(t, SCALES + k))
        for i in range(k * sub, (k + 1) * sub):
            v = load(t, X + i) * inverse
            if bottom is None:
                store(t, CODES + i, _code(v))
            else:
                store(t, CODES + i, _nearest(v, bottom) - bottom)
    put_rows(t, CODES, 272, few, out)


@vector_kernel
def q3_k(x, imp, out):
    count = x.size // 256
    flat = flattened(out)
    t, room, few, made = table(ROWS), empty(F, 4096), empty(U8, 4352), empty_rows(U8, 16, 272)
    for first in range(0, count, 16):
        for g in range(16):
            at = min(first + g, count - 1) * 110
            t[WHOLE, g] = half_at(flat, at + 108)
            for k in range(16):
                low = np.int32(flat[at + 96 + k % 8]) >> (4 * (k // 8)) & 15
                high = np.int32(flat[at + 104 + k % 4]) >> (2 * (k // 4)) & 3
                t[SCALES + k, g] = F((low | high << 4) - 32)
        _refine(x, imp, first, 16, F(-4), F(32), F(2), 3, 2, t, room, few, made)
        for g in range(min(16, count - first)):
            put_q3_k(flat, (first + g) * 110, to_half(t[WHOLE, g]), made[g, 256:], made[g])


@vector_kernel
def q6_k(x, imp, out):
    count = x.size // 256
    flat = flattened(out)
    t, room, few, made = table(ROWS), empty(F, 4096), empty(U8, 4352), empty_rows(U8, 16, 272)
    for first in range(0, count, 16):
        for g in range(16):
            at = min(first + g, count - 1) * 210
            t[WHOLE, g] = half_at(flat, at + 208)
            for k in range(16):
                t[SCALES + k, g] = F(np.int8(flat[at + 192 + k]))
        _refine(x, imp, first, 16, F(-32), F(128), None, 8, 2, t, room, few, made)
        for g in range(min(16, count - first)):
            put_q6_k(flat, (first + g) * 210, to_half(t[WHOLE, g]), made[g, 256:], made[g])


@vector_kernel
def iq4_xs(x, imp, out):
    count = x.size // 256
    flat = flattened(out)
    t, room, few, made = table(ROWS), empty(F, 4096), empty(U8, 4352), empty_rows(U8, 16, 272)
    for first in range(0, count, 16):
        for g in range(16):
            at = min(first + g, count - 1) * 136
            t[WHOLE, g] = half_at(flat, at)
            high = np.int32(flat[at + 2]) | np.int32(flat[at + 3]) << 8
            for k in range(8):
                low = np.int32(flat[at + 4 + k // 2]) >> (4 * (k % 2)) & 15
                t[SCALES + k, g] = F((low | (high >> (2 * k) & 3) << 4) - 32)
        _refine(x, imp, first, 32, None, F(32), F(2), 4, 3, t, room, few, made)
        for g in range(min(16, count - first)):
            at = (first + g) * 136
            put_half(flat, at, to_half(t[WHOLE, g]))
            put_scales(flat, at, made[g, 256:])
            for k in range(8):
                _put_four(flat[at + 8 + 16 * k :], made[g, 32 * k :])
