"""AWQ as AutoAWQ's "GEMM" stores it: `X.qweight` of 4-bit codes in AWQ's order, with zero points and scales."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from core.checkpoints.base import Checkpoint
from core.checkpoints.dialects.base import Dialect, QuantizedWeight, quantization_of
from core.errors import CorruptFile, UnsupportedFormat

if TYPE_CHECKING:
    import torch

    from core.formats.uniform import Uniform

_SCALES = ("F16", "BF16", "F32")


class AwqDialect(Dialect):
    """4 bits, groups of any size."""

    name: ClassVar[str] = "awq"

    def speaks(self, config: Mapping[str, Any]) -> bool:
        return quantization_of(config).get("quant_method") == "awq"

    def weights(self, checkpoint: Checkpoint) -> Mapping[str, QuantizedWeight]:
        config = quantization_of(checkpoint.config)
        stems = [name.removesuffix(".qweight") for name in checkpoint.tensors if name.endswith(".qweight")]
        if not stems:
            return {}
        layout = str(config.get("version") or config.get("format") or "gemm").lower()
        bits = config.get("bits", config.get("w_bit", 4))
        if layout != "gemm" or bits != 4:
            raise UnsupportedFormat(
                f"AWQ weights of {bits!r} bits in the layout {layout!r}; 4 bits in gemm are read",
                "convert them to gemm with the tool that made them",
                checkpoint.path,
            )
        return {f"{stem}.weight": _weight(checkpoint, stem) for stem in stems}


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

    where = f"{checkpoint.path}: {stem}"
    tensors = checkpoint.tensors
    pieces = tuple(f"{stem}.{part}" for part in ("qweight", "qzeros", "scales"))
    for piece in pieces:
        if piece not in tensors:
            raise CorruptFile(f"the quantized weight has no {piece}", "is a shard missing?", where)
    codes, zeros, scales = (tensors[piece] for piece in pieces)
    for info, dtypes in ((codes, ("I32",)), (zeros, ("I32",)), (scales, _SCALES)):
        if info.dtype not in dtypes:
            raise UnsupportedFormat(f"{info.name} is {info.dtype}, not {' or '.join(dtypes)}", where=where)
        if len(info.shape) != 2 or not info.numel:
            raise CorruptFile(f"{info.name} has the shape {list(info.shape)}", where=where)
    groups, rows = scales.shape
    columns = codes.rows
    if 8 * codes.columns != rows or zeros.shape != (groups, codes.columns) or columns % groups:
        raise CorruptFile(
            f"codes {list(codes.shape)}, zero points {list(zeros.shape)} and scales {list(scales.shape)} "
            "do not belong together",
            "AWQ's other layouts (gemv, marlin) are not read",
            where,
        )
    run = columns // groups if groups > 1 else 0
    fmt = Uniform("int4", 4, "group" if run else "row", run, False, "F32")
    return _Interleaved(pieces, (rows, columns), "INT4", fmt)
