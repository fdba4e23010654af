"""What the histogram panel asks for: the selected tensor under the plan's strategy, and those laid over it. No Qt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.calibration import statistics_of
from core.analysis.histogram import HistogramRequest, histogram
from core.context import JobContext

if TYPE_CHECKING:
    from app.session import Session
    from core.engine.model import Plan
    from core.targets.base import OutputTensor


@dataclass(frozen=True)
class OverlayRequest:
    """Tensors to lay over another, weights alone."""

    tensors: tuple[HistogramRequest, ...]


def overlay_task(request: OverlayRequest, ctx: JobContext) -> int:
    """Hands over one histogram after the other, each coarse first. Returns how many."""
    for each in request.tensors:
        ctx.partial(histogram(each, ctx))
    return len(request.tensors)


def request_of(session: Session, tensor: OutputTensor) -> HistogramRequest:
    """A tensor under the strategy that the plan gives it; its weights alone where it is kept or there is no plan."""
    assert session.checkpoint is not None
    planned = session.tensor(tensor.name)
    if planned is None:
        return HistogramRequest(session.checkpoint, tensor)
    if planned.copy or planned.format.name.upper() == tensor.dtype:
        return HistogramRequest(session.checkpoint, tensor, label=f"kept as {planned.format.name.upper()}")
    strategy = planned.strategy
    if not planned.quantized:
        return HistogramRequest(session.checkpoint, tensor, planned.format, label=planned.format.name)
    plan = session.plan
    return HistogramRequest(
        session.checkpoint,
        tensor,
        planned.format,
        strategy.method,
        dict(strategy.params),
        str(strategy),
        statistics_of(plan, planned) if plan is not None else {},
        _known(plan) if plan is not None else "",
    )


def _known(plan: Plan) -> str:
    gathered_on_the_way = plan.calibration.identity if plan.calibration is not None else ""
    return plan.known.identity or gathered_on_the_way


def same(a: HistogramRequest, b: HistogramRequest) -> bool:
    """Whether two requests have one answer."""
    return a.checkpoint is b.checkpoint and (a.tensor, a.format, a.method, a.params, a.label, a.known) == (
        b.tensor,
        b.format,
        b.method,
        b.params,
        b.label,
        b.known,
    )
