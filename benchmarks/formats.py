"""Formats: our quantizers against llama.cpp's C code, bitsandbytes and torchao; same tensor, same run.

    python -m benchmarks formats [--types q4_k,nf4] [--input gaussian,student,demo] [--dtype float32,bfloat16]

Both sides get the same rows, by turns, and the best of several turns counts. "one core": million weights per second of
processor time, so neither threads nor a busy machine count; "all cores": per second by the clock, the rows shared out
among Python threads (as the engine's workers and llama-quantize do), or, where that is faster for the others, with
torch's threads. llama.cpp takes float32: from bf16 its time includes widening the rows.
"decode": one core, of 64 rows, back to float32 (bitsandbytes: to what the weights were).
"RMSE" is of the decoded weights, in standard deviations of the weights; "weighted" likewise with every squared error
times its column's importance (uniform random numbers). Each side's output is decoded by its own library, ggml's by
ggml; "=" means equal bytes.
With CUDA a second table follows: the same calls on the GPU, and which share of the floor they reach: the time that
reading the weights and writing the result takes at the bandwidth of a copy, measured beside them.

What binds. A search is arithmetic in registers. Per weight and try Q6_K needs 8.3 operations (4 products, 2 sums, 1
rounding, 1.3 comparisons), Q4_K and Q2_K 17, Q3_K with importance as Q6_K; tries are 19, 21 and 16. A core that starts
two products and two sums of 8 float32 per cycle (Zen 4; Intel with AVX-512 is alike) needs 19 · 8.3 / 32 = 5 cycles per
weight for Q6_K, 11 for Q4_K, 8.5 for Q2_K: the floor, 730, 330 and 430 M weights/s at 3.65 GHz. The older kernels,
whose sums lay in memory between two rows, reached 17, 27 and 22 % of it.
Predicted before the kernels on explicit vectors (lanes_vector.py) were written: two to three times the older ones,
Q4_K 15 × ggml, Q6_K 10 ×. Found: 1.6 to 2.7 times, Q4_K 9.7 ×, Q6_K 9 ×, 44 and 43 % of the floor. In Q4_K the next
try waits for the last one's sums and divisions; two runs by turns hid an eighth of that, for twice the code, and were
left out. Halving a try's loads (two tries in one pass) and dropping the lower bound where no code can reach it gave
Q6_K a quarter. The simple types read 4 bytes per weight and do some 20 operations; they are at 0.7 to 0.9 ns.
Formats without a search (lanes_uniform.py, lanes_small.py, lanes_codebook.py) read a weight once, 4 or 2 bytes, and
write ½ to 1: 0.33 ns at 15 GB/s; per eight weights some 12 operations and a division, 0.8 cycles per weight on Zen 3: a
floor of 3,000 M weights/s. Beside other work they are at 500 to 1,400.
Floor kept from here on, in multiples of ggml on the same core, float32 and bf16: Q2_K, Q4_K, Q5_K 6 ×, Q6_K 4 ×;
with importance all k-quants, Q4_0 and Q5_0 4 ×; Q3_K 2 ×, Q8_0 2 ×, Q4_0 … Q5_1 1 ×.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.rivals import Rival, rival
from core.formats import FORMATS, Format, get_format
from core.formats.fitting import warm
from core.formats.ggml.format import UNWEIGHTED

COLUMNS = 4096
ROWS = 512
# Rows where one core of a rival is below SLOW weights/s; on several cores, where it is below VERY_SLOW.
FEW_ROWS = 64
SLOW, VERY_SLOW = 1e8, 4e6
# A turn lasts at least this long, so that caches and the clock rate settle.
TURN = 0.01
TURNS = 3
INPUTS = ("gaussian", "student", "demo")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
DEMO = Path(__file__).parents[1] / "resources" / "demo" / "model.safetensors"
DENSE = ("f32", "f16", "bf16")


def best(call: Callable[[], object], turns: int = 5) -> float:
    """Seconds of the fastest of several calls."""
    times = []
    for _ in range(turns):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return min(times)


def by_turns(calls: Sequence[Callable[[], object]], clock: Callable[[], float], seconds: float) -> list[float]:
    """Seconds on `clock` of one call of each, the best of turns taken alternately for about `seconds` in all."""
    repeats = []
    for call in calls:
        begin = time.perf_counter()
        call()
        repeats.append(max(1, int(TURN / max(time.perf_counter() - begin, 1e-6))))
    least = [float("inf")] * len(calls)
    end, turn = time.perf_counter() + seconds, 0
    while turn < TURNS or time.perf_counter() < end:
        for i, call in enumerate(calls):
            begin = clock()
            for _ in range(repeats[i]):
                call()
            least[i] = min(least[i], (clock() - begin) / repeats[i])
        turn += 1
    return least


def weights(source: str, rows: int) -> Tensor:
    """float32 [rows, columns]; the demo's rows are as long as its hidden size."""
    if source == "demo":
        from safetensors.torch import load_file

        held = [t.float() for t in load_file(DEMO).values() if t.ndim == 2]
        width = min(t.shape[1] for t in held)
        stacked = torch.cat([t for t in held if t.shape[1] == width])
        return stacked[: rows * COLUMNS // width].contiguous()
    g = np.random.default_rng(0)
    shape = (rows, COLUMNS)
    drawn = g.standard_normal(shape) if source == "gaussian" else g.standard_t(5, shape)
    return torch.from_numpy((0.02 * drawn).astype(np.float32))


def errors(w: Tensor, decoded: Tensor, importance: Tensor) -> tuple[float, float]:
    """RMSE / σ, and weighted by importance."""
    e = (w.double() - decoded.double().cpu()).square()
    weight = importance.double()
    sigma = w.double().std()
    plain = e.mean().sqrt() / sigma
    return float(plain), float((e * weight).mean().div(weight.mean()).sqrt() / sigma)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def shared_out(call: Callable[[Tensor], object], w: Tensor, pool: ThreadPoolExecutor, threads: int) -> None:
    """call for equal parts of the rows, in as many threads."""
    list(pool.map(call, w.tensor_split(threads)))


@dataclass(frozen=True)
class Case:
    """One line of a table: a format, with importance or without."""

    format: Format
    importance: Tensor
    weighted: bool

    @property
    def label(self) -> str:
        return self.format.name + (" +importance" if self.weighted else "")

    @property
    def given(self) -> Tensor | None:
        return self.importance if self.weighted else None

    def ours(self, w: Tensor) -> Any:
        given = self.given
        return self.format.quantize(w, None if given is None else given.to(w.device)).parts


def cases(formats: Sequence[Format], importance: Tensor) -> Iterator[Case]:
    for f in formats:
        if not f.needs_importance:
            yield Case(f, importance, False)
        if f.family == "ggml" and f.name.upper() not in UNWEIGHTED:
            yield Case(f, importance, True)


def speeds(case: Case, other: Rival | None, w: Tensor, seconds: float) -> list[float | None]:
    """Million weights/s of one core: ours, theirs."""
    calls: list[Callable[[], object]] = [lambda: case.ours(w)]
    if other is not None:
        calls.append(lambda: other.encode(w, case.given))
    with torch_threads(1):
        found = by_turns(calls, time.process_time, seconds)
    return [w.numel() / t / 1e6 for t in found] + [None] * (2 - len(calls))


def speeds_together(
    case: Case, other: Rival | None, w: Tensor, threads: int, pool: ThreadPoolExecutor, seconds: float
) -> list[float | None]:
    """Million weights/s of several threads: ours, theirs."""
    calls: list[Callable[[], object]] = [lambda: shared_out(case.ours, w, pool, threads)]
    if other is not None:
        calls.append(lambda: shared_out(lambda part: other.encode(part, case.given), w, pool, threads))
    with torch_threads(1):
        found = by_turns(calls, time.perf_counter, seconds)
    if other is not None and not other.by_rows:
        with torch_threads(threads):
            found[1] = min(found[1], *by_turns([lambda: other.encode(w, case.given)], time.perf_counter, seconds))
    return [w.numel() / t / 1e6 for t in found] + [None] * (2 - len(found))


def number(value: float | None, form: str) -> str:
    width = int(form.split(".")[0])
    return f"{value:{form}}" if value is not None else "–".rjust(width)


def ratio(ours: float | None, theirs: float | None) -> str:
    return f"{ours / theirs:5.1f}x" if ours and theirs else "     –"


HEAD = (
    f"{'':20} {'against':12} {'ours':>6} {'theirs':>6} {'ratio':>6}  {'ours':>6} {'theirs':>6} {'ratio':>6}"
    f"  {'decode':>6} {'theirs':>6} {'ratio':>6}  RMSE    theirs   weighted theirs     bits"
)


def line(case: Case, source: Tensor, dtype: torch.dtype, threads: int, pool: ThreadPoolExecutor, seconds: float) -> str:
    f = case.format
    warm(f, case.weighted)
    w, full = source[: max(1, FEW_ROWS * COLUMNS // source.shape[1])].to(dtype), source.to(dtype)
    shape = (w.shape[0], w.shape[1])
    other = rival(f, w.shape[1])
    mine = case.ours(w)
    own = errors(w.float(), f.dequantize(mine, shape), case.importance)
    theirs: tuple[float | None, float | None] = (None, None)
    same, library, speed = "", "–", float("inf")
    if other is not None:
        begin = time.perf_counter()
        made = other.encode(w, case.given)
        speed = w.numel() / (time.perf_counter() - begin)
        theirs = errors(w.float(), other.decode(made), case.importance)
        library = other.library
        if other.by_rows:
            same = "=" if np.array_equal(mine["blocks"].numpy(), made) else "≠"
    one = speeds(case, other, w if speed < SLOW else full, seconds)
    every = speeds_together(case, other, w if speed < VERY_SLOW else full, threads, pool, seconds / 2)
    decoders: list[Callable[[], object]] = [lambda: f.dequantize(mine, shape)]
    if other is not None:
        decoders.append(lambda: other.decode(made))
    with torch_threads(1):
        decoding = by_turns(decoders, time.process_time, seconds / 2)
    back = [w.numel() / t / 1e6 for t in decoding] + [None] * (2 - len(decoding))
    rates = "  ".join(f"{number(a, '6.0f')} {number(b, '6.0f')} {ratio(a, b)}" for a, b in (one, every, back))
    error = "  ".join(f"{number(a, '7.5f')} {number(b, '7.5f')}" for a, b in zip(own, theirs, strict=True))
    return f"{case.label:20} {library:12} {rates}  {error} {same:1} {f.bpw(shape):6.3f}"


def gpu_seconds(call: Callable[[], object], seconds: float) -> float:
    """Of one call on the current CUDA device, the least of several runs between two events."""
    call()
    torch.cuda.synchronize()
    least, end = float("inf"), time.perf_counter() + seconds
    turn = 0
    while turn < TURNS or time.perf_counter() < end:
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        call()
        last.record()
        last.synchronize()
        least = min(least, first.elapsed_time(last) / 1e3)
        turn += 1
    return least


def gpu_bandwidth() -> float:
    """Bytes read and written per second by a copy of 256 MiB."""
    source = torch.empty(1 << 28, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / gpu_seconds(lambda: target.copy_(source), 0.5)


def gpu_line(case: Case, w: Tensor, bandwidth: float, seconds: float) -> str:
    """w: on the GPU."""
    f = case.format
    other = rival(f, w.shape[1])
    mine = case.ours(w)
    result = sum(t.numel() * t.element_size() for t in mine.values())
    shape = (w.shape[0], w.shape[1])
    floor = (w.numel() * w.element_size() + result) / bandwidth
    ours = gpu_seconds(lambda: case.ours(w), seconds)
    theirs = None
    if other is not None and other.on_gpu:
        theirs = gpu_seconds(lambda: other.encode(w, case.given), seconds)
    decoding = gpu_seconds(lambda: f.dequantize(mine, shape), seconds / 2)
    decode_floor = (w.numel() * 4 + result) / bandwidth
    fast, faster = w.numel() / ours / 1e6, w.numel() / theirs / 1e6 if theirs else None
    return (
        f"{case.label:20} {other.library if other and theirs else '–':12} {fast:8.0f} {number(faster, '8.0f')}"
        f" {ratio(fast, faster)}  {100 * floor / ours:8.1f} %  {w.numel() / decoding / 1e6:8.0f}"
        f"  {100 * decode_floor / decoding:8.1f} %"
    )


GPU_HEAD = (
    f"{'':20} {'against':12} {'ours':>8} {'theirs':>8} {'ratio':>6}  {'of floor':>10}  {'decode':>8}  {'of floor':>10}"
)


def chosen(text: str, all_of_them: Sequence[str], what: str) -> list[str]:
    """The names in a comma-separated list."""
    names = [n.strip() for n in text.split(",") if n.strip()]
    for name in names:
        if name not in all_of_them:
            raise SystemExit(f"unknown {what} {name!r}: choose from {', '.join(all_of_them)}")
    return names


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    every = [f.name for f in FORMATS if f.encodable]
    own = [n for n in every if n not in DENSE]
    parser = argparse.ArgumentParser("python -m benchmarks formats", description="Formats against other libraries.")
    parser.add_argument("--types", default=",".join(own), help="formats, comma-separated (default: all we write)")
    parser.add_argument("--input", default="gaussian", help=f"comma-separated, of {', '.join(INPUTS)}")
    parser.add_argument("--dtype", default="float32", help=f"comma-separated, of {', '.join(DTYPES)}")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of the columns for all cores")
    parser.add_argument("--seconds", type=float, default=0.6, help="spent on each measurement")
    given = parser.parse_args(argv)
    given.types = chosen(given.types, every, "format")
    given.input = chosen(given.input, INPUTS, "input")
    given.dtype = chosen(given.dtype, list(DTYPES), "dtype")
    return given


def main(argv: Sequence[str] | None = ()) -> None:
    given = arguments(argv)
    formats = [get_format(n) for n in given.types]
    for source in given.input:
        w = weights(source, ROWS)
        importance = torch.rand(w.shape[1], generator=torch.Generator().manual_seed(0)) + 0.01
        fitting = [f for f in formats if w.shape[1] % f.columns_per_grid == 0]
        for name in given.dtype:
            dtype = DTYPES[name]
            print(
                f"\n{source}, {w.shape[0]} × {w.shape[1]} {name}, million weights/s: one core; {given.threads} threads"
            )
            print(HEAD)
            with ThreadPoolExecutor(given.threads) as pool:
                for case in cases(fitting, importance):
                    print(line(case, w, dtype, given.threads, pool, given.seconds), flush=True)
            if torch.cuda.is_available():
                bandwidth = gpu_bandwidth()
                print(f"\non {torch.cuda.get_device_name()}, a copy moves {bandwidth / 1e9:.0f} GB/s")
                print(GPU_HEAD)
                there = w.to("cuda", dtype)
                for case in cases(fitting, importance):
                    print(gpu_line(case, there, bandwidth, given.seconds / 2), flush=True)


if __name__ == "__main__":
    main(None)
