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
from core.formats.fitting.lanes_room import empty_rows
from core.formats.fitting.lanes_room import place as _place

WIDTH = 16
F = np.float32

_FLOATS = ir.VectorType(ir.FloatType(), WIDTH)
_INTS = ir.VectorType(ir.IntType(32), WIDTH)
_BYTES = ir.VectorType(ir.IntType(8), WIDTH)
_FLAGS = ir.VectorType(ir.IntType(1), WIDTH)
_INDEX, _LONG = ir.IntType(32), ir.IntType(64)
# Without the signature of intrinsic, which type checkers take for the caller's.
_primitive: Any = intrinsic
# What is for this target alone is asked before numba's own forms of + and the like, most of which take long to decline.
_FIRST = {"target": "cpu"}


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
        metadata = _FIRST

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
        metadata = _FIRST

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
        metadata = _FIRST

        def generic(self, args: Any, kws: Any) -> Any:
            return signature(mask, *args) if tuple(args) == (mask, mask) else None

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return getattr(builder, instruction)(*args)

    lower_builtin(op, mask, mask)(lower)


_logic(operator.and_, "and_")
_logic(operator.or_, "or_")


@infer_global(operator.neg)
class _Neg(AbstractTemplate):  # type: ignore[misc, unused-ignore]
    metadata = _FIRST

    def generic(self, args: Any, kws: Any) -> Any:
        return signature(lanes, *args) if tuple(args) == (lanes,) else None


@lower_builtin(operator.neg, lanes)
def _lower_neg(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    return builder.fneg(args[0])


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


def _row(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    at = builder.mul(context.cast(builder, args[1], sig.args[1], types.intp), _LONG(WIDTH))
    return _place(context, builder, sig.args[0], args[0], at, _FLOATS)


@_primitive
def load(typing: Any, t: Any, i: Any) -> Any:
    """Row i of a table."""
    if not _is_table(t):
        return None
    return lanes(t, i), lambda c, builder, sig, args: builder.load(_row(c, builder, sig, args), align=4)


@_primitive
def store(typing: Any, t: Any, i: Any, value: Any) -> Any:
    """Row i of a table becomes value."""
    if not _is_table(t) or value != lanes:
        return None

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store(args[2], _row(context, builder, sig, args), align=4)
        return context.get_dummy_value()

    return types.void(t, i, value), lower


@helper
def table(n):
    """Room for n rows of lanes: float32 [n, 16], not initialised."""
    return empty_rows(F, n, WIDTH)


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


def _called(builder: Any, name: str, *args: Any) -> Any:
    kind = ir.FunctionType(_FLOATS, (_FLOATS,) * len(args))
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.v{WIDTH}f32"), args)


def _unary(name: str) -> Any:
    def typing(context: Any, value: Any) -> Any:
        if value != lanes:
            return None

        def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return _called(builder, name, *args)

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
        return _called(builder, "fma", *wide)

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


def _bounded(*signs: str, rounded: bool = False) -> Any:
    """A value, or the bound that it is beyond; of two bounds the second one counts first."""

    def typing(context: Any, value: Any, *bounds: Any) -> Any:
        if value != lanes or not all(k == lanes or k == types.float32 for k in bounds):
            return None

        def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            v = _called(builder, "rint", args[0]) if rounded else args[0]
            for sign, kind, bound in reversed(list(zip(signs, sig.args[1:], args[1:], strict=True))):
                limit = _wide(context, builder, kind, bound)
                v = builder.select(builder.fcmp_ordered(sign, v, limit), limit, v)
            return v

        return lanes(value, *bounds), lower

    return typing


@_primitive
def at_least(typing: Any, v: Any, bound: Any) -> Any:
    """v, or bound where v is below it."""
    return _bounded("<")(typing, v, bound)


@_primitive
def at_most(typing: Any, v: Any, bound: Any) -> Any:
    """v, or bound where v is above it."""
    return _bounded(">")(typing, v, bound)


@_primitive
def clipped(typing: Any, v: Any, bottom: Any, top: Any) -> Any:
    """v rounded, within bottom … top."""
    return _bounded("<", ">", rounded=True)(typing, v, bottom, top)


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
