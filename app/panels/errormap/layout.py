"""Which cell of the map each tensor is in, and what is known of it: arrays over all tensors, made in a preview job.

Layers run along x, roles down y; what is outside the layers (embedding, head) has a column of its own at the left.
Experts that are tensors of their own share a cell, or have a line each. No Qt.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from app.glossary import explain
from app.plotting.words import short
from core.context import JobContext
from core.roles import ROLES

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from app.session import ShownError
    from core.engine.model import Plan
    from core.targets.base import Outline

# What is known of a tensor: nothing yet, its error, that it is stored as it is.
OPEN, MEASURED, KEPT = 0, 1, 2
# Never quantized, whatever the recipe says.
LEFT_OUT = ("norm", "bias", "position")


@dataclass(frozen=True)
class Metric:
    """One measure of error. column: in Values.errors; sign: of what is worse upwards; log: spans decades."""

    id: str
    title: str
    unit: str
    column: int
    worse_is_more: bool
    logarithmic: bool
    help: str

    def text(self, value: float) -> str:
        if math.isnan(value):
            return "–"
        if self.id == "sqnr":
            return "exact" if math.isinf(value) else f"{value:.1f}{self.unit}"
        if self.id == "cosine":
            return f"{value:.6f}" if value < 1 else "1"
        return short(value, True, 2)

    def number(self, value: float) -> str:
        """The same without its unit, and short: it stands in a cell."""
        if self.id == "cosine" and math.isfinite(value):
            return f"{value:.4f}"
        return self.text(value).removesuffix(self.unit)


METRICS = (
    Metric("sqnr", "SQNR", " dB", 0, False, False, explain("sqnr")),
    Metric("mse", "Relative MSE", "", 1, True, True, explain("relative_mse")),
    Metric("max", "Largest error", "", 2, True, True, explain("max_abs")),
    Metric("cosine", "Cosine", "", 3, False, False, explain("cosine")),
)


@dataclass(frozen=True)
class Layout:
    """cell      int64 [tensors]: line · columns + column, or −1 for tensors that are not on the map
    lines     labels from top to bottom; columns: from left to right ("" for the one outside the layers)
    experts   whether several experts of a layer could share a cell; apart: they have lines of their own
    """

    outline: Outline
    apart: bool
    experts: bool
    names: list[str]
    index: Mapping[str, int]
    cell: NDArray[np.int64]
    lines: list[str]
    columns: list[str]

    @property
    def cells(self) -> int:
        return len(self.lines) * len(self.columns)


@dataclass
class Values:
    """errors: float64 [4, tensors] in the order of METRICS, NaN unknown; kind: int8 [tensors]; sampled: bool [tensors];
    strategies: of every tensor, in words; refused: why tensors, by place, cannot be measured."""

    errors: NDArray[np.float64]
    kind: NDArray[np.int8]
    sampled: NDArray[np.bool_]
    strategies: list[str]
    refused: dict[int, str] = field(default_factory=dict)

    def put(self, i: int, error: ShownError | None) -> None:
        """What is known of one tensor now."""
        if self.kind[i] == KEPT:
            return
        known = () if error is None else (error.sqnr_db, error.relative_mse, error.max_abs, error.cosine)
        self.errors[:, i] = [math.nan if v is None else v for v in known] or math.nan
        self.kind[i] = MEASURED if error is not None and error.sqnr_db is not None else OPEN
        self.sampled[i] = error is not None and not error.exact
        self.refused.pop(i, None)
        if error is not None and error.why:
            self.refused[i] = error.why


@dataclass(frozen=True)
class MapRequest:
    """before: the layout made last, used again when it is of the same outline."""

    outline: Outline
    plan: Plan | None
    known: Mapping[Any, ShownError]
    apart: bool
    before: Layout | None


def map_task(request: MapRequest, ctx: JobContext) -> tuple[Layout, Values]:
    """The map of an outline under a plan."""
    layout = request.before
    if layout is None or layout.outline is not request.outline or layout.apart != request.apart:
        layout = make_layout(request.outline, request.apart)
    ctx.check()
    return layout, make_values(layout, request.plan, request.known)


def make_layout(outline: Outline, apart: bool = False) -> Layout:
    """Places for all tensors that have two dimensions and a role that is quantized."""
    import numpy as np

    placed: list[tuple[int, str, int, int]] = []  # tensor, role, expert (−1: none), layer (−1: outside)
    for i, t in enumerate(outline.tensors):
        role = t.role
        if len(t.shape) < 2 or role.kind in LEFT_OUT:
            continue
        layer = -1 if role.layer is None else role.layer
        placed.append((i, role.kind, -1 if role.expert is None else role.expert, layer))
    layers = sorted({p[3] for p in placed})
    order = {role: i for i, role in enumerate(ROLES)}
    experts = any(p[2] >= 0 for p in placed)
    keys = sorted({(order[p[1]], p[2] if apart else -1) for p in placed})
    line_of = {key: n for n, key in enumerate(keys)}
    column_of = {layer: n for n, layer in enumerate(layers)}
    cell = np.full(len(outline.tensors), -1, np.int64)
    for i, kind, expert, layer in placed:
        line = line_of[order[kind], expert if apart else -1]
        cell[i] = line * len(layers) + column_of[layer]
    return Layout(
        outline,
        apart,
        experts,
        [t.name for t in outline.tensors],
        {t.name: i for i, t in enumerate(outline.tensors)},
        cell,
        [ROLES[role] if expert < 0 else f"{ROLES[role]} {expert}" for role, expert in keys],
        ["" if layer < 0 else str(layer) for layer in layers],
    )


def make_values(layout: Layout, plan: Plan | None, known: Mapping[Any, ShownError]) -> Values:
    """What a plan and the errors known so far say of every tensor."""
    import numpy as np

    count = len(layout.names)
    values = Values(np.full((4, count), np.nan), np.zeros(count, np.int8), np.zeros(count, bool), [""] * count)
    if plan is None:
        return values
    said = [(str(t.strategy), not t.quantized or t.copy) for t in plan.planned.samples]
    for t, (strategy, kept) in zip(plan.tensors, plan.planned.kinds.share(said), strict=True):
        i = layout.index.get(t.tensor.name)
        if i is None:
            continue
        values.strategies[i] = strategy
        if kept:
            values.kind[i] = KEPT
        elif known:
            error = known.get((t.tensor.name, t.strategy))
            if error is not None:
                values.put(i, error)
    return values
