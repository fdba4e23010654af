"""Weights that vLLM computes as one: their common scale, against compressed-tensors' own arithmetic, and what a plan
says of folders that vLLM would refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from core.checkpoints import open_checkpoint
from core.engine.pipeline import run
from core.engine.plan import make_plan
from core.evaluation.simulated import Simulated
from core.recipes import load
from core.targets import get_target
from core.targets.fused import bundles
from tests.core.calibration.build import model as calibrated
from tests.core.calibration.build import samples_of, text_file
from tests.core.targets.build import save_model

BUNDLES = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("self_attn.o_proj",),
    ("mlp.down_proj",),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """Every matrix of a size of its own, so that a scale tells whose it is."""
    from safetensors.torch import save_file

    shapes: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 64}
    folder = save_model(tmp_path_factory.mktemp("model"), dtype=torch.float32, **shapes)
    weights = load_file(folder / "model.safetensors")
    for number, name in enumerate(sorted(n for n, w in weights.items() if w.dim() == 2)):
        weights[name] *= 1 + 0.1 * number
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def written(model: Path, out: Path, recipe: str, **options: Any) -> dict[str, torch.Tensor]:
    with open_checkpoint(model) as checkpoint:
        plan = make_plan(checkpoint, load(recipe), get_target("compressed-tensors"), **options)
        run(plan, checkpoint, out)
    return load_file(out / "model.safetensors")


def test_nvfp4_is_what_the_package_makes_with_the_largest_of_a_bundle(model, tmp_path) -> None:
    """Divisor, scales and codes, byte for byte."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization.quant_scheme import preset_name_to_scheme
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    scheme = preset_name_to_scheme("NVFP4A16", ["Linear"])
    compressor = BaseCompressor.get_value_from_registry("nvfp4-pack-quantized")
    source, stored = load_file(model / "model.safetensors"), written(model, tmp_path / "m", "NVFP4A16")
    for layer in range(2):
        for bundle in BUNDLES:
            names = [f"model.layers.{layer}.{module}.weight" for module in bundle]
            every = torch.cat([source[name].flatten() for name in names])
            # The package divides by way of a reciprocal, which may be off in the last bit.
            divisor = torch.full((1,), 448.0 * 6) / every.abs().max()
            torch.testing.assert_close(divisor, generate_gparam(every.min(), every.max()), rtol=2**-23, atol=0)
            for name in names:
                w = source[name]
                low, high = w.view(len(w), -1, 16).aminmax(dim=-1)
                scale, _ = calculate_qparams(low, high, scheme.weights, divisor)
                state = {"weight": w, "weight_scale": scale, "weight_global_scale": divisor}
                theirs = compressor.compress(state, scheme)
                for part, wanted in theirs.items():
                    got = stored[f"{name.removesuffix('weight')}{part}"]
                    assert torch.equal(got.view(torch.uint8), wanted.view(torch.uint8)), (name, part)


def test_what_vllm_makes_of_a_bundle_is_what_each_weight_is(model, tmp_path) -> None:
    """It takes the largest divisor for all of it."""
    from core.formats.codebook import e2m1, unpack_pairs

    stored = written(model, tmp_path / "m", "NVFP4A16")
    with open_checkpoint(tmp_path / "m") as checkpoint:
        for bundle in BUNDLES[:2]:
            names = [f"model.layers.0.{module}.weight" for module in bundle]
            divisor = torch.cat([stored[f"{name}_global_scale"] for name in names]).max()
            for name in names:
                step = stored[f"{name}_scale"].float().repeat_interleave(16, 1) / divisor
                codes = unpack_pairs(stored[f"{name}_packed"], step.numel(), False).view(step.shape)
                assert torch.equal(checkpoint.read(name), e2m1().look_up(codes) * step), name


def test_fp8_tensors_of_a_bundle_have_one_scale(model, tmp_path) -> None:
    source = load_file(model / "model.safetensors")
    for recipe in ("fp8-e4m3-tensor", "fp8-e4m3-tensor(inputs=dynamic)"):
        stored = written(model, tmp_path / recipe, recipe)
        for bundle in BUNDLES:
            names = [f"model.layers.1.{module}.weight" for module in bundle]
            scale = max(source[name].abs().max() for name in names) / 448
            for name in names:
                assert stored[f"{name}_scale"].item() == scale.item(), name
                assert torch.equal(stored[name].float(), (source[name] / scale).to(torch.float8_e4m3fn).float())


def test_formats_with_more_scales_keep_to_themselves(model, tmp_path) -> None:
    source, stored = load_file(model / "model.safetensors"), written(model, tmp_path / "m", "fp8-e4m3")
    name = "model.layers.0.self_attn.k_proj.weight"
    assert torch.equal(stored[f"{name}_scale"], source[name].abs().amax(1, keepdim=True) / 448)


def test_gptq_fits_its_grid_under_the_common_scale(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("QUANTBENCH_CALIBRATION", str(tmp_path / "cache"))
    calibrated(tmp_path / "source", "llama")
    with open_checkpoint(tmp_path / "source") as checkpoint:
        samples = samples_of(checkpoint, text_file(tmp_path))
    source = load_file(tmp_path / "source" / "model.safetensors")
    stored = written(tmp_path / "source", tmp_path / "m", "nvfp4+gptq", calibration=samples)
    for bundle in BUNDLES:
        names = [f"model.layers.2.{module}.weight" for module in bundle]
        divisor = torch.tensor(448.0 * 6) / torch.stack([source[name].abs().max() for name in names]).max()
        assert {stored[f"{name}_global_scale"].item() for name in names} == {divisor.item()}


def test_what_is_judged_before_writing_has_it_too(model, tmp_path) -> None:
    written(model, tmp_path / "m", "NVFP4A16")
    with open_checkpoint(model) as checkpoint, open_checkpoint(tmp_path / "m") as again:
        plan = make_plan(checkpoint, load("NVFP4A16"), get_target("compressed-tensors"))
        simulated = Simulated(plan, checkpoint)
        for name in again.tensors:
            assert torch.equal(simulated.read(name).float(), again.read(name).float()), name


def test_bundles_are_found_where_all_their_parts_are() -> None:
    experts = "model.layers.3.mlp.experts.7"
    names = ["a.q_proj", "a.k_proj", "a.v_proj", "b.q_proj", "b.k_proj", f"{experts}.w1", f"{experts}.w3", "gate_proj"]
    assert bundles(names) == {
        "a.qkv_proj": ("a.q_proj", "a.k_proj", "a.v_proj"),
        f"{experts}.w13": (f"{experts}.w1", f"{experts}.w3"),
    }


@pytest.mark.parametrize(
    ("target", "mixed", "alike"),
    [
        ("compressed-tensors", "int8", "int4-g32"),
        ("compressed-tensors", "int4-g32(inputs=dynamic)", "int4-g32"),
        ("compressed-tensors", "keep", "int4-g32"),
        ("gptq", "int8-g32", "int4-g32"),
        ("awq", "keep", "int4-g32-asym"),
    ],
)
def test_weights_that_vllm_joins_and_that_differ_are_a_warning(model, tmp_path, target, mixed, alike) -> None:
    for strategy, expected in ((mixed, 1), (alike, 0)):
        recipe = tmp_path / "r.toml"
        recipe.write_text(
            f'quantbench = 1\n[[rule]]\nrole = ["k"]\nstrategy = "{strategy}"\n[[rule]]\nstrategy = "int4-g32"\n'
        )
        with open_checkpoint(model) as checkpoint:
            plan = make_plan(checkpoint, load(str(recipe)), get_target(target))
        found = [p for p in plan.problems if "vLLM computes" in p.message]
        assert len(found) == expected, (strategy, found)
        assert all(p.severity == "warning" and p.tensor == "model.layers.0.self_attn.k_proj.weight" for p in found)


@pytest.mark.parametrize(("recipe", "expected"), [("int8-tensor", 1), ("int8-tensor(inputs=dynamic)", 0), ("int8", 0)])
def test_one_plain_scale_per_tensor_is_not_for_vllm(model, recipe, expected) -> None:
    with open_checkpoint(model) as checkpoint:
        plan = make_plan(checkpoint, load(recipe), get_target("compressed-tensors"))
    assert sum("nothing that vLLM knows" in p.message for p in plan.problems) == expected


def test_a_head_in_blocks_is_not_for_vllm(model) -> None:
    for recipe, expected in (("fp8-e4m3-b128", ["lm_head.weight"]), ("FP8_BLOCK", []), ("fp8-e4m3", [])):
        with open_checkpoint(model) as checkpoint:
            plan = make_plan(checkpoint, load(recipe), get_target("compressed-tensors"))
        assert [p.tensor for p in plan.problems if "no head in blocks" in p.message] == expected


@pytest.mark.parametrize(
    ("recipe", "expected"), [("int4-g32", 0), ("int8-g32", 0), ("int3-g32", 1), ("int4-g32-asym", 1)]
)
def test_gptq_folders_that_vllm_refuses_are_a_warning(model, recipe, expected) -> None:
    with open_checkpoint(model) as checkpoint:
        plan = make_plan(checkpoint, load(recipe), get_target("gptq"))
    assert sum("vLLM loads symmetric 4 and 8 bits only" in p.message for p in plan.problems) == expected


def test_a_quantized_head_is_named_for_vllm(model, tmp_path) -> None:
    """Its ParallelLMHead is no Linear; without the name it would ask the file for plain weights."""
    from compressed_tensors.quantization import QuantizationConfig

    for recipe, targets, ignore in (
        ("int4-g32", ["Linear", "lm_head"], []),
        ("NVFP4A16", ["Linear"], ["lm_head"]),
    ):
        written(model, tmp_path / recipe, recipe)
        config = json.loads((tmp_path / recipe / "config.json").read_text())["quantization_config"]
        parsed = QuantizationConfig.model_validate(config)
        assert [group.targets for group in parsed.config_groups.values()] == [targets]
        assert parsed.ignore == ignore
