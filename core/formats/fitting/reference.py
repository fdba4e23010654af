"""ggml's quantizers assembled in torch: weights in, the fields of every block out. The readable account, and the path
for GPUs and for machines without numba. The searches are in searches.py, bit layouts in core/formats/ggml.

Bit-equal to llama.cpp's `ggml_quantize_chunk` as compiled without fused multiply-add.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from core.formats.fitting import reference_iq1, reference_lattice
from core.formats.fitting.fused import fused
from core.formats.fitting.searches import (
    EPS,
    affine,
    codebook,
    divide,
    nearest_code,
    positive,
    quotient,
    root,
    signed_largest,
    symmetric,
    symmetric_sweeps,
    total,
)
from core.formats.ggml.codebook import LEVELS
from core.formats.ggml.fp4 import half_e8m0
from core.formats.ggml.layout import Fields, layout
from core.formats.ggml.types import GGML_TYPES


def quantize(name: str, w: Tensor, importance: Tensor | None) -> tuple[Tensor, Tensor]:
    """uint8 [rows, row bytes], and bool [rows]: whether all scales of a row are within a half.

    w           float32 [rows, columns], finite
    importance  float32 [columns], positive, or None
    """
    kind = GGML_TYPES[name]
    rows, columns = w.shape
    blocks = w.reshape(-1, kind.block)
    weights = None
    if importance is not None:
        weights = importance.expand(rows, columns).reshape(-1, kind.block)
    fields = fused(name, FITS[name], w.device)(blocks, weights, rows)
    sound = torch.ones(len(blocks), dtype=torch.bool, device=w.device)
    for field in fields.values():
        if field.dtype == torch.float16:
            sound &= field.isfinite().all(1)
    return layout(name).pack(fields).view(rows, -1), sound.view(rows, -1).all(1)


# --- simple types ---------------------------------------------------------------------------------------------------


def _row_weights(x: Tensor, imp: Tensor, rows: int) -> Tensor:
    """importance · √(mean square of the whole row + x²), [blocks, 32]."""
    lines = x.reshape(rows, -1).t()
    mean = divide(total(line * line for line in lines), lines.shape[0])
    return imp * root(mean.repeat_interleave(len(x) // rows)[:, None] + x * x)


def _signed(nmax: int) -> Callable[[Tensor, Tensor | None, int], Fields]:
    """Q4_0 and Q5_0: codes 0 … 2·nmax − 1 around nmax."""

    def fit(x: Tensor, imp: Tensor | None, rows: int) -> Fields:
        if imp is not None:
            codes, scale = symmetric(x.t(), _row_weights(x, imp, rows).t(), nmax)
            return {"d": scale.half()[:, None], "codes": codes.t().to(torch.uint8)}
        d = divide(signed_largest(x.t()), -nmax)
        codes = (x * quotient(1.0, d)[:, None] + (nmax + 0.5)).trunc().clamp(max=2 * nmax - 1)
        return {"d": d.half()[:, None], "codes": codes.to(torch.uint8)}

    return fit


def _shifted(nmax: int) -> Callable[[Tensor, Tensor | None, int], Fields]:
    """Q4_1 and Q5_1: codes 0 … nmax above a minimum."""

    def fit(x: Tensor, imp: Tensor | None, rows: int) -> Fields:
        if imp is not None:
            codes, scale, low = affine(x.t(), _row_weights(x, imp, rows).t(), nmax, -0.9, 0.05, 36)
            return {"d": scale.half()[:, None], "m": low.half()[:, None], "codes": codes.t().to(torch.uint8)}
        low, high = x.min(1).values, x.max(1).values
        d = divide(high - low, nmax)
        codes = ((x - low[:, None]) * quotient(1.0, d)[:, None] + 0.5).trunc().clamp(max=nmax)
        return {"d": d.half()[:, None], "m": low.half()[:, None], "codes": codes.to(torch.uint8)}

    return fit


def _half_away(x: Tensor) -> Tensor:
    """Rounded to nearest, halves away from zero, as C's roundf."""
    whole = x.trunc()
    return torch.where((x - whole).abs() >= 0.5, whole + x.sign(), whole)


def _q8_0(x: Tensor, imp: Tensor | None, rows: int) -> Fields:
    d = divide(x.abs().amax(1), 127)
    return {"d": d.half()[:, None], "codes": _half_away(x * quotient(1.0, d)[:, None]).to(torch.int8)}


# --- super-blocks ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Affine:
    """Q2_K, Q4_K, Q5_K: a scale and a min per sub-block, both quantized again."""

    sub: int  # weights of a sub-block
    nmax: int
    top: int  # largest quantized scale
    rmin: float
    rdelta: float
    steps: int
    absolute: bool
    energy: float  # factor of the mean square in the weights made of importance

    def __call__(self, x: Tensor, imp: Tensor | None, rows: int) -> Fields:
        n, count = len(x), x.shape[1] // self.sub
        lanes = x.reshape(-1, self.sub).t()  # [sub, n·count]
        if imp is None:
            if self.absolute:
                w = lanes.abs()
            else:
                w = root(total(v * v for v in lanes) / self.sub) + lanes.abs()
            code, scale, low = affine(lanes, w, self.nmax, self.rmin, self.rdelta, self.steps, self.absolute)
            d, ls = self._even(scale.view(n, count))
            dmin, lm = self._even(-low.view(n, count))
        else:
            w = (imp * root(_mean_square(x, self.energy)[:, None] + x * x)).reshape(-1, self.sub).t()
            code, scale, low = affine(lanes, w, self.nmax, -0.9, 0.05, 36)
            per = total(w).view(n, count).t()
            ls, d = positive(scale.view(n, count).t(), per, self.top)
            lm, dmin = positive(-low.view(n, count).t(), per, self.top)
            ls, lm = ls.t(), lm.t()
        scales, mins = ls.to(torch.uint8), lm.to(torch.uint8)
        fields = {"d": d.half()[:, None], "dmin": dmin.half()[:, None], "scales": scales, "mins": mins}
        step = fields["d"].float() * scales.float()
        shift = fields["dmin"].float() * mins.float()
        again = ((x.view(n, count, -1) + shift[:, :, None]) / step[:, :, None]).round().clamp(0, self.nmax)
        kept = code.t().reshape(n, count, self.sub)
        fields["codes"] = torch.where(step[:, :, None] == 0, kept, again).reshape(n, -1).to(torch.uint8)
        return fields

    def _even(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Scales quantized evenly up to the largest: d [n], codes [n, count]. ggml's codes pass through a byte."""
        peak = values.max(1).values
        peak = torch.where(peak > 0, peak, torch.zeros_like(peak))  # never −0
        codes = torch.remainder((quotient(self.top, peak)[:, None] * values).round(), 256).clamp(max=self.top)
        return divide(peak, self.top), codes


def _mean_square(x: Tensor, factor: float) -> Tensor:
    return factor * total(x.t() * x.t()) / x.shape[1]


def _q3_k(x: Tensor, imp: Tensor | None, rows: int) -> Fields:
    n = len(x)
    lanes = x.reshape(-1, 16).t()
    if imp is None:
        code, scale = symmetric_sweeps(lanes, 4)
        scale = scale.view(n, 16)
        peak = signed_largest(scale.t())
        inverse = quotient(-32.0, peak)
        ls = (inverse[:, None] * scale).round().clamp(-32, 31)
        ls = torch.where(peak[:, None] == 0, -32.0, ls)  # stored as 0
        d = quotient(1.0, inverse)
    else:
        w = (imp * root(_mean_square(x, 2.0)[:, None] + x * x)).reshape(-1, 16).t()
        code, scale = symmetric(lanes, w, 4)
        stored, d = symmetric(scale.view(n, 16).t(), total(w).view(n, 16).t(), 32)
        ls = stored.t() - 32
    fields = {"d": d.half()[:, None], "scales": ls.to(torch.int8)}
    return {**fields, "codes": _recode(x, fields, code, 4)}


def _q6_k(x: Tensor, imp: Tensor | None, rows: int) -> Fields:
    n = len(x)
    lanes = x.reshape(-1, 16).t()
    w = lanes * lanes if imp is None else imp.reshape(-1, 16).t()
    code, scale = symmetric(lanes, w, 32)
    scale = scale.view(n, 16)
    peak = signed_largest(scale.t())
    dead = peak.abs() < EPS
    inverse = torch.where(dead, torch.zeros_like(peak), quotient(-128.0, peak))
    ls = (inverse[:, None] * scale).round().clamp(max=127)
    fields = {"d": quotient(1.0, inverse).half()[:, None], "scales": ls.to(torch.int8)}
    codes = _recode(x, fields, code, 32)
    return {**fields, "codes": torch.where(dead[:, None], torch.zeros_like(codes), codes)}


def _recode(x: Tensor, fields: Fields, code: Tensor, zero: int) -> Tensor:
    """Codes for the stored scales; where their product is 0 the search's codes stay."""
    n = len(x)
    step = (fields["d"].float() * fields["scales"].float())[:, :, None]
    again = (x.view(n, 16, 16) / step).round().clamp(-zero, zero - 1) + zero
    return torch.where(step == 0, code.t().reshape(n, 16, 16), again).reshape(n, 256).to(torch.uint8)


# --- codebooks --------------------------------------------------------------------------------------------------------


def _iq4_scales(x: Tensor, imp: Tensor | None, levels: Tensor) -> Tensor:
    """[n, sub-blocks of 32]"""
    w = x * x if imp is None else imp * root(_mean_square(x, 2.0)[:, None] + x * x)
    return codebook(x.reshape(-1, 32).t(), w.reshape(-1, 32).t(), levels).view(len(x), -1)


def _iq4_codes(x: Tensor, scales: Tensor, levels: Tensor) -> Tensor:
    inverse = quotient(1.0, scales)
    return nearest_code(inverse[:, :, None] * x.view(len(x), -1, 32), levels).to(torch.uint8).view(x.shape)


def _iq4_nl(x: Tensor, imp: Tensor | None, rows: int) -> Fields:
    levels = torch.tensor(LEVELS, device=x.device)
    d = _iq4_scales(x, imp, levels)
    return {"d": d.half(), "codes": _iq4_codes(x, d, levels)}


def _iq4_xs(x: Tensor, imp: Tensor | None, rows: int) -> Fields:
    levels = torch.tensor(LEVELS, device=x.device)
    scales = _iq4_scales(x, imp, levels)
    d = divide(-signed_largest(scales.t()), 32)[:, None]
    ls = (quotient(1.0, d) * scales).round().clamp(-32, 31)
    return {"d": d.half(), "scales": ls.to(torch.int8), "codes": _iq4_codes(x, d * ls, levels)}


# --- few levels, no search --------------------------------------------------------------------------------------------


def _ternary(x: Tensor, imp: Tensor | None, rows: int) -> Fields:
    """TQ1_0, TQ2_0 and Q2_0: codes 0, 1, 2 for −d, 0, d."""
    d = x.abs().amax(1, keepdim=True)
    inverse = torch.where(d > 2.0**-127, quotient(1.0, d), torch.zeros_like(d))
    return {"d": d.half(), "codes": (_half_away(x * inverse) + 1).to(torch.uint8)}


def _q1_0(x: Tensor, imp: Tensor | None, rows: int) -> Fields:
    d = divide(total(x.abs().t()), 128)
    return {"d": d.half()[:, None], "codes": (x >= 0).to(torch.uint8)}


def _mxfp4(x: Tensor, imp: Tensor | None, rows: int) -> Fields:
    """llama.cpp's scale: the logarithm rounded to float32 before its integer part is taken. Below 2^-125 llama.cpp's
    scale byte wraps around, even to NaN; ours stays 0. Right below 2^128 its largest level is infinite; ours is not."""
    peak = x.abs().amax(1, keepdim=True)
    e = (peak.double().log2().float().floor() + 125).clamp(0, 252).to(torch.uint8)
    middles = torch.tensor((0.5, 1.5, 2.5, 3.5, 5.0, 7.0, 10.0), device=x.device)
    code = (x.abs()[:, :, None] > half_e8m0(e)[:, :, None] * middles).sum(2)
    return {"e": e, "codes": torch.where((x < 0) & (code > 0), code + 8, code).to(torch.uint8)}


FITS: dict[str, Callable[[Tensor, Tensor | None, int], Fields]] = {
    "Q4_0": _signed(8),
    "Q5_0": _signed(16),
    "Q4_1": _shifted(15),
    "Q5_1": _shifted(31),
    "Q8_0": _q8_0,
    "Q2_K": _Affine(16, 3, 15, -0.5, 0.1, 15, True, 1.0),
    "Q3_K": _q3_k,
    "Q4_K": _Affine(32, 15, 63, -1.0, 0.1, 20, False, 2.0),
    "Q5_K": _Affine(32, 31, 63, -0.5, 0.1, 15, False, 2.0),
    "Q6_K": _q6_k,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
    "TQ1_0": _ternary,
    "TQ2_0": _ternary,
    "Q1_0": _q1_0,
    "Q2_0": _ternary,
    "MXFP4": _mxfp4,
    **reference_lattice.FITS,
    **reference_iq1.FITS,
}
