"""Effort `best` in torch for the types whose blocks stand by themselves: Q4_0 … Q8_0, TQ1_0, TQ2_0, Q2_0 and MXFP4.
lanes_best_scaled.py, lanes_best_shifted.py and lanes_best_fp4.py do the same work on a CPU; both give the same bytes.

All tensors are float32, x and w [N, n]: N weights of each of n blocks; everything else [n].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from core.formats.fitting.reference import _row_weights
from core.formats.fitting.searches import quotient, single, total
from core.formats.fitting.tries import AGAIN, FACTORS, LINES
from core.formats.ggml.fp4 import half_e8m0
from core.formats.ggml.layout import Fields

HALF_MAX = 65504.0


def _fused(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """a · b + c, rounded to float32 once: the product is exact in float64."""
    return (a.double() * b.double() + c.double()).float()


def _sum(a: Iterable[Tensor], b: Iterable[Tensor]) -> Tensor:
    """Σ a·b in order, from 0, every product rounded together with the sum."""
    result: Tensor | None = None
    for x, y in zip(a, b, strict=True):
        result = _fused(x, y, torch.zeros_like(x) if result is None else result)
    assert result is not None
    return result


def _times(w: Tensor | None, v: Tensor) -> Tensor:
    return v if w is None else w * v


def _reciprocal(value: float, like: Tensor) -> Tensor:
    """1 / value, both of float32."""
    return single(1.0, like) / single(value, like)


def _half(fit: Tensor) -> Tensor:
    """Rounded to a half; what none holds is infinite."""
    return fit.half().float()


@dataclass(frozen=True)
class Scaled:
    """Q4_0, Q5_0, Q8_0, TQ1_0, TQ2_0, Q2_0: levels from bottom to top times a scale."""

    bottom: int
    top: int
    tries: str
    weighted: bool = False  # importance counts

    def __call__(self, x: Tensor, imp: Tensor | None, fields: Fields, rows: int) -> Fields:
        lanes, w, tries = x.t(), None, FACTORS[self.tries]
        if self.weighted and imp is not None:
            w, tries = _row_weights(x, imp, rows).t(), FACTORS["weighted"]
        start = fields["d"].float().flatten()
        search = self._by_rounding if self.top == 127 else self._by_fit
        best, limit = search(lanes, w, start, tries)
        a, b = self._products(lanes, w, quotient(1.0, best))
        new = _half(a / torch.where(b > 0, b, 1.0))
        new = torch.where((b > 0) & (new != 0) & (new.abs() <= HALF_MAX), new, start)
        step = torch.where(new * new * self._rest(lanes, w, quotient(1.0, new)) > limit, start, new)
        codes = self._codes(lanes, quotient(1.0, step)) - (0 if self.top == 127 else self.bottom)
        return {"d": step[:, None].half(), "codes": codes.t().to(fields["codes"].dtype)}

    def _codes(self, x: Tensor, inv: Tensor) -> Tensor:
        return (inv * x).round().clamp(self.bottom, self.top)

    def _products(self, x: Tensor, w: Tensor | None, inv: Tensor) -> tuple[Tensor, Tensor]:
        """Σ w·x·q and Σ w·q²."""
        q = self._codes(x, inv)
        return _sum(_times(w, x), q), _sum(_times(w, q), q)

    def _rest(self, x: Tensor, w: Tensor | None, inv: Tensor) -> Tensor:
        """Σ w·(x·inv − q)²."""
        r = _fused(x, inv.expand(x.shape), -self._codes(x, inv))
        return _sum(_times(w, r), r)

    def _by_fit(self, x: Tensor, w: Tensor | None, start: Tensor, tries: tuple[float, ...]) -> tuple[Tensor, Tensor]:
        """The scale that takes most off the error with the codes of one of the tries, and llama.cpp's error."""
        inv = quotient(1.0, start)
        step, best = start, torch.zeros_like(start)
        for factor in (single(1.0, start), *(_reciprocal(f, start) for f in tries)):
            a, b = self._products(x, w, inv * factor)
            ratio = a / torch.where(b > 0, b, 1.0)
            more = (b > 0) & (ratio * a > best)
            step, best = torch.where(more, ratio, step), torch.where(more, ratio * a, best)
        return step, start * start * self._rest(x, w, inv)

    def _by_rounding(
        self, x: Tensor, w: Tensor | None, start: Tensor, tries: tuple[float, ...]
    ) -> tuple[Tensor, Tensor]:
        """The scale whose own codes are nearest, and llama.cpp's error."""
        inv = quotient(1.0, start)
        limit = None
        for f in (1.0, *tries):
            d, inv_d = start * single(f, start), inv * _reciprocal(f, start)
            r = _fused(x, inv_d.expand(x.shape), -(inv_d * x).round())
            error = d * d * _sum(r, r)
            if limit is None:
                step, best, limit = d, error, error
            step, best = torch.where(error < best, d, step), torch.where(error < best, error, best)
        assert limit is not None
        return step, limit


@dataclass(frozen=True)
class Shifted:
    """Q4_1 and Q5_1: levels 0 … nmax times a scale, and a minimum. All sums are of y = x − llama.cpp's minimum."""

    nmax: int
    tries: str

    def __call__(self, x: Tensor, imp: Tensor | None, fields: Fields, rows: int) -> Fields:
        w = None if imp is None else _row_weights(x, imp, rows).t()
        tries, again = (LINES[k := self.tries if imp is None else "weighted"], AGAIN[k])
        start, low = fields["d"].float().flatten(), fields["m"].float().flatten()
        y, inv = x.t() - low, quotient(1.0, start)
        if w is None:
            sw, swy = torch.full_like(start, len(y)), total(y)
        else:
            sw, swy = total(w), _sum(w, y)

        def taken(q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            """What the line that suits codes best takes off the error, its step, and Σ w·q."""
            v = _times(w, q)
            s, sq, sy = total(v), _sum(v, q), _sum(v, y)
            det, t = sw * sq - s * s, sw * sy - swy * s
            step = t / torch.where(det > 0, det, 1.0)
            return torch.where((det > 0) & (t > 0), t * step, 0.0), step, s

        def scaled(inv: Tensor, c: Tensor) -> Tensor:
            return _fused(y, inv.expand(y.shape), c.expand(y.shape))

        def nearest(u: Tensor) -> Tensor:
            return u.clamp(-0.25, self.nmax + 0.25).round()

        q = (y * inv).round()
        r = _fused(y, inv.expand(y.shape), -q)
        limit = start * start * _sum(_times(w, r), r)
        best, step, s = taken(q)
        for factor, moved in tries:
            c = -single(moved, start) / single(factor, start)
            gain, new, sum_ = taken(nearest(scaled(inv * _reciprocal(factor, start), c)))
            better = gain > best
            best, step, s = (torch.where(better, a, b) for a, b in ((gain, best), (new, step), (sum_, s)))
        share = 1.0 / torch.where(sw > 0, sw, 1.0)
        for _ in range(again):
            inv = quotient(1.0, torch.where(best > 0, step, start))
            c = torch.where(best > 0, (s - swy * inv) * share, 0.0)
            best, step, s = taken(nearest(scaled(inv, c)))
        d, m = _half(step), _half(low + (swy - step * s) * share)
        usable = (best > 0) & (d > 0) & (d <= HALF_MAX) & (m.abs() <= HALF_MAX)
        d, m = torch.where(usable, d, start), torch.where(usable, m, low)

        def placed(d: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
            """Codes of a line, and their error."""
            inv = quotient(1.0, d)
            u = scaled(inv, -((m - low) * inv))
            q = nearest(u)
            return q, d * d * _sum(_times(w, u - q), u - q)

        worse = placed(d, m)[1] > limit
        d, m = torch.where(worse, start, d), torch.where(worse, low, m)
        return {"d": d[:, None].half(), "m": m[:, None].half(), "codes": placed(d, m)[0].t().to(torch.uint8)}


def _fp4(v: Tensor) -> Tensor:
    """The nearest of 0 1 2 3 4 6 8 12 for v ≥ 0; of two equally near ones the even multiple of what they lie apart."""
    v = v.clamp(max=13)
    apart = torch.where(v < 4, 1.0, torch.where(v < 8, 2.0, 4.0)).to(v.dtype)
    return ((v / apart).round() * apart).clamp(max=12)


def mxfp4(x: Tensor, imp: Tensor | None, fields: Fields, rows: int) -> Fields:
    """The power of two above llama.cpp's and the one below, unless its scale byte is near an end of the range."""
    e = fields["e"].flatten().to(torch.int32)
    inside = (e >= 3) & (e <= 252)
    inverse = torch.where(inside, quotient(1.0, half_e8m0(e)), 0.0)
    best, move = torch.full_like(inverse, float("inf")), torch.zeros_like(e)
    for step in (0, 1, -1):
        u = (x.t() * (inverse * 0.5**step)).abs()
        r = u - _fp4(u)
        err = 4.0**step * _sum(r, r)
        # Of twice the largest step the largest levels are infinite.
        better = (err < best) & (e + step <= 252)
        best, move = torch.where(better, err, best), torch.where(better, step, move)
    moved = (e + move)[:, None]
    # In float64, as 1 / 2^-128 is too large for float32.
    level = _fp4(x.double().abs() / half_e8m0(moved).double())
    code = level - 0.5 * (level - 4).clamp(min=0) - 0.25 * (level - 8).clamp(min=0)
    code = torch.where((x < 0) & (code > 0), code + 8, code)
    return {"e": moved.to(torch.uint8), "codes": code.to(torch.uint8)}


_TERNARY = Scaled(-1, 1, "TQ1_0")

REFINEMENTS: dict[str, Callable[[Tensor, Tensor | None, Fields, int], Fields]] = {
    "Q4_0": Scaled(-8, 7, "Q4_0", weighted=True),
    "Q5_0": Scaled(-16, 15, "Q5_0", weighted=True),
    "Q8_0": Scaled(-128, 127, "Q8_0"),
    "TQ1_0": _TERNARY,
    "TQ2_0": _TERNARY,
    "Q2_0": Scaled(-1, 2, "Q2_0"),
    "Q4_1": Shifted(15, "Q4_1"),
    "Q5_1": Shifted(31, "Q5_1"),
    "MXFP4": mxfp4,
}
