"""What every format refuses, in the same words whichever implementation meets it: weights that are not finite, weights
beyond a scale's range, importance that makes no sense."""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.errors import CalibrationError, NonFinite, OutOfRange

if TYPE_CHECKING:
    from torch import Tensor

# Rows are checked in pieces of about this many weights.
PIECE = 1 << 20
# Importance below this share of its mean is raised to it: see `checked_importance`.
FLOOR = 1e-10
# No block of 16-bit scales reaches a weight of this size (65504 · 128 · 127 is the most); well above it the sums of the
# searches themselves would overflow.
BLOCK_LIMIT = 2.0**31
# Runs of weights below this count as 0 where scales have 16 bits: reciprocals of their scales leave float32.
DUST = 2.0**-112
FLOAT32_LARGEST = 3.4028234663852886e38


def non_finite(row: int) -> NonFinite:
    return NonFinite(f"row {row} holds NaN or Inf", "repair the checkpoint, or keep this tensor as it is", row=row)


def out_of_range(row: int, limit: str = "65504, the largest 16-bit float") -> OutOfRange:
    return OutOfRange(f"row {row} needs a scale beyond {limit}", "choose a format with wider scales", row=row)


def needs_importance(name: str) -> CalibrationError:
    return CalibrationError(
        f"{name} needs importance of the columns: its search is not defined without",
        "give an importance matrix (imatrix), or choose a format that does without",
    )


def computable(w: Tensor) -> Tensor:
    """w itself, or float32 of 8-bit floats, for which torch has no arithmetic."""
    return w.float() if w.element_size() == 1 else w


def require_finite(w: Tensor, first: int = 0) -> None:
    """Raises NonFinite naming the first row of [rows, columns] that holds NaN or Inf, OutOfRange the first that holds a
    float64 beyond float32; w's rows count from `first`."""
    import torch

    rows = max(1, PIECE // max(1, w.shape[1]))
    for start in range(0, w.shape[0], rows):
        piece = computable(w[start : start + rows])
        if not torch.isfinite(piece).all():
            bad = (~torch.isfinite(piece).all(1)).nonzero()[0, 0].item()
            raise non_finite(first + start + int(bad))
        if piece.dtype == torch.float64 and not (narrow := torch.isfinite(piece.float()).all(1)).all():
            raise out_of_range(first + start + int((~narrow).nonzero()[0, 0]), "float32's range")


def checked_importance(importance: Tensor | None, columns: int) -> Tensor | None:
    """float32 [columns], all positive.

    A run of columns with no importance at all would be decoded to zero by llama.cpp's searches, silently. So values
    below 1e-10 of the mean (columns that calibration never reached) are raised to that; if all are zero, all become 1.
    raises   CalibrationError when the length is wrong or a value is negative or not finite
    """
    if importance is None:
        return None
    import torch

    imp = importance.to(torch.float32).reshape(-1)
    if imp.numel() != columns:
        raise CalibrationError(f"importance has {imp.numel()} values for {columns} columns", "gather it again")
    if not torch.isfinite(imp).all() or (imp < 0).any():
        raise CalibrationError("importance holds negative, NaN or infinite values", "gather it again")
    mean = imp.double().mean().item() if columns else 0.0
    if mean == 0:
        return torch.ones_like(imp)
    # A power of two changes no result, and keeps products of tiny importances from underflowing.
    if not 1e-12 < mean < 1e12:
        scale = 2.0 ** -round(torch.log2(torch.tensor(mean, dtype=torch.float64)).item())
        imp, mean = (imp.double() * scale).to(torch.float32), mean * scale
    return imp.clamp(min=FLOOR * mean)
