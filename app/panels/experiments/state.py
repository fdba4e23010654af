"""What the experiments panel shows: rows filtered and sorted, and the points of its plot. No Qt."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePath

from app.glossary import about
from core.engine.progress import bytes_text, duration_text
from core.evaluation.experiments import EVALUATION, GENERATION, QUANTIZATION, Experiment, as_csv

KINDS = (
    ("All runs", ""),
    ("Quantizations", QUANTIZATION),
    ("Evaluations", EVALUATION),
    ("Generations", GENERATION),
)
ICONS = {QUANTIZATION: "package", EVALUATION: "gauge", GENERATION: "chat-text"}


def _figure(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def name_of(row: Experiment) -> str:
    """What was made or judged: the recipe, else the file, else the model itself."""
    return row.recipe or PurePath(row.out).name or "as it is"


@dataclass(frozen=True)
class Column:
    """One column. key: what it sorts by, None last; widest: a text of its usual width; help: one sentence."""

    title: str
    text: Callable[[Experiment], str]
    key: Callable[[Experiment], object]
    widest: str
    help: str
    right: bool = True


COLUMNS = (
    Column(
        "time",
        lambda r: datetime.fromtimestamp(r.time).strftime("%m-%d %H:%M"),
        lambda r: r.time,
        "00-00 00:00",
        "When the run ended",
        False,
    ),
    Column(
        "model", lambda r: PurePath(r.model).name, lambda r: PurePath(r.model).name, "a-model-8b", about("model"), False
    ),
    Column("what", name_of, name_of, "int4-g128+gptq", about("what"), False),
    Column("device", lambda r: r.device, lambda r: r.device, "cuda:0", about("device"), False),
    Column(
        "size, MiB",
        lambda r: "" if r.bytes is None else f"{r.bytes / 2**20:,.1f}",
        lambda r: r.bytes,
        "size, MiB ▾",
        about("size", "Of what was written or judged"),
    ),
    Column("bpw", lambda r: _figure(r.bpw, ".2f"), lambda r: r.bpw, "16.00", about("bpw")),
    Column(
        "perplexity",
        lambda r: _figure(r.perplexity, ".3f"),
        lambda r: r.perplexity,
        "perplexity ▾",
        about("perplexity", "Compare only on the same text"),
    ),
    Column(
        "KLD",
        lambda r: _figure(r.kld, ".5f"),
        lambda r: r.kld,
        "0.00000",
        about("kld", "In nats per token"),
    ),
    Column(
        "top-1, %",
        lambda r: "" if r.top1 is None else f"{100 * r.top1:.1f}",
        lambda r: r.top1,
        "top-1, % ▾",
        about("top-1"),
    ),
    Column(
        "tokens in",
        lambda r: _figure(r.input_tokens, ","),
        lambda r: r.input_tokens,
        "tokens in ▾",
        about("tokens in"),
    ),
    Column("out", lambda r: _figure(r.output_tokens, ","), lambda r: r.output_tokens, "1,000", about("out")),
    Column(
        "tokens/s",
        lambda r: "" if r.tokens_per_second is None else f"{r.tokens_per_second:,.0f}",
        lambda r: r.tokens_per_second,
        "tokens/s ▾",
        about("tokens/s"),
    ),
    Column(
        "took",
        lambda r: "" if r.seconds is None else duration_text(r.seconds),
        lambda r: r.seconds,
        "59 min 59 s",
        about("took"),
    ),
    Column(
        "memory, GiB",
        lambda r: "" if r.peak_bytes is None else f"{r.peak_bytes / 2**30:.2f}",
        lambda r: r.peak_bytes,
        "memory, GiB ▾",
        about("memory"),
    ),
)


@dataclass(frozen=True)
class Point:
    """One evaluation in the plot. size in MiB, kld in nats; front: nothing else is as small and as near."""

    row: Experiment
    size: float
    kld: float
    front: bool


class ExperimentsState:
    """rows: all, the latest first. error: why they cannot be read, or ""."""

    def __init__(self) -> None:
        self.rows: tuple[Experiment, ...] = ()
        self.error = ""
        self.words, self.kind = "", ""
        self.column, self.descending = 0, True
        self.shown: tuple[Experiment, ...] = ()

    def take(self, rows: Iterable[Experiment], error: str = "") -> None:
        self.rows, self.error = tuple(rows), error
        self._show()

    def filter(self, words: str, kind: str) -> None:
        """Only rows that hold all words, in any case, and are of a kind ("" for all)."""
        self.words, self.kind = words, kind
        self._show()

    def sort(self, column: int, descending: bool) -> None:
        self.column, self.descending = column, descending
        self._show()

    def _show(self) -> None:
        words = self.words.lower().split()
        found = [r for r in self.rows if (not self.kind or r.kind == self.kind) and _holds(r, words)]
        key = COLUMNS[self.column].key
        known = [r for r in found if key(r) is not None]
        known.sort(key=lambda r: key(r), reverse=self.descending)  # type: ignore[arg-type,return-value]
        self.shown = (*known, *(r for r in found if key(r) is None))

    @property
    def points(self) -> tuple[Point, ...]:
        """Of the rows shown, those with size and KLD, the smallest first; of runs with the same of both, one."""
        found: dict[tuple[int, float], Experiment] = {}
        for row in self.shown:
            if row.bytes and row.kld is not None and row.kld > 0:
                found.setdefault((row.bytes, row.kld), row)
        points, best = [], float("inf")
        for (size, kld), row in sorted(found.items(), key=lambda pair: pair[0]):
            points.append(Point(row, size / 2**20, kld, kld < best))
            best = min(best, kld)
        return tuple(points)

    @property
    def finding(self) -> str:
        """The plot's title."""
        points = self.points
        if not points:
            return ""
        if len(points) == 1:
            return f"{name_of(points[0].row)}: KLD {points[0].kld:.5f} at {points[0].size:,.1f} MiB"
        front = sum(p.front for p in points)
        texts = {p.row.text for p in points}
        models = {p.row.model for p in points}
        line = f"{front} of {len(points)} are the best for their size"
        if len(models) > 1:
            return f"{line} · {len(models)} models together: filter for one"
        return line if len(texts) == 1 else f"{line} · {len(texts)} different texts: filter for one"

    def csv(self, rows: Sequence[Experiment] | None = None) -> str:
        """Rows with all their fields; None: those shown."""
        return as_csv(self.shown if rows is None else rows)


def tooltip(row: Experiment) -> str:
    """Everything about a row that its columns leave out."""
    size = "" if row.bytes is None else f", {bytes_text(row.bytes)}"
    lines = [f"{row.kind} of {row.model}{size}", row.out and f"output {row.out}", row.target and f"target {row.target}"]
    lines += [row.text, row.versions]
    return "\n".join(line for line in lines if line)


def _holds(row: Experiment, words: Sequence[str]) -> bool:
    text = " ".join((row.kind, row.model, row.recipe, row.target, row.out, row.text, row.device)).lower()
    return all(word in text for word in words)
