"""IQ2 and IQ3 in torch, as reference.py has the other types: weights in, the fields of every block out.

A run of 4 or 8 magnitudes must be a point of the type's lattice. For each of many scales every weight is rounded on its
own; runs that come out off the lattice go to the best of their neighbours (core/formats/ggml/neighbours.py); the scale
whose codes explain most of the weighted weights wins. Codes stand for magnitudes 2·code + 1 here; the magnitudes that
decoding uses differ from these a little, which the factors of d make up for.

One answer of llama.cpp's is not ours: its IQ3_S writes the groups of a block that follow 32 zeros into the places of
those before them, which makes other weights of them.

In shapes, N is the group that shares a scale, R = N / run the runs in it, n the number of groups.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from core.formats.fitting.searches import divide, positive, quotient, root, single, total
from core.formats.ggml.layout import Fields
from core.formats.ggml.neighbours import neighbours

BLOCK = 256
LARGEST = torch.finfo(torch.float32).max


@dataclass(frozen=True)
class Lattice:
    """One type.

    group    weights that share a scale
    run      weights that make a point, of `levels` magnitudes each
    tries    scales tried to either side of (2·levels − 1) / largest, `width` apart
    energy   σ² is this times the mean square of 256 weights
    share    of σ² in a weight's importance where none is given
    least    groups whose largest magnitude is below this become zeros
    even     signs of 8 weights are stored in 7 bits: the number of negative ones is made even
    again    runs coded anew at the scale that won: "off" those that were off the lattice; "all" every one, if one was
             off; "always" every one
    factor   of the d that is stored
    """

    name: str
    group: int
    run: int
    levels: int
    tries: int
    width: float
    energy: float
    share: float
    least: float
    even: bool
    again: str
    factor: float

    @property
    def tall(self) -> int:
        return 2 * self.levels - 1

    def __call__(self, blocks: Tensor, imp: Tensor | None, rows: int) -> Fields:
        """blocks float32 [b, 256]; imp the same shape, or None."""
        weights = self.weights(blocks, imp)
        x, w = blocks.reshape(-1, self.group).t(), weights.reshape(-1, self.group).t()
        sizes, negative = self._split(x, w)
        peak = sizes.amax(0)
        dead = (peak < self.least) | (peak == 0)
        peak = torch.where(dead, 1.0, peak)
        if self.name == "IQ2_XXS":
            # Its first scale is the best one for codes 0 … 4 in place of magnitudes.
            scale = positive(sizes, w, self.levels + 1)[1]
            dead = dead | ~(scale * self.levels > 0)
            middle = torch.where(dead, 1.0, scale * self.levels)
        else:
            scale, middle = divide(peak, self.tall), peak
        points, scale = self._search(sizes, w, scale, middle)
        negative = negative ^ (scale < 0)
        scale = torch.where(dead, 0.0, scale.abs()).view(len(blocks), -1)
        points = torch.where(dead, 0, points)
        codes = self._magnitudes(points)
        codes = torch.where(negative & ~dead, -codes, codes)
        top = scale.amax(1)
        d = divide(top, 31)
        levels = _whole(0.5 * (divide(1.0, d)[:, None] * scale - 1)).clamp(0, 15)
        return {
            "d": (d * single(self.factor, d)).half()[:, None],
            "scales": torch.where(top[:, None] > 0, levels, 0.0).to(torch.uint8),
            "codes": codes.t().reshape(len(blocks), BLOCK).to(torch.int8),
        }

    def weights(self, blocks: Tensor, imp: Tensor | None) -> Tensor:
        """What squared errors weigh, [b, 256]."""
        mean = self.energy * total(blocks.t() * blocks.t()) / BLOCK
        if imp is None:
            return self.share * mean[:, None] + blocks * blocks
        return imp * root(mean[:, None] + blocks * blocks)

    def _split(self, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """Magnitudes [N, n] and bool [N, n], which weights were negative. Where the number of these is made even, the
        weight whose error costs least changes its sign, and its magnitude becomes negative."""
        negative = x < 0
        if self.even:
            cost = (w * x * x).reshape(-1, 8, x.shape[1])
            low, least = cost[:, 0], torch.zeros_like(cost[:, 0], dtype=torch.long)
            for i in range(1, 8):
                least = torch.where(cost[:, i] < low, i, least)
                low = torch.where(cost[:, i] < low, cost[:, i], low)
            odd = negative.reshape(cost.shape).sum(1) % 2 == 1
            turned = (torch.arange(8, device=x.device)[None, :, None] == least[:, None]) & odd[:, None]
            negative = negative ^ turned.reshape(x.shape)
        return torch.where(negative, -x, x), negative

    def _search(self, x: Tensor, w: Tensor, scale: Tensor, middle: Tensor) -> tuple[Tensor, Tensor]:
        """Points int64 [R, n] and scales [n] for magnitudes x; `scale` is what remains where no trial helps."""
        runs, n = x.shape[0] // self.run, x.shape[1]
        points = torch.full((runs, n), int(table(self.name, x.device, "point")[0]), device=x.device)
        off = torch.full((runs, n), self.again == "all", device=x.device)
        best = torch.zeros_like(scale)
        for trial in range(-self.tries, self.tries + 1):
            inverse = (single(self.width, x) * trial + self.tall) / middle
            found, missed = self._place(x, w, inverse, divide(1.0, inverse))
            a, b = self._sums(x, w, found)
            better = (b > 0) & (a * a > best * b)
            scale = torch.where(better, quotient(a, b), scale)
            best = torch.where(better, scale * a, best)
            points, off = torch.where(better, found, points), torch.where(better, missed, off)
        if self.again == "always":
            off = torch.ones_like(off)
        elif self.again == "all":
            off = off.any(0).expand_as(off)
        off = off & (scale > 0)
        safe = torch.where(scale > 0, scale, 1.0)
        points = torch.where(off, self._place(x, w, divide(1.0, safe), safe)[0], points)
        a, b = self._sums(x, w, points)
        return points, torch.where(off.any(0) & (b > 0), quotient(a, b), scale)

    def _place(self, x: Tensor, w: Tensor, inverse: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """The point of every run at these steps, int64 [R, n], and whether its rounded codes were off the lattice."""
        n = x.shape[1]
        code = _whole(0.5 * (inverse * x - 1)).clamp(0, self.levels - 1)
        powers = self.levels ** torch.arange(self.run, device=x.device)
        number = (code.reshape(-1, self.run, n).long() * powers[:, None]).sum(1)
        point = table(self.name, x.device, "point")[number].long()
        off = point < 0
        line, column = off.nonzero(as_tuple=True)
        if len(line):
            lines = (line, slice(None), column)
            values, weights = x.reshape(-1, self.run, n)[lines].t(), root(w).reshape(-1, self.run, n)[lines].t()
            levels = 2 * table(self.name, x.device, "codes").float() + 1
            point[off] = nearest_listed(self.name, number[off], values, weights, step[column], levels)
        return point, off

    def _magnitudes(self, points: Tensor) -> Tensor:
        """float32 [N, n] of points [R, n]."""
        codes = table(self.name, points.device, "codes")[points].float()  # [R, n, run]
        return (2 * codes + 1).transpose(1, 2).reshape(-1, points.shape[1])

    def _sums(self, x: Tensor, w: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        q = self._magnitudes(points)
        return total(w * x * q), total(w * q * q)


def nearest_listed(
    name: str, number: Tensor, x: Tensor, weight: Tensor, step: Tensor, levels: Tensor, low: Tensor | float = 0.0
) -> Tensor:
    """int64 [m]: of each run's neighbours that with the least Σ weight·(step·(low + level) − x)², the first of equals.

    number, step  [m], number that of the run (core/formats/ggml/neighbours.py); low [m] or 0
    x, weight     [run, m]
    levels        float32 [points, run]: of every point's codes
    """
    first, index = (table(name, x.device, key).long() for key in ("first", "index"))
    begin = first[number]
    count = first[number + 1] - begin
    owner = torch.arange(len(number), device=x.device).repeat_interleave(count)
    place = torch.arange(len(owner), device=x.device) - (count.cumsum(0) - count)[owner]
    lowest = low[owner] if isinstance(low, Tensor) else low
    e = step[owner] * (lowest + levels[index[begin[owner] + place]].t()) - x[:, owner]
    distance = total(weight[:, owner] * e * e)
    least = torch.full_like(step, LARGEST).scatter_reduce_(0, owner, distance, "amin")
    place = torch.where(distance == least[owner], place, len(owner))
    return index[begin + torch.full_like(begin, len(owner)).scatter_reduce_(0, owner, place, "amin")]


def _whole(v: Tensor) -> Tensor:
    """v rounded to nearest even, with what ggml's nearest_int makes of numbers beyond ± 2^22, which means nothing."""
    low = (v + 12582912.0).view(torch.int32) & 0x7FFFFF
    return torch.where(v.isnan(), 0, low - 0x400000).float()


@cache
def table(name: str, device: torch.device, key: str) -> Tensor:
    """One array of the type's Neighbours on a device."""
    return torch.from_numpy(getattr(neighbours(name), key).copy()).to(device)


FITS: dict[str, Callable[[Tensor, Tensor | None, int], Fields]] = {
    lattice.name: lattice
    for lattice in (
        Lattice("IQ2_XXS", 32, 8, 3, 6, 0.1, 1.0, 0.0, 1e-15, True, "always", 1.0),
        Lattice("IQ2_XS", 16, 8, 3, 9, 0.1, 1.0, 0.0, 1e-15, True, "off", 1.0),
        Lattice("IQ2_S", 16, 8, 3, 9, 0.1, 2.0, 0.25, 1e-8, False, "off", 0.9875),
        Lattice("IQ3_XXS", 32, 4, 8, 15, 0.2, 2.0, 0.0, 1e-8, True, "off", 1.0125),
        Lattice("IQ3_S", 32, 4, 8, 9, 0.2, 2.0, 0.0, 0.0, False, "all", 1.033),
    )
}
