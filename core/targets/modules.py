"""A checkpoint's own tensors as an outline, for containers that keep its names: which are weights of Linear modules,
and what the model's config says about its shape."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from core.checkpoints.base import Checkpoint
from core.roles import Role, role_of
from core.targets.base import Outline, OutputTensor, Plain
from core.tensors import TensorInfo


@dataclass(frozen=True)
class TiedHead(Plain):
    """The head's own copy of an embedding it is tied to: clients that tie them never look at it."""


# Models whose projections are Conv1D: stored [in, out], and no Linear to any client.
_CONV1D = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp"})
_EMBEDDING = re.compile(
    r"(?:^|\.)(?:embed\w*|\w*embeddings?|\w*_embd?|wte|wpe|shared|relative_attention_bias)\.weight$"
)
_NEVER = frozenset({"embedding", "norm", "bias", "position"})


def own_outline(checkpoint: Checkpoint, notes: tuple[str, ...] = ()) -> Outline:
    """All tensors under their own names, in natural order."""
    config = text_config(checkpoint.config or {})
    conv1d = _text(config, "model_type") in _CONV1D
    tied = is_tied(checkpoint)
    tensors = []
    for info in checkpoint.tensors.values():
        role = role_of(info.name)
        linear = is_linear(info, role) and not (conv1d and role.kind != "head")
        source = TiedHead(info.name) if role.kind == "head" and (tied or info.alias) else Plain(info.name)
        tensors.append(OutputTensor(info.name, source, info.shape, info.dtype, role, linear))
    return Outline(
        tuple(tensors),
        arch=_text(config, "model_type"),
        layers=_count(config, "num_hidden_layers", "n_layer", "num_layers"),
        heads=_count(config, "num_attention_heads", "n_head"),
        kv_heads=_count(config, "num_key_value_heads", "num_attention_heads", "n_head"),
        experts=_count(config, "num_local_experts", "n_routed_experts", "num_experts"),
        tied=tied,
        notes=notes,
    )


def is_linear(info: TensorInfo, role: Role) -> bool:
    """Whether the tensor is the weight of a Linear module: by name, two dimensions, and no embedding or norm."""
    return (
        len(info.shape) == 2
        and info.name.endswith(".weight")
        and role.kind not in _NEVER
        and not _EMBEDDING.search(info.name)
    )


def is_tied(checkpoint: Checkpoint) -> bool:
    """Whether the head is the embedding, by the config."""
    config = checkpoint.config or {}
    return text_config(config).get("tie_word_embeddings", config.get("tie_word_embeddings")) is True


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config that speaks of the language model."""
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config


def _count(config: Mapping[str, Any], *keys: str) -> int:
    for key in keys:
        value = config.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return 0


def _text(config: Mapping[str, Any], key: str) -> str:
    value = config.get(key)
    return value if isinstance(value, str) else ""
