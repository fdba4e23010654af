"""What a model architecture is to the converter: a record of tensors and key-values. The records themselves are in
families/, listed in architectures.py; what is done with them is in convert.py."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from core.checkpoints.gguf import Value
from core.targets.base import RowSource
from core.targets.gguf.hyper import Hyper
from core.targets.gguf.ways import FIRST_HALF, SECOND_HALF, STACKED, STRAIGHT, Way

Pairs = list[tuple[str, Value]]
# Whether llama.cpp asks for a tensor, takes it, or has no place for it.
MUST, MAY, NO = "must", "may", "no"


@dataclass(frozen=True)
class Source:
    """One spelling of a part in checkpoints.

    stem    the name without prefix and ending; "{}" in it stands for the number of an expert
    way     what is done with it
    ending  ".weight", and ".bias" for the bias, stand behind the stem; else the stem is the whole name
    """

    stem: str
    way: Way = STRAIGHT
    ending: bool = True


@dataclass(frozen=True)
class Part:
    """One tensor of the GGUF, or one of every layer, with its bias.

    name          without `blk.N.` and `.weight`
    sources       the first one that is in the checkpoint is taken
    shape         of the weight, in words of keys.SIZES; a bias has the first of them
    weight, bias  MUST, MAY or NO
    when          whether this layer of the model has it
    """

    name: str
    sources: tuple[Source, ...]
    shape: tuple[str, ...]
    weight: str = MUST
    bias: str = NO
    when: Callable[[Hyper, int], bool] | None = None


@dataclass(frozen=True)
class Computed:
    """A tensor that no checkpoint holds."""

    name: str
    source: RowSource
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Architecture:
    """One architecture of GGUF and the Hugging Face classes that are written as it.

    first, layer, last  parts before, in and behind the layers; the embedding is the first of `first`
    roots      prefixes of the model's names, the usual one first
    layers     of a layer's names, behind the root
    aliases    llama's word for a setting → the word in this model's config.json
    defaults   settings that its config.json may leave out
    inner      entry of config.json that holds the settings of the language model, where there may be one
    ignored    pattern of names that have no place in a GGUF → why they need none
    sizes      words of shapes that differ from keys.SIZES
    check      raises TargetError for what llama.cpp would compute otherwise; returns notes
    pairs      key-values, under the architecture's prefix where they do not begin with "tokenizer."
    computed   tensors made from the config
    causal     whether it predicts tokens: only then a head may be missing
    """

    name: str
    classes: tuple[str, ...]
    first: tuple[Part, ...]
    layer: tuple[Part, ...]
    last: tuple[Part, ...]
    check: Callable[[Hyper], Sequence[str]]
    pairs: Callable[[Hyper], Pairs]
    computed: Callable[[Hyper], Sequence[Computed]] = lambda hyper: ()
    roots: tuple[str, ...] = ("model.",)
    layers: str = "layers"
    aliases: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    inner: str = ""
    ignored: Mapping[str, str] = field(default_factory=dict)
    sizes: Mapping[str, Callable[[Hyper], int]] = field(default_factory=dict)
    causal: bool = True

    def ignores(self, name: str) -> str:
        """Why the tensor needs no place, or ""."""
        for pattern, why in {**_IGNORED, **self.ignored}.items():
            if re.search(pattern, name):
                return why
        return ""


_IGNORED = {r"rotary_emb\.(?:inv_freq|cos_cached|sin_cached)$": "llama.cpp computes it"}


def part(name: str, stem: str, *shape: str, weight: str = MUST, bias: str = NO, way: Way = STRAIGHT) -> Part:
    """A part with one spelling."""
    return Part(name, (Source(stem, way),), shape, weight, bias)


def norm(
    name: str, stem: str, *, weight: str = MUST, bias: str = NO, way: Way = STRAIGHT, size: str = "hidden"
) -> Part:
    return Part(name, (Source(stem, way),), (size,), weight, bias)


def head(stem: str = "lm_head") -> Part:
    return Part("output", (Source(stem),), ("vocabulary", "hidden"), MAY)


def experts(*stems: tuple[str, str, str], fused: str = "mlp.experts", ffn: str = "expert_ffn") -> tuple[Part, ...]:
    """A layer's experts as three stacks. They come one by one, or as transformers 5 holds them in memory: gate and up
    in one tensor.

    stems  spellings of gate, up and down, with "{}" for the expert's number
    fused  stem of the tensors of all experts
    """
    gates, ups, downs = zip(*stems, strict=True)
    pair, down = f"{fused}.gate_up_proj", f"{fused}.down_proj"
    wide, narrow = ("experts", ffn, "hidden"), ("experts", "hidden", ffn)

    def stack(name: str, stems: Sequence[str], shape: tuple[str, ...], whole: Source) -> Part:
        return Part(name, (*(Source(stem, STACKED) for stem in stems), whole), shape)

    return (
        stack("ffn_gate_exps", gates, wide, Source(pair, FIRST_HALF, ending=False)),
        stack("ffn_up_exps", ups, wide, Source(pair, SECOND_HALF, ending=False)),
        stack("ffn_down_exps", downs, narrow, Source(down, ending=False)),
    )
