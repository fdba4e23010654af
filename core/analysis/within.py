"""How a few rows of a tensor are quantized as they would be inside the whole, where the whole is too large for a
preview: what all weights decide together is found in one pass over them, and only the rows are rounded."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from core.context import JobContext

if TYPE_CHECKING:
    import torch

    from core.checkpoints.base import Checkpoint
    from core.formats.base import Format, Quantized
    from core.methods.base import Method, Statistic
    from core.targets.base import OutputTensor

# A format that fits the whole tensor at once is given all of it, up to this many weights.
WHOLE_WEIGHTS = 1 << 26
# Weights that are looked at in one go.
_PIECE_WEIGHTS = 1 << 22


def quantizer(
    checkpoint: Checkpoint,
    tensor: OutputTensor,
    format: Format,
    method: Method,
    params: Mapping[str, Any],
    stats: Mapping[Statistic, torch.Tensor],
    ctx: JobContext,
) -> Callable[[torch.Tensor], Quantized]:
    """A function from rows of the tensor, floating [rows, columns], to what becomes of them.

    One scale of the whole tensor (FP8 per tensor, NVFP4) is made for its largest weight; with a grid that all rows
    share (int8-tensor, int8-col) it is fitted to all of them. Formats of other kinds, tensors of at most WHOLE_WEIGHTS,
    and methods that choose codes otherwise get the rows alone.

    raises  what reading and fitting raise; Cancelled
    """
    from core.formats.base import Quantized

    if tensor.numel <= WHOLE_WEIGHTS or format.row_multiple((tensor.rows, tensor.columns)):
        return lambda w: method.quantize(w, format, stats, params, ctx)
    scaled = format.sharing(1.0)
    if scaled != format:
        scaled = format.sharing(_largest(checkpoint, tensor, ctx))
        return lambda w: method.quantize(w, scaled, stats, params, ctx)
    if method.name == "nearest":
        from core.analysis.reach import is_shared
        from core.calibration.statistics import Statistic
        from core.methods.options import as_fitted

        whole = tensor.source.read(checkpoint, 0, tensor.rows)
        grid = as_fitted(format, params).fit(whole, stats.get(Statistic.IMPORTANCE))
        ctx.check()
        if is_shared(grid):
            return lambda w: Quantized(format, (w.shape[0], w.shape[1]), codes=format.encode(w, grid), grid=grid)
    return lambda w: method.quantize(w, format, stats, params, ctx)


def _largest(checkpoint: Checkpoint, tensor: OutputTensor, ctx: JobContext) -> float:
    """The largest magnitude of its finite weights."""
    from core.formats.fitting.small import largest

    found = 0.0
    step = max(1, _PIECE_WEIGHTS // max(1, tensor.columns))
    for start in range(0, tensor.rows, step):
        ctx.check()
        w = tensor.source.read(checkpoint, start, min(tensor.rows, start + step))
        size = float(largest(w))
        if not math.isfinite(size):
            wide = w.float().abs()
            size = float(wide[wide.isfinite()].max()) if wide.isfinite().any() else 0.0
        found = max(found, size)
    return found
