"""Outlines written by hand: the tensors of llama-like models, under GGUF or Hugging Face names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from core.formats.base import Format, Quantized
from core.roles import role_of
from core.targets.base import (
    Assignment,
    Layout,
    Outline,
    OutputTensor,
    Plain,
    RowSource,
    StoredTensor,
    Target,
)

HF = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


@dataclass(frozen=True)
class Stack(RowSource):
    """Several tensors made into one."""

    parts: tuple[str, ...]

    def names(self) -> tuple[str, ...]:
        return self.parts

    def read(self, checkpoint, start, stop):
        raise NotImplementedError


def tensor(name: str, shape: tuple[int, ...], source: str = "", dtype: str = "BF16") -> OutputTensor:
    role = role_of(source or name)
    linear = role.kind not in ("norm", "bias", "embedding", "position") and len(shape) >= 2
    return OutputTensor(name, Plain(source or name), shape, dtype, role, linear)


def stacked(name: str, shape: tuple[int, ...], sources: Sequence[str], dtype: str = "BF16") -> OutputTensor:
    return OutputTensor(name, Stack(tuple(sources)), shape, dtype, role_of(sources[0]), True)


def llama(
    layers: int,
    *,
    hidden: int = 256,
    ffn: int = 512,
    heads: int = 8,
    kv_heads: int = 4,
    vocab: int = 512,
    experts: int = 0,
    tied: bool = False,
    gguf: bool = True,
    arch: str = "llama",
) -> Outline:
    """A decoder with the usual seven matrices per layer, or with stacked experts."""

    def make(name: str, shape: tuple[int, ...], layer: int | None = None) -> OutputTensor:
        if layer is None:
            outer = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
            inside, source = f"{name}.weight", f"{outer[name]}.weight"
        else:
            inside, source = f"blk.{layer}.{name}.weight", f"model.layers.{layer}.{HF.get(name, name)}.weight"
        return tensor(inside if gguf else source, shape, source)

    def block(n: int) -> Iterable[OutputTensor]:
        yield make("attn_norm", (hidden,), n)
        yield make("attn_q", (hidden, hidden), n)
        yield make("attn_k", (hidden * kv_heads // heads, hidden), n)
        yield make("attn_v", (hidden * kv_heads // heads, hidden), n)
        yield make("attn_output", (hidden, hidden), n)
        yield make("ffn_norm", (hidden,), n)
        if not experts:
            yield make("ffn_gate", (ffn, hidden), n)
            yield make("ffn_up", (ffn, hidden), n)
            yield make("ffn_down", (hidden, ffn), n)
            return
        yield make("ffn_gate_inp", (experts, hidden), n)
        for stem, w, shape in (
            ("ffn_gate", "w1", (experts, ffn, hidden)),
            ("ffn_up", "w3", (experts, ffn, hidden)),
            ("ffn_down", "w2", (experts, hidden, ffn)),
        ):
            base = f"model.layers.{n}.block_sparse_moe.experts"
            yield stacked(f"blk.{n}.{stem}_exps.weight", shape, [f"{base}.{e}.{w}.weight" for e in range(experts)])

    tensors = [make("token_embd", (vocab, hidden)), make("output_norm", (hidden,))]
    tensors += [] if tied else [make("output", (vocab, hidden))]
    for n in range(layers):
        tensors += block(n)
    return Outline(tuple(tensors), arch=arch, layers=layers, heads=heads, kv_heads=kv_heads, experts=experts, tied=tied)


class AnyTarget(Target):
    """Carries every format; `refusing` (format name, tensor name) pairs excepted."""

    name = "any"
    title = "for tests of recipes"
    help = ""
    folder = False

    def __init__(self, refusing: Iterable[tuple[str, str]] = ()) -> None:
        self.refusing = set(refusing)

    def outline(self, checkpoint) -> Outline:
        raise NotImplementedError

    def refuses(self, format: Format, tensor: OutputTensor) -> str | None:
        return "not here" if (format.name, tensor.name) in self.refusing else None

    def keeps(self, tensor: OutputTensor) -> Format:
        raise NotImplementedError

    def stored(self, assignment: Assignment) -> tuple[StoredTensor, ...]:
        raise NotImplementedError

    def layout(self, checkpoint, outline, assignments, label="") -> Layout:
        raise NotImplementedError

    def store(self, assignment: Assignment, quantized: Quantized, start: int, stop: int) -> Iterator:
        raise NotImplementedError
