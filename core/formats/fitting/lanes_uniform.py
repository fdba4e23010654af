"""Evenly spaced levels on one CPU core: ranges of groups, codes packed straight into words, and back. Bit-equal to the
torch code in core/formats/uniform.py, whose docstring explains the format."""

from __future__ import annotations

import numpy as np

from core.formats.fitting.compiled import helper, kernel
from core.formats.fitting.lanes_bits import MAGNITUDE, float_of

F = np.float32
U64 = np.uint64
RUN = 32


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


@helper
def _codes(x, scale, zero, bottom, top, codes):
    for i in range(x.size):
        q = max(bottom, min(top, np.rint(x[i] / scale + zero)))
        codes[i] = np.uint8(np.int32(q - bottom))


@helper
def _codes_by_column(x, scale, zero, bottom, top, codes):
    """scale, zero  float32 like x; zero of size 0 for none"""
    if zero.size:
        for i in range(x.size):
            q = max(bottom, min(top, np.rint(x[i] / scale[i] + zero[i])))
            codes[i] = np.uint8(np.int32(q - bottom))
    else:
        for i in range(x.size):
            q = max(bottom, min(top, np.rint(x[i] / scale[i])))
            codes[i] = np.uint8(np.int32(q - bottom))


@helper
def _values(codes, scale, zero, out):
    for i in range(codes.size):
        out[i] = (F(codes[i]) + zero) * scale


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


@helper
def _pack_row(codes, width, words):
    """Little-endian stream of codes uint8 into words int32; codes beyond the columns are 0."""
    if width == 8:
        for k in range(words.size):
            word = np.uint32(0)
            for i in range(4):
                word |= np.uint32(codes[k * 4 + i]) << np.uint32(8 * i)
            words[k] = np.int32(word)
    elif width == 4:
        for k in range(words.size):
            word = np.uint32(0)
            for i in range(8):
                word |= np.uint32(codes[k * 8 + i]) << np.uint32(4 * i)
            words[k] = np.int32(word)
    else:
        held, n, k = U64(0), U64(0), 0
        for i in range(codes.size):
            held |= U64(codes[i]) << n
            n += U64(width)
            if n >= U64(32):
                words[k] = np.int32(np.uint32(held & U64(0xFFFFFFFF)))
                held >>= U64(32)
                n -= U64(32)
                k += 1
                if k == words.size:
                    break
        if k < words.size:
            words[k] = np.int32(np.uint32(held & U64(0xFFFFFFFF)))


@kernel
def encode(x, scale, zero, group, width, words):
    """Words int32 [rows, words of a row] of x float32 [rows, columns].

    scale  float32 [rows, groups] or, where group is 0, [1, columns]
    zero   float32 like scale, or [0, 0]
    """
    rows, columns = x.shape
    codes = np.zeros((columns + RUN - 1) // RUN * RUN, np.uint8)
    half = 1 << (width - 1)
    bottom, top = F(-half), F(half - 1)
    shifted = zero.size > 0
    for r in range(rows):
        row = x[r]
        if group:
            for g in range(scale.shape[1]):
                s = scale[r, g]
                z = zero[r, g] if shifted else F(0)
                a, b = g * group, (g + 1) * group
                _codes(row[a:b], s, z, bottom, top, codes[a:b])
        else:
            _codes_by_column(row, scale[0], zero[0] if shifted else scale[0, :0], bottom, top, codes)
        _pack_row(codes, width, words[r])
    return 0


@helper
def _unpack_row(words, width, codes):
    """The first codes.size codes of a row of words."""
    if width == 8:
        for k in range(codes.size // 4):
            word = np.uint32(words[k])
            for i in range(4):
                codes[k * 4 + i] = np.uint8(word >> np.uint32(8 * i))
        whole = codes.size // 4 * 4
    elif width == 4:
        for k in range(codes.size // 8):
            word = np.uint32(words[k])
            for i in range(8):
                codes[k * 8 + i] = np.uint8(word >> np.uint32(4 * i) & np.uint32(15))
        whole = codes.size // 8 * 8
    else:
        whole = 0
    mask = U64((1 << width) - 1)
    for i in range(whole, codes.size):
        bit = i * width
        k, shift = bit >> 5, U64(bit & 31)
        both = U64(np.uint32(words[k]))
        if shift + U64(width) > U64(32):
            both |= U64(np.uint32(words[k + 1])) << U64(32)
        codes[i] = np.uint8(both >> shift & mask)


@kernel
def decode(words, scale, zero, group, width, out):
    """float32 [rows, columns] of words int32; scale and zero as in encode."""
    rows, columns = out.shape
    codes = np.empty(columns, np.uint8)
    bottom = F(-(1 << (width - 1)))
    shifted = zero.size > 0
    for r in range(rows):
        _unpack_row(words[r], width, codes)
        row = out[r]
        if group:
            for g in range(scale.shape[1]):
                s = scale[r, g]
                z = bottom - (zero[r, g] if shifted else F(0))
                a, b = g * group, (g + 1) * group
                _values(codes[a:b], s, z, row[a:b])
        else:
            for i in range(columns):
                row[i] = (F(codes[i]) + (bottom - (zero[0, i] if shifted else F(0)))) * scale[0, i]
