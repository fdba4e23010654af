"""The pieces a run is cut into: row slices of output tensors. What is done with one is in task.py.

The cut depends on the plan alone, never on workers or device, so that a journal fits the run that resumes it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from core.engine.model import Plan, PlannedTensor
from core.tensors import TensorInfo

if TYPE_CHECKING:
    from core.checkpoints.base import Checkpoint

# A unit is at most about this many weights: 32 MiB as float32. The journal counts in units.
UNIT_WEIGHTS = 1 << 23


@dataclass(frozen=True, slots=True)
class Unit:
    """Rows start … stop of one output tensor.

    index         its number in the journal
    tensor        index into Plan.tensors
    source_bytes  stored bytes of the source that it stands for: progress counts these
    """

    index: int
    tensor: int
    start: int
    stop: int
    source_bytes: int


def cut(plan: Plan, checkpoint: Checkpoint) -> tuple[Unit, ...]:
    """All units of a plan in the order of their place in the output, so that files are written front to back."""
    pieces: list[tuple[tuple[int, int], int, int, int, int]] = []
    for i, planned in enumerate(plan.tensors):
        places = plan.layout.places.get(planned.tensor.name, ())
        where = min(((p.file, p.offset) for p in places), default=(0, 0))
        total = source_bytes(planned, checkpoint.tensors)
        rows = planned.tensor.rows
        for start, stop in row_slices(planned, plan.target.row_multiple, UNIT_WEIGHTS):
            share = total * stop // rows - total * start // rows
            pieces.append((where, i, start, stop, share))
    pieces.sort()
    return tuple(Unit(n, i, start, stop, share) for n, (_, i, start, stop, share) in enumerate(pieces))


def row_slices(planned: PlannedTensor, multiple: int, limit: int) -> list[tuple[int, int]]:
    """Row ranges that cover the tensor once: aligned, of at most about `limit` weights, or all rows where the format
    does not allow slices. Empty tensors have none.

    multiple  the target's row_multiple
    """
    rows, columns = planned.tensor.rows, planned.tensor.columns
    if not rows or not columns:
        return []
    aligned = row_multiple(planned, multiple)
    if not aligned:
        return [(0, rows)]
    step = rows_within(limit, columns, aligned)
    return [(start, min(rows, start + step)) for start in range(0, rows, step)]


def row_multiple(planned: PlannedTensor, multiple: int) -> int:
    """Slices of the tensor must begin at multiples of this row, for the format and the target; 0: no slices."""
    return multiple if planned.copy else math.lcm(multiple, planned.format.row_multiple(planned.tensor.shape))


def rows_within(limit: int, columns: int, multiple: int) -> int:
    """How many rows hold at most `limit` weights, in whole multiples, at least one."""
    return max(1, limit // max(1, columns) // multiple) * multiple


def source_bytes(planned: PlannedTensor, tensors: Mapping[str, TensorInfo]) -> int:
    """Stored bytes of everything an output tensor is made from; 0 for computed ones."""
    return sum(tensors[name].nbytes for name in planned.tensor.source.names() if name in tensors)
