"""What a report says, gathered from the plan and the run. No HTML here (page.py)."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from core.roles import ROLES

if TYPE_CHECKING:
    from core.engine.model import Plan, Report


@dataclass(frozen=True, slots=True)
class Row:
    """One output tensor. source_bytes: of what it is made from; error fields None where nothing was measured."""

    name: str
    role: str
    layer: int | None
    shape: tuple[int, ...]
    numel: int
    source_bytes: int
    nbytes: int
    source_dtype: str
    strategy: str
    quantized: bool
    sqnr_db: float | None
    relative_mse: float | None
    max_abs: float | None
    cosine: float | None
    notes: tuple[str, ...]

    @property
    def bpw(self) -> float:
        return 8 * self.nbytes / self.numel if self.numel else 0.0


@dataclass(frozen=True, slots=True)
class Group:
    """Tensors of one strategy, or of one role. sqnr: mean and worst in dB over the measured ones, None without."""

    name: str
    tensors: int
    numel: int
    source_bytes: int
    nbytes: int
    mean_db: float | None
    worst_db: float | None

    @property
    def bpw(self) -> float:
        return 8 * self.nbytes / self.numel if self.numel else 0.0


@dataclass(frozen=True)
class Facts:
    """made: seconds since the epoch; files: (name, bytes); dropped: source tensors without a place, and why."""

    title: str
    source: str
    out: str
    target: str
    recipe_name: str
    recipe: str
    made: float
    rows: tuple[Row, ...]
    source_bytes: int
    nbytes: int
    bpw: float
    seconds: float
    weights_per_second: float
    peak_rss_bytes: int
    fallbacks: tuple[str, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    dropped: Mapping[str, str]
    files: tuple[tuple[str, int], ...]
    statistics: str
    fingerprint: str
    versions: tuple[tuple[str, str], ...]
    machine: tuple[tuple[str, str], ...]

    @property
    def measured(self) -> list[Row]:
        """Rows with a finite error, the worst first."""
        found = [r for r in self.rows if r.sqnr_db is not None and math.isfinite(r.sqnr_db)]
        return sorted(found, key=lambda r: r.sqnr_db or 0.0)

    @property
    def strategies(self) -> list[Group]:
        """By bits per weight, the smallest first."""
        return sorted(_groups(self.rows, lambda r: r.strategy), key=lambda g: (g.bpw, g.name))

    @property
    def roles(self) -> list[Group]:
        """In the order of ROLES."""
        return sorted(_groups(self.rows, lambda r: r.role), key=lambda g: ROLES.index(g.name))


def facts_of(plan: Plan, report: Report, made: float | None = None) -> Facts:
    """made: when the run ended, in seconds since the epoch; now if not given. Takes a second for 50,000 tensors."""
    from core.recipes.toml import dumps
    from core.report.environment import machine, versions

    rows = _rows(plan, report)
    own = (f"{t.name}: {text}" for t in report.tensors for text in t.fallbacks)
    asked = (f"{t.tensor.name}: {t.reason}" for t in plan.tensors if t.fallback)
    name = plan.source.name or str(plan.source)
    label = plan.recipe.name or "recipe"
    return Facts(
        title=f"{name} as {label}",
        source=str(plan.source),
        out=str(report.out),
        target=plan.target.title,
        recipe_name=label,
        recipe=dumps(plan.recipe),
        made=time.time() if made is None else made,
        rows=rows,
        source_bytes=sum(r.source_bytes for r in rows),
        nbytes=report.nbytes,
        bpw=plan.bpw,
        seconds=report.seconds,
        weights_per_second=report.weights_per_second,
        peak_rss_bytes=report.peak_rss_bytes,
        fallbacks=tuple(dict.fromkeys((*report.fallbacks, *own, *asked))),
        notes=tuple(report.notes.values()),
        warnings=tuple(dict.fromkeys(str(p) for p in plan.problems if p.severity != "error")),
        dropped=dict(plan.outline.dropped),
        files=_files(plan, report),
        statistics=_statistics(plan),
        fingerprint=plan.fingerprint,
        versions=tuple(versions()),
        machine=tuple(machine(report.device)),
    )


def _rows(plan: Plan, report: Report) -> tuple[Row, ...]:
    done = {t.name: t for t in report.tensors}
    rows = []
    for planned in plan.tensors:
        t, found = planned.tensor, done.get(planned.tensor.name)
        notes = (*((planned.reason,) if planned.reason else ()), *(found.fallbacks if found is not None else ()))
        rows.append(
            Row(
                name=t.name,
                role=t.role.kind,
                layer=t.role.layer,
                shape=t.shape,
                numel=t.numel,
                source_bytes=_source_bytes(t.dtype, t.numel, planned.nbytes),
                nbytes=planned.nbytes,
                source_dtype=t.dtype,
                strategy=str(planned.strategy) if planned.quantized else f"kept as {planned.format.name}",
                quantized=planned.quantized,
                sqnr_db=found.sqnr_db if found is not None else None,
                relative_mse=found.relative_mse if found is not None else None,
                max_abs=found.max_abs if found is not None else None,
                cosine=found.cosine if found is not None else None,
                notes=tuple(dict.fromkeys(notes)),
            )
        )
    return tuple(rows)


def _source_bytes(dtype: str, numel: int, stored: int) -> int:
    """Of `numel` weights of a dtype in the checkpoint. stored: of a dtype that nobody knows the size of, what it takes
    in the output."""
    from core.formats import FORMATS
    from core.tensors import DTYPES

    known = DTYPES.get(dtype)
    if known is not None:
        return -(-numel * known.bits // 8)
    bits = next((f.bits for f in FORMATS if f.name == dtype.lower()), None)
    return round(numel * float(bits) / 8) if bits else stored


def _groups(rows: Sequence[Row], key) -> list[Group]:
    by: dict[str, list[Row]] = {}
    for row in rows:
        by.setdefault(key(row), []).append(row)
    made = []
    for name, members in by.items():
        known = [r.sqnr_db for r in members if r.sqnr_db is not None and math.isfinite(r.sqnr_db)]
        made.append(
            Group(
                name,
                len(members),
                sum(r.numel for r in members),
                sum(r.source_bytes for r in members),
                sum(r.nbytes for r in members),
                sum(known) / len(known) if known else None,
                min(known) if known else None,
            )
        )
    return made


def _files(plan: Plan, report: Report) -> tuple[tuple[str, int], ...]:
    made = [(f.name or report.out.name, f.nbytes) for f in plan.layout.files]
    return (*made, *((name, len(content)) for name, content in plan.layout.sides.items()))


def _statistics(plan: Plan) -> str:
    parts = []
    where = plan.outline.statistics
    if where is not None:
        parts.append(f"importance from {where.file or where.dataset}")
    if plan.calibration is not None:
        samples = plan.calibration
        parts.append(f"{samples.ids.shape[0]} samples of {samples.ids.shape[1]} tokens of {samples.name}")
    return "; ".join(parts)
