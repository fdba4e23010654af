"""IQ4_NL and IQ4_XS on one CPU core: W blocks of 32 side by side, their scales searched among sixteen uneven levels.

Kernels: (x float32 [rows, columns], importance float32 [columns] or None, out uint8 [rows, bytes]) → the first row
whose scale is beyond a half, or −1.

The levels are LEVELS of core/formats/ggml/codebook.py, the bounds the middles between them; both are spelled out, as
constants are what lets LLVM vectorise.
"""

from __future__ import annotations

import numpy as np

from core.formats.fitting.compiled import helper, inlined, kernel
from core.formats.fitting.lanes_bits import broken, put_half, to_half
from core.formats.fitting.lanes_legacy import _put_four
from core.formats.fitting.lanes_room import empty, empty_rows, flattened
from core.formats.fitting.lanes_search import EPS, W, peaks

F = np.float32
BLOCK = 32
TRIES = 7


@inlined
def _level(v):
    """The level nearest to v, the upper one of two equally near: the lowest level and all steps passed, exact sums."""
    q = F(-127) + (F(23) if v >= F(-115.5) else F(0)) + (F(21) if v >= F(-93.5) else F(0))
    q += (F(18) if v >= F(-74) else F(0)) + (F(16) if v >= F(-57) else F(0)) + (F(14) if v >= F(-42) else F(0))
    q += (F(13) if v >= F(-28.5) else F(0)) + (F(12) if v >= F(-16) else F(0)) + (F(11) if v >= F(-4.5) else F(0))
    q += (F(12) if v >= F(7) else F(0)) + (F(12) if v >= F(19) else F(0)) + (F(13) if v >= F(31.5) else F(0))
    q += (F(15) if v >= F(45.5) else F(0)) + (F(16) if v >= F(61) else F(0)) + (F(20) if v >= F(79) else F(0))
    return q + (F(24) if v >= F(101) else F(0))


@helper
def _codes(x, inverse, codes):
    """The codes of the levels nearest to inverse·x."""
    for i in range(BLOCK):
        v = x[i] * inverse
        c = np.int32(v >= F(-115.5)) + np.int32(v >= F(-93.5)) + np.int32(v >= F(-74)) + np.int32(v >= F(-57))
        c += np.int32(v >= F(-42)) + np.int32(v >= F(-28.5)) + np.int32(v >= F(-16)) + np.int32(v >= F(-4.5))
        c += np.int32(v >= F(7)) + np.int32(v >= F(19)) + np.int32(v >= F(31.5)) + np.int32(v >= F(45.5))
        codes[i] = np.uint8(c + np.int32(v >= F(61)) + np.int32(v >= F(79)) + np.int32(v >= F(101)))


@helper
def _load(x, imp, first, group, lanes_x, lanes_w, mean):
    """Blocks first … first + W into lanes, the last one fills up. Weights are x², or importance · √(σ² + x²) with σ²
    twice the mean square of `group` blocks."""
    count, across = x.size // BLOCK, x.shape[1] // BLOCK
    flat = flattened(x)
    for j in range(W):
        block = min(first + j, count - 1)
        source = flat[block * BLOCK : (block + 1) * BLOCK]
        for i in range(BLOCK):
            lanes_x[i, j] = source[i]
        if imp is not None:
            column = block % across * BLOCK
            weight = imp[column : column + BLOCK]
            for i in range(BLOCK):
                lanes_w[i, j] = weight[i]
            if j % group == 0:
                size = group * BLOCK
                t = F(0)
                for v in flat[block // group * size : (block // group + 1) * size]:
                    t += v * v
                for k in range(group):
                    mean[j + k] = t * (F(2) / F(size))
    for i in range(BLOCK):
        for j in range(W):
            v = lanes_x[i, j]
            lanes_w[i, j] = lanes_w[i, j] * np.sqrt(mean[j] + v * v) if imp is not None else v * v


@helper
def _scales(x, imp, first, group, out):
    """out float32 [W]: the scales of blocks first … first + W, 0 of a dead one."""
    lanes_x, lanes_w, s = empty_rows(F, BLOCK, W), empty_rows(F, BLOCK, W), empty_rows(F, 8, W)
    scale, best, inv, a, b, peak, size, mean = s
    _load(x, imp, first, group, lanes_x, lanes_w, mean)
    peaks(lanes_x, BLOCK, peak, size)
    for j in range(W):
        peak[j] = F(1) if size[j] < EPS else peak[j]
        scale[j] = F(0)
        best[j] = F(0)
    for k in range(2 * TRIES + 2):
        wide = F(k - 1 - TRIES - 127)
        for j in range(W):
            # The first one lays the largest value on the positive side, the others on the negative one.
            inv[j] = F(1) / (-peak[j] / F(-127)) if k == 0 else wide / peak[j]
            a[j] = F(0)
            b[j] = F(0)
        for i in range(BLOCK):
            for j in range(W):
                q = _level(inv[j] * lanes_x[i, j])
                v = lanes_w[i, j] * q
                a[j] += v * lanes_x[i, j]
                b[j] += v * q
        for j in range(W):
            ratio = a[j] / b[j] if b[j] > 0 else F(0)
            better = k == 0 or (b[j] > 0 and a[j] * a[j] > best[j] * b[j])
            scale[j] = ratio if better else scale[j]
            best[j] = ratio * a[j] if better else best[j]
    for j in range(W):
        out[j] = F(0) if size[j] < EPS else scale[j]


@helper
def put_scales(out, at, ls):
    """Eight scales −32 … 31, int8 or its bits, into the six bytes of a block of IQ4_XS at `at` that hold them."""
    high = np.int32(0)
    for k in range(8):
        high |= ((np.int32(ls[k]) + 32) & 63) >> 4 << (2 * k)
    out[at + 2] = np.uint8(high & 255)
    out[at + 3] = np.uint8(high >> 8)
    for k in range(4):
        out[at + 4 + k] = np.uint8(((np.int32(ls[2 * k]) + 32) & 15) | ((np.int32(ls[2 * k + 1]) + 32) & 15) << 4)


@kernel
def iq4_nl(x, imp, out):
    count = x.size // BLOCK
    flat, target = flattened(x), flattened(out)
    scale, codes = empty(F, W), empty(np.uint8, BLOCK)
    for first in range(0, count, W):
        _scales(x, imp, first, 1, scale)
        for j in range(min(W, count - first)):
            block = first + j
            d = to_half(scale[j])
            if broken(d):
                return block * BLOCK // x.shape[1]
            _codes(flat[block * BLOCK : (block + 1) * BLOCK], F(1) / scale[j] if scale[j] != 0 else F(0), codes)
            to = target[block * 18 : (block + 1) * 18]
            put_half(to, 0, d)
            _put_four(to[2:], codes)
    return -1


@kernel
def iq4_xs(x, imp, out):
    count = x.size // BLOCK
    flat, target = flattened(x), flattened(out)
    scale, codes, ls = empty(F, W), empty(np.uint8, BLOCK), empty(np.int8, 8)
    for first in range(0, count, W):
        _scales(x, imp, first, 8, scale)
        for a in range(0, min(W, count - first), 8):
            block = first + a
            peak = F(0)
            for k in range(8):
                peak = scale[a + k] if abs(scale[a + k]) > abs(peak) else peak
            d = -peak / F(32)
            h = to_half(d)
            if broken(h):
                return block * BLOCK // x.shape[1]
            inv = F(1) / d if d != 0 else F(0)
            to = target[block // 8 * 136 : (block // 8 + 1) * 136]
            put_half(to, 0, h)
            for k in range(8):
                level = max(F(-32), min(F(31), np.rint(inv * scale[a + k])))
                step = d * level
                start = (block + k) * BLOCK
                _codes(flat[start : start + BLOCK], F(1) / step if step != 0 else F(0), codes)
                _put_four(to[8 + k * 16 : 24 + k * 16], codes)
                ls[k] = np.int8(level)
            put_scales(to, 0, ls)
    return -1
