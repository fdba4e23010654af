"""The contract of a number format: which levels a weight may take, how they are found, and how they are stored.

A format knows matrices `[rows, columns]` (leading dimensions flattened into rows), and nothing of files, names or
models.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import torch

# Stored pieces of a quantized matrix, by the format's own names ("blocks", "codes", "scale", …).
Parts = Mapping[str, "torch.Tensor"]

# Efforts of a fit: the search that the format is known by (llama.cpp's, bitsandbytes' …), result for result; and one
# that takes longer and comes closer.
EXACT, BEST = "exact", "best"


@dataclass(frozen=True, slots=True)
class Grid:
    """Fitted parameters of a matrix: named tensors whose first dimension is rows (1 for per-tensor formats)."""

    parts: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def __getitem__(self, key: str) -> torch.Tensor:
        return self.parts[key]

    def get(self, key: str) -> torch.Tensor | None:
        return self.parts.get(key)


@dataclass(frozen=True)
class Format(ABC):
    """One number format. Instances are frozen and hashable; FORMATS in core/formats/__init__.py lists them.

    name  what recipes and `formats` print: "q4_k", "int4-g128-asym", "bf16"
    """

    name: str

    family: ClassVar[str] = ""  # "dense", "uniform", "ggml": menus group and colours go by it
    row_local: ClassVar[bool] = True  # False: a row slice quantized alone differs from the whole
    encodable: ClassVar[bool] = True  # False: we read it, and do not write it (yet)

    @property
    def efforts(self) -> tuple[str, ...]:
        """What `fit` and `quantize` take as effort, the finest last."""
        return (EXACT,)

    @property
    def default_effort(self) -> str:
        """The effort that measures best in what a model says, where none is asked for."""
        return self.efforts[-1]

    def require_effort(self, effort: str) -> None:
        """Raises UnsupportedFormat unless the format has this effort."""
        if effort not in self.efforts:
            from core.errors import UnsupportedFormat

            raise UnsupportedFormat(f"{self.name} has no effort {effort!r}", f"it has {' and '.join(self.efforts)}")

    @property
    def needs_importance(self) -> bool:
        """True: without importance of the columns the format cannot be written, and `fit` raises CalibrationError."""
        return False

    @property
    @abstractmethod
    def title(self) -> str:
        """A few words for a menu: "4-bit, super-blocks of 256"."""

    @property
    @abstractmethod
    def bits(self) -> float:
        """Bits of one code, without scales: orders menus and shades."""

    @property
    def columns_per_grid(self) -> int:
        """Columns that must be stored together (32, 256, the group size); 1 where any number of columns goes."""
        return 1

    @property
    def columns_per_code(self) -> int:
        """Columns that are coded together, so that `encode` takes whole runs of them; 1 where each has its own code."""
        return 1

    def row_multiple(self, shape: tuple[int, ...]) -> int:
        """Row slices that begin at multiples of this are quantized exactly as inside the whole matrix; 0: no slice is.

        Formats whose blocks span rows have more to say than row_local, which is True only for 1 at every shape.
        """
        return 1 if self.row_local else 0

    def misfit(self, shape: tuple[int, ...]) -> str | None:
        """Why a matrix of this shape cannot take the format ("columns 100 is not a multiple of 256"), or None."""
        columns = shape[-1] if shape else 1
        if columns % self.columns_per_grid:
            return f"columns {columns} is not a multiple of {self.columns_per_grid}"
        return None

    def sharing(self, absmax: float) -> Format:
        """The format with its one scale of the whole tensor made for this largest magnitude, as tensors need it that
        are computed together. Same name, same bytes of storage; formats without such a scale stay what they are."""
        return self

    @abstractmethod
    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Exact bytes of all parts of `pack` for this shape (a target may add its own)."""

    def bpw(self, shape: tuple[int, ...]) -> float:
        """Stored bits per weight, scales and padding included; 0 for an empty tensor."""
        count = prod(shape)
        return 8 * self.nbytes(shape) / count if count else 0.0

    @abstractmethod
    def fit(self, w: torch.Tensor, importance: torch.Tensor | None = None, effort: str = EXACT) -> Grid:
        """The grid of a matrix.

        w           floating [rows, columns], any dtype (half precision is widened in pieces, never as a whole copy)
        importance  float32 [columns], weight of each column's squared error, or None
        effort      one of `efforts`
        raises      NonFinite when w holds NaN or Inf; CalibrationError without importance where it is needed;
                    UnsupportedFormat for an effort that the format does not have
        """

    @abstractmethod
    def encode(self, w: torch.Tensor, grid: Grid, start: int = 0) -> torch.Tensor:
        """Nearest codes of columns start … start + w.shape[1] of the grid; integer [rows, w.shape[1]].

        Both ends are multiples of columns_per_code.
        """

    @abstractmethod
    def decode(self, codes: torch.Tensor, grid: Grid, start: int = 0) -> torch.Tensor:
        """float32 of the same shape as codes, for columns from `start` on."""

    @abstractmethod
    def pack(self, codes: torch.Tensor, grid: Grid) -> Parts:
        """Stored pieces. Together exactly `nbytes` long."""

    @abstractmethod
    def unpack(self, parts: Parts, shape: tuple[int, int]) -> tuple[torch.Tensor, Grid]:
        """Codes and grid of stored pieces; the inverse of `pack`."""

    def quantize(self, w: torch.Tensor, importance: torch.Tensor | None = None, effort: str = EXACT) -> Quantized:
        """fit, then encode. Formats with a fused kernel go straight to parts."""
        grid = self.fit(w, importance, effort)
        return Quantized(self, (w.shape[0], w.shape[1]), codes=self.encode(w, grid), grid=grid)

    def dequantize(self, parts: Parts, shape: tuple[int, int]) -> torch.Tensor:
        """float32 [rows, columns] of stored pieces."""
        return self.decode(*self.unpack(parts, shape))

    def levels(self, grid: Grid, row: int, column: int) -> torch.Tensor | None:
        """float32, ascending: every value the weight at (row, column) may take; None when too many to draw."""
        return None


class Quantized:
    """A quantized matrix, as codes and grid or as packed parts; each form is made from the other when first asked for.

    fallbacks  what went otherwise than asked, one sentence each; shown, never swallowed
    """

    def __init__(
        self,
        format: Format,
        shape: tuple[int, int],
        *,
        codes: torch.Tensor | None = None,
        grid: Grid | None = None,
        parts: Parts | None = None,
        fallbacks: tuple[str, ...] = (),
    ) -> None:
        assert parts is not None or (codes is not None and grid is not None)
        self.format = format
        self.shape = shape
        self.fallbacks = fallbacks
        self._codes, self._grid, self._parts = codes, grid, parts

    def _unpack(self) -> tuple[torch.Tensor, Grid]:
        if self._codes is None or self._grid is None:
            assert self._parts is not None
            self._codes, self._grid = self.format.unpack(self._parts, self.shape)
        return self._codes, self._grid

    @property
    def codes(self) -> torch.Tensor:
        """Integer [rows, columns]."""
        return self._unpack()[0]

    @property
    def grid(self) -> Grid:
        return self._unpack()[1]

    @property
    def parts(self) -> Parts:
        if self._parts is None:
            self._parts = self.format.pack(self.codes, self.grid)
        return self._parts

    def dequantize(self) -> torch.Tensor:
        """float32 [rows, columns], exactly what a reader of the stored bytes gets."""
        if self._parts is not None:
            return self.format.dequantize(self._parts, self.shape)
        return self.format.decode(self.codes, self.grid)
