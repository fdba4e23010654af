"""The compared tensors as they come in, with what they are sorted and filtered by. What takes time for each tensor is
made in the job that compares (`listed`); the window appends, and sorts arrays. No Qt.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from core.analysis.comparison import haystack
from core.context import JobContext

if TYPE_CHECKING:
    import numpy as np

    from core.analysis.compare import ComparedTensor

# Columns that are sorted as words, and those that are figures; names come in their own order.
WORDS = ("dtype", "note")
FIGURES = ("sqnr", "source_a", "source_b", "bytes_a", "bytes_b", "mse", "max", "cosine")


@dataclass(frozen=True, slots=True)
class Listed:
    """One tensor of the list. hay: what a filter looks through; keys: by WORDS and FIGURES, NaN where unknown."""

    tensor: ComparedTensor
    hay: str
    keys: tuple[Any, ...]


def listed(tensor: ComparedTensor) -> Listed:
    words = [f"{tensor.dtype_b} {tensor.dtype_a}", tensor.note]
    return Listed(tensor, haystack(tensor), (*words, *(_figure(tensor, column) for column in FIGURES)))


def _figure(tensor: ComparedTensor, column: str) -> float:
    value = figure(tensor, column)
    return math.nan if value is None else float(value)


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


class Rows:
    """Tensors in the order in which they came in, which is the natural order of their names."""

    def __init__(self) -> None:
        self.tensors: list[ComparedTensor] = []
        self.noted = False  # whether any has something to say in the column for notes
        self._hay: list[str] = []
        self._keys: list[tuple[Any, ...]] = []
        self._sorted_by: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.tensors)

    def add(self, rows: Iterable[Listed]) -> None:
        for row in rows:
            self.tensors.append(row.tensor)
            self._hay.append(row.hay)
            self._keys.append(row.keys)
            self.noted = self.noted or bool(row.tensor.note)
        self._sorted_by.clear()

    def passing(self, words: Sequence[str], first: int = 0) -> list[int]:
        """Indices, from `first` on, of rows that hold all the words (in lower case)."""
        if not words:
            return list(range(first, len(self._hay)))
        hay = self._hay[first:] if first else self._hay
        kept = [i for i, text in enumerate(hay, first) if words[0] in text]
        for word in words[1:]:
            kept = [i for i in kept if word in self._hay[i]]
        return kept

    def order(self, kept: Sequence[int], column: str, descending: bool) -> list[int]:
        """Indices sorted by a column; unknown figures stand last, either way."""
        import numpy as np

        places = np.array(kept, np.int64)
        if column == "name":
            return (places[::-1] if descending else places).tolist()
        keys = self.keys(column)[places]
        # NaN sorts last, before and after the change of sign.
        return places[np.argsort(-keys if descending else keys, kind="stable")].tolist()

    def keys(self, column: str) -> np.ndarray:
        """float64 [rows]: figures, NaN where unknown; words as their place among all words."""
        import numpy as np

        found = self._sorted_by.get(column)
        if found is None:
            at = (*WORDS, *FIGURES).index(column)
            values = [keys[at] for keys in self._keys]
            if column in WORDS:
                place = {word: i for i, word in enumerate(sorted(set(values)))}
                values = [place[word] for word in values]
            found = self._sorted_by[column] = np.array(values, np.float64)
        return found

    def weakest(self) -> tuple[float, str] | None:
        """The lowest finite SQNR and whose it is, in dB; of equals the first by name."""
        import numpy as np

        figures = self.keys("sqnr")
        known = np.flatnonzero(np.isfinite(figures))
        if not known.size:
            return None
        lowest = figures[known].min()
        return float(lowest), min(self.tensors[i].name for i in known[figures[known] == lowest])
