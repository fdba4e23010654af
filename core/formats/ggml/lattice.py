"""Runs of 4 or 8 weights that together index a table of points: IQ2_*, IQ3_* (magnitudes and signs) and IQ1_*
(ternary points with a common offset). The points are in grids.py.

Codes: IQ2 and IQ3 store ±(2l+1) per weight, l the index of the magnitude, as the search does; IQ1 the point's −1, 0, 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import product

import torch
from torch import Tensor

from core.formats.ggml.grids import grid_codes, magnitudes
from core.formats.ggml.layout import (
    Fields,
    Layout,
    Steps,
    half,
    half_bytes,
    ramp,
    spread,
    words16,
    words16_bytes,
    words32,
    words32_bytes,
)

DELTA = 0.125
# Runs whose nearest points are sought at once: each is compared with all points.
PIECE = 1 << 10


@cache
def _points(name: str, device: torch.device) -> Tensor:
    """int8 [points, width]: 2l+1 for IQ2 and IQ3, −1, 0, 1 for IQ1."""
    codes = torch.from_numpy(grid_codes(name).copy()).to(torch.int8)
    return (codes - 1 if name.startswith("IQ1") else 2 * codes + 1).to(device)


@cache
def _index(name: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Sorted keys of all points and the point each belongs to."""
    return torch.sort(_keys(_points(name, device)))


def _keys(points: Tensor) -> Tensor:
    """int64 [n]: a run's codes as one number."""
    return ((points.long() + 1) * 17 ** ramp(points.long(), points.shape[1])).sum(1)


def _find(name: str, runs: Tensor) -> Tensor:
    """int64 [n]: index in the file of each run of codes; every run must be a point."""
    keys, order = _index(name, runs.device)
    wanted = _keys(runs)
    at = torch.searchsorted(keys, wanted).clamp_(max=len(keys) - 1)
    assert torch.equal(keys[at], wanted), f"{name}: codes off the lattice"
    return order[at]


def _signed(name: str, index: Tensor, signs: Tensor) -> Tensor:
    """Codes [n, 256] of grid indices [n, runs] and sign bits: [n, 32] bytes, one per 8 weights."""
    n = len(index)
    points = _points(name, index.device)[index.long()].view(n, 32, 8)
    negative = (signs.long()[:, :, None] >> torch.arange(8, device=signs.device) & 1).bool()
    return torch.where(negative, -points, points).view(n, 256)


def _split(name: str, codes: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse: grid indices [n, runs] and sign bytes [n, 32], int64."""
    n = len(codes)
    width = grid_codes(name).shape[1]
    index = _find(name, codes.abs().reshape(-1, width)).view(n, 256 // width)
    signs = ((codes.view(n, 32, 8) < 0).long() << torch.arange(8, device=codes.device)).sum(2)
    return index, signs


def _even(seven: Tensor) -> Tensor:
    """Eight sign bits of seven: the last makes their number even."""
    parity = seven ^ seven >> 4
    parity = parity ^ parity >> 2
    return seven | ((parity ^ parity >> 1) & 1) << 7


def _halves(packed: Tensor) -> Tensor:
    """[n, k] bytes → [n, 2k] nibbles, low first."""
    return torch.stack((packed & 15, packed >> 4), -1).flatten(1)


def _halves_bytes(x: Tensor) -> Tensor:
    pairs = x.to(torch.uint8).view(len(x), -1, 2)
    return pairs[..., 0] | pairs[..., 1] << 4


def _half(f: Fields) -> Steps:
    return Steps(f["d"].float() * (0.5 + f["scales"].float()) * 0.5)


def _quarter(f: Fields) -> Steps:
    return Steps(f["d"].float() * (0.5 + f["scales"].float()) * 0.25)


@dataclass(frozen=True)
class _Signed(Layout):
    """IQ2 and IQ3: the point nearest to the magnitudes of a run, under the signs of its weights.

    even   the number of negative weights in each 8 is even: where it is odd, the weight that costs least takes the
           wrong sign, and the point is the nearest one for that
    """

    even: bool = False

    def encode(self, w: Tensor, steps: Steps) -> Tensor:
        n, k = steps.step.shape
        step = steps.step[:, :, None]
        # Beyond all levels lie only the largest; squares of more would leave float32.
        target = torch.where(step == 0, 0.0, w.view(n, k, 256 // k) / step).view(-1, 8).clamp(-1e9, 1e9)
        codes = [_nearest_signed(self.name, self.even, target[at : at + PIECE]) for at in range(0, len(target), PIECE)]
        return torch.cat(codes).view(n, -1) if codes else torch.empty(w.shape, dtype=torch.int8, device=w.device)


def _nearest_signed(name: str, even: bool, target: Tensor) -> Tensor:
    """Codes int8 [n, 8] with the least Σ (±magnitude − target)²; target float32 [n, 8], in steps."""
    points = _points(name, target.device)
    width = points.shape[1]
    sizes = torch.tensor(magnitudes(name), device=target.device, dtype=torch.float32)[points.long() >> 1]
    negative = target < 0
    t = target.abs().reshape(-1, width)
    distance = torch.zeros(len(t), len(points), device=t.device)
    for i in range(width):
        # Without t², which is the same for all points, and would drown the differences of large targets.
        distance += sizes[:, i] * (sizes[:, i] - 2 * t[:, i, None])
    cost, point = distance.min(1)
    if even:
        odd = (negative.sum(1) % 2 == 1).nonzero()[:, 0]
        # A wrong sign at weight i adds (t + m)² − (t − m)² = 4·t·m. Of the runs of 8 weights one takes it.
        runs = 8 // width
        own = (odd[:, None] * runs + torch.arange(runs, device=t.device)).flatten()
        least = torch.full((len(own), len(points)), torch.inf, device=t.device)
        for i in range(width):
            least = torch.minimum(least, 4 * t[own, i, None] * sizes[:, i])
        wrong_cost, wrong = (distance[own] + least).min(1)
        taken = (wrong_cost - cost[own]).view(-1, runs).argmin(1)
        run = odd * runs + taken
        point[run] = wrong.view(-1, runs).gather(1, taken[:, None])[:, 0]
        at = taken * width + (t[run] * sizes[point[run]]).argmin(1)
        negative[odd, at] = ~negative[odd, at]
    codes = points[point].view(-1, 8)
    return torch.where(negative, -codes, codes)


# --- IQ2 ------------------------------------------------------------------------------------------------------------


def _iq2_xxs(blocks: Tensor) -> Fields:
    pairs = words32(blocks, 2, 16).view(-1, 8, 2)
    index = pairs[..., :1] >> ramp(pairs, 4, 8) & 255
    seven = pairs[..., 1:] >> ramp(pairs, 4, 7) & 127
    codes = _signed("IQ2_XXS", index.flatten(1), _even(seven.flatten(1)))
    return {"d": half(blocks, 0), "scales": (pairs[..., 1] >> 28).to(torch.uint8), "codes": codes}


def _iq2_xxs_bytes(f: Fields) -> Tensor:
    index, signs = _split("IQ2_XXS", f["codes"])
    first = (index.view(-1, 8, 4) << ramp(index, 4, 8)).sum(2)
    second = ((signs & 127).view(-1, 8, 4) << ramp(signs, 4, 7)).sum(2) | f["scales"].long() << 28
    return torch.cat((half_bytes(f["d"]), words32_bytes(torch.stack((first, second), -1).flatten(1))), 1)


def _iq2_xs(blocks: Tensor) -> Fields:
    q = words16(blocks, 2, 32)
    codes = _signed("IQ2_XS", q & 511, _even(q >> 9))
    return {"d": half(blocks, 0), "scales": _halves(blocks[:, 66:74]), "codes": codes}


def _iq2_xs_bytes(f: Fields) -> Tensor:
    index, signs = _split("IQ2_XS", f["codes"])
    words = words16_bytes(index | (signs & 127) << 9)
    return torch.cat((half_bytes(f["d"]), words, _halves_bytes(f["scales"])), 1)


def _iq2_s(blocks: Tensor) -> Fields:
    high = spread(blocks[:, 66:74], 4, 2).transpose(1, 2).reshape(-1, 32)
    index = blocks[:, 2:34].to(torch.int32) | high.to(torch.int32) << 8
    codes = _signed("IQ2_S", index, blocks[:, 34:66])
    return {"d": half(blocks, 0), "scales": _halves(blocks[:, 74:82]), "codes": codes}


def _iq2_s_bytes(f: Fields) -> Tensor:
    index, signs = _split("IQ2_S", f["codes"])
    high = ((index >> 8).view(-1, 8, 4) << ramp(index, 4, 2)).sum(2)
    parts = (half_bytes(f["d"]), index & 255, signs, high, _halves_bytes(f["scales"]))
    return torch.cat([p.to(torch.uint8) for p in parts], 1)


# --- IQ3 ------------------------------------------------------------------------------------------------------------


def _iq3_xxs(blocks: Tensor) -> Fields:
    packed = words32(blocks, 66, 8)
    seven = packed[..., None] >> ramp(packed, 4, 7) & 127
    codes = _signed("IQ3_XXS", blocks[:, 2:66], _even(seven.flatten(1)))
    return {"d": half(blocks, 0), "scales": (packed >> 28).to(torch.uint8), "codes": codes}


def _iq3_xxs_bytes(f: Fields) -> Tensor:
    index, signs = _split("IQ3_XXS", f["codes"])
    packed = ((signs & 127).view(-1, 8, 4) << ramp(signs, 4, 7)).sum(2) | f["scales"].long() << 28
    return torch.cat((half_bytes(f["d"]), index.to(torch.uint8), words32_bytes(packed)), 1)


def _iq3_s(blocks: Tensor) -> Fields:
    ninth = spread(blocks[:, 66:74], 8, 1).transpose(1, 2).reshape(-1, 64)
    index = blocks[:, 2:66].to(torch.int32) | ninth.to(torch.int32) << 8
    codes = _signed("IQ3_S", index, blocks[:, 74:106])
    return {"d": half(blocks, 0), "scales": _halves(blocks[:, 106:110]), "codes": codes}


def _iq3_s_bytes(f: Fields) -> Tensor:
    index, signs = _split("IQ3_S", f["codes"])
    ninth = ((index >> 8).view(-1, 8, 8) << ramp(index, 8)).sum(2)
    parts = (half_bytes(f["d"]), index & 255, ninth, signs, _halves_bytes(f["scales"]))
    return torch.cat([p.to(torch.uint8) for p in parts], 1)


# --- IQ1: "negative" [n, 32] says which runs of 8 are moved down by DELTA, the others move up


def _ternary(index: Tensor) -> Tensor:
    return _points("IQ1_S", index.device)[index.long()].view(len(index), 256)


def _offset(f: Fields) -> Tensor:
    return torch.where(f["negative"].bool(), -DELTA, DELTA)


def _iq1_s(blocks: Tensor) -> Fields:
    qh = words16(blocks, 34, 8)
    high = (qh[..., None] >> ramp(qh, 4, 3) & 7).flatten(1)
    return {
        "d": half(blocks, 0),
        "scales": (qh >> 12 & 7).to(torch.uint8),
        "negative": (qh >> 15 & 1).to(torch.uint8).repeat_interleave(4, 1),
        "codes": _ternary(blocks[:, 2:34].to(torch.int32) | high << 8),
    }


def _iq1_s_bytes(f: Fields) -> Tensor:
    index = _find("IQ1_S", f["codes"].reshape(-1, 8)).view(-1, 32)
    qh = ((index >> 8).view(-1, 8, 4) << ramp(index, 4, 3)).sum(2)
    qh = qh | f["scales"].long() << 12 | f["negative"][:, ::4].long() << 15
    return torch.cat((half_bytes(f["d"]), (index & 255).to(torch.uint8), words16_bytes(qh)), 1)


def _iq1_m(blocks: Tensor) -> Fields:
    words = words16(blocks, 48, 4)
    d = ((words >> 12) << ramp(words, 4, 4)).sum(1, keepdim=True)
    qh = _halves(blocks[:, 32:48]).to(torch.int32)
    return {
        "d": torch.cat((d & 255, d >> 8), 1).to(torch.uint8).view(torch.float16),
        "scales": (words[..., None] >> ramp(words, 4, 3) & 7).to(torch.uint8).flatten(1),
        "negative": (qh >> 3).to(torch.uint8),
        "codes": _ternary(blocks[:, :32].to(torch.int32) | (qh & 7) << 8),
    }


def _iq1_m_bytes(f: Fields) -> Tensor:
    index = _find("IQ1_M", f["codes"].reshape(-1, 8)).view(-1, 32)
    qh = _halves_bytes(index >> 8 | f["negative"].long() << 3)
    d = words16(half_bytes(f["d"]), 0, 1)
    words = (f["scales"].to(torch.int32).view(-1, 4, 4) << ramp(d, 4, 3)).sum(2) | (d >> ramp(d, 4, 4) & 15) << 12
    return torch.cat(((index & 255).to(torch.uint8), qh, words16_bytes(words)), 1)


def _nearest_ternary(target: Tensor) -> Tensor:
    """int64 [n]: the point with the least Σ (code − target)² for each run, float32 [n, 8]; the first among equals."""
    points = _points("IQ1_S", target.device).long()
    choices = torch.tensor(list(product((-1, 0, 1), repeat=4)), dtype=torch.float32, device=target.device)
    first, second = ((half + 1) @ torch.tensor((27, 9, 3, 1), device=target.device) for half in points.split(4, 1))
    out = torch.empty(len(target), dtype=torch.int64, device=target.device)
    for at in range(0, len(target), PIECE):
        halves = []
        for t in target[at : at + PIECE].split(4, 1):
            # Without target², which is the same for all points, and would drown the differences of large targets.
            terms = [choices[:, i] ** 2 - 2 * t[:, i, None] * choices[:, i] for i in range(4)]
            halves.append(terms[0] + terms[1] + terms[2] + terms[3])
        out[at : at + PIECE] = (halves[0][:, first] + halves[1][:, second]).argmin(1)
    return out


@dataclass(frozen=True)
class _Ternary(Layout):
    """IQ1: the nearest code of every weight where those are a point, and otherwise the point nearest to the run."""

    def encode(self, w: Tensor, steps: Steps) -> Tensor:
        n, k = steps.step.shape
        step = steps.step[:, :, None]
        assert steps.offset is not None
        target = torch.where(step == 0, 0.0, w.view(n, k, 256 // k) / step).view(n, 32, 8) - steps.offset[:, :, None]
        runs = target.view(-1, 8)
        codes = runs.round().clamp_(-1, 1).to(torch.int8)
        keys, _ = _index(self.name, w.device)
        wanted = _keys(codes)
        off = keys[torch.searchsorted(keys, wanted).clamp_(max=len(keys) - 1)] != wanted
        codes[off] = _points(self.name, w.device)[_nearest_ternary(runs[off].clamp(-1e30, 1e30))]
        return codes.view(n, 256)


def _odd_steps(f: Fields) -> Tensor:
    return f["d"].float() * (2 * f["scales"].float() + 1)


def _signed_layout(
    name: str,
    unpack: Callable[[Tensor], Fields],
    pack: Callable[[Fields], Tensor],
    steps: Callable[[Fields], Steps],
    even: bool,
) -> Layout:
    sizes = magnitudes(name)
    top = 2 * len(sizes) - 1
    return _Signed(name, unpack, pack, steps, -top, top, odd=sizes, run=8, even=even)


LAYOUTS = {
    layout.name: layout
    for layout in (
        _signed_layout("IQ2_XXS", _iq2_xxs, _iq2_xxs_bytes, _quarter, True),
        _signed_layout("IQ2_XS", _iq2_xs, _iq2_xs_bytes, _quarter, True),
        _signed_layout("IQ2_S", _iq2_s, _iq2_s_bytes, _quarter, False),
        _signed_layout("IQ3_XXS", _iq3_xxs, _iq3_xxs_bytes, _half, True),
        _signed_layout("IQ3_S", _iq3_s, _iq3_s_bytes, lambda f: Steps(_odd_steps(f)), False),
        _Ternary("IQ1_S", _iq1_s, _iq1_s_bytes, lambda f: Steps(_odd_steps(f), offset=_offset(f)), -1, 1, run=8),
        _Ternary("IQ1_M", _iq1_m, _iq1_m_bytes, lambda f: Steps(_odd_steps(f), offset=_offset(f)), -1, 1, run=8),
    )
}
