"""Blocks of IQ2 and IQ3 as bytes, and back into lanes: what exact searches write and effort `best` goes on from.

`put`: (to uint8 [bytes of a block], h uint16 (d as a half), levels int32 [groups], a, kept, signs), groups a, a + 1 …
of kept int16 [runs of a group, W] (points) and signs uint8 [eights of a group, W].
`take`: (data uint8 [bytes of a block], a, scale float32 [W], kept, signs), the inverse; d is read by half_at(data, 0).
"""

from __future__ import annotations

import numpy as np

from core.formats.fitting.compiled import helper
from core.formats.fitting.lanes_bits import put_half

F = np.float32
U8 = np.uint8


@helper
def _even(seven):
    """Eight sign bits of seven: the last makes their number even."""
    parity = seven ^ seven >> 4
    parity ^= parity >> 2
    return seven | ((parity ^ parity >> 1) & 1) << 7


@helper
def _put_word(to, at, word):
    for k in range(4):
        to[at + k] = U8(word >> np.uint32(8 * k) & np.uint32(255))


@helper
def _packed(level, a, signs):
    """Four times seven signs and a level in 32 bits."""
    packed = np.uint32(level) << np.uint32(28)
    for k in range(4):
        packed |= np.uint32(signs[k, a] & U8(127)) << np.uint32(7 * k)
    return packed


@helper
def _unpack(data, at, a, scale, signs):
    """The inverse, from four bytes."""
    packed = np.int64(0)
    for k in range(4):
        packed |= np.int64(data[at + k]) << 8 * k
    for k in range(4):
        signs[k, a] = U8(_even(packed >> 7 * k & 127))
    scale[a] = F(packed >> 28)


@helper
def _put_levels(to, at, levels):
    for g in range(levels.size // 2):
        to[at + g] = U8(levels[2 * g] | levels[2 * g + 1] << 4)


@helper
def _take_levels(data, at, a, count, scale):
    for g in range(count):
        scale[a + g] = F(np.int32(data[at + g // 2]) >> 4 * (g % 2) & 15)


@helper
def put_iq2_xxs(to, h, levels, a, kept, signs):
    put_half(to, 0, h)
    for g in range(8):
        for k in range(4):
            to[2 + 8 * g + k] = U8(kept[k, a + g])
        _put_word(to, 6 + 8 * g, _packed(levels[g], a + g, signs))


@helper
def take_iq2_xxs(data, a, scale, kept, signs):
    for g in range(8):
        for k in range(4):
            kept[k, a + g] = np.int16(data[2 + 8 * g + k])
        _unpack(data, 6 + 8 * g, a + g, scale, signs)


@helper
def put_iq2_xs(to, h, levels, a, kept, signs):
    put_half(to, 0, h)
    for g in range(16):
        for k in range(2):
            word = np.int32(kept[k, a + g]) | np.int32(signs[k, a + g] & U8(127)) << 9
            to[2 + 4 * g + 2 * k] = U8(word & 255)
            to[3 + 4 * g + 2 * k] = U8(word >> 8)
    _put_levels(to, 66, levels)


@helper
def take_iq2_xs(data, a, scale, kept, signs):
    for g in range(16):
        for k in range(2):
            word = np.int32(data[2 + 4 * g + 2 * k]) | np.int32(data[3 + 4 * g + 2 * k]) << 8
            kept[k, a + g] = np.int16(word & 511)
            signs[k, a + g] = U8(_even(word >> 9))
    _take_levels(data, 66, a, 16, scale)


@helper
def put_iq2_s(to, h, levels, a, kept, signs):
    put_half(to, 0, h)
    for g in range(8):
        high = np.int32(0)
        for k in range(4):
            lane, at = a + 2 * g + k // 2, 4 * g + k
            number = np.int32(kept[k % 2, lane])
            to[2 + at] = U8(number & 255)
            to[34 + at] = signs[k % 2, lane]
            high |= number >> 8 << 2 * k
        to[66 + g] = U8(high)
    _put_levels(to, 74, levels)


@helper
def take_iq2_s(data, a, scale, kept, signs):
    for g in range(16):
        for k in range(2):
            at = 2 * g + k
            high = np.int32(data[66 + at // 4]) >> 2 * (at % 4) & 3
            kept[k, a + g] = np.int16(np.int32(data[2 + at]) | high << 8)
            signs[k, a + g] = data[34 + at]
    _take_levels(data, 74, a, 16, scale)


@helper
def put_iq3_xxs(to, h, levels, a, kept, signs):
    put_half(to, 0, h)
    for g in range(8):
        for k in range(8):
            to[2 + 8 * g + k] = U8(kept[k, a + g])
        _put_word(to, 66 + 4 * g, _packed(levels[g], a + g, signs))


@helper
def take_iq3_xxs(data, a, scale, kept, signs):
    for g in range(8):
        for k in range(8):
            kept[k, a + g] = np.int16(data[2 + 8 * g + k])
        _unpack(data, 66 + 4 * g, a + g, scale, signs)


@helper
def put_iq3_s(to, h, levels, a, kept, signs):
    put_half(to, 0, h)
    for g in range(8):
        ninth = np.int32(0)
        for k in range(8):
            number = np.int32(kept[k, a + g])
            to[2 + 8 * g + k] = U8(number & 255)
            ninth |= number >> 8 << k
        to[66 + g] = U8(ninth)
        for k in range(4):
            to[74 + 4 * g + k] = signs[k, a + g]
    _put_levels(to, 106, levels)


@helper
def take_iq3_s(data, a, scale, kept, signs):
    for g in range(8):
        ninth = np.int32(data[66 + g])
        for k in range(8):
            kept[k, a + g] = np.int16(np.int32(data[2 + 8 * g + k]) | (ninth >> k & 1) << 8)
        for k in range(4):
            signs[k, a + g] = data[74 + 4 * g + k]
    _take_levels(data, 106, a, 8, scale)
