"""What methods that scale inputs share: formats they have nothing to do on, means over inputs that must have one scale,
and the error of outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from core.calibration.statistics import Statistic
from core.formats.base import Format
from core.methods.base import Consumer

if TYPE_CHECKING:
    import torch


def only_rounds(format: Format) -> str | None:
    """Why scales of the inputs make no difference to this format, or None."""
    return "rounding is all there is to it" if format.family == "dense" else None


def over_inputs(
    consumers: Sequence[Consumer],
    tied: torch.Tensor | None,
    of: Callable[[Consumer], torch.Tensor],
    largest: bool = False,
) -> torch.Tensor:
    """float32 [columns]: a statistic of the inputs of all consumers, the mean over their tokens or the largest; equal
    for inputs that are tied."""
    import torch

    values = torch.stack([of(c).double() for c in consumers])
    if largest:
        found = values.amax(0)
    else:
        tokens = torch.tensor([max(1, c.tokens) for c in consumers], dtype=torch.float64, device=values.device)
        found = (values * tokens[:, None]).sum(0) / tokens.sum()
    return evened(found, tied, largest).float()


def evened(values: torch.Tensor, tied: torch.Tensor | None, largest: bool = False) -> torch.Tensor:
    """[columns]: tied columns get their mean, or the largest of them."""
    import torch

    if tied is None:
        return values
    made = torch.zeros(int(tied.max()) + 1, dtype=values.dtype, device=values.device)
    made.scatter_reduce_(0, tied, values, "amax" if largest else "mean", include_self=False)
    return made[tied]


def output_error(delta: torch.Tensor, stats: Mapping[Statistic, torch.Tensor]) -> float:
    """Mean squared error of a layer's outputs, summed over them, when its weights are off by delta.

    delta  float32 [rows, columns]. From kept tokens where these are fewer than columns, else from the Hessian
    """
    kept, hessian = stats.get(Statistic.ACTIVATIONS), stats.get(Statistic.HESSIAN)
    if kept is not None and (hessian is None or kept.shape[0] < delta.shape[1]):
        return float((delta @ kept.T).square().sum(dtype=_wide())) / max(1, kept.shape[0])
    assert hessian is not None
    return float(((delta @ hessian) * delta).sum(dtype=_wide())) / 2


def _wide() -> torch.dtype:
    import torch

    return torch.float64
