"""Codes without a search on one CPU core: TQ1_0, TQ2_0, Q2_0 (three levels), Q1_0 (signs) and MXFP4.

Kernels: (x float32 [rows, columns], bits int32 of the same memory, importance, which none of them looks at, out uint8
[rows, bytes]) → the first row whose scale is beyond a half, or that holds NaN or Inf, or −1.
"""

from __future__ import annotations

import numpy as np

from core.formats.checks import DUST
from core.formats.fitting.compiled import helper, kernel
from core.formats.fitting.lanes_bits import MAGNITUDE, broken, float_of, put_half, to_half
from core.formats.fitting.lanes_legacy import _put_four
from core.formats.fitting.lanes_room import empty, flattened

F = np.float32
RUN = 16


@helper
def _largest(bits):
    """The largest magnitude of int32 [a multiple of 16]: bits of floats."""
    top = empty(np.int32, RUN)
    for j in range(RUN):
        top[j] = np.int32(0)
    for i in range(0, bits.size, RUN):
        run = bits[i : i + RUN]
        for j in range(RUN):
            top[j] = max(top[j], np.int32(run[j] & MAGNITUDE))
    for j in range(8):
        top[j] = max(top[j], top[j + 8])
    for j in range(4):
        top[j] = max(top[j], top[j + 4])
    return float_of(np.uint32(max(max(top[0], top[1]), max(top[2], top[3]))))


@helper
def _inverse(d):
    """1 / d, and 0 for a run that counts as zeros: the stored scale is 0 then."""
    return F(1) / d if d >= F(DUST) else F(0)


@helper
def _signs(x, inverse, codes):
    """1 + x·inverse rounded to −1, 0 or 1, halves away from zero."""
    for i in range(codes.size):
        v = x[i] * inverse
        codes[i] = np.uint8(1 + np.int32(v >= F(0.5)) - np.int32(v <= F(-0.5)))


@helper
def _fives(out, codes, count):
    """Five runs of `count` digits, most significant first, into bytes: ⌈value · 256 / 243⌉."""
    for i in range(count):
        v = np.uint32(codes[i])
        for k in range(1, 5):
            v = v * np.uint32(3) + np.uint32(codes[i + k * count])
        out[i] = np.uint8((v * np.uint32(256) + np.uint32(242)) // np.uint32(243))


@helper
def _pairs(out, codes):
    """128 codes of 2 bits into 32 bytes."""
    for i in range(32):
        out[i] = codes[i] | codes[i + 32] << np.uint8(2) | codes[i + 64] << np.uint8(4) | codes[i + 96] << np.uint8(6)


@helper
def _put_tq1_0(to, h, codes, tail):
    """tail: zeros of uint8 [20], scratch. The last four bytes hold four digits; the fifth is 0."""
    for i in range(16):
        tail[i] = codes[240 + i]
    _fives(to, codes, 32)
    _fives(to[32:], codes[160:], 16)
    _fives(to[48:], tail, 4)
    put_half(to, 52, h)


@helper
def _put_tq2_0(to, h, codes):
    _pairs(to, codes[:128])
    _pairs(to[32:], codes[128:])
    put_half(to, 64, h)


@helper
def _put_q2_0(to, h, codes):
    put_half(to, 0, h)
    for i in range(16):
        four = codes[4 * i : 4 * i + 4]
        to[2 + i] = four[0] | four[1] << np.uint8(2) | four[2] << np.uint8(4) | four[3] << np.uint8(6)


@kernel
def tq1_0(x, bits, imp, out):
    flat, ints, target = flattened(x), flattened(bits), flattened(out)
    codes, tail = empty(np.uint8, 256), np.zeros(20, np.uint8)
    for b in range(flat.size // 256):
        d = _largest(ints[b * 256 : (b + 1) * 256])
        h = to_half(d)
        if broken(h):
            return b * 256 // x.shape[1]
        _signs(flat[b * 256 : (b + 1) * 256], _inverse(d), codes)
        _put_tq1_0(target[b * 54 : (b + 1) * 54], h, codes, tail)
    return -1


@kernel
def tq2_0(x, bits, imp, out):
    flat, ints, target = flattened(x), flattened(bits), flattened(out)
    codes = empty(np.uint8, 256)
    for b in range(flat.size // 256):
        d = _largest(ints[b * 256 : (b + 1) * 256])
        h = to_half(d)
        if broken(h):
            return b * 256 // x.shape[1]
        _signs(flat[b * 256 : (b + 1) * 256], _inverse(d), codes)
        _put_tq2_0(target[b * 66 : (b + 1) * 66], h, codes)
    return -1


@kernel
def q2_0(x, bits, imp, out):
    flat, ints, target = flattened(x), flattened(bits), flattened(out)
    codes = empty(np.uint8, 64)
    for b in range(flat.size // 64):
        d = _largest(ints[b * 64 : (b + 1) * 64])
        h = to_half(d)
        if broken(h):
            return b * 64 // x.shape[1]
        _signs(flat[b * 64 : (b + 1) * 64], _inverse(d), codes)
        _put_q2_0(target[b * 18 : (b + 1) * 18], h, codes)
    return -1


@kernel
def q1_0(x, bits, imp, out):
    flat, target = flattened(x), flattened(out)
    for b in range(flat.size // 128):
        source = flat[b * 128 : (b + 1) * 128]
        total = F(0)
        for v in source:
            total += abs(v)
        h = to_half(total / F(128))
        if broken(h):
            return b * 128 // x.shape[1]
        to = target[b * 18 : (b + 1) * 18]
        put_half(to, 0, h)
        for i in range(16):
            eight = source[8 * i : 8 * i + 8]
            byte = np.uint8(0)
            for k in range(8):
                byte |= np.uint8(np.uint8(eight[k] >= 0) << np.uint8(k))
            to[2 + i] = byte
    return -1


@helper
def exponent(d):
    """The scale byte for a largest magnitude: ⌊log₂ d⌋ + 125, with log₂ rounded to float32; 0 at the lower end, and
    252 at the upper, where rounding would reach for 2^128."""
    if d == 0:
        return 0
    return min(252, max(0, np.int32(np.floor(F(np.log2(np.float64(d))))) + 125))


@kernel
def mxfp4(x, bits, imp, out):
    flat, ints, target = flattened(x), flattened(bits), flattened(out)
    codes = empty(np.uint8, 32)
    for b in range(flat.size // 32):
        d = _largest(ints[b * 32 : (b + 1) * 32])
        if not d < F(np.inf):
            return b * 32 // x.shape[1]
        e = exponent(d)
        step = float_of(np.uint32((1 << 21) << e if e < 2 else (e - 1) << 23))
        source = flat[b * 32 : (b + 1) * 32]
        # Middles of the doubled levels 0 1 2 3 4 6 8 12; of two equally near levels the smaller one.
        m0, m1, m2, m3 = F(0.5) * step, F(1.5) * step, F(2.5) * step, F(3.5) * step
        m4, m5, m6 = F(5) * step, F(7) * step, F(10) * step
        for i in range(32):
            v = abs(source[i])
            c = np.int32(v > m0) + np.int32(v > m1) + np.int32(v > m2) + np.int32(v > m3)
            c += np.int32(v > m4) + np.int32(v > m5) + np.int32(v > m6)
            negative = np.int32(source[i] < 0) & np.int32(c > 0)
            codes[i] = np.uint8(c + 8 * negative)
        to = target[b * 17 : (b + 1) * 17]
        to[0] = np.uint8(e)
        _put_four(to[1:], codes)
    return -1
