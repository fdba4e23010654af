"""Folders that other programs saved themselves (transformers' save_pretrained, with bitsandbytes or torchao in the
model), read as they decode them. Any two of them can be compared, and quantizing one again warns."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import main
from core.checkpoints import open_checkpoint
from core.checkpoints.dialects import QuantizedCheckpoint
from core.engine.plan import make_plan
from core.recipes import load
from core.targets import get_target
from tests.core.targets.build import save_model


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> dict[str, tuple[Path, Any]]:
    """name → folder, and the client's model that was saved there."""
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TorchAoConfig

    place = tmp_path_factory.mktemp("clients")
    source = save_model(place / "source", hidden_size=64, intermediate_size=128, vocab_size=300)
    four: dict[str, Any] = {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.bfloat16}
    asked = {
        "nf4-dq": BitsAndBytesConfig(**four, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True),
        "fp4": BitsAndBytesConfig(**four, bnb_4bit_quant_type="fp4"),
        "llm-int8": BitsAndBytesConfig(load_in_8bit=True),
        "torchao": TorchAoConfig(Int8WeightOnlyConfig()),
    }
    found = {}
    for name, config in asked.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = AutoModelForCausalLM.from_pretrained(
                source, quantization_config=config, device_map="cpu", dtype=torch.bfloat16
            )
            model.save_pretrained(place / name)
        found[name] = (place / name, model)
    return found


def decoded(module: Any) -> torch.Tensor:
    """float32, by the client's own numbers or its own kernel."""
    from bitsandbytes.functional import dequantize_4bit

    weight = module.weight
    kind = type(module).__name__
    if kind == "Linear4bit":
        state, dtype = weight.quant_state, weight.quant_state.dtype
        state.dtype = torch.float32
        found = dequantize_4bit(weight.data, state)
        state.dtype = dtype
        return found
    if kind == "Linear8bitLt":
        return weight.data.float() * weight.SCB.float()[:, None] * 7.874015718698502e-3
    return weight.qdata.float() * weight.scale.float()


@pytest.mark.parametrize("name", ["nf4-dq", "fp4", "llm-int8", "torchao"])
def test_what_transformers_saved_is_read_as_the_client_decodes_it(saved, name) -> None:
    folder, model = saved[name]
    modules = {f"{key}.weight": module for key, module in model.named_modules() if key.endswith("_proj")}
    assert len(modules) == 14
    with open_checkpoint(folder) as checkpoint:
        assert isinstance(checkpoint, QuantizedCheckpoint)
        for key, module in modules.items():
            assert checkpoint.quantized(key) is not None, key
            # Nested statistics are added up in another order there: one unit in the last place of the absmax.
            tolerance = 3e-7 if name == "nf4-dq" else 0
            torch.testing.assert_close(checkpoint.read(key).float(), decoded(module), rtol=tolerance, atol=0)


def test_any_two_are_compared_and_again_warns(saved, capsys) -> None:
    """They are as far apart as the noise of both: 4 bits against 4 bits, 8 against 8."""
    for first, second, low, high in (("nf4-dq", "fp4", 10, 25), ("llm-int8", "torchao", 35, 60)):
        assert main.main(["compare", str(saved[first][0]), str(saved[second][0]), "--json"]) == 0
        found = {t["name"]: t for t in json.loads(capsys.readouterr().out)["tensors"]}
        assert low < found["model.layers.0.mlp.up_proj.weight"]["sqnr_db"] < high
    with open_checkpoint(saved["nf4-dq"][0]) as checkpoint:
        plan = make_plan(checkpoint, load("int8"), get_target("compressed-tensors"))
    warned = [p.tensor for p in plan.problems if p.severity == "warning" and "already" in p.message]
    assert "model.layers.0.mlp.up_proj.weight" in warned
