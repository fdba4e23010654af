"""What the cells of the tensor table say, and their tooltips. No Qt."""

from __future__ import annotations

import math
from typing import Protocol

from app.panels.tensors.errors import EXACT, REFUSED, SAMPLED, UNKNOWN, WRITTEN, Errors
from app.panels.tensors.state import MODEL, Cells, Rows, entry_block
from app.sizes import size_text
from core.engine.progress import bytes_text


class Shown(Protocol):
    """What the table shows; title: the model's name."""

    rows: Rows | None
    cells: Cells | None
    errors: Errors | None
    grouped: bool
    title: str


def text(table: Shown, entry: int, column: str) -> str:
    """What a column (its id) says of an entry of the arrangement."""
    rows = table.rows
    assert rows is not None
    if entry < 0:
        return _sum_text(table, entry, column)
    cells = table.cells
    if column == "name":
        return rows.short[entry] if table.grouped else rows.names[entry]
    if column == "role":
        return rows.roles[entry]
    if column == "shape":
        return rows.shapes[entry]
    if column == "dtype":
        return rows.dtypes[entry]
    if column == "sqnr":
        return _sqnr_text(table, entry)
    if cells is None:
        return ""
    if column == "strategy":
        return cells.strategy[entry]
    if column == "bpw":
        return f"{cells.bpw[entry]:.2f}"
    if column == "size":
        return size_text(cells.nbytes[entry], cells.unit[1])
    return cells.rule[entry]


def _sum_text(table: Shown, entry: int, column: str) -> str:
    rows, cells = table.rows, table.cells
    assert rows is not None
    block = entry_block(entry)
    if column == "name":
        return table.title or "model" if entry == MODEL else rows.blocks[block]
    if column == "shape":
        count = len(rows) if entry == MODEL else len(rows.members[block])
        return f"{count:,} tensor{'' if count == 1 else 's'}"
    if column == "sqnr":
        least = worst(table, entry)
        return f"≥ {least:.1f}" if math.isfinite(least) else ""
    if cells is None:
        return ""
    if column == "strategy":
        return cells.model_strategy if entry == MODEL else cells.block_strategy[block]
    if column == "bpw":
        return f"{cells.model_bpw if entry == MODEL else cells.block_bpw[block]:.2f}"
    if column == "size":
        nbytes = cells.model_bytes if entry == MODEL else cells.block_bytes[block]
        return size_text(nbytes, cells.unit[1])
    return ""


def worst(table: Shown, entry: int) -> float:
    """The lowest known SQNR under a block or the model; NaN when none is known."""
    if table.errors is None:
        return math.nan
    if entry != MODEL:
        return table.errors.worst[entry_block(entry)]
    known = [w for w in table.errors.worst if w == w]
    return min(known, default=math.nan)


def _sqnr_text(table: Shown, row: int) -> str:
    if table.errors is None:
        return ""
    value, mark = float(table.errors.sqnr[row]), int(table.errors.mark[row])
    if mark == UNKNOWN or value != value:
        return "–" if mark == REFUSED else ""
    if value == math.inf:
        return "exact"
    return f"≈ {value:.1f}" if mark == SAMPLED else f"{value:.1f}"


def tooltip(table: Shown, entry: int, column: str) -> str:
    """What is special about it, or ""."""
    rows, cells = table.rows, table.cells
    assert rows is not None
    if entry < 0:
        if column == "sqnr":
            return "The worst tensor in here"
        return "How many tensors" if column == "shape" else ""
    if column == "name":
        sources = [n for n in rows.outline.tensors[entry].source.names() if n != rows.names[entry]]
        return "\n".join((rows.names[entry], *(f"from {n}" for n in sources)))
    if column == "shape":
        return f"{rows.shapes[entry]} = {rows.numel[entry]:,} weights"
    if cells is None:
        return ""
    if column == "strategy":
        return _strategy_tooltip(table, entry)
    if column == "size":
        return f"{cells.nbytes[entry]:,} bytes ({bytes_text(cells.nbytes[entry])})"
    if column == "sqnr":
        return _sqnr_tooltip(table, entry)
    return cells.rule[entry] if column == "rule" else ""


def _strategy_tooltip(table: Shown, row: int) -> str:
    cells = table.cells
    assert cells is not None
    lines = [f"stored as {cells.stored[row]}"]
    if cells.badge[row] == "fallback":
        lines.append(f"not as asked: {cells.reason[row]}")
    elif cells.reason[row]:
        lines.append(f"{cells.badge[row]}: {cells.reason[row]}" if cells.badge[row] else cells.reason[row])
    lines.append(f"rule: {cells.rule[row]}")
    return "\n".join(lines)


def _sqnr_tooltip(table: Shown, row: int) -> str:
    assert table.cells is not None
    if table.cells.badge[row] == "kept" or table.cells.plan.tensors[row].copy:
        return "Not quantized"
    if table.errors is None:
        return ""
    return {
        UNKNOWN: "Not looked at yet",
        SAMPLED: "Preview from a sample of rows",
        EXACT: "Preview over all rows",
        WRITTEN: "Measured by the run over all rows",
        REFUSED: "The strategy cannot take these weights; the info panel says why",
    }[int(table.errors.mark[row])]
