"""What the error map shows: cells and their colours as numbers, texts, and the worst-first list. No Qt; arrays over all
tensors are in layout.py, drawing in canvas.py and view.py."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from itertools import repeat
from typing import TYPE_CHECKING

import numpy as np

from app.panels.errormap.layout import KEPT, MEASURED, METRICS, OPEN, Layout, MapRequest, Metric, Values

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from app.session import Session

LISTED = 500
EMPTY = "Open a checkpoint: the error of every tensor appears here, by layer and role, as it becomes known."
PLANNING = "The map appears with the plan."
NOTHING = "This checkpoint has no matrices that could be quantized."


@dataclass(frozen=True)
class Cells:
    """worst  float64 [lines, columns]: the worst of each cell's tensors by the metric, NaN where nothing is measured
    kind    int8 [lines, columns]: −1 no tensor here, OPEN nothing measured, MEASURED, KEPT all are stored as they are
    partly  bool [lines, columns]: some of the cell's tensors are not measured yet
    """

    worst: NDArray[np.float64]
    kind: NDArray[np.int8]
    partly: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Worst:
    """One line of the list."""

    name: str
    strategy: str
    sqnr: float
    mse: float
    largest: float
    cosine: float
    sampled: bool


class ErrorMapState:
    """Which outline and plan are in view, and what is known of them."""

    def __init__(self) -> None:
        self.metric: Metric = METRICS[0]
        self.apart = False
        self.layout: Layout | None = None
        self.values: Values | None = None
        self.request: MapRequest | None = None
        self.failure = ""
        self.empty = EMPTY
        self._of: tuple[object, object, bool] | None = None
        self.revision = 0  # grows with everything that changes the map
        self._marked: tuple[object, object, NDArray[np.bool_]] | None = None  # the last answer of cells_of
        self._late: set[str] = set()  # tensors whose error came while a map was being made

    def follow(self, session: Session) -> bool:
        """Takes over outline and plan. True when the map is to be made anew."""
        outline = session.outline
        if session.checkpoint is None or outline is None:
            self._forget(session, EMPTY if session.checkpoint is None else PLANNING)
            return False
        plan = session.plan if session.plan is not None and session.planned_tensors else None
        if plan is None and not session.plan_error:
            # Just opened: the plan says what is quantized, and a map without it would be drawn twice.
            self._forget(session, PLANNING)
            return False
        of = (outline.tensors, plan, self.apart)
        if self._of is not None and self._of[0] is of[0] and self._of[1] is of[1] and self._of[2] == of[2]:
            return False
        if self._of is not None:
            # Hidden, this may be the last to hold the plan before.
            session.let_go(self._of[1])
        self._of = of
        if self.layout is not None and self.layout.outline.tensors is not outline.tensors:
            self.layout = self.values = None
            self.revision += 1
        kept = self.layout.outline if self.layout is not None else outline
        self.request = MapRequest(kept, plan, session.known_errors(), self.apart, self.layout)
        self._late.clear()
        return True

    def _forget(self, session: Session, empty: str) -> None:
        """Nothing to show but a line of text."""
        if self.request is None and self.empty == empty and self.layout is None and not self.failure:
            return
        session.let_go(self.layout, self.values, self._of[1] if self._of is not None else None)
        self.request = self.layout = self.values = self._of = self._marked = None
        self.empty, self.failure = empty, ""
        self.revision += 1

    def take(self, made: tuple[Layout, Values], session: Session) -> None:
        """A map that was made, and what became known meanwhile."""
        self.layout, self.values = made
        self.failure = ""
        self.revision += 1
        late, self._late = self._late, set()
        self.update(session, late)
        if not (self.layout.cell >= 0).any():
            self.empty = NOTHING

    def note(self, names: Iterable[str]) -> None:
        """Errors that became known while a map is being made: they are put into it."""
        self._late.update(names)

    def update(self, session: Session, names: Iterable[str]) -> None:
        """Errors that became known, or unknown."""
        if self.layout is None or self.values is None:
            return
        for name in names:
            i = self.layout.index.get(name)
            if i is not None:
                self.values.put(i, session.error(name))
                self.revision += 1

    def fail(self, line: str) -> None:
        self.layout, self.values, self.failure = None, None, line
        self.revision += 1

    # --- the map ------------------------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        return self.layout is not None and self.values is not None and bool((self.layout.cell >= 0).any())

    @property
    def complete(self) -> bool:
        """Whether the error of every tensor that is quantized is known."""
        layout, values = self._both()
        return not ((layout.cell >= 0) & (values.kind == OPEN)).any()

    def cells(self) -> Cells:
        """Every cell by the present metric."""
        layout, values = self._both()
        count = layout.cells
        on = layout.cell >= 0
        at = layout.cell[on]
        error, kind = values.errors[self.metric.column][on], values.kind[on]
        measured = kind == MEASURED
        worst = np.full(count, np.nan)
        worse = np.fmax if self.metric.worse_is_more else np.fmin
        worse.at(worst, at[measured], error[measured])
        present, known, open_ = (
            np.bincount(at[which], minlength=count) for which in (kind >= 0, measured, kind == OPEN)
        )
        kinds = np.where(present == 0, -1, np.where(known > 0, MEASURED, np.where(open_ > 0, OPEN, KEPT)))
        shape = len(layout.lines), len(layout.columns)
        return Cells(
            worst.reshape(shape), kinds.astype(np.int8).reshape(shape), ((known > 0) & (open_ > 0)).reshape(shape)
        )

    def limits(self, worst: NDArray[np.float64]) -> tuple[float, float]:
        """The values at both ends of the scale: lowest and highest that are finite, without 0 on a logarithmic one."""
        known = worst[np.isfinite(worst)]
        if self.metric.logarithmic:
            known = known[known > 0]
        if not known.size:
            return (1e-6, 1.0) if self.metric.logarithmic else (0.0, 1.0)
        return float(known.min()), float(known.max())

    def in_cells(self, chosen: Iterable[tuple[int, int]]) -> tuple[str, ...]:
        """The tensors of some cells (line, column), in the container's order."""
        layout, _ = self._both()
        wanted = np.zeros(layout.cells + 1, bool)
        for line, column in chosen:
            wanted[line * len(layout.columns) + column] = True
        wanted[-1] = False
        return tuple(layout.names[i] for i in np.flatnonzero(wanted[layout.cell]))

    def cells_of(self, names: Iterable[str]) -> NDArray[np.bool_]:
        """bool [lines, columns]: cells that hold one of these tensors."""
        layout, _ = self._both()
        if self._marked is not None and self._marked[0] is names and self._marked[1] is layout:
            return self._marked[2]
        marked = np.zeros(layout.cells, bool)
        if isinstance(names, tuple) and len(names) == len(layout.names):
            at = layout.cell  # no tensor is selected twice
        else:
            places = np.fromiter(map(layout.index.get, names, repeat(-1)), np.int64)
            at = layout.cell[places[places >= 0]]
        marked[at[at >= 0]] = True
        answer = marked.reshape(len(layout.lines), len(layout.columns))
        self._marked = (names, layout, answer) if isinstance(names, tuple) else None
        return answer

    # --- words --------------------------------------------------------------------------------------------------------

    def title(self) -> str:
        """The finding, in one line."""
        if self.failure:
            return "There is no map of these tensors"
        if not self.ready:
            return ""
        layout, values = self._both()
        on = layout.cell >= 0
        measured = on & (values.kind == MEASURED)
        to_do = int((on & (values.kind != KEPT)).sum())
        if not to_do:
            return "Every tensor is kept as it is"
        if not measured.any():
            return f"No error is known yet · {to_do:,} tensors to measure"
        error = np.where(measured, values.errors[self.metric.column], np.nan)
        worst = int(np.nanargmax(error) if self.metric.worse_is_more else np.nanargmin(error))
        middle = float(np.nanmedian(error))
        text = f"Worst: {self.metric.text(float(error[worst]))} in {layout.names[worst]}"
        text += f" · median {self.metric.text(middle)}"
        known = int(measured.sum())
        return text if known == to_do else f"{text} · {known:,} of {to_do:,} measured"

    def read_off(self, line: int, column: int) -> str:
        """What a cell holds."""
        layout, values = self._both()
        if not (0 <= line < len(layout.lines) and 0 <= column < len(layout.columns)):
            return ""
        members = np.flatnonzero(layout.cell == line * len(layout.columns) + column)
        where = f"layer {layout.columns[column]}" if layout.columns[column] else "outside the layers"
        head = f"{layout.lines[line]}, {where}"
        if not members.size:
            return f"{head}: no tensor"
        error = values.errors[self.metric.column][members]
        known = values.kind[members] == MEASURED
        if len(members) == 1:
            name, strategy = layout.names[members[0]], values.strategies[members[0]]
            arrow = f" → {strategy}" if strategy else ""
            if values.kind[members[0]] == KEPT:
                return f"{name}: kept as it is"
            if not known[0]:
                why = values.refused.get(int(members[0]))
                return f"{name}{arrow}: {f'cannot be measured: {why}' if why else 'not measured yet'}"
            parts = [f"{m.title} {m.text(float(values.errors[m.column, members[0]]))}" for m in METRICS]
            about = ", from a sample of rows" if values.sampled[members[0]] else ""
            return f"{name}{arrow}   {'   '.join(parts)}{about}"
        if not known.any():
            kept = bool((values.kind[members] == KEPT).all())
            return f"{head}: {len(members):,} tensors, {'kept as they are' if kept else 'not measured yet'}"
        values_known = error[known]
        worst = values_known.max() if self.metric.worse_is_more else values_known.min()
        text = f"{head}: {len(members):,} tensors, worst {self.metric.text(float(worst))}"
        text += f", median {self.metric.text(float(np.median(values_known)))}"
        return text if known.all() else f"{text}, {int(known.sum()):,} measured"

    def worst_first(self) -> list[Worst]:
        """Tensors whose error is known, the worst by the present metric first; LISTED of them at most."""
        if self.layout is None or self.values is None:
            return []
        layout, values = self._both()
        known = np.flatnonzero((values.kind == MEASURED) & (layout.cell >= 0))
        error = values.errors[self.metric.column][known]
        known, error = known[~np.isnan(error)], error[~np.isnan(error)]
        key = -error if self.metric.worse_is_more else error
        if key.size > LISTED:
            part = np.argpartition(key, LISTED)[:LISTED]
            known, key = known[part], key[part]
        order = known[np.argsort(key, kind="stable")]
        places, errors, sampled = order.tolist(), values.errors[:, order].T.tolist(), values.sampled[order].tolist()
        return [
            Worst(layout.names[i], values.strategies[i], sqnr, mse, largest, cosine, of_rows)
            for i, (sqnr, mse, largest, cosine), of_rows in zip(places, errors, sampled, strict=True)
        ]

    def csv(self) -> str:
        """Every tensor of the map as comma-separated values."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(
            ["tensor", "role", "layer", "strategy", "sqnr_db", "relative_mse", "max_abs", "cosine", "sampled"]
        )
        if self.layout is None or self.values is None:
            return out.getvalue()
        layout, values = self._both()
        for i in np.flatnonzero(layout.cell >= 0):
            line, column = divmod(int(layout.cell[i]), len(layout.columns))
            errors = ["" if math.isnan(e) else f"{e:.6g}" for e in values.errors[:, i]]
            place = [layout.lines[line], layout.columns[column]]
            writer.writerow([layout.names[i], *place, values.strategies[i], *errors, int(values.sampled[i])])
        return out.getvalue()

    def _both(self) -> tuple[Layout, Values]:
        assert self.layout is not None
        assert self.values is not None
        return self.layout, self.values
