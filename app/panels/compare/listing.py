"""The compared tensors as they come in, with what they are sorted and filtered by. What takes time for each tensor is
made in the job that compares (`listed`); the window appends, and sorts arrays. No Qt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat
from operator import contains
from typing import TYPE_CHECKING, Any

from core.analysis.comparison import haystack
from core.context import JobContext

if TYPE_CHECKING:
    import numpy as np

    from core.analysis.compare import ComparedTensor

# Columns that are sorted as words, and those that are figures; names come in their own order.
WORDS = ("dtype", "note")
FIGURES = ("sqnr", "source_a", "source_b", "bytes_a", "bytes_b", "mse", "max", "cosine")
LARGE_IS_BAD = ("mse", "max")


@dataclass(frozen=True, slots=True)
class Listed:
    """One tensor of the list. hay: what a filter looks through; keys: by WORDS and FIGURES, NaN where unknown, and an
    infinity at the worse end where the figure itself is NaN."""

    tensor: ComparedTensor
    hay: str
    keys: tuple[Any, ...]


def listed(tensor: ComparedTensor) -> Listed:
    words = [f"{tensor.dtype_b} {tensor.dtype_a}", tensor.note]
    return Listed(tensor, haystack(tensor), (*words, *(_figure(tensor, column) for column in FIGURES)))


def _figure(tensor: ComparedTensor, column: str) -> float:
    value = figure(tensor, column)
    if value is None:
        return math.nan
    if math.isnan(value):
        return math.inf if column in LARGE_IS_BAD else -math.inf
    return float(value)


def figure(t: ComparedTensor, column: str) -> Any:
    """What stands in a column of figures; None where it is unknown."""
    if column in ("source_a", "source_b"):
        sums = getattr(t, column)
        return sums.sqnr_db if sums is not None else None
    return getattr(t, {"sqnr": "sqnr_db", "mse": "relative_mse", "max": "max_abs"}.get(column, column))


class Listing:
    """A job's context that hands over Listed instead of ComparedTensor."""

    def __init__(self, ctx: JobContext) -> None:
        self._ctx = ctx
        self.progress = ctx.progress
        self.check = ctx.check

    def partial(self, value: Any) -> None:
        self._ctx.partial(listed(value))


def nothing() -> np.ndarray:
    """int64 [0]"""
    import numpy as np

    return np.zeros(0, np.int64)


def append(order: np.ndarray, more: np.ndarray) -> np.ndarray:
    import numpy as np

    return np.concatenate((order, more))


class Rows:
    """Tensors in the order in which they came in, which is the natural order of their names. What they are sorted by
    is put into arrays as they come."""

    def __init__(self) -> None:
        self.tensors: list[ComparedTensor] = []
        self.names: list[str] = []
        self.noted = False  # whether any has something to say in the column for notes
        self.largest = 0  # bytes of the largest, in either file
        self._hay: list[str] = []
        self._parts: dict[str, list[np.ndarray]] = {column: [] for column in (*WORDS, *FIGURES)}
        # Of columns of words: each word's number, in the order in which they came.
        self._numbers: dict[str, dict[str, int]] = {column: {} for column in WORDS}

    def __len__(self) -> int:
        return len(self.tensors)

    def add(self, rows: Sequence[Listed]) -> None:
        import numpy as np

        if not rows:
            return
        self.tensors += [row.tensor for row in rows]
        self.names += [row.tensor.name for row in rows]
        self._hay += [row.hay for row in rows]
        self.noted = self.noted or any(row.tensor.note for row in rows)
        self.largest = max(self.largest, *(max(row.tensor.bytes_a, row.tensor.bytes_b) for row in rows))
        for at, column in enumerate(WORDS):
            numbers = self._numbers[column]
            found = [numbers.setdefault(row.keys[at], len(numbers)) for row in rows]
            self._parts[column].append(np.array(found, np.float64))
        figures = np.array([row.keys[len(WORDS) :] for row in rows], np.float64)
        for at, column in enumerate(FIGURES):
            self._parts[column].append(figures[:, at])

    def passing(self, words: Sequence[str], first: int = 0) -> np.ndarray:
        """int64: indices, from `first` on, of rows that hold all the words (in lower case)."""
        import numpy as np

        kept = np.arange(first, len(self._hay))
        for word in words:
            hay = map(self._hay.__getitem__, kept.tolist())
            kept = kept[np.fromiter(map(contains, hay, repeat(word)), bool, kept.size)]
        return kept

    def order(self, kept: np.ndarray, column: str, descending: bool) -> np.ndarray:
        """int64: indices sorted by a column; unknown figures stand last, either way."""
        import numpy as np

        if column == "name":
            return kept[::-1] if descending else kept
        keys = self.keys(column)[kept]
        # NaN sorts last, before and after the change of sign.
        return kept[np.argsort(-keys if descending else keys, kind="stable")]

    def keys(self, column: str) -> np.ndarray:
        """float64 [rows]: figures, NaN where unknown; words as their place among all words."""
        import numpy as np

        parts = self._parts[column]
        if len(parts) != 1:
            parts[:] = [np.concatenate(parts) if parts else np.zeros(0)]
        found = parts[0]
        if column in WORDS:
            words = list(self._numbers[column])
            place = np.empty(len(words))
            place[np.array(sorted(range(len(words)), key=words.__getitem__), np.int64)] = np.arange(len(words))
            return place[found.astype(np.int64)]
        return found

    def weakest(self) -> tuple[float, str] | None:
        """The lowest finite SQNR and whose it is, in dB; of equals the first by name."""
        import numpy as np

        figures = self.keys("sqnr")
        known = np.flatnonzero(np.isfinite(figures))
        if not known.size:
            return None
        lowest = figures[known].min()
        return float(lowest), min(self.names[i] for i in known[figures[known] == lowest])
