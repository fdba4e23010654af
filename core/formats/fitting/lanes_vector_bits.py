"""What lanes (lanes_vector.py) need of a float's bits: rounding to 16-bit floats, and the power of two of a number. The
same integer operations on every processor, whether it has instructions for halves or not."""

from __future__ import annotations

import sys
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from core.formats.fitting.lanes_room import place as _place
from core.formats.fitting.lanes_vector import (
    _BYTES,
    _FLOATS,
    _INDEX,
    _INTS,
    WIDTH,
    _is_table,
    _primitive,
    _spread,
    lanes,
)

# Bits of the smallest normal half, 2^-14.
_NORMAL = 0x38800000


def _all(value: int) -> Any:
    return ir.Constant(_INTS, [value] * WIDTH)


def _number(builder: Any, value: float) -> Any:
    return _spread(builder, ir.Constant(ir.FloatType(), value))


@_primitive
def halved(typing: Any, value: Any) -> Any:
    """Every number rounded to a half, to nearest even; from 65520 on it is beyond 65504, infinite or NaN stays that."""
    if value != lanes:
        return None

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        bits = builder.bitcast(args[0], _INTS)
        size, sign = builder.and_(bits, _all(0x7FFFFFFF)), builder.and_(bits, _all(-0x80000000))
        odd = builder.and_(builder.lshr(size, _all(13)), _all(1))
        normal = builder.and_(builder.add(builder.add(size, _all(0xFFF)), odd), _all(~0x1FFF))
        # Below, one addition rounds to multiples of 2^-24.
        half = _number(builder, 0.5)
        small = builder.fsub(builder.fadd(builder.bitcast(size, _FLOATS), half), half)
        small = builder.bitcast(small, _INTS)
        # The largest NaN would wrap around.
        large = builder.icmp_unsigned(">=", size, _all(0x7F800000))
        result = builder.select(builder.icmp_unsigned("<", size, _all(_NORMAL)), small, normal)
        result = builder.select(large, size, result)
        return builder.bitcast(builder.or_(result, sign), _FLOATS)

    return lanes(value), lower


@_primitive
def store_halves(typing: Any, array: Any, at: Any, apart: Any, value: Any) -> Any:
    """Numbers that halves hold exactly, as sixteen of them, the low byte first, in a uint8 array: the first one from
    element `at` on, every other `apart` elements further."""
    if not _is_table(array, types.uint8) or value != lanes:
        return None

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        first, apart = (context.cast(builder, args[i], sig.args[i], types.intp) for i in (1, 2))
        bits = builder.bitcast(args[3], _INTS)
        size = builder.and_(bits, _all(0x7FFFFFFF))
        sign = builder.and_(builder.lshr(bits, _all(16)), _all(0x8000))
        normal = builder.sub(builder.lshr(size, _all(13)), _all(112 << 10))
        small = builder.fptosi(builder.fmul(builder.bitcast(size, _FLOATS), _number(builder, 2.0**24)), _INTS)
        few = builder.select(builder.icmp_unsigned("<", size, _all(_NORMAL)), small, normal)
        few = builder.or_(few, sign)
        if sys.byteorder == "big":
            few = builder.or_(builder.shl(few, _all(8)), builder.lshr(few, _all(8)))
        few = builder.trunc(few, ir.VectorType(ir.IntType(16), WIDTH))
        for j in range(WIDTH):
            place = builder.add(first, builder.mul(apart, ir.Constant(apart.type, j)))
            half = builder.extract_element(few, ir.Constant(_INDEX, j))
            builder.store(half, _place(context, builder, sig.args[0], args[0], place, half.type), align=1)
        return context.get_dummy_value()

    return types.void(array, at, apart, value), lower


@_primitive
def fetch(typing: Any, array: Any, at: Any) -> Any:
    """Asks for the cache line of element `at` of a float32 array, which may lie beyond its end, to be read soon."""
    if not _is_table(array):
        return None

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        i = context.cast(builder, args[1], sig.args[1], types.intp)
        place = _place(context, builder, sig.args[0], args[0], i, ir.IntType(8))
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), (place.type, number, number, number))
        call = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        builder.call(call, (place, *(ir.Constant(number, v) for v in (0, 3, 1))))
        return context.get_dummy_value()

    return types.void(array, at), lower


@_primitive
def store_fives(typing: Any, source: Any, start: Any, array: Any, at: Any) -> Any:
    """32 codes of five bits, a byte each, as 20 bytes: the fifth bits, then code i and code i + 16 in every byte."""
    if not _is_table(source, types.uint8) or not _is_table(array, types.uint8):
        return None
    count = ir.VectorType(ir.IntType(8), 2 * WIDTH)

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        a, b = (context.cast(builder, args[i], sig.args[i], types.intp) for i in (1, 3))
        codes = builder.load(_place(context, builder, sig.args[0], args[0], a, count), align=1)
        flags = builder.icmp_unsigned(">=", codes, ir.Constant(count, [16] * 2 * WIDTH))
        number = builder.bitcast(flags, ir.IntType(32))
        for k in range(4):
            byte = builder.trunc(builder.lshr(number, ir.Constant(number.type, 8 * k)), ir.IntType(8))
            to = builder.add(b, ir.Constant(b.type, k))
            builder.store(byte, _place(context, builder, sig.args[2], args[2], to, byte.type), align=1)
        low, high = (
            builder.shuffle_vector(codes, codes, ir.Constant(_INTS, list(range(k, k + WIDTH)))) for k in (0, WIDTH)
        )
        low = builder.and_(low, ir.Constant(_BYTES, [15] * WIDTH))
        both = builder.or_(low, builder.shl(high, ir.Constant(_BYTES, [4] * WIDTH)))
        to = builder.add(b, ir.Constant(b.type, 4))
        builder.store(both, _place(context, builder, sig.args[2], args[2], to, _BYTES), align=1)
        return context.get_dummy_value()

    return types.void(source, start, array, at), lower


@_primitive
def power_of(typing: Any, value: Any) -> Any:
    """The largest power of two that is not above a number's magnitude; 0 for 0 and numbers below 2^-126."""
    if value != lanes:
        return None

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        bits = builder.and_(builder.bitcast(args[0], _INTS), _all(0x7F800000))
        return builder.bitcast(bits, _FLOATS)

    return lanes(value), lower
