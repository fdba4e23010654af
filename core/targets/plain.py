"""What targets store without quantizing it: the plain formats by dtype, tensors that go over byte by byte, and the
bytes of a torch tensor. No containers here."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from core.errors import UnsupportedFormat
from core.formats import get_format
from core.formats.base import EXACT, Format, Grid, Parts, Quantized
from core.formats.ggml.format import GGML
from core.tensors import DTYPES

if TYPE_CHECKING:
    import torch

FLOATS = ("F32", "F16", "BF16")
# By GGML's own names: "nvfp4" among all formats is another container's.
_BLOCKS = {f.type_name: f for f in GGML}


@dataclass(frozen=True)
class Verbatim(Format):
    """Stored numbers that are copied and never computed with: integers, 64-bit and 8-bit floats.

    dtype  upper case, a key of DTYPES
    """

    dtype: str

    family: ClassVar[str] = "dense"
    encodable: ClassVar[bool] = False

    @property
    def title(self) -> str:
        return f"{self.dtype}, copied as it is"

    @property
    def bits(self) -> float:
        return DTYPES[self.dtype].bits

    def nbytes(self, shape: tuple[int, ...]) -> int:
        total = DTYPES[self.dtype].bits
        for n in shape:
            total *= n
        return (total + 7) // 8

    def _refuse(self) -> NoReturn:
        raise UnsupportedFormat(f"{self.dtype} is copied, not computed", "choose bf16, f16 or f32")

    def fit(self, w: torch.Tensor, importance: torch.Tensor | None = None, effort: str = EXACT) -> Grid:
        self._refuse()

    def encode(self, w: torch.Tensor, grid: Grid, start: int = 0) -> torch.Tensor:
        self._refuse()

    def decode(self, codes: torch.Tensor, grid: Grid, start: int = 0) -> torch.Tensor:
        self._refuse()

    def pack(self, codes: torch.Tensor, grid: Grid) -> Parts:
        self._refuse()

    def unpack(self, parts: Parts, shape: tuple[int, int]) -> tuple[torch.Tensor, Grid]:
        self._refuse()

    def quantize(self, w: torch.Tensor, importance: torch.Tensor | None = None, effort: str = EXACT) -> Quantized:
        self._refuse()


@lru_cache(maxsize=64)
def stored_as(dtype: str) -> Format:
    """The format in which a tensor of this dtype stays what it is: f32, f16, bf16, a GGML type, or a verbatim copy."""
    if dtype in FLOATS:
        return get_format(dtype.lower())
    return _BLOCKS.get(dtype) or Verbatim(dtype.lower(), dtype)


def blocks(dtype: str) -> bool:
    """Whether the dtype is one of GGML's block types."""
    return dtype in _BLOCKS


def float_dtype(dtype: str) -> str:
    """The plain float in which weights of this source dtype are stored once they are decoded."""
    if dtype in FLOATS:
        return dtype
    if dtype == "F64":
        return "F32"
    return "F16" if blocks(dtype) and dtype not in ("MXFP4", "NVFP4") else "BF16"


def kept_as(dtype: str) -> Format:
    """The format of a weight of this source dtype that is not quantized: as it is, or decoded to a plain float."""
    return stored_as(dtype if dtype in DTYPES else float_dtype(dtype))


def real(dtype: str) -> bool:
    """Whether a tensor of this dtype holds real numbers, stored plainly or as codes."""
    known = DTYPES.get(dtype)
    return known is None or known.floating


def data_of(tensor: torch.Tensor) -> memoryview:
    """The bytes of a CPU tensor, row by row; copied only when it is not contiguous. In the machine's byte order."""
    import torch

    # A single element counts as contiguous whatever its strides: hence the stride of 1, said outright.
    data: Any = tensor.detach().contiguous().as_strided((tensor.numel(),), (1,)).view(torch.uint8).numpy()
    return memoryview(data)
