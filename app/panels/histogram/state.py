"""What the histogram panel shows, as texts and arrays: no Qt. What is asked for is in requests.py, counting is done in
core/analysis/histogram.py, drawing in view.py."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from app.panels.histogram.picture import Picture, csv_of, percent, picture_of, short
from app.panels.histogram.requests import OverlayRequest, request_of, same
from app.panels.histogram.shape import humps_of, other_bins, spread
from app.panels.outputs import output_tensor
from core.analysis.counts import QUANTILES
from core.analysis.histogram import SAMPLE_WEIGHTS, GroupRequest, GroupView, HistogramRequest, HistogramResult

if TYPE_CHECKING:
    from app.session import Session
    from core.analysis.reach import Group

# Percentiles are read off the bins where at least so many of these lie between the outer ones.
FINE_ENOUGH = 200
# A tensor whose outermost weights lie this many times farther out than its 0.05th and 99.95th percentile is first shown
# without them: a single outlier would press all the rest into one bin.
FAR_OUT = 3.0
# Tensors that are laid over the first one at most: more lines than these nobody tells apart.
OVERLAYS = 4
EMPTY = "Open a checkpoint and select a tensor: its weights appear here, with what the strategy makes of them."
UNSELECTED = "Select a tensor: its weights appear here, with what the strategy makes of them."


class HistogramState:
    """Which tensor is in view, the best result so far, and how it is looked at."""

    def __init__(self) -> None:
        self.logarithmic = False
        self.by_spread = False  # bins by Freedman and Diaconis, not 256 of them
        self.overlays: dict[str, HistogramResult] = {}  # other selected tensors by name, as far as they are counted
        self.overlay_requests: tuple[HistogramRequest, ...] = ()
        self.place: tuple[int, int] | None = None  # row and group by hand; None: all groups
        self.result: HistogramResult | None = None
        self.group: GroupView | None = None
        self.failure = ""
        self.request: HistogramRequest | None = None
        self.others = 0  # selected besides the one in view
        self.empty = EMPTY

    def follow(self, session: Session) -> bool:
        """Takes over the selection. True when something else is to be computed."""
        before = self.request
        self.empty = EMPTY if session.checkpoint is None else UNSELECTED
        names = session.selection
        tensor = output_tensor(session, names[0]) if names else None
        self.others = max(0, len(names) - 1)
        if tensor is None or session.checkpoint is None:
            self._show_nothing()
            return False
        self.request = request_of(session, tensor)
        laid_over = (output_tensor(session, n) for n in names[1 : OVERLAYS + 1])
        self.overlay_requests = tuple(HistogramRequest(session.checkpoint, t) for t in laid_over if t is not None)
        wanted = {r.tensor.name for r in self.overlay_requests}
        self.overlays = {n: r for n, r in self.overlays.items() if n in wanted}
        if before is not None and same(before, self.request):
            return False
        if before is None or before.tensor != self.request.tensor or before.checkpoint is not self.request.checkpoint:
            self.result, self.place = None, None
            if before is None or before.checkpoint is not self.request.checkpoint:
                self.overlays = {}
        self.group, self.failure = None, ""
        return True

    def take(self, result: HistogramResult) -> bool:
        """A result for the present request. False when what is shown says more already."""
        shown = self.result
        if result.pending and shown is not None and shown.name == result.name:
            return False
        column = self.place[1] * self.width if self.place is not None else 0
        self.result, self.failure = result, ""
        if self.place is not None and not result.pending:
            # Under another strategy groups may be as wide as others, or there are none: the weights stay.
            self.place = (self.place[0], min(column // self.width, self.groups - 1)) if self.choosable else None
        return True

    def overlay_request(self) -> OverlayRequest | None:
        """What is still to be counted of the other selected tensors; None when all is there."""
        open_ = [r for r in self.overlay_requests if not self._overlaid(r.tensor.name)]
        return OverlayRequest(tuple(open_)) if open_ else None

    def _overlaid(self, name: str) -> bool:
        known = self.overlays.get(name)
        return known is not None and known.exact

    def take_overlay(self, result: HistogramResult) -> bool:
        """A histogram to lay over. False when the tensor is no longer selected."""
        wanted = any(r.tensor.name == result.name for r in self.overlay_requests)
        if wanted:
            self.overlays[result.name] = result
        return wanted

    @property
    def laid_over(self) -> list[HistogramResult]:
        """Those that can be drawn, in the order of the selection."""
        found = (self.overlays.get(r.tensor.name) for r in self.overlay_requests)
        return [r for r in found if r is not None and r.moments.finite]

    def fail(self, line: str) -> None:
        self.result, self.group, self.failure = None, None, line

    def group_request(self) -> GroupRequest | None:
        """For the row and group chosen by hand; None when the whole envelope is shown or nothing is known yet."""
        if self.place is None or self.request is None or self.request.format is None:
            return None
        row, group = self.place
        return GroupRequest(self.request, min(row, self.request.tensor.rows - 1), group * self.width)

    @property
    def width(self) -> int:
        """Columns of a group; those of a row where there are no groups."""
        if self.result is not None and self.result.reach is not None:
            return self.result.reach.width
        return self.request.tensor.columns if self.request is not None else 1

    @property
    def groups(self) -> int:
        """Groups in a row."""
        return max(1, (self.request.tensor.columns if self.request is not None else 1) // max(1, self.width))

    @property
    def choosable(self) -> bool:
        """Whether there are groups to choose between."""
        return self.result is not None and self.result.reach is not None

    @property
    def shown_group(self) -> Group | None:
        """Whose levels are drawn: the chosen one, or the typical one."""
        if self.place is not None:
            return self.group.group if self.group is not None else None
        return self.result.reach.typical if self.result is not None and self.result.reach is not None else None

    def zero(self) -> float | None:
        """The level that stands for 0: of those that are drawn, the one nearest to it."""
        group = self.shown_group
        if group is None or group.levels is None or not group.levels.size:
            return None
        return float(group.levels[np.argmin(np.abs(group.levels))])

    def limits(self) -> tuple[float, ...]:
        """Where dashed lines go: the chosen group's outermost levels, or those of all groups."""
        if self.place is not None:
            group = self.shown_group
            return (group.low, group.high) if group is not None else ()
        reach = self.result.reach if self.result is not None else None
        return (reach.lowest, reach.highest) if reach is not None else ()

    # --- words --------------------------------------------------------------------------------------------------------

    def title(self) -> str:
        """The finding, in one line."""
        result = self.result
        if self.failure:
            return "There is no histogram of this tensor"
        if result is None:
            return ""
        bad = result.moments.nan + result.moments.infinite
        if bad:
            return f"{bad:,} {'weight is' if bad == 1 else 'weights are'} NaN or infinite"
        if not result.moments.count:
            return "The tensor is empty"
        humps = humps_of(result.original, self.home())
        two = f"Two humps, around {short(humps[0])} and {short(humps[1])}" if humps else ""
        error, reach = result.error, result.reach
        if error is None:
            return two or spread(result)
        if error.sqnr_db is not None and math.isnan(error.sqnr_db):
            return "Weights become infinite"
        if two:
            return f"{two} · SQNR {error.sqnr_db:.1f} dB" if error.e2 and error.sqnr_db is not None else two
        if error.e2 == 0:
            return "Exact: no weight changes"
        sqnr = f"SQNR {error.sqnr_db:.1f} dB" if error.sqnr_db is not None else "all weights were zero"
        if reach is None:
            return sqnr
        if not reach.beyond:
            return f"No weight beyond the grid · {sqnr}"
        return f"{percent(100 * reach.share_beyond)} of weights beyond the grid · {sqnr}"

    def subtitle(self) -> str:
        """Which tensor, under which strategy, and over how much of it."""
        request, result = self.request, self.result
        if request is None:
            return ""
        tensor = request.tensor
        shape = "×".join(map(str, tensor.shape)) or "scalar"
        strategy = f" → {request.label}" if request.label else ""
        text = f"{tensor.name}  {shape} {tensor.dtype}{strategy}"
        if result is not None and not result.exact:
            text += f" · sample of {result.moments.count:,} weights, the rest is on its way"
        if self.others:
            over = len(self.overlay_requests)
            text += (
                f" · {over} more laid over" if over == self.others else f" · {over} of {self.others:,} more laid over"
            )
        return text

    def notes(self) -> str:
        """What could not be shown, and why; what is shown instead of what was asked for."""
        if self.failure or self.result is None:
            return self.failure
        bins = other_bins(self.result) if self.by_spread else ""
        return "\n".join(filter(None, (" · ".join(self.result.notes), bins)))

    def no_residual(self) -> str:
        """What stands in the residual's place when there is none, or ""."""
        result = self.result
        if result is None or result.residual is not None or result.pending:
            return ""
        return "no difference" if result.dequantized is not None else "nothing to compare with"

    def legend_levels(self) -> str:
        """Whose levels the ticks are."""
        group, request, result = self.shown_group, self.request, self.result
        if request is not None and request.format is not None and request.format.columns_per_code > 1:
            shown = result is not None and result.dequantized is not None
            return f"a code stands for {request.format.columns_per_code} weights: no levels" if shown else ""
        if group is None or request is None:
            return ""
        if group.levels is None:
            return "too many levels to draw"
        if self.result is not None and self.result.reach is not None and self._one_grid():
            return f"{group.levels.size} levels"
        columns = f"columns {group.start}–{group.stop - 1}"
        which = "" if self.place is not None else "typical: "
        return f"{group.levels.size} levels ({which}row {group.row}, {columns})"

    def legend_limits(self) -> str:
        if not self.limits():
            return ""
        return "limits" if self.place is not None or self._one_grid() else "widest limits"

    def legend_zero(self) -> str:
        zero = self.zero()
        if zero is None:
            return ""
        return "zero" if zero == 0 else f"nearest to zero: {short(zero)}"

    def legend_help(self) -> str:
        """What the signs of the grid mean, for the tooltip."""
        if self.shown_group is None:
            return ""
        group = "the chosen group" if self.place is not None else "a typical group, that of the median span"
        limits = "its" if self.place is not None else "any group's"
        return (
            f"Ticks: the levels of {group}. Dashed: {limits} outermost levels. Dotted: what a "
            "weight of 0 becomes. Weights farther out than their own "
            "group's outermost level are beyond the grid."
        )

    def _one_grid(self) -> bool:
        reach = self.result.reach if self.result is not None else None
        return reach is not None and reach.lowest == reach.tight_low and reach.highest == reach.tight_high

    def percentiles(self) -> str:
        """Percentiles and spread of the weights, in one line."""
        result = self.result
        if result is None or not result.moments.finite:
            return ""
        counts, moments = result.original, result.moments
        step = (counts.high - counts.low) / counts.counts.size
        values, about = [counts.quantile(share) for share in QUANTILES], ""
        if result.quantiles and result.quantiles[-1] - result.quantiles[0] < FINE_ENOUGH * step:
            values, about = list(result.quantiles), "" if result.exact and moments.count <= SAMPLE_WEIGHTS else "about "
        inner = (f"{100 * p:g} % {about}{short(value, True)}" for p, value in zip(QUANTILES, values, strict=True))
        return "  ".join((*inner, f"σ {short(moments.std, True)}"))

    def statistics(self) -> str:
        """Extremes, zeros before and after, and the worst error, in one line."""
        result = self.result
        if result is None or not result.moments.finite:
            return ""
        moments = result.moments
        zeros = f"zeros {percent(100 * moments.zeros / moments.finite)}"
        if result.dequantized is not None:
            zeros += f" → {percent(100 * result.zeros / moments.finite)}"
        parts = [f"min {short(moments.minimum, True)}", f"max {short(moments.maximum, True)}", zeros]
        if result.error is not None and result.error.e2:
            parts.append(f"max error {short(result.error.max_abs, True)}")
        return "  ".join((*parts, self.far_out())).strip()

    def read_off(self, x: float, on_residual: bool = False) -> str:
        """What lies under the cursor at x, in the bins that are drawn now. on_residual: over that strip."""
        result = self.result
        if result is None or self._drawn is None or not result.moments.finite:
            return ""
        drawn, counts = self._drawn, result.original
        curves = [("original", drawn.original), ("dequantized", drawn.dequantized)]
        if on_residual and result.residual is not None:
            curves, counts = [("residual", drawn.residual)], result.residual
        else:
            curves += zip(drawn.names, drawn.others, strict=True)
        parts = []
        for name, curve in curves:
            if curve is None:
                continue
            at = int(np.searchsorted(curve.edges, x, side="right")) - 1
            if 0 <= at < curve.heights.size:
                parts.append(f"{name} {percent(float(drawn.shares(curve)[at]))}")
        parts.insert(1 + (drawn.dequantized is not None), f"{percent(100 * counts.share_below(x))} of all below")
        return f"at {short(x)}   " + "   ".join(parts)

    # --- arrays -------------------------------------------------------------------------------------------------------

    _drawn: Picture | None = None

    def home(self) -> tuple[float, float]:
        """The part of x that is shown first: everything, or without far outliers; always with the grid's ends of a
        group and 2 % of air."""
        assert self.result is not None
        counts = self.result.original
        low, high = self._ends()
        inner = counts.quantile(0.0005), counts.quantile(0.9995)
        span = inner[1] - inner[0]
        if math.isfinite(span) and 0 < span * FAR_OUT < high - low:
            low, high = max(low, inner[0] - span / 4), min(high, inner[1] + span / 4)
        air = (high - low) * 0.02
        return low - air, high + air

    def bounds(self) -> tuple[float, float]:
        """As far as one may go."""
        low, high = self._ends()
        air = (high - low) * 0.05
        return low - air, high + air

    def _ends(self) -> tuple[float, float]:
        """Where bins begin and end; or the outermost levels of all groups, where they lie a little farther out: bins
        are laid before the last group is known."""
        assert self.result is not None
        counts, reach = self.result.original, self.result.reach
        low, high = counts.low, counts.high
        if reach is None:
            return low, high
        far = (high - low) / 4
        ends = [e for e in (reach.lowest, reach.highest) if low - far <= e <= high + far]
        return min([low, *ends]), max([high, *ends])

    def far_out(self) -> str:
        """How much the first view leaves out, or ""."""
        if self.result is None:
            return ""
        counts = self.result.original
        low, high = self.home()
        if low <= counts.low and high >= counts.high:
            return ""
        outside = 1 - counts.share_below(high) + counts.share_below(low)
        return f"{percent(100 * outside)} outside this view" if outside > 0 else ""

    def picture(self, low: float, high: float) -> Picture:
        """Curves for a view from low to high."""
        assert self.result is not None
        self._drawn = picture_of(self.result, low, high, self.logarithmic, self.by_spread, self.laid_over)
        return self._drawn

    def csv(self) -> str:
        """The bins in view, as comma-separated values; see picture.py."""
        return csv_of(self._drawn) if self._drawn is not None else ""

    def _show_nothing(self) -> None:
        self.request, self.result, self.group, self.place, self.failure = None, None, None, None, ""
        self.overlay_requests, self.overlays = (), {}
        self._drawn = None
