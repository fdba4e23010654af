"""What lanes (lanes_vector.py) need where rows are read once and written once: loads of 16-bit brain floats, largest
and smallest numbers found on their bits, bytes, nibbles and copies.

Comparing bits as integers finds NaN and Inf on the way: they are larger than every number, where a comparison of floats
passes NaN by.

Where a row lies in one array or another, loops take its address: with an array that is one of two, numba counts
references at every call, which takes longer than to look at 32 weights. Who takes an address keeps the array.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from core.formats.fitting.compiled import helper
from core.formats.fitting.lanes_bits import float_of
from core.formats.fitting.lanes_vector import (
    _BYTES,
    _FLOATS,
    _INTS,
    WIDTH,
    _is_table,
    _place,
    _primitive,
    _spread,
    lanes,
    splat,
    store_at,
)
from core.formats.fitting.lanes_vector_bits import _all

F = np.float32
U = np.uint32
_BITS = ir.IntType(32)


def narrow(builder: Any, values: Any) -> Any:
    """Sixteen integers as bytes. They are frozen first, which LLVM does not look through: what led to them is done with
    32 bits, as written."""
    frozen = ir.Instruction(builder.block, values.type, "freeze", (values,))
    builder._insert(frozen)
    return builder.trunc(frozen, _BYTES)


@_primitive
def address(typing: Any, array: Any, at: Any) -> Any:
    """Where element `at` of a contiguous array lies, a number."""
    if not _is_table(array, getattr(array, "dtype", None)):
        return None

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        i = context.cast(builder, args[1], sig.args[1], types.intp)
        element = context.get_data_type(sig.args[0].dtype)
        return builder.ptrtoint(_place(context, builder, sig.args[0], args[0], i, element), i.type)

    return types.intp(array, at), lower


def spot(context: Any, builder: Any, at: Any, kind: Any, further: Any, vector: Any) -> Any:
    """Pointer to a vector so many elements of its own behind an address."""
    i = context.cast(builder, further, kind, types.intp)
    element = getattr(vector, "element", vector)
    first = builder.inttoptr(at, element.as_pointer())
    return builder.bitcast(builder.gep(first, [i]), vector.as_pointer())


@_primitive
def load_from(typing: Any, at: Any, further: Any) -> Any:
    """Sixteen float32, the first one so many behind an address."""
    if at != types.intp:
        return None

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load(spot(context, builder, args[0], sig.args[1], args[1], _FLOATS), align=4)

    return lanes(at, further), lower


@_primitive
def bits_from(typing: Any, at: Any, further: Any) -> Any:
    """Bits of the float32 so many behind an address: uint32."""
    if at != types.intp:
        return None

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load(spot(context, builder, args[0], sig.args[1], args[1], _BITS), align=4)

    return types.uint32(at, further), lower


@_primitive
def load_brains(typing: Any, array: Any, at: Any) -> Any:
    """Sixteen consecutive bf16, an array of uint16, as float32."""
    if not _is_table(array, types.uint16):
        return None

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        i = context.cast(builder, args[1], sig.args[1], types.intp)
        halves = ir.VectorType(ir.IntType(16), WIDTH)
        few = builder.load(_place(context, builder, sig.args[0], args[0], i, halves), align=2)
        return builder.bitcast(builder.shl(builder.zext(few, _INTS), _all(16)), _FLOATS)

    return lanes(array, at), lower


def _bytes(widen: str) -> Any:
    def typing(context: Any, array: Any, at: Any) -> Any:
        if not _is_table(array, types.uint8):
            return None

        def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            i = context.cast(builder, args[1], sig.args[1], types.intp)
            few = builder.load(_place(context, builder, sig.args[0], args[0], i, _BYTES), align=1)
            return builder.sitofp(getattr(builder, widen)(few, _INTS), _FLOATS)

        return lanes(array, at), lower

    return _primitive(typing)


load_bytes: Any = _bytes("zext")  # sixteen consecutive bytes of a uint8 array as float32
load_signed: Any = _bytes("sext")  # likewise, as int8


def _larger(sign: str, unsigned: bool, sized: bool) -> Any:
    def typing(context: Any, most: Any, value: Any) -> Any:
        if most != lanes or value != lanes:
            return None

        def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            a, b = (builder.bitcast(v, _INTS) for v in args)
            b = builder.and_(b, _all(0x7FFFFFFF)) if sized else b
            chosen = (builder.icmp_unsigned if unsigned else builder.icmp_signed)(sign, a, b)
            return builder.bitcast(builder.select(chosen, a, b), _FLOATS)

        return lanes(most, value), lower

    return _primitive(typing)


# widest(most, v): the larger one of most, which is not negative, and v's magnitude. NaN counts as more than infinity.
widest: Any = _larger(">", True, True)
# highest(most, v): the larger one; most is not negative, -NaN counts as nothing.
highest: Any = _larger(">", False, False)
# deepest(most, v): of two with a negative one among them that of the largest magnitude, -NaN first; of two others the
# larger one.
deepest: Any = _larger(">", True, False)


def _reduced(name: str) -> Any:
    def typing(context: Any, value: Any) -> Any:
        if value != lanes:
            return None

        def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            kind = ir.FunctionType(_BITS, (_INTS,))
            call = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.{name}.v{WIDTH}i32")
            return builder.call(call, (builder.bitcast(args[0], _INTS),))

        return types.uint32(value), lower

    return _primitive(typing)


# Bits of the largest lane: of what widest and highest have gathered, and of what deepest has.
top_bits: Any = _reduced("smax")
deep_bits: Any = _reduced("umax")


@_primitive
def copy_run(typing: Any, source: Any, at: Any, target: Any, to: Any, n: Any) -> Any:
    """n elements of a flat array from `at` on, into another of the same type from `to` on; they do not overlap."""
    if not (_is_table(source, target.dtype) and _is_table(target, target.dtype)):
        return None

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        a, b, n = (context.cast(builder, args[i], sig.args[i], types.intp) for i in (1, 3, 4))
        element = context.get_data_type(sig.args[0].dtype)
        here = _place(context, builder, sig.args[0], args[0], a, element)
        there = _place(context, builder, sig.args[2], args[2], b, element)
        cgutils.raw_memcpy(builder, there, here, n, context.get_abi_sizeof(element), align=1)
        return context.get_dummy_value()

    return types.void(source, at, target, to, n), lower


@_primitive
def pair_nibbles(typing: Any, source: Any, at: Any, target: Any, to: Any, swapped: Any) -> Any:
    """32 codes below 16, a byte each, as 16 bytes: the first of a pair in the low nibble or, swapped, the high one."""
    if not (_is_table(source, types.uint8) and _is_table(target, types.uint8) and swapped == types.boolean):
        return None
    shorts = ir.VectorType(ir.IntType(16), WIDTH)

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        a, b = (context.cast(builder, args[i], sig.args[i], types.intp) for i in (1, 3))
        two = builder.load(_place(context, builder, sig.args[0], args[0], a, shorts), align=1)
        low, high = builder.and_(two, _shorts(15)), builder.lshr(two, _shorts(8))
        plain = builder.or_(low, builder.shl(high, _shorts(4)))
        other = builder.or_(builder.shl(low, _shorts(4)), high)
        few = builder.trunc(builder.select(args[4], other, plain), _BYTES)
        builder.store(few, _place(context, builder, sig.args[2], args[2], b, _BYTES), align=1)
        return context.get_dummy_value()

    return types.void(source, at, target, to, swapped), lower


@_primitive
def part_nibbles(typing: Any, source: Any, at: Any, target: Any, to: Any, swapped: Any) -> Any:
    """The inverse of pair_nibbles: 16 bytes become 32."""
    if not (_is_table(source, types.uint8) and _is_table(target, types.uint8) and swapped == types.boolean):
        return None
    shorts = ir.VectorType(ir.IntType(16), WIDTH)

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        a, b = (context.cast(builder, args[i], sig.args[i], types.intp) for i in (1, 3))
        few = builder.load(_place(context, builder, sig.args[0], args[0], a, _BYTES), align=1)
        wide = builder.zext(few, shorts)
        low, high = builder.and_(wide, _shorts(15)), builder.lshr(wide, _shorts(4))
        plain = builder.or_(low, builder.shl(high, _shorts(8)))
        other = builder.or_(high, builder.shl(low, _shorts(8)))
        two = builder.select(args[4], other, plain)
        builder.store(two, _place(context, builder, sig.args[2], args[2], b, shorts), align=1)
        return context.get_dummy_value()

    return types.void(source, at, target, to, swapped), lower


def _shorts(value: int) -> Any:
    return ir.Constant(ir.VectorType(ir.IntType(16), WIDTH), [value] * WIDTH)


def _eight(stores: bool) -> Any:
    word = ir.IntType(64)

    def typing(context: Any, array: Any, at: Any, *value: Any) -> Any:
        if not _is_table(array, types.uint8):
            return None

        def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            i = context.cast(builder, args[1], sig.args[1], types.intp)
            place = _place(context, builder, sig.args[0], args[0], i, word)
            if not stores:
                return builder.load(place, align=1)
            builder.store(args[2], place, align=1)
            return context.get_dummy_value()

        return (types.void(array, at, types.uint64) if stores else types.uint64(array, at)), lower

    return typing


def _load_eight(typing: Any, array: Any, at: Any) -> Any:
    return _eight(False)(typing, array, at)


def _store_eight(typing: Any, array: Any, at: Any, value: Any) -> Any:
    return _eight(True)(typing, array, at, value)


load_eight: Any = _primitive(_load_eight)  # eight bytes of a uint8 array as one uint64
store_eight: Any = _primitive(_store_eight)  # and back


@_primitive
def store_places(typing: Any, array: Any, at: Any, bounds: Any, value: Any) -> Any:
    """How many of fifteen bounds, a float32 array, lie below each number: sixteen bytes of a uint8 array from `at`."""
    if not (_is_table(array, types.uint8) and _is_table(bounds)) or value != lanes:
        return None

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        i = context.cast(builder, args[1], sig.args[1], types.intp)
        found = _all(0)
        for k in range(WIDTH - 1):
            place = _place(context, builder, sig.args[2], args[2], ir.Constant(i.type, k), ir.FloatType())
            above = builder.fcmp_ordered(">", args[3], _spread(builder, builder.load(place)))
            found = builder.sub(found, builder.sext(above, _INTS))
        few = narrow(builder, found)  # else LLVM counts in bytes, and packs the flags of every comparison for it
        builder.store(few, _place(context, builder, sig.args[0], args[0], i, _BYTES), align=1)
        return context.get_dummy_value()

    return types.void(array, at, bounds, value), lower


@_primitive
def brained(typing: Any, value: Any) -> Any:
    """Every number, none of them NaN, rounded to a bf16, to nearest even."""
    if value != lanes:
        return None

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        bits = builder.bitcast(args[0], _INTS)
        odd = builder.and_(builder.lshr(bits, _all(16)), _all(1))
        moved = builder.add(builder.add(bits, _all(0x7FFF)), odd)
        return builder.bitcast(builder.and_(moved, _all(-0x10000)), _FLOATS)

    return lanes(value), lower


@helper
def widen_row(brains, at, columns, room):
    """columns bf16 from `at` on as float32, from the start of room on."""
    whole = columns // WIDTH * WIDTH
    for i in range(0, whole, WIDTH):
        store_at(room, i, load_brains(brains, at + i))
    for i in range(whole, columns):
        room[i] = float_of(U(U(brains[at + i]) << U(16)))


@helper
def size_of(x, count):
    """Bits of the largest magnitude among `count` float32 at an address, uint32; those of Inf or more if a number is
    not finite."""
    most = widest(splat(F(0)), load_from(x, 0)) if count >= WIDTH else splat(F(0))
    if count == 2 * WIDTH:
        return top_bits(widest(most, load_from(x, WIDTH)))
    whole = count // WIDTH * WIDTH
    for i in range(WIDTH, whole, WIDTH):
        most = widest(most, load_from(x, i))
    found = top_bits(most)
    for i in range(whole, count):
        found = max(found, U(bits_from(x, i) & U(0x7FFFFFFF)))
    return found


@helper
def ends_of(x, count):
    """The smallest of 0 and `count` float32 at an address, and the largest, as bits, uint32; one is NaN or Inf where a
    number is not finite."""
    high, low = splat(F(0)), splat(F(0))
    whole = count // WIDTH * WIDTH
    for i in range(0, whole, WIDTH):
        v = load_from(x, i)
        high, low = highest(high, v), deepest(low, v)
    top, bottom = top_bits(high), deep_bits(low)
    for i in range(whole, count):
        b = bits_from(x, i)
        bottom = max(bottom, b)
        if b < U(0x80000000):
            top = max(top, b)
    return (bottom if bottom >= U(0x80000000) else U(0)), top
