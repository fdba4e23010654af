"""Tiny models with tokenizers to calibrate, and an independent look at what their layers are given. No tests here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from core.calibration.text import Samples, TextSettings, read_samples
from core.checkpoints.base import Checkpoint
from tests.core.targets.build import TEXTS, gpt2_like, save_tokenizer

SAMPLES, LENGTH = 6, 24
_BASE = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 448}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"intermediate_size": 96, "num_key_value_heads": 2}),
    "mixtral": ("Mixtral", {"intermediate_size": 96, "num_key_value_heads": 2, "num_local_experts": 4}),
    "gpt2": ("GPT2LMHead", {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 64}),
    "gemma3": (
        "Gemma3",
        {"intermediate_size": 96, "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 8},
    ),
    "gpt-oss": (
        "GptOss",
        {
            "intermediate_size": 96,
            "num_key_value_heads": 2,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "head_dim": 16,
        },
    ),
    "bloom": ("Bloom", {"n_layer": 3, "n_head": 4}),
}


def model(folder: Path, kind: str, **options: Any) -> Any:
    """A random model saved with its tokenizer; float32, in evaluation mode."""
    import transformers

    stem, settings = MODELS[kind]
    config_class = {"GPT2LMHead": "GPT2Config", "Gemma3": "Gemma3TextConfig"}.get(stem, f"{stem}Config")
    name = "GPT2LMHeadModel" if kind == "gpt2" else f"{stem}ForCausalLM"
    given = settings | options
    base = {key: value for key, value in _BASE.items() if kind != "gpt2" or key == "vocab_size"}
    if kind == "bloom":
        base = {key: _BASE[key] for key in ("hidden_size", "vocab_size")}
    torch.manual_seed(0)
    config = getattr(transformers, config_class)(**base, bos_token_id=0, eos_token_id=1, pad_token_id=2, **given)
    return save(folder, getattr(transformers, name)(config))


def save(folder: Path, made: Any) -> Any:
    """Any model with random weights, norms around 1; as `model`."""
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.15 + (parameter.dim() == 1))
    made.save_pretrained(folder)
    save_tokenizer(folder, gpt2_like())
    return made.eval()


def text_file(folder: Path) -> Path:
    path = folder / "calibration.txt"
    path.write_text("".join(TEXTS) * 8, encoding="utf-8")
    return path


def samples_of(checkpoint: Checkpoint, text: Path) -> Samples:
    return read_samples(checkpoint, TextSettings(text, SAMPLES, LENGTH))


class Hooked:
    """Σ x xᵀ, tokens and largest |x| of every Linear and Conv1D, by plain forward hooks, float64."""

    def __init__(self, model: Any, ids: torch.Tensor) -> None:
        from transformers.pytorch_utils import Conv1D

        self.products: dict[str, torch.Tensor] = {}
        self.counts: dict[str, int] = {}
        self.largest: dict[str, torch.Tensor] = {}
        hooks = [
            module.register_forward_pre_hook(self._hook(name))
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear | Conv1D)
        ]
        with torch.no_grad():
            for sample in ids:
                model(input_ids=sample[None])
        for hook in hooks:
            hook.remove()

    def _hook(self, name: str) -> Any:
        def hook(module: Any, args: Any) -> None:
            x = args[0].detach().reshape(-1, args[0].shape[-1]).double()
            self.products[name] = self.products.get(name, 0) + x.T @ x
            self.counts[name] = self.counts.get(name, 0) + len(x)
            self.largest[name] = torch.maximum(self.largest.get(name, torch.zeros(())), x.abs().amax(0))

        return hook

    def importance(self, name: str) -> torch.Tensor:
        return self.products[name].diagonal() / self.counts[name]

    def hessian(self, name: str) -> torch.Tensor:
        return 2 * self.products[name] / self.counts[name]
