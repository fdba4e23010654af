"""HQQ: scale and zero of every group move until most weights lie close to a level, and a few far ones count less. Needs
no calibration. Badri & Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models".

Per group, levels are step · q + offset. The sum of |error|^p, p < 1, is split in two easy problems taken in turn:

    errors    s = sign(e) · max(|e| − |e|^(p−1) / β, 0), what is left of an error e, in steps, after shrinking
    offset    mean of (w − s) − step · q;  with refine_scale, the line through the points (q, w − s) instead

Against the reference implementation:
- errors are shrunk in units of the group's step, not of weights, so the result scales with the weights (the reference's
  shrinking never acts on weights as small as a model's: it then reduces to a running mean);
- every group keeps the best of its own iterates, counting the starting point, by mean |error| on the stored, rounded
  grid. The reference stops all groups at once and keeps the last iterate, which may be a worse one;
- no absolute thresholds on ranges or scales: the format's own rules for zero and constant groups apply;
- the scale may move too (refine_scale). For whole zero points that is where the gain is: they hardly ever move.

Here is the method and its torch form; lanes_hqq.py holds the same steps for one CPU core, with equal results.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from core.context import SILENT, JobContext
from core.formats.base import Format, Grid, Quantized
from core.formats.biased import Biased
from core.formats.shifted import Shifted
from core.formats.uniform import Uniform
from core.methods.base import Method, Statistic
from core.parameters import Parameter
from core.tensors import DTYPES

if TYPE_CHECKING:
    from torch import Tensor

# Groups are solved in pieces of about this many weights, so that the steps' intermediate results stay in cache.
PIECE = 1 << 18
# GGML types with a free step and offset per block. (K-quants tie the scales of a super-block together.)
GGML_TOP = {"Q4_1": 15, "Q5_1": 31}


@dataclass(frozen=True, slots=True)
class Levels:
    """How a format stores step · q + offset, q = 0 … top.

    zero   "whole": code of zero, an integer; "shift": the same, a float; "offset": the offset itself
    dtype  of the step, and of a shift or an offset: "F32", "F16" or "BF16"
    qmin   the stored code of q = 0: a code of zero counts from it
    """

    top: int
    zero: str
    dtype: str
    qmin: int = 0

    def stored(self, step: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero as stored, both of `dtype`, for float32 of any shape."""
        import torch

        dtype = DTYPES[self.dtype].torch
        info = torch.finfo(dtype)
        scale = step.to(dtype).clamp(info.smallest_normal * info.eps, info.max)
        if self.zero == "offset":
            return scale, offset.clamp(-info.max, info.max).to(dtype)
        code = (self.qmin - offset / scale.to(torch.float32)).clamp(self.qmin, self.qmin + self.top)
        return scale, (code.round() if self.zero == "whole" else code).to(dtype)

    def rounded(self, step: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
        """Step and offset, float32, that a reader of the stored ones computes with."""
        import torch

        scale, zero = (t.to(torch.float32) for t in self.stored(step, offset))
        return scale, zero if self.zero == "offset" else scale * (self.qmin - zero)


class Hqq(Method):
    name: ClassVar[str] = "hqq"
    title: ClassVar[str] = "HQQ"
    help: ClassVar[str] = (
        "Moves the scale and zero of every group until most weights lie close to a level. Needs no calibration."
    )
    parameters: ClassVar[tuple[Parameter, ...]] = (
        Parameter("p", "float", 0.7, "Norm p", "Errors count as |e|^p: below 1, few large ones count less.", 0.1, 1.0),
        Parameter("beta", "float", 10.0, "Penalty β", "Higher: fewer errors are set aside as outliers.", 0.1, 1e4),
        Parameter("iterations", "int", 20, "Iterations", "At most; a group stops when it no longer improves.", 1, 200),
        Parameter("refine_scale", "bool", True, "Refine scale", "Move the scale as well; published HQQ keeps it."),
    )

    def misfit(self, format: Format) -> str | None:
        if isinstance(format, Uniform):
            if not format.row_local:
                return "needs a scale per row or group"
            return "needs a zero point (an -asym, -shift or -bias format)" if format.symmetric else None
        if getattr(format, "type_name", "") in GGML_TOP:
            return None
        return "needs levels with a scale and a zero of their own per group"

    def quantize(
        self,
        w: Tensor,
        format: Format,
        stats: Mapping[Statistic, Tensor],
        params: Mapping[str, Any],
        ctx: JobContext = SILENT,
    ) -> Quantized:
        import torch

        from core.formats.fitting.compiled import available

        if w.numel() == 0:
            return format.quantize(w)
        given = self.given(params)
        grid = format.fit(w)
        levels = levels_of(format)
        step, offset = lines_of(format, grid)
        shape = step.shape
        step, offset = step.reshape(-1), offset.reshape(-1)
        groups = w.reshape(step.numel(), -1)
        count = max(1, PIECE // groups.shape[1])
        solver = solve_on_lanes if w.device.type == "cpu" and available() else solve
        for start in range(0, groups.shape[0], count):
            ctx.check()
            part = slice(start, start + count)
            step[part], offset[part] = solver(groups[part].to(torch.float32), step[part], offset[part], levels, **given)
        scale, zero = (t.view(shape) for t in levels.stored(step, offset))
        grid = with_lines(format, grid, scale, zero)
        return Quantized(format, (w.shape[0], w.shape[1]), codes=format.encode(w, grid), grid=grid)


def levels_of(format: Format) -> Levels:
    if isinstance(format, Biased):
        return Levels(format.qmax - format.qmin, "offset", format.scale_dtype)
    if isinstance(format, Uniform):
        zero = "shift" if isinstance(format, Shifted) else "whole"
        return Levels(format.qmax - format.qmin, zero, format.scale_dtype, format.qmin)
    return Levels(GGML_TOP[getattr(format, "type_name", "")], "offset", "F16")


def lines_of(format: Format, grid: Grid) -> tuple[Tensor, Tensor]:
    """Step and offset of every group of a fitted grid, float32 [rows, groups]."""
    import torch

    if isinstance(format, Biased):
        # The solver's steps are positive: lines that fall are read from their other end.
        step, offset = grid["scale"].to(torch.float32), grid["bias"].to(torch.float32)
        return step.abs(), offset + step.clamp(max=0) * (format.qmax - format.qmin)
    if not isinstance(format, Uniform):
        return grid["d"].to(torch.float32), grid["m"].to(torch.float32)
    zero = format.zero_of(grid)
    assert zero is not None
    step = grid["scale"].to(torch.float32)
    return step, step * (format.qmin - zero.to(torch.float32))


def with_lines(format: Format, grid: Grid, scale: Tensor, zero: Tensor) -> Grid:
    """The grid with other stored scales and zeros; groups of step 0 (ggml's constant blocks) stay as they are."""
    import torch

    if not isinstance(format, Uniform):
        constant = grid["d"] == 0
        return Grid({"d": torch.where(constant, grid["d"], scale), "m": torch.where(constant, grid["m"], zero)})
    key = next(k for k in grid.parts if k != "scale")
    return Grid({"scale": scale, key: zero.to(grid[key].dtype)})


def solve_on_lanes(
    x: Tensor,
    step: Tensor,
    offset: Tensor,
    levels: Levels,
    *,
    p: float,
    beta: float,
    iterations: int,
    refine_scale: bool,
) -> tuple[Tensor, Tensor]:
    """As `solve`, on one CPU core."""
    import numpy as np

    from core.methods.lanes_hqq import DTYPE_CODES, ZERO_CODES
    from core.methods.lanes_hqq import solve as lanes

    step, offset = step.clone(), offset.clone()
    f = np.float32
    lanes(x.contiguous().numpy(), step.numpy(), offset.numpy(), f(levels.qmin), f(levels.top), ZERO_CODES[levels.zero],
          DTYPE_CODES[levels.dtype], f(p - 1), f(beta), iterations, refine_scale)  # fmt: skip
    return step, offset


def solve(
    x: Tensor,
    step: Tensor,
    offset: Tensor,
    levels: Levels,
    *,
    p: float,
    beta: float,
    iterations: int,
    refine_scale: bool,
) -> tuple[Tensor, Tensor]:
    """The best step and offset found for each group, as stored; never worse in mean |error| than those given.

    x  float32 [groups, weights of a group];  step, offset  float32 [groups], as the format stores them
    """
    import torch

    step, offset = step[:, None], offset[:, None]
    best_step, best_offset = step.clone(), offset.clone()
    # Groups that still improve. A step of 0 leaves nothing to improve.
    going = (step[:, 0] > 0).nonzero()[:, 0]
    x, step, offset = x[going], step[going], offset[going]
    codes, error = assign(x, step, offset, levels.top)
    best = error.abs().sum(1, dtype=torch.float64)
    for _ in range(iterations):
        target = x - shrink(error, step, p, beta)
        step, offset = levels.rounded(*refit(target, codes, step, refine_scale))
        codes, error = assign(x, step, offset, levels.top)
        total = error.abs().sum(1, dtype=torch.float64)
        better = total < best
        going = going[better]
        if not going.numel():
            break
        if not better.all():
            x, step, offset, codes, error, total = (t[better] for t in (x, step, offset, codes, error, total))
        best, best_step[going], best_offset[going] = total, step, offset
    return best_step[:, 0], best_offset[:, 0]


def assign(x: Tensor, step: Tensor, offset: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Nearest q (as float32) and the error x − (step · q + offset)."""
    codes = ((x - offset) / step).round_().clamp_(0, top)
    return codes, x - (step * codes + offset)


def shrink(error: Tensor, unit: Tensor, p: float, beta: float) -> Tensor:
    """sign(e) · max(|e| − |e|^(p−1) / β, 0) with e = error / unit, times unit: what counts as an outlier's own part."""
    import torch

    size = error.abs() / unit
    left = size - power(size, p - 1) / torch.full((), beta, device=size.device)
    return left.clamp_(min=0) * unit * error.sign()


def power(size: Tensor, exponent: float) -> Tensor:
    """size^exponent to about 1e-6, exponent in [−0.9, 0]; operation by operation what lanes_hqq.py does.

    0 gives a large finite number.
    """
    import torch

    from core.methods.lanes_hqq import EXP2, LOG2

    bits = size.view(torch.int32)
    mantissa = (bits & 0x7FFFFF | 0x3F800000).view(torch.float32)
    s = (mantissa - 1) / (mantissa + 1)
    square = s * s
    series = torch.full_like(s, LOG2[0])
    for c in LOG2[1:]:
        series = series * square + c
    y = (((bits >> 23) - 127).to(torch.float32) + series * s) * exponent
    whole = y.round()
    part = y - whole
    result = torch.full_like(part, EXP2[0])
    for c in EXP2[1:]:
        result = result * part + c
    return (whole.to(torch.int32) + 127 << 23).view(torch.float32) * result


def refit(target: Tensor, codes: Tensor, step: Tensor, refine_scale: bool) -> tuple[Tensor, Tensor]:
    """Step and offset, unrounded, that bring step · codes + offset closest to target; step as given unless refined.
    Sums in float64, so that their order does not show."""
    import torch

    t, q = target.to(torch.float64), codes.to(torch.float64)
    count = t.shape[1]
    sum_t, sum_q = t.sum(1, keepdim=True), q.sum(1, keepdim=True)
    if refine_scale:
        spread = count * (q * q).sum(1, keepdim=True) - sum_q * sum_q
        slope = (count * (t * q).sum(1, keepdim=True) - sum_t * sum_q) / spread
        # All on one level, or a line falling: the step stays.
        step = torch.where((spread > 0) & (slope > 0), slope.to(torch.float32), step)
    return step, ((sum_t - step.to(torch.float64) * sum_q) / count).to(torch.float32)
