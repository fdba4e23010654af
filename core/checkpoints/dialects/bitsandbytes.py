"""bitsandbytes: 4-bit codes with their statistics and a JSON of quantization state, or int8 rows with `SCB`."""

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

_STATE = ".quant_state.bitsandbytes__"
# The JSON takes some two hundred bytes.
_LARGEST_STATE = 1 << 16


class BitsAndBytesDialect(Dialect):
    """NF4 and FP4 of any block size, with or without nested statistics; 8-bit rows."""

    name: ClassVar[str] = "bitsandbytes"

    def speaks(self, config: Mapping[str, Any]) -> bool:
        return quantization_of(config).get("quant_method") == "bitsandbytes"

    def weights(self, checkpoint: Checkpoint) -> Mapping[str, QuantizedWeight]:
        found: dict[str, QuantizedWeight] = {}
        for name in checkpoint.tensors:
            stem, mark, kind = name.rpartition(_STATE)
            if mark:
                found[stem] = _four_bit(checkpoint, stem, name, kind)
            elif name.endswith(".SCB"):
                stem = name.removesuffix(".SCB")
                found[f"{stem}.weight"] = _eight_bit(checkpoint, stem)
        return found


@dataclass(frozen=True)
class _FourBit(QuantizedWeight):
    """block and nested are block sizes, nested 0 without nested statistics; offset is what their mean was."""

    block: int
    nested: int
    offset: float

    def read(self, inner: Checkpoint, start: int, stop: int) -> torch.Tensor:
        import torch

        from core.formats.codebook import unpack_pairs

        codes, absmax, levels, *outer = self.pieces
        first, last = start * self.columns, stop * self.columns
        stored = inner.read(codes).reshape(-1).view(torch.uint8)
        pairs = stored[first // 2 : (last + 1) // 2]
        values = unpack_pairs(pairs, 2 * pairs.numel(), True)[first % 2 :][: last - first]
        scale = inner.read(absmax).reshape(-1)[first // self.block : -(-last // self.block)]
        if self.nested:
            nested_absmax, nested_levels = outer[:2]
            at = torch.arange(first // self.block, first // self.block + scale.numel()) // self.nested
            table = inner.read(nested_levels).reshape(-1).float()
            scale = table[scale.int()] * inner.read(nested_absmax).reshape(-1).float()[at] + self.offset
        where = torch.arange(first, last) // self.block - first // self.block
        wide = inner.read(levels).reshape(-1).float()[values.int()] * scale.float()[where]
        return wide.view(stop - start, self.columns)


@dataclass(frozen=True)
class _EightBit(QuantizedWeight):
    """pieces are the codes and the absmax of every row."""

    def read(self, inner: Checkpoint, start: int, stop: int) -> torch.Tensor:
        from core.formats.llm_int8 import STEP

        absmax = inner.read(self.pieces[1]).reshape(-1, 1)[start:stop].float()
        return inner.read(self.pieces[0], start, stop).float() * absmax * STEP


def _four_bit(checkpoint: Checkpoint, name: str, state_name: str, kind: str) -> QuantizedWeight:
    where = f"{checkpoint.path}: {name}"
    tensors = checkpoint.tensors
    if tensors[state_name].nbytes > _LARGEST_STATE:
        raise CorruptFile(f"its quantization state takes {tensors[state_name].nbytes:,} bytes", where=where)
    state = parse_object(bytes(checkpoint.raw(state_name)), checkpoint.path, state_name)
    shape, block = state.get("shape"), state.get("blocksize")
    if not isinstance(shape, list) or len(shape) < 2 or not all(_count(n) for n in shape):
        raise CorruptFile(f"its quantization state has shape {shape!r}", where=where)
    if not isinstance(block, int) or not _count(block):
        raise CorruptFile(f"its quantization state has blocksize {block!r}", where=where)
    nested, offset = state.get("nested_blocksize", 0), state.get("nested_offset", 0)
    if not (nested == 0 or _count(nested)) or isinstance(offset, bool) or not isinstance(offset, int | float):
        raise CorruptFile(f"its nested statistics are {nested!r} long and centred on {offset!r}", where=where)
    pieces = [name, f"{name}.absmax", f"{name}.quant_map"]
    if nested:
        pieces += [f"{name}.nested_absmax", f"{name}.nested_quant_map"]
    for piece in pieces:
        if piece not in tensors:
            raise CorruptFile(f"the quantized weight has no {piece}", "is a shard missing?", where)
    weights = 1
    for n in shape:
        weights *= n
    blocks = -(-weights // block)
    wanted = {pieces[0]: -(-weights // 2), pieces[1]: blocks, pieces[2]: 16}
    if nested:
        wanted |= {pieces[3]: -(-blocks // nested), pieces[4]: 256}
    for piece, count in wanted.items():
        held = tensors[piece].nbytes if piece == name else tensors[piece].numel
        if held != count:
            raise CorruptFile(f"{piece} holds {held:,} values where {count:,} belong to {shape}", where=where)
    if tensors[pieces[1]].dtype != ("U8" if nested else "F32"):
        raise UnsupportedFormat(f"statistics of type {tensors[pieces[1]].dtype}", where=where)
    label = f"{kind.upper()}-DQ" if nested else kind.upper()
    return _FourBit((*pieces, state_name), tuple(shape), label, block, nested, float(offset))


def _eight_bit(checkpoint: Checkpoint, stem: str) -> QuantizedWeight:
    where = f"{checkpoint.path}: {stem}"
    codes, scale = f"{stem}.weight", f"{stem}.SCB"
    tensors = checkpoint.tensors
    if codes not in tensors or tensors[codes].dtype != "I8" or len(tensors[codes].shape) != 2:
        raise CorruptFile("there is an SCB and no int8 weight", "is a shard missing?", where)
    shape = tensors[codes].shape
    if tensors[scale].numel != shape[0] or tensors[scale].dtype not in ("F32", "F16", "BF16"):
        raise CorruptFile(f"SCB holds {tensors[scale].numel:,} scales for {shape[0]:,} rows", where=where)
    layout = f"{stem}.weight_format"
    if layout in tensors and any(bytes(checkpoint.raw(layout))):
        raise UnsupportedFormat(
            "its int8 rows are laid out for one kind of GPU", "save it again with row layout", where
        )
    return _EightBit((codes, scale, *((layout,) if layout in tensors else ())), shape, "LLM-INT8")


def _count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
