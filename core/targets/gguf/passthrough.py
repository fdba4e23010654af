"""A GGUF that becomes another GGUF: every key-value and the order of tensors stay, whatever the architecture."""

from __future__ import annotations

from core.checkpoints.gguf import Gguf, Value, ValueType
from core.roles import role_of
from core.targets.base import Outline, OutputTensor
from core.targets.gguf import nvfp4
from core.targets.gguf.rows import FromGguf

_NOT_LINEAR = frozenset({"norm", "bias", "embedding", "position"})
_NUMBERS = frozenset(
    {
        ValueType.UINT8,
        ValueType.INT8,
        ValueType.UINT16,
        ValueType.INT16,
        ValueType.UINT32,
        ValueType.INT32,
        ValueType.UINT64,
        ValueType.INT64,
    }
)


def outline(checkpoint: Gguf) -> Outline:
    """Its tensors in the file's order."""
    tensors = []
    sources = {name: FromGguf(name, nvfp4.beside(name, checkpoint.tensors)) for name in checkpoint.file_order}
    belonging = {part for source in sources.values() for part in source.beside()}
    for name, source in sources.items():
        if name in belonging:
            continue
        info = checkpoint.tensors[name]
        role = role_of(name)
        linear = len(info.shape) >= 2 and name.endswith("weight") and role.kind not in _NOT_LINEAR
        tensors.append(OutputTensor(name, source, info.shape, info.dtype, role, linear))
    value = checkpoint.metadata.get("general.architecture")
    arch = str(value.value) if value is not None and value.type == ValueType.STRING else ""
    return Outline(
        tuple(nvfp4.marked(tensors, arch)),
        arch=arch,
        layers=_number(checkpoint, f"{arch}.block_count"),
        heads=_number(checkpoint, f"{arch}.attention.head_count"),
        kv_heads=_number(checkpoint, f"{arch}.attention.head_count_kv"),
        experts=_number(checkpoint, f"{arch}.expert_count"),
        tied="token_embd.weight" in checkpoint.tensors and "output.weight" not in checkpoint.tensors,
    )


def pairs(checkpoint: Gguf) -> list[tuple[str, Value]]:
    """All key-values as they stand, but for those of a split: the output is one file."""
    return [(key, value) for key, value in checkpoint.metadata.items() if not key.startswith("split.")]


def _number(checkpoint: Gguf, key: str) -> int:
    """A whole number, or the largest of an array with one per layer; 0 when it is not there."""
    value = checkpoint.metadata.get(key)
    if value is None:
        return 0
    if value.type in _NUMBERS:
        return int(value.value)
    if value.type == ValueType.ARRAY and value.element in _NUMBERS and value.count:
        return int(max(value.value))
    return 0
