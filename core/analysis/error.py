"""Weight error: sums that add up over slices, and a preview of a strategy's error on a sample of a tensor.

This is the error of the weights alone; what it does to the model's output is measured in core/evaluation, and the two
are never shown as the same thing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from core.analysis import within
from core.context import SILENT, JobContext
from core.errors import RowError

if TYPE_CHECKING:
    import torch

    from core.checkpoints.base import Checkpoint
    from core.formats.base import Format
    from core.methods.base import Method, Statistic
    from core.targets.base import OutputTensor

# A preview reads this many weights at most, in runs of rows spread evenly over the tensor.
PREVIEW_WEIGHTS = 1 << 20
PREVIEW_RUNS = 16


@dataclass(frozen=True, slots=True)
class ErrorSums:
    """Float64 sums over pairs (w, ŵ); adding two gives the sums over both.

    w2     Σw²          e2   Σ(w−ŵ)²      max_abs  max|w−ŵ|
    wh     Σw·ŵ         h2   Σŵ²          count    weights
    """

    count: int = 0
    w2: float = 0.0
    e2: float = 0.0
    max_abs: float = 0.0
    wh: float = 0.0
    h2: float = 0.0

    def add(self, w: torch.Tensor, w_hat: torch.Tensor) -> ErrorSums:
        """With one more slice. w floating, any dtype; w_hat float32 of the same shape and device."""
        from core.formats.fitting.sums import error_sums

        assert w.shape == w_hat.shape, f"{tuple(w.shape)} against {tuple(w_hat.shape)}"
        w2, e2, max_abs, wh, h2 = error_sums(w, w_hat)
        return self + ErrorSums(w.numel(), w2, e2, max_abs, wh, h2)

    def __add__(self, other: ErrorSums) -> ErrorSums:
        # max() would drop a NaN on one side of the comparison; a NaN error must stay visible.
        worst = math.nan if math.isnan(self.max_abs) or math.isnan(other.max_abs) else max(self.max_abs, other.max_abs)
        return ErrorSums(
            self.count + other.count,
            self.w2 + other.w2,
            self.e2 + other.e2,
            worst,
            self.wh + other.wh,
            self.h2 + other.h2,
        )

    @property
    def relative_mse(self) -> float | None:
        """Σ(w−ŵ)²/Σw²; 0 for an exact copy, None when all weights are zero and the copy is not."""
        if self.e2 == 0:
            return 0.0
        return self.e2 / self.w2 if self.w2 else None

    @property
    def sqnr_db(self) -> float | None:
        """10·log₁₀(Σw²/Σ(w−ŵ)²); inf for an exact copy, NaN when a weight is or became infinite or NaN, None when all
        weights are zero and the copy is not."""
        if self.e2 == 0:
            return math.inf
        if math.isinf(self.e2):
            return math.nan
        return 10 * math.log10(self.w2 / self.e2) if self.w2 > 0 else (None if self.w2 == 0 else math.nan)

    @property
    def cosine(self) -> float | None:
        """Of the flattened tensors; None when one of them is zero."""
        norm = math.sqrt(self.w2) * math.sqrt(self.h2)
        if norm == 0:
            return 1.0 if self.e2 == 0 else None
        return self.wh / norm

    def to_tuple(self) -> tuple[float, ...]:
        return tuple(getattr(self, f.name) for f in fields(self))

    @classmethod
    def from_tuple(cls, values: Any) -> ErrorSums:
        count, *rest = values
        return cls(int(count), *(float(v) for v in rest))


def decibel(sqnr_db: float | None) -> str:
    """An SQNR as it stands in a column whose header has the unit."""
    if sqnr_db is None:
        return "–"
    return f"{sqnr_db:.1f}" if math.isfinite(sqnr_db) else "exact" if sqnr_db > 0 else "NaN"


def in_words(sqnr_db: float | None) -> str:
    """The same in a sentence: with the unit, where there is a number."""
    return f"{decibel(sqnr_db)} dB" if sqnr_db is not None and math.isfinite(sqnr_db) else decibel(sqnr_db)


@dataclass(frozen=True, slots=True)
class TensorError:
    """A tensor's error under one format. sampled: only a part of its rows was looked at."""

    sums: ErrorSums
    sampled: bool


def sample_runs(rows: int, columns: int, limit: int, multiple: int = 1) -> list[tuple[int, int]]:
    """Row ranges, evenly spread, with at most about `limit` weights in all (at least one row).

    rows of all ranges together equal the whole tensor when it has no more than `limit` weights.
    """
    if rows * columns <= limit:
        return [(0, rows)] if rows else []
    wanted = max(1, limit // max(columns, 1))
    runs = min(PREVIEW_RUNS, wanted)
    length = max(1, wanted // runs)
    step = rows / runs
    starts = sorted({min(rows - length, int(i * step)) // multiple * multiple for i in range(runs)})
    return [(start, min(rows, start + length)) for start in starts]


def preview_error(
    checkpoint: Checkpoint,
    tensor: OutputTensor,
    format: Format,
    method: Method | None = None,
    params: Mapping[str, Any] | None = None,
    ctx: JobContext = SILENT,
    *,
    stats: Mapping[Statistic, torch.Tensor] | None = None,
    limit: int = PREVIEW_WEIGHTS,
) -> TensorError:
    """The error a strategy would make on a tensor, from a sample of its rows; nothing is written.

    method  None for nearest
    raises  whatever the reader or the method raises; Cancelled from ctx.check()
    """
    from core.methods import get_method

    chosen = method if method is not None else get_method("nearest")
    rows, columns = tensor.rows, tensor.columns
    if not format.row_local and tensor.numel <= within.WHOLE_WEIGHTS:
        limit = max(limit, tensor.numel)
    runs = sample_runs(rows, columns, limit)
    rounded = within.quantizer(checkpoint, tensor, format, chosen, params or {}, stats or {}, ctx)
    sums = ErrorSums()
    seen = 0
    for start, stop in runs:
        ctx.check()
        w = tensor.source.read(checkpoint, start, stop)
        try:
            quantized = rounded(w)
        except RowError as error:
            error.counted_from(start)
            raise
        sums = sums.add(w, quantized.dequantize())
        seen += stop - start
    return TensorError(sums, sampled=seen < rows)
