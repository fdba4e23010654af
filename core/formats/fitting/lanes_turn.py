"""Squares of 16 × 16 numbers or bytes turned inside kernels: rows become lanes (lanes_vector.py), and lanes rows."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from core.formats.fitting.lanes_room import data_of
from core.formats.fitting.lanes_room import place as _place
from core.formats.fitting.lanes_vector import _BYTES, _INDEX, _INTS, WIDTH, _is_table, _primitive


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

        bases = [data_of(context, builder, sig.args[i], args[i]) for i in (0, 3)]
        starts = [
            [builder.gep(base, [builder.add(first, builder.mul(step, step.type(i)))]) for i in range(WIDTH)]
            for base, first, step in ((bases[0], a, s), (bases[1], b, t))
        ]

        def place(which: int, i: int, along: int, vector: Any) -> Any:
            return builder.bitcast(builder.gep(starts[which][i], [_INDEX(along)]), vector.as_pointer())

        def mixed(a: Any, b: Any, order: tuple[int, ...]) -> Any:
            return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), 8), order))

        def pairs(a: Any, b: Any, at: int) -> Any:
            return mixed(a, b, (at, at + 8, at + 1, at + 9, at + 4, at + 12, at + 5, at + 13))

        for row in (0, 8):
            for column in range(0, WIDTH, 4):
                rows = []
                for i in range(4):
                    first, second = (builder.load(place(0, row + i + k, column, four), align=4) for k in (0, 4))
                    rows.append(mixed(first, second, (0, 1, 2, 3, 4, 5, 6, 7)))
                for k, (u, v) in enumerate((pairs(rows[0], rows[1], m), pairs(rows[2], rows[3], m)) for m in (0, 2)):
                    for i, order in enumerate(((0, 1, 8, 9, 4, 5, 12, 13), (2, 3, 10, 11, 6, 7, 14, 15))):
                        to_ = place(1, column + 2 * k + i, row, eight)
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
