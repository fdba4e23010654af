"""Sixteen levels in any order of codes, found by comparing with fifteen bounds: NF4, FP4 and E2M1 share this search.
Which scale a run of weights gets is the formats' affair (bnb.py, mx.py); the compiled loops are in
fitting/lanes_codebook.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# Flat runs are widened and quantized in pieces of about this many weights, so that copies stay in cache. Divisible by
# every group size.
PIECE = 1 << 18


@dataclass(frozen=True)
class Codebook:
    """values  level of every code, float32 numbers
    order   codes by ascending level
    bounds  a scaled weight takes code order[k], k the number of bounds below it; float32 numbers
    """

    values: tuple[float, ...]
    order: tuple[int, ...]
    bounds: tuple[float, ...]

    def search(self, scaled: torch.Tensor) -> torch.Tensor:
        """uint8 codes of float32 weights already divided by their scale, same shape. Any device."""
        import torch

        bounds, order, _ = _tensors(self, scaled.device)
        return order[torch.bucketize(scaled, bounds, out_int32=True)]

    def look_up(self, codes: torch.Tensor) -> torch.Tensor:
        """float32 levels of integer codes, same shape."""
        import torch

        return _tensors(self, codes.device)[2][codes.to(torch.int32)]

    @cached_property
    def ascending(self) -> tuple[float, ...]:
        """Every level once."""
        return tuple(sorted({v + 0.0 for v in self.values}))


@lru_cache(maxsize=32)
def _tensors(book: Codebook, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    import torch

    return (
        torch.tensor(book.bounds, dtype=torch.float32, device=device),
        torch.tensor(book.order, dtype=torch.uint8, device=device),
        torch.tensor(book.values, dtype=torch.float32, device=device),
    )


def by_midpoints(values: tuple[float, ...], order: tuple[int, ...]) -> Codebook:
    """Nearest level; halfway between two, the lower one."""
    import numpy as np

    levels = np.array([values[k] for k in order], np.float32)
    bounds = (levels[:-1] + levels[1:]) / np.float32(2)
    rounded = np.array(values, np.float32)
    return Codebook(tuple(map(float, rounded)), order, tuple(map(float, bounds)))


@lru_cache(maxsize=1)
def e2m1() -> Codebook:
    """The 4-bit float: sign << 3 | code. Ties go to the even code; a negative weight that rounds to zero keeps its
    sign, as in compressed-tensors."""
    import numpy as np

    sizes = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
    up: list[float] = []
    for k in range(7):
        middle = np.float32((sizes[k] + sizes[k + 1]) / 2)
        # "bounds below it" leaves a tie to the lower code; the next smaller number gives it to the upper one.
        up.append(float(middle if k % 2 == 0 else np.nextafter(middle, np.float32(0))))
    down: list[float] = []
    for k in range(7):
        middle = np.float32(-(sizes[k] + sizes[k + 1]) / 2)
        down.append(float(np.nextafter(middle, np.float32(-9)) if k % 2 == 0 else middle))
    zero = float(-np.finfo(np.float32).smallest_subnormal)
    return Codebook(
        (*sizes, *(-s for s in sizes)),
        (15, 14, 13, 12, 11, 10, 9, 8, 0, 1, 2, 3, 4, 5, 6, 7),
        (*reversed(down), zero, *up),
    )


def pack_pairs(codes: torch.Tensor, high_first: bool, padding: int = 0) -> torch.Tensor:
    """uint8 [⌈n/2⌉] of codes below 16; the first of a pair in the high or low nibble, `padding` beside an odd one."""
    import torch

    flat = codes.reshape(-1).to(torch.uint8)
    if flat.numel() % 2:
        flat = torch.nn.functional.pad(flat, (0, 1), value=padding)
    first, second = flat[0::2], flat[1::2]
    return first << 4 | second if high_first else first | second << 4


def unpack_pairs(packed: torch.Tensor, count: int, high_first: bool) -> torch.Tensor:
    """uint8 [count]: the inverse of pack_pairs."""
    import torch

    flat = packed.reshape(-1)
    low, high = flat & 15, flat >> 4
    return torch.stack((high, low) if high_first else (low, high), 1).view(-1)[:count]


def quantize_runs(
    book: Codebook, w: torch.Tensor, scale: torch.Tensor, run: int, *, high_first: bool, multiply: bool
) -> torch.Tensor:
    """Packed codes of a flat tensor, uint8 [⌈n/2⌉]. Any device.

    w         floating, any dtype; read as one flat run of weights
    scale     float32, one per `run` weights; run is even
    multiply  scaled = w · scale; otherwise w / scale
    """
    import torch

    flat = w.reshape(-1)
    count = flat.numel()
    out = torch.empty((count + 1) // 2, dtype=torch.uint8, device=w.device)
    for start in range(0, count, PIECE):
        stop = min(count, start + PIECE)
        x = flat[start:stop].to(torch.float32)
        spread = scale[start // run : -(-stop // run)].repeat_interleave(run)[: stop - start]
        scaled = x * spread if multiply else x / spread
        out[start // 2 : (stop + 1) // 2] = pack_pairs(book.search(scaled), high_first)
    return out


def ranged_runs(book: Codebook, w: torch.Tensor, run: int, smallest: float) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Packed codes, uint8 [n/2], the first of a pair in the high nibble, and the largest magnitude of every run,
    float32 [n/run], of a flat tensor on a CPU with lanes; None where a weight is not finite. Weights are multiplied by
    the reciprocal of that magnitude, or of `smallest` where it is less. run: a multiple of 32 that divides n."""
    import numpy as np
    import torch

    from core.formats.fitting import raw_weights, whole_weights
    from core.formats.fitting.lanes_codebook import encode_runs

    bounds, pairs, _ = _arrays(book, True)
    out = torch.empty(w.numel() // 2, dtype=torch.uint8)
    absmax = torch.empty(w.numel() // run)
    plain = bool((pairs == np.arange(256)).all())
    for start, piece in whole_weights(w.view(-1, run)):
        stop = start + piece.shape[0]
        x, brains = raw_weights(piece)
        codes = out[start * run // 2 : stop * run // 2].numpy()
        if not encode_runs(
            x, brains, run, np.float32(smallest), bounds, pairs, plain, absmax[start:stop].numpy(), codes
        ):
            return None
    return out, absmax


def dequantize_runs(
    book: Codebook, packed: torch.Tensor, scale: torch.Tensor, run: int, count: int, *, high_first: bool
) -> torch.Tensor:
    """float32 [count] of packed codes: level · scale of its run, which is a multiple of 16 long."""
    import torch

    from core.formats.fitting import on_lanes

    packed = packed.reshape(-1)
    out = torch.empty(count, dtype=torch.float32, device=packed.device)
    whole = count // run * run if on_lanes(packed) else 0
    if whole:
        from core.formats.fitting.lanes_codebook import decode_runs

        levels = _arrays(book, high_first)[2]
        decode_runs(packed.contiguous().numpy(), scale.contiguous().numpy(), run, levels, out[:whole].numpy())
    for start in range(whole, count, PIECE):
        stop = min(count, start + PIECE)
        codes = unpack_pairs(packed[start // 2 :], stop - start, high_first)
        spread = scale[start // run : -(-stop // run)].repeat_interleave(run)[: stop - start]
        torch.mul(book.look_up(codes), spread, out=out[start:stop])
    return out


def largest_of_runs(w: torch.Tensor, run: int) -> torch.Tensor:
    """float32 [⌈n/run⌉]: the largest magnitude of every run of a flat tensor; not finite where a weight is not."""
    import torch

    flat = w.reshape(-1)
    count = flat.numel()
    out = torch.empty(-(-count // run), dtype=torch.float32, device=w.device)
    for start in range(0, count, PIECE):
        x = flat[start : start + PIECE].to(torch.float32)
        if x.numel() % run:
            x = torch.nn.functional.pad(x, (0, -x.numel() % run))
        torch.amax(x.view(-1, run).abs(), 1, out=out[start // run :][: x.numel() // run])
    return out


@lru_cache(maxsize=16)
def _arrays(book: Codebook, high_first: bool) -> tuple[Any, Any, Any]:
    """Bounds float32 [15]; byte of two positions in the order, uint8 [256]; two levels of a byte, uint64 [256]."""
    import numpy as np

    order = np.array(book.order, np.uint8)
    values = np.array(book.values, np.float32)
    index = np.arange(256)
    first, second = order[index >> 4], order[index & 15]
    pairs = (first << 4 | second) if high_first else (first | second << 4)
    nibbles = (index >> 4, index & 15) if high_first else (index & 15, index >> 4)
    levels = np.stack([values[n] for n in nibbles], 1).view(np.uint64).reshape(-1)
    return np.array(book.bounds, np.float32), pairs.astype(np.uint8), levels
