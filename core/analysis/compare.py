"""Two checkpoints tensor by tensor: what each stores, how far apart the values are, and how far each is from a common
source where one is given. Which tensor belongs to which is in counterparts.py, metadata in metadata.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING

from core.analysis.counterparts import View, views_of
from core.analysis.error import ErrorSums
from core.analysis.metadata import differences
from core.context import SILENT, JobContext
from core.errors import CheckpointError
from core.roles import role_of

if TYPE_CHECKING:
    import torch

    from core.checkpoints.base import Checkpoint

# Values are compared in slices of about this many weights.
SLICE_WEIGHTS = 1 << 22


@dataclass(frozen=True, slots=True)
class ComparedTensor:
    """One tensor of both files. Errors are None where values cannot be compared (see note).

    name            shared by both; names_a, names_b: in their own files (several where one is merged of them)
    sqnr_db …       of b against a
    source_a        sums of a against the common source, None without one (or where it lacks the tensor); source_b too
    """

    name: str
    shape: tuple[int, ...]
    dtype_a: str
    dtype_b: str
    bytes_a: int
    bytes_b: int
    sqnr_db: float | None = None
    relative_mse: float | None = None
    max_abs: float | None = None
    cosine: float | None = None
    note: str = ""
    names_a: tuple[str, ...] = ()
    names_b: tuple[str, ...] = ()
    source_a: ErrorSums | None = None
    source_b: ErrorSums | None = None

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def role(self) -> str:
        return role_of(self.name).kind


@dataclass(frozen=True)
class Comparison:
    """only_a, only_b  names without a counterpart; metadata: key → (a, b) where they differ

    total, source_a, source_b  sums over all tensors: b against a, each against the source
    source                     the common source's path, or ""
    """

    a: str
    b: str
    tensors: tuple[ComparedTensor, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    bytes_a: int
    bytes_b: int
    total: ErrorSums
    metadata: Mapping[str, tuple[str, str]]
    source: str = ""
    source_a: ErrorSums = field(default_factory=ErrorSums)
    source_b: ErrorSums = field(default_factory=ErrorSums)


@dataclass
class _Sums:
    """b against a, a against the source, b against the source."""

    between: ErrorSums = field(default_factory=ErrorSums)
    a: ErrorSums | None = None
    b: ErrorSums | None = None


def compare(a: Checkpoint, b: Checkpoint, ctx: JobContext = SILENT, *, source: Checkpoint | None = None) -> Comparison:
    """Every tensor of a against its counterpart in b, and both against that in `source`.

    Progress in bytes of a; partial(ComparedTensor) as each is known. A tensor that cannot be read is a row with a note.
    raises  CheckpointError when a and b share no tensor
    """
    views_a, views_b, *rest = views_of([a, b] if source is None else [a, b, source])
    origin = rest[0] if rest else {}
    common = [name for name in views_a if name in views_b]
    if not common:
        raise CheckpointError(f"no tensor in common with {b.path}", "are both files of the same model?", where=a.path)
    if source is not None and not any(name in origin for name in common):
        raise CheckpointError("has no tensor of the two files", "is it the model they were made from?", source.path)
    total_bytes = sum(views_a[name].nbytes for name in common)
    done = 0
    rows: list[ComparedTensor] = []
    total, source_a, source_b = ErrorSums(), ErrorSums(), ErrorSums()
    for name in common:
        ctx.check()
        row, sums = _compare_one(name, views_a[name], views_b[name], origin.get(name), ctx)
        rows.append(row)
        total += sums.between
        source_a += sums.a or ErrorSums()
        source_b += sums.b or ErrorSums()
        done += views_a[name].nbytes
        ctx.partial(row)
        ctx.progress(done, total_bytes, name)
    only_a = tuple(n for n in views_a if n not in views_b)
    only_b = tuple(n for n in views_b if n not in views_a)
    for views in (views_a, views_b, origin):
        # One by one: left to the end of this function, 50,000 of them keep all threads waiting for some 50 ms.
        while views:
            views.popitem()
    return Comparison(
        a=str(a.path),
        b=str(b.path),
        tensors=tuple(rows),
        only_a=only_a,
        only_b=only_b,
        bytes_a=a.nbytes,
        bytes_b=b.nbytes,
        total=total,
        metadata=differences(a, b),
        source=str(source.path) if source is not None else "",
        source_a=source_a,
        source_b=source_b,
    )


def _compare_one(
    name: str, left: View, right: View, origin: View | None, ctx: JobContext
) -> tuple[ComparedTensor, _Sums]:
    sums = _Sums()
    try:
        note = _measure(left, right, origin, sums, ctx)
    except CheckpointError as error:
        note = f"cannot be read: {error.message}"
    if note:
        sums = _Sums()
    between = None if note else sums.between
    row = ComparedTensor(
        name,
        left.shape,
        left.dtype,
        right.dtype,
        left.nbytes,
        right.nbytes,
        between.sqnr_db if between else None,
        between.relative_mse if between else None,
        between.max_abs if between else None,
        between.cosine if between else None,
        note,
        left.names,
        right.names,
        sums.a,
        sums.b,
    )
    return row, sums


def _measure(left: View, right: View, origin: View | None, sums: _Sums, ctx: JobContext) -> str:
    """Adds up the errors slice by slice; why they cannot be, or ""."""
    import torch

    # Trailing and leading ones are the containers' freedom (a norm is [n] here and [1, n] there).
    if _squeezed(left.shape) != _squeezed(right.shape):
        return f"shape {_by(left.shape)} against {_by(right.shape)}"
    if origin is not None and _squeezed(origin.shape) != _squeezed(left.shape):
        origin = None
    step = max(1, SLICE_WEIGHTS // max(1, left.columns))
    for start in range(0, left.rows, step):
        ctx.check()
        stop = min(left.rows, start + step)
        x, y = _rows(left, left, start, stop), _rows(right, left, start, stop)
        if not (x.is_floating_point() and y.is_floating_point()):
            if not torch.equal(x, y):
                return "integer values differ"
            continue
        sums.between = sums.between.add(_wide(x), y.float())
        if origin is not None:
            w = _rows(origin, left, start, stop)
            if w.is_floating_point():
                w = _wide(w)
                sums.a = (sums.a or ErrorSums()).add(w, x.float())
                sums.b = (sums.b or ErrorSums()).add(w, y.float())
    return ""


def _rows(view: View, like: View, start: int, stop: int) -> torch.Tensor:
    """Rows as `like` counts them: a vector may be a column in one container and a row in the other."""
    if view.columns == like.columns:
        return view.read(start, stop)
    return view.read(0, view.rows).reshape(like.rows, like.columns)[start:stop]


def _wide(x: torch.Tensor) -> torch.Tensor:
    # float8 has no arithmetic of its own; anything else is widened inside the sums.
    return x.float() if x.element_size() == 1 else x


def _squeezed(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(n for n in shape if n != 1)


def _by(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape)) or "scalar"
