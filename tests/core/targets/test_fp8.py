"""FP8 folders in the plain Hugging Face form: loaded by transformers on a CPU, read back, others' files by a decoder of
our own writing, and what the container refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.checkpoints import open_checkpoint
from core.engine.pipeline import run
from core.engine.plan import make_plan
from core.errors import CorruptFile, PlanError
from core.formats import FORMATS, get_format
from core.recipes import load
from core.targets import get_target
from tests.core.targets.build import assemble, matrices, save_model, size_of

FP8 = get_target("fp8")
NAME = "fp8-e4m3-b128"
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("m"), hidden_size=256, intermediate_size=384, vocab_size=300, **HEADS)


def loaded(folder: Path):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()


def test_transformers_finds_our_weights_and_their_logits(source, tmp_path) -> None:
    assemble(source, "fp8", tmp_path / "m", matrices(NAME, head=False), slice_rows=128)
    client, model = loaded(tmp_path / "m"), loaded(source)
    changed = 0
    weights = {}
    with open_checkpoint(source) as original, open_checkpoint(tmp_path / "m") as again:
        assert set(again.tensors) == set(original.tensors)
        for tensor in FP8.outline(original).tensors:
            w = tensor.source.read(original, 0, tensor.rows).float()
            wanted = get_format(NAME).quantize(w).dequantize() if matrices(NAME, head=False)(tensor) else w
            wanted = wanted.reshape(tensor.shape)
            assert torch.equal(again.read(tensor.name).float().reshape(tensor.shape), wanted)
            assert torch.equal(client.state_dict()[tensor.name], wanted.bfloat16()), tensor.name
            changed += not torch.equal(wanted, w.reshape(tensor.shape))
            weights[tensor.name] = wanted.bfloat16()
    assert changed == 14
    ids = torch.tensor([[3, 70, 8, 255, 19, 44]])
    with torch.inference_mode():
        before = model(ids).logits
        model.load_state_dict(weights)
        assert torch.equal(model(ids).logits, client(ids).logits)
        assert not torch.equal(before, client(ids).logits)
    config = json.loads((tmp_path / "m" / "config.json").read_text())["quantization_config"]
    assert config["modules_to_not_convert"] == ["lm_head"]
    assert (config["activation_scheme"], config["weight_block_size"]) == ("dynamic", [128, 128])


@pytest.mark.parametrize("shard", [None, 300_000])
def test_a_run_writes_what_was_planned(source, tmp_path, shard) -> None:
    with open_checkpoint(source) as checkpoint:
        plan = make_plan(checkpoint, load(NAME), FP8, shard_bytes=shard)
        run(plan, checkpoint, tmp_path / "m")
    files = list((tmp_path / "m").glob("*.safetensors"))
    assert (len(files) > 2) == (shard is not None)
    assert size_of(tmp_path / "m") == plan.nbytes
    with open_checkpoint(tmp_path / "m") as again:
        plan = make_plan(again, load("int8"), get_target("compressed-tensors"))
        warned = [p.tensor for p in plan.problems if p.severity == "warning" and "already" in p.message]
    assert "model.layers.0.mlp.up_proj.weight" in warned


@pytest.mark.parametrize("scales", [torch.float32, torch.bfloat16, torch.float8_e8m0fnu])
def test_blocks_cut_short_at_the_edges_are_read(tmp_path, scales) -> None:
    """As DeepSeek's kv_a_proj_with_mqa has them: 576 rows, 5 rows of scales."""
    torch.manual_seed(1)
    values = torch.randn(200, 130).to(torch.float8_e4m3fn)
    scale = torch.tensor([[0.5, 2.0], [4.0, 0.25]]).to(scales)
    stored = {"a.q_proj.weight": values, "a.q_proj.weight_scale_inv": scale, "a.q_proj.activation_scale": torch.ones(1)}
    save_file(stored, tmp_path / "model.safetensors")
    config = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": config}))
    wanted = values.float()
    for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
        wanted[128 * i : 128 * i + 128, 128 * j : 128 * j + 128] *= float(scale[i, j].float())
    with open_checkpoint(tmp_path) as checkpoint:
        assert list(checkpoint.tensors) == ["a.q_proj.weight"]
        assert torch.equal(checkpoint.read("a.q_proj.weight"), wanted)
        assert torch.equal(checkpoint.read("a.q_proj.weight", 100, 150), wanted[100:150])


@pytest.mark.parametrize("name", ["weight_scale", "weight_scale_inv"])
def test_one_scale_for_a_tensor_is_read(tmp_path, name) -> None:
    values = torch.arange(-6.0, 6.0).view(3, 4).to(torch.float8_e4m3fn)
    stored = {"a.q_proj.weight": values, f"a.q_proj.{name}": torch.tensor(0.5)}
    save_file(stored, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "fp8"}}')
    with open_checkpoint(tmp_path) as checkpoint:
        assert torch.equal(checkpoint.read("a.q_proj.weight"), values.float() / 2)


def test_scales_that_do_not_fit_have_their_message(tmp_path) -> None:
    stored = {"a.weight": torch.zeros(256, 256).to(torch.float8_e4m3fn), "a.weight_scale_inv": torch.ones(3, 2)}
    save_file(stored, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "fp8"}}')
    with pytest.raises(CorruptFile, match=r"\[3, 2\] scales do not divide \[256, 256\]"):
        open_checkpoint(tmp_path)


def test_edges_and_other_formats_are_refused_by_name(tmp_path) -> None:
    folder = save_model(tmp_path / "s", hidden_size=192, intermediate_size=256, vocab_size=64, **HEADS)
    with open_checkpoint(folder) as checkpoint:
        tensors = {t.name: t for t in FP8.outline(checkpoint).tensors}
        up, head = tensors["model.layers.0.mlp.up_proj.weight"], tensors["lm_head.weight"]
        assert "256 × 192 are no multiples of 128" in (FP8.refuses(get_format(NAME), up) or "")
        assert "head" in (FP8.refuses(get_format(NAME), head) or "")
        for fmt in FORMATS:
            reason = FP8.refuses(fmt, up)
            assert (reason is None) == (fmt.family == "dense"), fmt.name
            assert fmt.family == "dense" or fmt.name == NAME or fmt.name in (reason or "")
        plan = make_plan(checkpoint, load(NAME), FP8)
        assert any(p.tensor == up.name and "no multiples of 128" in p.message for p in plan.problems)
        with pytest.raises(PlanError):
            run(plan, checkpoint, tmp_path / "m")
        static = make_plan(checkpoint, load(f"{NAME}(inputs=static)"), FP8)
        assert any(p.severity == "error" for p in static.problems)
    assert not (tmp_path / "m").exists()
    assert load_file(folder / "model.safetensors")
