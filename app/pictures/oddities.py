"""A small checkpoint whose tensors are odd in one way each, for pictures and tests of panels that find such things."""

from __future__ import annotations

import json
import struct
from pathlib import Path

LAYER = "model.layers.0."
SPIKE = f"{LAYER}mlp.down_proj.weight"  # and a dead column, and three loud channels
NAN = f"{LAYER}mlp.up_proj.weight"
HUMPS = f"{LAYER}mlp.gate_proj.weight"


def write_oddities(folder: Path) -> Path:
    """A Llama of one layer whose tensors are odd in one way each: a spike, loud channels and a dead column in `down`,
    NaN in `up`, two humps in `gate`, heavy tails in `q`. Made-up weights, the same each time."""
    import numpy as np

    hidden, inner = 512, 1536
    rng = np.random.default_rng(7)

    def gaussian(rows: int, columns: int) -> np.ndarray:
        return rng.standard_normal((rows, columns), np.float32) * np.float32(0.02)

    down = gaussian(hidden, inner)
    down[:, [200, 840, 1311]] *= 12
    down[:, 77] = 0
    down[311, 1033] = 1.9
    up = gaussian(inner, hidden)
    up[700, 40] = np.nan
    gate = gaussian(inner, hidden) * np.float32(0.4)
    gate += np.where(rng.random(gate.shape) < 0.5, np.float32(0.05), np.float32(-0.05))
    tensors = {
        "model.embed_tokens.weight": gaussian(512, hidden),
        f"{LAYER}input_layernorm.weight": np.ones(hidden, np.float32),
        f"{LAYER}self_attn.q_proj.weight": rng.standard_t(3, (hidden, hidden)).astype(np.float32) * np.float32(0.01),
        f"{LAYER}self_attn.k_proj.weight": gaussian(hidden, hidden),
        f"{LAYER}self_attn.v_proj.weight": gaussian(hidden, hidden),
        f"{LAYER}self_attn.o_proj.weight": gaussian(hidden, hidden),
        f"{LAYER}post_attention_layernorm.weight": np.ones(hidden, np.float32),
        f"{LAYER}mlp.gate_proj.weight": gate,
        f"{LAYER}mlp.up_proj.weight": up,
        SPIKE: down,
        "model.norm.weight": np.ones(hidden, np.float32),
    }
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": 1,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "vocab_size": 512,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
    }
    place = folder / "oddities"
    place.mkdir()
    (place / "config.json").write_text(json.dumps(config), encoding="utf-8")
    header, offset = {}, 0
    for name, w in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(w.shape), "data_offsets": [offset, offset + w.nbytes]}
        offset += w.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (place / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for w in tensors.values():
            file.write(np.ascontiguousarray(w).tobytes())
    return place
