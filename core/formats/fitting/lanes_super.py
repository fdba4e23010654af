"""Super-blocks of 256 on one CPU core, sixteen side by side, one in each lane: what exact searches and effort `best`
have in common. Weights and importance into lanes and results out of them, and the bytes of the K-quants.

Importance is float32 [columns] or None. Kernels are compiled for each by itself, without the branches of the other.
"""

from __future__ import annotations

import numpy as np

from core.formats.fitting.compiled import helper
from core.formats.fitting.lanes_bits import from_half, put_half, to_half
from core.formats.fitting.lanes_room import flattened
from core.formats.fitting.lanes_turn import turn, turn_bytes
from core.formats.fitting.lanes_vector import copy, load, root, splat, store, store_bytes, where

F = np.float32
U8 = np.uint8


@helper
def take(x, first, room, t, to):
    """Super-blocks first … first + 16 of x into rows `to` … of a table, the last one fills what is missing. room:
    float32 [4096], scratch."""
    flat, start = flattened(x), first * 256
    count = x.size // 256
    if first + 16 > count:
        for g in range(16):
            copy(flat, min(first + g, count - 1) * 256, room, g * 256, 256)
        flat, start = room, 0
    for c in range(0, 256, 16):
        turn(flat, start + c, 256, t, (to + c) * 16, 16)


@helper
def take_importance(x, imp, first, room, t, to):
    """The importance of the same weights likewise."""
    count, across = x.size // 256, x.shape[1] // 256
    for g in range(16):
        column = min(first + g, count - 1) % across * 256
        copy(imp, column, room, g * 256, 256)
    for c in range(0, 256, 16):
        turn(room, c, 256, t, (to + c) * 16, 16)


@helper
def mean_square(t, at, energy):
    """energy · mean square of every super-block, rows `at` …, summed in order."""
    total = splat(F(0))
    for i in range(256):
        v = load(t, at + i)
        total += v * v
    return energy * total / F(256)


@helper
def weigh(t, x, importance, n, mean, w):
    """Rows w … become importance · √(mean + x²) of n rows; their sum is returned."""
    total = splat(F(0))
    for i in range(n):
        v = load(t, x + i)
        u = load(t, importance + i) * root(mean + v * v)
        store(t, w + i, u)
        total += u
    return total


@helper
def reciprocal(step):
    """1 / step, 0 where that is 0."""
    some = step != F(0)
    return where(some, F(1) / where(some, step, F(1)), F(0))


@helper
def halves(t, row, d):
    """A row becomes what the halves nearest to it stand for; d uint16 [16] gets their bits."""
    for g in range(16):
        d[g] = to_half(t[row, g])
        t[row, g] = from_half(d[g])


@helper
def put_rows(t, at, count, room, out):
    """Rows at … at + count of a table to out uint8 [16, ·], as bytes: value k of lane g to out[g, k]. room: uint8
    [count · 16], scratch."""
    for k in range(count):
        store_bytes(room, k * 16, load(t, at + k))
    for k in range(0, count, 16):
        turn_bytes(room, k * 16, 16, out, k, out.shape[1])


@helper
def put_six(out, at, scales, mins):
    """Eight scales and mins of 6 bits into 12 bytes."""
    for k in range(4):
        out[at + k] = scales[k] | np.uint8((scales[k + 4] >> 4) << 6)
        out[at + 4 + k] = mins[k] | np.uint8((mins[k + 4] >> 4) << 6)
        out[at + 8 + k] = np.uint8(scales[k + 4] & 15) | np.uint8((mins[k + 4] & 15) << 4)


@helper
def put_nibbles(out, codes):
    """256 codes of 4 bits into 128 bytes: per 64, low nibbles first."""
    for k in range(4):
        for i in range(32):
            out[k * 32 + i] = (codes[k * 64 + i] & np.uint8(15)) | np.uint8(
                (codes[k * 64 + 32 + i] & np.uint8(15)) << np.uint8(4)
            )


@helper
def put_crumbs(out, codes):
    """256 codes of 2 bits into 64 bytes."""
    for half in range(2):
        for i in range(32):
            c = half * 128 + i
            out[half * 32 + i] = np.uint8(
                (codes[c] & 3) | (codes[c + 32] & 3) << 2 | (codes[c + 64] & 3) << 4 | (codes[c + 96] & 3) << 6
            )


@helper
def put_five_high(out, codes):
    """The fifth bits of 256 codes into 32 bytes."""
    for i in range(32):
        fifth = np.uint8(0)
        for k in range(8):
            fifth |= np.uint8((codes[k * 32 + i] >> np.uint8(4)) << np.uint8(k))
        out[i] = fifth


@helper
def put_q3_k(flat, at, d, ls, codes):
    """A block of Q3_K: d as a half, ls uint8 [16], bits of int8 in −32 … 31, codes uint8 [256]."""
    for i in range(32):
        high = np.uint8(0)
        for k in range(8):
            high |= np.uint8((codes[k * 32 + i] >> np.uint8(2)) << np.uint8(k))
        flat[at + i] = high
    put_crumbs(flat[at + 32 : at + 96], codes)
    for k in range(8):
        flat[at + 96 + k] = U8((ls[k] + U8(32)) & U8(15)) | U8(((ls[k + 8] + U8(32)) & U8(15)) << U8(4))
    for k in range(4):
        high = U8(0)
        for m in range(4):
            high |= U8(((ls[k + 4 * m] + U8(32)) & U8(63)) >> U8(4) << U8(2 * m))
        flat[at + 104 + k] = high
    put_half(flat, at + 108, d)


@helper
def put_q6_k(flat, at, d, ls, codes):
    """A block of Q6_K: d as a half, ls uint8 [16], bits of int8, codes uint8 [256]."""
    for half in range(2):
        low, high = flat[at + half * 64 :], flat[at + 128 + half * 32 :]
        c = codes[half * 128 :]
        for i in range(64):
            low[i] = (c[i] & U8(15)) | U8((c[i + 64] & U8(15)) << U8(4))
        for i in range(32):
            high[i] = U8((c[i] >> 4) | (c[i + 32] >> 4) << 2 | (c[i + 64] >> 4) << 4 | (c[i + 96] >> 4) << 6)
    for k in range(16):
        flat[at + 192 + k] = ls[k]
    put_half(flat, at + 208, d)
