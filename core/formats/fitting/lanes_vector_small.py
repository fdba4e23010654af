"""Small floats on lanes (lanes_vector.py), a byte each: E4M3, E5M2 and E2M1, told apart by their bits of mantissa and
exponent. Integer operations throughout, the same on every processor."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from core.formats.fitting.lanes_vector import (
    _BYTES,
    _FLOATS,
    _INDEX,
    _INTS,
    WIDTH,
    _is_table,
    _place,
    _primitive,
    _spread,
    lanes,
)
from core.formats.fitting.lanes_vector_bits import _all
from core.formats.fitting.lanes_vector_rows import narrow, spot


def _each(builder: Any, value: Any) -> Any:
    """An integer in every lane."""
    one = builder.insert_element(ir.Constant(_INTS, ir.Undefined), value, ir.Constant(_INDEX, 0))
    return builder.shuffle_vector(one, ir.Constant(_INTS, ir.Undefined), ir.Constant(_INTS, [0] * WIDTH))


class _Kind:
    """What follows from a number of bits, as instructions; 23 bits of mantissa and a bias of 127 are float32's."""

    def __init__(self, builder: Any, mantissa: Any, exponent: Any) -> None:
        def number(value: int) -> Any:
            return ir.Constant(_INDEX, value)

        shift = builder.sub(number(23), mantissa)
        bias = builder.sub(builder.shl(number(1), builder.sub(exponent, number(1))), number(1))
        apart = builder.sub(number(127), bias)
        self.shift = _each(builder, shift)
        self.apart = _each(builder, builder.shl(apart, number(23)))
        # The smallest normal number, and one whose last bit is worth the smallest subnormal.
        self.normal = _each(builder, builder.shl(builder.add(apart, number(1)), number(23)))
        self.magic = _each(builder, builder.shl(builder.add(builder.add(apart, shift), number(1)), number(23)))
        half = builder.sub(builder.shl(number(1), builder.sub(shift, number(1))), number(1))
        self.half = _each(builder, half)
        # A float32's sign becomes this format's.
        self.down = _each(builder, builder.sub(number(31), builder.add(mantissa, exponent)))


@_primitive
def store_small(typing: Any, at: Any, further: Any, value: Any, limit: Any, mantissa: Any, exponent: Any) -> Any:
    """Sixteen numbers, none of them NaN, as bytes, the first one so many behind an address: cut off at ±limit, float32,
    and rounded to nearest even. Zeros keep their sign."""
    if at != types.intp or value != lanes or limit != types.float32:
        return None

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = _Kind(builder, *(context.cast(builder, args[k], sig.args[k], types.int32) for k in (4, 5)))
        bits = builder.bitcast(args[2], _INTS)
        size, sign = builder.and_(bits, _all(0x7FFFFFFF)), builder.and_(bits, _all(-0x80000000))
        most = builder.bitcast(_spread(builder, args[3]), _INTS)
        size = builder.select(builder.icmp_unsigned("<", size, most), size, most)
        odd = builder.and_(builder.lshr(size, kind.shift), _all(1))
        normal = builder.add(builder.sub(size, kind.apart), builder.add(kind.half, odd))
        normal = builder.lshr(normal, kind.shift)
        magic = builder.bitcast(kind.magic, _FLOATS)
        small = builder.fadd(builder.bitcast(size, _FLOATS), magic)
        small = builder.sub(builder.bitcast(small, _INTS), kind.magic)
        few = builder.select(builder.icmp_signed("<", size, kind.normal), small, normal)
        few = builder.or_(few, builder.lshr(sign, kind.down))
        few = narrow(builder, few)  # else LLVM selects among bytes, and packs both choices and the flags for it
        builder.store(few, spot(context, builder, args[0], sig.args[1], args[1], _BYTES), align=1)
        return context.get_dummy_value()

    return types.void(at, further, value, limit, mantissa, exponent), lower


@_primitive
def load_small(typing: Any, array: Any, at: Any, mantissa: Any, exponent: Any, special: Any) -> Any:
    """Sixteen numbers of a uint8 array from `at` on. From the byte `special` on, the sign left out, they are infinite
    or NaN as float32 has it."""
    if not _is_table(array, types.uint8):
        return None

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        i = context.cast(builder, args[1], sig.args[1], types.intp)
        m, e, s = (context.cast(builder, args[k], sig.args[k], types.int32) for k in (2, 3, 4))
        kind = _Kind(builder, m, e)
        few = builder.load(_place(context, builder, sig.args[0], args[0], i, _BYTES), align=1)
        bits = builder.shl(builder.zext(few, _INTS), kind.shift)
        # The sign has come to lie above the exponent, float32's is further up.
        place = _each(builder, builder.shl(ir.Constant(_INDEX, 1), builder.add(ir.Constant(_INDEX, 23), e)))
        up = _each(builder, builder.sub(ir.Constant(_INDEX, 8), e))
        sign = builder.shl(builder.and_(bits, place), up)
        size = builder.and_(bits, builder.sub(place, _all(1)))
        normal = builder.add(size, kind.apart)
        least = builder.bitcast(kind.normal, _FLOATS)
        small = builder.fsub(builder.bitcast(builder.or_(size, kind.normal), _FLOATS), least)
        small = builder.bitcast(small, _INTS)
        first = _each(builder, builder.shl(ir.Constant(_INDEX, 1), ir.Constant(_INDEX, 23)))
        value = builder.select(builder.icmp_signed("<", size, first), small, normal)
        beyond = builder.icmp_signed(">=", size, builder.shl(_each(builder, s), kind.shift))
        value = builder.select(beyond, builder.or_(value, _all(0x7F800000)), value)
        return builder.bitcast(builder.or_(value, sign), _FLOATS)

    return lanes(array, at, mantissa, exponent, special), lower
