"""NVFP4 in a GGUF: blocks of 64 weights with an 8-bit float per 16, and the scale of the whole tensor in a tensor of
its own, which llama.cpp multiplies the result with.

    blk.0.ffn_up.weight   NVFP4
    blk.0.ffn_up.scale    F32 [1], or one per expert of a stack

The scale is a power of two here, so that it does not matter before or after which sum it is multiplied, and no bit is
lost on the way. source: llama.cpp's conversion/base.py and llama-model.cpp
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from core.checkpoints.gguf import SCALE
from core.formats.ggml.types import GGML_TYPES
from core.formats.mx import NvFp4
from core.targets.base import OutputTensor, StoredTensor
from core.targets.plain import data_of

if TYPE_CHECKING:
    import torch

    from core.tensors import TensorInfo

NAME = "nvfp4"
TYPE = GGML_TYPES["NVFP4"]
# llama.cpp takes a scale along with these, of any architecture …
_SCALED = frozenset({"q", "k", "v", "qkv", "o", "gate", "up", "gate_up", "down", "head"})
# … and forgets it, as was seen by running it, in the feed-forward of all but these.
_FEED_FORWARD = frozenset({"gate", "up", "gate_up", "down"})
_WHOLE = frozenset({"llama", "qwen3", "qwen3moe"})
INPUT_SCALE = ".input_scale"


def refuses(tensor: OutputTensor) -> str | None:
    if tensor.role.kind not in _SCALED or not tensor.name.endswith("weight"):
        return "llama.cpp multiplies with a scale of NVFP4 in attention, feed-forward and head only"
    if NAME in tensor.misread:
        return "llama.cpp leaves out the scale of NVFP4 in this model's feed-forward"
    if tensor.columns % TYPE.block:
        return f"columns {tensor.columns} is not a multiple of {TYPE.block}, as nvfp4 in a GGUF needs"
    return None


def marked(tensors: Iterable[OutputTensor], arch: str) -> Iterator[OutputTensor]:
    """The tensors, those that llama.cpp would misread in NVFP4 marked."""
    for tensor in tensors:
        misread = tensor.role.kind in _FEED_FORWARD and arch not in _WHOLE
        yield replace(tensor, misread=frozenset({NAME})) if misread else tensor


def stored(tensor: OutputTensor) -> tuple[StoredTensor, ...]:
    count = _scales(tensor)
    return (
        StoredTensor(tensor.name, TYPE.name, tensor.shape, TYPE.nbytes(tensor.shape)),
        StoredTensor(_stem(tensor.name) + SCALE, "F32", (count,), 4 * count),
    )


def pieces(tensor: OutputTensor, parts: Mapping[str, torch.Tensor], start: int) -> list[tuple[str, int, memoryview]]:
    """What is stored of rows that NvFp4 quantized: (name, offset, bytes)."""
    import torch

    from core.formats.codebook import unpack_pairs
    from core.formats.ggml.layout import layout

    codes = unpack_pairs(parts["codes"], 2 * parts["codes"].numel(), False).view(-1, TYPE.block)
    steps = parts["scale"].contiguous().view(torch.uint8).view(-1, TYPE.block // 16)
    blocks = layout(TYPE.name).pack({"s": steps, "codes": codes})
    scale = (1 / parts["inv_global_scale"]).reshape(1).repeat(_scales(tensor))
    weights, own = stored(tensor)
    return [
        (weights.name, start * TYPE.row_bytes(tensor.columns), data_of(blocks)),
        (own.name, 0, data_of(scale)),
    ]


def adapted(format: NvFp4) -> NvFp4:
    return replace(format, power_of_two=True)


def beside(name: str, tensors: Mapping[str, TensorInfo]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Tensors of a GGUF that belong to the NVFP4 weight of that name, with their shapes."""
    if tensors[name].dtype != TYPE.name or not name.endswith(".weight"):
        return ()
    found = (tensors.get(_stem(name) + ending) for ending in (SCALE, INPUT_SCALE))
    return tuple((t.name, t.shape) for t in found if t is not None and t.dtype == "F32")


def _stem(name: str) -> str:
    return name.removesuffix(".weight")


def _scales(tensor: OutputTensor) -> int:
    return tensor.shape[0] if len(tensor.shape) > 2 else 1
