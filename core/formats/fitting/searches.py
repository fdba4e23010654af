"""The searches of ggml's quantizers in torch, for reading and for any device: one column of every tensor is one
sub-block, so each step is an operation over all sub-blocks at once, in the scalar code's order of operations. Sums run
element by element from 0, products associate to the left; so results are bit-equal to llama.cpp's. The lanes
(lanes_*.py) do the same work on a CPU, many times faster.

All tensors are float32. x, w: [N, n], N elements of n sub-blocks.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

EPS = 1e-15
SWEEPS = 5


def total(terms: Iterable[Tensor]) -> Tensor:
    """The sum in order, from 0."""
    result: Tensor | None = None
    for term in terms:
        result = torch.zeros_like(term) + term if result is None else result + term
    assert result is not None
    return result


def divide(a: Tensor | float, b: Tensor | float) -> Tensor:
    """a / b, correctly rounded on every device; one of them a tensor.

    Given a plain number torch multiplies by a reciprocal (numerators everywhere, divisors on GPUs), which is another
    number in the last bit.
    """
    like = a if isinstance(a, Tensor) else b
    assert isinstance(like, Tensor)
    top, bottom = (v if isinstance(v, Tensor) else torch.full((), v, device=like.device) for v in (a, b))
    return top / bottom


def quotient(a: Tensor | float, b: Tensor) -> Tensor:
    """a / b, and 0 where b is 0."""
    return torch.where(b == 0, torch.zeros_like(b), divide(a, torch.where(b == 0, torch.ones_like(b), b)))


def root(x: Tensor) -> Tensor:
    """√x correctly rounded to float32: torch's own may be off by one in the last bit (vector maths libraries)."""
    return torch.sqrt(x.double()).to(torch.float32)


def single(value: float, like: Tensor) -> Tensor:
    """A float32 number on like's device: sums and products with it are rounded to float32, as in C."""
    return torch.full((), value, dtype=torch.float32, device=like.device)


def signed_largest(x: Tensor) -> Tensor:
    """[n]: the value with the largest magnitude, the first among equals."""
    best, size = torch.zeros_like(x[0]), torch.zeros_like(x[0])
    for row in x:
        better = row.abs() > size
        best, size = torch.where(better, row, best), torch.where(better, row.abs(), size)
    return best


def affine(
    x: Tensor, w: Tensor, nmax: int, rmin: float, rdelta: float, steps: int, absolute: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [N, n] in 0 … nmax, scale [n] and min [n] with x ≈ scale·code + min.

    ggml: make_qkx2_quants and make_qkx3_quants, which return −min.

    absolute   measure the error by |e| instead of e²
    """
    low, high = x[0], x.max(0).values
    for row in x[1:]:
        low = torch.where(row < low, row, low)  # of two zeros the first one stays
    low = torch.where(low > 0, torch.zeros_like(low), low)
    flat = high <= low

    def codes_for(inverse: Tensor, low: Tensor) -> Tensor:
        return (inverse * (x - low)).round().clamp(0, nmax)

    def error(scale: Tensor, low: Tensor, code: Tensor) -> Tensor:
        e = scale * code + low - x
        return total(wi * (ei.abs() if absolute else ei * ei) for wi, ei in zip(w, e, strict=True))

    spread = torch.where(flat, torch.ones_like(low), high - low)
    inverse = divide(nmax, spread)
    scale = divide(1, inverse)
    code = codes_for(inverse, low)
    best = error(scale, low, code)
    sum_w, sum_x = total(w), total(w * x)
    for step in range(steps + 1):
        # The bounds move with the best minimum so far.
        spread = torch.where(flat, torch.ones_like(low), high - low)
        wide = single(rmin, x) + single(rdelta, x) * step + nmax
        trial = codes_for(wide / spread, low)
        weighted = w * trial
        sum_l, sum_l2, sum_xl = total(weighted), total(weighted * trial), total(weighted * x)
        det = sum_w * sum_l2 - sum_l * sum_l
        usable = det > 0
        det = torch.where(usable, det, torch.ones_like(det))
        new_scale = (sum_w * sum_xl - sum_x * sum_l) / det
        new_low = (sum_l2 * sum_x - sum_l * sum_xl) / det
        above = new_low > 0
        new_scale = torch.where(above, quotient(sum_xl, sum_l2), new_scale)
        new_low = torch.where(above, torch.zeros_like(new_low), new_low)
        e = error(new_scale, new_low, trial)
        better = usable & (e < best)
        best = torch.where(better, e, best)
        scale, low = torch.where(better, new_scale, scale), torch.where(better, new_low, low)
        code = torch.where(better, trial, code)
    zero = torch.zeros_like(scale)
    return torch.where(flat, zero, code), torch.where(flat, zero, scale), low


def symmetric(x: Tensor, w: Tensor, nmax: int) -> tuple[Tensor, Tensor]:
    """Codes [N, n] in 0 … 2·nmax − 1 and scale [n] with x ≈ scale·(code − nmax) (ggml: make_qx_quants, rmse type 1)."""
    peak = signed_largest(x)
    dead = peak.abs() < EPS
    peak = torch.where(dead, torch.ones_like(peak), peak)

    def attempt(inverse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        code = (inverse * x).round().clamp(-nmax, nmax - 1)
        return code, total(w * x * code), total(w * code * code)

    code, a, b = attempt(divide(-nmax, peak))
    scale = quotient(a, b)
    best = scale * a
    for step in range(-9, 10):
        if step == 0:
            continue
        trial, a, b = attempt(-(single(0.1, x) * step + nmax) / peak)
        better = (b > 0) & (a * a > best * b)
        code = torch.where(better, trial, code)
        scale = torch.where(better, quotient(a, b), scale)
        best = torch.where(better, scale * a, best)
    zero = torch.zeros_like(scale)
    return torch.where(dead, zero, code + nmax), torch.where(dead, zero, scale)


def codebook(x: Tensor, w: Tensor, levels: Tensor) -> Tensor:
    """Scale [n] with x ≈ scale·level, for levels from a table in ascending order (ggml: quantize_row_iq4_nl_impl)."""
    peak = signed_largest(x)
    dead = peak.abs() < EPS
    peak = torch.where(dead, torch.ones_like(peak), peak)

    def attempt(inverse: Tensor) -> tuple[Tensor, Tensor]:
        level = levels[nearest_code(inverse * x, levels)]
        return total(w * level * x), total(w * level * level)

    # The first attempt lays the largest value on the positive side, the others on the negative one.
    a, b = attempt(divide(1.0, -peak / levels[0]))
    scale = quotient(a, b)
    best = scale * a
    for step in range(-7, 8):
        a, b = attempt((levels[0] + step) / peak)
        better = (b > 0) & (a * a > best * b)
        scale = torch.where(better, quotient(a, b), scale)
        best = torch.where(better, scale * a, best)
    return torch.where(dead, torch.zeros_like(scale), scale)


def nearest_code(target: Tensor, levels: Tensor) -> Tensor:
    """Places of the levels nearest to target, the upper one of two equally near; levels ascend."""
    return torch.searchsorted((levels[1:] + levels[:-1]) / 2, target.contiguous(), right=True)


def symmetric_sweeps(x: Tensor, nmax: int) -> tuple[Tensor, Tensor]:
    """As `symmetric` with weights x², refined one code at a time (ggml: make_q3_quants with rmse)."""
    peak = signed_largest(x)
    dead = peak.abs() < EPS
    inverse = divide(-nmax, torch.where(dead, torch.ones_like(peak), peak))
    w = x * x
    code = (inverse * x).round().clamp(-nmax, nmax - 1)
    a, b = total(w * x * code), total(w * code * code)
    going = ~dead
    for _ in range(SWEEPS):
        changed = torch.zeros_like(going)
        for i in range(len(x)):
            rest_a = a - w[i] * x[i] * code[i]
            rest_b = b - w[i] * code[i] * code[i]
            usable = going & (rest_a > 0)
            new = (x[i] * rest_b / torch.where(usable, rest_a, torch.ones_like(rest_a))).round().clamp(-nmax, nmax - 1)
            new_a, new_b = rest_a + w[i] * x[i] * new, rest_b + w[i] * new * new
            better = usable & (new != code[i]) & (new_b > 0) & (new_a * new_a * b > a * a * new_b)
            code[i] = torch.where(better, new, code[i])
            a, b = torch.where(better, new_a, a), torch.where(better, new_b, b)
            changed |= better
        going &= changed
    zero = torch.zeros_like(a)
    return torch.where(dead, zero, code + nmax), torch.where(dead, zero, quotient(a, b))


def positive(x: Tensor, w: Tensor, nmax: int) -> tuple[Tensor, Tensor]:
    """Codes [N, n] in 0 … nmax and scale [n] with x ≈ scale·code, x ≥ 0 (ggml: make_qp_quants).

    ggml keeps codes in unsigned bytes: a code of −1, from a slightly negative x, counts as 255 in the first error and
    in the sweeps.
    """
    peak = x.max(0).values.clamp(min=0)
    dead = peak < EPS
    peak = torch.where(dead, torch.ones_like(peak), peak)

    def byte(code: Tensor) -> Tensor:
        return torch.remainder(code, 256)

    def error(code: Tensor, scale: Tensor) -> Tensor:
        e = x - scale * code
        return total(w * e * e)

    inverse = divide(nmax, peak)
    scale = divide(1, inverse)
    best = error(byte((inverse * x).round()), scale)
    for step in range(-4, 5):
        if step == 0:
            continue
        trial = (single(0.1, x) * step + nmax) / peak
        e = error((trial * x).round().clamp(max=nmax), divide(1, trial))
        better = e < best
        best, inverse = torch.where(better, e, best), torch.where(better, trial, inverse)
    code = (inverse * x).round().clamp(max=nmax)
    a, b = total(w * x * code), total(w * code * code)
    code = byte(code)
    going = ~dead
    for _ in range(SWEEPS):
        changed = torch.zeros_like(going)
        for i in range(len(x)):
            rest_a = a - w[i] * x[i] * code[i]
            rest_b = b - w[i] * code[i] * code[i]
            usable = going & (rest_a > 0) & (rest_b > 0)
            new = (x[i] * rest_b / torch.where(usable, rest_a, torch.ones_like(rest_a))).round().clamp(max=nmax)
            new_a, new_b = rest_a + w[i] * x[i] * new, rest_b + w[i] * new * new
            better = usable & (new != code[i]) & (new_a * new_a * b > a * a * new_b)
            code[i] = torch.where(better, byte(new), code[i])
            a, b = torch.where(better, new_a, a), torch.where(better, new_b, b)
            changed |= better
        going &= changed
    zero = torch.zeros_like(a)
    return torch.where(dead, zero, code), torch.where(dead, zero, quotient(a, b))
