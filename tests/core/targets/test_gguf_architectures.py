"""Every architecture that is converted: llama.cpp computes from the F32 file what transformers computes from the
folder, and about the same from quantized ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from core.checkpoints import open_checkpoint
from core.errors import TargetError
from core.formats import get_format
from core.targets import get_target
from core.targets.gguf.architectures import ARCHITECTURES
from tests.core.targets.build import assemble, matrices
from tests.core.targets.llama_cpp import Answer, ask

IDS = [5, 9, 17, 90, 2, 44, 101, 7, 63, 30, 31, 8]
WORDS = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
GPT = {
    "vocab_size": 128,
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
PLAIN = {k: v for k, v in WORDS.items() if k != "num_key_value_heads"}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "long_factor": [1.0 + 0.5 * i for i in range(8)],
    "short_factor": [1.0 + 0.1 * i for i in range(8)],
}
GEMMA = WORDS | {"head_dim": 32, "query_pre_attn_scalar": 32, "num_hidden_layers": 6}

# name → class of transformers, settings
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", WORDS),
    "mistral": ("Mistral", WORDS | {"head_dim": 32}),
    "mixtral": ("Mixtral", WORDS | {"num_local_experts": 4}),
    "qwen2": ("Qwen2", WORDS),
    "qwen2moe": (
        "Qwen2Moe",
        WORDS
        | {
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 64,
        },
    ),
    "qwen3": ("Qwen3", WORDS | {"head_dim": 32}),
    "qwen3moe": (
        "Qwen3Moe",
        WORDS
        | {
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "head_dim": 32,
            "norm_topk_prob": True,
        },
    ),
    "gemma": ("Gemma", WORDS | {"head_dim": 32}),
    "gemma2": ("Gemma2", GEMMA | {"sliding_window": 6}),
    "gemma3": ("Gemma3Text", GEMMA | {"sliding_window": 6}),
    "phi2": ("Phi", WORDS),
    "phi3": ("Phi3", WORDS),
    # transformers chooses by the length of the text, llama.cpp by the size of its context, here 512.
    "phi3 short": (
        "Phi3",
        WORDS | {"rope_parameters": LONG, "original_max_position_embeddings": 512, "max_position_embeddings": 2048},
    ),
    "phi3 long": ("Phi3", WORDS | {"rope_parameters": LONG, "original_max_position_embeddings": 8}),
    "gpt2": ("GPT2", GPT),
    "starcoder": ("GPTBigCode", GPT),
    "starcoder2": ("Starcoder2", WORDS),
    "gptneox": ("GPTNeoX", PLAIN),
    "gptneox sequential": ("GPTNeoX", PLAIN | {"use_parallel_residual": False}),
    "bloom": ("Bloom", {"vocab_size": 128, "hidden_size": 64, "n_layer": 2, "n_head": 4}),
    "falcon": ("Falcon", PLAIN),
    "falcon grouped": ("Falcon", PLAIN | {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "mpt": ("Mpt", {"vocab_size": 128, "d_model": 64, "n_layers": 2, "n_heads": 4, "max_seq_len": 256}),
    "nemotron": ("Nemotron", WORDS | {"head_dim": 16}),
    "granite": (
        "Granite",
        WORDS
        | {"embedding_multiplier": 2.0, "residual_multiplier": 0.5, "attention_multiplier": 0.2, "logits_scaling": 3.0},
    ),
    "smollm3": ("SmolLM3", WORDS | {"num_hidden_layers": 5}),
    "olmo": ("Olmo", WORDS | {"clip_qkv": 2.0}),
    "olmo2": ("Olmo2", WORDS),
    "olmoe": ("Olmoe", WORDS | {"num_key_value_heads": 4, "num_experts": 6, "num_experts_per_tok": 2}),
    "command-r": ("Cohere", WORDS),
    "stablelm": ("StableLm", WORDS | {"use_qkv_bias": True}),
    "stablelm parallel": ("StableLm", WORDS | {"use_parallel_residual": True}),
}


def save(folder: Path, kind: str, settings: dict[str, Any], seed: int, *, head: str = "", spread: float = 0.15) -> Path:
    """A random model with norms and biases that are random too.

    head    ending of the class's name
    spread  standard deviation of the matrices
    """
    import transformers

    torch.manual_seed(seed)
    config = getattr(transformers, f"{kind}Config")(**settings)
    kind = kind.removesuffix("Text")
    names = [f"{kind}{head}"] if head else [f"{kind}ForCausalLM", f"{kind}LMHeadModel"]
    model = next(getattr(transformers, name) for name in names if hasattr(transformers, name))(config)
    around = 0.0 if kind.startswith(("Gemma", "Nemotron")) else 1.0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.copy_(torch.randn_like(parameter) * 0.3 + (0 if name.endswith("bias") else around))
            else:
                parameter.copy_(torch.randn_like(parameter) * spread)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    made = enumerate(MODELS.items())
    return {name: save(root / str(n), kind, settings, n) for n, (name, (kind, settings)) in made}


@pytest.fixture(scope="module")
def files(folders, tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("files")
    made = {}
    for number, (name, folder) in enumerate(folders.items()):
        made[name] = root / f"{number}.gguf"
        assemble(folder, "gguf", made[name], lambda t: "f32", slice_rows=7)
    return made


@pytest.fixture(scope="module")
def answers(files) -> dict[str, Answer]:
    return dict(zip(files, ask(*((path, [], IDS) for path in files.values())), strict=True))


def reference(folder: Path) -> np.ndarray:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        return model(torch.tensor([IDS])).logits[0].numpy()


@pytest.mark.parametrize("name", MODELS)
def test_llama_cpp_computes_the_same_logits(folders, answers, name) -> None:
    answer = answers[name]
    assert not answer.error
    wanted = reference(folders[name])
    assert wanted.std() > 0.05
    apart = np.abs(answer.logits - wanted)
    assert apart.max() < 1e-3 * np.abs(wanted).max()


def test_every_architecture_is_among_them(folders) -> None:
    written = set()
    for folder in folders.values():
        with open_checkpoint(folder) as checkpoint:
            written.add(get_target("gguf").outline(checkpoint).arch)
    assert written | {"bert"} == {arch.name for arch in ARCHITECTURES}


def test_eight_bits_are_close_in_every_architecture(folders, answers, tmp_path) -> None:
    """Every matrix but the embedding in q8_0: the logits move a little, and not not at all."""
    jobs = {}
    for number, (name, folder) in enumerate(folders.items()):
        jobs[name] = tmp_path / f"{number}.gguf"
        assemble(folder, "gguf", jobs[name], chosen("q8_0"), slice_rows=16)
    for name, answer in zip(jobs, ask(*((path, [], IDS) for path in jobs.values())), strict=True):
        assert not answer.error, (name, answer.error)
        # A router whose weights are random may choose another expert for the smallest change.
        alike = np.corrcoef(answer.logits.ravel(), answers[name].logits.ravel())[0, 1]
        assert (0.95 if "expert" in str(MODELS[name][1]) else 0.998) < alike < 0.999999, (name, alike)


def chosen(fmt: str) -> Any:
    def choose(tensor: Any) -> str | None:
        known = get_target("gguf").refuses(get_format(fmt), tensor) is None
        return matrices(fmt)(tensor) if known else None

    return choose


def test_four_bits_of_stacked_experts_and_transposed_matrices(tmp_path) -> None:
    """Super-blocks of 256, which need rows of that size."""
    wide = {"hidden_size": 256, "intermediate_size": 256}
    models = [("Mixtral", WORDS | wide | {"num_local_experts": 4}), ("GPT2", GPT | {"n_embd": 256})]
    jobs = []
    for number, (kind, settings) in enumerate(models):
        folder = save(tmp_path / str(number), kind, settings, number)
        for fmt in ("f32", "q4_k"):
            jobs.append(tmp_path / f"{number}{fmt}.gguf")
            assemble(folder, "gguf", jobs[-1], chosen(fmt), slice_rows=16)
    found = ask(*((path, [], IDS) for path in jobs))
    for exact, coarse in zip(found[::2], found[1::2], strict=True):
        assert not coarse.error
        alike = np.corrcoef(exact.logits.ravel(), coarse.logits.ravel())[0, 1]
        assert 0.6 < alike < 0.999
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(jobs[1]).tensors}
    assert kinds["blk.1.ffn_down_exps.weight"] == "Q4_K"
    assert kinds["blk.1.ffn_gate_inp.weight"] == "F32"


@pytest.mark.parametrize("name", ["mixtral", "qwen3moe", "qwen2moe"])
def test_fused_experts_give_the_same_file(folders, files, tmp_path, name) -> None:
    """transformers 5 holds gate and up of all experts in one tensor, and can save them so."""
    from transformers import AutoModelForCausalLM

    folder = tmp_path / folders[name].name
    AutoModelForCausalLM.from_pretrained(folders[name], dtype=torch.float32).save_pretrained(
        folder, save_original_format=False
    )
    with open_checkpoint(folder) as checkpoint:
        assert "model.layers.0.mlp.experts.gate_up_proj" in checkpoint.tensors
    assemble(folder, "gguf", tmp_path / "m.gguf", lambda t: "f32", slice_rows=5)
    assert (tmp_path / "m.gguf").read_bytes() == files[name].read_bytes()


def test_roles_and_shapes_of_merged_and_split_tensors(folders) -> None:
    with open_checkpoint(folders["qwen2moe"]) as checkpoint:
        outline = get_target("gguf").outline(checkpoint)
    assert outline.experts == 6
    tensors = {t.name: t for t in outline.tensors}
    stack = tensors["blk.1.ffn_gate_exps.weight"]
    assert (stack.shape, stack.role.kind, stack.role.layer, stack.linear) == ((6, 32, 64), "gate", 1, True)
    assert tensors["blk.1.ffn_down_exps.weight"].shape == (6, 64, 32)
    assert tensors["blk.1.ffn_gate_inp_shexp.weight"].role.kind == "router"
    with open_checkpoint(folders["gpt2"]) as checkpoint:
        tensors = {t.name: t for t in get_target("gguf").outline(checkpoint).tensors}
    assert {name.split(".", 2)[-1]: t.role.kind for name, t in tensors.items() if name.startswith("blk.0")} == {
        "attn_norm.weight": "norm",
        "attn_norm.bias": "bias",
        "attn_qkv.weight": "qkv",
        "attn_qkv.bias": "bias",
        "attn_output.weight": "o",
        "attn_output.bias": "bias",
        "ffn_norm.weight": "norm",
        "ffn_norm.bias": "bias",
        "ffn_up.weight": "up",
        "ffn_up.bias": "bias",
        "ffn_down.weight": "down",
        "ffn_down.bias": "bias",
    }
    assert tensors["blk.0.attn_qkv.weight"].shape == (192, 64)


def edited(folder: Path, out: Path, **config: Any) -> Path:
    """The model with other entries in its config.json."""
    shutil.copytree(folder, out)
    given = json.loads((out / "config.json").read_text()) | config
    (out / "config.json").write_text(json.dumps({k: v for k, v in given.items() if v is not None}))
    return out


@pytest.mark.parametrize(
    ("name", "config", "said"),
    [
        ("qwen2moe", {"norm_topk_prob": True}, "norm_topk_prob is True"),
        ("qwen3moe", {"norm_topk_prob": False}, "norm_topk_prob is False"),
        ("qwen3moe", {"mlp_only_layers": [0]}, "mlp_only_layers"),
        ("qwen3moe", {"num_experts_per_tok": 7}, "num_experts_per_tok is 7, of 6"),
        ("mixtral", {"num_local_experts": 5}, "has shape 4×64"),
        ("mixtral", {"num_local_experts": 2**31 - 1}, "has shape 4×64"),
        ("mixtral", {"num_local_experts": None}, "no number of experts"),
        ("gemma2", {"query_pre_attn_scalar": 144}, "query_pre_attn_scalar is 144"),
        ("gemma2", {"tie_word_embeddings": False}, "tie_word_embeddings"),
        ("gemma3", {"layer_types": ["full_attention"] * 6}, "layer_types"),
        ("gemma3", {"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ("phi3 long", {"rope_parameters": LONG | {"long_factor": [1.0]}}, "long_factor is not a list of 8"),
        ("phi3", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "yarn"),
        ("gpt2", {"n_layer": None}, "has no n_layer"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("gpt2", {"activation_function": "relu"}, "activation_function is 'relu'"),
        ("starcoder", {"multi_query": False}, "multi_query"),
        ("starcoder2", {"use_bias": False}, "use_bias"),
        ("falcon", {"alibi": True}, "alibi"),
        ("falcon grouped", {"num_kv_heads": 3}, "num_kv_heads 3"),
        ("gptneox", {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.35}}, "no even number"),
        ("mpt", {"attn_config": {"alibi": False}}, "alibi"),
        ("nemotron", {"hidden_act": "silu"}, "hidden_act"),
        ("olmoe", {"clip_qkv": 3.0}, "clip_qkv"),
        ("smollm3", {"no_rope_layers": [1, 1, 1, 1, 1]}, "no_rope_layers"),
        ("stablelm", {"qk_layernorm": True}, "qk_layernorm"),
        ("command-r", {"tie_word_embeddings": False}, "tie_word_embeddings"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(folders, tmp_path, name, config, said) -> None:
    folder = edited(folders[name], tmp_path / "m", **config)
    with pytest.raises(TargetError, match=said) as caught, open_checkpoint(folder) as checkpoint:
        get_target("gguf").outline(checkpoint)
    assert "\n" not in str(caught.value)


def test_a_missing_expert_is_named(folders, tmp_path) -> None:
    from safetensors.torch import load_file, save_file

    folder = edited(folders["mixtral"], tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.block_sparse_moe.experts.2.w3.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(TargetError, match=r"layers\.1\.block_sparse_moe\.experts\.2\.w3\.weight is missing"):
        get_target("gguf").outline(open_checkpoint(folder))


def test_gemma3_with_vision_is_written_without_it(folders, files, tmp_path) -> None:
    """Its text model lies in a deeper place, its config is nested and says little."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path / folders["gemma3"].name
    folder.mkdir()
    inner = json.loads((folders["gemma3"] / "config.json").read_text())
    # What the code of gemma 3 takes for granted.
    for key, value in {"tie_word_embeddings": True, "max_position_embeddings": 256, "sliding_window": 6}.items():
        assert inner[key] == value
    del inner["tie_word_embeddings"], inner["layer_types"]
    config = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": inner, "eos_token_id": [1]}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(folders["gemma3"] / "model.safetensors")
    moved = {f"language_model.{name}": tensor for name, tensor in tensors.items()}
    moved["vision_tower.embeddings.patch.weight"] = torch.zeros(4, 4)
    save_file(moved, folder / "model.safetensors", {"format": "pt"})
    with open_checkpoint(folder) as checkpoint:
        dropped = get_target("gguf").outline(checkpoint).dropped
    assert list(dropped) == ["vision_tower.embeddings.patch.weight"]
    assert "vision" in dropped["vision_tower.embeddings.patch.weight"]
    assemble(folder, "gguf", tmp_path / "m.gguf", lambda t: "f32")
    assert (tmp_path / "m.gguf").read_bytes() == files["gemma3"].read_bytes()
