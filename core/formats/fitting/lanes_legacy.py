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
from core.formats.fitting.lanes_search import W
from core.formats.fitting.lanes_vector import (
    all_of,
    at_most,
    copy,
    down,
    flags_of,
    least_of,
    load,
    load_at,
    most_of,
    root,
    splat,
    store,
    store_bytes,
    table,
    turn,
    turn_bytes,
    where,
)
from core.formats.fitting.lanes_vector_search import affine, clipped, symmetric

# Indices start at 0 of a slice wherever a loop is meant to vectorise: numba lets negative ones count from the end, and
# LLVM must be able to see that there are none.

F = np.float32
BLOCK = 32
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
def _blocks(x, first, room, lanes_x):
    """Blocks first … first + 16 into lanes, the last one fills what is missing. room: float32 [512]."""
    count = x.size // BLOCK
    if first + 16 <= count:
        for c in range(0, BLOCK, 16):
            turn(x, first * BLOCK + c, BLOCK, lanes_x, c * 16, 16)
        return
    flat = x.reshape(-1)
    for j in range(16):
        block = min(first + j, count - 1)
        copy(flat, block * BLOCK, room, j * BLOCK, BLOCK)
    for c in range(0, BLOCK, 16):
        turn(room, c, BLOCK, lanes_x, c * 16, 16)


@helper
def _weigh(x, imp, means, first, room, lanes_x, lanes_w):
    """lanes_w becomes importance · √(row's mean square + x²) of the same blocks."""
    count, across = x.size // BLOCK, x.shape[1] // BLOCK
    for j in range(16):
        column = min(first + j, count - 1) % across * BLOCK
        copy(imp, column, room, j * BLOCK, BLOCK)
    for c in range(0, BLOCK, 16):
        turn(room, c, BLOCK, lanes_w, c * 16, 16)
    for j in range(16):
        room[j] = means[min(first + j, count - 1) // across]
    mean = load_at(room, 0)
    for i in range(BLOCK):
        v = load(lanes_x, i)
        store(lanes_w, i, load(lanes_w, i) * root(mean + v * v))


@helper
def _put(out, first, size, values, codes, bytes_, whole):
    """Sixteen blocks of `size` bytes from `first` on: one or two halves, fifth bits where there are, nibbles.

    values  table of two rows: the numbers stored as halves
    codes   table of 32 rows: whole numbers 0 … 15 or 31
    bytes_  scratch, uint8 [512]; whole: scratch, uint8 [384]
    returns the index of the first block with a number beyond a half, or −1; nothing is written then
    """
    target = out.reshape(-1)
    n = min(16, target.size // size - first)
    head = 4 if size == 20 or size == 24 else 2
    for at in range(0, head, 2):
        for j in range(n):
            h = to_half(values[at // 2, j])
            if broken(h):
                return first + j
            put_half(whole, j * size + at, h)
    if size > 20:
        for k in range(4):
            fifth = splat(F(0))
            for i in range(8):
                q = load(codes, k * 8 + i)
                high = q >= F(16)
                fifth += where(high, F(1 << i), F(0))
                store(codes, k * 8 + i, where(high, q - F(16), q))
            store_bytes(bytes_, k * 16, fifth)
        for j in range(n):
            to = whole[j * size + head : j * size + head + 4]
            for k in range(4):
                to[k] = bytes_[k * 16 + j]
    for i in range(16):
        store_bytes(bytes_, i * 16, load(codes, i) + F(16) * load(codes, i + 16))
    turn_bytes(bytes_, 0, 16, whole, size - 16, size)
    copy(whole, 0, target, first * size, n * size)
    return -1


@helper
def _first_of(flat, at, value):
    """The first of 32 numbers from `at` on that equals value or its negative: it settles which of two signs counts."""
    for i in range(at, at + BLOCK):
        if abs(flat[i]) == abs(value):
            return flat[i]
    return value


@helper
def _plain(x, out, top, size, shifted):
    """Without importance, block by block: Q4_0 and Q5_0 from the value with the largest magnitude, the first among
    equals; shifted Q4_1 and Q5_1 from the smallest and the largest value, of two zeros the first."""
    flat, target = x.reshape(-1), out.reshape(-1)
    zero = (top + F(1)) / F(2)
    head = 4 if shifted else 2
    for block in range(flat.size // BLOCK):
        at, to = block * BLOCK, block * size
        a, b = load_at(flat, at), load_at(flat, at + 16)
        low, high = least_of(where(a < b, a, b)), most_of(where(a > b, a, b))
        # Differences with itself are 0 for finite numbers alone.
        finite = all_of((a - a) + (b - b) == F(0))
        largest = max(high, -low)
        if largest < TINY and largest > F(0):
            a, b, low, high = splat(F(0)), splat(F(0)), F(0), F(0)
        elif shifted and low == F(0):
            low = _first_of(flat, at, low)
        if shifted:
            high = low if high == low else high
            d = (high - low) / top
        else:
            peak = high if high > -low else (low if low != F(0) else F(0))
            peak = _first_of(flat, at, high) if high == -low and high != F(0) else peak
            d = peak / -zero
        h = to_half(d)
        if not finite or broken(h):
            return at // x.shape[1]
        put_half(target, to, h)
        inverse = F(1) / d if d != F(0) else F(0)
        if shifted:
            h = to_half(low)
            if broken(h):
                return at // x.shape[1]
            put_half(target, to + 2, h)
            a = down(at_most((a - low) * inverse + F(0.5), top))
            b = down(at_most((b - low) * inverse + F(0.5), top))
        else:
            a = down(at_most(a * inverse + (zero + F(0.5)), top))
            b = down(at_most(b * inverse + (zero + F(0.5)), top))
        if top > F(15):
            five, six = a >= F(16), b >= F(16)
            fifth = flags_of(five) | flags_of(six) << np.uint32(16)
            for k in range(4):
                target[to + head + k] = np.uint8(fifth >> np.uint32(8 * k) & np.uint32(255))
            a, b = where(five, a - F(16), a), where(six, b - F(16), b)
        store_bytes(target, to + size - 16, a + F(16) * b)
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
def _weighted(x, imp, out, top, size):
    """Q4_0 and Q5_0 with importance."""
    means = np.empty(x.shape[0], F)
    _row_means(x, means)
    lanes_x, lanes_w, codes, values = table(BLOCK), table(BLOCK), table(BLOCK + 18), table(1)
    room, bytes_, whole = np.empty(512, F), np.empty(512, np.uint8), np.empty(384, np.uint8)
    zero = (top + F(1)) / F(2)
    for first in range(0, x.size // BLOCK, 16):
        _blocks(x, first, room, lanes_x)
        _weigh(x, imp, means, first, room, lanes_x, lanes_w)
        scale, inv = symmetric(lanes_x, lanes_w, BLOCK, zero, codes)
        live = where(inv != F(0), zero, F(0))
        for i in range(BLOCK):
            store(codes, i, clipped(inv * load(lanes_x, i), -zero, zero - F(1)) + live)
        store(values, 0, scale)
        bad = _put(out, first, size, values, codes, bytes_, whole)
        if bad >= 0:
            return bad * BLOCK // x.shape[1]
    return -1


@helper
def _weighted_shifted(x, imp, out, top, size):
    """Q4_1 and Q5_1 with importance."""
    means = np.empty(x.shape[0], F)
    _row_means(x, means)
    lanes_x, lanes_w, codes, values = table(BLOCK), table(BLOCK), table(BLOCK), table(2)
    room, bytes_, whole = np.empty(512, F), np.empty(512, np.uint8), np.empty(384, np.uint8)
    for first in range(0, x.size // BLOCK, 16):
        _blocks(x, first, room, lanes_x)
        _weigh(x, imp, means, first, room, lanes_x, lanes_w)
        scale, low, inv, origin = affine(lanes_x, lanes_w, BLOCK, top, F(-0.9), F(0.05), 36, False, codes)
        for i in range(BLOCK):
            store(codes, i, clipped(inv * (load(lanes_x, i) - origin), F(0), top))
        store(values, 0, scale)
        store(values, 1, low)
        bad = _put(out, first, size, values, codes, bytes_, whole)
        if bad >= 0:
            return bad * BLOCK // x.shape[1]
    return -1


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
            inv = F(1) / d if top[b] >= DUST_BITS else F(0)
            _bytes(source[b * BLOCK : (b + 1) * BLOCK], inv, to[b * 34 + 2 : (b + 1) * 34])
    return -1
