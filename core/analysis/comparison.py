"""A comparison in rows: sorted, filtered, as the object for `--json`, as CSV. No measuring here (compare.py)."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from core.ordering import natural_key

if TYPE_CHECKING:
    from core.analysis.compare import ComparedTensor, Comparison
    from core.analysis.error import ErrorSums

_FIELDS = ("sqnr_db", "relative_mse", "max_abs", "cosine")


def _worst(value: float | None) -> tuple[bool, float]:
    """Smaller is worse; NaN before all else, unknown last."""
    return value is None, 0.0 if value is None else -math.inf if math.isnan(value) else value


# Words of --sort, and what comes first.
SORTS: dict[str, Callable[[ComparedTensor], Any]] = {
    "name": lambda t: natural_key(t.name),
    "error": lambda t: _worst(t.sqnr_db),
    "size": lambda t: -t.bytes_a,
    "saved": lambda t: t.bytes_b - t.bytes_a,
}


def chosen(tensors: Iterable[ComparedTensor], words: str = "", sort: str = "name") -> list[ComparedTensor]:
    """Those whose name, type or role holds all words, sorted by one of SORTS."""
    wanted = words.lower().split()
    found = [t for t in tensors if all(w in haystack(t) for w in wanted)]
    return sorted(found, key=SORTS[sort])


def haystack(t: ComparedTensor) -> str:
    """What a filter looks through, in lower case."""
    return " ".join((t.name, *t.names_a, *t.names_b, t.dtype_a, t.dtype_b, t.role, t.note)).lower()


def finding(result: Comparison) -> str:
    """What is to be said first: how far b's weights are from a's."""
    unmeasured, sqnr, count = result.unmeasured, result.total.sqnr_db, result.measured
    if unmeasured.apart:
        return unmeasured.words()
    if not count:
        return "No values could be compared"
    if sqnr == math.inf:
        words = f"No weight differs in {count:,} tensor{'s' if count != 1 else ''}"
    elif sqnr is None:
        words = "All weights of A are 0, those of B are not"
    else:
        words = f"{sqnr:.1f} dB between A and B over all weights"
    rest = len(result.tensors) - count
    unlike = f"{rest:,} tensor{'s are' if rest != 1 else ' is'} not measured" if rest else ""
    return " · ".join(filter(None, (words, unmeasured.words(), unlike)))


def tensor_json(t: ComparedTensor) -> dict[str, Any]:
    made: dict[str, Any] = {
        "name": t.name,
        "shape": list(t.shape),
        "sqnr_db": t.sqnr_db,
        "relative_mse": t.relative_mse,
        "max_abs": t.max_abs,
        "cosine": t.cosine,
        "equal": t.equal,
        "bytes_a": t.bytes_a,
        "bytes_b": t.bytes_b,
        "dtype_a": t.dtype_a,
        "dtype_b": t.dtype_b,
        "names_a": list(t.names_a),
        "names_b": list(t.names_b),
        "note": t.note,
    }
    for side, sums in (("a", t.source_a), ("b", t.source_b)):
        if sums is not None:
            made[f"source_{side}"] = _sums_json(sums)
    return made


def comparison_json(result: Comparison, rows: Sequence[ComparedTensor] | None = None) -> dict[str, Any]:
    """The object for `--json`. rows: those to list, all if not given."""
    made: dict[str, Any] = {
        "a": result.a,
        "b": result.b,
        "tensors": [tensor_json(t) for t in (result.tensors if rows is None else rows)],
        "only_a": list(result.only_a),
        "only_b": list(result.only_b),
        "bytes_a": result.bytes_a,
        "bytes_b": result.bytes_b,
        **{key: getattr(result.total, key) for key in _FIELDS},
        "non_finite": {"equal": result.unmeasured.alike, "different": result.unmeasured.apart},
        "metadata": {key: list(pair) for key, pair in result.metadata.items()},
    }
    if result.source:
        made |= {
            "source": result.source,
            "source_a": _sums_json(result.source_a),
            "source_b": _sums_json(result.source_b),
        }
    return made


def comparison_csv(rows: Iterable[ComparedTensor]) -> str:
    """One line per tensor. Errors against the common source have columns of their own when any row has them."""
    rows = list(rows)
    sourced = any(t.source_a is not None or t.source_b is not None for t in rows)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    head = ["name", "role", "shape", "dtype_a", "dtype_b", "bytes_a", "bytes_b", *_FIELDS]
    head += [f"{key}_source_{side}" for side in "ab" for key in _FIELDS] if sourced else []
    writer.writerow([*head, "name_in_a", "name_in_b", "note"])
    for t in rows:
        line: list[Any] = [t.name, t.role, "x".join(map(str, t.shape)), t.dtype_a, t.dtype_b, t.bytes_a, t.bytes_b]
        line += [_cell(getattr(t, key)) for key in _FIELDS]
        if sourced:
            for sums in (t.source_a, t.source_b):
                line += [_cell(getattr(sums, key) if sums is not None else None) for key in _FIELDS]
        writer.writerow([*line, " + ".join(t.names_a), " + ".join(t.names_b), t.note])
    return out.getvalue()


def _sums_json(sums: ErrorSums) -> dict[str, Any]:
    return {key: getattr(sums, key) for key in _FIELDS}


def _cell(value: float | None) -> str:
    return "" if value is None else repr(float(value))
