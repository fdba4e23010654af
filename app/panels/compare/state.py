"""What the Compare panel knows: which files, the tensors that came in so far, how they are sorted and filtered, and the
finding in words. No Qt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from app.panels.compare.listing import Listed, Listing, Rows, append, figure, listed, nothing
from app.plotting.words import short
from app.sizes import Unit, size_text, unit_of
from core.analysis.comparison import finding
from core.analysis.error import decibel, in_words
from core.context import JobContext
from core.engine.progress import bytes_text

if TYPE_CHECKING:
    import numpy as np

    from core.analysis.compare import ComparedTensor, Comparison

Slot = Literal["a", "b", "source"]
SLOTS: tuple[Slot, ...] = ("a", "b", "source")
View = Literal["tensors", "metadata", "lonely"]


@dataclass(frozen=True, slots=True)
class Column:
    """One column. title: {unit} is that of sizes; term: its entry in the glossary; widest: a text that should fit in,
    whatever stands there now; source: only shown where a common source is given; full: the title in full words, where
    it is short; tied: of no use without the column after it."""

    id: str
    title: str
    term: str
    widest: str
    number: bool = True
    source: bool = False
    full: str = ""
    tied: bool = False


# In the order in which they are missed. Which are given up where not all of them fit: widths.py.
COLUMNS = (
    Column("name", "tensor", "tensor", "", number=False),
    Column("dtype", "stored as", "dtype", "Q8_0 → Q4_K", number=False),
    Column("sqnr", "SQNR, dB", "sqnr", "100.0"),
    Column("source_a", "A, dB", "sqnr", "100.0", source=True, full="SQNR of A against the source", tied=True),
    Column("source_b", "B, dB", "sqnr", "100.0", source=True, full="SQNR of B against the source"),
    Column("bytes_a", "A, {unit}", "size", "100.0", full="Size of A", tied=True),
    Column("bytes_b", "B, {unit}", "size", "100.0", full="Size of B"),
    Column("mse", "rel. MSE", "relative_mse", "0.00531"),
    Column("max", "max |a−b|", "max_abs", "0.00531"),
    Column("cosine", "cosine", "cosine", "0.999999"),
    Column("note", "note", "note", "only metadata are stored", number=False),
)
PLACE = {c.id: i for i, c in enumerate(COLUMNS)}


@dataclass(frozen=True)
class CompareRequest:
    """Paths; source "" for none."""

    a: str
    b: str
    source: str = ""


def compare_task(request: CompareRequest, ctx: JobContext) -> Comparison:
    """Opens the files anew, so that what the window has open is left alone. Partial results: Listed."""
    from contextlib import ExitStack

    from core.analysis.compare import compare
    from core.checkpoints import open_checkpoint

    with ExitStack() as opened:
        a, b = (opened.enter_context(open_checkpoint(path)) for path in (request.a, request.b))
        source = opened.enter_context(open_checkpoint(request.source)) if request.source else None
        return compare(a, b, Listing(ctx), source=source)


class CompareState:
    """paths: by slot, "" for none. listing: tensors as they came in. order: int64, indices into `rows`, as shown."""

    def __init__(self) -> None:
        self.paths: dict[Slot, str] = dict.fromkeys(SLOTS, "")
        self.listing = Rows()
        self.order: np.ndarray = nothing()
        self.result: Comparison | None = None
        self.request: CompareRequest | None = None
        self.failure = ""
        self.stopped = False
        self.running = False
        self.words = ""
        self.sort, self.descending = "name", False
        self.view: View = "tensors"

    @property
    def rows(self) -> list[ComparedTensor]:
        return self.listing.tensors

    @property
    def ready(self) -> bool:
        """Whether there are two files to compare."""
        return bool(self.paths["a"] and self.paths["b"])

    def begin(self) -> CompareRequest:
        """Forgets the last comparison."""
        self.listing, self.order = Rows(), nothing()
        self.result, self.failure, self.stopped, self.running = None, "", False, True
        self.request = CompareRequest(self.paths["a"], self.paths["b"], self.paths["source"])
        return self.request

    def take(self, rows: Sequence[Listed]) -> None:
        """More tensors; they are shown at the end until `arrange`."""
        first = len(self.listing)
        self.listing.add(rows)
        self.order = append(self.order, self.listing.passing(self._wanted, first))

    def finish(self, result: Comparison) -> None:
        self.running, self.result = False, result
        if len(self.listing) != len(result.tensors):
            self.listing, self.order = Rows(), nothing()
            self.take([listed(t) for t in result.tensors])
        self.arrange()

    def fail(self, line: str) -> None:
        self.running, self.failure = False, line

    def stop(self) -> None:
        self.running, self.stopped = False, True
        self.arrange()

    def arrange(self) -> None:
        """Filters and sorts. Tensors come in the natural order of their names; unknown figures stand last."""
        self.order = self.listing.order(self.listing.passing(self._wanted), self.sort, self.descending)

    @property
    def _wanted(self) -> list[str]:
        return self.words.lower().split()

    @property
    def shown(self) -> list[ComparedTensor]:
        return [self.rows[i] for i in self.order]

    @property
    def columns(self) -> list[int]:
        """Indices into COLUMNS of those with something to say."""
        sourced = self.request is not None and bool(self.request.source)
        noted = self.listing.noted
        return [i for i, c in enumerate(COLUMNS) if (sourced or not c.source) and (noted or c.id != "note")]

    @property
    def unit(self) -> Unit:
        """Of sizes, by the largest tensor so far."""
        return unit_of(self.listing.largest)

    def pairs(self) -> list[tuple[str, str, str]]:
        """The lines of the views beside the tensors: metadata as (key, a, b), lonely tensors as (name, where, "")."""
        if self.result is None:
            return []
        words = self.words.lower().split()
        if self.view == "metadata":
            lines = [(key, *pair) for key, pair in self.result.metadata.items()]
        else:
            lines = [(n, "only in A", "") for n in self.result.only_a]
            lines += [(n, "only in B", "") for n in self.result.only_b]
        return [line for line in lines if all(w in " ".join(line).lower() for w in words)]

    # Words

    def nothing(self, view: str) -> str:
        """Why no line is listed; "" before there is a result."""
        if self.result is None:
            return ""
        if self.words.strip():
            return "No line holds these words"
        return {"metadata": "No difference in metadata", "lonely": "Both files have the same tensors"}.get(view, "")

    def title(self) -> str:
        """The finding."""
        if self.failure:
            return self.failure
        if self.running:
            return f"{len(self.rows):,} tensors so far"
        result = self.result
        if result is None:
            return f"Stopped after {len(self.rows):,} tensors" if self.stopped else ""
        return finding(result)

    def subtitle(self) -> str:
        result = self.result
        if result is None:
            return ""
        parts = [f"{bytes_text(result.bytes_a)} → {bytes_text(result.bytes_b)}"]
        if result.source:
            parts.append(f"to the source: A {in_words(result.source_a.sqnr_db)}, B {in_words(result.source_b.sqnr_db)}")
        weakest = self.listing.weakest()
        if weakest is not None:
            parts.append(f"weakest {weakest[1]}, {weakest[0]:.1f} dB")
        return " · ".join(parts)

    def empty(self) -> str:
        """What to do, where there is nothing to show."""
        if not self.paths["a"]:
            return "Choose two checkpoints of the same model: folders, safetensors, torch files or GGUFs, in any mix."
        if not self.paths["b"]:
            return (
                "Choose what to compare with, or drop it on B. After a run, the file that was written stands there by "
                "itself. Tensors that a GGUF renames and permutes meet their originals."
            )
        return "Press Compare: type, size and error of every tensor appear here, and where metadata differ."


def name_of(path: str) -> str:
    return Path(path).name or path


def cell(t: ComparedTensor, column: str, unit: int = 1 << 10) -> str:
    """What stands in a cell. unit: bytes of what sizes are told in."""
    if column == "name":
        return t.name
    if column == "dtype":
        return t.dtype_a if t.dtype_a == t.dtype_b else f"{t.dtype_a} → {t.dtype_b}"
    if column == "note":
        return t.note
    if column in ("bytes_a", "bytes_b"):
        return size_text(getattr(t, column), unit)
    value = figure(t, column)
    if column in ("sqnr", "source_a", "source_b"):
        return decibel(value)
    if value is None:
        return "–"
    return f"{value:.6f}" if column == "cosine" and math.isfinite(value) else short(value, True)


def tooltip(t: ComparedTensor) -> str:
    """Where the tensor is in both files, what was measured, and what kept it from being compared: also what has no
    column where there is little room."""
    sides = (("A", t.names_a, t.dtype_a, t.bytes_a, t.source_a), ("B", t.names_b, t.dtype_b, t.bytes_b, t.source_b))
    lines = [t.name]
    for side, names, dtype, size, source in sides:
        to_source = f", {in_words(source.sqnr_db)} to the source" if source is not None else ""
        lines.append(f"{side}: {_names(names)} ({dtype}, {size:,} bytes{to_source})")
    if t.max_abs is not None:
        figures = (("rel. MSE", "mse"), ("max |a−b|", "max"), ("cosine", "cosine"))
        measured = [f"A to B: {in_words(t.sqnr_db)}", *(f"{title} {cell(t, column)}" for title, column in figures)]
        lines.append(" · ".join(measured))
    return "\n".join([*lines, *((t.note,) if t.note else ())])


def _names(names: Sequence[str]) -> str:
    if not names:
        return "computed"
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1:,} more"
