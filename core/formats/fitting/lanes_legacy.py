"""Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0 on one CPU core. Without importance a block of 32 at a time: extremes are found by
comparing bits as integers, the rest vectorises by itself. With importance the searches in lanes.

Kernels: (x float32 [rows, columns], bits int32 of the same memory, importance float32 [columns] or [0], out uint8
[rows, bytes]) → the first row whose scale is beyond a half, or −1. Without importance weights need not be finite: the
first row with NaN or Inf is found likewise.
"""

from __future__ import annotations

import numpy as np

from core.formats.fitting.compiled import helper, inlined, kernel
from core.formats.fitting.lanes_bits import MAGNITUDE, broken, float_of, put_half, to_half
from core.formats.fitting.lanes_search import SCRATCH, W, affine, symmetric

# Indices start at 0 of a slice wherever a loop is meant to vectorise: numba lets negative ones count from the end, and
# LLVM must be able to see that there are none.

F = np.float32
SIGN = np.int32(-0x80000000)
BLOCK = 32
CHUNK = 64


@inlined
def _largest(values):
    """Largest of int32 [16], which is overwritten; halved by hand, as LLVM leaves such a reduction scalar."""
    for i in range(8):
        values[i] = max(values[i], values[i + 8])
    for i in range(4):
        values[i] = max(values[i], values[i + 4])
    return max(max(values[0], values[1]), max(values[2], values[3]))


@helper
def _sides(bits, up, down):
    """Per block: the largest positive value and the magnitude of the largest negative one, as bits; below 0 if none."""
    a, b = np.empty(16, np.int32), np.empty(16, np.int32)
    for block in range(up.size):
        at = block * BLOCK
        for i in range(16):
            u, v = bits[at + i], bits[at + 16 + i]
            a[i] = max(u, v)
            b[i] = max(np.int32(u ^ SIGN), np.int32(v ^ SIGN))
        up[block] = _largest(a)
        down[block] = _largest(b)


@helper
def _signed_peaks(x, up, down, peak):
    """Per block: the value with the largest magnitude, the first among equals; 0 is +0."""
    for b in range(peak.size):
        high, low = max(up[b], np.int32(0)), max(down[b], np.int32(0))
        # As integers NaN is the largest of all: it must reach the scale, where it is found.
        peak[b] = -float_of(np.uint32(low)) if low > high else float_of(np.uint32(high))
    for b in range(peak.size):
        if up[b] == down[b] and up[b] > 0:
            for v in x[b * BLOCK : (b + 1) * BLOCK]:
                if abs(v) == peak[b]:
                    peak[b] = v
                    break


@helper
def _bounds(bits, low, high):
    """Per block: bits of smallest and largest value, ordered as integers (see _of_key)."""
    a, b = np.empty(16, np.int32), np.empty(16, np.int32)
    for block in range(low.size):
        at = block * BLOCK
        for i in range(16):
            u, v = bits[at + i], bits[at + 16 + i]
            u = np.int32(u ^ ((u >> np.int32(31)) & MAGNITUDE))
            v = np.int32(v ^ ((v >> np.int32(31)) & MAGNITUDE))
            a[i] = max(u, v)
            b[i] = max(np.int32(~u), np.int32(~v))
        high[block] = _largest(a)
        low[block] = np.int32(~_largest(b))


@helper
def _of_key(key):
    return float_of(np.uint32(key ^ ((key >> np.int32(31)) & MAGNITUDE)))


@helper
def _values(x, keys, values):
    """Per block: the value of a key of _bounds; a zero is the first zero, whose sign a scan from the front finds."""
    for b in range(values.size):
        values[b] = _of_key(keys[b])
    for b in range(values.size):
        if values[b] == 0:
            for v in x[b * BLOCK : (b + 1) * BLOCK]:
                if v == 0:
                    values[b] = v
                    break


@helper
def _steps(spread, parts, inverse):
    """spread becomes the step, spread / parts; inverse its reciprocal, or 0."""
    for b in range(spread.size):
        d = spread[b] / parts
        spread[b] = d
        inverse[b] = F(1) / d if d != 0 else F(0)


@helper
def _put_halves(values, out, size, at):
    """One half per block at byte `at` of its `size` bytes. Index of the first block whose value is beyond it, or −1."""
    for b in range(values.size):
        h = to_half(values[b])
        if broken(h):
            return b
        put_half(out, b * size + at, h)
    return -1


@helper
def _codes(x, inverse, low, half, top, codes):
    """min(top, ⌊(x − low)·inverse + half⌋) of every block, for arguments that are not negative."""
    for block in range(inverse.size):
        at = block * BLOCK
        inv, base = inverse[block], low[block]
        for i in range(BLOCK):
            codes[at + i] = np.uint8(min(top, np.int32((x[at + i] - base) * inv + half)))


@helper
def _put_four(out, codes):
    for i in range(16):
        out[i] = np.uint8(codes[i] & np.uint8(15)) | np.uint8(codes[i + 16] << np.uint8(4))


@inlined
def _put_fours(out, codes, count, size, head):
    for b in range(count):
        to, at = b * size + head, b * BLOCK
        for i in range(16):
            out[to + i] = codes[at + i] | np.uint8(codes[at + 16 + i] << np.uint8(4))


@helper
def _put_five(out, codes):
    """32 codes of 5 bits: fifth bits, then nibbles."""
    for k in range(4):
        b = np.uint8(0)
        for i in range(8):
            b |= np.uint8((codes[k * 8 + i] >> np.uint8(4)) << np.uint8(i))
        out[k] = b
    _put_four(out[4:], codes)


@helper
def _plain(x, bits, out, top, zero, size, shifted):
    """Q4_0, Q5_0 (zero = 8, 16) and, shifted, Q4_1, Q5_1 without importance; CHUNK blocks at a time, step by step."""
    flat, ints, target = x.reshape(-1), bits.reshape(-1), out.reshape(-1)
    first_side, second_side = np.empty(CHUNK, np.int32), np.empty(CHUNK, np.int32)
    inverse, low, step = np.empty(CHUNK, F), np.zeros(CHUNK, F), np.empty(CHUNK, F)
    codes = np.empty(CHUNK * BLOCK, np.uint8)
    count = x.size // BLOCK
    head = 4 if shifted else 2
    half = F(0.5) if shifted else F(zero) + F(0.5)
    for first in range(0, count, CHUNK):
        n = min(CHUNK, count - first)
        source = flat[first * BLOCK : (first + n) * BLOCK]
        words = ints[first * BLOCK : (first + n) * BLOCK]
        to = target[first * size : (first + n) * size]
        one, two, d = first_side[:n], second_side[:n], step[:n]
        if shifted:
            _bounds(words, one, two)
            _values(source, one, low[:n])
            _values(source, two, d)
            for b in range(n):
                d[b] -= low[b]
            _steps(d, F(top), inverse[:n])
            bad = _put_halves(low[:n], to, size, 2)
        else:
            _sides(words, one, two)
            _signed_peaks(source, one, two, d)
            _steps(d, F(-zero), inverse[:n])
            bad = -1
        also = _put_halves(d, to, size, 0)
        if bad >= 0 or also >= 0:
            worst = max(bad, also) if bad < 0 or also < 0 else min(bad, also)
            return (first + worst) * BLOCK // x.shape[1]
        _codes(source, inverse[:n], low[:n], half, np.int32(top), codes)
        if size == 18:
            _put_fours(to, codes, n, 18, 2)
        elif size == 20:
            _put_fours(to, codes, n, 20, 4)
        else:
            for b in range(n):
                _put_five(to[b * size + head : (b + 1) * size], codes[b * BLOCK : (b + 1) * BLOCK])
    return -1


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
        column = (block % across) * BLOCK
        source, weight = flat[block * BLOCK : (block + 1) * BLOCK], imp[column : column + BLOCK]
        for i in range(BLOCK):
            lanes_x[i, j] = source[i]
            lanes_w[i, j] = weight[i]
        lanes_w[BLOCK, j] = means[block // across]
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
            source, to = flat[block * BLOCK : (block + 1) * BLOCK], target[block * size : (block + 1) * size]
            for i in range(BLOCK):
                q = max(bottom, min(top, np.rint(inv * source[i])))
                codes[i] = np.uint8(np.int32(q + live))
            put_half(to, 0, d)
            if size == 18:
                _put_four(to[2:], codes)
            else:
                _put_five(to[2:], codes)
    return -1


@helper
def _shifted_weighted(x, imp, out, nmax, size):
    """Q4_1 and Q5_1 with importance."""
    count = x.size // BLOCK
    flat, target = x.reshape(-1), out.reshape(-1)
    means = np.empty(x.shape[0], F)
    _row_means(x, means)
    lanes_x, lanes_w, s = np.empty((BLOCK, W), F), np.empty((BLOCK + 1, W), F), np.empty((SCRATCH, W), F)
    codes, lanes_q = np.empty(BLOCK, np.uint8), np.empty((BLOCK, W), F)
    for first in range(0, count, W):
        _load(x, imp, means, first, lanes_x, lanes_w)
        affine(lanes_x, lanes_w, lanes_q, BLOCK, nmax, F(-0.9), F(0.05), 36, False, s)
        for j in range(min(W, count - first)):
            block = first + j
            d, m = to_half(s[0, j]), to_half(s[1, j])
            if broken(d) or broken(m):
                return block * BLOCK // x.shape[1]
            inv, base = s[2, j], s[3, j]
            source, to = flat[block * BLOCK : (block + 1) * BLOCK], target[block * size : (block + 1) * size]
            for i in range(BLOCK):
                q = np.rint(inv * (source[i] - base))
                codes[i] = np.uint8(np.int32(max(F(0), min(nmax, q))))
            put_half(to, 0, d)
            put_half(to, 2, m)
            if size == 20:
                _put_four(to[4:], codes)
            else:
                _put_five(to[4:], codes)
    return -1


@kernel
def q4_0(x, bits, imp, out):
    return _signed_weighted(x, imp, out, F(8), 18) if imp.size else _plain(x, bits, out, 15, 8, 18, False)


@kernel
def q5_0(x, bits, imp, out):
    return _signed_weighted(x, imp, out, F(16), 22) if imp.size else _plain(x, bits, out, 31, 16, 22, False)


@kernel
def q4_1(x, bits, imp, out):
    return _shifted_weighted(x, imp, out, F(15), 20) if imp.size else _plain(x, bits, out, 15, 0, 20, True)


@kernel
def q5_1(x, bits, imp, out):
    return _shifted_weighted(x, imp, out, F(31), 24) if imp.size else _plain(x, bits, out, 31, 0, 24, True)


@helper
def _peaks(bits, top):
    """Bits of the largest magnitude of every block."""
    a = np.empty(16, np.int32)
    for block in range(top.size):
        at = block * BLOCK
        for i in range(16):
            a[i] = max(np.int32(bits[at + i] & MAGNITUDE), np.int32(bits[at + 16 + i] & MAGNITUDE))
        top[block] = _largest(a)


@helper
def _bytes(x, inv, out):
    """Rounded to nearest, halves away from zero, as bytes."""
    for i in range(BLOCK):
        v = x[i] * inv
        whole = np.trunc(v)
        rest = v - whole
        q = np.int32(whole) + np.int32(rest >= F(0.5)) - np.int32(rest <= F(-0.5))
        out[i] = np.uint8(q & np.int32(255))


@kernel
def q8_0(x, bits, imp, out):
    flat, ints, target = x.reshape(-1), bits.reshape(-1), out.reshape(-1)
    top = np.empty(CHUNK, np.int32)
    count = x.size // BLOCK
    for first in range(0, count, CHUNK):
        n = min(CHUNK, count - first)
        source = flat[first * BLOCK : (first + n) * BLOCK]
        to = target[first * 34 : (first + n) * 34]
        _peaks(ints[first * BLOCK : (first + n) * BLOCK], top[:n])
        for b in range(n):
            d = float_of(np.uint32(top[b])) / F(127)
            h = to_half(d)
            if broken(h):
                return (first + b) * BLOCK // x.shape[1]
            put_half(to, b * 34, h)
            inv = F(1) / d if d != 0 else F(0)
            _bytes(source[b * BLOCK : (b + 1) * BLOCK], inv, to[b * 34 + 2 : (b + 1) * 34])
    return -1
