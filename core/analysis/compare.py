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
from core.analysis.unmeasured import Unmeasured, sums_of
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
    """One tensor of both files. Errors are None where values cannot be compared, and NaN where a weight is NaN or
    infinite in one of them only; the note says so.

    name            shared by both; names_a, names_b: in their own files (several where one is merged of them)
    sqnr_db …       of b against a, over all weights but those that are NaN or infinite alike in both
    unmeasured      how many weights are NaN or infinite
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
    unmeasured: Unmeasured = field(default_factory=Unmeasured)

    @property
    def equal(self) -> bool:
        """Whether every value of b is known to be that of a, NaN and infinities too."""
        return self.max_abs is not None and self.relative_mse == 0

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
    unmeasured                 weights of all tensors that are NaN or infinite
    measured                   of how many tensors the values could be compared
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
    unmeasured: Unmeasured = field(default_factory=Unmeasured)
    measured: int = 0


@dataclass
class _Sums:
    """b against a, a against the source, b against the source. unlike_source: weights that are NaN or infinite in the
    source, or in a or b, but not alike."""

    between: ErrorSums = field(default_factory=ErrorSums)
    unmeasured: Unmeasured = field(default_factory=Unmeasured)
    a: ErrorSums | None = None
    b: ErrorSums | None = None
    unlike_source: int = 0

    def note(self) -> str:
        """What is not in the sums, or made them NaN."""
        other = "NaN or infinite weights of the source are others" if self.unlike_source else ""
        return " · ".join(filter(None, (self.unmeasured.words(), other)))


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
    unmeasured = Unmeasured()
    for name in common:
        ctx.check()
        row, sums = _compare_one(name, views_a[name], views_b[name], origin.get(name), ctx)
        rows.append(row)
        total += sums.between
        unmeasured += sums.unmeasured
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
        unmeasured=unmeasured,
        measured=sum(row.max_abs is not None for row in rows),
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
    note = note or sums.note()
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
        sums.unmeasured,
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
        if x.is_complex() or y.is_complex():
            x, y = _parts(x), _parts(y)
        if not (x.is_floating_point() and y.is_floating_point()):
            if not torch.equal(x, y):
                return "integer values differ"
            continue
        found, unmeasured = sums_of(x, y)
        sums.between += found
        sums.unmeasured += unmeasured
        if origin is not None:
            w = _rows(origin, left, start, stop)
            w = _parts(w) if w.is_complex() else w
            if w.is_floating_point() and w.shape == x.shape:
                (to_a, odd_a), (to_b, odd_b) = sums_of(w, x), sums_of(w, y)
                sums.a, sums.b = (sums.a or ErrorSums()) + to_a, (sums.b or ErrorSums()) + to_b
                sums.unlike_source += odd_a.apart + odd_b.apart
    return ""


def _rows(view: View, like: View, start: int, stop: int) -> torch.Tensor:
    """Rows as `like` counts them: a vector may be a column in one container and a row in the other."""
    if view.columns == like.columns:
        return view.read(start, stop)
    return view.read(0, view.rows).reshape(like.rows, like.columns)[start:stop]


def _parts(x: torch.Tensor) -> torch.Tensor:
    """Real and imaginary parts side by side."""
    import torch

    return torch.view_as_real(x if x.is_complex() else x.to(torch.complex64))


def _squeezed(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(n for n in shape if n != 1)


def _by(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape)) or "scalar"
