"""8-bit floats and E2M1 on one CPU core: rows are read, scaled and coded while they lie in cache, and back. Bit-equal
to the torch code in core/formats/fp8.py and core/formats/mx.py, whose docstrings explain the formats. How weights are
given and where vectors end: lanes_uniform.py."""

from __future__ import annotations

import numpy as np

from core.formats.fitting.compiled import helper, kernel
from core.formats.fitting.lanes_bits import bits_of, float_of
from core.formats.fitting.lanes_vector import WIDTH, at_least, at_most, load_at, splat, store_at, where
from core.formats.fitting.lanes_vector_rows import (
    address,
    copy_run,
    load_from,
    pair_nibbles,
    part_nibbles,
    size_of,
    top_bits,
    widen_row,
    widest,
)
from core.formats.fitting.lanes_vector_small import load_small, store_small

F = np.float32
U = np.uint32
INF = np.uint32(0x7F800000)
# What to do about scales: they are given; float32 absmax / largest; or powers of two by a rule of mx.py.
GIVEN, ABSMAX, FLOOR, EVEN, RCEIL, CEIL = 0, 1, 2, 3, 4, 5
# Weights that are worked on at a time where rows are of no concern.
CHUNK = 4096


@helper
def _absmax_scale(size, largest):
    """Fp8.scale_of."""
    if size == F(0):
        return F(1)
    scale = size / largest
    if scale * largest > F(3.4028234663852886e38):
        scale = float_of(U(bits_of(scale) - U(1)))
    return scale if scale > F(0) else F(2.0**-149)


@helper
def _power_byte(bits, rule):
    """MxFp8.scale_of, of a largest magnitude's bits."""
    if bits == U(0):
        return 0
    part = bits & U(0x7FFFFF)
    byte = np.int64(bits >> U(23)) - 8
    if rule == EVEN:
        byte += part >= U(0x600000)
    elif rule == RCEIL:
        byte += part > U(0x600000)
    elif rule == CEIL:
        byte += part > U(0)
    return max(0, byte)


@helper
def _power(byte):
    """2^(byte − 127)."""
    return float_of(U(1 << 22) if byte == 0 else U(U(byte) << U(23)))


@helper
def _row(x, brains, at, columns, room):
    """A row in room, float32."""
    if brains.size:
        widen_row(brains, at, columns, room)
    else:
        copy_run(x, at, room, 0, columns)


@kernel
def largest_bits(x, brains):
    """Bits of the largest magnitude, those of Inf or more where a weight is not finite; flat weights."""
    room = np.empty(CHUNK, np.float32)
    found = U(0)
    for at in range(0, x.size, CHUNK):
        found = max(found, size_of(address(x, at), min(CHUNK, x.size - at)))
    for at in range(0, brains.size, CHUNK):
        here = min(CHUNK, brains.size - at)
        widen_row(brains, at, here, room)
        found = max(found, size_of(address(room, 0), here))
    return found


@kernel
def encode(x, brains, columns, run, tall, rule, mantissa, exponent, largest, scale, powers, out):
    """Bytes uint8 [rows · columns] of x float32 or brains uint16 [rows · columns]. The first strip of rows that holds
    NaN or Inf, or −1; what lies behind it is not written.

    run, tall  columns and rows that share a scale; at the right and lower edges fewer do
    rule       GIVEN … CEIL: whether scales are read, or chosen and written
    mantissa, exponent, largest   of the small float: bits, bits, largest number
    scale      float32 [strips, runs]; of GIVEN and ABSMAX
    powers     uint8 [strips, runs]; of the others
    """
    rows = out.size // columns
    runs = (columns + run - 1) // run
    whole = columns % WIDTH == 0
    direct = whole and brains.size == 0
    room, codes = np.zeros(columns + WIDTH, np.float32), np.empty(columns + WIDTH, np.uint8)
    sizes, steps, limits = np.zeros(runs, np.uint32), np.empty(runs, np.float32), np.full(runs, largest)
    for strip in range((rows + tall - 1) // tall):
        first, last = strip * tall, min(rows, (strip + 1) * tall)
        if rule != GIVEN:
            for g in range(runs):
                sizes[g] = U(0)
            for r in range(first, last):
                source = address(x, r * columns)
                if not direct:
                    _row(x, brains, r * columns, columns, room)
                    source = address(room, 0)
                for g in range(runs):
                    sizes[g] = max(sizes[g], size_of(source + 4 * g * run, min(run, columns - g * run)))
        for g in range(runs):
            if sizes[g] >= INF:
                return strip
            if rule >= FLOOR:
                byte = _power_byte(sizes[g], rule)
                powers[strip, g] = np.uint8(byte)
                steps[g] = _power(byte)
                # From 2^120 on, the value after 240 would be decoded to infinity.
                limits[g] = F(240) if byte >= 247 else largest
            elif rule == ABSMAX:
                steps[g] = scale[strip, g] = _absmax_scale(float_of(sizes[g]), largest)
            else:
                steps[g] = scale[strip, g]
        for r in range(first, last):
            source = address(x, r * columns)
            if not direct:
                if tall > 1 or rule == GIVEN:  # else it still lies there
                    _row(x, brains, r * columns, columns, room)
                source = address(room, 0)
            target = address(out, r * columns) if whole else address(codes, 0)
            for g in range(runs):
                s, limit = steps[g], limits[g]
                for i in range(g * run, min(columns, (g + 1) * run), WIDTH):
                    store_small(target, i, load_from(source, i) / s, limit, mantissa, exponent)
            if not whole:
                copy_run(codes, 0, out, r * columns, columns)
    return -1


@kernel
def decode(values, columns, run, tall, mantissa, exponent, special, scale, powers, out):
    """float32 [rows · columns] of bytes as encode makes them: value · scale. Exactly one of scale and powers is not
    empty. special: see load_small."""
    runs = (columns + run - 1) // run
    few, wide = np.zeros(WIDTH, np.uint8), np.empty(WIDTH, np.float32)
    for r in range(out.size // columns):
        at, strip = r * columns, r // tall
        for g in range(runs):
            s = scale[strip, g] if scale.size else _power(powers[strip, g])
            start, stop = at + g * run, at + min(columns, (g + 1) * run)
            whole = start + (stop - start) // WIDTH * WIDTH
            for i in range(start, whole, WIDTH):
                store_at(out, i, load_small(values, i, mantissa, exponent, special) * s)
            if whole < stop:
                copy_run(values, whole, few, 0, stop - whole)
                store_at(wide, 0, load_small(few, 0, mantissa, exponent, special) * s)
                copy_run(wide, 0, out, whole, stop - whole)


@helper
def _group_steps(scale, at, inverse, steps):
    """Sixteen of NVFP4's steps: E4M3 scales from `at` on, divided by the tensor's."""
    store_at(steps, 0, load_small(scale, at, 3, 4, 0x7F) / inverse)


@kernel
def encode_nvfp4(x, brains, inverse, scale, codes):
    """Codes, two to a byte, uint8 [n / 2], and E4M3 scales, uint8 [n / 16], of n weights in groups of 16; False where
    one is not finite. inverse: the tensor's inv_global_scale, float32."""
    n = x.size + brains.size
    most = WIDTH * WIDTH
    room, places, pairs = np.zeros(most, np.float32), np.zeros(most, np.uint8), np.empty(most // 2, np.uint8)
    sizes, steps, bytes_ = np.zeros(WIDTH, np.float32), np.empty(WIDTH, np.float32), np.empty(WIDTH, np.uint8)
    for at in range(0, n, most):
        here = min(most, n - at)
        source = address(x, at)
        if brains.size:
            widen_row(brains, at, here, room)
            source = address(room, 0)
        found = U(0)
        for g in range(here // WIDTH):
            bits = top_bits(widest(splat(F(0)), load_from(source, g * WIDTH)))
            found = max(found, bits)
            sizes[g] = float_of(bits)
        if found >= INF:
            return False
        size = load_at(sizes, 0)
        raw = at_most(at_least(size / F(6) * inverse, F(2.0**-9)), F(448))
        store_small(address(bytes_, 0), 0, where(size == F(0), F(0.125), raw), F(448), 3, 4)
        _group_steps(bytes_, 0, inverse, steps)
        copy_run(bytes_, 0, scale, at // WIDTH, here // WIDTH)
        for g in range(here // WIDTH):
            v = load_from(source, g * WIDTH) / steps[g]
            # -0 becomes 0; what only rounds to 0 keeps its sign.
            store_small(address(places, 0), g * WIDTH, v + splat(F(0)), F(6), 1, 2)
        for i in range(0, here, 2 * WIDTH):
            pair_nibbles(places, i, pairs, i // 2, False)
        copy_run(pairs, 0, codes, at // 2, here // 2)
    return True


@kernel
def decode_nvfp4(codes, scale, inverse, out):
    """float32 [n] of what encode_nvfp4 makes."""
    most = WIDTH * WIDTH
    pairs, places = np.zeros(most // 2, np.uint8), np.empty(most, np.uint8)
    bytes_, steps = np.zeros(WIDTH, np.uint8), np.empty(WIDTH, np.float32)
    for at in range(0, out.size, most):
        here = min(most, out.size - at)
        copy_run(scale, at // WIDTH, bytes_, 0, here // WIDTH)
        copy_run(codes, at // 2, pairs, 0, here // 2)
        _group_steps(bytes_, 0, inverse, steps)
        for i in range(0, here, 2 * WIDTH):
            part_nibbles(pairs, i // 2, places, i, False)
        for g in range(here // WIDTH):
            store_at(out, at + g * WIDTH, load_small(places, g * WIDTH, 1, 2, 0x80) * steps[g])
