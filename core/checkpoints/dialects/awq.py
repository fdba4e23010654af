"""AWQ as AutoAWQ's "GEMM" stores it: `X.qweight` of 4-bit codes in AWQ's order, with zero points and scales."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from core.checkpoints.base import Checkpoint
from core.checkpoints.dialects.base import Dialect, QuantizedWeight, quantization_of
from core.checkpoints.dialects.qweight import apart, pieces_of, place_of, stems
from core.errors import UnsupportedFormat

if TYPE_CHECKING:
    import torch

    from core.formats.uniform import Uniform


class AwqDialect(Dialect):
    """4 bits, groups of any size."""

    name: ClassVar[str] = "awq"

    def speaks(self, config: Mapping[str, Any]) -> bool:
        return quantization_of(config).get("quant_method") == "awq"

    def weights(self, checkpoint: Checkpoint) -> Mapping[str, QuantizedWeight]:
        config = quantization_of(checkpoint.config)
        found = stems(checkpoint)
        if not found:
            return {}
        layout = str(config.get("version") or config.get("format") or "gemm").lower()
        bits = config.get("bits", config.get("w_bit", 4))
        if layout != "gemm" or bits != 4:
            raise UnsupportedFormat(
                f"AWQ weights of {bits!r} bits in the layout {layout!r}; 4 bits in gemm are read",
                "convert them to gemm with the tool that made them",
                checkpoint.path,
            )
        return {f"{stem}.weight": _weight(checkpoint, stem) for stem in found}


@dataclass(frozen=True)
class _Interleaved(QuantizedWeight):
    """pieces are qweight, qzeros and scales."""

    format: Uniform

    def read(self, inner: Checkpoint, start: int, stop: int) -> torch.Tensor:
        import torch

        from core.formats.base import Grid
        from core.formats.interleaved import unpack_columns

        # Whole words: eight rows each.
        first, last = start // 8, -(-stop // 8)
        rows = slice(start - 8 * first, stop - 8 * first)
        codes, zeros = (
            (unpack_columns(inner.read(piece)[:, first:last])[rows].to(torch.int16) + self.format.qmin).to(torch.int8)
            for piece in self.pieces[:2]
        )
        scale = inner.read(self.pieces[2])[:, start:stop].t().float()
        return self.format.decode(codes, Grid({"scale": scale, "zero_point": zeros}))


def _weight(checkpoint: Checkpoint, stem: str) -> QuantizedWeight:
    from core.formats.uniform import Uniform

    where = place_of(checkpoint, stem)
    codes, zeros, scales = pieces_of(checkpoint, stem)
    groups, rows = scales.shape
    columns = codes.rows
    if 8 * codes.columns != rows or zeros.shape != (groups, codes.columns) or columns % groups:
        raise apart(codes, zeros, scales, "AWQ's other layouts (gemv, marlin) are not read", where)
    run = columns // groups if groups > 1 else 0
    fmt = Uniform("int4", 4, "group" if run else "row", run, False, "F32")
    return _Interleaved((codes.name, zeros.name, scales.name), (rows, columns), "INT4", fmt)
