"""Effort `best` for IQ1, IQ2 and IQ3 in torch: as searches_best.py has it for the other types. In turn, d by least
squares over the block, the signs that may be chosen, and every group's 4-bit (IQ1: 3-bit) scale with the points that
suit its weights best under it. Errors are those of the stored numbers, with the magnitudes that decoding uses;
llama.cpp searches with others, that are evenly spaced, and makes up for it by a factor of d. lanes_best_lattice.py and
lanes_best_iq1.py do the same work on a CPU; both give the same bytes.

Weights without importance: x², for IQ2_S a quarter of σ² + x². With importance i: i·√(σ² + x²), σ² the block's mean
square (IQ2_XXS, IQ2_XS) or twice that.

In shapes, N is the group that shares a scale, R = N / run the runs in it, n the number of groups.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from core.formats.fitting import reference_iq1, reference_lattice
from core.formats.fitting.reference_iq1 import RUN
from core.formats.fitting.reference_lattice import nearest_listed, table
from core.formats.fitting.searches import quotient, single, total
from core.formats.fitting.tries import REACHES, SIDE_MOVES
from core.formats.ggml.grids import magnitudes
from core.formats.ggml.layout import Fields

HALF_MAX = 65504.0


def _error(t: Tensor, w: Tensor, values: Tensor) -> Tensor:
    """Σ w·(values − t)² of every column, in order."""
    e = values - t
    return total(wi * (ei * ei) for wi, ei in zip(w, e, strict=True))


def _per_block(v: Tensor, per: int) -> Tensor:
    """The sum over the groups of every block, in order, for each of its groups."""
    return total(v.view(-1, per).t()).repeat_interleave(per)


def _fitted(a: Tensor, b: Tensor, odd: Tensor, d: Tensor, factor: float, per: int) -> Tensor:
    """d by least squares from every group's Σ w·level·t and Σ w·level²; the present one where that makes no sense."""
    a, b = _per_block(odd * a, per), _per_block(odd * odd * b, per)
    fit = a / torch.where(b > 0, b, 1.0) * (1 / factor)
    usable = (b > 0) & (fit > 0) & (fit <= HALF_MAX)
    return torch.where(usable, torch.where(usable, fit, 0.0).half().float(), d)


@dataclass(frozen=True)
class SignedLattice:
    """IQ2 and IQ3: a weight is ± step · magnitude, step = d · (2 · scale + 1) · factor.

    slope, origin   the code of a magnitude v is v · slope − origin, rounded
    """

    name: str
    factor: float
    slope: float
    origin: float

    def __call__(self, x: Tensor, imp: Tensor | None, fields: Fields, rows: int) -> Fields:
        exact = reference_lattice.FITS[self.name]
        assert isinstance(exact, reference_lattice.Lattice)
        group, per = exact.group, x.shape[1] // exact.group
        w = exact.weights(x, imp).reshape(-1, group).t()
        lanes = x.reshape(-1, group).t()
        levels = torch.tensor(magnitudes(self.name), dtype=torch.float32, device=x.device)
        d, scale = fields["d"].float().flatten().repeat_interleave(per), fields["scales"].float().flatten()
        stored = fields["codes"].reshape(-1, group).t()
        code, negative = stored.abs().long() >> 1, stored < 0

        def step(d: Tensor, scale: Tensor) -> Tensor:
            return d * (2 * scale + 1) * self.factor

        target = torch.where(negative, -lanes, lanes)
        best = _error(target, w, step(d, scale) * levels[code])
        for reach in (*REACHES, 0):
            q, odd = levels[code], 2 * scale + 1
            wq = w * q
            new = _fitted(total(wq * target), total(wq * q), odd, d, self.factor, per)
            err = _error(target, w, step(new, scale) * q)
            better = _per_block(err, per) < _per_block(best, per)
            best, d = torch.where(better, err, best), torch.where(better, new, d)
            if not reach:
                break
            if exact.even:
                other = self._signs(lanes, w, q)
                turned = torch.where(other, -lanes, lanes)
                err = _error(turned, w, step(d, scale) * q)
                better = err < best
                best, target = torch.where(better, err, best), torch.where(better, turned, target)
                negative = torch.where(better, other, negative)
            start = scale
            for move in range(-reach, reach + 1):
                tried = (start + move).clamp(0, 15)
                unit = step(d, tried)
                found = self._place(target, w, unit, exact.run, levels)
                err = _error(target, w, unit * levels[found])
                better = err < best
                best, scale = torch.where(better, err, best), torch.where(better, tried, scale)
                code = torch.where(better, found, code)
        codes = 2 * code + 1
        codes = torch.where(negative, -codes, codes)
        return {
            "d": d[::per, None].half(),
            "scales": scale.view(-1, per).to(torch.uint8),
            "codes": codes.t().reshape(x.shape).to(torch.int8),
        }

    def _signs(self, x: Tensor, w: Tensor, q: Tensor) -> Tensor:
        """bool [N, n]: which weights count as negative, an even number in each 8; where it is odd, the one whose wrong
        sign costs least under the present magnitudes changes its own."""
        negative = x < 0
        cost = (w * q * x.abs()).reshape(-1, 8, x.shape[1])
        low, least = cost[:, 0], torch.zeros_like(cost[:, 0], dtype=torch.long)
        for i in range(1, 8):
            least = torch.where(cost[:, i] < low, i, least)
            low = torch.where(cost[:, i] < low, cost[:, i], low)
        odd = negative.reshape(cost.shape).sum(1) % 2 == 1
        turned = (torch.arange(8, device=x.device)[None, :, None] == least[:, None]) & odd[:, None]
        return negative ^ turned.reshape(x.shape)

    def _place(self, t: Tensor, w: Tensor, step: Tensor, run: int, levels: Tensor) -> Tensor:
        """Codes int64 [N, n] of the points chosen for targets t."""
        n, device = t.shape[1], t.device
        v = t * quotient(1.0, step) * single(self.slope, t) - single(self.origin, t)
        code = v.round().clamp(0, len(levels) - 1).long()
        powers = len(levels) ** torch.arange(run, device=device)
        number = (code.reshape(-1, run, n) * powers[:, None]).sum(1)
        point = table(self.name, device, "point")[number].long()
        codes = table(self.name, device, "codes").long()
        line, column = (point < 0).nonzero(as_tuple=True)
        if len(line):
            lines = (line, slice(None), column)
            values, weights = t.reshape(-1, run, n)[lines].t(), w.reshape(-1, run, n)[lines].t()
            point[line, column] = nearest_listed(
                self.name, number[line, column], values, weights, step[column], levels[codes]
            )
        return codes[point].transpose(1, 2).reshape(t.shape)


@dataclass(frozen=True)
class TernaryLattice:
    """IQ1_S and IQ1_M: a weight is step · (code − 1 ± DELTA), step = d · (2 · scale + 1). DELTA has one sign in a whole
    group (IQ1_S) or in a run of 8 (IQ1_M)."""

    group: int
    together: bool  # all runs of a group have one sign

    def __call__(self, x: Tensor, imp: Tensor | None, fields: Fields, rows: int) -> Fields:
        per, runs = x.shape[1] // self.group, self.group // RUN
        w = reference_iq1.weights(x, imp).reshape(-1, self.group).t()
        lanes = x.reshape(-1, self.group).t()
        d, scale = fields["d"].float().flatten().repeat_interleave(per), fields["scales"].float().flatten()
        code = fields["codes"].reshape(-1, self.group).t().long() + 1
        down = fields["negative"].reshape(-1, runs).t().bool()  # [R, n]
        moved = torch.tensor((reference_iq1.UP, reference_iq1.DOWN), dtype=torch.float32, device=x.device)

        def level(code: Tensor, down: Tensor) -> Tensor:
            return moved[down.long().repeat_interleave(RUN, 0), code]

        def by_runs(values: Tensor) -> Tensor:
            """[R, n]"""
            e = (values - lanes).view(runs, RUN, -1).transpose(0, 1)
            return _error(torch.zeros_like(e), w.reshape(runs, RUN, -1).transpose(0, 1), e)

        best = total(by_runs(d * (2 * scale + 1) * level(code, down)))
        for turn in range(len(SIDE_MOVES) + 1):
            q, odd = level(code, down), 2 * scale + 1
            wq = w * q
            new = _fitted(total(wq * lanes), total(wq * q), odd, d, 1.0, per)
            err = total(by_runs(new * odd * q))
            better = _per_block(err, per) < _per_block(best, per)
            best, d = torch.where(better, err, best), torch.where(better, new, d)
            if turn == len(SIDE_MOVES):
                break
            start = scale
            for move in (0, -1, 1) if SIDE_MOVES[turn] else (0,):
                tried = (start + move).clamp(0, 7)
                unit = d * (2 * tried + 1)
                side = down
                found = self._place(lanes, w, unit, side, moved)
                parts = by_runs(unit * level(found, side))
                if move == 0:
                    found_there = self._place(lanes, w, unit, ~side, moved)
                    there = by_runs(unit * level(found_there, ~side))
                    lower = there < parts
                    if self.together:
                        lower = (total(there) < total(parts)).expand_as(lower)
                    parts, side = torch.where(lower, there, parts), side ^ lower
                    found = torch.where(lower.repeat_interleave(RUN, 0), found_there, found)
                err = total(parts)
                better = err < best
                best, scale = torch.where(better, err, best), torch.where(better, tried, scale)
                code, down = torch.where(better, found, code), torch.where(better, side, down)
        signs = down.t() if not self.together else down.t().reshape(-1, runs)
        return {
            "d": d[::per, None].half(),
            "scales": scale.view(-1, per).to(torch.uint8),
            "negative": signs.reshape(-1, x.shape[1] // RUN).to(torch.uint8),
            "codes": (code - 1).t().reshape(x.shape).to(torch.int8),
        }

    def _place(self, x: Tensor, w: Tensor, step: Tensor, down: Tensor, moved: Tensor) -> Tensor:
        """Codes 0 … 2, int64 [N, n], of the points chosen; down bool [R, n], moved: the levels of codes that are moved
        up, and down."""
        n, device = x.shape[1], x.device
        low = moved[down.long(), 0]
        code = (x * quotient(1.0, step) - low.repeat_interleave(RUN, 0)).round().clamp(0, 2).long()
        number = (code.reshape(-1, RUN, n) * (3 ** torch.arange(RUN, device=device))[:, None]).sum(1)
        point = table("IQ1_S", device, "point")[number].long()
        codes = table("IQ1_S", device, "codes").long()
        line, column = (point < 0).nonzero(as_tuple=True)
        if len(line):
            lines = (line, slice(None), column)
            values, weights = x.reshape(-1, RUN, n)[lines].t(), w.reshape(-1, RUN, n)[lines].t()
            near, least = number[line, column], low[line, column]
            point[line, column] = nearest_listed("IQ1_S", near, values, weights, step[column], codes.float(), least)
        return codes[point].transpose(1, 2).reshape(x.shape)


REFINEMENTS: dict[str, Callable[[Tensor, Tensor | None, Fields, int], Fields]] = {
    "IQ2_XXS": SignedLattice("IQ2_XXS", 0.125, 2 / 35, 16 / 35),
    "IQ2_XS": SignedLattice("IQ2_XS", 0.125, 2 / 35, 16 / 35),
    "IQ2_S": SignedLattice("IQ2_S", 0.125, 2 / 35, 16 / 35),
    "IQ3_XXS": SignedLattice("IQ3_XXS", 0.25, 0.125, 0.5),
    "IQ3_S": SignedLattice("IQ3_S", 1.0, 0.5, 0.5),
    "IQ1_S": TernaryLattice(32, True),
    "IQ1_M": TernaryLattice(16, False),
}
