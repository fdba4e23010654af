"""The Hessian of a layer's inputs, factored for methods that let later columns make up for the errors of earlier ones.

With H = (2/n)·Σ x xᵀ, damped, and e = w − ŵ the error of a row, the layer's output error is e H eᵀ. Factored as
H = (I + A) D (I + A)ᵀ, A strictly upper triangular and D diagonal, it becomes a sum of squares

    e H eᵀ = Σ_k D_k · (x_k − ŵ_k)²,    x_k = w_k + Σ_{j<k} e_j · A_jk

so the best ŵ_k, given all columns before it, is the level nearest to x_k. This is GPTQ's own step: its upper Cholesky
factor U of H⁻¹ has U_kk² = 1 / D_k, and U = D^(−1/2) (I + A)⁻¹. One Cholesky factorisation of H gives A and D without
an inverse: a third of the work, and more digits.

Columns that no token ever reached (H_kk = 0) stand apart after damping: their weights are rounded to nearest. (The
published code sets them to zero, which is harmless for the calibration text alone.)
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from core.errors import CalibrationError

if TYPE_CHECKING:
    from torch import Tensor

# Damping is raised tenfold at a time, up to the mean of the diagonal itself; from this, where none was asked for.
SMALLEST_RAISE, LARGEST = 1e-4, 1.0
# Columns of the factor that are made at a time, and of its larger sums.
BLOCK, WIDE = 128, 512
# Factors that are kept: those of tensors in work at the same time, and never more memory than this but for the newest.
KEPT, KEPT_BYTES = 4, 1 << 30


@dataclass(frozen=True, eq=False)
class Factor:
    """A factored Hessian, its columns in `order`.

    feedback  A, float32 [columns, columns], strictly upper
    weight    D, float32 [columns], all positive
    order     int64 [columns], the column that comes k-th
    remarks   what was done otherwise than asked
    """

    feedback: Tensor
    weight: Tensor
    order: Tensor
    remarks: tuple[str, ...] = ()


def factored(hessian: Tensor, damp: float, order: Tensor) -> Factor | None:
    """The factor of a Hessian, float32 [columns, columns], on its device; None where no damping helps.

    damp    share of the mean of the diagonal that is added to it
    order   int64 [columns]
    raises  CalibrationError when it holds NaN or Inf
    """
    import torch

    diagonal = hessian.diagonal().double()
    if not bool(torch.isfinite(diagonal).all()):
        raise CalibrationError("the Hessian of its inputs holds NaN or Inf", "gather it again")
    mean = float(diagonal.mean()) if diagonal.numel() else 0.0
    if mean <= 0:
        return None
    natural = bool((order[1:] > order[:-1]).all())
    dead = int((diagonal == 0).sum())
    unused = (f"{dead:,} of {len(order):,} inputs were always 0: their weights are rounded to nearest",) if dead else ()
    base = hessian if natural else hessian.index_select(0, order).index_select(1, order)
    first = True
    for tried in _dampings(damp):
        for dtype in (torch.float32, torch.float64):
            square = base.to(dtype, copy=True)
            own = square.diagonal()
            own[own == 0] = mean  # dead columns, where nothing is added
            own += tried * mean
            weight = _factor(square)
            if weight is not None:
                said = () if first else (f"Hessian not positive definite: damping raised from {damp:g} to {tried:g}",)
                return Factor(square.to(torch.float32), weight.to(torch.float32), order, said + unused)
        first = False
    return None


def inverted(hessian: Tensor, damp: float) -> Tensor | None:
    """The inverse of the damped Hessian, float64 [columns, columns], with the damping that `factored` ends with."""
    import torch

    mean = float(hessian.diagonal().double().mean())
    if not mean > 0:
        return None
    for tried in _dampings(damp):
        square = hessian.to(torch.float64, copy=True)
        own = square.diagonal()
        own[own == 0] = mean
        own += tried * mean
        lower, info = torch.linalg.cholesky_ex(square)
        if int(info) == 0 and bool(torch.isfinite(lower.diagonal()).all()):
            return torch.cholesky_inverse(lower)
    return None


def _dampings(damp: float) -> list[float]:
    tried = [damp]
    while tried[-1] < LARGEST:
        tried.append(min(LARGEST, max(10 * tried[-1], SMALLEST_RAISE)))
    return tried


def _factor(square: Tensor) -> Tensor | None:
    """(I + A) D (I + A)ᵀ of a symmetric matrix, of which the upper half is read: A in its place, and D. None: it is not
    positive definite.

    From the last columns to the first, BLOCK at a time, and what the others have to do with WIDE of them taken off at
    once: all but the small blocks on the diagonal is multiplication. LAPACK's own is slower, and its results differ
    with the number of threads.
    """
    import torch

    n = square.shape[0]
    weight = torch.empty(n, dtype=square.dtype, device=square.device)

    def off(start: int, stop: int, until: int) -> None:
        """Takes from columns start … stop what columns stop … until have in common with them."""
        if stop < until:
            scaled = square[start:stop, stop:until] * weight[stop:until]
            square[:stop, start:stop].addmm_(square[:stop, stop:until], scaled.t(), alpha=-1)

    for right in range(n, 0, -WIDE):
        left = max(0, right - WIDE)
        off(left, right, n)
        for stop in range(right, left, -BLOCK):
            start = max(left, stop - BLOCK)
            off(start, stop, right)
            # Cholesky gives a lower factor; of the block turned end for end, turned back, it is an upper one.
            own, info = torch.linalg.cholesky_ex(square[start:stop, start:stop].flip(0, 1))
            if int(info) or not bool(torch.isfinite(own.diagonal()).all()):
                return None
            own = own.flip(0, 1)
            root = own.diagonal().clone()
            weight[start:stop] = root * root
            square[start:stop, start:stop] = own / root
            if start:
                undo = (undone(own).t() / root).to(square.dtype)
                square[:start, start:stop] = square[:start, start:stop] @ undo
    square.triu_(1)
    return weight


def undone(upper: Tensor) -> Tensor:
    """The inverse of a small upper triangle, float64: to multiply many rows with, which is faster than solving for
    them."""
    import torch

    unit = torch.eye(len(upper), dtype=torch.float64, device=upper.device)
    return torch.linalg.solve_triangular(upper.double(), unit, upper=True)


class Factors:
    """Factors made once and shared by the slices of a tensor, and by tensors with the same inputs, in all threads.

    A factor is known by the memory of its Hessian, which is kept alive with it: no other can lie there meanwhile.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._making: dict[tuple[object, ...], threading.Lock] = {}
        self._made: OrderedDict[tuple[object, ...], tuple[Tensor, Factor | None]] = OrderedDict()

    def get(self, hessian: Tensor, key: tuple[object, ...], make: Callable[[], Factor | None]) -> Factor | None:
        """What make() gives for this Hessian and key; by one caller, the others wait for it."""
        whole = (hessian.data_ptr(), tuple(hessian.shape), str(hessian.device), *key)
        with self._lock:
            if whole in self._made:
                self._made.move_to_end(whole)
                return self._made[whole][1]
            turn = self._making.setdefault(whole, threading.Lock())
        with turn:
            with self._lock:
                if whole in self._made:
                    return self._made[whole][1]
            factor = make()
            with self._lock:
                self._made[whole] = (hessian, factor)
                self._making.pop(whole, None)
                self._drop()
            return factor

    def _drop(self) -> None:
        def nbytes() -> int:
            return sum(8 * hessian.numel() for hessian, _ in self._made.values())

        while len(self._made) > 1 and (len(self._made) > KEPT or nbytes() > KEPT_BYTES):
            self._made.popitem(last=False)

    def forget(self) -> None:
        """Frees all of them."""
        with self._lock:
            self._made.clear()

    def __len__(self) -> int:
        return len(self._made)


FACTORS = Factors()
