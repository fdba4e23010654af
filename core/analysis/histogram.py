"""The histogram of a tensor: its weights, what a strategy makes of them, and the difference, streamed over the whole
tensor in bounded memory.

Bins and counters are in counts.py, the reach of a strategy's grids in reach.py, drawing is the window's business. A
picture is wanted at once, so a sample of rows comes first, as a partial result, and then everything. Values are looked
at in float32; a float64 beyond its range counts as infinite.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from core.analysis.counts import Counter, Counts, MirrorCounter, Moments, quantiles_of
from core.analysis.error import ErrorSums, sample_runs
from core.analysis.reach import Group, Reach, ReachTally, ends_of, group_at, group_width, is_shared
from core.analysis.within import WHOLE_WEIGHTS
from core.calibration.statistics import Statistic
from core.context import SILENT, JobContext
from core.errors import RecipeError, UnsupportedFormat, WorkbenchError
from core.tensors import DTYPES

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from core.checkpoints.base import Checkpoint
    from core.formats.base import Format, Grid
    from core.methods.base import Method
    from core.targets.base import OutputTensor

# Bins shown at once, and how finely each is counted, so that zooming in shows more.
BINS = 256
FINE = 64
# Weights of the first, coarse picture, and of one slice of the exact one.
SAMPLE_WEIGHTS = 1 << 17
SLICE_WEIGHTS = 1 << 20


@dataclass(frozen=True)
class HistogramRequest:
    """Which tensor, under which strategy. format None: only the weights themselves.

    label   the strategy in words ("q4_k+gptq"); goes into the result
    stats   what is known of the tensor's inputs, for methods and formats that use it
    known   equal for equal statistics, "" where there is neither these nor a text that a run will gather them from
    """

    checkpoint: Checkpoint
    tensor: OutputTensor
    format: Format | None = None
    method: str = "nearest"
    params: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""
    stats: Mapping[Statistic, Tensor] = field(default_factory=dict, compare=False)
    known: str = ""


@dataclass(frozen=True)
class GroupRequest:
    """One weight of a histogram's tensor, whose group is asked for."""

    histogram: HistogramRequest
    row: int
    column: int


@dataclass(frozen=True, eq=False)
class HistogramResult:
    """What a plot needs, and no tensors.

    exact        over the whole tensor; else over a sample of `moments.count` weights
    original     BINS · FINE bins from the least to the largest weight, or to the outermost levels if those are farther
                 out (a little around it when all of that is one value)
    dequantized  in the same bins, or None where there is no strategy or it cannot be shown (see notes)
    residual     w − ŵ in bins of its own around 0; None when there is nothing dequantized, or no difference at all
    error        sums over all pairs (w, ŵ), or None
    reach        how far the grids reach, or None where the format has no such thing
    zeros        dequantized weights that are exactly 0
    notes        what could not be shown and why, or what is shown instead; a line each
    pending      what the strategy makes of the weights is on its way
    quantiles    QUANTILES of the first sample, for where one weight far out makes the bins too wide"""

    name: str
    label: str
    rows: int
    columns: int
    exact: bool
    moments: Moments
    original: Counts
    dequantized: Counts | None = None
    residual: Counts | None = None
    error: ErrorSums | None = None
    reach: Reach | None = None
    zeros: int = 0
    notes: tuple[str, ...] = ()
    pending: bool = False
    quantiles: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class GroupView:
    """A group, its weights and what they become, float32 [stop − start]."""

    group: Group
    weights: NDArray[np.float32]
    dequantized: NDArray[np.float32]


def histogram(request: HistogramRequest, ctx: JobContext = SILENT) -> HistogramResult:
    """The exact histogram. Hands over coarse ones of a sample of rows first: the weights alone, then all there is to
    see (the latter only where the tensor is larger than the sample).

    progress in weights of the exact pass. Memory: a few slices of SLICE_WEIGHTS; where a format fits the whole tensor
    at once, the tensor besides.
    raises  UnsupportedFormat for complex numbers; what the reader raises; Cancelled
    """
    tensor = request.tensor
    if tensor.dtype in ("C64", "C128"):
        raise UnsupportedFormat(f"{tensor.dtype} holds complex numbers", "there is no histogram of those", tensor.name)
    ctx.check()
    sample = _sample(request, ctx)
    if sample.exact:
        return sample
    ctx.partial(sample)
    ctx.check()
    return _exact(request, sample, ctx)


def group_view(request: GroupRequest, ctx: JobContext = SILENT) -> GroupView:
    """The group around one weight. Reads only the rows that its grid is fitted to.

    raises  RecipeError for a place outside the tensor; WorkbenchError where the strategy cannot be applied
    """
    tensor = request.histogram.tensor
    if not (0 <= request.row < tensor.rows and 0 <= request.column < tensor.columns):
        raise RecipeError(f"({request.row}, {request.column}) is outside {tensor.rows} × {tensor.columns}")
    strategy = _Strategy.of(request.histogram)
    if strategy is None:
        raise RecipeError("there is no strategy to show a group of", where=tensor.name)
    step = strategy.multiple or tensor.rows
    first = request.row // step * step
    w = tensor.source.read(request.histogram.checkpoint, first, min(tensor.rows, first + step))
    ctx.check()
    quantized = strategy.method.quantize(w, strategy.format, strategy.stats, strategy.params, ctx)
    row, grid = request.row - first, quantized.grid
    at = 0 if is_shared(grid) else row
    ends = ends_of(strategy.format, grid, w)
    width = group_width((ends[0][at : at + 1], ends[1][at : at + 1])) if ends is not None else tensor.columns
    unknown = np.full((w.shape[0], tensor.columns), np.nan, np.float32)
    group = group_at(strategy.format, grid, ends or (unknown, unknown), at, request.column, width, request.row)
    part = slice(group.start, group.stop)
    return GroupView(group, _float32(w[row, part]).copy(), quantized.dequantize()[row, part].numpy().copy())


@dataclass(frozen=True)
class _Strategy:
    """A format and a method that can be applied now. multiple: as Format.row_multiple says for this shape."""

    format: Format
    method: Method
    params: Mapping[str, Any]
    multiple: int
    note: str
    stats: Mapping[Statistic, Tensor]

    @classmethod
    def of(cls, request: HistogramRequest) -> _Strategy | None:
        """None where there is nothing to apply. Raises RecipeError where the format does not fit."""
        tensor, wanted = request.tensor, request.format
        if wanted is None:
            return None
        from core.methods import get_method

        if tensor.dtype in DTYPES and not DTYPES[tensor.dtype].floating:
            raise RecipeError(f"{tensor.dtype} holds whole numbers, which are never quantized")
        misfit = wanted.misfit(tensor.shape)
        if misfit:
            raise RecipeError(f"{wanted.name} does not fit: {misfit}")
        method, params, note = get_method(request.method), request.params, ""
        if not method.needs <= request.stats.keys():
            why = "needs calibration" if not request.known else "chooses while samples go through the model"
            note = f"{method.name} {why}: shown rounded to nearest"
            method, params = get_method("nearest"), {}
        multiple = wanted.row_multiple((tensor.rows, tensor.columns))
        return cls(wanted, method, params, multiple, note, request.stats)

    def apply(self, w: Tensor, ctx: JobContext) -> tuple[Tensor, Grid]:
        """ŵ float32 and the grid of these rows, by themselves."""
        quantized = self.method.quantize(w, self.format, self.stats, self.params, ctx)
        return quantized.dequantize(), quantized.grid


# ŵ float32 and the grid of a slice of rows.
_Apply = Callable[["Tensor"], "tuple[Tensor, Grid]"]


def _sample(request: HistogramRequest, ctx: JobContext) -> HistogramResult:
    import torch

    tensor = request.tensor
    notes: list[str] = []
    strategy: _Strategy | None = None
    try:
        strategy = _Strategy.of(request)
    except WorkbenchError as error:
        notes.append(str(error))
    runs = sample_runs(tensor.rows, tensor.columns, SAMPLE_WEIGHTS, (strategy.multiple if strategy else 1) or 1)
    pieces = [tensor.source.read(request.checkpoint, a, b) for a, b in runs]
    w = torch.cat(pieces) if len(pieces) > 1 else pieces[0] if pieces else torch.zeros(0, tensor.columns)
    ctx.check()
    x = _float32(w)
    moments = Moments().add(x)
    exact = moments.count == tensor.numel
    quantiles = quantiles_of(x)
    reach, pair = ReachTally(), None
    if strategy is not None and w.numel():
        # The weights alone are there at once; a search that is compiled at its first use takes its time.
        plain = _Tally(_range(moments, reach))
        plain.add(w, x, None)
        ctx.partial(plain.result(request, moments, exact, None, strategy, notes, pending=True, quantiles=quantiles))
        ctx.check()
        places = np.concatenate([np.arange(a, b) for a, b in runs])
        try:
            pair = strategy.apply(w, ctx)
        except WorkbenchError as error:
            notes.append(_refusal(request, error, places))
        else:
            reach.add(strategy.format, pair[1], w, x, places)
    tally = _Tally(_range(moments, reach))
    tally.add(w, x, pair)
    return tally.result(request, moments, exact, reach.result(), strategy, notes, quantiles=quantiles)


def _exact(request: HistogramRequest, sample: HistogramResult, ctx: JobContext) -> HistogramResult:
    tensor = request.tensor
    step = max(1, SLICE_WEIGHTS // max(1, tensor.columns))
    moments = Moments()
    for _, w in _slices(request, step, ctx):
        moments = moments.add(_float32(w))
    notes: list[str] = []
    strategy: _Strategy | None = None
    apply: _Apply | None = None
    reach = ReachTally()
    if sample.dequantized is None:
        notes += sample.notes
    else:
        strategy = _Strategy.of(request)
        assert strategy is not None
        if strategy.multiple:
            # Else the sample, quantized by itself, had grids of its own.
            reach = ReachTally(sample.reach)
        try:
            step, apply = _by_slices(request, strategy, step, reach, ctx)
        except WorkbenchError as error:
            notes.append(_refusal(request, error, np.arange(tensor.rows)))
    tally = _Tally(_range(moments, reach))
    done = 0
    for start, w in _slices(request, step, ctx):
        x, pair = _float32(w), None
        places = np.arange(start, start + w.shape[0])
        if strategy is not None and apply is not None:
            try:
                pair = apply(w)
            except WorkbenchError as error:
                # NaN in a row that the sample missed. Half an overlay would mislead: there is none.
                apply = None
                notes.append(_refusal(request, error, places))
            else:
                reach.add(strategy.format, pair[1], w, x, places)
            ctx.check()  # a slice takes some time twice: the next tensor waits for it
        tally.add(w, x, pair)
        done += w.numel()
        ctx.progress(done, tensor.numel)
    strategy = strategy if apply is not None else None
    return tally.result(request, moments, True, reach.result(), strategy, notes, quantiles=sample.quantiles)


def _refusal(request: HistogramRequest, error: WorkbenchError, places: NDArray[np.int64]) -> str:
    """What a strategy says of weights it cannot take, with the row's number in the tensor, not in the slice."""
    said, row = str(error), getattr(error, "row", -1)
    if 0 <= row < places.size:
        said = re.sub(rf"\brow {row}\b", f"row {places[row]}", said, count=1)
    assert request.format is not None
    return f"{request.label or request.format.name}: {said}"


def _slices(request: HistogramRequest, step: int, ctx: JobContext) -> Iterator[tuple[int, Tensor]]:
    tensor = request.tensor
    for start in range(0, tensor.rows, step):
        ctx.check()
        yield start, tensor.source.read(request.checkpoint, start, min(tensor.rows, start + step))


def _by_slices(
    request: HistogramRequest, strategy: _Strategy, step: int, reach: ReachTally, ctx: JobContext
) -> tuple[int, _Apply]:
    """Rows of a slice, and how to quantize it so that it is what it would be inside the whole.

    raises  what fitting raises; UnsupportedFormat when the whole is needed at once and too large
    """
    tensor, chosen = request.tensor, strategy.format
    if strategy.multiple:
        return max(1, step // strategy.multiple) * strategy.multiple, lambda w: strategy.apply(w, ctx)
    if strategy.method.name == "nearest":
        from core.methods.options import as_fitted

        w = tensor.source.read(request.checkpoint, 0, tensor.rows)
        grid = as_fitted(chosen, strategy.params).fit(w, strategy.stats.get(Statistic.IMPORTANCE))
        ctx.check()
        if is_shared(grid):
            reach.look(chosen, grid, w[:1])
            return step, lambda w: (chosen.decode(chosen.encode(w, grid), grid), grid)
    if tensor.numel > WHOLE_WEIGHTS:
        raise UnsupportedFormat(
            f"{request.label or chosen.name} quantizes all {tensor.numel:,} weights at once, too many for a picture",
            "the error is known after the run",
        )
    return tensor.rows, lambda w: strategy.apply(w, ctx)


class _Tally:
    """Everything that is counted in one pass over weights whose range is known."""

    def __init__(self, bounds: tuple[float, float]) -> None:
        self._original = Counter(*bounds, BINS * FINE)
        self._dequantized = Counter(*bounds, BINS * FINE)
        self._residual = MirrorCounter(BINS * FINE)
        self._sums, self._zeros = ErrorSums(), 0

    def add(self, w: Tensor, x: NDArray[np.float32], pair: tuple[Tensor, Grid] | None) -> None:
        """w as read, x the same as float32, and what it became."""
        self._original.add(x.reshape(-1))
        if pair is None:
            return
        y = pair[0].numpy()
        self._dequantized.add(y.reshape(-1))
        self._residual.add((x - y).reshape(-1))
        self._zeros += y.size - int(np.count_nonzero(y))
        self._sums = self._sums.add(w, pair[0])

    def result(
        self,
        request: HistogramRequest,
        moments: Moments,
        exact: bool,
        reach: Reach | None,
        strategy: _Strategy | None,
        notes: list[str],
        pending: bool = False,
        quantiles: tuple[float, ...] = (),
    ) -> HistogramResult:
        plain = HistogramResult(
            request.tensor.name,
            request.label,
            request.tensor.rows,
            request.tensor.columns,
            exact,
            moments,
            self._original.counts(),
            notes=tuple(notes),
            pending=pending,
            quantiles=quantiles,
        )
        if strategy is None or not self._sums.count or self._sums.count != moments.count:
            return plain
        return replace(
            plain,
            dequantized=self._dequantized.counts(),
            residual=self._residual.counts(),
            error=self._sums,
            reach=reach,
            zeros=self._zeros,
            notes=(*notes, strategy.note) if strategy.note else tuple(notes),
        )


def _range(moments: Moments, reach: ReachTally) -> tuple[float, float]:
    """Where bins begin and end. Around a single value by half of it, or by ½ around 0."""
    if not moments.finite:
        return 0.0, 1.0
    low, high = moments.minimum, moments.maximum
    size = max(-low, high)
    # Not farther than this beyond the weights, whatever a format's levels are.
    low = min(low, max(reach.lowest, low - size / 2))
    high = max(high, min(reach.highest, high + size / 2))
    if low < high:
        return low, high
    half = abs(low) / 2 or 0.5
    return low - half, high + half


def _float32(w: Tensor) -> NDArray[np.float32]:
    """The same shape, on the CPU."""
    import torch

    return w.detach().to("cpu", torch.float32).contiguous().numpy()
