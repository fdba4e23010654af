"""What the outliers panel shows, as texts and arrays: no Qt. Counting is done in core/analysis/outliers.py, drawing in
view.py, the pixels of the map in heat.py."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from app.panels.outliers import findings
from app.panels.outliers.profile import Profile, profile_of
from app.panels.outputs import output_tensor
from core.analysis.outliers import (
    ACTIVATION_THRESHOLD,
    Inputs,
    Lines,
    OutlierRequest,
    OutlierResult,
    Spot,
    worst_first,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from app.session import Session

Axis = Literal["columns", "rows", "inputs"]
Quantity = Literal["peak", "range", "rms", "kurtosis"]
AXES: tuple[tuple[Axis, str, str], ...] = (
    ("columns", "Columns", "One bar per column: the weights that one input channel is multiplied by"),
    ("rows", "Rows", "One bar per row: the weights of one output"),
    ("inputs", "Inputs", "One bar per input channel: its activations, where calibration has seen them"),
)
QUANTITIES: tuple[tuple[Quantity, str, str], ...] = (
    ("peak", "Largest |w|", "The largest weight without its sign"),
    ("range", "Range", "From the lowest to the highest weight"),
    ("rms", "RMS", "Root mean square: the usual size of a weight"),
    ("kurtosis", "Kurtosis", "How heavy the tails are: 3 for a Gaussian, more where a few weights stand out"),
)
# Weights beyond so many root mean squares are called outliers until the threshold is moved: a Gaussian has 2 in 10⁹.
SIGMAS = 6.0
LISTED = 500
EMPTY = "Open a checkpoint and select a tensor: its largest weights appear here, by row, column and place."
UNSELECTED = "Select a tensor: its largest weights appear here, by row, column and place."


@dataclass(frozen=True, slots=True)
class Line:
    """One row of the list. energy: share of the tensor's, 0 … 1; x: the largest input, NaN where unknown."""

    index: int
    peak: float
    times_rms: float
    kurtosis: float
    energy: float
    x: float


class OutlierState:
    """Which tensor is in view, the best result so far, and how it is looked at."""

    sigmas = SIGMAS

    def __init__(self) -> None:
        self.axis: Axis = "columns"
        self.quantity: Quantity = "peak"
        self.logarithmic = False
        self.chosen: float | None = None  # the threshold for weights, moved by hand; None: SIGMAS root mean squares
        self.chosen_input: float | None = None
        self.result: OutlierResult | None = None
        self.inputs: Inputs | None = None
        self.request: OutlierRequest | None = None
        self.failure = ""
        self.others = 0
        self.empty = EMPTY

    def follow(self, session: Session) -> bool:
        """Takes over the selection. True when something else is to be computed."""
        before = self.request
        self.empty = EMPTY if session.checkpoint is None else UNSELECTED
        names = session.selection
        tensor = output_tensor(session, names[0]) if names else None
        self.others = max(0, len(names) - 1)
        if tensor is None or session.checkpoint is None:
            self.request, self.result, self.inputs, self.failure = None, None, None, ""
            return False
        plan = session.plan
        self.inputs = Inputs.of(plan.known.tensors.get(tensor.name)) if plan is not None else None
        self.request = OutlierRequest(session.checkpoint, tensor)
        if before is not None and before.checkpoint is session.checkpoint and before.tensor == tensor:
            return False
        self.result, self.failure, self.chosen, self.chosen_input = None, "", None, None
        return True

    def take(self, result: OutlierResult) -> None:
        self.result, self.failure = result, ""

    def fail(self, line: str) -> None:
        self.result, self.failure = None, line

    # --- the threshold ------------------------------------------------------------------------------------------------

    @property
    def on_inputs(self) -> bool:
        return self.axis == "inputs"

    @property
    def has_threshold(self) -> bool:
        """Whether a line is drawn: for sizes, not for spreads and tails."""
        if self.on_inputs:
            return self.input_values() is not None
        return self.quantity in ("peak", "range")

    @property
    def threshold(self) -> float:
        """In force now; NaN while nothing is known."""
        if self.on_inputs:
            return self.input_threshold
        if self.chosen is not None:
            return self.chosen
        if self.result is None or not self.result.rms > 0:
            return math.nan
        return self.result.magnitudes.snapped(SIGMAS * self.result.rms)

    @property
    def input_threshold(self) -> float:
        """LLM.int8()'s line where activations are known; by default, else, 6 of the median channel's RMS."""
        if self.chosen_input is not None:
            return self.chosen_input
        if self.inputs is None:
            return math.nan
        if self.inputs.peak is not None:
            return ACTIVATION_THRESHOLD
        assert self.inputs.rms is not None
        return SIGMAS * float(np.median(self.inputs.rms))

    def set_threshold(self, value: float) -> None:
        """By hand; weights' thresholds go to the nearest of 64 steps to the octave, where counts are exact."""
        if not (math.isfinite(value) and value > 0):
            return
        if self.on_inputs:
            self.chosen_input = value
        elif self.result is not None and math.isfinite(snapped := self.result.magnitudes.snapped(value)):
            self.chosen = snapped

    def reset_threshold(self) -> None:
        if self.on_inputs:
            self.chosen_input = None
        else:
            self.chosen = None

    def beyond(self) -> NDArray[np.int64]:
        """The lines of the present axis that reach the threshold."""
        values, limit = self._sizes(), self.threshold
        if values is None or math.isnan(limit):
            return np.zeros(0, np.int64)
        with np.errstate(invalid="ignore"):
            return np.flatnonzero(values >= np.float32(limit))

    # --- words --------------------------------------------------------------------------------------------------------

    def title(self) -> str:
        """The finding, in one line."""
        return findings.title(self)

    @property
    def y_label(self) -> str:
        if self.on_inputs:
            return "largest |x|" if self.inputs is not None and self.inputs.peak is not None else "RMS of x"
        return {"peak": "largest |w|", "range": "weights", "rms": "RMS", "kurtosis": "kurtosis"}[self.quantity]

    @property
    def x_label(self) -> str:
        return {"columns": "column", "rows": "row", "inputs": "input channel"}[self.axis]

    # --- arrays -------------------------------------------------------------------------------------------------------

    @property
    def lines(self) -> Lines | None:
        if self.result is None:
            return None
        return self.result.row if self.axis == "rows" else self.result.column

    @property
    def length(self) -> int:
        """Lines of the present axis."""
        if self.result is None:
            return 0
        return self.result.rows if self.axis == "rows" else self.result.columns

    def input_values(self) -> NDArray[np.float32] | None:
        if self.inputs is None:
            return None
        return self.inputs.peak if self.inputs.peak is not None else self.inputs.rms

    def home(self) -> tuple[float, float]:
        return -0.5, max(1, self.length) - 0.5

    def profile(self, low: float, high: float, bars: int) -> Profile:
        """Bars for a view from low to high, at most `bars` of them."""
        tops, bottoms = self._tops()
        mirrored = self.quantity == "range" and not self.on_inputs
        limit = self.threshold if self.has_threshold else math.nan
        return profile_of(tops, bottoms, (low, high), bars, limit, mirrored=mirrored, logarithmic=self.logarithmic)

    def _sizes(self) -> NDArray[np.float32] | None:
        """What the threshold is held against."""
        if self.on_inputs:
            return self.input_values()
        return self.lines.peak if self.lines is not None else None

    def _tops(self) -> tuple[NDArray[np.float64] | NDArray[np.float32], NDArray[np.float64] | NDArray[np.float32]]:
        """Top and bottom of every bar."""
        if self.on_inputs:
            values = self.input_values()
            tops = values if values is not None else np.zeros(self.length, np.float32)
            return tops, np.zeros_like(tops)
        lines = self.lines
        assert lines is not None
        if self.quantity == "range":
            return lines.high, lines.low
        if self.quantity == "peak":
            return lines.peak, np.zeros_like(lines.peak)
        if self.quantity == "rms":
            assert self.result is not None
            across = self.result.seen if self.axis == "columns" else self.result.columns
            rms = np.sqrt(lines.energy / np.maximum(1, across - lines.bad))
            return rms, np.zeros_like(rms)
        return lines.kurtosis, np.zeros_like(lines.kurtosis)

    def dead(self) -> list[float]:
        """Places of lines that are all zeros."""
        return self.lines.dead.astype(float).tolist() if self.lines is not None and not self.on_inputs else []

    def bad(self) -> list[float]:
        """Places of lines that hold something not finite."""
        if self.lines is None or self.on_inputs:
            return []
        return np.flatnonzero(self.lines.bad).astype(float).tolist()

    def spots(self) -> tuple[Spot, ...]:
        """The largest weights, as far as they reach the threshold; of one line along the axis only the largest."""
        if self.result is None or self.on_inputs:
            return ()
        limit = self.threshold
        found: dict[int, Spot] = {}
        for spot in self.result.spots:
            if abs(spot.value) >= limit:
                found.setdefault(spot.row if self.axis == "rows" else spot.column, spot)
        return tuple(found.values())

    def listed(self) -> list[Line]:
        """The lines that reach the threshold, largest first; without any, the largest ten."""
        lines, sizes, result = self.lines, self._sizes(), self.result
        if lines is None or sizes is None or result is None:
            return []
        chosen = self.beyond()
        if not chosen.size:
            known = np.flatnonzero(np.isfinite(sizes))
            chosen = known[np.argsort(-sizes[known], kind="stable")[:10]]
        peaks = self.inputs.peak if self.inputs is not None and self.axis != "rows" else None
        rms = result.rms
        return [
            Line(
                i,
                float(lines.peak[i]),
                float(lines.peak[i]) / rms if rms else math.nan,
                float(lines.kurtosis[i]),
                self.share(lines, i),
                float(peaks[i]) if peaks is not None else math.nan,
            )
            for i in worst_first(sizes, chosen, LISTED)
        ]

    def share(self, lines: Lines, index: int) -> float:
        """Of the tensor's energy that one line holds, 0 … 1."""
        assert self.result is not None
        total = float(self.result.magnitudes.energy.sum())
        # Rows that a sample alone has seen are held against the energy that the whole is likely to have.
        total *= self.result.rows / max(1, self.result.seen) if lines is self.result.row else 1.0
        energy = float(lines.energy[index])
        return energy / total if total and not math.isnan(energy) else 0.0

    def csv(self) -> str:
        """Every line of the present axis as comma-separated values."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        lines = self.lines
        if lines is None:
            return ""
        inputs = self.input_values() if self.axis != "rows" else None
        head = [self.x_label, "lowest", "highest", "largest", "energy", "kurtosis", "not finite"]
        writer.writerow([*head, self.y_label if self.on_inputs else "input"] if inputs is not None else head)
        for i in range(self.length):
            row = [i, lines.low[i], lines.high[i], lines.peak[i], lines.energy[i], lines.kurtosis[i]]
            cells: list[object] = [row[0], *(f"{v:.6g}" for v in row[1:]), int(lines.bad[i])]
            writer.writerow([*cells, f"{inputs[i]:.6g}"] if inputs is not None else cells)
        return out.getvalue()
