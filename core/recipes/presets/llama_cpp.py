"""llama.cpp's presets: walks a model in llama-quantize's order and applies a mixture of mixtures.py to each tensor,
with the substitutes llama-quantize takes where a shape does not fit.

Needs the names of a GGUF; for other containers they are derived from role and layer.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache, partial
from typing import TYPE_CHECKING

from core.formats.ggml.types import GGML_TYPES
from core.ordering import order_of
from core.recipes.presets.base import KEPT, Choice, Preset
from core.recipes.presets.mixtures import MIXTURES, At, Clauses, Mixture
from core.recipes.protect import is_gguf, protections

if TYPE_CHECKING:
    from core.targets.base import Outline, OutputTensor

# Kinds of tensors by a piece of their name; the first that is found counts.
_KINDS = (
    ("v", ("attn_qkv.weight", "attn_kv_b.weight", "attn_v.weight")),
    ("k", ("attn_k.weight",)),
    ("q", ("attn_q.weight",)),
    ("o", ("attn_output.weight",)),
    ("up", ("ffn_up",)),
    ("gate", ("ffn_gate",)),
    ("down", ("ffn_down",)),
)
_STEMS = {
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "qkv": "attn_qkv",
    "o": "attn_output",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "gate_up": "ffn_up",
    "down": "ffn_down",
}
_BLOCK = re.compile(r"blk\.(\d+)\.")

# What is taken where columns are no multiple of the block; F16 where that does not fit either.
SUBSTITUTES = {
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
    **dict.fromkeys(("Q2_K", "Q3_K", "TQ1_0", "TQ2_0", "Q2_0"), "Q4_0"),
    **dict.fromkeys(
        ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"),
        "IQ4_NL",
    ),
}


def gguf_name(tensor: OutputTensor) -> str:
    """What llama.cpp calls the tensor, by role and layer; its own name where that has no counterpart."""
    role = tensor.role
    if role.kind == "head":
        return "output.weight"
    if role.kind == "embedding":
        return "token_embd.weight"
    stem = _STEMS.get(role.kind)
    if stem is None or role.layer is None:
        return tensor.name
    return f"blk.{role.layer}.{stem}{'' if role.expert is None else f'_exps.{role.expert}'}.weight"


def kind_of(name: str) -> str:
    """The kind of a tensor by its GGUF name: "head", "embedding", "v", "k", "q", "o", "up", "gate", "down", "other"."""
    if name == "output.weight":
        return "head"
    if name in ("token_embd.weight", "per_layer_token_embd.weight"):
        return "embedding"
    return _kind_inside(name.split(".", 2)[-1] if name.startswith("blk.") else name)


@lru_cache(maxsize=4096)
def _kind_inside(name: str) -> str:
    return next((kind for kind, pieces in _KINDS if any(piece in name for piece in pieces)), "other")


def substitute(type_name: str, columns: int) -> str:
    """The type itself where columns fit its blocks, else what llama-quantize takes instead."""
    if columns % GGML_TYPES[type_name].block == 0:
        return type_name
    other = SUBSTITUTES.get(type_name, "F16")
    return other if columns % GGML_TYPES[other].block == 0 else "F16"


def choose(mixture: Mixture, outline: Outline, importance: bool) -> list[Choice]:
    """One choice per output tensor of the outline, in its order."""
    walk = _Walk(mixture, outline, importance)
    choices = [KEPT] * len(outline.tensors)
    for index, name in walk.order():
        choices[index] = walk.visit(name, walk.kinds[index], outline.tensors[index])
    return choices


class _Walk:
    """llama-quantize's way through one model: its counters, and the facts its rules ask for."""

    def __init__(self, mixture: Mixture, outline: Outline, importance: bool) -> None:
        own_names = is_gguf(outline)
        self.mixture = mixture
        self.names = [t.name if own_names else gguf_name(t) for t in outline.tensors]
        self.quantized = [not why for why in protections(outline)]
        self.kinds = [kind_of(name) for name in self.names]
        self.tied = "head" not in self.kinds
        blocks = [int(found.group(1)) for name in self.names if (found := _BLOCK.match(name))]
        self.layers = outline.layers or max(blocks, default=-1) + 1
        self.experts = outline.experts
        self.gqa = outline.heads // outline.kv_heads if outline.kv_heads else 0
        self.falcon = outline.arch == "falcon"
        # What llama.cpp calls 70B: of Llama's, 65B has as many layers, but is not grouped.
        self.is_70b = self.layers == 80 and (outline.arch == "qwen2" or (outline.arch == "llama" and self.gqa > 1))
        self.importance = importance
        self.seen: Counter[str] = Counter()
        self.v_count = self.kinds.count("v")

    def order(self) -> Iterator[tuple[int, str]]:
        """(index, GGUF name) of every tensor to quantize: outside the blocks first, then by block and name."""

        taken = [i for i, take in enumerate(self.quantized) if take]
        keys = []
        for index in taken:
            found = _BLOCK.match(self.names[index])
            keys.append((int(found.group(1)) if found else -1, self.names[index]))
        for place in order_of(keys):
            yield taken[place], self.names[taken[place]]

    def visit(self, name: str, kind: str, tensor: OutputTensor) -> Choice:
        mixture, columns = self.mixture, tensor.columns
        at = self._at(kind, name)
        # Counted whether or not the rule asks.
        self.seen[kind] += 1
        if kind == "head" or (self.tied and kind == "embedding"):
            return self._head(kind, columns)
        if mixture.stacked:
            stacked = len(tensor.shape) > 2 and tensor.shape[-3] > 1
            wanted = mixture.default if stacked else "Q8_0"
        elif kind == "embedding":
            wanted = mixture.embedding or mixture.default
        else:
            wanted = self._matrix(kind, at)
        why = f"{_word(kind)}: {mixture.default} → {wanted}".lower() if wanted != mixture.default else ""
        return _fitted(wanted, columns, why)

    def _at(self, kind: str, name: str) -> At:
        index, count = self.seen[kind], self.v_count if kind == "v" else self.layers
        if kind in ("down", "gate", "up") and self.experts > 1 and not self.mixture.low_bit:
            # Experts may be many tensors per layer: the layer is read from the name.
            found = _BLOCK.match(name)
            index = int(found.group(1)) if found else index
        return At(index, count, self.gqa, self.experts, self.importance, self.falcon)

    def _head(self, kind: str, columns: int) -> Choice:
        mixture = self.mixture
        word = "head" if kind == "head" else "embedding serves as head"
        odd = columns % GGML_TYPES[mixture.default].block != 0
        if (odd or self.falcon) and not mixture.stacked:
            why = f"{word}, columns {columns}" if odd else f"{word} of falcon"
            return _fitted("Q8_0", columns, f"{why}: {mixture.head} → q8_0".lower(), odd and mixture.head != "Q8_0")
        why = f"{word}: {mixture.default} → {mixture.head}".lower() if mixture.head != mixture.default else ""
        return _fitted(mixture.head, columns, why)

    def _matrix(self, kind: str, at: At) -> str:
        mixture = self.mixture
        if kind == "v":
            wanted = _first(mixture.v, at, mixture.default)
            if mixture.low_bit:
                return wanted
            if self.is_70b and wanted in ("Q3_K", "Q4_K"):
                wanted = "Q5_K"
            return "Q8_0" if self.experts == 8 else wanted
        if kind == "k":
            return "Q8_0" if self.experts == 8 and not mixture.low_bit else _first(mixture.k, at, mixture.default)
        if kind == "q":
            return _first(mixture.q, at, mixture.default)
        if kind == "o":
            if self.experts == 8 and not self.falcon and not mixture.low_bit:
                return mixture.o_moe8 or mixture.default
            return _first(mixture.o, at, mixture.default)
        if kind == "down":
            return _first(mixture.down, at, mixture.default)
        if kind in ("gate", "up"):
            return _first(mixture.gate_up, at, mixture.default)
        return mixture.default


def _first(clauses: Clauses, at: At, default: str) -> str:
    return next((name for name, holds in clauses if holds(at)), default)


def _fitted(wanted: str, columns: int, why: str, fallback: bool = False) -> Choice:
    given = substitute(wanted, columns)
    if given == wanted:
        return Choice(wanted.lower(), why, fallback)
    return Choice(given.lower(), f"columns {columns}: {wanted} → {given}".lower(), True)


def _word(kind: str) -> str:
    words = {"q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output"}
    return words.get(kind, kind if kind in ("embedding", "other") else f"ffn_{kind}")


def _preset(mixture: Mixture) -> Preset:
    formats = tuple(name.lower() for name in mixture.types)
    title = f"llama.cpp {mixture.title}"
    return Preset(
        mixture.name, title, mixture.help, "llama.cpp", "gguf", formats, partial(choose, mixture), mixture.needy
    )


LLAMA_CPP: tuple[Preset, ...] = tuple(_preset(mixture) for mixture in MIXTURES)
