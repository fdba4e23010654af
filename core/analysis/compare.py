"""Two checkpoints tensor by tensor: what each stores, and how far apart the values are.

Names are matched as they are; a Hugging Face folder is matched against a GGUF through the GGUF target's own outline, so
renamed, permuted and merged tensors meet their counterparts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from core.analysis.error import ErrorSums
from core.context import SILENT, JobContext
from core.errors import CheckpointError, TargetError
from core.targets.base import Plain, RowSource
from core.tensors import natural_key

if TYPE_CHECKING:
    from core.checkpoints.base import Checkpoint

# Values are compared in slices of about this many weights.
SLICE_WEIGHTS = 1 << 22


@dataclass(frozen=True, slots=True)
class _View:
    source: RowSource
    shape: tuple[int, ...]
    dtype: str
    nbytes: int

    @property
    def columns(self) -> int:
        return self.shape[-1] if self.shape else 1

    @property
    def rows(self) -> int:
        rows = 1
        for n in self.shape[:-1]:
            rows *= n
        return rows


@dataclass(frozen=True, slots=True)
class ComparedTensor:
    """One tensor of both files. Errors are those of b against a, None where values cannot be compared (see note)."""

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


@dataclass(frozen=True)
class Comparison:
    """only_a, only_b  names without a counterpart; metadata: key → (a, b) where texts differ"""

    a: str
    b: str
    tensors: tuple[ComparedTensor, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    bytes_a: int
    bytes_b: int
    total: ErrorSums
    metadata: Mapping[str, tuple[str, str]]


def compare(a: Checkpoint, b: Checkpoint, ctx: JobContext = SILENT) -> Comparison:
    """Every tensor of a against its counterpart in b. Progress in bytes of a.

    raises  CheckpointError when the two share no tensor
    """
    views_a, views_b = _views(a, like=b), _views(b, like=a)
    common = [name for name in views_a if name in views_b]
    if not common:
        raise CheckpointError(f"no tensor in common with {b.path}", "are both files of the same model?", where=a.path)
    total_bytes = sum(views_a[name].nbytes for name in common)
    done = 0
    rows: list[ComparedTensor] = []
    total = ErrorSums()
    for name in common:
        ctx.check()
        row, sums = _compare_one(a, b, name, views_a[name], views_b[name], ctx)
        rows.append(row)
        total = total + sums
        done += views_a[name].nbytes
        ctx.partial(row)
        ctx.progress(done, total_bytes, name)
    return Comparison(
        a=str(a.path),
        b=str(b.path),
        tensors=tuple(rows),
        only_a=tuple(n for n in views_a if n not in views_b),
        only_b=tuple(n for n in views_b if n not in views_a),
        bytes_a=a.nbytes,
        bytes_b=b.nbytes,
        total=total,
        metadata=_metadata_differences(a, b),
    )


def _views(checkpoint: Checkpoint, like: Checkpoint) -> dict[str, _View]:
    """Tensors by the names under which the other side knows them."""
    plain = {t.name: _View(Plain(t.name), t.shape, t.dtype, t.nbytes) for t in checkpoint.tensors.values()}
    if checkpoint.kind == "gguf" or like.kind != "gguf":
        return plain
    from core.targets import get_target

    try:
        outline = get_target("gguf").outline(checkpoint)
    except TargetError:
        return plain  # no known architecture: names as they are, and compare() says so when none is shared
    return {
        t.name: _View(
            t.source,
            t.shape,
            t.dtype,
            sum(checkpoint.tensors[n].nbytes for n in t.source.names() if n in checkpoint.tensors),
        )
        for t in sorted(outline.tensors, key=lambda t: natural_key(t.name))
    }


def _compare_one(
    a: Checkpoint, b: Checkpoint, name: str, left: _View, right: _View, ctx: JobContext
) -> tuple[ComparedTensor, ErrorSums]:
    import torch

    def row(sums: ErrorSums | None, note: str = "") -> ComparedTensor:
        return ComparedTensor(
            name,
            left.shape,
            left.dtype,
            right.dtype,
            left.nbytes,
            right.nbytes,
            sums.sqnr_db if sums else None,
            sums.relative_mse if sums else None,
            sums.max_abs if sums else None,
            sums.cosine if sums else None,
            note,
        )

    # Trailing and leading ones are the containers' freedom (a norm is [n] here and [1, n] there).
    if _squeezed(left.shape) != _squeezed(right.shape):
        return row(None, f"shape {_by(left.shape)} against {_by(right.shape)}"), ErrorSums()
    sums = ErrorSums()
    step = max(1, SLICE_WEIGHTS // max(1, left.columns))
    for start in range(0, left.rows, step):
        ctx.check()
        stop = min(left.rows, start + step)
        x, y = left.source.read(a, start, stop), right.source.read(b, start, stop)
        if not (x.is_floating_point() and y.is_floating_point()):
            if not torch.equal(x, y):
                return row(None, "integer values differ"), ErrorSums()
            continue
        # float8 has no arithmetic of its own; anything else is widened inside the sums.
        sums = sums.add(x.float() if x.element_size() == 1 else x, y.float())
    return row(sums), sums


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(n for n in shape if n != 1)


def _by(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "scalar"


def _metadata_differences(a: Checkpoint, b: Checkpoint) -> dict[str, tuple[str, str]]:
    if a.kind != b.kind:
        return {}
    left = {k: _short(v) for k, v in a.metadata.items()}
    right = {k: _short(v) for k, v in b.metadata.items()}
    return {
        key: (left.get(key, ""), right.get(key, ""))
        for key in sorted(left.keys() | right.keys())
        if left.get(key) != right.get(key)
    }


def _short(value: object) -> str:
    text = str(getattr(value, "value", value))
    return text if len(text) <= 200 else f"{text[:197]}…"
