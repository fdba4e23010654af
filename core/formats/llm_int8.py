"""LLM.int8(): 8-bit integers with one absmax per row, as bitsandbytes stores them.

    ŵ = code · absmax / 127,   code in [−127, 127]

`llm-int8` is bitsandbytes' file: every weight in 8 bits. Outliers are not in it: at run time bitsandbytes multiplies
the input channels whose activations reach 6.0 (llm_int8_threshold) in 16 bits, with these same 8-bit weights.

`llm-int8-o{n}` additionally keeps n whole columns in 16 bits, so that they neither lose precision nor stretch their
rows' absmax. n is part of the name because it fixes the size, whatever the data. Which columns, from the best known to
the least:

    largest activation of each input channel   the n largest: those that reach 6.0 come first, as at run time
    importance, their mean square              the n largest
    the weights alone                          the n columns that hold the largest weights in units of their row's
                                               root mean square

The first of equals wins.

As in bitsandbytes, weights are rounded to float16 first; codes and absmax then equal its int8_vectorwise_quant bit for
bit. One that float16 cannot hold is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, ClassVar

from core.errors import CalibrationError, OutOfRange
from core.formats.base import EXACT, Format, Grid, Parts, Quantized
from core.formats.checks import require_finite
from core.formats.fp8 import row_pieces

if TYPE_CHECKING:
    import torch

# 1/127 as float32: bitsandbytes multiplies by it.
STEP = 7.874015718698502e-3
# Input channels whose activations reach this are outliers (llm_int8_threshold).
THRESHOLD = 6.0


@dataclass(frozen=True)
class LlmInt8(Format):
    """parts: {"codes": int8 [rows, columns], "absmax": float32 [rows, 1]}, and with outliers {"outlier_columns": int32
    [1, n] ascending, "outlier_values": float16 [rows, n]}; codes of those columns are 0.

    Rows of zeros get absmax 0. A matrix with no more than n columns has no room for the format.

    outliers  columns kept in 16 bits
    chosen    which ones, ascending, where activations have told: see `by_activations`. No part of the name
    """

    outliers: int = 0
    chosen: tuple[int, ...] | None = None

    family: ClassVar[str] = "bitsandbytes"

    @property
    def title(self) -> str:
        kept = f", {self.outliers} columns in 16 bits" if self.outliers else ""
        return f"8-bit integer of LLM.int8(), one scale per row{kept}"

    @property
    def bits(self) -> float:
        return 8

    @property
    def row_local(self) -> bool:  # type: ignore[override]  # all rows together choose the columns
        return self.outliers == 0 or self.chosen is not None

    def by_activations(self, absmax: torch.Tensor) -> tuple[LlmInt8, str]:
        """The format with its columns chosen by the largest activation of each input channel, and a remark where more
        channels are outliers than it keeps, else "".

        absmax  float32 [columns]
        raises  CalibrationError when a value is negative or not finite
        """
        import torch

        if not self.outliers:
            return self, ""
        if not torch.isfinite(absmax).all() or (absmax < 0).any():
            raise CalibrationError("activation maxima hold negative, NaN or infinite values", "gather them again")
        order = absmax.to(torch.float32).sort(descending=True, stable=True).indices[: self.outliers]
        found = int((absmax >= THRESHOLD).sum())
        remark = f"{found} input channels reach {THRESHOLD:g}, the {self.outliers} largest are kept in 16 bits"
        return replace(self, chosen=tuple(sorted(order.tolist()))), remark if found > self.outliers else ""

    def misfit(self, shape: tuple[int, ...]) -> str | None:
        columns = shape[-1] if shape else 1
        if self.outliers and columns <= self.outliers:
            return f"columns {columns} leave nothing beside {self.outliers} outlier columns"
        return None

    def nbytes(self, shape: tuple[int, ...]) -> int:
        rows = prod(shape[:-1])
        return prod(shape) + 4 * rows + self.outliers * (4 + 2 * rows)

    def fit(self, w: torch.Tensor, importance: torch.Tensor | None = None, effort: str = EXACT) -> Grid:
        import torch

        self.require_effort(effort)
        require_finite(w)
        rows, columns = w.shape
        kept = self.worst_columns(w, importance)
        absmax = torch.zeros(rows, 1, dtype=torch.float32, device=w.device)
        for piece in row_pieces(rows, columns) if columns else ():
            size = halved(w[piece]).abs()
            whole = size.amax(1)
            if not whole.isfinite().all():
                row = int((~whole.isfinite()).nonzero()[0, 0])
                raise OutOfRange(
                    f"row {piece.start + row} holds weights beyond 65504, the largest 16-bit float",
                    "choose a format with wider scales",
                    row=piece.start + row,
                )
            size[:, kept] = 0
            absmax[piece] = size.amax(1, keepdim=True)
        if not self.outliers:
            return Grid({"absmax": absmax})
        values = w[:, kept].to(torch.float32).to(torch.float16)
        columns_kept = kept.to(torch.int32).view(1, -1)
        return Grid({"absmax": absmax, "outlier_columns": columns_kept, "outlier_values": values})

    def quantize(self, w: torch.Tensor, importance: torch.Tensor | None = None, effort: str = EXACT) -> Quantized:
        import torch

        from core.formats.fitting import on_lanes, raw_weights, whole_weights

        self.require_effort(effort)
        if self.outliers or not on_lanes(w) or w.numel() == 0:
            return super().quantize(w, importance, effort)
        from core.formats.fitting.lanes_int8 import encode_int8

        rows, columns = w.shape
        absmax, codes = torch.empty(rows, 1), torch.empty(rows, columns, dtype=torch.int8)
        for start, piece in whole_weights(w):
            here = slice(start, start + piece.shape[0])
            stored = codes[here].view(torch.uint8).view(-1).numpy()
            bad = encode_int8(*raw_weights(piece), absmax[here].view(-1).numpy(), stored)
            if bad >= 0:
                self.fit(w)  # says what is wrong
                raise AssertionError(f"row {start + bad} could not be coded")
        return Quantized(self, (rows, columns), parts={"codes": codes, "absmax": absmax})

    def dequantize(self, parts: Parts, shape: tuple[int, int]) -> torch.Tensor:
        import numpy as np
        import torch

        from core.formats.fitting import on_lanes

        codes = parts["codes"].reshape(shape)
        if self.outliers or not on_lanes(codes) or codes.numel() == 0:
            return super().dequantize(parts, shape)
        from core.formats.fitting.lanes_int8 import decode_int8

        out = torch.empty(shape)
        flat, absmax = codes.contiguous().view(torch.uint8).view(-1), parts["absmax"].reshape(-1).contiguous()
        decode_int8(flat.numpy(), absmax.numpy(), np.float32(STEP), out.view(-1).numpy())
        return out

    def worst_columns(self, w: torch.Tensor, importance: torch.Tensor | None = None) -> torch.Tensor:
        """int64 [outliers], ascending: the columns to keep. See the module's first paragraph."""
        import torch

        columns = w.shape[1]
        if not self.outliers:
            return torch.zeros(0, dtype=torch.int64, device=w.device)
        if self.chosen is not None:
            if self.chosen[-1] >= columns:
                raise CalibrationError(
                    f"activations speak of column {self.chosen[-1]}, the tensor has {columns}", "gather them again"
                )
            return torch.tensor(self.chosen, device=w.device)
        if importance is not None:
            from core.formats.checks import checked_importance

            score = checked_importance(importance, columns)
            assert score is not None
            score = score.to(w.device)
        else:
            score = torch.zeros(columns, device=w.device)
            for piece in row_pieces(*w.shape):
                size = w[piece].to(torch.float32).abs()
                largest = size.amax(1, keepdim=True)
                relative = torch.where(largest > 0, size / largest, torch.zeros_like(size))  # squares cannot overflow
                rms = relative.square().mean(1, keepdim=True).sqrt()
                relative = torch.where(rms > 0, relative / rms, relative)
                score = torch.maximum(score, relative.amax(0))
        return score.sort(descending=True, stable=True).indices[: self.outliers].sort().values

    def encode(self, w: torch.Tensor, grid: Grid, start: int = 0) -> torch.Tensor:
        import torch

        kept = self._kept(grid, start, w.shape[1])[1]
        out = torch.empty(w.shape, dtype=torch.int8, device=w.device)
        for rows in row_pieces(*w.shape):
            absmax = grid["absmax"][rows]
            inverse = torch.where(absmax > 0, 127.0 / absmax, torch.zeros_like(absmax))
            codes = (halved(w[rows]) * inverse).round_().clamp_(-127, 127)
            codes[:, kept] = 0
            out[rows] = codes
        return out

    def _kept(self, grid: Grid, start: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Outlier columns among start … start + columns: their numbers among the outliers, and counted from start."""
        import torch

        kept = grid.get("outlier_columns")
        if kept is None:
            none = torch.zeros(0, dtype=torch.int64, device=grid["absmax"].device)
            return none, none
        at = kept.reshape(-1).to(torch.int64) - start
        inside = ((at >= 0) & (at < columns)).nonzero()[:, 0]
        return inside, at[inside]

    def decode(self, codes: torch.Tensor, grid: Grid, start: int = 0) -> torch.Tensor:
        import torch

        inside, kept = self._kept(grid, start, codes.shape[1])
        out = torch.empty(codes.shape, dtype=torch.float32, device=codes.device)
        for rows in row_pieces(*codes.shape):
            out[rows] = codes[rows].to(torch.float32).mul_(grid["absmax"][rows]).mul_(STEP)
            if kept.numel():
                out[rows, kept] = grid["outlier_values"][rows][:, inside].to(torch.float32)
        return out

    def pack(self, codes: torch.Tensor, grid: Grid) -> Parts:
        return {"codes": codes, **grid.parts}

    def unpack(self, parts: Parts, shape: tuple[int, int]) -> tuple[torch.Tensor, Grid]:
        grid = {"absmax": parts["absmax"].reshape(-1, 1)}
        if self.outliers:
            grid["outlier_columns"] = parts["outlier_columns"].reshape(1, -1)
            grid["outlier_values"] = parts["outlier_values"].reshape(-1, self.outliers)
        return parts["codes"].reshape(shape), Grid(grid)

    def levels(self, grid: Grid, row: int, column: int) -> torch.Tensor | None:
        """None for an outlier column: any 16-bit float goes."""
        import torch

        if self._kept(grid, column, 1)[1].numel():
            return None
        absmax = grid["absmax"][row, 0]
        codes = torch.arange(-127, 128, dtype=torch.float32, device=absmax.device)
        return codes * absmax * STEP if absmax > 0 else torch.zeros(1, device=absmax.device)


def halved(w: torch.Tensor) -> torch.Tensor:
    """float32 of the weights rounded to float16."""
    import torch

    return w.to(torch.float32).to(torch.float16).to(torch.float32)


_NAME = re.compile(r"llm-int8(?:-o([1-9]\d{0,4}))?")


def llm_int8(name: str) -> LlmInt8 | None:
    """The format of a name like "llm-int8" or "llm-int8-o16"; None when it is not such a name."""
    found = _NAME.fullmatch(name)
    return LlmInt8(name, int(found.group(1) or 0)) if found else None


LLM_INT8 = (LlmInt8("llm-int8"), LlmInt8("llm-int8-o16", 16))
