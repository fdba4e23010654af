"""Tensors that clients compute as one, and the largest weight of each: what their common scale is made for."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from core.context import JobContext
from core.engine.model import Plan
from core.engine.pages import was_read
from core.engine.units import rows_within
from core.targets.assignments import Assignments
from core.targets.base import OutputTensor

if TYPE_CHECKING:
    from core.checkpoints.base import Checkpoint

_PIECE_WEIGHTS = 1 << 20


def bundled(plan: Plan) -> dict[str, tuple[int, ...]]:
    """Output tensor → indices in the plan of all that must have its scale of the whole tensor, itself among them."""
    index = {t.tensor.name: n for n, t in enumerate(plan.tensors)}
    found = {}
    for names in plan.target.together(Assignments([t.assignment for t in plan.tensors], plan.planned.kinds)):
        found.update(dict.fromkeys(names, tuple(index[name] for name in names)))
    return found


def largest(tensor: OutputTensor, checkpoint: Checkpoint, ctx: JobContext) -> float:
    """The largest magnitude of its finite weights. Others are found, and named, when their tensor is quantized."""
    import torch

    found = 0.0
    step = rows_within(_PIECE_WEIGHTS, tensor.columns, 1)
    for start in range(0, tensor.rows, step):
        ctx.check()
        stop = min(tensor.rows, start + step)
        w = tensor.source.read(checkpoint, start, stop)
        low, high = torch.aminmax(w.float() if w.element_size() == 1 else w)
        size = max(-float(low), float(high))
        found = max(found, size) if math.isfinite(size) else found
        was_read(tensor.source, checkpoint, start, stop)
    return found
