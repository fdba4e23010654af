"""Super-blocks of 256 on one CPU core, sixteen side by side, one in each lane: the searches of their runs, the scales
quantized again, codes recomputed; then each is packed by itself.

Kernels: (x float32 [rows, columns], importance float32 [columns] or [0], out uint8 [rows, bytes]) → the first row whose
scale is beyond a half, or −1.
"""

from __future__ import annotations

import numpy as np

from core.formats.fitting.compiled import helper, kernel
from core.formats.fitting.lanes_bits import broken, from_half, put_half, to_half
from core.formats.fitting.lanes_search import W
from core.formats.fitting.lanes_vector import (
    any_of,
    at_most,
    copy,
    load,
    magnitude,
    root,
    splat,
    store,
    store_bytes,
    table,
    turn,
    turn_bytes,
    where,
)
from core.formats.fitting.lanes_vector_search import (
    EPS,
    affine,
    byte,
    clipped,
    peaks,
    positive,
    symmetric,
    symmetric_sweeps,
)

F = np.float32
U8 = np.uint8
# Rows of a kernel's table: the weights, their importance, codes (and scratch of searches before them), the weights of
# the weights of a run, and seven values per run and two per super-block.
ROWS = 3 * 256 + 32 + 8 * 16


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
def _take(x, first, room, lanes_x):
    """Super-blocks first … first + 16 of x into lanes, the last one fills what is missing. room: float32 [4096]."""
    count = x.size // 256
    if first + 16 <= count:
        for c in range(0, 256, 16):
            turn(x, first * 256 + c, 256, lanes_x, c * 16, 16)
        return
    flat = x.reshape(-1)
    for g in range(16):
        block = min(first + g, count - 1)
        copy(flat, block * 256, room, g * 256, 256)
    for c in range(0, 256, 16):
        turn(room, c, 256, lanes_x, c * 16, 16)


@helper
def _take_importance(x, imp, first, room, lanes_i):
    """The importance of the same weights into lanes."""
    count, across = x.size // 256, x.shape[1] // 256
    for g in range(16):
        column = min(first + g, count - 1) % across * 256
        copy(imp, column, room, g * 256, 256)
    for c in range(0, 256, 16):
        turn(room, c, 256, lanes_i, c * 16, 16)


@helper
def _mean(lanes_x, energy):
    """energy · mean square of every super-block, summed in order."""
    t = splat(F(0))
    for i in range(256):
        v = load(lanes_x, i)
        t += v * v
    return energy * t / F(256)


@helper
def _weigh(run, importance, n, mean, w):
    """w becomes importance · √(mean + x²) of n rows; their sum is returned."""
    total = splat(F(0))
    for i in range(n):
        v = load(run, i)
        u = load(importance, i) * root(mean + v * v)
        store(w, i, u)
        total += u
    return total


@helper
def _halves(row, d, whole):
    """float32 [16] to the bits of halves, and what these stand for."""
    for g in range(16):
        d[g] = to_half(row[g])
        whole[g] = from_half(d[g])


@helper
def _highest(values, count, top, codes):
    """The step when the largest of some scales ≥ 0 gets the code top; codes become the others', through a byte."""
    high = splat(F(0))
    for k in range(count):
        v = load(values, k)
        high = where(v > high, v, high)
    inverse = where(high > F(0), top / where(high > F(0), high, F(1)), F(0))
    for k in range(count):
        store(codes, k, at_most(byte(inverse * load(values, k)), top))
    return high / top


@helper
def _put_rows(values, count, room, out):
    """Rows of a table to out uint8 [16, ·], as bytes: value k of lane g to out[g, k]. room: uint8 [count · 16]."""
    for k in range(count):
        store_bytes(room, k * 16, load(values, k))
    for k in range(0, count, 16):
        turn_bytes(room, k * 16, 16, out, k, out.shape[1])


@helper
def _affine_blocks(
    x, imp, first, sub, nmax, top, rmin, rdelta, steps, absolute, energy, lanes, room, few, d, scales, mins, codes
):
    """Fits sixteen super-blocks. lanes: a table of ROWS rows, room: float32 [4096], few: uint8 [4096], all scratch.

    d uint16 [2, 16] (d and dmin as halves), scales, mins uint8 [16, 16] and codes uint8 [16, 256] are written.
    """
    lanes_x, lanes_i, lanes_q, w, small = lanes[:256], lanes[256:512], lanes[512:768], lanes[768:800], lanes[800:]
    scale, low, inverse, origin = small[:16], small[16:32], small[32:48], small[48:64]
    sums, sc, mn, row = small[64:80], small[80:96], small[96:112], small[112:]
    per = 256 // sub
    _take(x, first, room, lanes_x)
    mean = splat(F(0))
    if imp.size:
        _take_importance(x, imp, first, room, lanes_i)
        mean = _mean(lanes_x, energy)
        rmin, rdelta, steps, absolute = F(-0.9), F(0.05), 36, False
    for k in range(per):
        run = lanes_x[k * sub : (k + 1) * sub]
        if imp.size:
            store(sums, k, _weigh(run, lanes_i[k * sub : (k + 1) * sub], sub, mean, w))
        else:
            base = splat(F(0))
            if not absolute:
                for i in range(sub):
                    v = load(run, i)
                    base += v * v
                base = root(base / F(sub))
            for i in range(sub):
                store(w, i, base + magnitude(load(run, i)))
        a, b, inv, start = affine(run, w, sub, nmax, rmin, rdelta, steps, absolute, lanes_q)
        store(scale, k, a)
        store(low, k, -b)
        store(inverse, k, inv)
        store(origin, k, start)
    if imp.size:
        store(row, 0, positive(scale, sums, per, top, sc))
        store(row, 1, positive(low, sums, per, top, mn))
    else:
        store(row, 0, _highest(scale, per, top, sc))
        store(row, 1, _highest(low, per, top, mn))
    _halves(row[0], d[0], row[0])
    _halves(row[1], d[1], row[1])
    for k in range(per):
        step = load(row, 0) * load(sc, k)
        shift = load(row, 1) * load(mn, k)
        flat = step == F(0)
        divisor = where(flat, F(1), step)
        for i in range(k * sub, (k + 1) * sub):
            store(lanes_q, i, clipped((load(lanes_x, i) + shift) / divisor, F(0), nmax))
        if any_of(flat):
            inv, start = load(inverse, k), load(origin, k)
            for i in range(k * sub, (k + 1) * sub):
                q = clipped(inv * (load(lanes_x, i) - start), F(0), nmax)
                store(lanes_q, i, where(flat, q, load(lanes_q, i)))
    _put_rows(sc, 16, few, scales)
    _put_rows(mn, 16, few, mins)
    _put_rows(lanes_q, 256, few, codes)


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


@helper
def _put_five_high(out, codes):
    """The fifth bits of 256 codes into 32 bytes."""
    for i in range(32):
        fifth = np.uint8(0)
        for k in range(8):
            fifth |= np.uint8((codes[k * 32 + i] >> np.uint8(4)) << np.uint8(k))
        out[i] = fifth


@helper
def _put_q3_k(flat, at, d, ls, codes):
    """A block of Q3_K: d as a half, ls int8 [16] in −32 … 31, codes uint8 [256]."""
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


@helper
def _put_q6_k(flat, at, d, ls, codes):
    """A block of Q6_K: d as a half, ls int8 [16], codes uint8 [256]."""
    for half in range(2):
        low, high = flat[at + half * 64 :], flat[at + 128 + half * 32 :]
        c = codes[half * 128 :]
        for i in range(64):
            low[i] = (c[i] & U8(15)) | U8((c[i + 64] & U8(15)) << U8(4))
        for i in range(32):
            high[i] = U8((c[i] >> 4) | (c[i + 32] >> 4) << 2 | (c[i + 64] >> 4) << 4 | (c[i + 96] >> 4) << 6)
    for k in range(16):
        flat[at + 192 + k] = np.uint8(ls[k])
    put_half(flat, at + 208, d)


@kernel
def q4_k(x, imp, out):
    count = x.size // 256
    flat = out.reshape(-1)
    lanes, room, few = table(ROWS), np.empty(4096, F), np.empty(4096, U8)
    d, scales, mins = np.empty((2, 16), np.uint16), np.empty((16, 16), U8), np.empty((16, 16), U8)
    codes = np.empty((16, 256), U8)
    for first in range(0, count, 16):
        _affine_blocks(
            x, imp, first, 32, F(15), F(63), F(-1), F(0.1), 20, False, F(2), lanes, room, few, d, scales, mins, codes
        )
        for g in range(min(16, count - first)):
            if broken(d[0, g]) or broken(d[1, g]):
                return (first + g) * 256 // x.shape[1]
            at = (first + g) * 144
            put_half(flat, at, d[0, g])
            put_half(flat, at + 2, d[1, g])
            _six(flat, at + 4, scales[g], mins[g])
            _nibbles(flat[at + 16 : at + 144], codes[g])
    return -1


@kernel
def q5_k(x, imp, out):
    count = x.size // 256
    flat = out.reshape(-1)
    lanes, room, few = table(ROWS), np.empty(4096, F), np.empty(4096, U8)
    d, scales, mins = np.empty((2, 16), np.uint16), np.empty((16, 16), U8), np.empty((16, 16), U8)
    codes = np.empty((16, 256), U8)
    for first in range(0, count, 16):
        _affine_blocks(
            x, imp, first, 32, F(31), F(63), F(-0.5), F(0.1), 15, False, F(2), lanes, room, few, d, scales, mins, codes
        )
        for g in range(min(16, count - first)):
            if broken(d[0, g]) or broken(d[1, g]):
                return (first + g) * 256 // x.shape[1]
            at = (first + g) * 176
            put_half(flat, at, d[0, g])
            put_half(flat, at + 2, d[1, g])
            _six(flat, at + 4, scales[g], mins[g])
            _put_five_high(flat[at + 16 : at + 48], codes[g])
            _nibbles(flat[at + 48 : at + 176], codes[g])
    return -1


@kernel
def q2_k(x, imp, out):
    count = x.size // 256
    flat = out.reshape(-1)
    lanes, room, few = table(ROWS), np.empty(4096, F), np.empty(4096, U8)
    d, scales, mins = np.empty((2, 16), np.uint16), np.empty((16, 16), U8), np.empty((16, 16), U8)
    codes = np.empty((16, 256), U8)
    for first in range(0, count, 16):
        _affine_blocks(
            x, imp, first, 16, F(3), F(15), F(-0.5), F(0.1), 15, True, F(1), lanes, room, few, d, scales, mins, codes
        )
        for g in range(min(16, count - first)):
            if broken(d[0, g]) or broken(d[1, g]):
                return (first + g) * 256 // x.shape[1]
            at = (first + g) * 84
            for k in range(16):
                flat[at + k] = scales[g, k] | U8(mins[g, k] << U8(4))
            _crumbs(flat[at + 16 : at + 80], codes[g])
            put_half(flat, at + 80, d[0, g])
            put_half(flat, at + 82, d[1, g])
    return -1


@helper
def _signed_blocks(x, imp, first, nmax, sweeps, lanes, room, few, d, ls, codes):
    """Fits sixteen super-blocks of Q3_K (sweeps) or Q6_K. Scratch as in _affine_blocks.

    d uint16 [16] (halves), ls uint8 [16, 16] (the scales' bits) and codes uint8 [16, 256], nmax added to them, are
    written. An empty super-block of Q6_K is all zeros.
    """
    lanes_x, lanes_i, lanes_q, w, small = lanes[:256], lanes[256:512], lanes[512:768], lanes[768:800], lanes[800:]
    scale, inverse, sums, sc, row = small[:16], small[16:32], small[32:48], small[48:64], small[64:]
    bottom, top = -nmax, nmax - F(1)
    _take(x, first, room, lanes_x)
    mean = splat(F(0))
    if imp.size:
        _take_importance(x, imp, first, room, lanes_i)
        if sweeps:
            mean = _mean(lanes_x, F(2))
    for k in range(16):
        run, importance = lanes_x[k * 16 : (k + 1) * 16], lanes_i[k * 16 : (k + 1) * 16]
        if imp.size and sweeps:
            store(sums, k, _weigh(run, importance, 16, mean, w))
            importance = w
        elif imp.size == 0 and sweeps:
            store(scale, k, symmetric_sweeps(run, 16, nmax, lanes_q[k * 16 : (k + 1) * 16]))
            continue
        elif imp.size == 0:
            for i in range(16):
                v = load(run, i)
                store(w, i, v * v)
            importance = w
        a, inv = symmetric(run, importance, 16, nmax, lanes_q)
        store(scale, k, a)
        store(inverse, k, inv)
    if sweeps and imp.size:
        a, inv = symmetric(scale, sums, 16, F(32), lanes_q)
        store(row, 0, a)
        for k in range(16):
            store(sc, k, where(inv != F(0), clipped(inv * load(scale, k), F(-32), F(31)), F(-32)))
    else:
        lowest = F(-32) if sweeps else F(-128)
        peak, size = peaks(scale, 16)
        live = size > F(0) if sweeps else size >= EPS
        inv = lowest / where(live, peak, F(1))
        store(row, 0, where(live, F(1) / inv, F(0)))
        for k in range(16):
            store(sc, k, where(live, clipped(inv * load(scale, k), lowest, -lowest - F(1)), lowest if sweeps else F(0)))
            store(inverse, k, where(live, load(inverse, k), F(0)))
    _halves(row[0], d, row[0])
    for k in range(16):
        step = load(row, 0) * load(sc, k)
        flat = step == F(0)
        divisor = where(flat, F(1), step)
        searched = not sweeps or imp.size != 0
        crowded = any_of(flat)
        inv = load(inverse, k)
        for i in range(k * 16, (k + 1) * 16):
            v = load(lanes_x, i)
            q = clipped(v / divisor, bottom, top)
            if crowded:
                other = load(lanes_q, i)
                if searched:
                    other = where(inv != F(0), clipped(inv * v, bottom, top), bottom)
                q = where(flat, other, q)
            store(lanes_q, i, q + nmax)
    _put_rows(sc, 16, few, ls)
    _put_rows(lanes_q, 256, few, codes)


@kernel
def q3_k(x, imp, out):
    count = x.size // 256
    flat = out.reshape(-1)
    lanes, room, few = table(ROWS), np.empty(4096, F), np.empty(4096, U8)
    d, ls, codes = np.empty(16, np.uint16), np.empty((16, 16), U8), np.empty((16, 256), U8)
    for first in range(0, count, 16):
        _signed_blocks(x, imp, first, F(4), True, lanes, room, few, d, ls, codes)
        for g in range(min(16, count - first)):
            if broken(d[g]):
                return (first + g) * 256 // x.shape[1]
            _put_q3_k(flat, (first + g) * 110, d[g], ls[g].view(np.int8), codes[g])
    return -1


@kernel
def q6_k(x, imp, out):
    count = x.size // 256
    flat = out.reshape(-1)
    lanes, room, few = table(ROWS), np.empty(4096, F), np.empty(4096, U8)
    d, ls, codes = np.empty(16, np.uint16), np.empty((16, 16), U8), np.empty((16, 256), U8)
    for first in range(0, count, 16):
        _signed_blocks(x, imp, first, F(32), False, lanes, room, few, d, ls, codes)
        for g in range(min(16, count - first)):
            if broken(d[g]):
                return (first + g) * 256 // x.shape[1]
            _put_q6_k(flat, (first + g) * 210, d[g], ls[g].view(np.int8), codes[g])
    return -1
