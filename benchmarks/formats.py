"""Formats: our quantizer against llama.cpp's C code (`ggml_quantize_chunk`), same tensor, same run, one thread.

Both work on the same float32 rows, alternately, and the best of several turns counts; so a busy machine slows both.
"error" is RMSE / σ of what each of them wrote, decoded by ggml; equal figures mean equal bytes ("=") for GGML types.
A second table gives the speed of decoding and of formats that ggml does not have, from bf16 as well.

Expectation, derived from the design's prototype of Q4_K's search alone (110 M weights/s on a quiet core, 8 × the C
code) and written down together with the first measurement, not before it: the whole of Q4_K 5 × C, the other searches
3 × and more, simple types level with C because memory binds them. Q6_K and Q3_K without importance stay below that.
Floor, set from the figures below, in multiples of the C code on the same core: Q2_K, Q4_K, Q5_K 4 ×; importance 2.5
×; Q3_K and Q6_K 1.5 ×; Q8_0 1.5 ×; Q4_0 … Q5_1 1 ×, IQ4 8 ×. Decoding of GGML types at least 300 M weights/s.
Measured (2.8 GHz Xeon, 2 cores, shared): Q4_K 82 against 11 M weights/s (7 ×), Q2_K 86 (6.5 ×), Q5_K 87 (6 ×), Q6_K
97 (3.3 ×), Q3_K 160 (2.1 ×), Q8_0 1200 (4.6 ×), Q4_0 990 (1.7 ×) kernels alone, while the machine was quiet; int4 in
groups 340; decoding 600 … 2700. Lanes of 64 gain by vectors of 8 and by not branching; vectors of 16 (AVX-512)
brought nothing.
Measured later, while the machine was busy, through `quantize` from float32 and from bf16, against ggml in the same
minute: Q4_0 1.7 × and 1.5 ×, Q4_1 1.2 and 1.05, Q5_0 1.4 and 1.3, Q5_1 1.1 and 1.03, Q8_0 3.0 and 2.8; IQ4_NL and
IQ4_XS 19 × (52 against 2.7 M weights/s); TQ1_0, TQ2_0, MXFP4, Q1_0 and Q2_0 1.6 × and more. Looking for weights that
are not finite before quantizing cost a third of the time of the simple types; now their scales tell.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from core.formats import FORMATS, Format, get_format
from core.formats.fitting import warm
from core.formats.ggml.format import UNWEIGHTED, WRITTEN
from tests.core.formats import llama

ROWS, COLUMNS = 512, 4096
TURNS = 5
# The C searches are slow: the comparison is made on this share of the rows.
SHARE = 8


def best(call: Callable[[], object], turns: int = TURNS) -> float:
    """Seconds of the fastest of several calls."""
    times = []
    for _ in range(turns):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return min(times)


def error(name: str, w: np.ndarray, blocks: np.ndarray) -> float:
    return float(np.sqrt(np.mean((llama.dequantize(name, blocks, COLUMNS) - w) ** 2, dtype=np.float64)) / w.std())


def against_llama(name: str, w: torch.Tensor, importance: torch.Tensor | None) -> str:
    f = get_format(name.lower())
    few = w[: ROWS // SHARE]
    given = None if importance is None else importance.numpy()
    ours, theirs = [], []
    for _ in range(4 * TURNS):  # by turns
        ours.append(best(lambda: f.quantize(few, importance), 1) / few.numel())
        theirs.append(best(lambda: llama.quantize(name, few.numpy(), given), 1) / few.numel())
    mine = f.quantize(few, importance).parts["blocks"].numpy()
    his = llama.quantize(name, few.numpy(), given)
    same = "=" if np.array_equal(mine, his) else "≠"
    speed, reference = 1e-6 / min(ours), 1e-6 / min(theirs)
    label = name.lower() + ("" if importance is None else " +importance")
    return (
        f"{label:18} {speed:8.0f} {reference:8.0f} {speed / reference:7.1f}x   "
        f"{error(name, few.numpy(), mine):.5f} {error(name, few.numpy(), his):.5f} {same}"
    )


def alone(f: Format, w: torch.Tensor) -> str:
    half = w.to(torch.bfloat16)
    q = f.quantize(w)
    parts = q.parts
    shape = (w.shape[0], w.shape[1])
    rates = [
        w.numel() / best(call) / 1e6
        for call in (
            lambda: f.quantize(w).parts,
            lambda: f.quantize(half).parts,
            lambda: f.dequantize(parts, shape),
        )
    ]
    e = float((w.double() - q.dequantize().double()).square().mean().sqrt() / w.double().std())
    return f"{f.name:18} {rates[0]:8.0f} {rates[1]:8.0f} {rates[2]:8.0f}   {e:.5f} {f.bpw(shape):6.3f}"


def main() -> None:
    torch.set_num_threads(1)
    g = torch.Generator().manual_seed(0)
    w = torch.randn(ROWS, COLUMNS, generator=g) * 0.02
    importance = torch.rand(COLUMNS, generator=g) + 0.01
    print(f"{ROWS} × {COLUMNS} Gaussian weights, one thread, M weights/s, best of {TURNS}\n")
    print(f"{'':18} {'ours':>8} {'ggml':>8} {'ratio':>8}   error, ours and ggml's")
    for name in WRITTEN:
        warm(get_format(name.lower()))
        print(against_llama(name, w, None))
        if name not in UNWEIGHTED:
            print(against_llama(name, w, importance))
    print(f"\n{'':18} {'quantize':>8} {'of bf16':>8} {'decode':>8}   error   bits per weight")
    for f in FORMATS:
        if f.encodable:
            warm(f)
            print(alone(f, w))
