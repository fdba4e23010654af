"""The facts about a selection, or about the whole checkpoint, as label and value. No Qt."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.plotting.words import short
from core.context import SILENT, JobContext
from core.engine.progress import bytes_text

if TYPE_CHECKING:
    from app.session import Session, ShownError
    from app.totals import Totals
    from core.checkpoints.base import Checkpoint
    from core.engine.model import Plan, PlannedTensor
    from core.recipes.model import Strategy
    from core.roles import Role
    from core.targets.base import Outline, OutputTensor

# More metadata lines than this help nobody.
_METADATA = 60
# More selected tensors than this are gone through behind.
INLINE = 500


@dataclass(frozen=True, slots=True)
class Fact:
    """A line; heading: it begins a section, and only its value is shown."""

    label: str
    value: str
    heading: bool = False


@dataclass(frozen=True)
class FactsRequest:
    """What the facts are about. errors: by (name, strategy); for one tensor or none they are a few. outline, no_plan:
    the tensors without a plan, and why there is none."""

    checkpoint: Checkpoint
    plan: Plan | None
    totals: Totals | None
    names: tuple[str, ...]
    by_name: Mapping[str, PlannedTensor]
    errors: Mapping[tuple[str, Strategy], ShownError]
    kept: Kept
    outline: Outline | None = None
    no_plan: str = ""


@dataclass
class Kept:
    """What the facts about many tensors have found that stays as long as selection and plan do. Beside a run they are
    asked for every other second, with new errors alone."""

    chosen: dict[str, PlannedTensor] | None = None
    lines: tuple[Fact, ...] = ()


def request_of(session: Session, kept: Kept | None = None) -> FactsRequest | None:
    """The request for what is selected now, None without a checkpoint. kept: of the same selection and plan."""
    if session.checkpoint is None:
        return None
    names = session.selection
    errors: Mapping[tuple[str, Strategy], ShownError]
    if len(names) > INLINE:
        errors = session.known_errors()
    else:
        errors = {}
        for name in names:
            planned, error = session.tensor(name), session.error(name)
            if planned is not None and error is not None:
                errors[name, planned.strategy] = error
    plan, totals = session.plan, session.totals
    by_name, outline = session.planned_tensors, session.outline if plan is None else None
    kept = kept or Kept()
    return FactsRequest(session.checkpoint, plan, totals, names, by_name, errors, kept, outline, session.plan_error)


def facts(request: FactsRequest | None, ctx: JobContext = SILENT) -> tuple[str, list[Fact]]:
    """Title and lines. Takes milliseconds up to INLINE names; beyond that it belongs into a job."""
    if request is None:
        return "", []
    chosen = request.kept.chosen
    if chosen is None:
        found = zip(request.names, map(request.by_name.get, request.names), strict=True)
        chosen = request.kept.chosen = {name: t for name, t in found if t is not None}
    if len(chosen) == 1:
        (only,) = chosen.values()
        return only.tensor.name, _of_tensor(only, request)
    if chosen:
        return f"{len(chosen):,} tensors", _of_many(chosen, request)
    wanted = set(request.names)
    bare = [t for t in request.outline.tensors if t.name in wanted] if request.outline is not None and wanted else []
    if bare:
        title = bare[0].name if len(bare) == 1 else f"{len(bare):,} tensors"
        return title, _unplanned(bare, request)
    return request.checkpoint.path.name, _of_checkpoint(request)


def _of_tensor(planned: PlannedTensor, request: FactsRequest) -> list[Fact]:
    t = planned.tensor
    lines = [
        *_stored(t),
        Fact("", "Plan", heading=True),
        Fact("strategy", str(planned.strategy)),
        Fact("stored as", planned.format.title),
    ]
    if planned.copy:
        lines.append(Fact("how", "its bytes are copied untouched"))
    lines.append(Fact("rule", planned.rule_text))
    if planned.reason:
        lines.append(Fact("not as asked" if planned.fallback else "why", planned.reason))
    lines += [
        Fact("size", f"{planned.nbytes:,} bytes ({bytes_text(planned.nbytes)})"),
        Fact("bits per weight", f"{planned.bpw:.3f}"),
    ]
    if planned.strategy.params:
        lines += [Fact(key, str(value)) for key, value in planned.strategy.params]
    error = request.errors.get((t.name, planned.strategy))
    if error is not None and error.sqnr_db is not None:
        lines += [Fact("", _error_title(error), heading=True), *_error_lines(error)]
    elif error is not None and error.why:
        lines += [Fact("", "Weight error cannot be measured", heading=True), Fact("why", error.why)]
    return lines


def _stored(t: OutputTensor) -> list[Fact]:
    """What a tensor is, whatever becomes of it."""
    sources = t.source.names()
    lines = [
        Fact("shape", "×".join(map(str, t.shape)) or "scalar"),
        Fact("weights", f"{t.numel:,}"),
        Fact("dtype", t.dtype),
        Fact("role", _role_text(t.role)),
    ]
    if sources != (t.name,):
        lines += [Fact("made from" if i == 0 else "", name) for i, name in enumerate(sources[:16])]
    return lines


def _unplanned(bare: Sequence[OutputTensor], request: FactsRequest) -> list[Fact]:
    """What is known of tensors without a plan."""
    stored = request.checkpoint.tensors
    nbytes = sum(stored[name].nbytes for t in bare for name in t.source.names() if name in stored)
    dtypes: dict[str, int] = {}
    for t in bare:
        dtypes[t.dtype] = dtypes.get(t.dtype, 0) + 1
    lines = _stored(bare[0]) if len(bare) == 1 else [Fact("weights", f"{sum(t.numel for t in bare):,}")]
    lines.append(Fact("size", f"{nbytes:,} bytes ({bytes_text(nbytes)}) in the checkpoint"))
    if len(bare) > 1:
        lines.append(Fact("dtype", ", ".join(f"{count:,} × {dtype}" for dtype, count in sorted(dtypes.items()))))
    if request.no_plan:
        lines += [Fact("", "There is no plan", heading=True), Fact("why", request.no_plan)]
    return lines


def _of_many(chosen: Mapping[str, PlannedTensor], request: FactsRequest) -> list[Fact]:
    if not request.kept.lines:
        request.kept.lines = tuple(_planned(chosen.values()))
    lines = list(request.kept.lines)
    # By what is known, not by what is chosen: a strategy's hash takes longer than all else.
    known = [
        (error.sqnr_db, name)
        for (name, strategy), error in request.errors.items()
        if error.sqnr_db is not None
        and (t := chosen.get(name)) is not None
        and (t.strategy is strategy or t.strategy == strategy)
        and math.isfinite(error.sqnr_db)
    ]
    if known:
        worst = min(known)
        mean = math.fsum(v for v, _ in known) / len(known)
        lines += [
            Fact("", "Weight error", heading=True),
            Fact("SQNR, mean", f"{mean:.1f} dB over {len(known):,} tensors"),
            Fact("SQNR, worst", f"{worst[0]:.1f} dB, {worst[1]}"),
        ]
    return lines


def _planned(chosen: Collection[PlannedTensor]) -> list[Fact]:
    """What the plan says of many tensors."""
    weights = sum(t.tensor.numel for t in chosen)
    nbytes = sum(t.nbytes for t in chosen)
    counts: dict[int, int] = {}
    objects = {}
    for t in chosen:
        at = id(t.strategy)
        counts[at] = counts.get(at, 0) + 1
        objects[at] = t.strategy
    strategies: dict[str, int] = {}
    for at, strategy in objects.items():
        strategies[str(strategy)] = strategies.get(str(strategy), 0) + counts[at]
    lines = [
        Fact("weights", f"{weights:,}"),
        Fact("size", f"{nbytes:,} bytes ({bytes_text(nbytes)})"),
        Fact("bits per weight", f"{8 * nbytes / weights:.3f}" if weights else "–"),
        Fact("", "Strategies", heading=True),
    ]
    ranked = sorted(strategies.items(), key=lambda item: -item[1])
    return lines + [Fact(name, f"{count:,} tensor{'' if count == 1 else 's'}") for name, count in ranked]


def _of_checkpoint(request: FactsRequest) -> list[Fact]:
    checkpoint, plan, totals = request.checkpoint, request.plan, request.totals
    lines = [
        Fact("path", str(checkpoint.path)),
        Fact("kind", checkpoint.kind),
        Fact("files", f"{len(checkpoint.files):,}"),
        Fact("tensors", f"{len(checkpoint.tensors):,}"),
    ]
    if totals is not None:
        size = totals.source_bytes
        lines += [Fact("weights", f"{totals.weights:,}"), Fact("size", f"{size:,} bytes ({bytes_text(size)})")]
    if plan is not None:
        outline = plan.outline
        lines += [Fact("", "Model", heading=True)]
        for label, value in (
            ("architecture", outline.arch),
            ("layers", outline.layers),
            ("heads", outline.heads),
            ("key-value heads", outline.kv_heads),
            ("experts", outline.experts),
        ):
            if value:
                lines.append(Fact(label, str(value)))
        if outline.tied:
            lines.append(Fact("head", "shares the embedding"))
        lines += [
            Fact("", "Output", heading=True),
            Fact("target", plan.target.title),
            Fact("size", f"{plan.nbytes:,} bytes ({bytes_text(plan.nbytes)})"),
            Fact("bits per weight", f"{plan.bpw:.3f}"),
        ]
    if checkpoint.metadata:
        lines.append(Fact("", "Metadata", heading=True))
        for key, value in list(checkpoint.metadata.items())[:_METADATA]:
            lines.append(Fact(key, _short(value)))
    return lines


def _role_text(role: Role) -> str:
    text = role.kind
    if role.layer is not None:
        text += f", layer {role.layer}"
    if role.expert is not None:
        text += f", expert {role.expert}"
    return text


def _error_title(error: ShownError) -> str:
    if error.written:
        return "Weight error, measured by the run"
    return "Weight error, preview" if error.exact else "Weight error, preview from a sample of rows"


def _error_lines(error: ShownError) -> list[Fact]:
    lines = []
    if error.sqnr_db is not None:
        words = "weights become infinite" if math.isnan(error.sqnr_db) else f"{error.sqnr_db:.2f} dB"
        lines.append(Fact("SQNR", "exact" if math.isinf(error.sqnr_db) else words))
    if error.relative_mse is not None:
        lines.append(Fact("relative MSE", short(error.relative_mse)))
    if error.max_abs is not None:
        lines.append(Fact("largest |w − ŵ|", short(error.max_abs, figures=4)))
    if error.cosine is not None:
        lines.append(Fact("cosine", f"{error.cosine:.6f}"))
    return lines


def _short(value: object) -> str:
    inner = getattr(value, "value", value)
    if isinstance(inner, list | tuple) or hasattr(inner, "shape"):
        return f"{len(inner):,} values"  # type: ignore[arg-type]
    text = " ".join(str(inner).split())
    return text if len(text) <= 120 else f"{text[:119]}…"
