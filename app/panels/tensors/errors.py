"""Known errors laid out beside the rows of the tensor table, and the worst of each block. No Qt."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from app.panels.tensors.state import Cells, Rows

if TYPE_CHECKING:
    import numpy as np

    from app.session import ShownError

# What a known error is worth: nothing, a sample of rows, all rows before the run, measured by a run; or there is none.
UNKNOWN, SAMPLED, EXACT, WRITTEN, REFUSED = 0, 1, 2, 3, 4


@dataclass(frozen=True)
class Errors:
    """SQNR per row: float64 [rows], NaN unknown; mark: what it is worth; block: the worst of each block."""

    sqnr: np.ndarray
    mark: np.ndarray
    worst: list[float]


def make_errors(rows: Rows, cells: Cells | None, known: Mapping[Any, ShownError]) -> Errors:
    """Lays known errors out beside the rows."""
    import numpy as np

    sqnr = np.full(len(rows), np.nan)
    mark = np.zeros(len(rows), np.int8)
    if cells is not None:
        for i, t in enumerate(cells.plan.tensors):
            if not known:
                break
            error = known.get((t.tensor.name, t.strategy))
            if error is not None:
                sqnr[i], mark[i] = error_cell(error)
    errors = Errors(sqnr, mark, [math.nan] * len(rows.blocks))
    update_worst(rows, errors, range(len(rows.blocks)))
    return errors


def error_cell(error: ShownError) -> tuple[float, int]:
    if error.sqnr_db is None:
        return math.nan, REFUSED if error.why else UNKNOWN
    return error.sqnr_db, WRITTEN if error.written else EXACT if error.exact else SAMPLED


def update_worst(rows: Rows, errors: Errors, blocks: Iterable[int]) -> None:
    """Looks the worst tensor of these blocks up again."""
    import numpy as np

    for block in blocks:
        values = errors.sqnr[rows.members[block]]
        values = values[~np.isnan(values)]
        errors.worst[block] = float(values.min()) if values.size else math.nan
