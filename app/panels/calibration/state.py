"""What the calibration panel says: the choice in words, what is known of the model's inputs, and the loss of each
tensor of a run, layer by layer. No Qt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from core.roles import role_of

if TYPE_CHECKING:
    from app.session import Session
    from core.engine.model import TensorReport

EMPTY = "Open a checkpoint: then a text, or an importance matrix, can say which of its columns matter."


@dataclass(frozen=True, slots=True)
class Point:
    """One tensor's loss. value: relative output error, Σ‖(W − Ŵ)x‖² / Σ‖Wx‖² over the calibration's tokens."""

    name: str
    role: str
    layer: int
    value: float


@dataclass
class LossState:
    """Losses of one run as they come in."""

    points: dict[str, Point] = field(default_factory=dict)

    def clear(self) -> None:
        self.points.clear()

    def add(self, report: TensorReport) -> bool:
        """Takes a tensor's report; whether there is something to draw in it."""
        value = report.output_error
        if value is None or not math.isfinite(value):
            return False
        role = role_of(report.name)
        if role.layer is None:
            return False
        self.points[report.name] = Point(report.name, role.kind, role.layer, value)
        return True

    @property
    def series(self) -> dict[str, list[Point]]:
        """By role, in the order of layers."""
        found: dict[str, list[Point]] = {}
        for point in sorted(self.points.values(), key=lambda p: (p.layer, p.name)):
            found.setdefault(point.role, []).append(point)
        return dict(sorted(found.items()))

    @property
    def title(self) -> str:
        """The finding: the worst tensor."""
        if not self.points:
            return ""
        worst = max(self.points.values(), key=lambda p: p.value)
        return f"Largest output error {100 * worst.value:.2g} % in {worst.name}"

    def values(self) -> str:
        """CSV."""
        rows = ["tensor,role,layer,output_error"]
        for points in self.series.values():
            rows += [f"{p.name},{p.role},{p.layer},{p.value:.6g}" for p in points]
        return "\n".join(rows) + "\n"


def status(session: Session, loading: bool, gathering: bool) -> tuple[str, str]:
    """One line on where things stand, and its colour's role ("", "muted", "caution", "failure", "done")."""
    from app.calibration import needs_of, walks_along
    from core.calibration.statistics import Statistic

    choice, data = session.calibration, session.calibration_data
    needs = needs_of(session.recipe)
    if not choice.source:
        if needs:
            return "The recipe's method learns from activations: choose a text.", "caution"
        return "Nothing is known of the model's inputs; every column counts the same.", "muted"
    if loading:
        return "Reading the text …" if choice.source == "text" else "Reading the file …", "muted"
    if data is None:
        return "", "muted"
    if data.error:
        return data.error, "failure"
    if gathering:
        return "Samples are going through the model; see Jobs.", "muted"
    if data.samples is not None and walks_along(session.recipe):
        shape = data.samples.ids.shape
        return (
            f"{shape[0]:,} samples of {shape[1]:,} tokens go through the model block by block while it is quantized.",
            "done",
        )
    if data.gathered is None:
        return "Importance is gathered before the run. Gather it now to see its effect in the previews.", "muted"
    kinds = data.gathered.kinds
    if choice.source == "imatrix" and needs - {Statistic.IMPORTANCE}:
        return "An importance matrix is not enough for the recipe's method: choose a text.", "caution"
    tensors = data.gathered.tensors.values()
    unreached = sum(t.counts.count(0) for t in tensors)
    line = f"Known of {len(data.gathered.tensors):,} tensors: {', '.join(sorted(k.value for k in kinds))}."
    if unreached:
        return f"{line} No token reached {unreached:,} experts.", "caution"
    return line, "done"


def ticks(low: float, high: float) -> Sequence[float]:
    """Powers of ten that enclose these positive values."""
    first = math.floor(math.log10(low) + 1e-9)
    last = math.ceil(math.log10(high) - 1e-9)
    return [10.0**e for e in range(first, max(last, first + 1) + 1)]
