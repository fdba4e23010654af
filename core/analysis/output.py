"""The error of a layer's output on the inputs that calibration saw: Σ‖(w − ŵ)x‖² over the tokens x, beside Σ‖wx‖².
With H = (2/n)·Σ x xᵀ that is Tr(E H Eᵀ) and Tr(W H Wᵀ), so no token is needed.

Not the error of the weights (error.py), and not what the model makes of it (core/evaluation).
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Columns that are multiplied at a time. H is symmetric: only what lies on one side of each run is.
PANEL = 512


@dataclass(frozen=True, slots=True)
class OutputSums:
    """error  Tr(E H Eᵀ)      whole  Tr(W H Wᵀ), over the rows so far"""

    error: float = 0.0
    whole: float = 0.0

    @classmethod
    def of(cls, w: torch.Tensor, w_hat: torch.Tensor, hessian: torch.Tensor) -> OutputSums:
        """w floating, w_hat float32, both [rows, columns], on one device; hessian float32 [columns, columns]."""
        here = hessian.to(w.device)
        wide = w.float()
        return cls(_trace(wide - w_hat, here), _trace(wide, here))

    def __add__(self, other: OutputSums) -> OutputSums:
        return OutputSums(self.error + other.error, self.whole + other.whole)

    @property
    def relative(self) -> float | None:
        """None where the layer gives nothing at all, and its copy does."""
        if self.error <= 0:
            return 0.0
        return self.error / self.whole if self.whole > 0 else None

    def to_tuple(self) -> tuple[float, ...]:
        return astuple(self)


def _trace(x: torch.Tensor, hessian: torch.Tensor) -> float:
    """Tr(x H xᵀ), the products in float32, their sum in float64."""
    import torch

    total = 0.0
    for start in range(0, x.shape[1], PANEL):
        stop = min(x.shape[1], start + PANEL)
        own = x[:, start:stop]
        made = own @ hessian[start:stop, start:stop]
        if start:
            made.addmm_(x[:, :start], hessian[:start, start:stop], alpha=2)
        total += float((made * own).sum(dtype=torch.float64))
    return total
