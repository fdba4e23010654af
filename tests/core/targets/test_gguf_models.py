"""Converted models through other people's software: llama.cpp computes the logits that transformers computes from the
folder, transformers' own GGUF loader finds the very weights, gguf reads the metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from tests.core.targets.build import assemble, gpt2_like, matrices, save_model, save_tokenizer
from tests.core.targets.llama_cpp import Answer, ask

IDS = [5, 9, 17, 300, 2, 44, 101, 7]
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 500.0,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
    "attention_factor": 1.5,
}
MODELS: dict[str, dict[str, Any]] = {
    "grouped heads": {},
    "tied": {"tie_word_embeddings": True},
    "llama 3 rope": {"rope_parameters": LLAMA3_ROPE, "head_dim": 32},
    "linear rope": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    "yarn rope": {"rope_parameters": YARN_ROPE, "head_dim": 32},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "wide heads": {"head_dim": 48, "num_key_value_heads": 4},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    made = {}
    for number, (name, options) in enumerate(MODELS.items()):
        made[name] = save_model(root / str(number), seed=number, **options)
        save_tokenizer(made[name], gpt2_like())
    return made


@pytest.fixture(scope="module")
def files(folders, tmp_path_factory) -> dict[str, Path]:
    """Every weight in f32: what remains between the two sides is the order of additions."""
    root = tmp_path_factory.mktemp("files")
    made = {}
    for number, (name, folder) in enumerate(folders.items()):
        made[name] = root / f"{number}.gguf"
        assemble(folder, "gguf", made[name], lambda t: "f32", slice_rows=7)
    return made


@pytest.fixture(scope="module")
def answers(files) -> dict[str, Answer]:
    found = ask(*((path, ["Hello, it's 12345!"], IDS) for path in files.values()))
    return dict(zip(files, found, strict=True))


def reference(folder: Path) -> np.ndarray:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        return model(torch.tensor([IDS])).logits[0].numpy()


@pytest.mark.parametrize("name", MODELS)
def test_llama_cpp_computes_the_same_logits(folders, answers, name) -> None:
    answer = answers[name]
    assert not answer.error
    assert answer.size == 448
    wanted = reference(folders[name])
    assert wanted.std() > 0.3
    # The key-value cache is 16 bit there. Without rope scaling, or with rows out of order, the difference is above 1.
    apart = np.abs(answer.logits - wanted)
    assert apart.mean() < 2e-3
    assert apart.max() < 2e-2


@pytest.mark.parametrize("name", [n for n in MODELS if "rope" not in n])
def test_transformers_loads_the_very_weights(folders, files, name) -> None:
    from transformers import AutoModelForCausalLM

    path = files[name]
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    source = AutoModelForCausalLM.from_pretrained(folders[name], dtype=torch.float32)
    theirs, ours = source.state_dict(), model.state_dict()
    # Its list of llama's tensors knows no biases.
    compared = [n for n in theirs if not n.endswith(".bias")]
    assert len(compared) >= 20
    for n in compared:
        assert torch.equal(theirs[n], ours[n]), n


def test_tied_head_is_left_out(folders, files) -> None:
    names = {t.name for t in gguf.GGUFReader(files["tied"]).tensors}
    assert "token_embd.weight" in names
    assert "output.weight" not in names


def test_metadata_is_what_llama_cpps_converter_writes(folders, files) -> None:
    reader = gguf.GGUFReader(files["llama 3 rope"])
    fields = {k: f for k, f in reader.fields.items() if not k.startswith(("GGUF.", "tokenizer."))}
    types = {k: f.types[0].name for k, f in fields.items()}
    values = {k: f.contents() for k, f in fields.items()}
    assert values == {
        "general.architecture": "llama",
        "general.type": "model",
        "general.name": folders["llama 3 rope"].name,
        "general.size_label": "144K",
        "llama.block_count": 2,
        "llama.context_length": 512,
        "llama.embedding_length": 64,
        "llama.feed_forward_length": 96,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 32,
        "llama.attention.value_length": 32,
        "llama.attention.layer_norm_rms_epsilon": pytest.approx(1e-5),
        "llama.vocab_size": 448,
        "llama.rope.dimension_count": 32,
        "llama.rope.freq_base": 500.0,
        "general.quantization_version": 2,
        "general.file_type": 0,
    }
    assert {k for k, t in types.items() if t == "STRING"} == {
        "general.architecture",
        "general.type",
        "general.name",
        "general.size_label",
    }
    floats = {"llama.attention.layer_norm_rms_epsilon", "llama.rope.freq_base"}
    assert {k for k, t in types.items() if t == "FLOAT32"} == floats
    assert {t for k, t in types.items() if k not in floats} == {"STRING", "UINT32"}
    total = sum(t.n_elements for t in reader.tensors if t.name != "rope_freqs.weight")
    assert gguf.size_label(total, 0, 0, 0) == values["general.size_label"]


def test_rope_factors_are_llama_cpps(files) -> None:
    """The factors of the converter, from its own description of the three ranges."""
    tensor = next(t for t in gguf.GGUFReader(files["llama 3 rope"]).tensors if t.name == "rope_freqs.weight")
    assert tensor.tensor_type.name == "F32"
    wanted = []
    for i in range(0, 32, 2):
        wavelength = 2 * np.pi * 500.0 ** (i / 32)
        if wavelength < 64 / 4:
            wanted.append(1.0)
        elif wavelength > 64 / 1:
            wanted.append(8.0)
        else:
            smooth = (64 / wavelength - 1) / (4 - 1)
            wanted.append(1 / ((1 - smooth) / 8 + smooth))
    assert 1.0 in wanted
    assert 8.0 in wanted
    np.testing.assert_allclose(tensor.data, wanted, rtol=2e-6)


def test_both_spellings_of_the_rope_settings_give_the_same_file(folders, tmp_path) -> None:
    for name in ("llama 3 rope", "linear rope", "yarn rope"):
        new = folders[name]
        config = json.loads((new / "config.json").read_text())
        rope = config.pop("rope_parameters")
        config["rope_theta"] = rope.pop("rope_theta")
        config["rope_scaling"] = rope
        old = tmp_path / name / new.name
        old.mkdir(parents=True)
        for file in new.iterdir():
            (old / file.name).write_bytes(file.read_bytes())
        (old / "config.json").write_text(json.dumps(config))
        a, b = tmp_path / "a.gguf", tmp_path / "b.gguf"
        assemble(new, "gguf", a)
        assemble(old, "gguf", b)
        assert a.read_bytes() == b.read_bytes()


def test_quantized_models_load_and_stay_close(folders, tmp_path) -> None:
    """q8_0 of the right tensors in the right order: the logits move a little, and not not at all."""
    out = tmp_path / "q8.gguf"
    assemble(folders["grouped heads"], "gguf", out, matrices("q8_0"), label="Q8_0", slice_rows=16)
    (answer,) = ask((out, [], IDS))
    assert not answer.error
    moved = np.abs(answer.logits - reference(folders["grouped heads"])).max()
    assert 1e-3 < moved < 0.15
    reader = gguf.GGUFReader(out)
    assert reader.fields["general.file_type"].contents() == 7
    kinds = {t.name: t.tensor_type.name for t in reader.tensors}
    assert kinds["blk.0.attn_q.weight"] == kinds["output.weight"] == "Q8_0"
    assert kinds["token_embd.weight"] == "BF16"
    assert {k for n, k in kinds.items() if "norm" in n} == {"F32"}


def test_order_of_tensors_and_of_rows(folders, files) -> None:
    """Against a permutation written out row by row."""
    tensors = {t.name: t for t in gguf.GGUFReader(files["grouped heads"]).tensors}
    names = list(tensors)
    assert names[0] == "token_embd.weight"
    assert names[-2:] == ["output_norm.weight", "output.weight"]
    assert names[1:10] == [
        f"blk.0.{n}.weight"
        for n in (
            "attn_norm",
            "attn_q",
            "attn_k",
            "attn_v",
            "attn_output",
            "ffn_norm",
            "ffn_gate",
            "ffn_up",
            "ffn_down",
        )
    ]
    from safetensors.torch import load_file

    source = load_file(folders["grouped heads"] / "model.safetensors")
    for part, heads in (("q", 4), ("k", 2)):
        w = source[f"model.layers.1.self_attn.{part}_proj.weight"].float().numpy()
        stored = tensors[f"blk.1.attn_{part}.weight"].data
        size = len(w) // heads
        for head in range(heads):
            for i in range(size // 2):
                for half in range(2):
                    row = head * size + 2 * i + half
                    assert np.array_equal(stored[row], w[head * size + half * (size // 2) + i])
