"""How much sooner two threads are done than one: the same two pieces of work one after the other and both at once.

    python -m benchmarks threads [--types q4_k,q4_0] [--effort exact] [--turns 12] [--seconds 0.06]

Each turn does both, ours and ggml's, and beside them, so that a machine that others use as well is seen: `registers`,
products and sums that stay in registers and fill the core's units, and `reading`, the sum of 8 MB per thread. A figure
is the median over the turns of the ratio within a turn; in brackets the quarter and the three-quarter point. More than
registers reach, no search can; formats without one read about as much as they compute, and lie between the two.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from benchmarks.formats import chosen
from core.formats import get_format
from tests.core.formats import llama

K_QUANTS = ["q2_k", "q3_k", "q4_k", "q5_k", "q6_k"]
TYPES = [*K_QUANTS, "iq4_nl", "iq4_xs", "iq3_xxs", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "mxfp4", "tq1_0"]
COLUMNS, MOST_ROWS = 4096, 1024
READ = 1 << 21


def ceilings() -> tuple[Callable[[int], object], Callable[[int], object]]:
    """Work of some 30 ms: in registers; reading memory."""
    import numba

    compiled: Any = numba.njit(nogil=True, fastmath=True)

    @compiled
    def products(values: Any, times: int) -> Any:
        for _ in range(times):
            for i in range(96):
                values[i] = values[i] * np.float32(0.999) + np.float32(1e-3)
        return values[0]

    @compiled
    def total(values: Any, times: int) -> Any:
        s = np.float32(0)
        for _ in range(times):
            for v in values:
                s += v
        return s

    few = [np.ones(96, np.float32) for _ in range(2)]
    many = [np.ones(READ, np.float32) for _ in range(2)]
    return lambda i: products(few[i], 3_000_000), lambda i: total(many[i], 40)


def turn(work: Callable[[int], object], pool: ThreadPoolExecutor) -> float:
    began = time.perf_counter()
    work(0)
    work(1)
    middle = time.perf_counter()
    list(pool.map(work, (0, 1)))
    return (middle - began) / (time.perf_counter() - middle)


def lasting(call: Callable[[int, int], object], most: int, seconds: float) -> Callable[[int], object]:
    """call(which half, rows), repeated or with fewer rows so that it lasts about that long."""
    call(0, 2)
    began = time.perf_counter()
    call(0, 16)
    per_row = (time.perf_counter() - began) / 16
    rows = int(min(most, max(8, seconds / per_row)))
    times = max(1, round(seconds / (per_row * rows)))
    return lambda i: [call(i, rows) for _ in range(times)]


def figure(ratios: Sequence[float]) -> str:
    low, middle, high = np.percentile(ratios, [25, 50, 75])
    return f"{middle:5.2f} ({low:.2f} … {high:.2f})"


def main(argv: Sequence[str] | None = ()) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks threads")
    parser.add_argument("--types", default=",".join(TYPES))
    parser.add_argument("--effort", default="exact")
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=0.06)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    weights = torch.randn(2 * MOST_ROWS, COLUMNS, generator=torch.Generator().manual_seed(0)) * 0.02
    halves = weights[:MOST_ROWS], weights[MOST_ROWS:]
    importance = torch.rand(COLUMNS, generator=torch.Generator().manual_seed(1)) + 0.01
    registers, reading = ceilings()
    print(f"{'':10}{'ours':>20}{'ggml':>20}{'registers':>20}{'reading':>20}")
    with ThreadPoolExecutor(2) as pool:
        for work in (registers, reading):
            work(0)
        for name in chosen(options.types, TYPES, "type"):
            f = get_format(name)
            known = importance if f.needs_importance else None
            theirs = None if known is None else known.numpy()

            def ours(i: int, rows: int, f: Any = f, known: Any = known) -> object:
                return f.quantize(halves[i][:rows], known, options.effort)

            def ggml(i: int, rows: int, name: str = name, known: Any = theirs) -> object:
                return llama.quantize(name.upper(), halves[i][:rows].numpy(), known)

            works = [lasting(w, MOST_ROWS, options.seconds) for w in (ours, ggml)] + [registers, reading]
            ratios = [[turn(w, pool) for w in works] for _ in range(options.turns)]
            print(f"{name:10}" + "".join(f"{figure(column):>20}" for column in zip(*ratios, strict=True)), flush=True)
    return 0


if __name__ == "__main__":
    import sys

    sys.exit(main(sys.argv[1:]))
