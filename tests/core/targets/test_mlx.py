"""MLX folders: decoded from MLX's documented layout alone, read back, and what the container refuses. benchmarks/mlx.py
lets MLX itself load them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from core.checkpoints import open_checkpoint
from core.checkpoints.dialects import QuantizedCheckpoint
from core.engine.pipeline import run
from core.engine.plan import make_plan
from core.errors import CorruptFile, UnsupportedFormat
from core.formats import get_format
from core.recipes import load
from core.targets import get_target
from tests.core.targets.build import assemble, matrices, save_model, size_of

SHAPES = {"hidden_size": 64, "intermediate_size": 128, "vocab_size": 300}
AFFINE = [f"int{b}-g64-bias" for b in (2, 3, 4, 5, 6, 8)] + ["int4-g32-bias", "int4-g32", "int3-g64", "int8-g64"]
NAMES = [*AFFINE, "mxfp4", "mxfp8"]
E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6]


@pytest.fixture(scope="module")
def half(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("half"), **SHAPES)


@pytest.fixture(scope="module")
def single(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("single"), dtype=torch.float32, **SHAPES)


def everything(name: str):
    """The format for Linear weights, the head and the embedding."""
    return lambda tensor: name if len(tensor.shape) == 2 else None


def mixed(tensor) -> str | None:
    ends = {"q_proj": "int8-g32-bias", "down_proj": "mxfp4", "gate_proj": "mxfp8", "embed_tokens": "int6-g64-bias"}
    found = next((name for end, name in ends.items() if f"{end}.weight" in tensor.name), "int4-g64-bias")
    return found if len(tensor.shape) == 2 and "k_proj" not in tensor.name else None


def dequantized(folder: Path, choose) -> dict[str, torch.Tensor]:
    """What the weights must be by our own formats, straight from the source."""
    found, target = {}, get_target("mlx")
    with open_checkpoint(folder) as checkpoint:
        for tensor in target.outline(checkpoint).tensors:
            w = tensor.source.read(checkpoint, 0, tensor.rows)
            name = choose(tensor)
            if name:
                w = target.adapt(get_format(name), tensor).quantize(w).dequantize()
            found[tensor.name] = w.float().reshape(tensor.shape)
    return found


def decoded(stored: dict[str, torch.Tensor], module: str, said: dict) -> np.ndarray:
    """A weight by MLX's documentation: fields of `bits`, lowest first, in one stream of 32-bit words per row; in groups
    of `group_size`, times the scale, plus the bias. In the other modes fields are E2M1 or E4M3 numbers, and scales are
    bytes, powers of two."""
    said = said.get(module, said)
    bits, group = said["bits"], said["group_size"]
    words = stored[f"{module}.weight"].view(torch.int32).numpy()
    stream = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little")
    fields = (stream.reshape(len(words), -1, bits) << np.arange(bits)).sum(-1)
    scales = stored[f"{module}.scales"]
    if said["mode"] == "affine":
        scales, biases = (t.float().numpy().repeat(group, 1) for t in (scales, stored[f"{module}.biases"]))
        return fields.astype(np.float32) * scales + biases
    assert f"{module}.biases" not in stored
    if said["mode"] == "mxfp4":
        numbers = np.array(E2M1 + [-x for x in E2M1], np.float32)[fields]
    else:
        numbers = torch.from_numpy(fields.astype(np.uint8)).view(torch.float8_e4m3fn).float().numpy()
    return numbers * np.exp2(scales.numpy().astype(np.float32) - 127).repeat(group, 1)


@pytest.mark.parametrize("name", [*NAMES, "mixed"])
@pytest.mark.parametrize("dtype", ["half", "single"])
def test_the_documented_layout_and_reading_back(request, tmp_path, name, dtype) -> None:
    source = request.getfixturevalue(dtype)
    choose = mixed if name == "mixed" else everything(name)
    assemble(source, "mlx", tmp_path / "m", choose)
    stored = load_file(tmp_path / "m" / "model.safetensors")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config["quantization"] == config["quantization_config"]
    expected = dequantized(source, choose)
    seen = 0
    for key, w in expected.items():
        module = key.removesuffix(".weight")
        if f"{module}.scales" in stored:
            assert np.array_equal(decoded(stored, module, config["quantization"]), w.numpy()), key
            seen += 1
        else:
            assert torch.equal(stored[key].float(), w)
    assert seen == (14 if name == "mixed" else 16)
    with open_checkpoint(tmp_path / "m") as again:
        assert isinstance(again, QuantizedCheckpoint)
        assert again.tensors.keys() == expected.keys()
        for key, w in expected.items():
            assert torch.equal(again.read(key).float().reshape(w.shape), w), key
        down = "model.layers.1.mlp.down_proj.weight"
        assert torch.equal(again.read(down, 5, 12), expected[down][5:12])


def test_config_names_what_differs(half, tmp_path) -> None:
    assemble(half, "mlx", tmp_path / "m", mixed)
    said = json.loads((tmp_path / "m" / "config.json").read_text())["quantization"]
    assert {k: said[k] for k in ("group_size", "bits", "mode")} == {"group_size": 64, "bits": 4, "mode": "affine"}
    assert said["model.layers.1.mlp.down_proj"] == {"group_size": 32, "bits": 4, "mode": "mxfp4"}
    assert said["model.embed_tokens"] == {"group_size": 64, "bits": 6, "mode": "affine"}
    assert "model.layers.0.self_attn.k_proj" not in said
    assert "model.layers.0.self_attn.v_proj" not in said


def test_shards(half, tmp_path) -> None:
    with open_checkpoint(half) as checkpoint:
        plan = make_plan(checkpoint, load("int4-g64-bias"), get_target("mlx"), shard_bytes=20_000)
        run(plan, checkpoint, tmp_path / "m", workers=1)
    assert len(list((tmp_path / "m").glob("model-*.safetensors"))) > 2
    assert size_of(tmp_path / "m") == plan.nbytes
    expected = dequantized(half, everything("int4-g64-bias"))
    with open_checkpoint(tmp_path / "m") as again:
        assert torch.equal(again.read("lm_head.weight"), expected["lm_head.weight"])


def test_experts_of_a_layer_are_of_one_kind(tmp_path) -> None:
    """mlx-lm stacks them under another name, by which config.json knows them."""
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    options = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 2}
    model = MixtralForCausalLM(MixtralConfig(**(SHAPES | options)))
    model.to(torch.bfloat16).save_pretrained(tmp_path / "source")
    target = get_target("mlx")
    for chosen, objections in (("int8-g64-bias", 0), ("mxfp8", 1)):
        with open_checkpoint(tmp_path / "source") as checkpoint:
            assert any(".experts.1.w2." in name for name in checkpoint.tensors)
            rules = [
                {"name": "*.experts.1.w2.weight", "strategy": chosen},
                {"name": "*.experts.*.w2.weight", "strategy": "int8-g64-bias"},
                {"name": "*_proj.weight", "strategy": "int4-g64-bias"},
                {"name": "*.experts.*", "strategy": "int4-g64-bias"},
            ]
            text = "quantbench = 1\n" + "\n".join(
                f'[[rule]]\nname = "{r["name"]}"\nstrategy = "{r["strategy"]}"' for r in rules
            )
            (tmp_path / "recipe.toml").write_text(text)
            plan = make_plan(checkpoint, load(str(tmp_path / "recipe.toml")), target)
        errors = [p for p in plan.problems if p.severity == "error"]
        assert len(errors) == objections
        if not errors:
            said = json.loads(plan.layout.sides["config.json"])["quantization"]
            changed = [key for key in said if "." in key]
            assert changed == ["model.layers.0.block_sparse_moe.switch_mlp.down_proj"]
        else:
            assert "stacks a layer's experts" in str(errors[0])


REFUSED = {
    "q4_k": "the target gguf takes it",
    "nvfp4": "the target dense takes it",
    "int7-g64": "not 7",
    "int4": "choose int4-g64-bias",
    "int4-g256": "groups of 32, 64 and 128",
    "int4-g64-asym": "choose int4-g64-bias",
    "int4-g64-shift": "the target dense takes it",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_refuses(half, name) -> None:
    target = get_target("mlx")
    with open_checkpoint(half) as checkpoint:
        linear = next(t for t in target.outline(checkpoint).tensors if t.linear)
    assert REFUSED[name] in (target.refuses(get_format(name), linear) or "")


def nvfp4(tensors: dict[str, torch.Tensor], stem: str) -> None:
    """MLX's fourth mode, which is only read: E2M1 codes 0 … 15 in turn, scales of 1.5 (E4M3 0x3c)."""
    rows = tensors[f"{stem}.weight"].shape[0]
    row = torch.tensor([0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE] * 4, dtype=torch.uint8)
    tensors[f"{stem}.weight"] = row.repeat(rows, 1).view(torch.uint32)
    tensors[f"{stem}.scales"] = torch.full((rows, 4), 0x3C, dtype=torch.uint8)


STEM = "model.layers.0.mlp.up_proj"


def changed(source: Path, folder: Path, name: str, change) -> Path:
    assemble(source, "mlx", folder, matrices(name))
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "mlx"})
    return folder


def test_nvfp4_is_read(half, tmp_path) -> None:
    with open_checkpoint(changed(half, tmp_path / "m", "mxfp4", lambda t: nvfp4(t, STEM))) as again:
        row = again.read(f"{STEM}.weight", 3, 4)[0]
        assert row.tolist() == [1.5 * x for x in E2M1 + [-x for x in E2M1]] * 4


BREAKS = {
    "no scales": (lambda t: t.pop(f"{STEM}.scales"), CorruptFile, "has no scales"),
    "no biases": (lambda t: t.pop(f"{STEM}.biases"), CorruptFile, "no biases"),
    "fewer biases": (lambda t: t.update({f"{STEM}.biases": torch.ones(128, 3)}), CorruptFile, "differ"),
    "more scales": (
        lambda t: t.update({f"{STEM}.{p}": torch.ones(128, 3) for p in ("scales", "biases")}),
        CorruptFile,
        "fit no groups of 64",
    ),
    "bytes for scales": (
        lambda t: t.update({f"{STEM}.scales": torch.ones(128, 3, dtype=torch.uint8)}),
        CorruptFile,
        "none of MLX's modes",
    ),
    "fewer rows": (lambda t: t.update({f"{STEM}.scales": torch.ones(4, 1)}), CorruptFile, "do not belong together"),
    "a scale of the tensor": (
        lambda t: t.update({f"{STEM}.global_scale": torch.ones(1)}),
        UnsupportedFormat,
        "scale of the tensor",
    ),
}


@pytest.mark.parametrize("case", BREAKS)
def test_broken_folders_are_refused(half, tmp_path, case) -> None:
    change, error, words = BREAKS[case]
    with pytest.raises(error, match=words):
        open_checkpoint(changed(half, tmp_path / "m", "int4-g64-bias", change))


def test_config_of_another_model_is_refused(half, tmp_path) -> None:
    assemble(half, "mlx", tmp_path / "m", matrices("int4-g64-bias"))
    path = tmp_path / "m" / "config.json"
    config = json.loads(path.read_text())
    for wrong in (48, "64", 0, True):
        config["quantization"]["group_size"] = wrong
        path.write_text(json.dumps(config))
        with pytest.raises(CorruptFile, match="groups of"):
            open_checkpoint(tmp_path / "m")
