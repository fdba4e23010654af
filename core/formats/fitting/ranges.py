"""How far the levels of a uniform format reach, otherwise than from the smallest weight to the largest: a percentile of
the weights, or the reach with the lowest squared error.

A *run* is the weights that share a scale: a group, a row, a column or the whole matrix. The search tries many scales
(with a zero point: at several places of the zero) between one that clips at about the root mean square and one that
reaches a quarter beyond the largest weight, then closer ones around the best, and moves each to where its own codes
want it, by Σw·e·q / Σw·q² with e the error. The answer is rounded to the stored type, and is never worse than the range
from smallest to largest.

Here is the torch form, for any device and for runs too long to be widened as a whole; lanes_range.py does the same for
short runs on one CPU core, with equal results: all sums have an order of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from core.formats.base import Grid
from core.formats.checks import checked_importance, computable
from core.formats.fitting import PIECE, on_lanes
from core.formats.fitting.searches import root

if TYPE_CHECKING:
    from core.formats.uniform import Uniform

# Sums are float32 over at most this many weights, and float64 from there on.
BLOCK = 512
# Weights side by side in sums that look at each weight once.
WIDTH = 16
# Adding and subtracting 1.5 · 2^23 rounds to the nearest whole number, ties to even.
ROUND = 12582912.0
# Longer runs are widened in segments of this many weights; a multiple of BLOCK.
SEGMENT = 1 << 18
# Columns of a row-major matrix that are looked at together: a cache line's worth and more.
COLUMNS = 64
# Share of an error by which float32 sums may make it look smaller: it is added before errors are compared.
DOUBT = 2.0**-16


def percentile_ends(runs: Tensor, percent: float) -> tuple[Tensor, Tensor]:
    """Low and high end of every run, float32 [runs]: `percent` of its weights lie between them and half of the others
    beyond either, interpolated as in numpy.quantile.

    runs  floating [runs, n], finite, n > 0
    """
    count = runs.shape[1]
    place = (1 - percent / 100) / 2 * (count - 1)
    whole = int(place)
    wanted = min(count, whole + 2)
    step = max(1, PIECE // count)
    ends: tuple[list[Tensor], list[Tensor]] = [], []
    for start in range(0, runs.shape[0], step):
        piece = computable(runs[start : start + step])
        for found, largest in zip(ends, (False, True), strict=True):
            outer = torch.topk(piece, wanted, 1, largest).values.double()
            near, far = outer[:, -1], outer[:, whole]
            found.append((far + (near - far) * (place - whole)).float())
    return torch.cat(ends[0]), torch.cat(ends[1])


@dataclass(frozen=True)
class Round:
    """Tries around the best so far.

    reach    how far to either side, in units of the first tries' distance
    offsets  of the zero point
    centres  1, or 2: the second best as well
    places   how many scales from one side to the other
    """

    reach: float
    offsets: tuple[float, ...]
    centres: int
    places: int


@dataclass(frozen=True)
class Schedule:
    """What is tried: `scales` between the ends, at every offset of the zero point; then the rounds."""

    scales: int
    offsets: tuple[float, ...]
    rounds: tuple[Round, ...]


@lru_cache(maxsize=16)
def schedule(width: int, symmetric: bool) -> Schedule:
    """The wider the codes, the more scales: the error varies with the place of ever more levels."""
    finer = 1 << max(0, width - 4)
    if symmetric:
        return Schedule(32 * finer - 1, (0.0,), (Round(1, (0.0,), 2, 16),))
    step = float(max(1, 1 << width >> 5))
    around = (Round(1.5, (-1.0, 0.0, 1.0), 1, 10), Round(1, (0.0,), 1, 32))
    return Schedule(19 * finer, (0.0, -step, step, -2 * step, 2 * step), around)


def lowest_error(
    format: Uniform, w: Tensor, plain: Grid, low: Tensor, high: Tensor, importance: Tensor | None = None
) -> Grid:
    """The grid with the lowest Σ importance · error² found for every run.

    w           floating [rows, columns], finite
    plain       the grid of low and high; part of the answer wherever nothing better is found
    low, high   float32, smallest and largest weight of every run, shaped like the scales
    importance  float32 [columns] or None
    """
    runs = format.runs_of(w)
    weights = _weights(format, w, importance)
    shape = plain["scale"].shape
    parts = {key: part.clone().view(-1) for key, part in plain.parts.items()}
    low, high = low.reshape(-1, 1), high.reshape(-1, 1)
    for part in _batches(format, w, runs):
        batch = _Batch(runs[part], weights, low[part], high[part])
        zero = parts["zero_point"][part] if "zero_point" in parts else None
        scale, zero = _searched(format, batch, parts["scale"][part], zero)
        parts["scale"][part] = scale
        if zero is not None:
            parts["zero_point"][part] = zero
    return Grid({key: part.view(shape) for key, part in parts.items()})


def _weights(format: Uniform, w: Tensor, importance: Tensor | None) -> Tensor:
    """float32 [groups, n or a divisor of n]: the weights of runs, which repeat every `groups`."""
    imp = checked_importance(importance, w.shape[1])
    # Within a column all weights are equally important.
    if imp is None or format.granularity == "column":
        count = w.shape[0] if format.granularity == "column" else format.group or w.shape[1]
        return torch.ones(1, count, device=w.device)
    return imp.to(w.device).view(-1, format.group or w.shape[1])


def _batches(format: Uniform, w: Tensor, runs: Tensor) -> Iterator[slice]:
    """Slices of runs that are looked at together; each begins a row of the matrix."""
    per_row = format.scales_shape((w.shape[0], w.shape[1]))[1] if format.granularity == "group" else 1
    step = max(1, PIECE // (runs.shape[1] * per_row)) * per_row
    if format.granularity == "column":
        step = max(step, COLUMNS)
    for start in range(0, runs.shape[0], step):
        yield slice(start, start + step)


class _Batch:
    """Some runs, scaled by powers of two so that squares neither overflow nor vanish.

    low, high  float32 [runs, 1], in these units
    unit       float32 [runs, 1]: weights are multiplied by it
    weights    float32 [groups, n or a divisor of n]
    whole      all weights, float32 [runs, n]; None where the runs are longer than a segment
    """

    def __init__(self, runs: Tensor, weights: Tensor, low: Tensor, high: Tensor) -> None:
        self._runs, self.weights = runs, weights
        largest = torch.maximum(-low, high)
        exponent = (-torch.frexp(largest)[1]).clamp(-126, 127).to(torch.int32)
        self.unit = (exponent + 127 << 23).view(torch.float32)
        self.low, self.high = low * self.unit, high * self.unit
        self.whole = self._segment(0, runs.shape[1]) if runs.shape[1] <= SEGMENT else None

    def _segment(self, start: int, stop: int) -> Tensor:
        return self._runs[:, start:stop].to(torch.float32).contiguous() * self.unit

    def segments(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Weights float32 [runs, n] and their importance float32 [groups, n]."""
        count = self._runs.shape[1]
        for start in range(0, count, SEGMENT):
            stop = min(count, start + SEGMENT)
            x = self.whole if self.whole is not None else self._segment(start, stop)
            w = self.weights
            if w.shape[1] != count or self.whole is None:
                w = w[:, torch.arange(start, stop, device=w.device) % w.shape[1]]
            yield x, w

    def share(self) -> Tensor:
        """Σw of a run, float64 [groups]."""
        return _folded(self.weights.double())[:, 0] * (self._runs.shape[1] // self.weights.shape[1])


def _folded(x: Tensor) -> Tensor:
    """Row sums [rows, 1], by adding halves: the same on every device. May overwrite x."""
    while x.shape[1] > 1:
        half = (x.shape[1] + 1) // 2
        x[:, : x.shape[1] - half] += x[:, half:]
        x = x[:, :half]
    return x


def _searched(format: Uniform, batch: _Batch, scale: Tensor, zero: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Stored scale and zero point [runs] of lowest error; those given are of the range from smallest to largest."""
    unit = batch.unit[:, 0]
    plain = scale.float() * unit
    place = torch.zeros_like(plain) if zero is None else zero.float()
    if batch.whole is not None and on_lanes(batch.whole):
        best, reference = _on_lanes(format, batch, plain, place)
    else:
        best, reference = _in_torch(format, batch, plain[:, None], place[:, None])
    error, moved, where, spread = best[:, 0].unbind(1)
    stored = (moved.float() / unit).to(scale.dtype)
    # The error with the same codes; with the nearest ones it is no larger.
    away = stored.double() * unit.double() - moved
    error = error + away * away * spread
    farthest = torch.maximum(where - format.qmin, format.qmax - where).float()
    better = (error < reference) & (batch.low < batch.high).logical_or(batch.low != 0)[:, 0]
    better &= (stored > 0) & (stored.float() * farthest).isfinite()
    kept = torch.where(better, stored, scale)
    return kept, None if zero is None else torch.where(better, where.to(zero.dtype), zero)


def _on_lanes(format: Uniform, batch: _Batch, plain: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """As _in_torch, with plain and place of shape [runs]."""
    from core.formats.fitting import lanes_range

    assert batch.whole is not None
    x, w = next(batch.segments())
    out = np.zeros((len(plain), 3, 4))
    lanes_range.search(
        x.numpy(), w.contiguous().numpy(), batch.share().numpy(),
        batch.low.view(-1).numpy(), batch.high.view(-1).numpy(), plain.numpy(), place.numpy(), format.symmetric,
        np.float32(format.qmax - format.qmin), np.float32(format.qmin), np.float32(format.qmax),
        *_tables(format.width, format.symmetric), BLOCK, out,
    )  # fmt: skip
    found = torch.from_numpy(out)
    return found[:, :2], found[:, 2, 0]


@lru_cache(maxsize=16)
def _tables(width: int, symmetric: bool) -> tuple[Any, ...]:
    """A schedule as lanes_range.search takes it."""
    plan = schedule(width, symmetric)
    counts = np.array([(len(r.offsets), r.centres, r.places) for r in plan.rounds])
    reaches = np.array([r.reach for r in plan.rounds], np.float32)
    beside, places = (np.zeros((len(counts), counts[:, k].max()), np.float32) for k in (0, 2))
    for i, turn in enumerate(plan.rounds):
        beside[i, : len(turn.offsets)] = turn.offsets
        places[i, : turn.places] = _evenly(-1, turn.places).numpy()
    return _evenly(0, plan.scales).numpy(), np.array(plan.offsets, np.float32), counts, reaches, beside, places


def _evenly(start: float, count: int) -> Tensor:
    """float32 [count] from start to 1."""
    return torch.from_numpy(np.linspace(start, 1, count).astype(np.float32))


def _in_torch(format: Uniform, batch: _Batch, plain: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """The two best tries, float64 [runs, 2, 4] (error, scale, zero, Σw·q²), and the error of the plain scale, [runs].

    plain, place  float32 [runs, 1]: scale and zero point of the range from smallest to largest
    """
    plan = schedule(format.width, format.symmetric)
    device = plain.device
    steps = torch.full_like(plain, format.qmax - format.qmin)
    below, above = _root_mean_square(batch)
    if format.symmetric:
        span = 2 * torch.maximum(-batch.low, batch.high)
        least = 2 * root(below * below + above * above)
    else:
        span, least = batch.high.clamp(min=0) - batch.low.clamp(max=0), below + above
    widest = torch.where(span > 0, 1.25 * span / steps, torch.ones_like(span))
    narrow = torch.minimum(0.9 * least / steps, 0.7 * widest)
    narrow = torch.where(narrow > 0, narrow, 0.01 * widest)
    ratio = widest / narrow
    near = (ratio - 1) / root(ratio) / torch.full_like(ratio, plan.scales - 1)

    # Nearly geometric, and of exactly rounded operations only.
    along = (widest - narrow) * _evenly(0, plan.scales).to(device)
    every = root(narrow * widest * ((narrow + along) / (widest - along)))
    scales, zeros = [plain], [place]
    for offset in plan.offsets:
        scales.append(every)
        zeros.append((place + offset).clamp(format.qmin, format.qmax).expand(every.shape))
    best = torch.zeros(len(plain), 2, 4, dtype=torch.float64, device=device)
    best[:, :, 0], best[:, :, 1] = float("inf"), 1
    best, given = _look(format, batch, torch.cat(scales, 1), torch.cat(zeros, 1), best)
    reference = given[:, 0]
    for turn in plan.rounds:
        scales, zeros = [], []
        t = turn.reach * near * _evenly(-1, turn.places).to(device)
        for k in range(turn.centres):
            centre, middle = best[:, k, 1:2].float(), best[:, k, 2:3].float()
            moved = centre * (1 + t)
            moved = torch.where(moved > 0, moved, centre)
            for offset in turn.offsets:
                scales.append(moved)
                zeros.append((middle + offset).clamp(format.qmin, format.qmax).expand(moved.shape))
        best, _ = _look(format, batch, torch.cat(scales, 1), torch.cat(zeros, 1), best)
    return best, reference


def _look(format: Uniform, batch: _Batch, scale: Tensor, zero: Tensor, best: Tensor) -> tuple[Tensor, Tensor]:
    """The two best of `best` and of these tries, each scale moved to suit its own codes; and the errors of the scales
    as given, float64 [runs, tries].

    scale, zero  float32 [runs, tries]
    best         float64 [runs, 2, 4]
    """
    sums = torch.zeros(3, *scale.shape, dtype=torch.float64, device=scale.device)
    for x, w in batch.segments():
        if on_lanes(x):
            _add_sums_on_lanes(x, w, scale, zero, format, sums)
        else:
            add_sums(x, w, scale, format.qmin - zero, format.qmax - zero, sums)
    error, slope, square = sums
    shift = torch.where(square > 0, slope / square, torch.zeros_like(slope))
    moved = (scale.double() + shift).float()
    sound = (square > 0) & (moved > 0)
    error = torch.where(sound, error - shift * slope, error) + error * DOUBT
    moved = torch.where(sound, moved, scale)
    every = torch.cat((best, torch.stack((error, moved.double(), zero.double(), square), 2)), 1)
    first = every[:, :, 0].argmin(1, keepdim=True)
    second = every[:, :, 0].scatter(1, first, float("inf")).argmin(1, keepdim=True)
    two = torch.cat((first, second), 1)
    return every.gather(1, two[:, :, None].expand(-1, -1, 4)), sums[0]


def add_sums(x: Tensor, w: Tensor, scale: Tensor, bottom: Tensor, top: Tensor, out: Tensor) -> None:
    """Adds to out, float64 [3, runs, tries]: Σw·e², Σw·e·q, Σw·q² with e = x − scale · q and q = x / scale rounded,
    between bottom and top.

    x                   float32 [runs, n]
    w                   float32 [groups, n], run r taking row r mod groups
    scale, bottom, top  float32 [runs, tries]
    """
    blocks, weights = _blocks(x), _blocks(w.repeat(len(x) // len(w), 1))
    inverse = torch.ones_like(scale) / scale
    scale, inverse, bottom, top = (t[:, None] for t in (scale, inverse, bottom, top))
    sums = torch.zeros(3, *blocks.shape[:2], scale.shape[2], device=x.device)
    for i in range(blocks.shape[2]):
        v, g = blocks[:, :, i, None], weights[:, :, i, None]
        q = torch.minimum(torch.maximum(v * inverse, bottom), top) + ROUND - ROUND
        e = v - scale * q
        sums[0] += g * e * e
        sums[1] += g * e * q
        sums[2] += g * q * q
    for k in range(blocks.shape[1]):
        out += sums[:, :, k].double()


def _blocks(x: Tensor) -> Tensor:
    """[runs, blocks, weights of a block] of [runs, n], filled up with zeros, which add nothing to any sum."""
    size = min(BLOCK, x.shape[1])
    return torch.nn.functional.pad(x, (0, -x.shape[1] % size)).view(len(x), -1, size)


def _add_sums_on_lanes(x: Tensor, w: Tensor, scale: Tensor, zero: Tensor, format: Uniform, out: Tensor) -> None:
    """As add_sums, run by run: for few and long ones."""
    from core.formats.fitting import lanes_range

    ends = np.float32(format.qmin), np.float32(format.qmax)
    for r in range(len(x)):
        sums = out[:, r].contiguous()
        given = (t.numpy() for t in (x[r], w[r % len(w)], scale[r], zero[r]))
        lanes_range.add_sums(*given, *ends, BLOCK, sums.numpy())
        out[:, r] = sums


def _root_mean_square(batch: _Batch) -> tuple[Tensor, Tensor]:
    """√(Σw·x²/Σw) over the negative and over the positive weights, float32 [runs, 1]."""
    runs = len(batch.unit)
    total = torch.zeros(2, runs, dtype=torch.float64, device=batch.unit.device)
    for x, w in batch.segments():
        if on_lanes(x):
            from core.formats.fitting import lanes_range

            for r in range(runs):
                sums = total[:, r].contiguous()
                lanes_range.add_squares(x[r].numpy(), w[r % len(w)].numpy(), BLOCK, sums.numpy())
                total[:, r] = sums
        else:
            add_squares(x, w, total)
    share = batch.share()
    below, above = (total / share.repeat(runs // len(share))).sqrt().float()[:, :, None]
    return below, above


def add_squares(x: Tensor, w: Tensor, out: Tensor) -> None:
    """Adds to out, float64 [2, runs]: Σw·x² over the negative and over the positive weights; x and w as in add_sums."""
    for k, side in enumerate((x.clamp(max=0), x.clamp(min=0))):
        square = _blocks(side * side * w.repeat(len(x) // len(w), 1))
        square = torch.nn.functional.pad(square, (0, -square.shape[2] % WIDTH))
        sums = torch.zeros(*square.shape[:2], WIDTH, device=x.device)
        for piece in square.split(WIDTH, 2):
            sums += piece
        blocks = _folded(sums.view(-1, WIDTH)).view(square.shape[:2])
        for i in range(blocks.shape[1]):
            out[k] += blocks[:, i].double()
