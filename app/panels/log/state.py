"""The log's lines and what of them is in view: no Qt. Bounded: the oldest lines go first."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from app.reports import describe
from app.totals import PlanTotals, Totals
from core.engine.progress import bytes_text

if TYPE_CHECKING:
    from core.checkpoints.base import Checkpoint
    from core.engine.model import Plan, Problem, Report

Level = Literal["note", "done", "warning", "error"]
RANK: dict[Level, int] = {"note": 0, "done": 0, "warning": 1, "error": 2}
# Icon and colour role of each level, and the word that is copied.
LEVELS: dict[Level, tuple[str, str, str]] = {
    "note": ("info", "muted", "note"),
    "done": ("check-circle", "done_text", "done"),
    "warning": ("warning", "caution_text", "warning"),
    "error": ("x-circle", "failure_text", "error"),
}
LIMIT = 5000
# More findings of one preflight than this are summed up in a line.
FINDINGS = 100


@dataclass(frozen=True, slots=True)
class Entry:
    """One line. when: seconds since the epoch; details: what a disclosure shows."""

    when: float
    level: Level
    text: str
    details: str = ""

    @property
    def clock(self) -> str:
        return time.strftime("%H:%M:%S", time.localtime(self.when))

    @property
    def line(self) -> str:
        """As it is copied."""
        return (
            f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(self.when))}  {LEVELS[self.level][2]:<7}  {self.text}"
        )


class LogState:
    """The lines, and those that pass the filter (in `shown`, oldest first)."""

    def __init__(self, limit: int = LIMIT, clock: Callable[[], float] = time.time) -> None:
        self._limit = limit
        self._clock = clock
        self._entries: deque[Entry] = deque(maxlen=limit)
        self._problems: tuple[object, ...] = ()
        self._plan = ""
        self.words: tuple[str, ...] = ()
        self.least = 0
        self.shown: list[Entry] = []

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, level: Level, text: str, details: str = "") -> Entry | None:
        """A line; the entry when it passes the filter. A line that repeats the end of the last one is left out."""
        text = " ".join(text.split())
        if self._entries and self._entries[-1].level == level and self._entries[-1].text.endswith(text):
            return None
        entry = Entry(self._clock(), level, text, details)
        full = len(self._entries) == self._limit
        gone = self._entries[0] if full else None
        self._entries.append(entry)
        if gone is not None and self.shown and self.shown[0] is gone:
            del self.shown[0]
        if not self._passes(entry):
            return None
        self.shown.append(entry)
        return entry

    def filter(self, text: str, least: int) -> None:
        """Only lines that hold all words of text, from this rank on."""
        self.words, self.least = tuple(text.casefold().split()), least
        self.shown = [e for e in self._entries if self._passes(e)]

    def clear(self) -> None:
        self._entries.clear()
        self.shown.clear()

    def text(self, entries: Iterable[Entry] | None = None) -> str:
        """Lines to copy: these, or all that are shown."""
        return "".join(f"{e.line}\n" for e in (self.shown if entries is None else entries))

    def opened(self, checkpoint: Checkpoint | None, totals: Totals | None = None) -> None:
        self._problems, self._plan = (), ""
        if checkpoint is None:
            self.add("note", "Closed the checkpoint")
            return
        sums = totals if totals is not None else Totals.of(checkpoint)
        self.add(
            "note",
            f"Opened {checkpoint.path}: {checkpoint.kind}, {len(checkpoint.tensors):,} tensors, "
            f"{sums.weights:,} weights, {bytes_text(sums.source_bytes)}",
        )

    def planned(self, plan: Plan, totals: PlanTotals | None = None) -> None:
        """What a plan came to, where that is new."""
        sums = totals if totals is not None else PlanTotals.of(plan)
        kept, fallen = sums.kept, len(sums.fallbacks)
        text = (
            f"Planned {plan.recipe.name or 'recipe'} for {plan.target.name}: {len(plan.tensors):,} tensors, "
            f"{kept:,} kept, {bytes_text(plan.nbytes)}, {sums.bpw:.2f} bpw"
        )
        if fallen:
            text += f", {fallen:,} not as asked"
        if text != self._plan:
            self._plan = text
            self.add("note", text, "\n".join(sums.fallbacks))

    def found(self, problems: tuple[Problem, ...]) -> None:
        """Preflight's findings, those that were not there before."""
        before = set(self._problems)
        fresh = [p for p in problems if p not in before]
        self._problems = problems
        for problem in fresh[:FINDINGS]:
            level: Level = problem.severity if problem.severity in RANK else "note"
            self.add(level, f"Preflight: {problem}")
        if len(fresh) > FINDINGS:
            self.add("note", f"Preflight: {len(fresh) - FINDINGS:,} more findings; the toolbar lists them")

    def reported(self, report: Report) -> None:
        """What of a finished run did not go as asked."""
        lines = describe(report).fallbacks
        for line in lines[:FINDINGS]:
            self.add("warning", f"Fallback: {line}")
        if len(lines) > FINDINGS:
            self.add("warning", f"Fallback: {len(lines) - FINDINGS:,} more; the report in Jobs lists them")

    def _passes(self, entry: Entry) -> bool:
        if RANK[entry.level] < self.least:
            return False
        text = entry.text.casefold()
        return all(word in text for word in self.words)
