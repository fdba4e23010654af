"""torchao folders: loaded by transformers, decoded by torchao, read back, and what the container refuses."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch

from core.checkpoints import open_checkpoint
from core.checkpoints.dialects import QuantizedCheckpoint
from core.engine.pipeline import run
from core.engine.plan import make_plan
from core.errors import CorruptFile, UnsupportedFormat
from core.formats import get_format
from core.recipes import load
from core.targets import get_target
from tests.core.targets.build import assemble, gpt2_like, matrices, save_model, save_tokenizer, size_of

SHAPES = {"hidden_size": 64, "intermediate_size": 128, "vocab_size": 300}
NAMES = [
    "int8",
    "int8-tensor",
    "int8-asym",
    "int8-g32",
    "int4-g32",
    "int4-g64-asym",
    "int3",
    "int2-g32-shift",
    "int5-g64",
    "int6-g64-shift",
    "int7-g32-asym",
    "fp8-e4m3",
    "fp8-e4m3-tensor",
    "fp8-e5m2",
    "fp8-e5m2-tensor",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = save_model(tmp_path_factory.mktemp("model"), dtype=torch.float32, **SHAPES)
    save_tokenizer(folder, gpt2_like())
    return folder


@pytest.fixture(scope="module")
def half(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("half"), **SHAPES)


def mixed(tensor) -> str | None:
    """Four kinds of weights, and a projection that stays as it is."""
    ends = {"q_proj": "int8", "k_proj": "int4-g32-asym", "gate_proj": "fp8-e4m3", "down_proj": "int3-g64"}
    return next((name for end, name in ends.items() if f"{end}.weight" in tensor.name), None)


def dequantized(folder: Path, choose) -> dict[str, torch.Tensor]:
    """What the weights must be by our own formats, straight from the source."""
    found, target = {}, get_target("torchao")
    with open_checkpoint(folder) as checkpoint:
        for tensor in target.outline(checkpoint).tensors:
            w = tensor.source.read(checkpoint, 0, tensor.rows)
            name = choose(tensor)
            if name:
                w = target.adapt(get_format(name), tensor).quantize(w).dequantize()
            found[tensor.name] = w.float().reshape(tensor.shape)
    return found


def loaded(folder: Path) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return AutoModelForCausalLM.from_pretrained(folder, device_map="cpu").eval()


@pytest.mark.parametrize("choose", [*map(matrices, NAMES), mixed], ids=[*NAMES, "mixed"])
def test_transformers_loads_it(model, tmp_path, choose) -> None:
    """torchao's tensors decode to our weights bit for bit, and the logits are those of our weights."""
    assemble(model, "torchao", tmp_path / "m", choose)
    theirs = loaded(tmp_path / "m")
    ours = loaded(model)
    expected = dequantized(model, choose)
    with torch.no_grad():
        for key, parameter in ours.named_parameters():
            parameter.copy_(expected[key])
    kinds = set()
    for key, parameter in theirs.named_parameters():
        kinds.add(type(parameter).__name__)
        w = parameter.dequantize() if hasattr(parameter, "block_size") else parameter
        assert torch.equal(w, expected[key]), key
    assert len(kinds) == (4 if choose is mixed else 2)
    ids = torch.arange(3, 60).reshape(1, -1)
    with torch.inference_mode():
        torch.testing.assert_close(theirs(ids).logits, ours(ids).logits, rtol=2e-5, atol=2e-5)


def test_half_precision_and_shards(half, tmp_path) -> None:
    """bfloat16 scales; every file knows of all tensors, so transformers loads the folder in parts."""
    with open_checkpoint(half) as checkpoint:
        plan = make_plan(checkpoint, load("int4-g32"), get_target("torchao"), shard_bytes=40_000)
        run(plan, checkpoint, tmp_path / "m", workers=1)
    assert len(list((tmp_path / "m").glob("*.safetensors"))) > 2
    assert size_of(tmp_path / "m") == plan.nbytes
    expected = dequantized(half, matrices("int4-g32"))
    seen = 0
    for key, parameter in loaded(tmp_path / "m").named_parameters():
        if hasattr(parameter, "block_size"):
            assert parameter.dtype == torch.bfloat16
            assert torch.equal(parameter.dequantize(), expected[key].bfloat16()), key
            seen += 1
    assert seen == 15
    with open_checkpoint(tmp_path / "m") as again:
        assert torch.equal(again.read("lm_head.weight"), expected["lm_head.weight"])


def test_dynamic_activations(model, tmp_path) -> None:
    """The same weights; logits differ by what rounding the inputs to 8 bits changes, and no more."""
    for inputs in ("plain", "dynamic"):
        with open_checkpoint(model) as checkpoint:
            plan = make_plan(checkpoint, load(f"int8(inputs={inputs})"), get_target("torchao"))
            run(plan, checkpoint, tmp_path / inputs, workers=1)
    plain, dynamic = loaded(tmp_path / "plain"), loaded(tmp_path / "dynamic")
    for a, b in zip(plain.parameters(), dynamic.parameters(), strict=True):
        if hasattr(a, "block_size"):
            assert torch.equal(a.qdata, b.qdata)
            assert b.act_quant_kwargs is not None
    ids = torch.arange(3, 60).reshape(1, -1)
    with torch.inference_mode():
        a, b = plain(ids).logits, dynamic(ids).logits
    assert 1e-4 < ((a - b).square().mean() / a.square().mean()).sqrt() < 0.05


def test_the_files_say_what_transformers_says(model, tmp_path) -> None:
    """Metadata of our int8 and float8 weights against that of weights which torchao quantized itself."""
    from safetensors import safe_open
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, IntxWeightOnlyConfig, PerGroup
    from transformers import AutoModelForCausalLM, TorchAoConfig

    configs = {
        "int8": Int8WeightOnlyConfig(),
        "fp8-e4m3": Float8WeightOnlyConfig(),
        "int4-g32": IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32)),
    }
    key = "model.layers.1.mlp.down_proj.weight"
    for name, config in configs.items():
        assemble(model, "torchao", tmp_path / name, matrices(name, head=False))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = AutoModelForCausalLM.from_pretrained(model, quantization_config=TorchAoConfig(config))
            theirs.save_pretrained(tmp_path / f"{name}-theirs")
        said = []
        for folder in (name, f"{name}-theirs"):
            with safe_open(tmp_path / folder / "model.safetensors", "pt") as file:
                described = json.loads(file.metadata()[key])
                stored = {k: (file.get_tensor(k).dtype, file.get_tensor(k).shape) for k in file.keys()}  # noqa: SIM118
                names = set(json.loads(file.metadata()["tensor_names"]))
            described["_tensor_data_names"].sort()
            said.append((described, stored, names))
        assert said[0] == said[1]
        # What torchao quantized reads as what it decodes to.
        with open_checkpoint(tmp_path / f"{name}-theirs") as again:
            assert torch.equal(again.read(key), dict(theirs.named_parameters())[key].dequantize())


@pytest.mark.parametrize("choose", [*map(matrices, NAMES), mixed], ids=[*NAMES, "mixed"])
def test_reads_back_as_our_own_weights(half, tmp_path, choose) -> None:
    assemble(half, "torchao", tmp_path / "m", choose)
    with open_checkpoint(tmp_path / "m") as again:
        assert isinstance(again, QuantizedCheckpoint)
        expected = dequantized(half, choose)
        assert again.tensors.keys() == expected.keys()
        for key, w in expected.items():
            assert torch.equal(again.read(key).float().reshape(w.shape), w), key
        down = "model.layers.1.mlp.down_proj.weight"
        assert torch.equal(again.read(down, 5, 12), expected[down][5:12])
        assert again.tensors[down].dtype != "I8"


REFUSED = {
    "q4_k": "gguf takes it",
    "nf4": "dense takes it",
    "int8-col": "not per column",
    "int4-tensor": "only in int8-tensor",
    "fp8-e4m3-b128": "per row or tensor",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_refuses(model, name) -> None:
    target = get_target("torchao")
    with open_checkpoint(model) as checkpoint:
        linear = next(t for t in target.outline(checkpoint).tensors if t.linear)
    assert REFUSED[name] in (target.refuses(get_format(name), linear) or "")


def test_which_inputs_it_refuses() -> None:
    target = get_target("torchao")
    assert target.refuses_inputs(get_format("int4-g32"), "plain") is None
    for name, inputs in (
        ("int8", "static"),
        ("int4-g32", "dynamic"),
        ("fp8-e4m3", "dynamic"),
        ("int8-asym", "dynamic"),
    ):
        assert "beside int8 weights" in (target.refuses_inputs(get_format(name), inputs) or "")


def broken(source: Path, folder: Path, change) -> Path:
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    assemble(source, "torchao", folder, matrices("int4-g32"))
    file = folder / "model.safetensors"
    with safe_open(file, "pt") as opened:
        metadata = dict(opened.metadata())
    tensors = load_file(file)
    change(tensors, metadata)
    save_file(tensors, file, metadata)
    return folder


STEM = "model.layers.0.mlp.up_proj._weight"
BREAKS = {
    "no metadata": (lambda t, m: m.pop("model.layers.0.mlp.up_proj.weight"), CorruptFile, "says nothing"),
    "no scales": (lambda t, m: t.pop(f"{STEM}_scale"), CorruptFile, "has no scales"),
    "another class": (
        lambda t, m: m.update({"model.layers.0.mlp.up_proj.weight": '{"_type": "Int4Tensor", "_data": {}}'}),
        UnsupportedFormat,
        "Int4Tensor",
    ),
    "scales of another shape": (
        lambda t, m: t.update({f"{STEM}_scale": torch.ones(128, 3)}),
        CorruptFile,
        "do not divide",
    ),
    "zero points of another shape": (
        lambda t, m: t.update({f"{STEM}_zero_point": torch.ones(128, 1, dtype=torch.int8)}),
        CorruptFile,
        "zero points",
    ),
    "a part unknown": (
        lambda t, m: t.update({f"{STEM}_act_pre_scale": torch.ones(64)}),
        UnsupportedFormat,
        "not understood",
    ),
}


@pytest.mark.parametrize("case", BREAKS)
def test_broken_folders_are_refused(half, tmp_path, case) -> None:
    change, error, words = BREAKS[case]
    with pytest.raises(error, match=words):
        open_checkpoint(broken(half, tmp_path / "m", change))
