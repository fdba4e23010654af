"""Outlines made up for the tests of the table and the rules: no files behind them."""

from __future__ import annotations

from core.roles import role_of
from core.targets.base import Outline, OutputTensor, Plain

LINEARS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def tensor(name: str, shape: tuple[int, ...] = (64, 64), dtype: str = "BF16") -> OutputTensor:
    return OutputTensor(name, Plain(name), shape, dtype, role_of(name), linear=len(shape) > 1)


def small_outline(layers: int = 12) -> Outline:
    """Names as in a GGUF: embedding, head, norms, seven linears per layer."""
    tensors = [tensor("token_embd.weight", (256, 64)), tensor("output_norm.weight", (64,), "F32")]
    for layer in range(layers):
        tensors.append(tensor(f"blk.{layer}.attn_norm.weight", (64,), "F32"))
        tensors += [tensor(f"blk.{layer}.{part}.weight", (64, 64 + 8 * i)) for i, part in enumerate(LINEARS)]
    return Outline(tuple(tensors), layers=layers)


def large_outline(layers: int = 61, experts: int = 272) -> Outline:
    """About 50,000 tensors, as a mixture of experts has them in Hugging Face's names."""
    tensors = [tensor("model.embed_tokens.weight", (129280, 7168))]
    for layer in range(layers):
        head = f"model.layers.{layer}"
        tensors += [tensor(f"{head}.self_attn.{p}_proj.weight", (7168, 2048)) for p in ("q", "k", "v", "o")]
        for expert in range(experts):
            tensors += [
                tensor(f"{head}.mlp.experts.{expert}.{p}_proj.weight", (2048, 7168)) for p in ("gate", "up", "down")
            ]
    return Outline(tuple(tensors), layers=layers, experts=experts)
