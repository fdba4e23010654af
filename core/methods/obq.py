"""OBQ: of every row the weight is rounded next whose rounding costs least, and all the others make up for it, exactly.
Frantar & Alistarh 2022, arXiv:2208.11580. GPTQ is what remains of it when all rows take their columns in one order.

The paper's order is not the best there is. Least cost first means that columns with large inputs come late, when few
are left to make up for them; where inputs are uneven, GPTQ's order, largest first, has the lower error in most rows. So
`search` is

    paper   the paper's order alone
    best    the paper's order and GPTQ's, each then polished, and of these four every row keeps the one with the lowest
            output error. Polishing gives single weights their best level with all others as they are, and moves pairs
            of weights by a level each, as long as that lowers the error.

Weights beyond the outermost level are rounded before all others, the farthest first: later they would only be farther
off. The grid is that of GPTQ's order by columns, fitted to the original weights. Each row costs columns³ operations, so
this is for small layers, and the measure of GPTQ.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from core.context import SILENT, JobContext
from core.errors import CalibrationError
from core.formats.base import Format, Grid, Quantized
from core.methods.base import Method, Statistic
from core.methods.gptq import COLUMNS, Job, required, solve
from core.methods.options import DAMP, EFFORT_OF_GRIDS, RANGE_SEARCHED, effort_of, no_such_effort, with_range
from core.parameters import Parameter

if TYPE_CHECKING:
    from torch import Tensor

# More columns than this are refused: a row of 1024 takes about a third of a second.
MOST_COLUMNS = 1024
# Rows between two looks at the stop button.
_ROWS = 8
# Times that polishing goes through a row, at most; a dozen is usual.
_PASSES = 200
PAPER, BETTER = "paper", "best"


class Obq(Method):
    name: ClassVar[str] = "obq"
    title: ClassVar[str] = "OBQ"
    help: ClassVar[str] = (
        "Every row in its own order, then polished; never worse than GPTQ on the same grid. Slow: "
        f"up to {MOST_COLUMNS} columns. Needs calibration."
    )
    needs: ClassVar[frozenset[Statistic]] = frozenset({Statistic.HESSIAN})
    parameters: ClassVar[tuple[Parameter, ...]] = (
        DAMP,
        Parameter(
            "search",
            "choice",
            BETTER,
            "Search",
            "paper: the least costly weight first; best: GPTQ's order too, both polished, and the best for every row.",
            choices=(PAPER, BETTER),
        ),
        EFFORT_OF_GRIDS,
        RANGE_SEARCHED,
    )

    def misfit(self, format: Format) -> str | None:
        from core.methods.ladders import ladder_of

        # 256 columns are whole blocks of every format.
        return None if ladder_of(format, 256) is not None else "needs a code of its own for every weight"

    def unsuited(self, format: Format, params: Mapping[str, Any]) -> str | None:
        return no_such_effort(format, params)

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
        given = self.given(params)
        fitted = with_range(format, given["range"])
        effort = effort_of(format, given["effort"])
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
        rows = Rows(fitted, w, grid, on_lanes(w))
        index = rows.greedy(inverse, ctx)
        if given["search"] == BETTER:
            index = rows.best((index, rows.position(solve(w, job, factor, ctx).codes)), hessian, given["damp"], ctx)
        return Quantized(fitted, (w.shape[0], columns), codes=rows.codes(index), grid=grid, fallbacks=factor.remarks)

    def forget(self) -> None:
        from core.methods.hessian import FACTORS

        FACTORS.forget()


class Rows:
    """The rows of a matrix, floating [rows, columns], on a fixed grid, in float64."""

    def __init__(self, format: Format, w: Tensor, grid: Grid, lanes: bool) -> None:
        import torch

        from core.methods.ladders import ladder_of, lines_of

        ladder = ladder_of(format, w.shape[1])
        assert ladder is not None
        self.w, self.ladder, self.lanes = w.detach().double().contiguous(), ladder, lanes
        lines = lines_of(format, grid)
        shape = (w.shape[0], lines.step.shape[1])
        run = torch.arange(w.shape[1], device=w.device) // (lines.width or w.shape[1])
        none = torch.zeros(1, 1, device=w.device)

        def spread(part: Tensor | None) -> Tensor:
            return (none if part is None else part).double().expand(shape).index_select(1, run).contiguous()

        self.step, self.zero, self.shift = (spread(part) for part in (lines.step, lines.zero, lines.shift))
        values = ladder.values.to(w.device).double()
        self.values, self.bounds = values, (values[1:] + values[:-1]) / 2
        self.low = float(values[0] - (self.bounds[0] - values[0]))
        self.high = float(values[-1] + (values[-1] - self.bounds[-1]))

    def codes(self, index: Tensor) -> Tensor:
        """The format's codes of positions on the ladder, uint8 [rows, columns]."""
        return self.ladder.codes.to(index.device)[index.int()]

    def position(self, codes: Tensor) -> Tensor:
        """Positions of codes that came from the ladder."""
        import torch

        places = torch.zeros(256, dtype=torch.uint8, device=codes.device)
        known = self.ladder.codes.to(codes.device).view(torch.uint8).int()
        places[known] = torch.arange(len(known), dtype=torch.uint8, device=codes.device)
        return places[codes.contiguous().view(torch.uint8).int()]

    def decoded(self, index: Tensor) -> Tensor:
        return (self.values[index.int()] - self.zero) * self.step + self.shift

    def cost(self, index: Tensor, hessian: Tensor) -> Tensor:
        """e H eᵀ of every row, float64 [rows]."""
        e = self.w - self.decoded(index)
        return (e @ hessian.to(e.device).double() * e).sum(1)

    def best(self, starts: Sequence[Tensor], hessian: Tensor, damp: float, ctx: JobContext = SILENT) -> Tensor:
        """Of these positions and of what polishing makes of them, those of the lowest error, row by row."""
        import torch

        damped = hessian.to(self.w.device, torch.float64, copy=True)
        damped.diagonal().add_(damp * damped.diagonal().mean())
        found = torch.stack([*starts, *(self.polished(start, damped, ctx) for start in starts)])
        costs = torch.stack([self.cost(index, hessian) for index in found])
        return found[costs.argmin(0), torch.arange(len(self.w), device=found.device)]

    def _pieces(self, ctx: JobContext) -> Iterator[tuple[slice, tuple[Tensor, Tensor, Tensor, Tensor]]]:
        for start in range(0, len(self.w), _ROWS):
            ctx.check()
            rows = slice(start, start + _ROWS)
            yield rows, (self.w[rows], self.step[rows], self.zero[rows], self.shift[rows])

    def greedy(self, inverse: Tensor, ctx: JobContext = SILENT) -> Tensor:
        """Positions, uint8 [rows, columns], in the paper's order.

        inverse  float64 [columns, columns], of the damped Hessian
        """
        import torch

        index = torch.empty(self.w.shape, dtype=torch.uint8, device=self.w.device)
        for rows, (w, step, zero, shift) in self._pieces(ctx):
            if self.lanes:
                from core.methods.lanes_obq import greedy

                given = (t.numpy() for t in (w, inverse, step, zero, shift, self.values, self.bounds))
                greedy(*given, self.low, self.high, index[rows].numpy())
            else:
                for row in range(rows.start, rows.start + len(w)):
                    index[row] = self._greedy(row, inverse)
        return index

    def _greedy(self, row: int, inverse: Tensor) -> Tensor:
        """One row: the same steps in torch, on any device."""
        import torch

        x, h = self.w[row], inverse.clone()
        step, zero, shift = self.step[row], self.zero[row], self.shift[row]
        index = torch.empty(len(x), dtype=torch.uint8, device=x.device)
        still = torch.ones(len(x), dtype=torch.bool, device=x.device)
        for _ in range(len(x)):
            t = torch.where(step == 0, zero, (x - shift) / step + zero)
            level = torch.searchsorted(self.bounds, t)
            miss = x - ((self.values[level] - zero) * step + shift)
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

    def polished(self, start: Tensor, damped: Tensor, ctx: JobContext = SILENT) -> Tensor:
        """Positions after the changes that lower e H eᵀ, with this Hessian, float64 [columns, columns]."""
        index = start.clone()
        for rows, (w, step, zero, shift) in self._pieces(ctx):
            if self.lanes:
                from core.methods.lanes_obq import polish

                given = (t.numpy() for t in (w, damped, step, zero, shift, self.values, self.bounds))
                polish(*given, _PASSES, index[rows].numpy())
            else:
                for row in range(rows.start, rows.start + len(w)):
                    index[row] = self._polished(row, index[row], damped)
        return index

    def _polished(self, row: int, index: Tensor, damped: Tensor) -> Tensor:
        import torch

        w, step, zero, shift = self.w[row], self.step[row], self.zero[row], self.shift[row]
        at, own, last = index.long(), damped.diagonal(), len(self.values) - 1
        e = w - ((self.values[at] - zero) * step + shift)
        pull = e @ damped
        least = -1e-9 * float(e @ pull)
        for _ in range(_PASSES):
            changed = False
            for k in range(len(w)):
                if own[k] <= 0 or step[k] == 0:
                    continue
                t = (w[k] - e[k] + pull[k] / own[k] - shift[k]) / step[k] + zero[k]
                level = torch.searchsorted(self.bounds, t)
                d = w[k] - ((self.values[level] - zero[k]) * step[k] + shift[k]) - e[k]
                if 2 * d * pull[k] + d * d * own[k] < least:
                    at[k], e[k], changed = level, e[k] + d, True
                    pull = pull + d * damped[k]
            for k in range(len(w)):
                near = torch.stack([(at - 1).clamp(min=0), (at + 1).clamp(max=last)])
                move = (self.values[at] - self.values[near]) * step
                price = torch.where((move == 0) | (own <= 0), torch.inf, 2 * move * pull + move * move * own)
                both = price[:, k, None, None] + price + 2 * move[:, k, None, None] * move * damped[k]
                both[..., k] = price[:, k, None]  # of one alone
                flat = int(both.argmin())
                if not float(both.view(-1)[flat]) < least:
                    continue
                one, rest = divmod(flat, 2 * len(w))
                two, other = divmod(rest, len(w))
                for place, way in ((k, one), (other, two))[: 1 if other == k else 2]:
                    at[place] += 2 * way - 1
                    pull = pull + move[way, place] * damped[place]
                    e[place] += move[way, place]
                changed = True
            if not changed:
                break
        return at.to(torch.uint8)
