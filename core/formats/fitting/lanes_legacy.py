"""Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0 on one CPU core. Without importance a block of 32 at a time: extremes are found by
comparing bits as integers, the rest vectorises by itself. With importance the searches in lanes.

Kernels: (x float32 [rows, columns], bits int32 of the same memory, importance float32 [columns] or [0], out uint8
[rows, bytes]) → the first row whose scale is beyond a half, or −1.
"""

from __future__ import annotations

import numpy as np

from core.formats.fitting.compiled import helper, inlined, kernel
from core.formats.fitting.lanes_bits import MAGNITUDE, broken, float_of, put_half, to_half
from core.formats.fitting.lanes_search import SCRATCH, W, affine, symmetric

F = np.float32
SIGN = np.int32(-0x80000000)
BLOCK = 32


@inlined
def _fold(high, low):
    """Largest of high and smallest of low, int32 [16] both; halving by hand, as LLVM leaves such a reduction scalar."""
    for i in range(8):
        high[i] = max(high[i], high[i + 8])
        low[i] = min(low[i], low[i + 8])
    for i in range(4):
        high[i] = max(high[i], high[i + 4])
        low[i] = min(low[i], low[i + 4])
    most = max(max(high[0], high[1]), max(high[2], high[3]))
    least = min(min(low[0], low[1]), min(low[2], low[3]))
    return most, least


@inlined
def _signed_peak(x, bits, at, high, low):
    """The value with the largest magnitude, the first among equals. high, low: scratch int32 [16]."""
    for i in range(16):
        a, b = bits[at + i], bits[at + i + 16]
        high[i] = max(a, b)  # largest of the positive ones
        low[i] = min(np.int32(~(a ^ SIGN)), np.int32(~(b ^ SIGN)))  # of the negative ones, complemented
    up, down = _fold(high, low)
    up, down = max(up, np.int32(0)), max(np.int32(~down), np.int32(0))
    peak = -float_of(np.uint32(down)) if down > up else float_of(np.uint32(up))
    if up == down and up > 0:
        for i in range(BLOCK):
            if np.int32(bits[at + i] & MAGNITUDE) == up:
                peak = x[at + i]
                break
    return peak


@inlined
def _bounds(x, bits, at, high, low):
    """Smallest and largest value; a zero keeps the sign of the first zero that could be it."""
    for i in range(16):
        a, b = bits[at + i], bits[at + i + 16]
        a = np.int32(a ^ ((a >> np.int32(31)) & MAGNITUDE))
        b = np.int32(b ^ ((b >> np.int32(31)) & MAGNITUDE))
        high[i] = max(a, b)
        low[i] = min(a, b)
    top, bottom = _fold(high, low)
    lowest, highest = _of_key(bottom), _of_key(top)
    if lowest == 0 or highest == 0:
        for i in range(BLOCK):
            if x[at + i] == 0:
                lowest = x[at + i] if lowest == 0 else lowest
                highest = x[at + i] if highest == 0 else highest
                break
    return lowest, highest


@helper
def _of_key(key):
    return float_of(np.uint32(key ^ ((key >> np.int32(31)) & MAGNITUDE)))


@helper
def _put_five(out, at, codes):
    """32 codes of 5 bits: fifth bits, then nibbles."""
    for k in range(4):
        b = np.uint8(0)
        for i in range(8):
            b |= np.uint8((codes[k * 8 + i] >> np.uint8(4)) << np.uint8(i))
        out[at + k] = b
    for i in range(16):
        out[at + 4 + i] = np.uint8(codes[i] & 15) | np.uint8(codes[i + 16] << 4)


@helper
def _put_four(out, at, codes):
    for i in range(16):
        out[at + i] = codes[i] | np.uint8(codes[i + 16] << 4)


@helper
def _row_means(x, means):
    """Mean square of every row, summed in order; four rows at a time hide the latency of the sums."""
    rows, columns = x.shape
    for first in range(0, rows, 4):
        a, b, c, d = first, min(first + 1, rows - 1), min(first + 2, rows - 1), min(first + 3, rows - 1)
        ta, tb, tc, td = F(0), F(0), F(0), F(0)
        for i in range(columns):
            ta += x[a, i] * x[a, i]
            tb += x[b, i] * x[b, i]
            tc += x[c, i] * x[c, i]
            td += x[d, i] * x[d, i]
        means[d] = td / F(columns)
        means[c] = tc / F(columns)
        means[b] = tb / F(columns)
        means[a] = ta / F(columns)


@helper
def _load(x, imp, means, first, lanes_x, lanes_w):
    """Blocks first … first + W into lanes, weights importance · √(row's mean square + x²); the last one fills up."""
    count, across = x.size // BLOCK, x.shape[1] // BLOCK
    flat = x.reshape(-1)
    for j in range(W):
        block = min(first + j, count - 1)
        mean = means[block // across]
        column = (block % across) * BLOCK
        for i in range(BLOCK):
            lanes_x[i, j] = flat[block * BLOCK + i]
            lanes_w[i, j] = imp[column + i]
        lanes_w[BLOCK, j] = mean
    for i in range(BLOCK):
        for j in range(W):
            v = lanes_x[i, j]
            lanes_w[i, j] = lanes_w[i, j] * np.sqrt(lanes_w[BLOCK, j] + v * v)


@helper
def _signed_weighted(x, imp, out, nmax, size):
    """Q4_0 and Q5_0 with importance."""
    count = x.size // BLOCK
    flat, target = x.reshape(-1), out.reshape(-1)
    means = np.empty(x.shape[0], F)
    _row_means(x, means)
    lanes_x, lanes_w, s = np.empty((BLOCK, W), F), np.empty((BLOCK + 1, W), F), np.empty((SCRATCH, W), F)
    codes = np.empty(BLOCK, np.uint8)
    bottom, top = -nmax, nmax - F(1)
    for first in range(0, count, W):
        _load(x, imp, means, first, lanes_x, lanes_w)
        symmetric(lanes_x, lanes_w, BLOCK, nmax, s)
        for j in range(min(W, count - first)):
            block = first + j
            d = to_half(s[0, j])
            if broken(d):
                return block * BLOCK // x.shape[1]
            inv = s[1, j]
            live = nmax if inv != 0 else F(0)
            for i in range(BLOCK):
                q = max(bottom, min(top, np.rint(inv * flat[block * BLOCK + i])))
                codes[i] = np.uint8(np.int32(q + live))
            put_half(target, block * size, d)
            if size == 18:
                _put_four(target, block * size + 2, codes)
            else:
                _put_five(target, block * size + 2, codes)
    return -1


@helper
def _shifted_weighted(x, imp, out, nmax, size):
    """Q4_1 and Q5_1 with importance."""
    count = x.size // BLOCK
    flat, target = x.reshape(-1), out.reshape(-1)
    means = np.empty(x.shape[0], F)
    _row_means(x, means)
    lanes_x, lanes_w, s = np.empty((BLOCK, W), F), np.empty((BLOCK + 1, W), F), np.empty((SCRATCH, W), F)
    codes = np.empty(BLOCK, np.uint8)
    for first in range(0, count, W):
        _load(x, imp, means, first, lanes_x, lanes_w)
        affine(lanes_x, lanes_w, BLOCK, nmax, F(-0.9), F(0.05), 36, False, s)
        for j in range(min(W, count - first)):
            block = first + j
            d, m = to_half(s[0, j]), to_half(s[1, j])
            if broken(d) or broken(m):
                return block * BLOCK // x.shape[1]
            inv, base = s[2, j], s[3, j]
            for i in range(BLOCK):
                q = np.rint(inv * (flat[block * BLOCK + i] - base))
                codes[i] = np.uint8(np.int32(max(F(0), min(nmax, q))))
            put_half(target, block * size, d)
            put_half(target, block * size + 2, m)
            if size == 20:
                _put_four(target, block * size + 4, codes)
            else:
                _put_five(target, block * size + 4, codes)
    return -1


@kernel
def q4_0(x, bits, imp, out):
    if imp.size:
        return _signed_weighted(x, imp, out, F(8), 18)
    flat, ints, target = x.reshape(-1), bits.reshape(-1), out.reshape(-1)
    codes, top, bottom = np.empty(BLOCK, np.uint8), np.empty(16, np.int32), np.empty(16, np.int32)
    for block in range(x.size // BLOCK):
        at, to = block * BLOCK, block * 18
        d = _signed_peak(flat, ints, at, top, bottom) / F(-8)
        h = to_half(d)
        if broken(h):
            return at // x.shape[1]
        inv = F(1) / d if d != 0 else F(0)
        put_half(target, to, h)
        for i in range(BLOCK):
            codes[i] = np.uint8(min(np.int32(15), np.int32(flat[at + i] * inv + F(8.5))))
        _put_four(target, to + 2, codes)
    return -1


@kernel
def q5_0(x, bits, imp, out):
    if imp.size:
        return _signed_weighted(x, imp, out, F(16), 22)
    flat, ints, target = x.reshape(-1), bits.reshape(-1), out.reshape(-1)
    codes, top, bottom = np.empty(BLOCK, np.uint8), np.empty(16, np.int32), np.empty(16, np.int32)
    for block in range(x.size // BLOCK):
        at, to = block * BLOCK, block * 22
        d = _signed_peak(flat, ints, at, top, bottom) / F(-16)
        h = to_half(d)
        if broken(h):
            return at // x.shape[1]
        inv = F(1) / d if d != 0 else F(0)
        put_half(target, to, h)
        for i in range(BLOCK):
            codes[i] = np.uint8(min(np.int32(31), np.int32(flat[at + i] * inv + F(16.5))))
        _put_five(target, to + 2, codes)
    return -1


@kernel
def q4_1(x, bits, imp, out):
    if imp.size:
        return _shifted_weighted(x, imp, out, F(15), 20)
    flat, ints, target = x.reshape(-1), bits.reshape(-1), out.reshape(-1)
    codes, top, bottom = np.empty(BLOCK, np.uint8), np.empty(16, np.int32), np.empty(16, np.int32)
    for block in range(x.size // BLOCK):
        at, to = block * BLOCK, block * 20
        low, high = _bounds(flat, ints, at, top, bottom)
        d = (high - low) / F(15)
        h, m = to_half(d), to_half(low)
        if broken(h) or broken(m):
            return at // x.shape[1]
        inv = F(1) / d if d != 0 else F(0)
        put_half(target, to, h)
        put_half(target, to + 2, m)
        for i in range(BLOCK):
            codes[i] = np.uint8(min(np.int32(15), np.int32((flat[at + i] - low) * inv + F(0.5))))
        _put_four(target, to + 4, codes)
    return -1


@kernel
def q5_1(x, bits, imp, out):
    if imp.size:
        return _shifted_weighted(x, imp, out, F(31), 24)
    flat, ints, target = x.reshape(-1), bits.reshape(-1), out.reshape(-1)
    codes, top, bottom = np.empty(BLOCK, np.uint8), np.empty(16, np.int32), np.empty(16, np.int32)
    for block in range(x.size // BLOCK):
        at, to = block * BLOCK, block * 24
        low, high = _bounds(flat, ints, at, top, bottom)
        d = (high - low) / F(31)
        h, m = to_half(d), to_half(low)
        if broken(h) or broken(m):
            return at // x.shape[1]
        inv = F(1) / d if d != 0 else F(0)
        put_half(target, to, h)
        put_half(target, to + 2, m)
        for i in range(BLOCK):
            codes[i] = np.uint8(min(np.int32(31), np.int32((flat[at + i] - low) * inv + F(0.5))))
        _put_five(target, to + 4, codes)
    return -1


@kernel
def q8_0(x, bits, imp, out):
    flat, ints, target = x.reshape(-1), bits.reshape(-1), out.reshape(-1)
    high, low = np.empty(16, np.int32), np.empty(16, np.int32)
    for block in range(x.size // BLOCK):
        at, to = block * BLOCK, block * 34
        for i in range(16):
            a, b = np.int32(ints[at + i] & MAGNITUDE), np.int32(ints[at + i + 16] & MAGNITUDE)
            high[i] = max(a, b)
            low[i] = a
        top, _ = _fold(high, low)
        d = float_of(np.uint32(top)) / F(127)
        h = to_half(d)
        if broken(h):
            return at // x.shape[1]
        inv = F(1) / d if d != 0 else F(0)
        put_half(target, to, h)
        for i in range(BLOCK):
            v = flat[at + i] * inv
            whole = np.trunc(v)
            rest = v - whole
            q = np.int32(whole) + np.int32(rest >= F(0.5)) - np.int32(rest <= F(-0.5))
            target[to + 2 + i] = np.uint8(q & np.int32(255))
    return -1
