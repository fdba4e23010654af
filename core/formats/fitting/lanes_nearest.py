"""Two steps of the lattice searches, spelled out for LLVM: rounding as ggml rounds, and the choice among neighbours.

Lists of neighbours are short, a few vectors each, and lie in tables whose overlap with other arrays LLVM cannot rule
out; so it would not vectorise them by itself. The vectors are LLVM's own and compile on any machine; nothing is
contracted into fused multiply-adds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from core.formats.ggml.neighbours import LANES

# Groups side by side.
W = 64
LARGEST = 3.4028234663852886e38
# Adding this leaves the nearest whole number in the low bits of a float.
MAGIC = 12582912.0

_WORD, _WIDE, _FLOAT = ir.IntType(32), ir.IntType(64), ir.FloatType()
_WORDS, _FLOATS, _BYTES = (ir.VectorType(kind, LANES) for kind in (_WORD, _FLOAT, ir.IntType(8)))


def _rounded(context: Any, v: Any) -> Any:
    def build(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        bits = builder.bitcast(builder.fadd(args[0], _FLOAT(MAGIC)), _WORD)
        return builder.sitofp(builder.sub(builder.and_(bits, _WORD(0x7FFFFF)), _WORD(0x400000)), _FLOAT)

    return types.float32(types.float32), build


def _splat(builder: Any, value: Any, kind: Any) -> Any:
    """All lanes of a vector alike."""
    nothing = ir.Constant(kind, ir.Undefined)
    one = builder.insert_element(nothing, value, _WORD(0))
    return builder.shuffle_vector(one, nothing, ir.Constant(_WORDS, [0] * LANES))


def _reduced(builder: Any, name: str, vector: Any) -> Any:
    """One number of a vector, by LLVM's reduction of this name."""
    element = vector.type.element
    suffix = f"v{LANES}{'f' if element == _FLOAT else 'i'}32"
    function = ir.FunctionType(element, (vector.type,))
    known = cgutils.get_or_insert_function(builder.module, function, f"llvm.vector.reduce.{name}.{suffix}")
    return builder.call(known, (vector,))


def _level(builder: Any, codes: Any, lowest: list[Any]) -> Any:
    """Eight codes as floats: lowest + code, or 2·code + 1 where nothing is the lowest."""
    if lowest:
        return builder.fadd(builder.uitofp(codes, _FLOATS), lowest[0])
    ones = ir.Constant(_BYTES, [1] * LANES)
    return builder.uitofp(builder.or_(builder.shl(codes, ones), ones), _FLOATS)


def _among(run: int) -> Callable[..., Any]:
    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        points, codes, targets, roots = (
            context.make_array(kind)(context, builder, value).data
            for kind, value in zip(signature.args[:4], args[:4], strict=True)
        )
        cell, step, *low, start, stop = args[4:]
        steps = _splat(builder, step, _FLOATS)
        lowest = [_splat(builder, value, _FLOATS) for value in low]
        target, weight = [], []
        for i in range(run):
            place = builder.add(cell, _WIDE(i * W))
            target.append(_splat(builder, builder.load(builder.gep(targets, [place])), _FLOATS))
            weight.append(_splat(builder, builder.load(builder.gep(roots, [place])), _FLOATS))
        least = cgutils.alloca_once_value(builder, ir.Constant(_FLOATS, [LARGEST] * LANES))
        kept = cgutils.alloca_once_value(builder, _splat(builder, builder.trunc(start, _WORD), _WORDS))
        with cgutils.for_range_slice(builder, start, stop, _WIDE(LANES)) as (at, _):
            total = ir.Constant(_FLOATS, [0.0] * LANES)
            for i in range(run):
                place = builder.add(builder.mul(at, _WIDE(run)), _WIDE(i * LANES))
                source = builder.bitcast(builder.gep(codes, [place]), _BYTES.as_pointer())
                value = _level(builder, builder.load(source, align=1), lowest)
                e = builder.fsub(builder.fmul(steps, value), target[i])
                total = builder.fadd(total, builder.fmul(builder.fmul(weight[i], e), e))
            closer = builder.fcmp_ordered("<", total, builder.load(least))
            here = _splat(builder, builder.trunc(at, _WORD), _WORDS)
            builder.store(builder.select(closer, total, builder.load(least)), least)
            builder.store(builder.select(closer, here, builder.load(kept)), kept)
        distance = builder.load(least)
        number = builder.add(builder.load(kept), ir.Constant(_WORDS, list(range(LANES))))
        smallest = _splat(builder, _reduced(builder, "fmin", distance), _FLOATS)
        equal = builder.fcmp_ordered("==", distance, smallest)
        first = builder.select(equal, number, ir.Constant(_WORDS, [0x7FFFFFFF] * LANES))
        return builder.load(builder.gep(points, [builder.zext(_reduced(builder, "smin", first), _WIDE)]))

    return build


_WHOLE, _REAL = types.int64, types.float32


def _nearest(run: int) -> Callable[..., Any]:
    def typed(
        context: Any, index: Any, lanes: Any, x: Any, root: Any, cell: Any, step: Any, start: Any, stop: Any
    ) -> Any:
        return types.int16(index, lanes, x, root, _WHOLE, _REAL, _WHOLE, _WHOLE), _among(run)

    return typed


def _nearest_above(run: int) -> Callable[..., Any]:
    def typed(
        context: Any, index: Any, lanes: Any, x: Any, root: Any, cell: Any, step: Any, low: Any, start: Any, stop: Any
    ) -> Any:
        return types.int16(index, lanes, x, root, _WHOLE, _REAL, _REAL, _WHOLE, _WHOLE), _among(run)

    return typed


# rounded(v): v as float32 rounded to the nearest whole number, halves to even; beyond ± 2^22 it is what ggml's
# nearest_int makes of it, which means nothing.
rounded: Any = intrinsic(_rounded)
# nearest8 and nearest4(index, lanes, x, root, cell, step, start, stop): of the points index[start : stop] the one with
# the least Σ root·(step·(2·code + 1) − x)², the first of equals. lanes uint8 [total / LANES, run, LANES]: their codes.
# x, root float32 [N, W]: the run's values are those from element `cell` on, W apart.
nearest8: Any = intrinsic(_nearest(8))
nearest4: Any = intrinsic(_nearest(4))
# nearest_above and nearest_above4(index, lanes, x, weight, cell, step, low, start, stop): likewise for
# Σ weight·(step·(low + code) − x)².
nearest_above: Any = intrinsic(_nearest_above(8))
nearest_above4: Any = intrinsic(_nearest_above(4))
