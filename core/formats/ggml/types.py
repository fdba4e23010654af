"""The types a GGUF file may hold: id, block size and bytes, a title. Facts only; no torch, no bit layouts (those are in
the family modules legacy.py, kquants.py, iquants.py, ternary.py, fp4.py)."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from core.errors import UnsupportedFormat


@dataclass(frozen=True, slots=True)
class GgmlType:
    """One type of ggml.

    id          number in the file
    block       elements of one block
    type_size   bytes of one block
    title       a few words for a menu
    bits        bits of one code, without scales
    quantized   block-quantized, as opposed to plain numbers
    """

    name: str
    id: int
    block: int
    type_size: int
    title: str
    bits: float
    quantized: bool = True

    @property
    def bpw(self) -> float:
        return 8 * self.type_size / self.block

    def row_bytes(self, columns: int) -> int:
        """Bytes of one row. Raises UnsupportedFormat when columns is not a multiple of the block."""
        if columns % self.block:
            raise UnsupportedFormat(f"{self.name}: columns {columns} is not a multiple of {self.block}")
        return columns // self.block * self.type_size

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of a whole tensor, torch order of dimensions."""
        columns = shape[-1] if shape else 1
        return prod(shape[:-1]) * self.row_bytes(columns)


def _plain(name: str, id: int, size: int, title: str) -> GgmlType:
    return GgmlType(name, id, 1, size, title, 8 * size, quantized=False)


_ALL = (
    _plain("F32", 0, 4, "32-bit float"),
    _plain("F16", 1, 2, "16-bit float"),
    GgmlType("Q4_0", 2, 32, 18, "4-bit, blocks of 32", 4),
    GgmlType("Q4_1", 3, 32, 20, "4-bit with minimum, blocks of 32", 4),
    GgmlType("Q5_0", 6, 32, 22, "5-bit, blocks of 32", 5),
    GgmlType("Q5_1", 7, 32, 24, "5-bit with minimum, blocks of 32", 5),
    GgmlType("Q8_0", 8, 32, 34, "8-bit, blocks of 32", 8),
    GgmlType("Q8_1", 9, 32, 36, "8-bit with sum, in memory only", 8),
    GgmlType("Q2_K", 10, 256, 84, "2-bit, super-blocks of 256", 2),
    GgmlType("Q3_K", 11, 256, 110, "3-bit, super-blocks of 256", 3),
    GgmlType("Q4_K", 12, 256, 144, "4-bit, super-blocks of 256", 4),
    GgmlType("Q5_K", 13, 256, 176, "5-bit, super-blocks of 256", 5),
    GgmlType("Q6_K", 14, 256, 210, "6-bit, super-blocks of 256", 6),
    GgmlType("Q8_K", 15, 256, 292, "8-bit, in memory only", 8),
    GgmlType("IQ2_XXS", 16, 256, 66, "2-bit lattice, 2.06 bpw", 2),
    GgmlType("IQ2_XS", 17, 256, 74, "2-bit lattice, 2.31 bpw", 2),
    GgmlType("IQ3_XXS", 18, 256, 98, "3-bit lattice, 3.06 bpw", 3),
    GgmlType("IQ1_S", 19, 256, 50, "ternary lattice, 1.56 bpw", 1.5),
    GgmlType("IQ4_NL", 20, 32, 18, "4-bit codebook, blocks of 32", 4),
    GgmlType("IQ3_S", 21, 256, 110, "3-bit lattice, 3.44 bpw", 3),
    GgmlType("IQ2_S", 22, 256, 82, "2-bit lattice, 2.56 bpw", 2),
    GgmlType("IQ4_XS", 23, 256, 136, "4-bit codebook, super-blocks of 256", 4),
    _plain("I8", 24, 1, "8-bit integer"),
    _plain("I16", 25, 2, "16-bit integer"),
    _plain("I32", 26, 4, "32-bit integer"),
    _plain("I64", 27, 8, "64-bit integer"),
    _plain("F64", 28, 8, "64-bit float"),
    GgmlType("IQ1_M", 29, 256, 56, "ternary lattice, 1.75 bpw", 1.5),
    _plain("BF16", 30, 2, "16-bit brain float"),
    GgmlType("TQ1_0", 34, 256, 54, "ternary, 1.69 bpw", 1.6),
    GgmlType("TQ2_0", 35, 256, 66, "ternary, 2.06 bpw", 2),
    GgmlType("MXFP4", 39, 32, 17, "4-bit float, power-of-two scale per 32", 4),
    GgmlType("NVFP4", 40, 64, 36, "4-bit float, 8-bit float scale per 16", 4),
    GgmlType("Q1_0", 41, 128, 18, "signs, blocks of 128", 1),
    GgmlType("Q2_0", 42, 64, 18, "2-bit, blocks of 64", 2),
)

GGML_TYPES: dict[str, GgmlType] = {t.name: t for t in _ALL}
GGML_BY_ID: dict[int, GgmlType] = {t.id: t for t in _ALL}


def ggml_type(name: str) -> GgmlType:
    """The type by its upper-case name. Raises UnsupportedFormat."""
    try:
        return GGML_TYPES[name]
    except KeyError:
        raise UnsupportedFormat(f"{name} is not a GGML type we know") from None
