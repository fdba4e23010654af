"""Effort `best` for MXFP4 on one CPU core, sixteen blocks side by side (lanes_vector.py): llama.cpp's power of two, the
one above and the one below, unless its byte is near an end of the range. searches_best.py says the same in torch.

Kernel: (x float32 [rows, columns], None, out uint8 [rows, bytes]) → the first row with NaN or Inf, or −1.
"""

from __future__ import annotations

import numpy as np

from core.formats.fitting.compiled import helper, vector_kernel
from core.formats.fitting.lanes_bits import float_of
from core.formats.fitting.lanes_blocks import BLOCK, extent, place_for, put_nibbles, read_blocks, write_rest
from core.formats.fitting.lanes_few import exponent
from core.formats.fitting.lanes_room import empty, flattened
from core.formats.fitting.lanes_vector import (
    all_of,
    at_least,
    at_most,
    flags_of,
    fused,
    load,
    load_at,
    magnitude,
    splat,
    store,
    store_at,
    table,
    where,
)
from core.formats.fitting.lanes_vector_bits import power_of

F = np.float32
# Adding and taking it away again leaves whole numbers.
WHOLE = F(1.5 * 2**23)
# For blocks at the lower end of the range, where 1 / step would be infinite.
TINIER = F(2.0**100)


@helper
def _step_of(e):
    """float32 2^(e − 128) for a scale byte."""
    return float_of(np.uint32((1 << 21) << e if e < 2 else (e - 1) << 23))


@helper
def _level(v):
    """The nearest of 0 1 2 3 4 6 8 12 for v ≥ 0: whole numbers, from 4 on multiples of 2, from 8 on of 4; between
    two the even multiple."""
    v = at_most(v, F(13))
    room = at_least(power_of(v) * (WHOLE / F(2)), WHOLE)
    return at_most((v + room) - room, F(12))


@helper
def _error(x, inv):
    """Σ (|x|·inv − level)²."""
    e = splat(F(0))
    for i in range(BLOCK):
        u = magnitude(load(x, i)) * inv
        r = u - _level(u)
        e = fused(r, r, e)
    return e


@vector_kernel
def mxfp4(x, imp, out):
    t, codes, bytes_, whole = table(BLOCK), table(BLOCK), empty(np.uint8, 1024), empty(np.uint8, 16 * 17)
    room, numbers, moves = empty(F, 512), empty(np.int32, 16), empty(F, 16)
    count, target = x.size // BLOCK, flattened(out)
    for first in range(0, count, 16):
        read_blocks(x, BLOCK, first, room, t)
        low, high = extent(t, BLOCK)
        store_at(room, 0, where(high > -low, high, -low))
        ends = False
        for j in range(16):
            numbers[j] = exponent(room[j]) if room[j] < F(np.inf) else 0
            inner = 3 <= numbers[j] <= 252
            tiny = numbers[j] < 3 and room[j] > F(0)
            ends = ends or tiny
            room[32 + j] = TINIER if tiny else F(1)
            room[16 + j] = F(1) / (room[32 + j] * _step_of(numbers[j])) if inner or tiny else F(0)
            # At the ends of the range there is nothing to compare.
            room[48 + j] = room[16 + j] if inner else F(0)
            # Of twice the largest step the largest levels are infinite.
            room[64 + j] = F(np.inf) if numbers[j] == 252 else F(0)
        inv, tried = load_at(room, 16), load_at(room, 48)
        if ends:
            larger = load_at(room, 32)
            for i in range(BLOCK):
                store(t, i, load(t, i) * larger)
        best = _error(t, tried)
        sound = best == best
        if not all_of(sound):
            flags, j = flags_of(sound), 0
            while flags >> np.uint32(j) & np.uint32(1):
                j += 1
            return (first + j) * BLOCK // x.shape[1]
        move = splat(F(1))
        double, half = F(4) * _error(t, tried * F(0.5)) + load_at(room, 64), F(0.25) * _error(t, tried * F(2))
        move, best = where(double < best, F(2), move), where(double < best, double, best)
        move = where(half < best, F(0.5), move)
        store_at(moves, 0, move)
        inv = inv / move
        for i in range(BLOCK):
            v = load(t, i)
            q = _level(magnitude(v) * inv)
            # Number of the level: 6, 8 and 12 are the fifth to seventh.
            q = q - F(0.5) * at_least(q - F(4), F(0)) - F(0.25) * at_least(q - F(8), F(0))
            store(codes, i, where((v < F(0)) & (q > F(0)), q + F(8), q))
        to, at = place_for(target, whole, first, count, 17)
        for j in range(16):
            e = (
                numbers[j]
                + (np.int32(1) if moves[j] > F(1) else np.int32(0))
                - (np.int32(1) if moves[j] < F(1) else np.int32(0))
            )
            to[at + 17 * j] = np.uint8(e)
        put_nibbles(codes, to, at, 17, bytes_)
        write_rest(target, whole, first, count, 17)
    return -1
