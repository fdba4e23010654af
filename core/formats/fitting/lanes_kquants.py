"""The exact searches of the K-quants on one CPU core, sixteen super-blocks of 256 side by side, one in each lane: their
sub-blocks, the scales quantized again, codes recomputed; then each is packed by itself.

Kernels: (x float32 [rows, columns], importance float32 [columns] or None, out uint8 [rows, bytes]) → the first row
whose scale is beyond a half, or −1.
"""

from __future__ import annotations

import numpy as np

from core.formats.fitting.compiled import helper, vector_kernel
from core.formats.fitting.lanes_bits import broken, put_half
from core.formats.fitting.lanes_room import empty, empty_rows, flattened
from core.formats.fitting.lanes_super import (
    halves,
    mean_square,
    put_crumbs,
    put_five_high,
    put_nibbles,
    put_q3_k,
    put_q6_k,
    put_rows,
    put_six,
    take,
    take_importance,
    weigh,
)
from core.formats.fitting.lanes_vector import (
    any_of,
    at_most,
    clipped,
    load,
    magnitude,
    root,
    splat,
    store,
    table,
    where,
)
from core.formats.fitting.lanes_vector_search import EPS, affine, byte, peaks, positive, symmetric, symmetric_sweeps

F = np.float32
U8 = np.uint8
# Rows of a kernel's table. What becomes bytes lies together: codes (before them scratch of the searches), then scales
# and mins.
CODES, SCALES, MINS, X, IMPORTANCE, WEIGHTS = 0, 256, 272, 288, 544, 800
SCALE, LOW, INVERSE, ORIGIN, SUMS, WHOLE, ROWS = 832, 848, 864, 880, 896, 912, 914


@helper
def _highest(t, values, count, top, codes):
    """The step when the largest of some scales ≥ 0 gets the code top; codes become the others', through a byte."""
    high = splat(F(0))
    for k in range(count):
        v = load(t, values + k)
        high = where(v > high, v, high)
    inverse = where(high > F(0), top / where(high > F(0), high, F(1)), F(0))
    for k in range(count):
        store(t, codes + k, at_most(byte(inverse * load(t, values + k)), top))
    return high / top


@helper
def _affine_blocks(x, imp, first, sub, nmax, top, rmin, rdelta, steps, absolute, energy, t, room, few, d, out):
    """Fits sixteen super-blocks. t: a table of ROWS rows, room: float32 [4096], few: uint8 [4608], all scratch.

    d uint16 [2, 16] (d and dmin as halves) and out uint8 [16, 288] are written: 256 codes, 16 scales, 16 mins.
    """
    per = 256 // sub
    w = t[WEIGHTS:]
    take(x, first, room, t, X)
    mean = splat(F(0))
    if imp is not None:
        take_importance(x, imp, first, room, t, IMPORTANCE)
        mean = mean_square(t, X, energy)
    for k in range(per):
        start = X + k * sub
        if imp is not None:
            store(t, SUMS + k, weigh(t, start, IMPORTANCE + k * sub, sub, mean, WEIGHTS))
        else:
            base = splat(F(0))
            if not absolute:
                for i in range(sub):
                    v = load(t, start + i)
                    base += v * v
                base = root(base / F(sub))
            for i in range(sub):
                store(w, i, base + magnitude(load(t, start + i)))
        a, b, inv, origin = affine(t[start:], w, sub, nmax, rmin, rdelta, steps, absolute, t)
        store(t, SCALE + k, a)
        store(t, LOW + k, -b)
        store(t, INVERSE + k, inv)
        store(t, ORIGIN + k, origin)
    # Scales, then mins; in one place, as every copy of a search takes its time to compile.
    for j in range(2):
        values, codes = SCALE + 16 * j, SCALES + 16 * j
        if imp is not None:
            store(t, WHOLE + j, positive(t[values:], t[SUMS:], per, top, t[codes:]))
        else:
            store(t, WHOLE + j, _highest(t, values, per, top, codes))
        halves(t, WHOLE + j, d[j])
    for k in range(per):
        step = load(t, WHOLE) * load(t, SCALES + k)
        shift = load(t, WHOLE + 1) * load(t, MINS + k)
        flat = step == F(0)
        divisor = where(flat, F(1), step)
        for i in range(k * sub, (k + 1) * sub):
            store(t, CODES + i, clipped((load(t, X + i) + shift) / divisor, F(0), nmax))
        if any_of(flat):
            inv, origin = load(t, INVERSE + k), load(t, ORIGIN + k)
            for i in range(k * sub, (k + 1) * sub):
                q = clipped(inv * (load(t, X + i) - origin), F(0), nmax)
                store(t, CODES + i, where(flat, q, load(t, CODES + i)))
    put_rows(t, CODES, 288, few, out)


@vector_kernel
def q4_k(x, imp, out):
    count = x.size // 256
    flat = flattened(out)
    t, room, few = table(ROWS), empty(F, 4096), empty(U8, 4608)
    d, made = empty_rows(np.uint16, 2, 16), empty_rows(U8, 16, 288)
    rmin, rdelta, steps, absolute = F(-1), F(0.1), 20, False
    if imp is not None:
        rmin, rdelta, steps, absolute = F(-0.9), F(0.05), 36, False
    for first in range(0, count, 16):
        _affine_blocks(x, imp, first, 32, F(15), F(63), rmin, rdelta, steps, absolute, F(2), t, room, few, d, made)
        for g in range(min(16, count - first)):
            if broken(d[0, g]) or broken(d[1, g]):
                return (first + g) * 256 // x.shape[1]
            at = (first + g) * 144
            put_half(flat, at, d[0, g])
            put_half(flat, at + 2, d[1, g])
            put_six(flat, at + 4, made[g, 256:264], made[g, 272:280])
            put_nibbles(flat[at + 16 :], made[g])
    return -1


@vector_kernel
def q5_k(x, imp, out):
    count = x.size // 256
    flat = flattened(out)
    t, room, few = table(ROWS), empty(F, 4096), empty(U8, 4608)
    d, made = empty_rows(np.uint16, 2, 16), empty_rows(U8, 16, 288)
    rmin, rdelta, steps, absolute = F(-0.5), F(0.1), 15, False
    if imp is not None:
        rmin, rdelta, steps, absolute = F(-0.9), F(0.05), 36, False
    for first in range(0, count, 16):
        _affine_blocks(x, imp, first, 32, F(31), F(63), rmin, rdelta, steps, absolute, F(2), t, room, few, d, made)
        for g in range(min(16, count - first)):
            if broken(d[0, g]) or broken(d[1, g]):
                return (first + g) * 256 // x.shape[1]
            at = (first + g) * 176
            put_half(flat, at, d[0, g])
            put_half(flat, at + 2, d[1, g])
            put_six(flat, at + 4, made[g, 256:264], made[g, 272:280])
            put_five_high(flat[at + 16 :], made[g])
            put_nibbles(flat[at + 48 :], made[g])
    return -1


@vector_kernel
def q2_k(x, imp, out):
    count = x.size // 256
    flat = flattened(out)
    t, room, few = table(ROWS), empty(F, 4096), empty(U8, 4608)
    d, made = empty_rows(np.uint16, 2, 16), empty_rows(U8, 16, 288)
    rmin, rdelta, steps, absolute = F(-0.5), F(0.1), 15, True
    if imp is not None:
        rmin, rdelta, steps, absolute = F(-0.9), F(0.05), 36, False
    for first in range(0, count, 16):
        _affine_blocks(x, imp, first, 16, F(3), F(15), rmin, rdelta, steps, absolute, F(1), t, room, few, d, made)
        for g in range(min(16, count - first)):
            if broken(d[0, g]) or broken(d[1, g]):
                return (first + g) * 256 // x.shape[1]
            at = (first + g) * 84
            put_half(flat, at + 80, d[0, g])
            put_half(flat, at + 82, d[1, g])
            for k in range(16):
                flat[at + k] = made[g, 256 + k] | U8(made[g, 272 + k] << U8(4))
            put_crumbs(flat[at + 16 :], made[g])
    return -1


@helper
def _signed_blocks(x, imp, first, nmax, energy, t, room, few, d, out):
    """Fits sixteen super-blocks of Q3_K, or of Q6_K, whose energy is None. Scratch as in _affine_blocks.

    d uint16 [16] (halves) and out uint8 [16, 272] are written: 256 codes, nmax added to them, and the bits of 16
    scales. An empty super-block of Q6_K is all zeros.
    """
    bottom, top = -nmax, nmax - F(1)
    w = t[WEIGHTS:]
    take(x, first, room, t, X)
    mean = splat(F(0))
    if imp is not None:
        take_importance(x, imp, first, room, t, IMPORTANCE)
        if energy is not None:
            mean = mean_square(t, X, energy)
    for k in range(16):
        run = t[X + k * 16 :]
        if imp is None and energy is not None:
            store(t, SCALE + k, symmetric_sweeps(run, 16, nmax, t[CODES + k * 16 :]))
        else:
            if imp is None:
                for i in range(16):
                    v = load(run, i)
                    store(w, i, v * v)
            elif energy is not None:
                store(t, SUMS + k, weigh(t, X + k * 16, IMPORTANCE + k * 16, 16, mean, WEIGHTS))
            else:
                for i in range(16):
                    store(w, i, load(t, IMPORTANCE + k * 16 + i))
            a, inv = symmetric(run, w, 16, nmax, t)
            store(t, SCALE + k, a)
            store(t, INVERSE + k, inv)
    if energy is not None and imp is not None:
        a, inv = symmetric(t[SCALE:], t[SUMS:], 16, F(32), t)
        store(t, WHOLE, a)
        for k in range(16):
            q = clipped(inv * load(t, SCALE + k), F(-32), F(31))
            store(t, SCALES + k, where(inv != F(0), q, F(-32)))
    else:
        lowest, none = F(-128), F(0)
        peak, size = peaks(t[SCALE:], 16)
        live = size >= EPS
        if energy is not None:
            lowest, none = F(-32), F(-32)
            live = size > F(0)
        inv = lowest / where(live, peak, F(1))
        store(t, WHOLE, where(live, F(1) / inv, F(0)))
        for k in range(16):
            q = clipped(inv * load(t, SCALE + k), lowest, -lowest - F(1))
            store(t, SCALES + k, where(live, q, none))
            store(t, INVERSE + k, where(live, load(t, INVERSE + k), F(0)))
    halves(t, WHOLE, d)
    for k in range(16):
        step = load(t, WHOLE) * load(t, SCALES + k)
        flat = step == F(0)
        divisor = where(flat, F(1), step)
        crowded = any_of(flat)
        inv = load(t, INVERSE + k)
        for i in range(k * 16, (k + 1) * 16):
            v = load(t, X + i)
            q = clipped(v / divisor, bottom, top)
            if crowded:
                other = load(t, CODES + i)
                if energy is None or imp is not None:
                    other = where(inv != F(0), clipped(inv * v, bottom, top), bottom)
                q = where(flat, other, q)
            store(t, CODES + i, q + nmax)
    put_rows(t, CODES, 272, few, out)


@vector_kernel
def q3_k(x, imp, out):
    count = x.size // 256
    flat = flattened(out)
    t, room, few = table(ROWS), empty(F, 4096), empty(U8, 4608)
    d, made = empty(np.uint16, 16), empty_rows(U8, 16, 272)
    for first in range(0, count, 16):
        _signed_blocks(x, imp, first, F(4), F(2), t, room, few, d, made)
        for g in range(min(16, count - first)):
            if broken(d[g]):
                return (first + g) * 256 // x.shape[1]
            put_q3_k(flat, (first + g) * 110, d[g], made[g, 256:], made[g])
    return -1


@vector_kernel
def q6_k(x, imp, out):
    count = x.size // 256
    flat = flattened(out)
    t, room, few = table(ROWS), empty(F, 4096), empty(U8, 4608)
    d, made = empty(np.uint16, 16), empty_rows(U8, 16, 272)
    for first in range(0, count, 16):
        _signed_blocks(x, imp, first, F(32), None, t, room, few, d, made)
        for g in range(min(16, count - first)):
            if broken(d[g]):
                return (first + g) * 256 // x.shape[1]
            put_q6_k(flat, (first + g) * 210, d[g], made[g, 256:], made[g])
    return -1
