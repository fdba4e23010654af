"""llama.cpp's presets: walks a model in llama-quantize's order and applies a mixture of mixtures.py to each tensor,
with the substitutes llama-quantize takes where a shape does not fit.

Needs the names of a GGUF; for other containers they are derived from role and layer.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

from core.formats.ggml.types import GGML_TYPES
from core.kinds import Shared
from core.recipes.presets.base import KEPT, Choice, Preset
from core.recipes.presets.mixtures import MIXTURES, At, Clauses, Mixture
from core.recipes.protect import is_gguf, protections
from core.recipes.remembering import PerOutline

if TYPE_CHECKING:
    import numpy as np

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


def _kind_inside(name: str) -> str:
    return next((kind for kind, pieces in _KINDS if any(piece in name for piece in pieces)), "other")


def substitute(type_name: str, columns: int) -> str:
    """The type itself where columns fit its blocks, else what llama-quantize takes instead."""
    if columns % GGML_TYPES[type_name].block == 0:
        return type_name
    other = SUBSTITUTES.get(type_name, "F16")
    return other if columns % GGML_TYPES[other].block == 0 else "F16"


def choose(mixture: Mixture, outline: Outline, importance: bool) -> Shared[Choice]:
    """One choice per output tensor of the outline, in its order."""
    return _Walk(mixture, outline, importance).choices()


class _Way:
    """llama-quantize's way through one model, whatever the mixture: outside the blocks first, then by block and name.

    word   per tensor, what kind of tensor llama.cpp takes it for (`kind_of`)
    block  int64 [tensors]: as its name says, −1 outside
    place  int64 [tensors]: how many to be quantized of the same word come before it; −1 where it is not quantized
    """

    def __init__(self, outline: Outline) -> None:
        import numpy as np

        own_names = is_gguf(outline)
        names = [t.name if own_names else gguf_name(t) for t in outline.tensors]
        self.word = outline.kinds.ask(names, kind_of)
        self.block = np.array([int(found.group(1)) if (found := _BLOCK.match(name)) else -1 for name in names])
        inside: dict[int, list[int]] = {}
        for index in protections(outline).where(lambda why: not why):
            inside.setdefault(int(self.block[index]), []).append(index)
        self.place = np.full(len(names), -1, np.int64)
        seen: Counter[str] = Counter()
        for block in sorted(inside):
            for index in sorted(inside[block], key=names.__getitem__):
                word = self.word[index]
                self.place[index] = seen[word]
                seen[word] += 1


_way = PerOutline(_Way)


class _Walk:
    """One mixture on that way: the facts that its rules ask for, and what they come to."""

    def __init__(self, mixture: Mixture, outline: Outline, importance: bool) -> None:
        self.mixture = mixture
        self.outline = outline
        self.way = _way(outline)
        self.tied = "head" not in self.way.word.values
        self.layers = outline.layers or max(self.way.block.tolist(), default=-1) + 1
        self.experts = outline.experts
        self.gqa = outline.heads // outline.kv_heads if outline.kv_heads else 0
        self.falcon = outline.arch == "falcon"
        # What llama.cpp calls 70B: of Llama's, 65B has as many layers, but is not grouped.
        self.is_70b = self.layers == 80 and (outline.arch == "qwen2" or (outline.arch == "llama" and self.gqa > 1))
        self.importance = importance
        self.v_count = len(self.way.word.where(lambda word: word == "v"))

    def choices(self) -> Shared[Choice]:
        import numpy as np

        words, place = self.way.word, self.way.place
        # Which clause of a tensor's rules holds at its place.
        clause = np.full(len(place), -1, np.int64)
        for word in dict.fromkeys(words.values):
            found = np.array(words.where(lambda w, word=word: w == word), np.int64)  # type: ignore[misc]
            clause[found] = self._clause(word, found)
        cases = self.outline.kinds.split(clause, place < 0)
        given = [
            KEPT if place[i] < 0 else self._choice(words[i], int(clause[i]), self.outline.tensors[i])
            for i in cases.first
        ]
        return cases.share(given)

    def _choice(self, kind: str, clause: int, tensor: OutputTensor) -> Choice:
        mixture, columns = self.mixture, tensor.columns
        if kind == "head" or (self.tied and kind == "embedding"):
            return self._head(kind, columns)
        if mixture.stacked:
            stacked = len(tensor.shape) > 2 and tensor.shape[-3] > 1
            wanted = mixture.default if stacked else "Q8_0"
        elif kind == "embedding":
            wanted = mixture.embedding or mixture.default
        else:
            wanted = self._matrix(kind, clause)
        why = f"{_word(kind)}: {mixture.default} → {wanted}".lower() if wanted != mixture.default else ""
        return _fitted(wanted, columns, why)

    def _clause(self, kind: str, tensors: np.ndarray) -> np.ndarray:
        """int64 [tensors]: the first clause of the kind's rules that holds for each, −1 where none does."""
        import numpy as np

        index, count = self.way.place[tensors], self.v_count if kind == "v" else self.layers
        if kind in ("down", "gate", "up") and self.experts > 1 and not self.mixture.low_bit:
            # Experts may be many tensors per layer: the layer is read from the name.
            block = self.way.block[tensors]
            index = np.where(block < 0, index, block)
        at = At(index, count, self.gqa, self.experts, self.importance, self.falcon)
        first = np.full(len(tensors), -1, np.int64)
        for number, (_, holds) in enumerate(self._clauses(kind)):
            first[(first < 0) & holds(at)] = number
        return first

    def _clauses(self, kind: str) -> Clauses:
        mixture = self.mixture
        of = {"v": mixture.v, "k": mixture.k, "q": mixture.q, "o": mixture.o, "down": mixture.down}
        return mixture.gate_up if kind in ("gate", "up") else of.get(kind, ())

    def _head(self, kind: str, columns: int) -> Choice:
        mixture = self.mixture
        word = "head" if kind == "head" else "embedding serves as head"
        odd = columns % GGML_TYPES[mixture.default].block != 0
        if (odd or self.falcon) and not mixture.stacked:
            why = f"{word}, columns {columns}" if odd else f"{word} of falcon"
            return _fitted("Q8_0", columns, f"{why}: {mixture.head} → q8_0".lower(), odd and mixture.head != "Q8_0")
        why = f"{word}: {mixture.default} → {mixture.head}".lower() if mixture.head != mixture.default else ""
        return _fitted(mixture.head, columns, why)

    def _matrix(self, kind: str, clause: int) -> str:
        mixture, eight = self.mixture, self.experts == 8
        wanted = self._clauses(kind)[clause][0] if clause >= 0 else mixture.default
        if mixture.low_bit:
            return wanted
        if kind == "v":
            if self.is_70b and wanted in ("Q3_K", "Q4_K"):
                wanted = "Q5_K"
            return "Q8_0" if eight else wanted
        if kind == "k" and eight:
            return "Q8_0"
        if kind == "o" and eight and not self.falcon:
            return mixture.o_moe8 or mixture.default
        return wanted


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
