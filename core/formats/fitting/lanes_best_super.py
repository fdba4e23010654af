"""Effort `best` for super-blocks of 256 on one CPU core: from llama.cpp's answer on, the quantized scales (and mins) of
all sub-blocks and the 16-bit d (and dmin) above them are refined in turn, W sub-blocks side by side. Errors are those
of the stored numbers under llama.cpp's own weights, and only what lowers them is taken. searches_best.py says the same
in torch, operation by operation.

Kernels: (x float32 [rows, columns], importance float32 [columns] or [0], out uint8 [rows, bytes]), out holding
llama.cpp's blocks, which are refined in place.
"""

from __future__ import annotations

import numpy as np

from core.formats.fitting.compiled import helper, inlined, kernel
from core.formats.fitting.lanes_bits import from_half, half_at, put_half, to_half
from core.formats.fitting.lanes_iq4 import _codes as nearest_uneven
from core.formats.fitting.lanes_iq4 import _level
from core.formats.fitting.lanes_kquants import _crumbs, _load, _nibbles, _put_five_high, _put_q3_k, _put_q6_k, _six
from core.formats.fitting.lanes_legacy import _put_four
from core.formats.fitting.lanes_search import W

F = np.float32
HALF_MAX = F(65504)
# Scales tried on either side, rounds of them, as in searches_best.py.
AFFINE_REACH, AFFINE_ROUNDS = 5, 3


@inlined
def _reciprocals(step, inv):
    for j in range(W):
        inv[j] = F(1) / step[j] if step[j] != 0 else F(0)


@inlined
def _affine_errors(x, w, n, nmax, step, shift, inv, err):
    """Σ w·(step·q − shift − x)² of every lane, q the nearest code."""
    for j in range(W):
        err[j] = F(0)
    for i in range(n):
        for j in range(W):
            q = max(F(0), min(nmax, np.rint((x[i, j] + shift[j]) * inv[j])))
            e = step[j] * q - shift[j] - x[i, j]
            err[j] += w[i, j] * (e * e)


@helper
def _refine_affine(x, imp, first, sub, nmax, top, energy, plain, d, scales, mins, codes):
    """Refines W // (256 // sub) super-blocks.

    d float32 [·, 2] (d and dmin), scales, mins float32 [·, 16] are read and written, codes uint8 [·, 256] written.
    plain  weights without importance: 1 for |x|, 2 for root mean square + |x|
    """
    lanes_x, lanes_w, s = np.empty((32, W), F), np.empty((32, W), F), np.empty((21, W), F)
    sc, mn, step, shift, inv, err, best, sw, sx, sq, sqq, sxq, new_sc, new_mn, whole, low, at_sc, at_mn, a, b, mean = s
    per = 256 // sub
    groups = W // per
    count = x.size // 256
    _load(x, imp, first, sub, lanes_x, lanes_w, energy, mean)
    if imp.size == 0:
        for j in range(W):
            mean[j] = F(0)
        if plain == 2:
            for i in range(sub):
                for j in range(W):
                    mean[j] += lanes_x[i, j] * lanes_x[i, j]
            for j in range(W):
                mean[j] = np.sqrt(mean[j] / F(sub))
        for i in range(sub):
            for j in range(W):
                lanes_w[i, j] = mean[j] + abs(lanes_x[i, j])
    for j in range(W):
        sw[j] = F(0)
        sx[j] = F(0)
    for i in range(sub):
        for j in range(W):
            sw[j] += lanes_w[i, j]
            sx[j] += lanes_w[i, j] * lanes_x[i, j]
    for j in range(W):
        g = min(j // per, min(groups, count - first) - 1)
        whole[j] = d[g, 0]
        low[j] = d[g, 1]
        sc[j] = scales[g, j % per]
        mn[j] = mins[g, j % per]
        step[j] = whole[j] * sc[j]
        shift[j] = low[j] * mn[j]
    _reciprocals(step, inv)
    _affine_errors(lanes_x, lanes_w, sub, nmax, step, shift, inv, best)
    for _round in range(AFFINE_ROUNDS):
        for j in range(W):
            at_sc[j] = sc[j]
            at_mn[j] = mn[j]
        for c in range(2 * AFFINE_REACH + 1):
            for j in range(W):
                new_sc[j] = max(F(0), min(top, at_sc[j] + F(c - AFFINE_REACH)))
                step[j] = whole[j] * new_sc[j]
                shift[j] = low[j] * at_mn[j]
                sq[j] = F(0)
            _reciprocals(step, inv)
            for i in range(sub):
                for j in range(W):
                    q = max(F(0), min(nmax, np.rint((lanes_x[i, j] + shift[j]) * inv[j])))
                    sq[j] += lanes_w[i, j] * q
            for j in range(W):
                # The min that suits these codes best, and its neighbours.
                den = low[j] * sw[j]
                usable = den > 0
                fit = np.rint((step[j] * sq[j] - sx[j]) / (den if usable else F(1)))
                a[j] = max(F(0), min(top, fit)) if usable else at_mn[j]
            for k in range(3):
                for j in range(W):
                    new_mn[j] = max(F(0), min(top, a[j] + F(k - 1)))
                    shift[j] = low[j] * new_mn[j]
                _affine_errors(lanes_x, lanes_w, sub, nmax, step, shift, inv, err)
                for j in range(W):
                    better = err[j] < best[j]
                    best[j] = err[j] if better else best[j]
                    sc[j] = new_sc[j] if better else sc[j]
                    mn[j] = new_mn[j] if better else mn[j]
        for j in range(W):
            step[j] = whole[j] * sc[j]
            shift[j] = low[j] * mn[j]
            sq[j] = F(0)
            sqq[j] = F(0)
            sxq[j] = F(0)
        _reciprocals(step, inv)
        for i in range(sub):
            for j in range(W):
                q = max(F(0), min(nmax, np.rint((lanes_x[i, j] + shift[j]) * inv[j])))
                v = lanes_w[i, j] * q
                sq[j] += v
                sqq[j] += v * q
                sxq[j] += v * lanes_x[i, j]
        for g in range(groups):
            # d and dmin by least squares over the super-block: x ≈ d·(sc·q) − dmin·mn.
            aa, bb, cc, xx, yy = F(0), F(0), F(0), F(0), F(0)
            for j in range(g * per, (g + 1) * per):
                aa += sc[j] * sc[j] * sqq[j]
                bb += sc[j] * mn[j] * sq[j]
                cc += mn[j] * mn[j] * sw[j]
                xx += sc[j] * sxq[j]
                yy += mn[j] * sx[j]
            det = aa * cc - bb * bb
            usable = det > 0
            u = (xx * cc - bb * yy) / (det if usable else F(1))
            v = (bb * xx - aa * yy) / (det if usable else F(1))
            usable = usable and u > 0 and v > 0 and u <= HALF_MAX and v <= HALF_MAX
            u = from_half(to_half(u)) if usable else whole[g * per]
            v = from_half(to_half(v)) if usable else low[g * per]
            for j in range(g * per, (g + 1) * per):
                a[j] = u
                b[j] = v
        for j in range(W):
            step[j] = a[j] * sc[j]
            shift[j] = b[j] * mn[j]
        _reciprocals(step, inv)
        _affine_errors(lanes_x, lanes_w, sub, nmax, step, shift, inv, err)
        for g in range(groups):
            before, after = F(0), F(0)
            for j in range(g * per, (g + 1) * per):
                before += best[j]
                after += err[j]
            if after < before:
                for j in range(g * per, (g + 1) * per):
                    best[j] = err[j]
                    whole[j] = a[j]
                    low[j] = b[j]
    flat = x.reshape(-1)
    for g in range(min(groups, count - first)):
        start = (first + g) * 256
        d[g, 0] = whole[g * per]
        d[g, 1] = low[g * per]
        for k in range(per):
            j = g * per + k
            scales[g, k] = sc[j]
            mins[g, k] = mn[j]
            unit = whole[j] * sc[j]
            inverse = F(1) / unit if unit != 0 else F(0)
            base = low[j] * mn[j]
            run, code = flat[start + k * sub : start + (k + 1) * sub], codes[g, k * sub : (k + 1) * sub]
            for i in range(sub):
                code[i] = np.uint8(np.int32(max(F(0), min(nmax, np.rint((run[i] + base) * inverse)))))


@helper
def _six_of(data, at, scales, mins):
    """Eight scales and mins of 6 bits from 12 bytes; the inverse of _six."""
    for k in range(4):
        a, b, c = np.int32(data[at + k]), np.int32(data[at + 4 + k]), np.int32(data[at + 8 + k])
        scales[k] = F(a & 63)
        mins[k] = F(b & 63)
        scales[k + 4] = F(c & 15 | a >> 6 << 4)
        mins[k + 4] = F(c >> 4 | b >> 6 << 4)


@helper
def _small(values, out):
    for k in range(out.size):
        out[k] = np.uint8(np.int32(values[k]))


@helper
def _affine_sixes(x, imp, out, nmax, size):
    """Q4_K and Q5_K."""
    count = x.size // 256
    flat = out.reshape(-1)
    d, scales, mins = np.zeros((8, 2), F), np.zeros((8, 16), F), np.zeros((8, 16), F)
    codes, ls, lm = np.zeros((8, 256), np.uint8), np.zeros(8, np.uint8), np.zeros(8, np.uint8)
    for first in range(0, count, 8):
        for g in range(min(8, count - first)):
            at = (first + g) * size
            d[g, 0] = half_at(flat, at)
            d[g, 1] = half_at(flat, at + 2)
            _six_of(flat, at + 4, scales[g], mins[g])
        _refine_affine(x, imp, first, 32, nmax, F(63), F(2), 2, d, scales, mins, codes)
        for g in range(min(8, count - first)):
            at = (first + g) * size
            put_half(flat, at, to_half(d[g, 0]))
            put_half(flat, at + 2, to_half(d[g, 1]))
            _small(scales[g], ls)
            _small(mins[g], lm)
            _six(flat, at + 4, ls, lm)
            if size == 144:
                _nibbles(flat[at + 16 : at + 144], codes[g])
            else:
                _put_five_high(flat[at + 16 : at + 48], codes[g])
                _nibbles(flat[at + 48 : at + 176], codes[g])


@kernel
def q4_k(x, imp, out):
    _affine_sixes(x, imp, out, F(15), 144)


@kernel
def q5_k(x, imp, out):
    _affine_sixes(x, imp, out, F(31), 176)


@kernel
def q2_k(x, imp, out):
    count = x.size // 256
    flat = out.reshape(-1)
    d, scales, mins = np.zeros((4, 2), F), np.zeros((4, 16), F), np.zeros((4, 16), F)
    codes = np.zeros((4, 256), np.uint8)
    for first in range(0, count, 4):
        for g in range(min(4, count - first)):
            at = (first + g) * 84
            d[g, 0] = half_at(flat, at + 80)
            d[g, 1] = half_at(flat, at + 82)
            for k in range(16):
                both = np.int32(flat[at + k])
                scales[g, k] = F(both & 15)
                mins[g, k] = F(both >> 4)
        _refine_affine(x, imp, first, 16, F(3), F(15), F(1), 1, d, scales, mins, codes)
        for g in range(min(4, count - first)):
            at = (first + g) * 84
            for k in range(16):
                flat[at + k] = np.uint8(np.int32(scales[g, k]) | np.int32(mins[g, k]) << 4)
            _crumbs(flat[at + 16 : at + 80], codes[g])
            put_half(flat, at + 80, to_half(d[g, 0]))
            put_half(flat, at + 82, to_half(d[g, 1]))


# --- scales without mins ----------------------------------------------------------------------------------------------


@inlined
def _even_errors(x, w, n, bottom, top, step, inv, err):
    """Σ w·(step·q − x)² of every lane, q the nearest whole number in bottom … top."""
    for j in range(W):
        err[j] = F(0)
    for i in range(n):
        for j in range(W):
            q = max(bottom, min(top, np.rint(x[i, j] * inv[j])))
            e = step[j] * q - x[i, j]
            err[j] += w[i, j] * (e * e)


@inlined
def _uneven_errors(x, w, n, step, inv, err):
    """The same with the levels of IQ4."""
    for j in range(W):
        err[j] = F(0)
    for i in range(n):
        for j in range(W):
            e = step[j] * _level(x[i, j] * inv[j]) - x[i, j]
            err[j] += w[i, j] * (e * e)


@helper
def _refine_scales(x, imp, first, sub, bottom, top, least, most, energy, uneven, reach, rounds, d, scales, codes):
    """Refines W // (256 // sub) super-blocks of one signed scale per sub-block.

    d float32 [·], scales float32 [·, 16] are read and written, codes uint8 [·, 256] written.
    bottom, top   range of the levels, if they are even
    least, most   range of the quantized scales
    reach         scales tried on either side of the present one, and of its opposite in the first round
    """
    lanes_x, lanes_w, s = np.empty((32, W), F), np.empty((32, W), F), np.empty((12, W), F)
    sc, step, inv, err, best, new_sc, at_sc, whole, sqq, sxq, a, mean = s
    per = 256 // sub
    groups = W // per
    count = x.size // 256
    _load(x, imp, first, sub, lanes_x, lanes_w, energy, mean)
    if imp.size == 0:
        for i in range(sub):
            for j in range(W):
                lanes_w[i, j] = lanes_x[i, j] * lanes_x[i, j]
    for j in range(W):
        g = min(j // per, min(groups, count - first) - 1)
        whole[j] = d[g]
        sc[j] = scales[g, j % per]
        best[j] = F(np.inf)
    width = 2 * reach + 1
    for turn in range(rounds):
        for j in range(W):
            at_sc[j] = sc[j]
        tries = 2 * width if turn == 0 else width
        for c in range(tries):
            # The present scale first: its error is what the others must fall below.
            k = c if c < width else c - width
            move = F(0) if k == 0 else F(k - reach - 1 if k <= reach else k - reach)
            for j in range(W):
                wanted = at_sc[j] + move if c < width else move - at_sc[j]
                new_sc[j] = max(least, min(most, wanted))
                step[j] = whole[j] * new_sc[j]
            _reciprocals(step, inv)
            if uneven:
                _uneven_errors(lanes_x, lanes_w, sub, step, inv, err)
            else:
                _even_errors(lanes_x, lanes_w, sub, bottom, top, step, inv, err)
            for j in range(W):
                better = err[j] < best[j]
                best[j] = err[j] if better else best[j]
                sc[j] = new_sc[j] if better else sc[j]
        for j in range(W):
            step[j] = whole[j] * sc[j]
            sqq[j] = F(0)
            sxq[j] = F(0)
        _reciprocals(step, inv)
        for i in range(sub):
            if uneven:
                for j in range(W):
                    q = _level(lanes_x[i, j] * inv[j])
                    v = lanes_w[i, j] * q
                    sqq[j] += v * q
                    sxq[j] += v * lanes_x[i, j]
            else:
                for j in range(W):
                    q = max(bottom, min(top, np.rint(lanes_x[i, j] * inv[j])))
                    v = lanes_w[i, j] * q
                    sqq[j] += v * q
                    sxq[j] += v * lanes_x[i, j]
        for g in range(groups):
            xx, qq = F(0), F(0)
            for j in range(g * per, (g + 1) * per):
                qq += sc[j] * sc[j] * sqq[j]
                xx += sc[j] * sxq[j]
            fit = xx / qq if qq > 0 else F(0)
            fit = from_half(to_half(fit)) if fit != 0 and abs(fit) <= HALF_MAX else whole[g * per]
            for j in range(g * per, (g + 1) * per):
                a[j] = fit
        for j in range(W):
            step[j] = a[j] * sc[j]
        _reciprocals(step, inv)
        if uneven:
            _uneven_errors(lanes_x, lanes_w, sub, step, inv, err)
        else:
            _even_errors(lanes_x, lanes_w, sub, bottom, top, step, inv, err)
        for g in range(groups):
            before, after = F(0), F(0)
            for j in range(g * per, (g + 1) * per):
                before += best[j]
                after += err[j]
            if after < before:
                for j in range(g * per, (g + 1) * per):
                    best[j] = err[j]
                    whole[j] = a[j]
    flat = x.reshape(-1)
    for g in range(min(groups, count - first)):
        start = (first + g) * 256
        d[g] = whole[g * per]
        for k in range(per):
            j = g * per + k
            scales[g, k] = sc[j]
            unit = whole[j] * sc[j]
            inverse = F(1) / unit if unit != 0 else F(0)
            run, code = flat[start + k * sub : start + (k + 1) * sub], codes[g, k * sub : (k + 1) * sub]
            if uneven:
                nearest_uneven(run, inverse, code)
            else:
                for i in range(sub):
                    code[i] = np.uint8(np.int32(max(bottom, min(top, np.rint(run[i] * inverse))) - bottom))


@kernel
def q3_k(x, imp, out):
    count = x.size // 256
    flat = out.reshape(-1)
    d, scales, codes, ls = np.zeros(4, F), np.zeros((4, 16), F), np.zeros((4, 256), np.uint8), np.zeros(16, np.int8)
    for first in range(0, count, 4):
        for g in range(min(4, count - first)):
            at = (first + g) * 110
            d[g] = half_at(flat, at + 108)
            for k in range(16):
                low = np.int32(flat[at + 96 + k % 8]) >> (4 * (k // 8)) & 15
                high = np.int32(flat[at + 104 + k % 4]) >> (2 * (k // 4)) & 3
                scales[g, k] = F((low | high << 4) - 32)
        _refine_scales(x, imp, first, 16, F(-4), F(3), F(-32), F(31), F(2), False, 3, 2, d, scales, codes)
        for g in range(min(4, count - first)):
            for k in range(16):
                ls[k] = np.int8(scales[g, k])
            _put_q3_k(flat, (first + g) * 110, to_half(d[g]), ls, codes[g])


@kernel
def q6_k(x, imp, out):
    count = x.size // 256
    flat = out.reshape(-1)
    d, scales, codes, ls = np.zeros(4, F), np.zeros((4, 16), F), np.zeros((4, 256), np.uint8), np.zeros(16, np.int8)
    for first in range(0, count, 4):
        for g in range(min(4, count - first)):
            at = (first + g) * 210
            d[g] = half_at(flat, at + 208)
            for k in range(16):
                scales[g, k] = F(np.int8(flat[at + 192 + k]))
        _refine_scales(x, imp, first, 16, F(-32), F(31), F(-128), F(127), F(0), False, 8, 2, d, scales, codes)
        for g in range(min(4, count - first)):
            for k in range(16):
                ls[k] = np.int8(scales[g, k])
            _put_q6_k(flat, (first + g) * 210, to_half(d[g]), ls, codes[g])


@kernel
def iq4_xs(x, imp, out):
    count = x.size // 256
    flat = out.reshape(-1)
    d, scales, codes = np.zeros(8, F), np.zeros((8, 16), F), np.zeros((8, 256), np.uint8)
    for first in range(0, count, 8):
        for g in range(min(8, count - first)):
            at = (first + g) * 136
            d[g] = half_at(flat, at)
            high = np.int32(flat[at + 2]) | np.int32(flat[at + 3]) << 8
            for k in range(8):
                low = np.int32(flat[at + 4 + k // 2]) >> (4 * (k % 2)) & 15
                scales[g, k] = F((low | (high >> (2 * k) & 3) << 4) - 32)
        _refine_scales(x, imp, first, 32, F(0), F(0), F(-32), F(31), F(2), True, 4, 3, d, scales, codes)
        for g in range(min(8, count - first)):
            at = (first + g) * 136
            put_half(flat, at, to_half(d[g]))
            high = np.int32(0)
            for k in range(8):
                high |= ((np.int32(scales[g, k]) + 32) >> 4) << (2 * k)
            flat[at + 2] = np.uint8(high & 255)
            flat[at + 3] = np.uint8(high >> 8)
            for k in range(4):
                even, odd = np.int32(scales[g, 2 * k]) + 32, np.int32(scales[g, 2 * k + 1]) + 32
                flat[at + 4 + k] = np.uint8((even & 15) | (odd & 15) << 4)
            for k in range(8):
                _put_four(flat[at + 8 + 16 * k : at + 24 + 16 * k], codes[g, 32 * k : 32 * k + 32])
