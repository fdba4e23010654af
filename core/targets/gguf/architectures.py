"""The models that are converted. A record of one is in families/; what all of them share is in convert.py."""

from __future__ import annotations

from core.targets.gguf.families import bert, gemma, gpt, llama, phi, qwen
from core.targets.gguf.record import Architecture

ARCHITECTURES: tuple[Architecture, ...] = (
    llama.LLAMA,
    llama.MIXTRAL,
    qwen.QWEN2,
    qwen.QWEN2_MOE,
    qwen.QWEN3,
    qwen.QWEN3_MOE,
    gemma.GEMMA,
    gemma.GEMMA2,
    gemma.GEMMA3,
    phi.PHI2,
    phi.PHI3,
    gpt.GPT2,
    gpt.STARCODER,
    gpt.STARCODER2,
    gpt.GPTNEOX,
    gpt.BLOOM,
    gpt.FALCON,
    gpt.MPT,
    gpt.NEMOTRON,
    llama.GRANITE,
    llama.SMOLLM3,
    llama.OLMO,
    llama.OLMO2,
    llama.OLMOE,
    llama.COHERE,
    llama.STABLELM,
    bert.BERT,
    bert.XLM_ROBERTA,
)

BY_CLASS = {name: arch for arch in ARCHITECTURES for name in arch.classes}
