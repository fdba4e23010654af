"""The same tensors under several strategies, side by side: exact size, error, and what it takes. Coarse at first, from
few rows, then finer; nothing is written.

This is the error of the weights alone, weighted by importance where that is known.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from core.analysis import within
from core.analysis.error import ErrorSums, sample_runs
from core.calibration.statistics import Statistic
from core.context import SILENT, JobContext
from core.errors import WorkbenchError
from core.targets.base import Assignment

if TYPE_CHECKING:
    import torch

    from core.checkpoints.base import Checkpoint
    from core.formats.base import Format
    from core.methods.base import Method
    from core.targets.base import OutputTensor, Target

# Weights of each tensor that are looked at, first and in the end; several tensors share what is looked at in the end.
COARSE_WEIGHTS = 1 << 15
FINE_WEIGHTS = 1 << 21


@dataclass(frozen=True)
class Entry:
    """A strategy on the bench. label: in words ("q4_k+gptq"), which tells entries apart."""

    label: str
    format: Format
    method: str = "nearest"
    params: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BenchRequest:
    """stats: by output name what is known of a tensor's inputs, as torch tensors; without experts' stacks
    done: rows of these tensors that are known already
    """

    checkpoint: Checkpoint
    tensors: tuple[OutputTensor, ...]
    target: Target
    entries: tuple[Entry, ...]
    stats: Mapping[str, Mapping[Statistic, torch.Tensor]] = field(default_factory=dict)
    done: tuple[BenchRow, ...] = ()


@dataclass(frozen=True)
class BenchRow:
    """One strategy's outcome over all tensors that it fits.

    nbytes    exact, as the target would store them; weights: how many
    sums      errors over what was looked at, or None (see note)
    weighted  Σ importance·(w−ŵ)² / Σ importance·w², or None where importance is unknown
    seconds   quantizing all of it would take about this long on one core; None while not measured
    sampled   from some rows only
    final     nothing finer is on its way
    note      why there is nothing, or what was left out
    """

    label: str
    nbytes: int
    weights: int
    sums: ErrorSums | None
    weighted: float | None
    seconds: float | None
    sampled: bool
    final: bool
    note: str = ""

    @property
    def bpw(self) -> float | None:
        return 8 * self.nbytes / self.weights if self.weights else None

    @property
    def sqnr_db(self) -> float | None:
        return self.sums.sqnr_db if self.sums is not None else None

    @property
    def relative_mse(self) -> float | None:
        return self.sums.relative_mse if self.sums is not None else None


def bench(request: BenchRequest, ctx: JobContext = SILENT) -> tuple[BenchRow, ...]:
    """All rows, in the order of the entries. Hands over each row as soon as it is known, coarse and again finer.

    progress in strategies, twice over.
    raises  what the reader raises; Cancelled. What a strategy cannot take is said in its row
    """
    rows = {row.label: row for row in request.done if row.final}
    steps = 2 * len(request.entries)
    for turn, limit in enumerate((COARSE_WEIGHTS, FINE_WEIGHTS)):
        for n, entry in enumerate(request.entries):
            ctx.check()
            before = rows.get(entry.label)
            if before is None or not before.final:
                rows[entry.label] = _row(request, entry, limit, turn == 1, ctx)
                ctx.partial(rows[entry.label])
            ctx.progress(turn * len(request.entries) + n + 1, steps, entry.label)
    return tuple(rows[entry.label] for entry in request.entries)


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Of (size, error) those that no other beats in one without losing in the other, by ascending size. Of equals, the
    first."""
    best: list[int] = []
    lowest = float("inf")
    for i in sorted(range(len(points)), key=lambda i: (*points[i], i)):
        if points[i][1] < lowest:
            best.append(i)
            lowest = points[i][1]
    return best


def _row(request: BenchRequest, entry: Entry, limit: int, final: bool, ctx: JobContext) -> BenchRow:
    from core.formats.fitting import warm
    from core.methods import get_method
    from core.methods.options import AUTO, effort_of

    method = get_method(entry.method)
    nbytes = weights = seen = 0
    seconds = 0.0
    sums, weighted = ErrorSums(), _Weighted()
    notes: list[str] = []
    sampled = False
    misfit = method.misfit(entry.format)
    each = max(COARSE_WEIGHTS, limit // max(1, len(request.tensors)))
    for tensor in request.tensors:
        known = request.stats.get(tensor.name, {})
        why = misfit or _refusal(request.target, entry.format, tensor) or _missing(method, known)
        if why:
            notes.append(why if len(request.tensors) == 1 else f"{tensor.name}: {why}")
            continue
        stored_in = request.target.adapt(entry.format, tensor)
        try:
            if stored_in.family != "dense":
                # Compiling is no part of the time. A method without the choice may use any effort.
                chosen = entry.params.get("effort", AUTO) if "effort" in {p.key for p in method.parameters} else None
                effort = None if chosen is None else effort_of(stored_in, chosen)
                warm(stored_in, Statistic.IMPORTANCE in known, ctx.check, effort)
            part = _measured(request, entry, stored_in, method, tensor, known, each, weighted, ctx)
        except WorkbenchError as error:
            notes.append(str(error))
            continue
        nbytes += sum(s.nbytes for s in request.target.stored(Assignment(tensor, stored_in)))
        weights += tensor.numel
        sums = sums + part.sums
        seen += part.sums.count
        seconds += part.seconds * tensor.numel / max(1, part.sums.count)
        sampled |= part.sums.count < tensor.numel
    note = notes[0] if notes else ""
    if len(notes) > 1:
        note += f" (and {len(notes) - 1:,} more)"
    if not weights:
        return BenchRow(entry.label, 0, 0, None, None, None, False, True, note)
    return BenchRow(entry.label, nbytes, weights, sums, weighted.share, seconds, sampled, final or not sampled, note)


def _refusal(target: Target, format: Format, tensor: OutputTensor) -> str:
    if not format.encodable:
        return f"{format.name} can only be read"
    return format.misfit(tensor.shape) or target.refuses(format, tensor) or ""


def _missing(method: Method, known: Mapping[Statistic, torch.Tensor]) -> str:
    gone = sorted(s.value for s in method.needs - known.keys())
    return f"{method.name} needs calibration ({', '.join(gone)})" if gone else ""


@dataclass
class _Weighted:
    """Sums of squares, each column times its importance; unknown as soon as one tensor has none."""

    error: float = 0.0
    energy: float = 0.0
    known: bool = True

    @property
    def share(self) -> float | None:
        return self.error / self.energy if self.known and self.energy else None

    def add(self, w: torch.Tensor, w_hat: torch.Tensor, importance: torch.Tensor | None) -> None:
        import torch

        if importance is None:
            self.known = False
            return
        weights = importance.to(torch.float64)
        e = (w - w_hat).square_().sum(0, dtype=torch.float64)
        self.error += float(e @ weights)
        self.energy += float(w.square().sum(0, dtype=torch.float64) @ weights)


@dataclass(frozen=True)
class _Part:
    sums: ErrorSums
    seconds: float


def _measured(
    request: BenchRequest,
    entry: Entry,
    stored_in: Format,
    method: Method,
    tensor: OutputTensor,
    known: Mapping[Statistic, torch.Tensor],
    limit: int,
    weighted: _Weighted,
    ctx: JobContext,
) -> _Part:
    """One tensor, from a sample of its rows."""
    if not stored_in.row_local and tensor.numel <= within.WHOLE_WEIGHTS:
        limit = max(limit, tensor.numel)
    sums, seconds = ErrorSums(), 0.0
    rounded = within.quantizer(request.checkpoint, tensor, stored_in, method, dict(entry.params), known, ctx)
    multiple = stored_in.row_multiple((tensor.rows, tensor.columns)) or 1
    for start, stop in sample_runs(tensor.rows, tensor.columns, limit, multiple):
        ctx.check()
        w = tensor.source.read(request.checkpoint, start, stop).float()
        began = time.perf_counter()
        quantized = rounded(w)
        seconds += time.perf_counter() - began
        w_hat = quantized.dequantize()
        sums = sums.add(w, w_hat)
        weighted.add(w, w_hat, known.get(Statistic.IMPORTANCE))
    return _Part(sums, seconds)
