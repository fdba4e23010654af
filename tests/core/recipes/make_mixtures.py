"""Writes mixtures_by_llama.npz: which type llama.cpp's own quantizer gave each tensor of some models, in every mixture.

    PYTHONPATH=CYLLAMA:. python -m tests.core.recipes.make_mixtures [MODEL …]

cyllama is no dependency: `pip install --no-deps --target CYLLAMA cyllama==0.2.18` (llama.cpp b9190). The models are
thin: two rows per matrix are enough, as llama.cpp looks at columns, names and settings only.
"""

from __future__ import annotations

import ctypes
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from core.checkpoints.gguf import Value, ValueType
from core.targets.base import StoredTensor
from core.targets.gguf.architectures import BY_CLASS
from core.targets.gguf.filetype import FILE_TYPES
from core.targets.gguf.hyper import Hyper
from core.targets.gguf.keys import SIZES, u32
from core.targets.gguf.record import MAY, NO
from core.targets.gguf.writer import build

OUT = Path(__file__).with_name("mixtures_by_llama.npz")
VOCABULARY = 64
# Newer than the quantizer that was asked; and floats, of which nothing is to be asked.
UNASKED = {"Q2_0", "NVFP4", "F32", "F16", "BF16"}
MIXTURES = [name for name in FILE_TYPES if name not in UNASKED]


def _config(layers: int, heads: int, kv_heads: int, hidden: int = 256, ffn: int = 512, **more: Any) -> dict[str, Any]:
    return {
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "max_position_embeddings": 512,
        "vocab_size": VOCABULARY,
        **more,
    }


_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 256, "norm_topk_prob": True}

# name → class of transformers, its settings, whether there is a head.
MODELS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "llama 7": ("Llama", _config(7, 8, 8), True),
    "llama 22 grouped": ("Llama", _config(22, 8, 2), True),
    "llama 32": ("Llama", _config(32, 8, 8), True),
    "llama 65B": ("Llama", _config(80, 8, 8), True),
    "llama 70B": ("Llama", _config(80, 16, 2), True),
    "qwen2 72B": ("Qwen2", _config(80, 16, 2), True),
    "qwen2 80, not grouped": ("Qwen2", _config(80, 8, 8), True),
    "llama tied": ("Llama", _config(16, 8, 4), False),
    "llama odd": ("Llama", _config(16, 8, 2, hidden=320, ffn=96), True),
    "llama odder": ("Llama", _config(16, 8, 2, ffn=100), True),
    "llama odd tied": ("Llama", _config(16, 8, 2, hidden=96, ffn=256), False),
    "mixtral 4": ("Mixtral", _config(16, 8, 2, num_local_experts=4, num_experts_per_tok=2), True),
    "mixtral 8": ("Mixtral", _config(32, 16, 4, num_local_experts=8, num_experts_per_tok=2), True),
    "mixtral 8 odd": ("Mixtral", _config(16, 8, 8, hidden=96, num_local_experts=8, num_experts_per_tok=2), True),
    "qwen2moe": (
        "Qwen2Moe",
        _config(24, 8, 8, shared_expert_intermediate_size=512, num_experts=60, **_EXPERTS | {"norm_topk_prob": False}),
        True,
    ),
    "qwen3moe": ("Qwen3Moe", _config(24, 8, 1, num_experts=16, head_dim=64, **_EXPERTS), True),
    "gemma2": ("Gemma2", _config(26, 8, 4, head_dim=64, sliding_window=8), False),
    "phi3": ("Phi3", _config(32, 8, 8), True),
    "starcoder2": ("Starcoder2", _config(16, 8, 2), True),
    "gpt2": (
        "GPT2",
        {"n_layer": 16, "n_head": 8, "n_embd": 256, "n_positions": 512, "vocab_size": VOCABULARY, "n_inner": 512},
        False,
    ),
    "falcon": ("Falcon", _config(32, 8, 1), True),
    "bert": ("Bert", _config(12, 8, 8, type_vocab_size=2), False),
}


def write(name: str, path: Path) -> Path:
    """The model as a GGUF of 32-bit floats."""
    kind, config, headed = MODELS[name]
    arch = BY_CLASS.get(f"{kind}ForCausalLM") or BY_CLASS.get(f"{kind}LMHeadModel") or BY_CLASS[f"{kind}Model"]
    hyper = Hyper(config, path, arch.aliases, arch.defaults)
    pairs = [(k if k.startswith("tokenizer.") else f"{arch.name}.{k}", v) for k, v in arch.pairs(hyper)]
    pairs = [
        ("general.architecture", Value.of(ValueType.STRING, arch.name)),
        *pairs,
        (f"{arch.name}.vocab_size", u32(VOCABULARY)),
        ("tokenizer.ggml.model", Value.of(ValueType.STRING, "none")),
    ]
    sizes = {**SIZES, **arch.sizes, "vocabulary": lambda h: VOCABULARY}
    tensors = []
    places = [("", p) for p in arch.first]
    for layer in range(hyper.whole("num_hidden_layers")):
        places += [(f"blk.{layer}.", p) for p in arch.layer if p.when is None or p.when(hyper, layer)]
    for prefix, part in (*places, *(("", p) for p in arch.last)):
        if part.name == "output" and part.weight == MAY and not headed:
            continue
        shape = [sizes[word](hyper) for word in part.shape]
        thin = (*shape[:-2], min(2, shape[-2]), shape[-1]) if len(shape) > 1 else (shape[0],)
        for ending, need, own in ((".weight", part.weight, thin), (".bias", part.bias, (shape[0],))):
            if need != NO:
                tensors.append(StoredTensor(f"{prefix}{part.name}{ending}", "F32", own, 4 * int(np.prod(own))))
    head, offsets, nbytes = build(pairs, tensors)
    data = np.zeros(nbytes, np.uint8)
    data[: len(head)] = np.frombuffer(head, np.uint8)
    random = np.random.default_rng(0)
    for tensor, offset in zip(tensors, offsets, strict=True):
        values = random.standard_normal(tensor.nbytes // 4, np.float32)
        data[offset : offset + tensor.nbytes] = values.view(np.uint8)
    data.tofile(path)
    return path


class _Entry(ctypes.Structure):
    """llama_model_imatrix_data."""

    _fields_ = [("name", ctypes.c_char_p), ("data", ctypes.c_void_p), ("size", ctypes.c_size_t)]


def _importance(tensors: list[Any]) -> tuple[Any, list[Any]]:
    """Ones for every matrix, as llama.cpp takes them, and what must be kept alive meanwhile."""
    matrices = [t for t in tensors if len(t.shape) > 1]
    ones = np.ones(max(int(t.shape[0]) * int(np.prod(t.shape[2:])) for t in matrices), np.float32)
    entries = (_Entry * (len(matrices) + 1))()
    for entry, tensor in zip(entries, matrices, strict=False):
        size = int(tensor.shape[0]) * int(np.prod(tensor.shape[2:]))
        entry.name, entry.data, entry.size = tensor.name.encode(), ones.ctypes.data, size
    return entries, [ones]


def main() -> None:
    import gguf
    from cyllama.llama import llama_cpp

    found: dict[str, np.ndarray] = dict(np.load(OUT)) if sys.argv[1:] else {}
    with tempfile.TemporaryDirectory() as folder:
        for name in sys.argv[1:] or MODELS:
            source = write(name, Path(folder) / "source.gguf")
            tensors = gguf.GGUFReader(source).tensors
            entries, _alive = _importance(tensors)
            for importance in (False, True):
                rows = []
                for mixture in MIXTURES:
                    params = llama_cpp.LlamaModelQuantizeParams()
                    params.ftype, params.nthread = FILE_TYPES[mixture], 1
                    if importance:
                        # The pointer cannot be set from Python; it stands behind four numbers and eight flags.
                        at = id(params) + 24 + 4 * 4 + 8
                        assert ctypes.c_uint64.from_address(at).value == 0
                        ctypes.c_uint64.from_address(at).value = ctypes.addressof(entries)
                    out = Path(folder) / "out.gguf"
                    out.unlink(missing_ok=True)
                    try:
                        llama_cpp.model_quantize(str(source), str(out), params)
                    except RuntimeError:
                        rows.append([255] * len(tensors))  # refused
                        continue
                    kinds = {t.name: int(t.tensor_type) for t in gguf.GGUFReader(out).tensors}
                    rows.append([kinds[t.name] for t in tensors])
                found[f"{name}/{'with' if importance else 'without'}"] = np.array(rows, np.uint8)
    np.savez_compressed(OUT, **found | {"mixtures": np.array(MIXTURES)})


if __name__ == "__main__":
    main()
