"""What the bench shows, as rows, points and texts: no Qt. Measuring is done in core/analysis/bench.py, drawing in
chart.py and view.py."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.plotting.words import counted
from core.analysis.bench import BenchRequest, BenchRow, Entry, pareto
from core.context import SILENT, JobContext
from core.errors import RecipeError

if TYPE_CHECKING:
    from app.session import Session
    from core.engine.model import Plan
    from core.recipes.model import Strategy
    from core.targets.base import Outline, OutputTensor, Target

# Tried on every target, in this order; what its container cannot carry, or the shape misfits, is left out.
CANDIDATES = (
    "q8_0", "q6_k", "q5_k", "q4_k", "iq4_xs", "q4_0", "q3_k", "iq3_s", "q2_k", "mxfp4",
    "int8", "llm-int8", "fp8-e4m3", "int8-g128", "int4-g32", "int4-g128-asym", "int4-g128", "int4-g128-asym+hqq",
    "int3-g128-asym", "int2-g64-asym", "nf4", "nf4-dq", "fp4", "nvfp4",
)  # fmt: skip
PLAIN = ("bf16", "f16")
DEFAULTS = 12
# Tensors that are measured together; of a longer selection, as many spread over it.
TENSORS = 16
FEW = 500
EMPTY = "Open a checkpoint and select tensors: here they are tried under one strategy beside the other."
UNSELECTED = "Select one tensor, or several: here they are tried under one strategy beside the other."


@dataclass(frozen=True, slots=True)
class Point:
    """One strategy in the chart. front: on the Pareto front; current: what the plan says now."""

    label: str
    bpw: float
    sqnr: float
    front: bool
    current: bool
    coarse: bool


@dataclass(frozen=True, slots=True)
class Measurable:
    """of: the tensors of an outline; tensors: those of them that can be measured, in their order."""

    of: Sequence[OutputTensor]
    tensors: list[OutputTensor]


def measurable(outline: Outline, ctx: JobContext) -> Measurable:
    """Going through 50,000 tensors takes a while, so that a job does it, once."""
    good: dict[tuple[tuple[int, ...], str], bool] = {}
    found = []
    for tensor in outline.tensors:
        kind = tensor.shape, tensor.dtype
        if kind not in good:
            good[kind] = _measurable(*kind)
        if good[kind]:
            found.append(tensor)
    return Measurable(outline.tensors, found)


class BenchState:
    """Which tensors are on the bench, under which strategies, and what came out so far."""

    def __init__(self) -> None:
        self.request: BenchRequest | None = None
        self.rows: dict[str, BenchRow] = {}
        self.added: list[str] = []  # by typing, for as long as the window is open
        self.removed: set[str] = set()
        self.strategies: dict[str, Strategy] = {}
        self._parsed: dict[str, Entry] = {}  # by text
        self.current = ""
        self.selected = 0
        self.failure = ""
        self.empty = EMPTY
        self._of: tuple[object, ...] = ()
        self.open: Outline | None = None  # whose tensors must be looked through before there can be a request
        self._measured_of: object = None  # the tensors of the outline that _measurable is about
        self._measurable: list[OutputTensor] = []

    def follow(self, session: Session) -> bool:
        """Takes over selection, target and plan. True when something else is to be measured."""
        self.empty = EMPTY if session.checkpoint is None else UNSELECTED
        tensors = self._tensors(session)
        if self.open is not None:
            return False  # what is there stays until then
        if session.checkpoint is None or not tensors:
            if session.selection and session.checkpoint is not None:
                self.empty = "None of the selected tensors can be quantized: select a matrix of real numbers."
            self.request, self.rows, self._of, self.failure = None, {}, (), ""
            return False
        from core.targets import get_target

        target = get_target(session.target)
        plan = session.plan
        now = {str(p.strategy) for p in (session.tensor(t.name) for t in tensors) if p is not None and p.quantized}
        self.current = now.pop() if len(now) == 1 else ""
        entries = self._entries(target, tensors)
        calibration = plan.known.identity if plan is not None else ""
        of = (session.checkpoint, tuple(t.name for t in tensors), target.name, tuple(entries), calibration)
        if self._same(of):
            return False
        if not self._of or self._of[:3] != of[:3] or self._of[4] != calibration:
            self.rows = {}
        self._of, self.failure = of, ""
        self.request = BenchRequest(
            session.checkpoint,
            tensors,
            target,
            tuple(entries.values()),
            _stats(plan, tensors),
            tuple(self.rows.values()),
        )
        return True

    def _same(self, of: tuple[object, ...]) -> bool:
        return bool(self._of) and self._of[0] is of[0] and self._of[1:] == of[1:]

    def _tensors(self, session: Session) -> tuple[OutputTensor, ...]:
        self.open, outline = None, session.outline
        if outline is None or not session.selection:
            self.selected = 0
            if outline is None:
                self._measured_of, self._measurable = None, []
            return ()
        # Hundreds are looked up one by one; of very many, those that can be measured were found before.
        planned = session.planned_tensors
        if len(session.selection) <= FEW and planned:
            chosen = (planned[n].tensor for n in session.selection if n in planned)
            found = [t for t in chosen if _measurable(t.shape, t.dtype)]
        elif self._measured_of is not outline.tensors and len(outline.tensors) > FEW:
            self.open = outline
            return ()
        else:
            if self._measured_of is not outline.tensors:
                self.take_measurable(measurable(outline, SILENT))
            found = self._measurable
            if len(session.selection) < len(outline.tensors):
                wanted = set(session.selection)
                found = [t for t in found if t.name in wanted]
        self.selected = len(found)
        if len(found) > TENSORS:
            found = [found[i * len(found) // TENSORS] for i in range(TENSORS)]
        return tuple(found)

    def take_measurable(self, found: Measurable) -> None:
        """The answer about an outline; `follow` again."""
        self._measured_of, self._measurable = found.of, found.tensors

    def _entries(self, target: Target, tensors: tuple[OutputTensor, ...]) -> dict[str, Entry]:
        """The current strategy, the sensible ones for the target, and those that were typed."""
        chosen: dict[str, Entry] = {}

        def offer(text: str, always: bool) -> None:
            entry = self._entry(text)
            if entry is None or entry.label in chosen or (entry.label in self.removed and entry.label != self.current):
                return
            fits = not entry.format.misfit(tensors[0].shape) and not target.refuses(entry.format, tensors[0])
            if always or (fits and entry.format.encodable):
                chosen[entry.label] = entry

        if self.current:
            offer(self.current, always=True)
        for text in CANDIDATES:
            if len(chosen) < DEFAULTS:
                offer(text, always=False)
        for text in PLAIN:
            # Beside these, all others crowd in one corner of the chart.
            if len(chosen) < 3:
                offer(text, always=False)
        for text in self.added:
            offer(text, always=True)
        return chosen

    def _entry(self, text: str) -> Entry | None:
        from core.formats import get_format
        from core.recipes import parse_strategy

        known = self._parsed.get(text)
        if known is not None:
            return known
        try:
            strategy = parse_strategy(text)
            entry = Entry(str(strategy), get_format(strategy.format), strategy.method, dict(strategy.params))
        except RecipeError:
            return None
        self.strategies[entry.label] = strategy
        self._parsed[text] = entry
        return entry

    def add(self, text: str) -> str:
        """Puts a typed strategy on the bench. Returns "" or what is wrong with it."""
        from core.formats import get_format
        from core.recipes import parse_strategy

        try:
            strategy = parse_strategy(text.strip())
            get_format(strategy.format)
        except RecipeError as error:
            return str(error)
        self.removed.discard(str(strategy))
        if str(strategy) not in self.added:
            self.added.append(str(strategy))
        return ""

    def remove(self, label: str) -> None:
        if label in self.added:
            self.added.remove(label)
        self.removed.add(label)

    def take(self, value: BenchRow | tuple[BenchRow, ...]) -> None:
        for row in value if isinstance(value, tuple) else (value,):
            before = self.rows.get(row.label)
            if before is None or row.final or not before.final:
                self.rows[row.label] = row

    def fail(self, line: str) -> None:
        self.rows, self.failure = {}, line

    # --- rows and points ----------------------------------------------------------------------------------------------

    def listed(self) -> list[BenchRow]:
        """Rows that are known, largest first; those without an outcome at the end."""
        if self.request is None:
            return []
        known = [self.rows[e.label] for e in self.request.entries if e.label in self.rows]
        return sorted(known, key=lambda r: (r.sums is None, -r.nbytes, r.label))

    @property
    def weighted(self) -> bool:
        """Whether importance is known for the tensors on the bench."""
        return any(row.weighted is not None for row in self.rows.values())

    def front(self) -> set[str]:
        """Strategies that no other beats in size without losing in error; by weighted error where that is known."""
        rows = [r for r in self.listed() if r.sums is not None and r.relative_mse is not None]
        weighted = bool(rows) and all(r.weighted is not None for r in rows)
        points = [(r.bpw or 0.0, (r.weighted if weighted else r.relative_mse) or 0.0) for r in rows]
        return {rows[i].label for i in pareto(points)}

    def points(self) -> list[Point]:
        front = self.front()
        return [
            Point(r.label, r.bpw, _finite(r.sqnr_db), r.label in front, r.label == self.current, not r.final)
            for r in self.listed()
            if r.bpw is not None and r.sqnr_db is not None and not math.isnan(r.sqnr_db)
        ]

    # --- words --------------------------------------------------------------------------------------------------------

    def title(self) -> str:
        """The finding, in one line."""
        if self.failure:
            return "The bench could not measure these tensors"
        if self.request is None:
            return ""
        rows = {r.label: r for r in self.listed() if r.sums is not None}
        if not rows:
            refused = [self.rows.get(entry.label) for entry in self.request.entries]
            if refused and all(r is not None and r.final for r in refused):
                return "No strategy can take these weights"
            return "Measuring …"
        front = self.front()
        here = rows.get(self.current)
        if here is None or here.bpw is None:
            return f"{counted(len(front), 'strategy', 'strategies')} on the front of {len(rows)}"
        if self.current in front:
            return f"{self.current} is on the front: nothing here is smaller and as good"
        better = [
            r
            for r in rows.values()
            if r.label in front and r.nbytes <= here.nbytes and _error(r) <= _error(here) and r.label != here.label
        ]
        best = min(better, key=_error, default=None)
        if best is None or best.bpw is None:
            return f"{self.current} is not on the front"
        gain = _finite(best.sqnr_db) - _finite(here.sqnr_db)
        return f"{best.label} beats {self.current}: {best.bpw:.2f} against {here.bpw:.2f} bpw, {gain:+.1f} dB"

    def subtitle(self) -> str:
        """Which tensors, and how closely they were looked at."""
        if self.request is None:
            return ""
        tensors = self.request.tensors
        if len(tensors) == 1:
            t = tensors[0]
            text = f"{t.name}  {'×'.join(map(str, t.shape))} {t.dtype} → {self.request.target.title}"
        elif len(tensors) < self.selected:
            text = f"{len(tensors)} of {self.selected:,} selected tensors → {self.request.target.title}"
        else:
            text = f"{len(tensors)} tensors → {self.request.target.title}"
        rows = self.listed()
        if any(not r.final for r in rows) or len(rows) < len(self.request.entries):
            text += " · coarse, finer on its way"
        elif any(r.sampled for r in rows):
            text += " · from a sample of rows"
        return text

    def csv(self) -> str:
        """All rows as comma-separated values."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["strategy", "bytes", "bpw", "sqnr_db", "relative_mse", "weighted", "seconds", "front", "note"])
        front = self.front()
        for r in self.listed():
            numbers = [r.bpw, r.sqnr_db, r.relative_mse, r.weighted, r.seconds]
            cells = ["" if v is None else f"{v:.6g}" for v in numbers]
            writer.writerow([r.label, r.nbytes, *cells, int(r.label in front), r.note])
        return out.getvalue()


def _measurable(shape: tuple[int, ...], dtype: str) -> bool:
    """Whether a tensor is a matrix of real numbers."""
    from core.tensors import DTYPES

    return len(shape) >= 2 and 0 not in shape and (dtype not in DTYPES or DTYPES[dtype].floating)


def _error(row: BenchRow) -> float:
    value = row.weighted if row.weighted is not None else row.relative_mse
    return math.inf if value is None else value


def _finite(sqnr: float | None) -> float:
    """An exact copy is drawn at the top."""
    return math.nan if sqnr is None else min(sqnr, 150.0)


def _stats(plan: Plan | None, tensors: tuple[OutputTensor, ...]) -> dict:
    """What is known of their inputs; experts have statistics of their own, and go without."""
    if plan is None:
        return {}
    from core.engine.known import as_tensors

    found = {}
    for t in tensors:
        known = plan.known.tensors.get(t.name)
        if known is not None and not known.stacked:
            found[t.name] = as_tensors(known, "cpu")
    return found
