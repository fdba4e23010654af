"""Sixteen float32 as one value inside kernels: a vector of LLVM's, one register with AVX-512, two with AVX2, four with
SSE or NEON, the same IEEE operations everywhere. A search written with these keeps its sums in registers, which
numba's own vectorised loops (sums in memory between two steps) do not; they are a factor of two to four behind.

Lanes behave like a float in expressions: + − · / and comparisons, with other Lanes or with a float32, which counts for
all sixteen. Comparisons give a Mask, for `where`, `&`, `|` and `any_of`. Tables of lanes are float32 [n, 16],
C-contiguous, best made by `table`; `load(t, i)` is row i. Nothing checks an index.

Rounding: `rint` is to nearest, halves to even; no operation is contracted or reordered. Where a product and a sum shall
be rounded once, `fused` says so.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

from core.formats.fitting.compiled import helper

WIDTH = 16
F = np.float32

_FLOATS = ir.VectorType(ir.FloatType(), WIDTH)
_INTS = ir.VectorType(ir.IntType(32), WIDTH)
_BYTES = ir.VectorType(ir.IntType(8), WIDTH)
_FLAGS = ir.VectorType(ir.IntType(1), WIDTH)
_INDEX = ir.IntType(32)
# Without the signature of intrinsic, which type checkers take for the caller's.
_primitive: Any = intrinsic


class _Lanes(types.Type):
    def __init__(self) -> None:
        super().__init__(name="Lanes")


class _Mask(types.Type):
    def __init__(self) -> None:
        super().__init__(name="Mask")


lanes, mask = _Lanes(), _Mask()


@register_model(_Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _FLOATS)


@register_model(_Mask)
class _MaskModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _FLAGS)


def _spread(builder: Any, value: Any) -> Any:
    """A scalar in every lane."""
    one = builder.insert_element(ir.Constant(_FLOATS, ir.Undefined), value, ir.Constant(_INDEX, 0))
    return builder.shuffle_vector(one, ir.Constant(_FLOATS, ir.Undefined), ir.Constant(_INTS, [0] * WIDTH))


def _wide(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    """An operand as a vector."""
    if kind == lanes:
        return value
    return _spread(builder, context.cast(builder, value, kind, types.float32))


def _operands(args: Any) -> bool:
    return lanes in args and all(a == lanes or a == types.float32 for a in args)


def _arithmetic(op: Any, instruction: str) -> None:
    @infer_global(op)
    class _Typing(AbstractTemplate):  # type: ignore[misc, unused-ignore]
        def generic(self, args: Any, kws: Any) -> Any:
            return signature(lanes, *args) if len(args) == 2 and _operands(args) else None

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        a, b = (_wide(context, builder, k, v) for k, v in zip(sig.args, args, strict=True))
        return getattr(builder, instruction)(a, b)

    for pair in ((lanes, lanes), (lanes, types.float32), (types.float32, lanes)):
        lower_builtin(op, *pair)(lower)


def _comparison(op: Any, sign: str) -> None:
    @infer_global(op)
    class _Typing(AbstractTemplate):  # type: ignore[misc, unused-ignore]
        def generic(self, args: Any, kws: Any) -> Any:
            return signature(mask, *args) if len(args) == 2 and _operands(args) else None

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        a, b = (_wide(context, builder, k, v) for k, v in zip(sig.args, args, strict=True))
        return builder.fcmp_unordered(sign, a, b) if sign == "!=" else builder.fcmp_ordered(sign, a, b)

    for pair in ((lanes, lanes), (lanes, types.float32), (types.float32, lanes)):
        lower_builtin(op, *pair)(lower)


for _op, _name in (
    *((operator.add, "fadd"), (operator.sub, "fsub"), (operator.mul, "fmul"), (operator.truediv, "fdiv")),
    *((operator.iadd, "fadd"), (operator.isub, "fsub"), (operator.imul, "fmul"), (operator.itruediv, "fdiv")),
):
    _arithmetic(_op, _name)
for _op, _name in (
    *((operator.lt, "<"), (operator.le, "<="), (operator.gt, ">"), (operator.ge, ">=")),
    *((operator.eq, "=="), (operator.ne, "!=")),
):
    _comparison(_op, _name)


def _logic(op: Any, instruction: str) -> None:
    @infer_global(op)
    class _Typing(AbstractTemplate):  # type: ignore[misc, unused-ignore]
        def generic(self, args: Any, kws: Any) -> Any:
            return signature(mask, *args) if tuple(args) == (mask, mask) else None

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return getattr(builder, instruction)(*args)

    lower_builtin(op, mask, mask)(lower)


_logic(operator.and_, "and_")
_logic(operator.or_, "or_")


@infer_global(operator.neg)
class _Neg(AbstractTemplate):  # type: ignore[misc, unused-ignore]
    def generic(self, args: Any, kws: Any) -> Any:
        return signature(lanes, *args) if tuple(args) == (lanes,) else None


@lower_builtin(operator.neg, lanes)
def _lower_neg(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    return builder.fneg(args[0])


def _place(context: Any, builder: Any, kind: Any, array: Any, at: Any, vector: Any) -> Any:
    """Pointer to a vector that starts at element `at` of an array."""
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [at]), vector.as_pointer())


def _is_table(kind: Any, dtype: Any = types.float32) -> bool:
    return isinstance(kind, types.Array) and kind.dtype == dtype and kind.layout == "C"


@_primitive
def load_at(typing: Any, array: Any, at: Any) -> Any:
    """Sixteen consecutive float32 of a contiguous array from element `at` on."""
    if not _is_table(array):
        return None

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        i = context.cast(builder, args[1], sig.args[1], types.intp)
        return builder.load(_place(context, builder, sig.args[0], args[0], i, _FLOATS), align=4)

    return lanes(array, at), lower


@_primitive
def store_at(typing: Any, array: Any, at: Any, value: Any) -> Any:
    """The inverse of load_at."""
    if not _is_table(array) or value != lanes:
        return None

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        i = context.cast(builder, args[1], sig.args[1], types.intp)
        builder.store(args[2], _place(context, builder, sig.args[0], args[0], i, _FLOATS), align=4)
        return context.get_dummy_value()

    return types.void(array, at, value), lower


@helper
def load(t, i):
    """Row i of a table."""
    return load_at(t, i * WIDTH)


@helper
def store(t, i, value):
    """Row i of a table becomes value."""
    store_at(t, i * WIDTH, value)


@helper
def table(n):
    """Room for n rows of lanes: float32 [n, 16], not initialised. It starts where a cache line does: no row lies across
    two."""
    room = np.empty((n + 1) * WIDTH, np.float32)
    start = (-(room.ctypes.data // 4)) % WIDTH
    return room[start : start + n * WIDTH].reshape(n, WIDTH)


@helper
def copy(source, at, target, to, n):
    """n elements of a flat array from `at` on, into another from `to` on. An assignment of slices takes seconds to
    compile, for the messages of its errors."""
    for i in range(n):
        target[to + i] = source[at + i]


@_primitive
def splat(typing: Any, value: Any) -> Any:
    """The same float32 in all lanes."""
    if value != types.float32:
        return None
    return lanes(value), lambda _c, builder, _s, args: _spread(builder, args[0])


def _unary(name: str) -> Any:
    def typing(context: Any, value: Any) -> Any:
        if value != lanes:
            return None

        def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            kind = ir.FunctionType(_FLOATS, (_FLOATS,))
            call = cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.v{WIDTH}f32")
            return builder.call(call, args)

        return lanes(value), lower

    return _primitive(typing)


rint: Any = _unary("rint")
root: Any = _unary("sqrt")
magnitude: Any = _unary("fabs")
down: Any = _unary("floor")


@_primitive
def fused(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """a · b + c, rounded once."""
    if lanes not in (a, b, c) or not all(k == lanes or k == types.float32 for k in (a, b, c)):
        return None

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        wide = [_wide(context, builder, k, v) for k, v in zip(sig.args, args, strict=True)]
        kind = ir.FunctionType(_FLOATS, (_FLOATS,) * 3)
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{WIDTH}f32"), wide)

    return lanes(a, b, c), lower


@_primitive
def where(typing: Any, chosen: Any, a: Any, b: Any) -> Any:
    """a where chosen, else b."""
    if chosen != mask or not all(k == lanes or k == types.float32 for k in (a, b)):
        return None

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        one, other = (_wide(context, builder, k, v) for k, v in zip(sig.args[1:], args[1:], strict=True))
        return builder.select(args[0], one, other)

    return lanes(chosen, a, b), lower


@helper
def at_least(v, bound):
    """v, or bound where v is below it."""
    return where(v < bound, bound, v)


@helper
def at_most(v, bound):
    """v, or bound where v is above it."""
    return where(v > bound, bound, v)


def _asked(sign: str, bits: int) -> Any:
    def typing(context: Any, chosen: Any) -> Any:
        if chosen != mask:
            return None

        def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            number = builder.bitcast(args[0], ir.IntType(WIDTH))
            return builder.icmp_unsigned(sign, number, ir.Constant(number.type, bits))

        return types.boolean(chosen), lower

    return _primitive(typing)


any_of: Any = _asked("!=", 0)  # whether a mask is set anywhere
all_of: Any = _asked("==", (1 << WIDTH) - 1)  # whether it is set everywhere


@_primitive
def store_bytes(typing: Any, array: Any, at: Any, value: Any) -> Any:
    """Whole numbers −128 … 255 as sixteen bytes of a contiguous uint8 array, from element `at` on."""
    if not _is_table(array, types.uint8) or value != lanes:
        return None

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        i = context.cast(builder, args[1], sig.args[1], types.intp)
        few = builder.trunc(builder.fptosi(args[2], _INTS), _BYTES)
        builder.store(few, _place(context, builder, sig.args[0], args[0], i, _BYTES), align=1)
        return context.get_dummy_value()

    return types.void(array, at, value), lower


@_primitive
def flags_of(typing: Any, chosen: Any) -> Any:
    """A mask as the bits of a number, lane 0 the lowest."""
    if chosen != mask:
        return None

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.zext(builder.bitcast(args[0], ir.IntType(WIDTH)), ir.IntType(32))

    return types.uint32(chosen), lower


@_primitive
def turn(typing: Any, source: Any, start: Any, stride: Any, target: Any, to: Any, across: Any) -> Any:
    """Sixteen runs of sixteen float32, the first at `start` of the source and each `stride` after the one before,
    turned into sixteen runs of the target from `to` on, `across` apart.

    In squares of 8 × 8, of which registers of eight numbers hold enough; four numbers are read at a time, so that only
    shuffles within halves of a register are left.
    """
    if not _is_table(source) or not _is_table(target):
        return None
    four, eight = ir.VectorType(ir.FloatType(), 4), ir.VectorType(ir.FloatType(), 8)

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        a, s, b, t = (context.cast(builder, args[i], sig.args[i], types.intp) for i in (1, 2, 4, 5))

        def place(which: int, first: Any, step: Any, i: int, along: int, vector: Any) -> Any:
            at = builder.add(first, builder.mul(step, ir.Constant(step.type, i)))
            at = builder.add(at, ir.Constant(at.type, along))
            return _place(context, builder, sig.args[which], args[which], at, vector)

        def mixed(a: Any, b: Any, order: tuple[int, ...]) -> Any:
            return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), 8), order))

        def pairs(a: Any, b: Any, at: int) -> Any:
            return mixed(a, b, (at, at + 8, at + 1, at + 9, at + 4, at + 12, at + 5, at + 13))

        for row in (0, 8):
            for column in range(0, WIDTH, 4):
                rows = []
                for i in range(4):
                    first, second = (builder.load(place(0, a, s, row + i + k, column, four), align=4) for k in (0, 4))
                    rows.append(mixed(first, second, (0, 1, 2, 3, 4, 5, 6, 7)))
                for k, (u, v) in enumerate((pairs(rows[0], rows[1], m), pairs(rows[2], rows[3], m)) for m in (0, 2)):
                    for i, order in enumerate(((0, 1, 8, 9, 4, 5, 12, 13), (2, 3, 10, 11, 6, 7, 14, 15))):
                        to_ = place(3, b, t, column + 2 * k + i, row, eight)
                        builder.store(mixed(u, v, order), to_, align=4)
        return context.get_dummy_value()

    return types.void(source, start, stride, target, to, across), lower


@_primitive
def turn_bytes(typing: Any, source: Any, start: Any, stride: Any, target: Any, to: Any, across: Any) -> Any:
    """The same for bytes."""
    if not _is_table(source, types.uint8) or not _is_table(target, types.uint8):
        return None

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        a, s, b, t = (context.cast(builder, args[i], sig.args[i], types.intp) for i in (1, 2, 4, 5))

        def place(which: int, first: Any, step: Any, i: int) -> Any:
            at = builder.add(first, builder.mul(step, ir.Constant(step.type, i)))
            return _place(context, builder, sig.args[which], args[which], at, _BYTES)

        rows = [builder.load(place(0, a, s, i), align=1) for i in range(WIDTH)]
        for i, row in enumerate(_transposed(builder, rows)):
            builder.store(row, place(3, b, t, i), align=1)
        return context.get_dummy_value()

    return types.void(source, start, stride, target, to, across), lower


def _transposed(builder: Any, rows: list[Any]) -> list[Any]:
    """16 × 16 turned: in four stages rows that lie 8, 4, 2, 1 apart swap halves of their runs of twice that length."""
    for span in (8, 4, 2, 1):
        first = [i if i & span == 0 else i - span + WIDTH for i in range(WIDTH)]
        second = [i + span if i & span == 0 else i + WIDTH for i in range(WIDTH)]
        for i in (i for i in range(WIDTH) if i & span == 0):
            a, b = rows[i], rows[i + span]
            rows[i] = builder.shuffle_vector(a, b, ir.Constant(_INTS, first))
            rows[i + span] = builder.shuffle_vector(a, b, ir.Constant(_INTS, second))
    return rows
