"""torchao as transformers saves it: `X._weight_qdata` with its scales, and what they are in the files' metadata."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from core.checkpoints.base import Checkpoint
from core.checkpoints.dialects.base import Dialect, QuantizedWeight, quantization_of
from core.checkpoints.jsontext import parse_object
from core.errors import CorruptFile, UnsupportedFormat

if TYPE_CHECKING:
    import torch

_MARK = "_qdata"
_FLOATS = ("F32", "F16", "BF16")
_INTEGERS = ("Int8Tensor", "IntxUnpackedToInt8Tensor")
_CODES = {"Int8Tensor": ("I8",), "IntxUnpackedToInt8Tensor": ("I8",), "Float8Tensor": ("F8_E4M3", "F8_E5M2")}


class TorchAoDialect(Dialect):
    """Integers in bytes and 8-bit floats, scaled in blocks of any size."""

    name: ClassVar[str] = "torchao"

    def speaks(self, config: Mapping[str, Any]) -> bool:
        return quantization_of(config).get("quant_method") == "torchao"

    def weights(self, checkpoint: Checkpoint) -> Mapping[str, QuantizedWeight]:
        found = {}
        for name in checkpoint.tensors:
            if name.endswith(_MARK):
                module, _, last = name.removesuffix(_MARK).rpartition("._")
                weight = f"{module}.{last}"
                found[weight] = _weight(checkpoint, weight, name.removesuffix(_MARK))
        return found


@dataclass(frozen=True)
class _Scaled(QuantizedWeight):
    """pieces are the codes, their scales and, where there are some, zero points. block: rows and columns that share a
    scale."""

    block: tuple[int, int]

    def read(self, inner: Checkpoint, start: int, stop: int) -> torch.Tensor:
        import torch

        tall, wide = self.block
        values = inner.read(self.pieces[0], start, stop).to(torch.float32, copy=True)
        first, last = start // tall, -(-stop // tall)
        at = torch.arange(start, stop) // tall - first

        def spread(piece: str) -> torch.Tensor:
            part = inner.read(piece, first, last).float()
            return (part if tall == 1 else part[at]).unsqueeze(-1)

        grouped = values.view(stop - start, -1, wide)
        if len(self.pieces) > 2:
            grouped -= spread(self.pieces[2])
        grouped *= spread(self.pieces[1])
        return values


def _weight(checkpoint: Checkpoint, name: str, stem: str) -> QuantizedWeight:
    where = f"{checkpoint.path}: {name}"
    tensors = checkpoint.tensors
    said = checkpoint.metadata.get(name)
    if not isinstance(said, str):
        raise CorruptFile("the files' metadata says nothing of this weight", "is a shard missing?", where)
    described = parse_object(said.encode(), checkpoint.path, f"what the metadata says of {name}")
    kind, data = described.get("_type"), described.get("_data")
    if kind not in _CODES or not isinstance(data, dict):
        raise UnsupportedFormat(
            f"torchao's {kind!r} is not read; {', '.join(_CODES)} are",
            "save the model with one of these, or dequantize it there",
            where,
        )
    codes, scale, zero = f"{stem}_qdata", f"{stem}_scale", f"{stem}_zero_point"
    if scale not in tensors:
        raise CorruptFile("the quantized weight has no scales", "is a shard missing?", where)
    odd = [n for n in tensors if n.startswith(f"{stem}_") and n not in (codes, scale, zero)]
    if odd:
        raise UnsupportedFormat(f"{odd[0]} is a part of it that is not understood", where=where)
    info, scales = tensors[codes], tensors[scale]
    if info.dtype not in _CODES[kind] or scales.dtype not in _FLOATS:
        raise UnsupportedFormat(f"codes of type {info.dtype} with scales of type {scales.dtype}", where=where)
    if len(info.shape) != 2 or len(scales.shape) != 2 or 0 in (*info.shape, *scales.shape):
        raise CorruptFile(f"codes {list(info.shape)} and scales {list(scales.shape)}: both need two sides", where=where)
    block = (info.shape[0] // scales.shape[0], info.shape[1] // scales.shape[1])
    if (block[0] * scales.shape[0], block[1] * scales.shape[1]) != info.shape:
        raise CorruptFile(f"scales {list(scales.shape)} do not divide {list(info.shape)} weights", where=where)
    pieces: tuple[str, ...] = (codes, scale)
    if zero in tensors:
        if kind not in _INTEGERS or tensors[zero].dtype not in ("I8", *_FLOATS) or tensors[zero].shape != scales.shape:
            raise CorruptFile(f"{tensors[zero].dtype} zero points {list(tensors[zero].shape)}", where=where)
        pieces = (codes, scale, zero)
    return _Scaled(pieces, info.shape, _label(kind, data, info.dtype), block)


def _label(kind: str, data: Mapping[str, Any], dtype: str) -> str:
    """What lists show: INT4, FP8-E4M3."""
    if kind == "Float8Tensor":
        return dtype.replace("F8_", "FP8-")
    asked = data.get("target_dtype")
    width = asked.get("_data") if isinstance(asked, dict) else None
    return width.upper() if isinstance(width, str) and width.isalnum() else "INT8"
