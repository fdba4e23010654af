"""Sums over all tensors of a checkpoint or a plan. They take time over 50,000, so they are made in the task that made
the plan, and handed around. No Qt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from core.checkpoints.base import Checkpoint
    from core.engine.model import Plan


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over all tensors of a checkpoint: they take time, and are made where it was opened."""

    source_bytes: int
    weights: int

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Totals:
        return cls(checkpoint.nbytes, checkpoint.parameters)


@dataclass(frozen=True, slots=True)
class PlanTotals:
    """Sums over all tensors of a plan. bpw: stored bits per weight; fallbacks: one line per tensor not as asked."""

    bpw: float
    kept: int
    fallbacks: tuple[str, ...]

    @classmethod
    def of(cls, plan: Plan) -> PlanTotals:
        kept = len(plan.planned.where(lambda t: not t.quantized))
        fallbacks = plan.planned.where(lambda t: t.fallback)
        return cls(plan.bpw, kept, tuple(f"{t.tensor.name}: {t.reason}" for t in fallbacks))
