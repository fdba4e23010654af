"""Evenly spaced levels on one CPU core: rows are read, ranged, coded and packed while they lie in cache, and back.
Bit-equal to the torch code in core/formats/uniform.py, whose docstring explains the format.

Weights are a flat array of float32, or one of bf16 (as uint16) beside an empty one; rows of bf16, and those whose
groups are no whole vectors, are copied into a row of their own first. Vectors at the end of a group write codes beyond
it, which the next group overwrites; at the end of a row lies room for them.
"""

from __future__ import annotations

import numpy as np

from core.formats.fitting.compiled import helper, kernel
from core.formats.fitting.lanes_bits import MAGNITUDE, float_of
from core.formats.fitting.lanes_vector import (
    WIDTH,
    all_of,
    at_least,
    at_most,
    load_at,
    rint,
    splat,
    store_at,
    store_bytes,
    where,
)
from core.formats.fitting.lanes_vector_bits import halved
from core.formats.fitting.lanes_vector_rows import (
    address,
    brained,
    copy_run,
    ends_of,
    load_bytes,
    load_eight,
    load_from,
    pair_nibbles,
    part_nibbles,
    size_of,
    store_eight,
    widen_row,
)

F = np.float32
U64 = np.uint64
RUN = 32
# Weights that are looked at together where rows are of no concern.
CHUNK = 4096
LARGEST = F(3.4028234663852886e38)
# What to do about scales: they are given, or fitted with the zero in the middle, at a whole code, or anywhere.
GIVEN, SYMMETRIC, WHOLE, FRACTIONAL = 0, 1, 2, 3
# What scales are rounded to.
SINGLE, HALF, BRAIN = 0, 1, 2


@helper
def _of_key(key):
    return float_of(np.uint32(key ^ ((key >> np.int32(31)) & MAGNITUDE)))


@helper
def _bounds(bits, most, least):
    """Smallest and largest of a run, as integers in the numbers' order. most, least: scratch int32 [RUN]."""
    for j in range(RUN):
        most[j] = np.int32(-0x80000000)
        least[j] = np.int32(0x7FFFFFFF)
    whole = bits.size // RUN * RUN
    for i in range(0, whole, RUN):
        for j in range(RUN):
            b = bits[i + j]
            key = np.int32(b ^ ((b >> np.int32(31)) & MAGNITUDE))
            most[j] = max(most[j], key)
            least[j] = min(least[j], key)
    for i in range(whole, bits.size):
        b = bits[i]
        key = np.int32(b ^ ((b >> np.int32(31)) & MAGNITUDE))
        most[0] = max(most[0], key)
        least[0] = min(least[0], key)
    width = RUN // 2
    while width >= 1:
        for j in range(width):
            most[j] = max(most[j], most[j + width])
            least[j] = min(least[j], least[j + width])
        width //= 2
    return least[0], most[0]


@kernel
def ranges(bits, group, low, high):
    """Smallest and largest of every group of columns: bits int32 [rows, columns] of float32, low, high [rows, groups].

    NaN shows as NaN or infinity in one of them.
    """
    most, least = np.empty(RUN, np.int32), np.empty(RUN, np.int32)
    for r in range(bits.shape[0]):
        for g in range(low.shape[1]):
            bottom, top = _bounds(bits[r, g * group : (g + 1) * group], most, least)
            low[r, g] = _of_key(bottom)
            high[r, g] = _of_key(top)


@kernel
def extremes(x, brains, found):
    """Bits of the smallest of 0 and all weights, flat, and of the largest, into found, uint32 [2]; one is NaN or Inf
    where a weight is not finite."""
    room = np.empty(CHUNK, np.float32)
    low, high = np.uint32(0), np.uint32(0)
    for at in range(0, x.size + brains.size, CHUNK):
        here = min(CHUNK, x.size + brains.size - at)
        source = address(x, at)
        if brains.size:
            widen_row(brains, at, here, room)
            source = address(room, 0)
        least, most = ends_of(source, here)
        low, high = max(low, least), max(high, most)
    found[0], found[1] = low, high


@helper
def _stored(value, storage):
    if storage == HALF:
        return halved(value)
    if storage == BRAIN:
        return brained(value)
    return value


@helper
def _fitted(low, high, count, kind, storage, width, scale, zero):
    """Scales and zero points for `count` ranges; False where one is not finite or cannot be stored. All flat, with room
    for whole vectors; low is looked at where there is a zero point."""
    half = F((1 << width) - 1) / F(2)
    bottom, top = F(-(1 << (width - 1))), F((1 << (width - 1)) - 1)
    tiny, most = F(2.0**-149), LARGEST
    if storage == HALF:
        tiny, most = F(2.0**-24), F(65504)
    elif storage == BRAIN:
        tiny = F(2.0**-133)
    sound = True
    for k in range(0, count, WIDTH):
        above, below = load_at(high, k), load_at(low, k)
        if kind == SYMMETRIC:
            spread = above
            raw = spread / half
        else:
            spread = where(-below > above, -below, above)
            # Halved first: the difference of two large numbers of opposite sign may overflow.
            raw = (above * F(0.5) - below * F(0.5)) / half
        s = _stored(raw, storage)
        s = where(s > F(0), s, splat(tiny))
        s = where(spread == F(0), F(1), s)
        if kind == SYMMETRIC:
            z = splat(F(0))
            reach = s * -bottom
        else:
            place = bottom - below / s
            z = at_most(at_least(rint(place), bottom), top)
            reach = s * where(z - bottom > top - z, z - bottom, top - z)
            if kind == FRACTIONAL:
                z = _stored(at_most(at_least(place, bottom), top), storage)
        sound = sound and all_of((spread <= LARGEST) & (reach <= LARGEST) & (s <= most))
        store_at(scale, k, s)
        store_at(zero, k, z)
    return sound


@helper
def _code(x, start, stop, scale, zero, bottom, top, codes):
    """Codes start … stop of a row at an address, and some beyond: uint8, the lowest one 0."""
    for i in range(start, stop, WIDTH):
        q = rint(load_from(x, i) / scale + zero)
        store_bytes(codes, i, at_most(at_least(q, bottom), top) - bottom)


@helper
def _code_columns(x, columns, scale, zero, bottom, top, codes):
    """The same with a scale and a zero point for every column."""
    for i in range(0, columns, WIDTH):
        q = rint(load_from(x, i) / load_at(scale, i) + load_at(zero, i))
        store_bytes(codes, i, at_most(at_least(q, bottom), top) - bottom)


@helper
def _pack(codes, columns, width, out):
    """Little-endian stream of codes, whose room beyond the columns is 0."""
    if width == 4:
        for i in range(0, columns, 2 * WIDTH):
            pair_nibbles(codes, i, out, i // 2, False)
    elif width == 8:
        copy_run(codes, 0, out, 0, (columns + 3) // 4 * 4)
    else:
        n = U64(width)
        one, two = U64(0x00FF00FF00FF00FF), U64(0x0000FFFF0000FFFF)
        for k in range((columns + 7) // 8):
            v = load_eight(codes, 8 * k)
            v = (v & one) | (((v >> U64(8)) & one) << n)
            v = (v & two) | (((v >> U64(16)) & two) << (n + n))
            v = (v & U64(0xFFFFFFFF)) | ((v >> U64(32)) << (U64(4) * n))
            store_eight(out, k * width, v)


@helper
def _unpack(words, columns, width, codes):
    """The inverse of _pack; both have room for more."""
    if width == 4:
        for i in range(0, columns, 2 * WIDTH):
            part_nibbles(words, i // 2, codes, i, False)
    elif width == 8:
        copy_run(words, 0, codes, 0, columns)
    else:
        n = U64(width)
        one = ((U64(1) << n) - U64(1)) * U64(0x0001000100010001)
        two = ((U64(1) << (n + n)) - U64(1)) * U64(0x0000000100000001)
        four = (U64(1) << (U64(4) * n)) - U64(1)
        for k in range((columns + 7) // 8):
            v = load_eight(words, k * width)
            v = (v & four) | (((v >> (U64(4) * n)) & four) << U64(32))
            v = (v & two) | (((v >> (n + n)) & two) << U64(16))
            v = (v & one) | (((v >> n) & one) << U64(8))
            store_eight(codes, 8 * k, v)


@kernel
def encode(x, brains, columns, group, width, kind, storage, scale, zero, words):
    """Words, uint8 [rows · bytes of a row], of x float32 or brains uint16 [rows · columns]. The first row that holds
    NaN or Inf or needs a scale that cannot be stored, or −1; what lies behind it is not written.

    group        columns that share a scale; 0: each has its own, and scale is [1, columns]
    kind         GIVEN … FRACTIONAL: whether scale and zero are read, or fitted and written
    storage      SINGLE, HALF or BRAIN
    scale, zero  float32 [rows, groups]; zero [0, 0] where it is 0
    """
    groups = scale.shape[1]
    rows = scale.shape[0] if group else (x.size + brains.size) // columns
    row_bytes = (columns * width + 31) // 32 * 4
    bottom, top = F(-(1 << (width - 1))), F((1 << (width - 1)) - 1)
    shifted = zero.size > 0
    direct = brains.size == 0 and (group % WIDTH == 0 if group else columns % WIDTH == 0)
    room = np.zeros(columns + WIDTH, np.float32)
    codes = np.zeros(columns + 3 * WIDTH, np.uint8)
    packed = np.zeros(columns + 3 * WIDTH, np.uint8)  # seven bits leave up to two bytes of a row unwritten
    low, high = np.zeros(groups + WIDTH, np.float32), np.zeros(groups + WIDTH, np.float32)
    s, z = np.ones(groups + WIDTH, np.float32), np.zeros(groups + WIDTH, np.float32)
    scales, zeros = scale.reshape(-1), zero.reshape(-1)
    for r in range(rows):
        at = r * columns
        source = address(room, 0)
        if direct:
            source = address(x, at)
        elif brains.size:
            widen_row(brains, at, columns, room)
        else:
            copy_run(x, at, room, 0, columns)
        if kind != GIVEN:
            for g in range(groups):
                first = source + 4 * g * group
                if kind == SYMMETRIC:
                    high[g] = float_of(size_of(first, group))
                else:
                    least, most = ends_of(first, group)
                    low[g], high[g] = float_of(least), float_of(most)
            if not _fitted(low, high, groups, kind, storage, width, s, z):
                return r
            copy_run(s, 0, scales, r * groups, groups)
            if shifted:
                copy_run(z, 0, zeros, r * groups, groups)
        elif group or r == 0:
            copy_run(scales, r * groups, s, 0, groups)
            if shifted:
                copy_run(zeros, r * groups, z, 0, groups)
        if group:
            for g in range(groups):
                _code(source, g * group, (g + 1) * group, s[g], z[g], bottom, top, codes)
        else:
            _code_columns(source, columns, s, z, bottom, top, codes)
        for i in range(columns, codes.size):
            codes[i] = np.uint8(0)
        _pack(codes, columns, width, packed)
        copy_run(packed, 0, words, r * row_bytes, row_bytes)
    return -1


@kernel
def decode(words, columns, group, width, scale, zero, out):
    """float32 [rows · columns] of words as encode makes them; scale and zero likewise."""
    groups = scale.shape[1]
    row_bytes = (columns * width + 31) // 32 * 4
    middle = F(1 << (width - 1))
    shifted = zero.size > 0
    codes = np.zeros(columns + 3 * WIDTH, np.uint8)
    packed = np.zeros(columns + 3 * WIDTH, np.uint8)
    for r in range(out.size // columns):
        at = r * columns
        copy_run(words, r * row_bytes, packed, 0, row_bytes)
        _unpack(packed, columns, width, codes)
        if group:
            for g in range(groups):
                s = scale[r, g]
                z = zero[r, g] if shifted else F(0)
                start, stop = g * group, (g + 1) * group
                whole = start + group // WIDTH * WIDTH
                for i in range(start, whole, WIDTH):
                    store_at(out, at + i, ((load_bytes(codes, i) - middle) - z) * s)
                for i in range(whole, stop):
                    out[at + i] = ((F(codes[i]) - middle) - z) * s
        else:
            for i in range(columns):
                out[at + i] = ((F(codes[i]) - middle) - (zero[0, i] if shifted else F(0))) * scale[0, i]
