"""Effort `best` for GGML's types in torch, for reading and for any device: llama.cpp's answer is where the search
begins, and only what lowers the error is taken, block by block. The error is that of the numbers as stored (16-bit d,
whole scales), under llama.cpp's own weights. lanes_best_*.py do the same work on a CPU; both give the same bytes.

Weights without importance: |x| for Q2_K, root mean square of the sub-block + |x| for Q4_K and Q5_K, x² for Q3_K, Q6_K
and IQ4, 1 elsewhere. With importance i: i·√(mean square + x²) as in reference.py, i for Q6_K; types that llama.cpp
writes without importance do without it here too.

All tensors are float32. x, w: [N, n], N elements of n sub-blocks; everything else [n].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from core.formats.fitting import searches_best_blocks, searches_best_lattice
from core.formats.fitting.fused import fused
from core.formats.fitting.reference import _mean_square
from core.formats.fitting.searches import nearest_code, quotient, root, single, total
from core.formats.fitting.tries import FACTORS, REFITS
from core.formats.ggml.codebook import LEVELS
from core.formats.ggml.layout import Fields

HALF_MAX = 65504.0


def refine(name: str, x: Tensor, imp: Tensor | None, fields: Fields, rows: int) -> Fields:
    """The fields of blocks [n, block], none with a larger error than those given (llama.cpp's).

    imp  float32 [n, block]: every weight's importance; or None
    """
    return fused(name, REFINEMENTS[name], x.device)(x, imp, fields, rows)


def _weighted(x: Tensor, w: Tensor, values: Tensor) -> Tensor:
    """Σ w·(values − x)² of every sub-block, in order."""
    e = values - x
    return total(wi * (ei * ei) for wi, ei in zip(w, e, strict=True))


def _halved(x: Tensor) -> Tensor:
    return x.half().float()


def _per_block(x: Tensor, per: int) -> Tensor:
    """The sum over the sub-blocks of every super-block, in order, for each of its sub-blocks."""
    return total(x.view(-1, per).t()).repeat_interleave(per)


@dataclass(frozen=True)
class AffineSuper:
    """Q2_K, Q4_K, Q5_K: in turn, scales and mins under the present d and dmin, then d and dmin by least squares."""

    sub: int
    nmax: int
    top: int  # largest quantized scale
    energy: float  # factor of the mean square in the weights made of importance
    level: bool  # without importance: the sub-block's root mean square + |x|, or |x| alone
    reach: int = 5  # scales tried on either side
    rounds: int = 3

    def __call__(self, x: Tensor, imp: Tensor | None, fields: Fields, rows: int) -> Fields:
        n, per = len(x), x.shape[1] // self.sub
        lanes = x.reshape(-1, self.sub).t()
        if imp is not None:
            w = (imp * root(_mean_square(x, self.energy)[:, None] + x * x)).reshape(-1, self.sub).t()
        elif self.level:
            w = root(total(v * v for v in lanes) / self.sub) + lanes.abs()
        else:
            w = lanes.abs()
        sw, sx = total(w), total(w * lanes)
        d, dmin = (fields[k].float().repeat_interleave(per) for k in ("d", "dmin"))
        scale, low = fields["scales"].float().flatten(), fields["mins"].float().flatten()

        def codes(step: Tensor, shift: Tensor) -> Tensor:
            return ((lanes + shift) * quotient(1.0, step)).round().clamp(0, self.nmax)

        def error(step: Tensor, shift: Tensor) -> Tensor:
            return _weighted(lanes, w, step * codes(step, shift) - shift)

        best = error(d * scale, dmin * low)
        for _ in range(self.rounds):
            from_scale, from_low = scale, low
            for move in range(-self.reach, self.reach + 1):
                new_scale = (from_scale + move).clamp(0, self.top)
                step = d * new_scale
                sq = total(w * codes(step, dmin * from_low))
                # The min that suits these codes best, and its neighbours.
                den = dmin * sw
                fit = (step * sq - sx) / torch.where(den > 0, den, 1.0)
                middle = torch.where(den > 0, fit.round().clamp(0, self.top), from_low)
                for beside in (-1, 0, 1):
                    new_low = (middle + beside).clamp(0, self.top)
                    err = error(step, dmin * new_low)
                    better = err < best
                    best = torch.where(better, err, best)
                    scale, low = torch.where(better, new_scale, scale), torch.where(better, new_low, low)
            new_d, new_dmin = self._refit(lanes, w, codes(d * scale, dmin * low), scale, low, sw, sx, d, dmin, per)
            err = error(new_d * scale, new_dmin * low)
            better = _per_block(err, per) < _per_block(best, per)
            best = torch.where(better, err, best)
            d, dmin = torch.where(better, new_d, d), torch.where(better, new_dmin, dmin)
        out = {"d": d[::per, None].half(), "dmin": dmin[::per, None].half()}
        out |= {"scales": scale.view(n, per).to(torch.uint8), "mins": low.view(n, per).to(torch.uint8)}
        q = codes(d * scale, dmin * low)
        return {**out, "codes": q.t().reshape(n, -1).to(torch.uint8)}

    def _refit(
        self, x: Tensor, w: Tensor, q: Tensor, scale: Tensor, low: Tensor, sw: Tensor, sx: Tensor,
        d: Tensor, dmin: Tensor, per: int,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """d and dmin by least squares over the super-block, x ≈ d·(scale·q) − dmin·low; as given where unusable."""
        wq = w * q
        a = _per_block(scale * scale * total(wq * q), per)
        b = _per_block(scale * low * total(wq), per)
        c = _per_block(low * low * sw, per)
        u = _per_block(scale * total(wq * x), per)
        v = _per_block(low * sx, per)
        det = a * c - b * b
        safe = torch.where(det > 0, det, 1.0)
        new_d, new_dmin = (u * c - b * v) / safe, (b * u - a * v) / safe
        usable = (det > 0) & (new_d > 0) & (new_dmin > 0) & (new_d <= HALF_MAX) & (new_dmin <= HALF_MAX)
        return torch.where(usable, _halved(new_d), d), torch.where(usable, _halved(new_dmin), dmin)


@dataclass(frozen=True)
class ScaledSuper:
    """Q3_K, Q6_K, IQ4_XS: in turn, the signed scales under the present d, then d by least squares."""

    sub: int
    zero: int  # codes run from −zero to zero − 1; 0: the uneven levels of IQ4
    most: int  # scales run from −most to most − 1
    energy: float  # as above; 0: importance alone
    reach: int  # scales tried on either side of the present one, and of its opposite in the first round
    rounds: int

    def __call__(self, x: Tensor, imp: Tensor | None, fields: Fields, rows: int) -> Fields:
        n, per = len(x), x.shape[1] // self.sub
        lanes = x.reshape(-1, self.sub).t()
        if imp is None:
            w = lanes * lanes
        elif self.energy:
            w = (imp * root(_mean_square(x, self.energy)[:, None] + x * x)).reshape(-1, self.sub).t()
        else:
            w = imp.reshape(-1, self.sub).t()
        levels = torch.tensor(LEVELS, device=x.device)

        def code(step: Tensor) -> Tensor:
            target = lanes * quotient(1.0, step)
            if self.zero:
                return target.round().clamp(-self.zero, self.zero - 1)
            return nearest_code(target, levels)

        def level(q: Tensor) -> Tensor:
            return q if self.zero else levels[q.long()]

        d, scale = fields["d"].float().repeat_interleave(per), fields["scales"].float().flatten()
        best = torch.full_like(d, float("inf"))
        # The present scale first: its error is what the others must fall below.
        moves = [0, *range(-self.reach, 0), *range(1, self.reach + 1)]
        for turn in range(self.rounds):
            start = scale
            for side in (1, -1) if turn == 0 else (1,):
                for move in moves:
                    new = (move + side * start).clamp(-self.most, self.most - 1)
                    err = _weighted(lanes, w, d * new * level(code(d * new)))
                    better = err < best
                    best, scale = torch.where(better, err, best), torch.where(better, new, scale)
            q = level(code(d * scale))
            wq = w * q
            qq = _per_block(scale * scale * total(wq * q), per)
            fit = _per_block(scale * total(wq * lanes), per) / torch.where(qq > 0, qq, 1.0)
            usable = (qq > 0) & (fit != 0) & (fit.abs() <= HALF_MAX)
            new_d = torch.where(usable, _halved(fit), d)
            err = _weighted(lanes, w, new_d * scale * level(code(new_d * scale)))
            better = _per_block(err, per) < _per_block(best, per)
            best, d = torch.where(better, err, best), torch.where(better, new_d, d)
        codes = (code(d * scale) + self.zero).t().reshape(n, -1).to(torch.uint8)
        return {"d": d[::per, None].half(), "scales": scale.view(n, per).to(torch.int8), "codes": codes}


# --- IQ4_NL -----------------------------------------------------------------------------------------------------------


def _quick_half(d: Tensor) -> Tensor:
    """d rounded to a half's precision, in the lanes' arithmetic. Beyond 65504 it stays too large."""
    t = d * 8193
    return torch.where(d.abs() < 2.0**-14, (d + 0.75) - 0.75, t - (t - d))


def iq4_nl(x: Tensor, imp: Tensor | None, fields: Fields, rows: int) -> Fields:
    """Other scales are tried (tries.py), the best one is refitted."""
    lanes = x.t()
    w = (x * x if imp is None else imp * root(_mean_square(x, 2.0)[:, None] + x * x)).t()
    levels = torch.tensor(LEVELS, device=x.device)

    def code(step: Tensor) -> Tensor:
        return nearest_code(lanes * quotient(1.0, step), levels)

    start = fields["d"].float().flatten()
    step, best = start, _weighted(lanes, w, start * levels[code(start)])
    tries = FACTORS["IQ4_NL"]
    for k in range(len(tries) + REFITS):
        if k < len(tries):
            new = _quick_half(start * single(tries[k], start))
            new = torch.where(new.abs() <= HALF_MAX, new, start)
        else:
            q = levels[code(step)]
            a, b = total(w * q * lanes), total(w * q * q)
            new = _quick_half(a / torch.where(b > 0, b, 1.0))
            new = torch.where((b > 0) & (new != 0) & (new.abs() <= HALF_MAX), new, step)
        err = _weighted(lanes, w, new * levels[code(new)])
        better = err < best
        best, step = torch.where(better, err, best), torch.where(better, new, step)
    return {"d": step[:, None].half(), "codes": code(step).t().to(fields["codes"].dtype)}


REFINEMENTS: dict[str, Callable[[Tensor, Tensor | None, Fields, int], Fields]] = {
    "Q2_K": AffineSuper(16, 3, 15, 1.0, False),
    "Q3_K": ScaledSuper(16, 4, 32, 2.0, 3, 2),
    "Q4_K": AffineSuper(32, 15, 63, 2.0, True),
    "Q5_K": AffineSuper(32, 31, 63, 2.0, True),
    "Q6_K": ScaledSuper(16, 32, 128, 0.0, 8, 2),
    "IQ4_XS": ScaledSuper(32, 0, 32, 2.0, 4, 3),
    "IQ4_NL": iq4_nl,
    **searches_best_blocks.REFINEMENTS,
    **searches_best_lattice.REFINEMENTS,
}
