"""Super-blocks of 256 on one CPU core: the searches in lanes, the scales quantized again, codes recomputed and packed.

Kernels: (x float32 [rows, columns], importance float32 [columns] or [0], out uint8 [rows, bytes]) → the first row whose
scale is beyond a half, or −1.
"""

from __future__ import annotations

import numpy as np

from core.formats.fitting.compiled import helper, kernel
from core.formats.fitting.lanes_bits import broken, from_half, put_half, to_half
from core.formats.fitting.lanes_search import (
    EPS,
    SCRATCH,
    W,
    affine,
    positive,
    symmetric,
    symmetric_run,
    symmetric_sweeps,
)

F = np.float32


@helper
def _load(x, imp, first, sub, lanes_x, lanes_w, energy, mean):
    """Sub-blocks of W // (256 // sub) super-blocks from `first` on into lanes; the last one fills what is missing.

    With importance, lanes_w gets importance · √(energy · mean square + x²), or importance alone when energy is 0.
    """
    per = 256 // sub
    count, across = x.size // 256, x.shape[1] // 256
    flat = x.reshape(-1)
    for g in range(W // per):
        block = min(first + g, count - 1)
        column = (block % across) * 256
        source = flat[block * 256 : (block + 1) * 256]
        for k in range(per):
            run, lane = source[k * sub : (k + 1) * sub], lanes_x[:, g * per + k]
            for i in range(sub):
                lane[i] = run[i]
        if imp.size:
            if energy > 0:
                t = F(0)
                for v in source:
                    t += v * v
                t = energy * t / F(256)
                for k in range(per):
                    mean[g * per + k] = t
            for k in range(per):
                at = column + k * sub
                run, lane = imp[at : at + sub], lanes_w[:, g * per + k]
                for i in range(sub):
                    lane[i] = run[i]
    if imp.size and energy > 0:
        for i in range(sub):
            for j in range(W):
                v = lanes_x[i, j]
                lanes_w[i, j] = lanes_w[i, j] * np.sqrt(mean[j] + v * v)


@helper
def _byte_code(v, inverse, top):
    """round(inverse·v), through an unsigned byte, at most top."""
    return min(np.int32(np.rint(inverse * v)) & 255, top)


@helper
def _affine_blocks(x, imp, first, sub, nmax, top, rmin, rdelta, steps, absolute, energy, d, scales, mins, codes):
    """Fits W // (256 // sub) super-blocks.

    d uint16 [·, 2] (d and dmin as halves), scales, mins uint8 [·, 16] and codes uint8 [·, 256] are written.
    """
    lanes_x, lanes_w, lanes_q = np.empty((32, W), F), np.empty((32, W), F), np.empty((32, W), F)
    s, mean, sums, low = np.empty((SCRATCH, W), F), np.empty(W, F), np.empty(W, F), np.empty(W, F)
    per = 256 // sub
    _load(x, imp, first, sub, lanes_x, lanes_w, energy, mean)
    if imp.size:
        rmin, rdelta, steps, absolute = F(-0.9), F(0.05), 36, False
        for j in range(W):
            sums[j] = F(0)
        for i in range(sub):
            for j in range(W):
                sums[j] += lanes_w[i, j]
    elif absolute:
        for i in range(sub):
            for j in range(W):
                lanes_w[i, j] = abs(lanes_x[i, j])
    else:
        for j in range(W):
            sums[j] = F(0)
        for i in range(sub):
            for j in range(W):
                sums[j] += lanes_x[i, j] * lanes_x[i, j]
        for j in range(W):
            sums[j] = np.sqrt(sums[j] / F(sub))
        for i in range(sub):
            for j in range(W):
                lanes_w[i, j] = sums[j] + abs(lanes_x[i, j])
    affine(lanes_x, lanes_w, lanes_q, sub, nmax, rmin, rdelta, steps, absolute, s)
    scale, inverse, origin = s[0], s[2], s[3]
    for j in range(W):
        low[j] = -s[1, j]
    flat = x.reshape(-1)
    count = x.size // 256
    for g in range(min(W // per, count - first)):
        a, b = g * per, (g + 1) * per
        if imp.size:
            d[g, 0] = to_half(positive(scale[a:b], sums[a:b], per, F(top), scales[g]))
            d[g, 1] = to_half(positive(low[a:b], sums[a:b], per, F(top), mins[g]))
        else:
            high_s, high_m = F(0), F(0)
            for k in range(per):
                high_s = max(high_s, scale[a + k])
                high_m = max(high_m, low[a + k])
            inv_s = F(top) / high_s if high_s > 0 else F(0)
            inv_m = F(top) / high_m if high_m > 0 else F(0)
            for k in range(per):
                scales[g, k] = _byte_code(scale[a + k], inv_s, top)
                mins[g, k] = _byte_code(low[a + k], inv_m, top)
            d[g, 0] = to_half(high_s / F(top))
            d[g, 1] = to_half(high_m / F(top))
        whole, whole_min = from_half(d[g, 0]), from_half(d[g, 1])
        start = (first + g) * 256
        for k in range(per):
            step = whole * F(scales[g, k])
            shift = whole_min * F(mins[g, k])
            at = k * sub
            run, code = flat[start + at : start + at + sub], codes[g, at : at + sub]
            if step == 0:
                inv, base = inverse[a + k], origin[a + k]
                for i in range(sub):
                    code[i] = np.uint8(np.int32(max(F(0), min(nmax, np.rint(inv * (run[i] - base))))))
            else:
                for i in range(sub):
                    code[i] = np.uint8(np.int32(max(F(0), min(nmax, np.rint((run[i] + shift) / step)))))


@helper
def _six(out, at, scales, mins):
    """Eight scales and mins of 6 bits into 12 bytes."""
    for k in range(4):
        out[at + k] = scales[k] | np.uint8((scales[k + 4] >> 4) << 6)
        out[at + 4 + k] = mins[k] | np.uint8((mins[k + 4] >> 4) << 6)
        out[at + 8 + k] = np.uint8(scales[k + 4] & 15) | np.uint8((mins[k + 4] & 15) << 4)


@helper
def _nibbles(out, codes):
    """256 codes of 4 bits into 128 bytes: per 64, low nibbles first."""
    for k in range(4):
        for i in range(32):
            out[k * 32 + i] = (codes[k * 64 + i] & np.uint8(15)) | np.uint8(
                (codes[k * 64 + 32 + i] & np.uint8(15)) << np.uint8(4)
            )


@helper
def _crumbs(out, codes):
    """256 codes of 2 bits into 64 bytes."""
    for half in range(2):
        for i in range(32):
            c = half * 128 + i
            out[half * 32 + i] = np.uint8(
                (codes[c] & 3) | (codes[c + 32] & 3) << 2 | (codes[c + 64] & 3) << 4 | (codes[c + 96] & 3) << 6
            )


@kernel
def q4_k(x, imp, out):
    count = x.size // 256
    flat = out.reshape(-1)
    d, scales, mins = np.zeros((8, 2), np.uint16), np.zeros((8, 16), np.uint8), np.zeros((8, 16), np.uint8)
    codes = np.zeros((8, 256), np.uint8)
    for first in range(0, count, 8):
        _affine_blocks(x, imp, first, 32, F(15), 63, F(-1), F(0.1), 20, False, F(2), d, scales, mins, codes)
        for g in range(min(8, count - first)):
            if broken(d[g, 0]) or broken(d[g, 1]):
                return (first + g) * 256 // x.shape[1]
            at = (first + g) * 144
            put_half(flat, at, d[g, 0])
            put_half(flat, at + 2, d[g, 1])
            _six(flat, at + 4, scales[g], mins[g])
            _nibbles(flat[at + 16 : at + 16 + 128], codes[g])
    return -1


@kernel
def q5_k(x, imp, out):
    count = x.size // 256
    flat = out.reshape(-1)
    d, scales, mins = np.zeros((8, 2), np.uint16), np.zeros((8, 16), np.uint8), np.zeros((8, 16), np.uint8)
    codes = np.zeros((8, 256), np.uint8)
    for first in range(0, count, 8):
        _affine_blocks(x, imp, first, 32, F(31), 63, F(-0.5), F(0.1), 15, False, F(2), d, scales, mins, codes)
        for g in range(min(8, count - first)):
            if broken(d[g, 0]) or broken(d[g, 1]):
                return (first + g) * 256 // x.shape[1]
            at = (first + g) * 176
            put_half(flat, at, d[g, 0])
            put_half(flat, at + 2, d[g, 1])
            _six(flat, at + 4, scales[g], mins[g])
            for i in range(32):
                fifth = np.uint8(0)
                for k in range(8):
                    fifth |= np.uint8((codes[g, k * 32 + i] >> np.uint8(4)) << np.uint8(k))
                flat[at + 16 + i] = fifth
            _nibbles(flat[at + 48 : at + 48 + 128], codes[g])
    return -1


@kernel
def q2_k(x, imp, out):
    count = x.size // 256
    flat = out.reshape(-1)
    d, scales, mins = np.zeros((4, 2), np.uint16), np.zeros((4, 16), np.uint8), np.zeros((4, 16), np.uint8)
    codes = np.zeros((4, 256), np.uint8)
    for first in range(0, count, 4):
        _affine_blocks(x, imp, first, 16, F(3), 15, F(-0.5), F(0.1), 15, True, F(1), d, scales, mins, codes)
        for g in range(min(4, count - first)):
            if broken(d[g, 0]) or broken(d[g, 1]):
                return (first + g) * 256 // x.shape[1]
            at = (first + g) * 84
            for k in range(16):
                flat[at + k] = scales[g, k] | np.uint8(mins[g, k] << np.uint8(4))
            _crumbs(flat[at + 16 : at + 80], codes[g])
            put_half(flat, at + 80, d[g, 0])
            put_half(flat, at + 82, d[g, 1])
    return -1


@kernel
def q3_k(x, imp, out):
    count = x.size // 256
    flat, source = out.reshape(-1), x.reshape(-1)
    lanes_x, lanes_w, s = np.empty((16, W), F), np.empty((16, W), F), np.empty((SCRATCH, W), F)
    lanes_q, mean, sums = np.empty((16, W), F), np.empty(W, F), np.empty(W, F)
    scale, inverse = s[0], s[1]
    ls = np.zeros(16, np.int8)
    codes = np.zeros(256, np.uint8)
    for first in range(0, count, 4):
        _load(x, imp, first, 16, lanes_x, lanes_w, F(2), mean)
        if imp.size:
            symmetric(lanes_x, lanes_w, 16, F(4), s)
            for j in range(W):
                sums[j] = F(0)
            for i in range(16):
                for j in range(W):
                    sums[j] += lanes_w[i, j]
        else:
            symmetric_sweeps(lanes_x, 16, F(4), lanes_q, s)
        for g in range(min(4, count - first)):
            a = g * 16
            if imp.size:
                d = to_half(symmetric_run(scale[a : a + 16], sums[a : a + 16], 16, F(32), ls))
            else:
                peak = _largest(scale[a : a + 16])
                inv = F(-32) / peak if peak != 0 else F(0)
                for k in range(16):
                    ls[k] = np.int8(max(F(-32), min(F(31), np.rint(inv * scale[a + k])))) if peak != 0 else np.int8(-32)
                d = to_half(F(1) / inv if peak != 0 else F(0))
            if broken(d):
                return (first + g) * 256 // x.shape[1]
            start = (first + g) * 256
            whole = from_half(d)
            for k in range(16):
                step = whole * F(ls[k])
                for i in range(16):
                    v = source[start + k * 16 + i]
                    if step != 0:
                        q = max(F(-4), min(F(3), np.rint(v / step)))
                    elif imp.size:
                        q = max(F(-4), min(F(3), np.rint(inverse[a + k] * v))) if inverse[a + k] != 0 else F(-4)
                    else:
                        q = lanes_q[i, a + k] if s[1, a + k] >= EPS else F(-4)
                    codes[k * 16 + i] = np.uint8(np.int32(q + F(4)))
            at = (first + g) * 110
            for i in range(32):
                high = np.uint8(0)
                for k in range(8):
                    high |= np.uint8((codes[k * 32 + i] >> np.uint8(2)) << np.uint8(k))
                flat[at + i] = high
            _crumbs(flat[at + 32 : at + 96], codes)
            for k in range(8):
                flat[at + 96 + k] = np.uint8((ls[k] + 32) & 15) | np.uint8(((ls[k + 8] + 32) & 15) << 4)
            for k in range(4):
                high = np.uint8(0)
                for m in range(4):
                    high |= np.uint8(((ls[k + 4 * m] + 32) >> 4) << (2 * m))
                flat[at + 104 + k] = high
            put_half(flat, at + 108, d)
    return -1


@helper
def _largest(values):
    """The value with the largest magnitude, the first among equals."""
    peak = F(0)
    for v in values:
        if abs(v) > abs(peak):
            peak = v
    return peak


@kernel
def q6_k(x, imp, out):
    count = x.size // 256
    flat, source = out.reshape(-1), x.reshape(-1)
    lanes_x, lanes_w, s = np.empty((16, W), F), np.empty((16, W), F), np.empty((SCRATCH, W), F)
    mean = np.empty(W, F)
    scale, inverse = s[0], s[1]
    ls = np.zeros(16, np.int8)
    codes = np.zeros(256, np.uint8)
    for first in range(0, count, 4):
        _load(x, imp, first, 16, lanes_x, lanes_w, F(0), mean)
        if not imp.size:
            for i in range(16):
                for j in range(W):
                    lanes_w[i, j] = lanes_x[i, j] * lanes_x[i, j]
        symmetric(lanes_x, lanes_w, 16, F(32), s)
        for g in range(min(4, count - first)):
            a = g * 16
            at = (first + g) * 210
            peak = _largest(scale[a : a + 16])
            if abs(peak) < EPS:
                flat[at : at + 210] = np.uint8(0)
                continue
            inv = F(-128) / peak
            d = to_half(F(1) / inv)
            if broken(d):
                return (first + g) * 256 // x.shape[1]
            for k in range(16):
                ls[k] = np.int8(min(F(127), np.rint(inv * scale[a + k])))
            start = (first + g) * 256
            whole = from_half(d)
            for k in range(16):
                step = whole * F(ls[k])
                c = k * 16
                run, code = source[start + c : start + c + 16], codes[c : c + 16]
                if step != 0:
                    for i in range(16):
                        q = max(F(-32), min(F(31), np.rint(run[i] / step)))
                        code[i] = np.uint8(np.int32(q) + 32)
                else:
                    live = inverse[a + k] != 0
                    for i in range(16):
                        q = max(F(-32), min(F(31), np.rint(inverse[a + k] * run[i])))
                        code[i] = np.uint8(np.int32(q) + 32) if live else np.uint8(0)
            for half in range(2):
                for i in range(64):
                    c = half * 128 + i
                    flat[at + half * 64 + i] = (codes[c] & np.uint8(15)) | np.uint8(
                        (codes[c + 64] & np.uint8(15)) << np.uint8(4)
                    )
                for i in range(32):
                    c = half * 128 + i
                    flat[at + 128 + half * 32 + i] = np.uint8(
                        (codes[c] >> 4)
                        | (codes[c + 32] >> 4) << 2
                        | (codes[c + 64] >> 4) << 4
                        | (codes[c + 96] >> 4) << 6
                    )
            for k in range(16):
                flat[at + 192 + k] = np.uint8(ls[k])
            put_half(flat, at + 208, d)
    return -1
