"""How far the outputs of single matrices are off, on the inputs that they have in the original model. Beside it the
error of the weights themselves, which says less: a column that no input reaches costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from core.calibration.statistics import Statistic, TensorStatistics
from core.checkpoints.base import Checkpoint
from core.context import JobContext

if TYPE_CHECKING:
    import torch

# Rows at a time.
_WEIGHTS = 1 << 22


@dataclass(frozen=True)
class LayerError:
    """One matrix, or a stack of experts.

    output_error  Σ‖(W−Ŵ)x‖² / Σ‖Wx‖² over the tokens x that reach it; None where none does
    weight_error  Σ(W−Ŵ)² / ΣW²
    """

    name: str
    output_error: float | None
    weight_error: float
    tokens: int


def layer_errors(
    found: Mapping[str, TensorStatistics], original: Checkpoint, other: Checkpoint, ctx: JobContext
) -> list[LayerError]:
    """Of the tensors whose inputs were gathered, with Statistic.HESSIAN. raises CheckpointError, Cancelled"""
    made = []
    for name, known in found.items():
        ctx.check()
        if name in other.tensors:
            made.append(_one(name, known, original, other))
    return made


def _one(name: str, known: TensorStatistics, original: Checkpoint, other: Checkpoint) -> LayerError:
    info = original.tensors[name]
    count = info.shape[0] if known.stacked else 1
    each = info.rows // count
    sums = [0.0, 0.0, 0.0, 0.0]
    for expert in range(count):
        part = known.of_expert(expert) if known.stacked else known
        hessian = part.values.get(Statistic.HESSIAN) if any(part.counts) else None
        first, last = expert * each, (expert + 1) * each
        # Hessians are means over tokens; experts count by how many they had.
        for n, value in enumerate(_sums(name, first, last, hessian, part.transposed, original, other)):
            sums[n] += value * (max(part.counts) if n < 2 else 1)
    wrong, right, lost, whole = sums
    return LayerError(name, wrong / right if right else None, lost / whole if whole else 0.0, sum(known.counts))


def _sums(
    name: str,
    first: int,
    last: int,
    hessian: object,
    transposed: bool,
    original: Checkpoint,
    other: Checkpoint,
) -> tuple[float, float, float, float]:
    """Σ‖(W−Ŵ)x‖² and Σ‖Wx‖², each times 2 over the number of tokens, Σ(W−Ŵ)² and ΣW², of rows first … last."""
    import torch

    h = None if hessian is None else torch.as_tensor(hessian)
    wrong = right = lost = whole = 0.0
    columns = original.tensors[name].columns
    # Inputs that run along the rows need all of these at once.
    step = last - first if transposed else max(1, _WEIGHTS // max(1, columns))
    for start in range(first, last, step):
        stop = min(last, start + step)
        w = original.read(name, start, stop).float()
        off = w - other.read(name, start, stop).float().to(w.device)
        lost += float(off.double().square().sum())
        whole += float(w.double().square().sum())
        if h is not None:
            a, b = (off.T, w.T) if transposed else (off, w)
            wrong += _form(a, h)
            right += _form(b, h)
    return wrong, right, lost, whole


def _form(w: torch.Tensor, h: torch.Tensor) -> float:
    """trace(W H Wᵀ)"""
    return float(((w @ h).double() * w.double()).sum())
