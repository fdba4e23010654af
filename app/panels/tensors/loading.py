"""What the tensor table has computed for it in the preview lane: rows, cells and errors of a new plan, and the answer
of a slow filter. No Qt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from app.panels.tensors.errors import Errors, make_errors
from app.panels.tensors.state import (
    Arrangement,
    Cells,
    Filter,
    Look,
    Rows,
    arrange,
    make_cells,
    make_rows,
    matching,
    ordering,
)
from core.collector import without_collections
from core.context import JobContext

if TYPE_CHECKING:
    import numpy as np

    from app.session import ShownError
    from core.engine.model import Plan
    from core.targets.base import Outline

TABLE, FILTER = "tensor table", "tensor filter"


@dataclass(frozen=True)
class TableRequest:
    """rows: those of the same outline, when they are there already; known: errors by (name, strategy); look: how the
    table is ordered and folded now."""

    outline: Outline
    plan: Plan | None
    rows: Rows | None
    known: Mapping[Any, ShownError]
    filter: Filter
    look: Look = field(default_factory=Look)


@dataclass(frozen=True)
class TableData:
    """passing: what `matching` says, or None when the regular expression is wrong (nothing is hidden then); ordered and
    arrangement: for `look`."""

    rows: Rows
    cells: Cells | None
    errors: Errors
    filter: Filter
    passing: np.ndarray | None
    look: Look
    ordered: np.ndarray
    arrangement: Arrangement


@dataclass(frozen=True)
class FilterRequest:
    rows: Rows
    filter: Filter


@without_collections
def table_task(request: TableRequest, ctx: JobContext) -> TableData:
    """All that the table needs of a plan."""
    from core.errors import RecipeError

    rows = request.rows if request.rows is not None else make_rows(request.outline)
    # What menus and a selection of all need is kept with the rows once it was asked for: here, not in the window.
    _ = rows.role_names, rows.dtype_names, rows.all_names
    ctx.check()
    cells = make_cells(rows, request.plan) if request.plan is not None else None
    ctx.check()
    errors = make_errors(rows, cells, request.known)
    try:
        passing = matching(rows, request.filter)
    except RecipeError:
        passing = None
    look = request.look
    ordered = ordering(rows, cells, errors.sqnr, look.order)
    arrangement = arrange(rows, ordered, passing, look.grouped, look.folded, look.backwards)
    return TableData(rows, cells, errors, request.filter, passing, look, ordered, arrangement)


def filter_task(request: FilterRequest, ctx: JobContext) -> np.ndarray | None:
    """Rows that pass. Raises RecipeError for a wrong regular expression."""
    return matching(request.rows, request.filter)
