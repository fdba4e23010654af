"""AWQ (activation-aware weight quantization): weights that meet large inputs are made larger before rounding, and the
inputs smaller by as much, so that they lose less; then the range of every group is cut where that helps.

The scale of input j is x_j^r / w_j^(1−r), from the mean |x| of the input and the mean |w|, relative to its group's
largest, of the weights it meets. r is the best of a grid by the error of the layers' outputs. Scales move into what
precedes the layers (core/calibration/folding.py); where nothing can take them, only the ranges are searched, and the
report says so. Both searches quantize in the format at hand, whatever it is.

Source: Lin et al. 2023, arXiv:2306.00978, and the choices of AutoAWQ: 20 ratios, ranges down to a half in 10 steps,
errors of a group by its own part of the outputs. Otherwise than there, unscaled and uncut are always among the choices,
tied inputs (heads that share their values) get one scale, and columns without any input keep theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from core.calibration.statistics import Statistic
from core.context import SILENT, JobContext
from core.formats.base import EXACT, Format, Quantized
from core.methods.base import Consumer, Method, Scaling
from core.methods.scaling import evened, only_rounds, output_error, over_inputs
from core.parameters import Parameter

if TYPE_CHECKING:
    import torch

MEAN, RMS = "mean", "rms"
# Ranges are cut to 1 − step/20 of their largest weight, in ten steps.
_STEPS, _STEP = 10, 0.05
_EPSILON = 1e-4


class Awq(Method):
    name: ClassVar[str] = "awq"
    title: ClassVar[str] = "AWQ"
    help: ClassVar[str] = (
        "Scales inputs so that weights that matter round finer, and searches ranges. Needs calibration; changes norms."
    )
    needs: ClassVar[frozenset[Statistic]] = frozenset({Statistic.HESSIAN, Statistic.MAGNITUDE, Statistic.IMPORTANCE})
    uses: ClassVar[frozenset[Statistic]] = frozenset({Statistic.ACTIVATIONS})
    folds: ClassVar[frozenset[str]] = frozenset({"norm", "matrix"})
    parameters: ClassVar[tuple[Parameter, ...]] = (
        Parameter("scale", "bool", True, "Scale", "Search scales of the inputs and move them into the layer before."),
        Parameter("ratios", "int", 20, "Ratios", "How many ratios of the scale search are tried.", 1, 200),
        Parameter(
            "importance",
            "choice",
            MEAN,
            "Importance",
            "How large an input counts: mean: of its absolute value; rms: root of its mean square.",
            choices=(MEAN, RMS),
        ),
        Parameter("duo", "bool", True, "Duo", "Scales go by the weights' sizes too, not by the inputs' alone."),
        Parameter("clip", "bool", True, "Clip", "Search the range of every group."),
    )

    def misfit(self, format: Format) -> str | None:
        return only_rounds(format)

    def scaling(
        self,
        consumers: Sequence[Consumer],
        tied: torch.Tensor | None,
        params: Mapping[str, Any],
        ctx: JobContext = SILENT,
    ) -> Scaling:
        import torch

        ones = torch.ones_like(consumers[0].w[0])
        given = self.given(params)
        if not given["scale"]:
            return Scaling(ones)
        x = over_inputs(consumers, tied, lambda c: _size_of_inputs(c, given["importance"]))
        w = evened(_size_of_weights(consumers), tied)
        live = x > 0
        if not bool(live.any()):
            return Scaling(ones)
        ratios, duo = int(given["ratios"]), given["duo"]
        unscaled = sum(self._error(c, ones) for c in consumers)
        best, scales = unscaled, ones
        for n in range(ratios):
            ctx.check()
            tried = _scales(x, w, n / ratios, duo, live)
            error = sum(self._error(c, tried) for c in consumers)
            if error < best:
                best, scales = error, tried
        return Scaling(scales, best / unscaled if unscaled > 0 else 1.0)

    @staticmethod
    def _error(consumer: Consumer, scales: torch.Tensor) -> float:
        importance = consumer.stats[Statistic.IMPORTANCE] / scales.square()
        found = consumer.format.quantize(consumer.w * scales, importance, EXACT).dequantize() / scales
        return output_error(found.sub_(consumer.w), consumer.stats)

    def quantize(
        self,
        w: torch.Tensor,
        format: Format,
        stats: Mapping[Statistic, torch.Tensor],
        params: Mapping[str, Any],
        ctx: JobContext = SILENT,
    ) -> Quantized:
        ctx.check()
        importance, effort = stats[Statistic.IMPORTANCE], format.efforts[-1]
        whole = format.quantize(w, importance, effort)
        if not self.given(params)["clip"]:
            return whole
        w = w.float()
        clipped = _clipped(w, format, stats, ctx)
        found = format.quantize(clipped, importance, effort)
        before = output_error(whole.dequantize() - w, stats)
        return found if output_error(found.dequantize() - w, stats) < before else whole


def _size_of_inputs(consumer: Consumer, importance: str) -> torch.Tensor:
    if importance == RMS:
        return consumer.stats[Statistic.IMPORTANCE].sqrt()
    return consumer.stats[Statistic.MAGNITUDE]


def group_of(format: Format, columns: int) -> int:
    """Columns whose range is searched together: those that are stored together, else the whole row."""
    group = format.columns_per_grid
    return group if group > 1 and columns % group == 0 else columns


def _size_of_weights(consumers: Sequence[Consumer]) -> torch.Tensor:
    """float32 [columns]: mean over all rows of |w| relative to the largest of its group."""
    import torch

    total, rows = torch.zeros_like(consumers[0].w[0]), 0
    for c in consumers:
        groups = c.w.abs().view(c.w.shape[0], -1, group_of(c.format, c.w.shape[1]))
        total += (groups / (groups.amax(2, keepdim=True) + 1e-6)).view_as(c.w).sum(0)
        rows += c.w.shape[0]
    return total / rows


def _scales(x: torch.Tensor, w: torch.Tensor, ratio: float, duo: bool, live: torch.Tensor) -> torch.Tensor:
    import torch

    scales = x.pow(ratio)
    if duo:
        scales = scales / (w.pow(1 - ratio) + _EPSILON)
    scales = scales.clamp(min=_EPSILON)
    scales = scales / (scales[live].max() * scales[live].min()).sqrt()
    return torch.where(live & scales.isfinite(), scales, 1.0)


def _clipped(w: torch.Tensor, format: Format, stats: Mapping[Statistic, torch.Tensor], ctx: JobContext) -> torch.Tensor:
    """Every group's weights within the range that serves its part of the outputs best."""
    import torch

    rows, columns = w.shape
    group = group_of(format, columns)
    count = columns // group
    hessian = stats[Statistic.HESSIAN]
    blocks = hessian.view(count, group, count, group).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    importance = stats[Statistic.IMPORTANCE]
    grouped = w.view(rows, count, group)
    largest = grouped.abs().amax(2, keepdim=True)
    best, limit = torch.full_like(largest, torch.inf), largest
    for step in range(_STEPS):
        ctx.check()
        tried = largest * (1 - step * _STEP)
        cut = grouped.clamp(-tried, tried).view(rows, columns)
        off = (format.quantize(cut, importance, EXACT).dequantize() - w).view(rows, count, group)
        product = torch.bmm(off.transpose(0, 1), blocks).transpose(0, 1)
        error = (product * off).sum(2, keepdim=True)
        better = error < best
        best, limit = torch.where(better, error, best), torch.where(better, tried, limit)
    return grouped.clamp(-limit, limit).view(rows, columns)
