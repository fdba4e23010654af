"""OBQ: of every row the weight is rounded next whose rounding costs least, and all the others make up for it, exactly.
Frantar & Alistarh 2022, arXiv:2208.11580. GPTQ is what remains of it when all rows take their columns in one order.

Least cost first means that the columns with the largest inputs come late, when few are left to make up for them. Where
inputs are uneven the order of GPTQ, largest first, may give the lower error; so each row is done in both, and keeps the
better one.

Weights beyond the outermost level are rounded before all others, the farthest first: later they would only be farther
off. The grid is that of GPTQ's order by columns, fitted to the original weights. Each row costs columns³ operations, so
this is for small layers, and the measure of GPTQ.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from core.context import SILENT, JobContext
from core.errors import CalibrationError
from core.formats.base import BEST, EXACT, Format, Quantized
from core.formats.uniform import RANGES
from core.methods.base import Method, Statistic
from core.methods.gptq import COLUMNS, Job, required, solve, with_range
from core.methods.nearest import AUTO
from core.parameters import Parameter

if TYPE_CHECKING:
    from torch import Tensor

# More columns than this are refused: a row of 1024 takes about a third of a second.
MOST_COLUMNS = 1024
# Rows between two looks at the stop button.
_ROWS = 8


class Obq(Method):
    name: ClassVar[str] = "obq"
    title: ClassVar[str] = "OBQ"
    help: ClassVar[str] = (
        f"As GPTQ, in the best order for every row: slow and exact, up to {MOST_COLUMNS} columns. Needs calibration."
    )
    needs: ClassVar[frozenset[Statistic]] = frozenset({Statistic.HESSIAN})
    parameters: ClassVar[tuple[Parameter, ...]] = (
        Parameter(
            "damp", "float", 0.01, "Damping", "Share of the Hessian's mean diagonal that is added to it.", 0.0, 1.0
        ),
        Parameter(
            "effort",
            "choice",
            AUTO,
            "Effort",
            "Of the grids: exact: llama.cpp's own search; best: a finer one; auto: best where a format has it.",
            choices=(AUTO, EXACT, BEST),
        ),
        Parameter(
            "range",
            "choice",
            "rmse",
            "Range",
            "Of integer formats: minmax: all weights; percentile: all but the outermost; rmse: lowest error, searched.",
            choices=RANGES,
        ),
    )

    def misfit(self, format: Format) -> str | None:
        from core.methods.ladders import ladder_of

        # 256 columns are whole blocks of every format.
        return None if ladder_of(format, 256) is not None else "needs a code of its own for every weight"

    def unsuited(self, format: Format, params: Mapping[str, Any]) -> str | None:
        effort = params.get("effort", AUTO)
        if effort != AUTO and effort not in format.efforts:
            return f"no effort {effort} here, only {' and '.join(format.efforts)}"
        return None

    def too_large(self, columns: int) -> str | None:
        if columns <= MOST_COLUMNS:
            return None
        return f"obq takes up to {MOST_COLUMNS:,} columns, these are {columns:,}"

    def quantize(
        self,
        w: Tensor,
        format: Format,
        stats: Mapping[Statistic, Tensor],
        params: Mapping[str, Any],
        ctx: JobContext = SILENT,
    ) -> Quantized:
        from core.formats.checks import require_finite
        from core.formats.fitting import on_lanes
        from core.methods.hessian import inverted
        from core.methods.ladders import ladder_of

        columns = w.shape[1]
        why = self.too_large(columns)
        if why:
            raise CalibrationError(why, "take gptq")
        if w.numel() == 0:
            return format.quantize(w)
        if ladder_of(format, columns) is None:
            raise CalibrationError(f"obq does not take {format.name} with {columns} columns", "take gptq")
        given = {p.key: params.get(p.key, p.default) for p in self.parameters}
        fitted = with_range(format, given["range"])
        effort = format.efforts[-1] if given["effort"] == AUTO else given["effort"]
        hessian = required(stats, columns)
        job = Job.of(fitted, columns, COLUMNS, True, effort, columns)
        factor, inverse = job.factor(hessian, given["damp"], w.device), inverted(hessian.to(w.device), given["damp"])
        if factor is None or inverse is None:
            done = fitted.quantize(w, stats.get(Statistic.IMPORTANCE), effort)
            done.fallbacks += ("obq → nearest: the Hessian of its inputs cannot be factored",)
            return done
        require_finite(w)
        weight = factor.weight[factor.order.argsort()]
        grid = fitted.fit(w, weight, effort)
        solver = Rows(fitted, w.float().contiguous(), grid, inverse, lanes=on_lanes(w))
        codes = solver.solve(ctx)
        ordered = solve(w, job, factor, ctx).codes
        worse = cost(w, fitted.decode(codes, grid), hessian) > cost(w, fitted.decode(ordered, grid), hessian)
        codes[worse] = ordered[worse]
        return Quantized(fitted, (w.shape[0], columns), codes=codes, grid=grid, fallbacks=factor.remarks)

    def forget(self) -> None:
        from core.methods.hessian import FACTORS

        FACTORS.forget()


def cost(w: Tensor, w_hat: Tensor, hessian: Tensor) -> Tensor:
    """e H eᵀ of every row, float64 [rows]."""
    e = w.double() - w_hat
    return (e @ hessian.to(w.device).double() * e).sum(1)


class Rows:
    """The rows of one matrix: w float32 [rows, columns], inverse float64 [columns, columns]."""

    def __init__(self, format: Format, w: Tensor, grid: Any, inverse: Tensor, *, lanes: bool) -> None:
        import torch

        from core.methods.ladders import ladder_of, lines_of

        ladder = ladder_of(format, w.shape[1])
        assert ladder is not None
        self.w, self.inverse, self.ladder, self.lanes = w, inverse, ladder, lanes
        lines = lines_of(format, grid)
        shape = (w.shape[0], lines.step.shape[1])
        none = torch.zeros(1, 1, device=w.device)
        parts = (lines.step, none if lines.zero is None else lines.zero, none if lines.shift is None else lines.shift)
        self.step, self.zero, self.shift = (part.expand(shape).contiguous() for part in parts)
        columns = torch.arange(w.shape[1], device=w.device)
        self.run = (columns // (lines.width or w.shape[1])).to(torch.int32)
        values = ladder.values.to(w.device)
        self.values, self.bounds = values, (values[1:] + values[:-1]) / 2
        self.low = float(values[0] - (self.bounds[0] - values[0]))
        self.high = float(values[-1] + (values[-1] - self.bounds[-1]))

    def solve(self, ctx: JobContext = SILENT) -> Tensor:
        """Codes [rows, columns]."""
        import torch

        index = torch.empty(self.w.shape, dtype=torch.uint8, device=self.w.device)
        for start in range(0, len(self.w), _ROWS):
            ctx.check()
            stop = min(len(self.w), start + _ROWS)
            if self.lanes:
                from core.methods.lanes_obq import solve

                parts = (self.step, self.zero, self.shift)
                solve(self.w[start:stop].numpy(), self.inverse.numpy(), *(p[start:stop].numpy() for p in parts),
                      self.run.numpy(), self.values.numpy(), self.bounds.numpy(), self.low, self.high,
                      index[start:stop].numpy())  # fmt: skip
            else:
                for row in range(start, stop):
                    index[row] = self._row(row)
        return self.ladder.codes.to(index.device)[index.to(torch.int32)]

    def _row(self, row: int) -> Tensor:
        """Positions on the ladder, uint8 [columns]: the same steps in torch, on any device."""
        import torch

        x, h = self.w[row].double(), self.inverse.clone()
        step, zero, shift = (part[row, self.run].double() for part in (self.step, self.zero, self.shift))
        index = torch.empty(len(x), dtype=torch.uint8, device=x.device)
        still = torch.ones(len(x), dtype=torch.bool, device=x.device)
        for _ in range(len(x)):
            t = torch.where(step == 0, zero, (x - shift) / step + zero)
            level = torch.searchsorted(self.bounds.double(), t)
            miss = x - ((self.values.double()[level] - zero) * step + shift)
            clipped = ((t < self.low) | (t > self.high)) & still & (miss != 0)
            if bool(clipped.any()):
                k = int(torch.where(clipped, miss.abs(), -1.0).argmax())
            else:
                k = int(torch.where(still, miss * miss / h.diagonal(), torch.inf).argmin())
            index[k] = level[k]
            still[k] = False
            x = torch.where(still, x - h[k] * (miss[k] / h[k, k]), x)
            h = h - torch.outer(h[:, k], h[k]) / h[k, k]
            # What is done divides nothing any more.
            h[k, k] = 1.0
        return index
