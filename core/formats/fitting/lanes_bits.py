"""Bit tricks that all lanes share: halves to floats and back, the first number that is not finite, largest and
smallest values by comparing bits as integers (which vectorises, where comparing floats does not)."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from core.formats.fitting.compiled import helper, kernel
from core.formats.fitting.lanes_room import empty, flattened

F = np.float32
U = np.uint32
INF = np.int32(0x7F800000)
MAGNITUDE = np.int32(0x7FFFFFFF)


def _bits_of(context: Any, value: Any) -> Any:
    return types.uint32(types.float32), lambda _c, builder, _s, args: builder.bitcast(args[0], ir.IntType(32))


def _float_of(context: Any, bits: Any) -> Any:
    return types.float32(types.uint32), lambda _c, builder, _s, args: builder.bitcast(args[0], ir.FloatType())


bits_of: Any = intrinsic(_bits_of)  # uint32 bits of a float32
float_of: Any = intrinsic(_float_of)  # float32 with these uint32 bits


@helper
def to_half(x):
    """Bits of x as a half, rounded to nearest even: uint16."""
    b = bits_of(F(x))
    sign = U((b >> U(16)) & U(0x8000))
    size = U(b & U(0x7FFFFFFF))
    if size >= U(0x477FF000):  # rounds to infinity, is infinite, or NaN
        return np.uint16(sign | (U(0x7E00) if size > U(0x7F800000) else U(0x7C00)))
    if size < U(0x38800000):  # subnormal: one addition rounds to multiples of 2^-24
        moved = float_of(size) + F(0.5)
        return np.uint16(sign | U(bits_of(moved) - U(0x3F000000)))
    odd = (size >> U(13)) & U(1)
    return np.uint16(sign | U((size + U(0xFFF) + odd - U(0x38000000)) >> U(13)))


@helper
def from_half(h):
    """float32 of a half's bits."""
    sign = U((U(h) & U(0x8000)) << U(16))
    size = U((U(h) & U(0x7FFF)) << U(13))
    if size >= U(0x0F800000):
        return float_of(U(sign | size | U(0x7F800000)))
    value = float_of(size) * F(2.0**112)
    return float_of(U(bits_of(value) | sign))


@helper
def broken(h):
    """Whether a half's bits are infinite or NaN."""
    return (h & np.uint16(0x7C00)) == np.uint16(0x7C00)


@helper
def put_half(out, at, h):
    out[at] = np.uint8(h & np.uint16(255))
    out[at + 1] = np.uint8(h >> np.uint16(8))


@helper
def half_at(data, at):
    """float32 of the half stored at byte `at`."""
    return from_half(np.uint16(data[at]) | np.uint16(np.uint16(data[at + 1]) << np.uint16(8)))


@kernel
def any_below(bits, limit):
    """Whether a number other than 0 is smaller than a limit: bits int32 [rows, columns] of float32, limit a float32's
    bits."""
    flat, found = flattened(bits), empty(np.int32, 16)
    for j in range(16):
        found[j] = np.int32(0)
    whole = flat.size // 16 * 16
    for i in range(0, whole, 16):
        for j in range(16):
            # Zero wraps around to the largest of all.
            found[j] |= np.int32(np.uint32((flat[i + j] & MAGNITUDE) - np.int32(1)) < np.uint32(limit - np.int32(1)))
    total = np.int32(0)
    for j in range(16):
        total |= found[j]
    for i in range(whole, flat.size):
        total |= np.int32(np.uint32((flat[i] & MAGNITUDE) - np.int32(1)) < np.uint32(limit - np.int32(1)))
    return total != 0


@kernel
def first_bad_rows(bits, limit):
    """First row of int32 [rows, columns] (a float32's bits) with NaN or Inf, and first with bits above limit; or −1."""
    beyond = -1
    high = empty(np.int32, 16)
    for r in range(bits.shape[0]):
        row = bits[r]
        for j in range(16):
            high[j] = np.int32(0)
        whole = row.size // 16 * 16
        for i in range(0, whole, 16):
            for j in range(16):
                high[j] = max(high[j], np.int32(row[i + j] & MAGNITUDE))
        top = np.int32(0)
        for j in range(16):
            top = max(top, high[j])
        for i in range(whole, row.size):
            top = max(top, np.int32(row[i] & MAGNITUDE))
        if top >= INF:
            return r, beyond
        if top > limit and beyond < 0:
            beyond = r
    return -1, beyond
