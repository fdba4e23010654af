"""Blocks back to float32 on one CPU core, for the types we write; everything else decodes through core/formats/ggml.

Kernels: (blocks uint8 [count · type size], out float32 [count · block]). Bit-equal to ggml.
"""

from __future__ import annotations

import numpy as np

from core.formats.fitting.compiled import helper, kernel
from core.formats.fitting.lanes_bits import float_of, half_at
from core.formats.fitting.lanes_room import empty
from core.formats.ggml.codebook import LEVELS
from core.formats.ggml.fp4 import DOUBLED

F = np.float32


@kernel
def q4_0(data, out):
    for b in range(out.size // 32):
        at, to = b * 18, b * 32
        d = half_at(data, at)
        for i in range(16):
            out[to + i] = F(np.int32(data[at + 2 + i] & np.uint8(15)) - 8) * d
        for i in range(16):
            out[to + 16 + i] = F(np.int32(data[at + 2 + i] >> np.uint8(4)) - 8) * d


@kernel
def q4_1(data, out):
    for b in range(out.size // 32):
        at, to = b * 20, b * 32
        d, m = half_at(data, at), half_at(data, at + 2)
        for i in range(16):
            out[to + i] = F(data[at + 4 + i] & np.uint8(15)) * d + m
        for i in range(16):
            out[to + 16 + i] = F(data[at + 4 + i] >> np.uint8(4)) * d + m


@helper
def _fifth(data, at, codes):
    """32 codes of 5 bits: fifth bits, then nibbles."""
    for k in range(4):
        bits = data[at + k]
        for i in range(8):
            codes[k * 8 + i] = np.uint8((bits >> np.uint8(i) & np.uint8(1)) << np.uint8(4))
    for i in range(16):
        codes[i] |= data[at + 4 + i] & np.uint8(15)
        codes[i + 16] |= data[at + 4 + i] >> np.uint8(4)


@kernel
def q5_0(data, out):
    codes = empty(np.uint8, 32)
    for b in range(out.size // 32):
        at, to = b * 22, b * 32
        d = half_at(data, at)
        _fifth(data, at + 2, codes)
        for i in range(32):
            out[to + i] = F(np.int32(codes[i]) - 16) * d


@kernel
def q5_1(data, out):
    codes = empty(np.uint8, 32)
    for b in range(out.size // 32):
        at, to = b * 24, b * 32
        d, m = half_at(data, at), half_at(data, at + 2)
        _fifth(data, at + 4, codes)
        for i in range(32):
            out[to + i] = F(codes[i]) * d + m


@kernel
def q8_0(data, out):
    for b in range(out.size // 32):
        at, to = b * 34, b * 32
        d = half_at(data, at)
        for i in range(32):
            out[to + i] = F(np.int8(data[at + 2 + i])) * d


@kernel
def q2_k(data, out):
    for b in range(out.size // 256):
        at, to = b * 84, b * 256
        d, dmin = half_at(data, at + 80), half_at(data, at + 82)
        for k in range(16):
            step = d * F(data[at + k] & np.uint8(15))
            low = dmin * F(data[at + k] >> np.uint8(4))
            # Sub-block k: half k // 8, bits 2·(k % 8 // 2), bytes 16·(k % 2) on.
            source = at + 16 + k // 8 * 32 + k % 2 * 16
            shift = np.uint8(k % 8 // 2 * 2)
            for i in range(16):
                out[to + k * 16 + i] = step * F(data[source + i] >> shift & np.uint8(3)) - low


@kernel
def q3_k(data, out):
    for b in range(out.size // 256):
        at, to = b * 110, b * 256
        d = half_at(data, at + 108)
        for k in range(16):
            low = np.int32(data[at + 96 + k % 8] >> np.uint8(k // 8 * 4) & np.uint8(15))
            high = np.int32(data[at + 104 + k % 4] >> np.uint8(k // 4 * 2) & np.uint8(3))
            step = d * F(np.int32(low + high * 16) - 32)
            source = at + 32 + k // 8 * 32 + k % 2 * 16
            top = at + k % 2 * 16
            shift, bit = np.uint8(k % 8 // 2 * 2), np.uint8(k // 2)
            for i in range(16):
                q = np.int32(data[source + i] >> shift & np.uint8(3))
                h = np.int32(data[top + i] >> bit & np.uint8(1))
                out[to + k * 16 + i] = step * F(np.int32(q + 4 * h) - 4)


@helper
def _six(data, at, k):
    """6-bit scale and min of sub-block k."""
    if k < 4:
        return data[at + k] & np.uint8(63), data[at + 4 + k] & np.uint8(63)
    both = data[at + 4 + k]
    scale = (both & np.uint8(15)) | np.uint8((data[at + k - 4] >> np.uint8(6)) << np.uint8(4))
    low = (both >> np.uint8(4)) | np.uint8((data[at + k] >> np.uint8(6)) << np.uint8(4))
    return np.uint8(scale), np.uint8(low)


@kernel
def q4_k(data, out):
    for b in range(out.size // 256):
        at, to = b * 144, b * 256
        d, dmin = half_at(data, at), half_at(data, at + 2)
        for k in range(8):
            scale, low = _six(data, at + 4, k)
            step, shift = d * F(scale), dmin * F(low)
            source = at + 16 + k // 2 * 32
            nibble = np.uint8(k % 2 * 4)
            for i in range(32):
                out[to + k * 32 + i] = step * F(data[source + i] >> nibble & np.uint8(15)) - shift


@kernel
def q5_k(data, out):
    for b in range(out.size // 256):
        at, to = b * 176, b * 256
        d, dmin = half_at(data, at), half_at(data, at + 2)
        for k in range(8):
            scale, low = _six(data, at + 4, k)
            step, shift = d * F(scale), dmin * F(low)
            source = at + 48 + k // 2 * 32
            nibble, bit = np.uint8(k % 2 * 4), np.uint8(k)
            for i in range(32):
                q = np.int32(data[source + i] >> nibble & np.uint8(15))
                h = np.int32(data[at + 16 + i] >> bit & np.uint8(1))
                out[to + k * 32 + i] = step * F(np.int32(q + 16 * h)) - shift


@kernel
def q6_k(data, out):
    for b in range(out.size // 256):
        at, to = b * 210, b * 256
        d = half_at(data, at + 208)
        for k in range(16):
            step = d * F(np.int8(data[at + 192 + k]))
            # Run of 16 in half k // 8: quarter k % 8 // 2 tells nibble and high bits.
            half, quarter = k // 8, k % 8 // 2
            source = at + half * 64 + quarter % 2 * 32 + k % 2 * 16
            top = at + 128 + half * 32 + k % 2 * 16
            nibble, shift = np.uint8(quarter // 2 * 4), np.uint8(quarter * 2)
            for i in range(16):
                q = np.int32(data[source + i] >> nibble & np.uint8(15))
                h = np.int32(data[top + i] >> shift & np.uint8(3))
                out[to + k * 16 + i] = step * F(np.int32(q + 16 * h) - 32)


@helper
def _sixteen(data, at, step, levels, out):
    """32 values: 16 bytes, low nibbles first."""
    for i in range(16):
        byte = data[at + i]
        out[i] = step * levels[byte & np.uint8(15)]
        out[i + 16] = step * levels[byte >> np.uint8(4)]


@kernel
def iq4_nl(data, out):
    levels = np.array(LEVELS, np.float32)
    for b in range(out.size // 32):
        _sixteen(data, b * 18 + 2, half_at(data, b * 18), levels, out[b * 32 : (b + 1) * 32])


@kernel
def iq4_xs(data, out):
    levels = np.array(LEVELS, np.float32)
    for b in range(out.size // 256):
        at = b * 136
        d = half_at(data, at)
        for k in range(8):
            low = np.int32(data[at + 4 + k // 2] >> np.uint8(k % 2 * 4) & np.uint8(15))
            high = np.int32(data[at + 2 + k // 4] >> np.uint8(k % 4 * 2) & np.uint8(3))
            to = b * 256 + k * 32
            _sixteen(data, at + 8 + k * 16, d * F(np.int32(low + high * 16) - 32), levels, out[to : to + 32])


@kernel
def mxfp4(data, out):
    levels = np.array(DOUBLED, np.float32)
    for b in range(out.size // 32):
        e = np.int64(data[b * 17])
        step = float_of(np.uint32((1 << 21) << e if e < 2 else (e - 1) << 23))
        _sixteen(data, b * 17 + 1, step, levels, out[b * 32 : (b + 1) * 32])
