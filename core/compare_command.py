"""`compare`: two checkpoints, and a common source where one is given, as a table, an object or a CSV file."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from typing import TYPE_CHECKING

from core.commands import Answer, bytes_text, figure, progress
from core.terminal import table

if TYPE_CHECKING:
    from core.analysis.compare import ComparedTensor, Comparison

SORTS = ("name", "error", "size", "saved")


def compare(args: argparse.Namespace) -> Answer:
    from core.analysis.compare import compare as compare_checkpoints
    from core.analysis.comparison import chosen, comparison_csv, comparison_json
    from core.atomic import write_whole
    from core.checkpoints import open_checkpoint

    with ExitStack() as opened:
        a, b = opened.enter_context(open_checkpoint(args.a)), opened.enter_context(open_checkpoint(args.b))
        source = opened.enter_context(open_checkpoint(args.source)) if args.source is not None else None
        ctx = opened.enter_context(progress())
        result = compare_checkpoints(a, b, ctx, source=source)
    rows = chosen(result.tensors, args.filter, args.sort)
    if args.csv is not None:
        write_whole(args.csv, comparison_csv(rows))
    return comparison_json(result, rows), _lines(result, rows)


def _lines(result: Comparison, rows: list[ComparedTensor]) -> list[str]:
    from core.analysis.comparison import finding
    from core.analysis.error import in_words

    titles = ["tensor", "stored as", ">A", ">B", ">SQNR, dB", ">relative MSE", ">max |a−b|"]
    titles += [">A to source, dB", ">B to source, dB"] if result.source else []
    lines = list(table((*titles, "note"), [_row(t, bool(result.source)) for t in rows]))
    lines += [f"only in A: {name}" for name in result.only_a] + [f"only in B: {name}" for name in result.only_b]
    lines += [f"{key}: {left!r} in A, {right!r} in B" for key, (left, right) in result.metadata.items()]
    sizes = f"{bytes_text(result.bytes_a)} → {bytes_text(result.bytes_b)}"
    said = finding(result)
    total = f"{len(result.tensors):,} tensors in both · {sizes} · {said[0].lower()}{said[1:]}"
    if result.source:
        total += f" · to the source: A {in_words(result.source_a.sqnr_db)}, B {in_words(result.source_b.sqnr_db)}"
    return [*lines, "", total]


def _row(t: ComparedTensor, sourced: bool) -> list[str]:
    from core.analysis.error import decibel

    row = [t.name, f"{t.dtype_a} → {t.dtype_b}", bytes_text(t.bytes_a), bytes_text(t.bytes_b)]
    row += [decibel(t.sqnr_db), figure(t.relative_mse), figure(t.max_abs)]
    if sourced:
        row += [decibel(sums.sqnr_db if sums is not None else None) for sums in (t.source_a, t.source_b)]
    return [*row, t.note]
