"""GPTQ of one layer from a given Hessian, against the paper's algorithm in plain torch: time and error of both, where
the time goes, and what it cannot be less than on this machine.

    python -m benchmarks.gptq [COLUMNS] [ROWS] [THREADS]

The rival does what the published code does, in float32: Cholesky, inverse and Cholesky of that; blocks of 128 columns,
in which each rounded column's error is pushed ahead to the rest of the block; then to all columns behind it; symmetric
4-bit groups of 128 by their largest weight, columns as stored, losses kept. Both by turns, on as many threads; on one,
processor time is told, so that what else the machine does counts for neither.

The floor is the operations that cannot be left out (a Cholesky factorisation, columns³ / 3, and the sums over earlier
errors, rows · columns²) at the rate at which this torch multiplies two square matrices of that size, in the same run.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from core.calibration.statistics import Statistic
from core.formats import get_format
from core.methods import get_method

TURNS = 3
GROUP, BLOCK, BITS, DAMP = 128, 128, 4, 0.01
# Ours: name, format, parameters. The first does what the rival does.
RUNS = (
    ("the same", f"int{BITS}-g{GROUP}", {"act_order": "off", "range": "minmax"}),
    ("act-order, ranges searched", f"int{BITS}-g{GROUP}", {}),
    ("Q4_K", "q4_k", {"effort": "exact"}),
    ("NF4", "nf4", {}),
)


class Parts:
    """Seconds by part."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock, self.last = clock, clock()
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def done(self, part: str) -> None:
        now = self.clock()
        self.seconds[part] += now - self.last
        self.last = now


def layer(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Weights, and (2/n)·Σ x xᵀ of inputs that hang together."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2 * columns, columns, generator=g) * (torch.rand(columns, generator=g) * 2 + 0.1)
    x += 0.5 * x.roll(1, 1) + 0.25 * torch.randn(2 * columns, 64, generator=g) @ torch.randn(64, columns, generator=g)
    return torch.randn(rows, columns, generator=g) * 0.02, 2 * (x.T @ x) / len(x)


def paper(weights: Tensor, hessian: Tensor, parts: Parts) -> Tensor:
    """Dequantized weights, float32 [rows, columns]."""
    w, h = weights.clone(), hessian.clone()
    columns, top = w.shape[1], 2**BITS - 1
    dead = h.diagonal() == 0
    h[dead, dead] = 1
    w[:, dead] = 0
    h.diagonal().add_(DAMP * h.diagonal().mean())
    out, losses = torch.zeros_like(w), torch.zeros_like(w)
    parts.done("copies")
    h = torch.linalg.cholesky(h)
    parts.done("Cholesky")
    h = torch.cholesky_inverse(h)
    parts.done("inverse")
    upper = torch.linalg.cholesky(h, upper=True)
    parts.done("Cholesky of the inverse")
    scale, zero = torch.ones(len(w), 1), torch.full((len(w), 1), (top + 1) / 2)
    for first in range(0, columns, BLOCK):
        last = min(columns, first + BLOCK)
        block, own = w[:, first:last].clone(), upper[first:last, first:last]
        rounded, pushed, lost = torch.zeros_like(block), torch.zeros_like(block), torch.zeros_like(block)
        parts.done("copies")
        for i in range(last - first):
            if (first + i) % GROUP == 0:
                parts.done("columns")
                group = w[:, first + i : first + i + GROUP]
                reach = torch.maximum(group.amin(1).abs(), group.amax(1))
                scale = (2 * torch.where(reach == 0, 1, reach) / top).half().float()[:, None]  # as it is stored
                parts.done("grids")
            column = block[:, i]
            nearest = (scale * (torch.clamp(torch.round(column[:, None] / scale) + zero, 0, top) - zero)).flatten()
            error = (column - nearest) / own[i, i]
            rounded[:, i], lost[:, i] = nearest, error**2
            block[:, i:] -= error[:, None].matmul(own[i : i + 1, i:])
            pushed[:, i] = error
        parts.done("columns")
        out[:, first:last], losses[:, first:last] = rounded, lost / 2
        parts.done("copies")
        w[:, last:] -= pushed.matmul(upper[first:last, last:])
        parts.done("sums")
    return out


def error_of(w: Tensor, w_hat: Tensor, hessian: Tensor) -> float:
    e = w - w_hat
    return float((e @ hessian * e).sum(dtype=torch.float64) / (w @ hessian * w).sum(dtype=torch.float64))


def ours(w: Tensor, hessian: Tensor, format_name: str, params: dict[str, str], parts: Parts) -> Callable[[], Tensor]:
    """Quantizes; what is returned gives the dequantized weights, which nobody's time needs."""
    from core.methods.gptq import Gptq, Job
    from core.methods.options import effort_of, with_range

    method, fmt, known = get_method("gptq"), get_format(format_name), {Statistic.HESSIAN: hessian}
    method.forget()
    given = Gptq().given(params)
    effort = effort_of(fmt, given["effort"])
    job = Job.of(with_range(fmt, given["range"]), w.shape[1], given["act_order"], False, effort, given["lazy_cols"])
    parts.done("")
    job.factor(hessian, DAMP, w.device)  # kept, and found again below
    parts.done("factor")
    done = method.quantize(w, fmt, known, params)
    parts.done("columns, sums, grids")
    return done.dequantize


def gemm(size: int, clock: Callable[[], float]) -> float:
    """Operations a second of two square matrices multiplied; the better of two."""
    a, b, taken = torch.randn(size, size), torch.randn(size, size), []
    for _ in range(2):
        began = clock()
        a @ b
        taken.append(clock() - began)
    return 2 * size**3 / min(taken)


def main(columns: int = 4096, rows: int = 4096, threads: int = 1) -> None:
    torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    w, hessian = layer(rows, columns)
    for _, name, params in RUNS:  # compiles
        ours(w[:64], hessian, name, params, Parts(clock))
    totals: dict[str, list[float]] = defaultdict(list)
    parts: dict[str, list[dict[str, float]]] = defaultdict(list)
    errors, rates = {}, []
    for _ in range(TURNS):
        rates.append(gemm(columns, clock))
        told = Parts(clock)
        errors["the paper's"] = error_of(w, paper(w, hessian, told), hessian)
        parts["the paper's"].append(dict(told.seconds))
        for title, name, params in RUNS:
            told = Parts(clock)
            result = ours(w, hessian, name, params, told)
            told.seconds.pop("")
            parts[title].append(dict(told.seconds))
            errors[title] = error_of(w, result(), hessian)
        for title, turns in parts.items():
            totals[title].append(sum(turns[-1].values()))
            print(f"  {title}: {totals[title][-1]:.2f} s", file=sys.stderr, flush=True)
    rate = median(rates)
    least = (columns**3 / 3 + rows * columns**2) / rate
    published = (4 * columns**3 / 3 + rows * columns**2 + rows * columns * BLOCK) / rate
    kind = "processor time" if threads == 1 else "time"
    print(f"{rows} × {columns}, {threads} thread(s), {kind}, median of {TURNS} turns")
    print(
        f"matrices multiplied at {rate / 1e9:.0f} Gflop/s: floor {least:.2f} s, of the paper's steps {published:.2f} s"
    )
    first = totals["the paper's"]
    print(f"{'':28} {'seconds':>8} {'ratio':>7} {'output error':>13}")
    for title, taken in totals.items():
        ratio = median(a / b for a, b in zip(first, taken, strict=True))
        print(f"{title:28} {median(taken):8.2f} {ratio:6.2f}x {errors[title]:13.6f}")
    for title, turns in parts.items():
        said = ", ".join(f"{part} {median(t[part] for t in turns):.2f}" for part in turns[0])
        print(f"{title}: {said}")


if __name__ == "__main__":
    main(*(int(a) for a in sys.argv[1:4]))
