"""A layer whose inputs go together, as those of a model do, and GPTQ as its paper describes it. No tests here."""

from __future__ import annotations

import torch
from torch import Tensor

from core.calibration.statistics import Statistic


def layer(rows: int = 48, columns: int = 256, seed: int = 0, tokens: int = 1024) -> tuple[Tensor, Tensor]:
    """Weights float32 [rows, columns], and (2/n)·Σ x xᵀ of inputs of uneven size that hang together."""
    g = torch.Generator().manual_seed(seed)
    mixed = torch.eye(columns) + torch.randn(columns, columns, generator=g) * 0.05
    x = torch.randn(tokens, columns, generator=g) @ mixed * (torch.rand(columns, generator=g) * 2 + 0.1)
    return torch.randn(rows, columns, generator=g) * 0.02, 2 * (x.T @ x) / tokens


def told(hessian: Tensor) -> dict[Statistic, Tensor]:
    return {Statistic.HESSIAN: hessian, Statistic.IMPORTANCE: hessian.diagonal() / 2}


def output_error(w: Tensor, w_hat: Tensor, hessian: Tensor) -> float:
    """Tr(E H Eᵀ) / Tr(W H Wᵀ), in float64."""
    e, h, whole = (w - w_hat).double(), hessian.double(), w.double()
    return float((e @ h * e).sum() / (whole @ h * whole).sum())


def paper(
    w: Tensor,
    hessian: Tensor,
    bits: int,
    group: int,
    *,
    symmetric: bool,
    damp: float = 0.01,
    order: Tensor | None = None,
) -> Tensor:
    """Dequantized weights after Frantar et al.: errors pushed ahead through the upper Cholesky factor of H⁻¹, in blocks
    of 128 columns. Groups of at least 128 are fitted when reached; with an order, all of them to the original."""
    w, h = w.double().clone(), hessian.double().clone()
    n = w.shape[1]
    h += torch.eye(n).double() * damp * h.diagonal().mean()
    fixed = None
    if order is not None:
        fixed = [_range(w[:, g : g + group], bits, symmetric) for g in range(0, n, group)]
        w, h = w[:, order], h[order][:, order]
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    out = torch.zeros_like(w)
    scale, zero = torch.zeros(1), torch.zeros(1)
    for first in range(0, n, 128):
        last = min(n, first + 128)
        block, pushed = w[:, first:last].clone(), torch.zeros(len(w), last - first).double()
        for i in range(last - first):
            if fixed is not None:
                scale, zero = fixed[int(order[first + i]) // group]
            elif (first + i) % group == 0:
                scale, zero = _range(w[:, first + i : first + i + group], bits, symmetric)
            q = ((block[:, i] / scale).round() + zero).clamp(0, 2**bits - 1)
            out[:, first + i] = (q - zero) * scale
            pushed[:, i] = (block[:, i] - out[:, first + i]) / upper[first + i, first + i]
            block[:, i:] -= pushed[:, i, None] * upper[first + i, None, first + i : last]
        w[:, last:] -= pushed @ upper[first:last, last:]
    if order is not None:
        out = out[:, order.argsort()]
    return out.float()


def _range(w: Tensor, bits: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    low, high = w.amin(1).clamp(max=0), w.amax(1).clamp(min=0)
    if symmetric:
        high = torch.maximum(-low, high)
        low = -high
    scale = ((high - low) / (2**bits - 1)).half().double()  # as it is stored
    zero = torch.full_like(scale, 2.0 ** (bits - 1)) if symmetric else (-low / scale).round()
    return scale, zero
