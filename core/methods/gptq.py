"""GPTQ: columns are rounded one after the other, and those still to come make up for the error of those that are done,
as far as the layer's inputs go together. Frantar et al. 2022, arXiv:2210.17323.

The step itself is in hessian.py's first paragraph. Columns are taken in halves: the first half is done, its errors are
passed on to the second by one multiplication, and each half goes the same way, down to panels of `lazy_cols`, whose
columns go one by one. So nearly all of the work is products of large matrices. (The published code pushes errors ahead
panel by panel; these are the same sums.)

Grids. Where a format fits runs of columns apart (groups, blocks, super-blocks), the grid of a run is fitted when its
first column is reached, to what earlier errors have made of its weights, with D as importance. So GGML's K-quants get
llama.cpp's search, or the finer one, for every super-block. static_groups fits all of them to the original weights.
Formats with one grid for a row or the whole are fitted once, to the original.

Order. act_order takes the columns with the largest inputs first, while there are columns left to make up for them. None
of these orders shows in what is stored:

    off        as stored
    groups     runs by their mean input, columns by input inside a run; every grid is fitted when reached
    columns    columns by input; grids are fitted to the original

Against the published code: dead columns keep their weights (hessian.py); symmetric ranges are symmetric for groups
without negative weights too; groups narrower than a panel are fitted to up-to-date weights, not to those from before
the panel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from core.context import SILENT, JobContext
from core.errors import CalibrationError
from core.formats.base import EXACT, Format, Grid, Quantized
from core.methods.base import Method, Statistic
from core.methods.hessian import FACTORS, Factor, factored, undone
from core.methods.options import AUTO, DAMP, EFFORT_OF_GRIDS, RANGE_SEARCHED, effort_of, no_such_effort, with_range
from core.parameters import Parameter

if TYPE_CHECKING:
    from torch import Tensor

OFF, GROUPS, COLUMNS = "off", "groups", "columns"


class Gptq(Method):
    name: ClassVar[str] = "gptq"
    title: ClassVar[str] = "GPTQ"
    help: ClassVar[str] = (
        "Rounds column by column; later columns make up for the errors of earlier ones. Needs calibration."
    )
    needs: ClassVar[frozenset[Statistic]] = frozenset({Statistic.HESSIAN})
    parameters: ClassVar[tuple[Parameter, ...]] = (
        DAMP,
        Parameter(
            "act_order",
            "choice",
            COLUMNS,
            "Order of columns",
            "Largest inputs first. groups: runs of a grid, then columns inside them; columns: all, on fixed grids.",
            choices=(OFF, GROUPS, COLUMNS),
        ),
        Parameter("static_groups", "bool", False, "Static groups", "Fit every grid to the original weights."),
        Parameter(
            "lazy_cols", "int", 128, "Columns per panel", "A matter of speed; the result is the same but for rounding.",
            8, 4096,
        ),
        EFFORT_OF_GRIDS,
        RANGE_SEARCHED,
    )  # fmt: skip

    def unsuited(self, format: Format, params: Mapping[str, Any]) -> str | None:
        return no_such_effort(format, params)

    def doubt(self, format: Format, params: Mapping[str, Any]) -> str | None:
        if params.get("effort", AUTO) != EXACT or params.get("act_order", COLUMNS) == COLUMNS:
            return None
        # With a level for nothing, and the next ones as far off as the largest weight, errors pile up: output errors of
        # 0.7 of the outputs, where nearest has 0.5 and effort=best 0.08.
        coarse = format.name in ("q2_0", "tq1_0", "tq2_0")
        return f"gptq on exact {format.name} may be worse than nearest: take effort=best" if coarse else None

    def forget(self) -> None:
        FACTORS.forget()

    def quantize(
        self,
        w: Tensor,
        format: Format,
        stats: Mapping[Statistic, Tensor],
        params: Mapping[str, Any],
        ctx: JobContext = SILENT,
    ) -> Quantized:
        if w.numel() == 0:
            return format.quantize(w)
        given = self.given(params)
        hessian, columns = required(stats, w.shape[1]), w.shape[1]
        fitted = with_range(format, given["range"])
        effort = effort_of(format, given["effort"])
        job = Job.of(fitted, columns, given["act_order"], given["static_groups"], effort, given["lazy_cols"])
        factor = job.factor(hessian, given["damp"], w.device)
        if factor is None:
            done = fitted.quantize(w, stats.get(Statistic.IMPORTANCE), effort)
            done.fallbacks += ("gptq → nearest: the Hessian of its inputs cannot be factored",)
            return done
        done = solve(w, job, factor, ctx)
        done.fallbacks += factor.remarks
        return done


def required(stats: Mapping[Statistic, Tensor], columns: int) -> Tensor:
    """The Hessian. Raises CalibrationError when there is none, or one of another size."""
    hessian = stats.get(Statistic.HESSIAN)
    if hessian is None:
        raise CalibrationError("needs the Hessian of its inputs", "give a calibration text")
    if hessian.shape != (columns, columns):
        size = " × ".join(map(str, hessian.shape))
        raise CalibrationError(f"has a Hessian of {size} for {columns} columns", "gather it again")
    return hessian


@dataclass(frozen=True)
class Job:
    """What is to be done with a matrix.

    width      columns of a grid that is fitted when reached; 0: one grid, fitted to the original
    run        columns that stay together in any order
    lazy       columns of a panel
    """

    format: Format
    columns: int
    order: str
    width: int
    run: int
    effort: str
    lazy: int

    @classmethod
    def of(cls, format: Format, columns: int, order: str, static: bool, effort: str, lazy: int) -> Job:
        from core.methods.ladders import fitted_columns

        run = fitted_columns(format, columns)
        width = 0 if static or order == COLUMNS else run
        coded = format.columns_per_code
        return cls(format, columns, order, width, run, effort, max(coded, lazy // coded * coded))

    def factor(self, hessian: Tensor, damp: float, device: Any) -> Factor | None:
        """Made once for all slices of a tensor."""
        key = (damp, self.order, self.run if self.order == GROUPS else 0, self.format.columns_per_code, str(device))

        def make() -> Factor | None:
            here = hessian.to(device)
            return factored(here, damp, self.sorted(here.diagonal()))

        return FACTORS.get(hessian, key, make)

    def sorted(self, diagonal: Tensor) -> Tensor:
        """int64 [columns]: in which order they are rounded. Of equals, the first comes first."""
        import torch

        coded, run = self.format.columns_per_code, self.run if self.order == GROUPS else 0
        natural = torch.arange(self.columns, device=diagonal.device)
        if self.order == OFF:
            return natural
        # What is coded together stays together.
        inner = diagonal.double().view(-1, coded).sum(1)
        if not run:
            units = inner.sort(descending=True, stable=True).indices
        else:
            each = run // coded
            inside = inner.view(-1, each).sort(dim=1, descending=True, stable=True).indices
            runs = inner.view(-1, each).sum(1).sort(descending=True, stable=True).indices
            units = (inside + torch.arange(len(inside), device=inside.device)[:, None] * each)[runs].reshape(-1)
        return natural.view(-1, coded)[units].reshape(-1)


def solve(w: Tensor, job: Job, factor: Factor, ctx: JobContext = SILENT, *, lanes: bool | None = None) -> Quantized:
    """Codes and grid of w, floating [rows, columns], on its device.

    lanes   whether the inner step runs on compiled lanes; None: where it can
    raises  NonFinite, OutOfRange
    """
    import torch

    from core.formats.checks import require_finite
    from core.formats.fitting import on_lanes
    from core.methods.ladders import joined, ladder_of

    require_finite(w)
    ladder = ladder_of(job.format, job.columns)
    if lanes is None:
        lanes = on_lanes(w) and ladder is not None
    order, feedback = factor.order, factor.feedback
    natural = bool((order[1:] > order[:-1]).all())
    own = w.detach().to(torch.float32)
    own = own.contiguous() if natural else own.index_select(1, order)
    weight = torch.empty_like(factor.weight)
    weight[order] = factor.weight
    whole = None if job.width else job.format.fit(w, weight, job.effort)
    # What earlier errors have made of the weights, and left of where columns are done, their own errors.
    x = own.clone()
    panel = (_Lanes if lanes else _Reference)(job, factor, own, x, whole)
    grids: dict[int, Grid] = {}

    def fitted(start: int) -> None:
        group = int(order[start]) // job.width
        columns, stop = slice(group * job.width, (group + 1) * job.width), start + job.width
        made = settled(own[:, start:stop], x[:, start:stop], feedback, start)
        if not natural:
            made = made.index_select(1, (order[start:stop] - columns.start).argsort())
        grids[group] = job.format.fit(made, weight[columns], job.effort)
        panel.begin(grids[group], columns.start)

    def solved(start: int, stop: int) -> None:
        """In halves, so that nearly all sums over earlier columns are products of large matrices."""
        if job.width and start % job.width == 0 and stop - start <= job.width:
            fitted(start)
        unit = job.width if job.width and stop - start > job.width else job.lazy
        units = -(-(stop - start) // unit)
        if units <= 1:
            ctx.check()
            panel.solve(start, stop)
            return
        middle = start + units // 2 * unit
        solved(start, middle)
        x[:, middle:stop].addmm_(x[:, start:middle], feedback[start:middle, middle:stop])
        solved(middle, stop)

    solved(0, job.columns)
    codes = panel.codes
    assert codes is not None
    if not natural:
        codes = codes.index_select(1, order.argsort())
    grid = whole if whole is not None else joined(job.format, [grids[n] for n in range(len(grids))])
    return Quantized(job.format, (w.shape[0], w.shape[1]), codes=codes, grid=grid)


def settled(w: Tensor, x: Tensor, feedback: Tensor, start: int) -> Tensor:
    """What weights of columns from `start` on would be if none of them were rounded: float32 [rows, columns].

    Each x_k counts on the errors of the columns before it, w_j minus its own settled value among them:
    s = w + (x − w) (I + A)⁻¹, with A among these columns.
    w, x   float32 [rows, columns]: the weights, and what errors before `start` have made of them
    """
    import torch

    stop = start + w.shape[1]
    unit = torch.eye(stop - start, device=w.device)
    return torch.addmm(w, x - w, undone(unit + feedback[start:stop, start:stop]).to(torch.float32))


class _Reference:
    """Columns through the format's own encode and decode, on any device.

    own    float32 [rows, columns], in the factor's order: the weights
    x      alike: what earlier errors have made of them; errors are written in their place
    codes  [rows, columns], made at the first panel
    """

    def __init__(self, job: Job, factor: Factor, own: Tensor, x: Tensor, whole: Grid | None) -> None:
        self.job, self.factor, self.own, self.x = job, factor, own, x
        self.codes: Tensor | None = None
        self.places = factor.order.tolist()
        if whole is not None:
            self.begin(whole, 0)

    def begin(self, grid: Grid, first: int) -> None:
        """From here on this grid, whose own columns begin at `first`."""
        self.grid, self.first = grid, first

    def solve(self, start: int, stop: int) -> None:
        """Codes and errors of columns start … stop, whose x has in it all errors before them."""
        import torch

        kind, feedback = self.job.format, self.factor.feedback
        each = kind.columns_per_code
        # Turned, so that all rows of a column lie side by side.
        own, x = self.own[:, start:stop].t().contiguous(), self.x[:, start:stop].t().contiguous()
        found = []
        for k in range(0, stop - start, each):
            made = x[k : k + each] + feedback[start : start + k, start + k : start + k + each].t() @ x[:k]
            place = self.places[start + k] - self.first
            codes = kind.encode(made.t(), self.grid, place)
            x[k : k + each] = own[k : k + each] - kind.decode(codes, self.grid, place).t()
            found.append(codes)
        self.x[:, start:stop] = x.t()
        codes = torch.cat(found, 1)
        if self.codes is None:
            self.codes = torch.empty(self.own.shape, dtype=codes.dtype, device=codes.device)
        self.codes[:, start:stop] = codes


class _Lanes(_Reference):
    """The same on one CPU core's lanes, for formats with a ladder."""

    def __init__(self, job: Job, factor: Factor, own: Tensor, x: Tensor, whole: Grid | None) -> None:
        import torch

        from core.methods.ladders import ladder_of

        ladder = ladder_of(job.format, job.columns)
        assert ladder is not None
        self.ladder = ladder
        super().__init__(job, factor, own, x, whole)
        self.codes = torch.empty(own.shape, dtype=ladder.codes.dtype)

    def begin(self, grid: Grid, first: int) -> None:
        import torch

        from core.methods.ladders import lines_of

        super().begin(grid, first)
        lines = lines_of(self.job.format, grid)
        shape = (lines.step.shape[1], self.own.shape[0])

        def turned(part: Tensor | None) -> Any:
            return (torch.zeros(1, 1) if part is None else part.t()).expand(shape).contiguous().numpy()

        self.lines = tuple(turned(part) for part in (lines.step, lines.zero, lines.shift))
        self.width = lines.width or self.job.columns

    def solve(self, start: int, stop: int) -> None:
        import numpy as np
        import torch

        from core.methods.lanes_gptq import listed_levels, whole_levels

        ladder, values = self.ladder, self.ladder.values
        run = ((self.factor.order[start:stop] - self.first) // self.width).to(torch.int32)
        assert self.codes is not None
        # Codes are bytes, whatever their sign.
        table = ladder.codes.view(torch.uint8).numpy()
        matrices = (self.own, self.x, self.codes.view(torch.uint8), self.factor.feedback)
        given = (*(m.numpy() for m in matrices), start, run.numpy(), *self.lines)
        if ladder.whole:
            whole_levels(*given, np.float32(values[0]), np.float32(values[-1]), table[0])
        else:
            listed_levels(*given, values.numpy(), ((values[1:] + values[:-1]) / 2).numpy(), table)
