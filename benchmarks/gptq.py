"""GPTQ of one layer from a given Hessian, against the paper's algorithm in plain torch: time and error of both.

    python -m benchmarks.gptq [COLUMNS] [ROWS] [THREADS]

The rival follows Frantar et al. 2022, algorithm 1: Cholesky, inverse and Cholesky of that; blocks of 128 columns, in
which each rounded column's error is pushed ahead to the rest of the block, and after which it is pushed to all columns
behind it. float32, symmetric 4-bit groups of 128, columns as stored. Both work on one number of threads, by turns.
"""

from __future__ import annotations

import sys
import time
from statistics import median

import torch
from torch import Tensor

from core.calibration.statistics import Statistic
from core.formats import get_format
from core.methods import get_method

TURNS = 3
GROUP, BLOCK, BITS = 128, 128, 4


def layer(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Weights, and (2/n)·Σ x xᵀ of inputs that hang together."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2 * columns, columns, generator=g) * (torch.rand(columns, generator=g) * 2 + 0.1)
    x += 0.5 * x.roll(1, 1) + 0.25 * torch.randn(2 * columns, 64, generator=g) @ torch.randn(64, columns, generator=g)
    return torch.randn(rows, columns, generator=g) * 0.02, 2 * (x.T @ x) / len(x)


def paper(weights: Tensor, hessian: Tensor, damp: float = 0.01) -> Tensor:
    """Dequantized weights, float32 [rows, columns]."""
    w, h = weights.clone(), hessian.clone()
    columns = w.shape[1]
    h.diagonal().add_(damp * h.diagonal().mean())
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    out = torch.zeros_like(w)
    scale = torch.ones(len(w), 1)
    half, top = 2 ** (BITS - 1), 2**BITS - 1
    for first in range(0, columns, BLOCK):
        last = min(columns, first + BLOCK)
        block = w[:, first:last].clone()
        pushed = torch.zeros_like(block)
        own = upper[first:last, first:last]
        for i in range(last - first):
            if (first + i) % GROUP == 0:
                reach = w[:, first + i : first + i + GROUP].abs().amax(1, keepdim=True)
                scale = (2 * reach / top).half().float()
            column = block[:, i : i + 1]
            rounded = (torch.clamp(torch.round(column / scale) + half, 0, top) - half) * scale
            out[:, first + i] = rounded[:, 0]
            error = (column - rounded) / own[i, i]
            block[:, i:] -= error @ own[i : i + 1, i:]
            pushed[:, i] = error[:, 0]
        w[:, last:] -= pushed @ upper[first:last, last:]
    return out


def error_of(w: Tensor, w_hat: Tensor, hessian: Tensor) -> float:
    e = w - w_hat
    return float((e @ hessian * e).sum(dtype=torch.float64) / (w @ hessian * w).sum(dtype=torch.float64))


def main(columns: int = 4096, rows: int = 4096, threads: int = 1) -> None:
    torch.set_num_threads(threads)
    w, hessian = layer(rows, columns)
    method, fmt = get_method("gptq"), get_format(f"int{BITS}-g{GROUP}")
    known = {Statistic.HESSIAN: hessian}

    def ours(params: dict[str, str]) -> Tensor:
        method.forget()
        done = method.quantize(w, fmt, known, params)
        assert done.parts
        return done.dequantize()

    same = {"act_order": "off", "range": "minmax"}
    ours(same)  # compiles
    times: dict[str, list[float]] = {"the paper's": [], "the same, ours": [], "our defaults": []}
    results: dict[str, Tensor] = {}
    for _ in range(TURNS):
        for name, call in zip(times, (lambda: paper(w, hessian), lambda: ours(same), lambda: ours({})), strict=True):
            began = time.perf_counter()
            results[name] = call()
            times[name].append(time.perf_counter() - began)
            print(f"  {name}: {times[name][-1]:.2f} s", file=sys.stderr, flush=True)
    first = median(times["the paper's"])
    print(f"{rows} × {columns}, {fmt.name}, {threads} thread(s), median of {TURNS} turns")
    print(f"{'':16} {'seconds':>8} {'ratio':>7} {'output error':>13}")
    for name, taken in times.items():
        error = error_of(w, results[name], hessian)
        print(f"{name:16} {median(taken):8.2f} {first / median(taken):6.1f}x {error:13.6f}")


if __name__ == "__main__":
    main(*(int(a) for a in sys.argv[1:4]))
