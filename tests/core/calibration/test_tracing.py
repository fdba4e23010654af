"""Where scales can be moved is found by running a block; what is found keeps the function of the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from core.calibration import folding
from core.calibration.folding import Fold, Folded, Scaled, Scales, folded_statistics
from core.calibration.runner import ALL
from core.calibration.statistics import Statistic
from core.calibration.tracing import find_folds
from core.calibration.walk import Walk
from core.checkpoints import open_checkpoint
from tests.core.calibration.build import model, samples_of, save, text_file

_SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 448}
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "phi": ("Phi", {"intermediate_size": 96, "partial_rotary_factor": 0.5}),
    "phi3": ("Phi3", {"intermediate_size": 96, "num_key_value_heads": 2, "pad_token_id": 2}),
    "opt": ("OPT", {"ffn_dim": 96, "word_embed_proj_dim": 64, "max_position_embeddings": 64}),
    "neox": ("GPTNeoX", {"intermediate_size": 96, "max_position_embeddings": 64}),
    "olmo2": ("Olmo2", {"intermediate_size": 96, "num_key_value_heads": 2}),
    "qwen2": ("Qwen2", {"intermediate_size": 96, "num_key_value_heads": 4}),
}

# (through, last part of the producer's name, its first output) → last parts of the consumers' names
EXPECTED: dict[str, dict[tuple[str, str, int], set[str]]] = {
    "llama": {
        ("norm", "input_layernorm", 0): {"q_proj", "k_proj", "v_proj"},
        ("norm", "post_attention_layernorm", 0): {"gate_proj", "up_proj"},
        ("matrix", "v_proj", 0): {"o_proj"},
        ("matrix", "up_proj", 0): {"down_proj"},
    },
    "gemma3": {
        ("norm", "input_layernorm", 0): {"q_proj", "k_proj", "v_proj"},
        ("norm", "pre_feedforward_layernorm", 0): {"gate_proj", "up_proj"},
        ("matrix", "v_proj", 0): {"o_proj"},
        ("matrix", "up_proj", 0): {"down_proj"},
    },
    "gpt2": {
        ("norm", "ln_1", 0): {"c_attn"},
        ("norm", "ln_2", 0): {"c_fc"},
        ("matrix", "c_attn", 128): {"c_proj"},  # values are the last third
    },
    "bloom": {
        ("norm", "input_layernorm", 0): {"query_key_value"},
        ("norm", "post_attention_layernorm", 0): {"dense_h_to_4h"},
    },
    "mixtral": {
        ("norm", "input_layernorm", 0): {"q_proj", "k_proj", "v_proj"},
        ("norm", "post_attention_layernorm", 0): {"gate", "w1", "w3"},
        ("matrix", "v_proj", 0): {"o_proj"},
        ("matrix", "w3", 0): {"w2"},
    },
    "gpt-oss": {
        ("norm", "input_layernorm", 0): {"q_proj", "k_proj", "v_proj"},
        ("norm", "post_attention_layernorm", 0): {"router", "gate_up_proj"},
        ("matrix", "v_proj", 0): {"o_proj"},
    },
    # One norm before attention and MLP, side by side; the activation between fc1 and fc2 lets nothing through.
    "phi": {
        ("norm", "input_layernorm", 0): {"q_proj", "k_proj", "v_proj", "fc1"},
        ("matrix", "v_proj", 0): {"dense"},
    },
    "phi3": {
        ("norm", "input_layernorm", 0): {"qkv_proj"},
        ("norm", "post_attention_layernorm", 0): {"gate_up_proj"},
        ("matrix", "qkv_proj", 96): {"o_proj"},
        ("matrix", "gate_up_proj", 96): {"down_proj"},
    },
    # ReLU lets scales through.
    "opt": {
        ("norm", "self_attn_layer_norm", 0): {"q_proj", "k_proj", "v_proj"},
        ("norm", "final_layer_norm", 0): {"fc1"},
        ("matrix", "v_proj", 0): {"out_proj"},
        ("matrix", "fc1", 0): {"fc2"},
    },
    "neox": {
        ("norm", "input_layernorm", 0): {"query_key_value"},
        ("norm", "post_attention_layernorm", 0): {"dense_h_to_4h"},
    },
    # Norms stand behind the layers: nothing before them takes scales.
    "olmo2": {
        ("matrix", "v_proj", 0): {"o_proj"},
        ("matrix", "up_proj", 0): {"down_proj"},
    },
    "qwen2": {
        ("norm", "input_layernorm", 0): {"q_proj", "k_proj", "v_proj"},
        ("norm", "post_attention_layernorm", 0): {"gate_proj", "up_proj"},
        ("matrix", "v_proj", 0): {"o_proj"},
        ("matrix", "up_proj", 0): {"down_proj"},
    },
}


def build(folder: Path, kind: str) -> Any:
    if kind not in OTHERS:
        return model(folder, kind)
    import transformers

    stem, given = OTHERS[kind]
    settings = _SMALL | {"bos_token_id": 0, "eos_token_id": 1} | given
    made = getattr(transformers, f"{stem}ForCausalLM")(getattr(transformers, f"{stem}Config")(**settings))
    return save(folder, made)


def last(name: str) -> str:
    parts = [part for part in name.split(".") if part not in ("weight", "bias")]
    return parts[-1]


@pytest.mark.parametrize("kind", EXPECTED)
def test_folds_of_a_block_keep_the_function(tmp_path: Path, kind: str) -> None:
    """The folds that are known of each architecture, and no others; with arbitrary scales in all of them at once,
    transformers computes the same from the folded checkpoint."""
    built = build(tmp_path / "m", kind)
    with open_checkpoint(tmp_path / "m") as checkpoint:
        samples = samples_of(checkpoint, text_file(tmp_path))
        walk = Walk(checkpoint, samples, tmp_path / "walk", "x", ALL)
        with walk.loaded(0) as forward:
            folds = find_folds(walk.skeleton, walk.skeleton.blocks[0], forward)
        assert summary(folds) == EXPECTED[kind]
        folded = Folded(checkpoint, arbitrary(checkpoint, folds))
        changed = {name for name in checkpoint.tensors if folded.changed(name) is not None}
        assert changed == {part.name for fold in folds for part in (*fold.producers, *fold.consumers)}
        with walk.loaded(0) as forward:
            before = forward().clone()
        with walk.loaded(0, folded.changed) as forward:
            after = forward()
        assert float((after - before).norm() / before.norm()) < 1e-4
        ids = torch.from_numpy(samples.ids[:2])
        state = built.state_dict()
        same = {n: folded.read(n).reshape(checkpoint.tensors[n].shape) for n in changed if n in state}
    if len(same) < len(changed):
        return  # stored otherwise than transformers holds it: the walk has loaded it through the conversion
    with torch.no_grad():
        wanted = built(input_ids=ids).logits
        built.load_state_dict(state | same)
        found = built(input_ids=ids).logits
    assert float((found - wanted).norm() / wanted.norm()) < 1e-4


def summary(folds: list[Fold]) -> dict[tuple[str, str, int], set[str]]:
    found: dict[tuple[str, str, int], set[str]] = {}
    for fold in folds:
        key = (fold.through, last(fold.producers[0].name), fold.producers[0].first)
        found.setdefault(key, set()).update(last(part.name) for part in fold.consumers)
    return found


def arbitrary(checkpoint: Any, folds: list[Fold]) -> Scales:
    """Scales between 1/4 and 4, entered by hand."""
    made = Scales()
    torch.manual_seed(1)
    for fold in folds:
        scales = torch.exp2(torch.rand(fold.size) * 4 - 2)
        for part in fold.producers:
            if not part.vector:
                made.multiply(checkpoint, part, (1 / scales).numpy(), outputs=True)
                continue
            entry = made.tensors.get(part.name)
            values = checkpoint.read(part.name).float().reshape(-1).clone()
            if entry is not None and entry.values is not None:
                values = torch.from_numpy(entry.values)
            run = slice(part.first, part.first + fold.size)
            values[run] = (values[run] + part.shift) / scales - part.shift
            made.tensors[part.name] = Scaled(values=values.numpy())
        for part in fold.consumers:
            made.multiply(checkpoint, part, fold.spread(scales).numpy(), outputs=False)
    return made


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt-oss"])
def test_statistics_of_folded_inputs_are_those_that_are_gathered(tmp_path: Path, kind: str) -> None:
    model(tmp_path / "m", kind)
    with open_checkpoint(tmp_path / "m") as checkpoint:
        samples = samples_of(checkpoint, text_file(tmp_path))
        walk = Walk(checkpoint, samples, tmp_path / "walk", "x", ALL)
        with walk.loaded(0) as forward:
            folds = find_folds(walk.skeleton, walk.skeleton.blocks[0], forward)
        scales = arbitrary(checkpoint, folds)
        before = walk.gather(0)
        gathered = walk.gather(0, replace=Folded(checkpoint, scales).changed)
        derived = folded_statistics(before, scales, checkpoint)
    for name, known in gathered.items():
        assert derived[name].counts == known.counts
        for kind_, array in derived[name].values.items():
            other = known.values[kind_]
            assert np.linalg.norm(array - other) <= 1e-4 * np.linalg.norm(other), (name, kind_)
    assert any(Statistic.RANGE not in known.values for known in derived.values())


def test_scales_are_kept_and_read_back(tmp_path: Path) -> None:
    scales = Scales({"a": Scaled(rows=np.arange(3, dtype=np.float32)), "b": Scaled(values=np.ones(2, np.float32))})
    folding.save(tmp_path / "fold.npz", scales, {"out": ["a line"]})
    read = folding.load(tmp_path / "fold.npz")
    assert read is not None
    assert read[1] == {"out": ["a line"]}
    assert np.array_equal(read[0].tensors["a"].rows, [0, 1, 2])
    assert read[0].tensors["a"].columns is None
    (tmp_path / "fold.npz").write_bytes((tmp_path / "fold.npz").read_bytes()[:100])
    assert folding.load(tmp_path / "fold.npz") is None
    assert folding.load(tmp_path / "none.npz") is None
