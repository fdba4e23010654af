"""ggml's searches for IQ1_S and IQ1_M in torch, for reading and for any device; lanes_iq1.py does the same on a CPU.

A group of weights shares a scale, and every 8 (IQ1_S: every 32) of them lie on one of two sets of levels, moved up or
down by DELTA. With weights in ascending order, all choices of the levels −1, 0, 1 are two places in the order; every
pair of places, on every set of levels, is tried, and the scale follows by least squares. Then the runs of 8 that are no
points of the lattice go to a point nearby.

Two scales are stored larger than found, by ggml's empirical factors.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations_with_replacement

import numpy as np
import torch
from torch import Tensor

from core.formats.fitting.searches import divide, quotient, root, single, total
from core.formats.ggml.lattice import DELTA
from core.formats.ggml.layout import Fields
from core.formats.ggml.neighbours import neighbours

SIZE = 256
RUN = 8
LARGEST = 3.4028234663852886e38
# Levels of the codes 0, 1, 2; up, then down.
UP = (-1 + DELTA, DELTA, 1 + DELTA)
DOWN = (-1 - DELTA, -DELTA, 1 - DELTA)
# Runs of off-lattice codes sought at once: each has up to 205 candidates.
PIECE = 1 << 14


def nearest_int(x: Tensor) -> Tensor:
    """int64: x rounded half to even as ggml does it, by adding 1.5 · 2^23 and reading the low bits: 0 for NaN, and
    below zero for infinities."""
    bits = (x + single(12582912.0, x)).view(torch.int32)
    return ((bits & 0x7FFFFF) - 0x400000).long()


def weights(x: Tensor, imp: Tensor | None) -> Tensor:
    """[n, 256]"""
    if imp is None:
        return x * x
    mean = divide(2 * total(x.t() * x.t()), SIZE)
    return imp * root(mean[:, None] + x * x)


def _sorted(x: Tensor) -> Tensor:
    """[group, n]: places in ascending order of weights, ties in their own order."""
    return torch.sort(x, dim=0, stable=True).indices


class _Best:
    """The best of the choices tried so far, per group: A² / B the greatest, by ggml's comparison."""

    def __init__(self, like: Tensor) -> None:
        self.score = torch.full_like(like, -LARGEST)
        self.scale = torch.zeros_like(like)
        self.first = torch.full_like(like, -1, dtype=torch.int64)
        self.second = torch.full_like(self.first, -1)
        self.signs = torch.zeros_like(self.first)

    def offer(self, a: Tensor, b: Tensor, first: int, second: int, signs: int) -> None:
        better = (b > 0) & (a * a > self.score * b)
        scale = quotient(a, b)
        self.scale = torch.where(better, scale, self.scale)
        self.score = torch.where(better, scale * a, self.score)
        self.first = self.first.masked_fill(better, first)
        self.second = self.second.masked_fill(better, second)
        self.signs = self.signs.masked_fill(better, signs)


def _sums(terms: Tensor) -> Tensor:
    """[group + 1, n]: sums of the first 0, 1, 2, … terms."""
    out = [torch.zeros_like(terms[0])]
    for term in terms:
        out.append(out[-1] + term)
    return torch.stack(out)


def _search_32(x: Tensor, w: Tensor, order: Tensor) -> _Best:
    """x, w [32, n]; signs 0: up, 1: down."""
    sum_x, sum_w = _sums((w * x).gather(0, order)), _sums(w.gather(0, order))
    best = _Best(x[0])
    last = len(x)
    for i, k in combinations_with_replacement(range(last + 1), 2):
        x_of = (sum_x[i], sum_x[k] - sum_x[i], sum_x[last] - sum_x[k])
        w_of = (sum_w[i], sum_w[k] - sum_w[i], sum_w[last] - sum_w[k])
        for signs, levels in enumerate((UP, DOWN)):
            a = x_of[0] * levels[0] + x_of[1] * levels[1] + x_of[2] * levels[2]
            b = w_of[0] * levels[0] * levels[0] + w_of[1] * levels[1] * levels[1] + w_of[2] * levels[2] * levels[2]
            best.offer(a, b, i, k, signs)
    return best


def _search_16(x: Tensor, w: Tensor, order: Tensor) -> _Best:
    """x, w [16, n]; signs 2a + b, a of the first run, b of the second one; 0: up, 1: down."""
    inside = order >= RUN
    zero = torch.zeros_like(x)
    terms_x, terms_w = (w * x).gather(0, order), w.gather(0, order)
    sum_x = [_sums(torch.where(inside == half, terms_x, zero)) for half in (False, True)]
    sum_w = [_sums(torch.where(inside == half, terms_w, zero)) for half in (False, True)]
    best = _Best(x[0])
    last = len(x)
    for i, k in combinations_with_replacement(range(last + 1), 2):
        a, b = [], []
        for sx, sw in zip(sum_x, sum_w, strict=True):
            for low, middle, high in (UP, DOWN):
                a.append(sx[last] * high - (sx[i] + sx[k]))
                whole = sw[last] * high * high
                b.append(whole + sw[i] * (low**2 - middle**2) + sw[k] * (middle**2 - high**2))
        for signs in range(4):
            first, second = signs >> 1, 2 + (signs & 1)
            best.offer(a[first] + a[second], b[first] + b[second], i, k, signs)
    return best


def _on(array: np.ndarray, device: torch.device) -> Tensor:
    """int64 copy on a device."""
    return torch.from_numpy(array.astype(np.int64)).to(device)


def _near(run: Tensor, cost: Tensor) -> Tensor:
    """int64 [n]: index of the listed point with the least cost, the first among equals.

    run   int64 [n], numbers of runs that are no points
    cost  float32 [n, 8, 3], of each code at each place
    """
    lists = neighbours("IQ1_S")
    device = run.device
    start, near, codes = (_on(v, device) for v in (lists.first, lists.index, lists.codes))
    result = torch.empty_like(run)
    for at in range(0, len(run), PIECE):
        part = slice(at, at + PIECE)
        length = start[run[part] + 1] - start[run[part]]
        place = torch.arange(int(length.max().item()), device=device)
        listed = near[(start[run[part], None] + place).clamp(max=len(near) - 1)]
        sums = total(cost[part, i].gather(1, codes[listed, i]) for i in range(RUN))
        sums = torch.where(place < length[:, None], sums, torch.inf)
        result[part] = listed.gather(1, sums.argmin(1, keepdim=True))[:, 0]
    return result


def _levels(signs: Tensor) -> Tensor:
    """[…, 3]: the levels of runs that are moved down (1) or up (0)."""
    return torch.tensor((UP, DOWN), device=signs.device)[signs]


def _on_lattice(x: Tensor, w: Tensor, order: Tensor, best: _Best, signs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes 0 … 2 of points [n, group], scale [n] ≥ 0, and signs [n, runs] after a negative scale was turned round.

    x, w, order  [group, n]
    signs        [n, runs]
    """
    n, runs = len(best.scale), len(x) // RUN
    device = x.device
    place = torch.arange(len(x), device=device)[:, None]
    rank = (place >= best.first).long() + (place >= best.second).long()
    codes = torch.empty_like(order).scatter_(0, order, rank).t()
    turned = best.scale < 0
    codes = torch.where(turned[:, None], 2 - codes, codes)
    signs = torch.where(turned[:, None], 1 - signs, signs)
    scale = best.scale.abs()
    xs, ws = x.t().reshape(n, runs, RUN), w.t().reshape(n, runs, RUN)

    lattice = neighbours("IQ1_S")
    levels = _levels(signs)
    number = (codes.reshape(n, runs, RUN) * 3 ** torch.arange(RUN, device=device)).sum(2)
    point = _on(lattice.point, device)[number]
    off = point < 0
    e = scale[:, None, None, None] * levels[:, :, None, :] - xs[..., None]
    cost = ws[..., None] * e * e
    if off.any():
        point[off] = _near(number[off], cost[off])
    codes = _on(lattice.codes, device)[point]  # [n, runs, 8]
    q = levels.gather(2, codes).flatten(1).t()
    a, b = total(w * q * x), total(w * q * q)
    scale = torch.where(off.any(1) & (a > 0) & (b > 0), quotient(a, b), scale)
    return codes.flatten(1), scale, signs


def _fit(x: Tensor, imp: Tensor | None, group: int, smallest: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights [n, 256], codes 0 … 2 [n, 256], scales [n, groups], signs [n, 32], of groups of 32 or 16."""
    n = len(x)
    w = weights(x, imp)
    xs, ws = x.reshape(-1, group).t(), w.reshape(-1, group).t()
    order = _sorted(xs)
    if group == 32:
        best = _search_32(xs, ws, order)
        signs = best.signs[:, None].expand(-1, 4)
    else:
        best = _search_16(xs, ws, order)
        signs = torch.stack((best.signs >> 1, best.signs & 1), 1)
    codes, scale, signs = _on_lattice(xs, ws, order, best, signs)
    # Nothing found: code 0 everywhere, moved up, and no say in the block's scale.
    dead = (xs.abs().amax(0) < single(smallest, xs)) | (best.first < 0)
    codes = torch.where(dead[:, None], 0, codes)
    signs = torch.where(dead[:, None], 0, signs)
    scale = torch.where(dead, 0.0, scale)
    return w, codes.reshape(n, SIZE), scale.view(n, -1), signs.reshape(n, 32)


def _steps(scales: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """d [n] with scales ≈ d · (2l + 1), l 0 … 7 [n, groups], and which blocks have any scale."""
    peak = scales.amax(1)
    alive = peak > 0
    d = divide(peak, 15)
    ls = nearest_int(0.5 * (divide(1.0, d)[:, None] * scales - 1)).clamp(0, 7)
    return d, torch.where(alive[:, None], ls, 0), alive


def _iq1_s(x: Tensor, imp: Tensor | None, rows: int) -> Fields:
    assert imp is not None
    _, codes, scales, signs = _fit(x, imp, 32, 1e-12)
    d, ls, alive = _steps(scales)
    d = torch.where(alive, d * single(1.125, d), 0.0)
    signs = torch.where(alive[:, None], signs, 0)
    return {
        "d": d.half()[:, None],
        "scales": ls.to(torch.uint8),
        "negative": signs.to(torch.uint8),
        "codes": (codes - 1).to(torch.int8),
    }


def _iq1_m(x: Tensor, imp: Tensor | None, rows: int) -> Fields:
    w, codes, scales, signs = _fit(x, imp, 16, 1e-7)
    d, ls, alive = _steps(scales)
    levels = _levels(signs)  # [n, 32, 3]
    q = levels.gather(2, codes.view(len(x), 32, RUN)).flatten(1)
    q = q * (2 * ls + 1).to(torch.float32).repeat_interleave(16, 1)
    a, b = total((w * q * x).t()), total((w * q * q).t())
    d = torch.where(b > 0, quotient(a, b), d) * single(1.1125, d)
    d = torch.where(alive, d, 0.0)
    signs = torch.where(alive[:, None], signs, 0)
    return {
        "d": d.half()[:, None],
        "scales": ls.to(torch.uint8),
        "negative": signs.to(torch.uint8),
        "codes": (codes - 1).to(torch.int8),
    }


FITS: dict[str, Callable[[Tensor, Tensor | None, int], Fields]] = {"IQ1_S": _iq1_s, "IQ1_M": _iq1_m}
