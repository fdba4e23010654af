"""Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0 on one CPU core: sixteen blocks of 32 side by side, one in each lane; Q8_0 block by
block, its largest magnitude found by comparing bits as integers.

Kernels: (x float32 [rows, columns], bits int32 of the same memory, importance float32 [columns] or [0], out uint8
[rows, bytes]) → the first row whose scale is beyond a half, or −1. Without importance weights need not be finite: the
first row with NaN or Inf is found likewise.
"""

from __future__ import annotations

import numpy as np

from core.formats.checks import DUST
from core.formats.fitting.compiled import helper, inlined, kernel
from core.formats.fitting.lanes_bits import MAGNITUDE, broken, float_of, put_half, to_half
from core.formats.fitting.lanes_blocks import (
    BLOCK,
    extent,
    first_beyond,
    place_for,
    put_nibbles,
    read_blocks,
    reciprocal,
    row_means,
    signed_largest,
    weigh_blocks,
    write_rest,
)
from core.formats.fitting.lanes_room import empty, flattened
from core.formats.fitting.lanes_vector import any_of, at_most, clipped, down, load, splat, store, table, where
from core.formats.fitting.lanes_vector_bits import halved, store_halves
from core.formats.fitting.lanes_vector_search import affine, symmetric

# Indices start at 0 of a slice wherever a loop is meant to vectorise: numba lets negative ones count from the end, and
# LLVM must be able to see that there are none.

F = np.float32
# Blocks with nothing as large count as zeros.
TINY = F(DUST)
DUST_BITS = TINY.view(np.int32)
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
def _put_four(out, codes):
    for i in range(16):
        out[i] = np.uint8(codes[i] & np.uint8(15)) | np.uint8(codes[i + 16] << np.uint8(4))


@helper
def _plain(x, out, top, size, shifted):
    """Without importance: Q4_0 and Q5_0 from the value with the largest magnitude; shifted Q4_1 and Q5_1 from the
    smallest and the largest value."""
    t, codes = table(BLOCK), table(BLOCK)
    room, bytes_, whole = empty(F, 512), empty(np.uint8, 1024), empty(np.uint8, 384)
    zero = (top + F(1)) / F(2)
    count, target = x.size // BLOCK, flattened(out)
    for first in range(0, count, 16):
        read_blocks(x, BLOCK, first, room, t)
        low, high = extent(t, BLOCK)
        dust = (low > -TINY) & (high < TINY) & ((low != F(0)) | (high != F(0)))
        if any_of(dust):
            for i in range(BLOCK):
                store(t, i, where(dust, F(0), load(t, i)))
            low, high = extent(t, BLOCK)
        sound = splat(F(0))  # NaN anywhere stays NaN
        if shifted:
            d = (high - low) / top
            inverse = reciprocal(d)
            for i in range(BLOCK):
                q = down(at_most((load(t, i) - low) * inverse + F(0.5), top))
                sound += q
                store(codes, i, q)
        else:
            d = signed_largest(t, BLOCK, low, high) / -zero
            inverse = reciprocal(d)
            for i in range(BLOCK):
                q = down(at_most(load(t, i) * inverse + (zero + F(0.5)), top))
                sound += q
                store(codes, i, q)
        d = halved(d)
        bad = first_beyond(where(sound == sound, d, F(np.inf)))
        if bad >= 0:
            return (first + bad) * BLOCK // x.shape[1]
        to, at = place_for(target, whole, first, count, size)
        store_halves(to, at, size, d)
        if shifted:
            low = halved(low)
            bad = first_beyond(low)
            if bad >= 0:
                return (first + bad) * BLOCK // x.shape[1]
            store_halves(to, at + 2, size, low)
        put_nibbles(codes, to, at, size, bytes_)
        write_rest(target, whole, first, count, size)
    return -1


@helper
def _weighted(x, imp, out, top, size):
    """Q4_0 and Q5_0 with importance."""
    means = empty(F, x.shape[0])
    row_means(x, means)
    lanes_x, lanes_w, codes = table(BLOCK), table(BLOCK), table(BLOCK + 18)
    room, bytes_, whole = empty(F, 512), empty(np.uint8, 1024), empty(np.uint8, 384)
    zero = (top + F(1)) / F(2)
    count, target = x.size // BLOCK, flattened(out)
    for first in range(0, count, 16):
        read_blocks(x, BLOCK, first, room, lanes_x)
        weigh_blocks(x, imp, means, first, room, lanes_x, lanes_w)
        scale, inv = symmetric(lanes_x, lanes_w, BLOCK, zero, codes)
        live = where(inv != F(0), zero, F(0))
        for i in range(BLOCK):
            store(codes, i, clipped(inv * load(lanes_x, i), -zero, zero - F(1)) + live)
        scale = halved(scale)
        bad = first_beyond(scale)
        if bad >= 0:
            return (first + bad) * BLOCK // x.shape[1]
        to, at = place_for(target, whole, first, count, size)
        store_halves(to, at, size, scale)
        put_nibbles(codes, to, at, size, bytes_)
        write_rest(target, whole, first, count, size)
    return -1


@helper
def _weighted_shifted(x, imp, out, top, size):
    """Q4_1 and Q5_1 with importance."""
    means = empty(F, x.shape[0])
    row_means(x, means)
    lanes_x, lanes_w, codes = table(BLOCK), table(BLOCK), table(BLOCK)
    room, bytes_, whole = empty(F, 512), empty(np.uint8, 1024), empty(np.uint8, 384)
    count, target = x.size // BLOCK, flattened(out)
    for first in range(0, count, 16):
        read_blocks(x, BLOCK, first, room, lanes_x)
        weigh_blocks(x, imp, means, first, room, lanes_x, lanes_w)
        scale, low, inv, origin = affine(lanes_x, lanes_w, BLOCK, top, F(-0.9), F(0.05), 36, False, codes)
        for i in range(BLOCK):
            store(codes, i, clipped(inv * (load(lanes_x, i) - origin), F(0), top))
        scale, low = halved(scale), halved(low)
        bad = max(first_beyond(scale), first_beyond(low))
        if bad >= 0:
            return (first + bad) * BLOCK // x.shape[1]
        to, at = place_for(target, whole, first, count, size)
        store_halves(to, at, size, scale)
        store_halves(to, at + 2, size, low)
        put_nibbles(codes, to, at, size, bytes_)
        write_rest(target, whole, first, count, size)
    return -1


@kernel
def q4_0(x, bits, imp, out):
    return _plain(x, out, F(15), 18, False)


@kernel
def q5_0(x, bits, imp, out):
    return _plain(x, out, F(31), 22, False)


@kernel
def q4_1(x, bits, imp, out):
    return _plain(x, out, F(15), 20, True)


@kernel
def q5_1(x, bits, imp, out):
    return _plain(x, out, F(31), 24, True)


@kernel
def q4_0_weighted(x, bits, imp, out):
    return _weighted(x, imp, out, F(15), 18)


@kernel
def q5_0_weighted(x, bits, imp, out):
    return _weighted(x, imp, out, F(31), 22)


@kernel
def q4_1_weighted(x, bits, imp, out):
    return _weighted_shifted(x, imp, out, F(15), 20)


@kernel
def q5_1_weighted(x, bits, imp, out):
    return _weighted_shifted(x, imp, out, F(31), 24)


@helper
def _peaks(bits, top):
    """Bits of the largest magnitude of every block."""
    a = empty(np.int32, 16)
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
    flat, ints, target = flattened(x), flattened(bits), flattened(out)
    top = empty(np.int32, CHUNK)
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
            inv = F(1) / d if top[b] >= DUST_BITS else F(0)
            _bytes(source[b * BLOCK : (b + 1) * BLOCK], inv, to[b * 34 + 2 : (b + 1) * 34])
    return -1
