"""MLX: `X.weight` of packed 32-bit words with `X.scales` and, in affine mode, `X.biases`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from core.checkpoints.base import Checkpoint
from core.checkpoints.dialects.base import Dialect, QuantizedWeight
from core.errors import CorruptFile, UnsupportedFormat

if TYPE_CHECKING:
    import torch

_FLOATS = ("F32", "F16", "BF16")
_WIDTHS = (2, 3, 4, 5, 6, 8)
# Words per scale → mode, columns per scale, bits. No two are alike.
_MODES = {4: ("mxfp4", 32, 4), 8: ("mxfp8", 32, 8), 2: ("nvfp4", 16, 4)}


class MlxDialect(Dialect):
    """All of mlx-lm's modes: affine of 2 to 8 bits, mxfp4, mxfp8, nvfp4."""

    name: ClassVar[str] = "mlx"

    def speaks(self, config: Mapping[str, Any]) -> bool:
        found = config.get("quantization")
        return isinstance(found, dict) and "group_size" in found and "bits" in found

    def weights(self, checkpoint: Checkpoint) -> Mapping[str, QuantizedWeight]:
        said = (checkpoint.config or {}).get("quantization") or {}
        stems = [
            name.removesuffix(".weight")
            for name, info in checkpoint.tensors.items()
            if name.endswith(".weight") and info.dtype == "U32"
        ]
        return {f"{stem}.weight": _weight(checkpoint, stem, said) for stem in stems}


@dataclass(frozen=True)
class _Affine(QuantizedWeight):
    """pieces are the codes, scales and biases."""

    bits: int
    group: int

    def read(self, inner: Checkpoint, start: int, stop: int) -> torch.Tensor:
        import torch

        from core.formats.bitstream import unpack_rows

        words = inner.read(self.pieces[0], start, stop).view(torch.int32)
        values = unpack_rows(words, self.bits, self.columns).float()
        scale, bias = (inner.read(piece, start, stop).float().unsqueeze(-1) for piece in self.pieces[1:])
        values.view(stop - start, -1, self.group).mul_(scale).add_(bias)
        return values


@dataclass(frozen=True)
class _Float(QuantizedWeight):
    """pieces are the codes and the scales' bytes. mode: one of _MODES."""

    mode: str

    def read(self, inner: Checkpoint, start: int, stop: int) -> torch.Tensor:
        import torch

        from core.formats.codebook import e2m1, unpack_pairs
        from core.formats.fp8 import byte_values
        from core.formats.mx import E4M3, powers

        rows = stop - start
        stored = inner.read(self.pieces[0], start, stop).contiguous().view(torch.uint8)
        scale = inner.read(self.pieces[1], start, stop)
        step = byte_values(E4M3, stored.device)[scale.int()] if self.mode == "nvfp4" else powers(scale)
        if self.mode == "mxfp8":
            values = byte_values(E4M3, stored.device)[stored.int()]
        else:
            values = e2m1().look_up(unpack_pairs(stored, rows * self.columns, high_first=False)).view(rows, -1)
        return (values.view(rows, scale.shape[1], -1) * step.unsqueeze(-1)).view(rows, self.columns)


def _weight(checkpoint: Checkpoint, stem: str, said: Mapping[str, Any]) -> QuantizedWeight:
    where = f"{checkpoint.path}: {stem}"
    tensors = checkpoint.tensors
    codes, scales, biases = f"{stem}.weight", f"{stem}.scales", f"{stem}.biases"
    if scales not in tensors:
        raise CorruptFile("the packed weight has no scales", "is a shard missing?", where)
    if f"{stem}.global_scale" in tensors:
        raise UnsupportedFormat("NVFP4 with a scale of the tensor is not read", "save it without, in mlx-lm", where)
    words, groups = tensors[codes], tensors[scales]
    if len(words.shape) < 2 or words.shape[:-1] != groups.shape[:-1] or not words.numel or not groups.numel:
        raise CorruptFile(
            f"codes {list(words.shape)} and scales {list(groups.shape)} do not belong together", where=where
        )
    if groups.dtype == "U8":
        mode, group, _ = _MODES.get(words.columns // groups.columns, ("", 0, 0))
        if not mode or words.columns % groups.columns:
            raise CorruptFile(f"{words.columns} words for {groups.columns} scales fit none of MLX's modes", where=where)
        return _Float((codes, scales), (*words.shape[:-1], group * groups.columns), f"{mode.upper()}-MLX", mode)
    if biases not in tensors:
        raise CorruptFile("the packed weight has scales and no biases", "is a shard missing?", where)
    if groups.dtype not in _FLOATS or tensors[biases].dtype not in _FLOATS:
        raise UnsupportedFormat(f"scales of type {groups.dtype}, biases of type {tensors[biases].dtype}", where=where)
    if tensors[biases].shape != groups.shape:
        raise CorruptFile(f"scales {list(groups.shape)} and biases {list(tensors[biases].shape)} differ", where=where)
    own = said.get(stem)
    group = _group(own if isinstance(own, dict) else said, where)
    columns = group * groups.columns
    bits, rest = divmod(32 * words.columns, columns)
    if rest or bits not in _WIDTHS:
        raise CorruptFile(
            f"{words.columns} words and {groups.columns} scales per row fit no groups of {group}",
            "config.json may be another model's",
            where,
        )
    return _Affine((codes, scales, biases), (*words.shape[:-1], columns), f"INT{bits}", bits, group)


def _group(said: Mapping[str, Any], where: str) -> int:
    given = said.get("group_size")
    if not isinstance(given, int) or isinstance(given, bool) or not 1 <= given <= 1 << 20:
        raise CorruptFile(f"config.json says groups of {given!r} columns", where=where)
    return given
