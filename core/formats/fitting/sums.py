"""The five sums from which every weight error is computed. What they mean is in core/analysis/error.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

# Widened in pieces of about this many weights, so that copies stay in cache.
PIECE = 1 << 17
# The torch path, where a kernel launch is what costs.
STEP = 1 << 22


def error_sums(w: Tensor, w_hat: Tensor) -> tuple[float, float, float, float, float]:
    """(Σw², Σ(w−ŵ)², max|w−ŵ|, Σw·ŵ, Σŵ²), all in float64; NaN anywhere stays NaN.

    w      floating, any dtype
    w_hat  float32 of the same shape and device
    """
    a, b = w.detach().reshape(-1), w_hat.detach().reshape(-1)
    if a.device.type == "cpu":
        from core.formats.fitting.compiled import available

        if available():
            return _lanes(a, b)
    return _torch(a, b)


def _torch(a: Tensor, b: Tensor) -> tuple[float, float, float, float, float]:
    import torch

    sums = torch.zeros(4, dtype=torch.float64, device=a.device)
    worst = torch.zeros((), dtype=torch.float64, device=a.device)
    for start in range(0, a.numel(), STEP):
        x, y = a[start : start + STEP].double(), b[start : start + STEP].double()
        e = x - y
        terms = (x * x, e * e, x * y, y * y)
        sums += torch.stack([t.sum() for t in terms])
        worst = torch.maximum(worst, e.abs().amax())  # maximum() hands NaN on
    w2, e2, wh, h2 = sums.tolist()
    return w2, e2, float(worst), wh, h2


def _lanes(a: Tensor, b: Tensor) -> tuple[float, float, float, float, float]:
    import numpy as np
    import torch

    from core.formats.fitting.lanes_sums import accumulate

    out = np.zeros(5)
    for start in range(0, a.numel(), PIECE):
        x = a[start : start + PIECE].to(torch.float32)
        y = b[start : start + PIECE].to(torch.float32)
        accumulate(x.contiguous().numpy(), y.contiguous().numpy(), out)
    w2, e2, worst, wh, h2 = out.tolist()
    return w2, e2, (float("nan") if e2 != e2 else worst), wh, h2
