"""AWQ folders: decoded by compressed-tensors' converter and by our own reader; what config.json says, and what the
container refuses. How the clients themselves load such folders is in docs/interop.md."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.checkpoints import open_checkpoint
from core.engine.pipeline import run
from core.engine.plan import make_plan
from core.formats import FORMATS, get_format
from core.recipes import load
from core.roles import role_of
from core.targets import get_target
from core.targets.assignments import Assignments
from core.targets.base import Assignment, OutputTensor, Plain
from core.targets.modules import is_linear
from core.tensors import TensorInfo
from tests.core.targets.build import assemble, matrices, save_model, size_of

AWQ = get_target("awq")
TAKEN = {f"int4-g{group}{end}" for group in (32, 64, 128) for end in ("", "-asym")}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), intermediate_size=128, attention_bias=True)


def ours(folder: Path, choose) -> dict[str, torch.Tensor]:
    """What the weights must be by our own formats, straight from the source."""
    found = {}
    with open_checkpoint(folder) as checkpoint:
        for tensor in AWQ.outline(checkpoint).tensors:
            w = tensor.source.read(checkpoint, 0, tensor.rows)
            name = choose(tensor)
            if name:
                w = AWQ.adapt(get_format(name), tensor).quantize(w).dequantize()
            found[tensor.name] = w.float().reshape(tensor.shape)
    return found


def converted(folder: Path) -> dict[str, torch.Tensor]:
    """float32 weights of all quantized modules, by way of compressed-tensors."""
    from compressed_tensors.compressors.pack_quantized import unpack_from_int32
    from compressed_tensors.entrypoints.convert.converters.autoawq import AutoAWQConverter

    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    converter = AutoAWQConverter.from_autoawq_config(config)
    group = converter.group_size
    stored = load_file(folder / "model.safetensors")
    converter.validate(stored)
    made = converter.process(stored)
    found = {}
    for packed in [name for name in made if name.endswith(".weight_packed")]:
        weight = packed.removesuffix("_packed")
        codes = unpack_from_int32(made[packed], 4, torch.Size(made[f"{weight}_shape"].tolist()))
        scale = made[f"{weight}_scale"].float()
        zero = unpack_from_int32(made[f"{weight}_zero_point"], 4, scale.shape, packed_dim=0)
        found[weight] = (codes.float() - zero.float().repeat_interleave(group, 1)) * scale.repeat_interleave(group, 1)
    return found


@pytest.mark.parametrize("name", ["int4-g32", "int4-g32-asym", "int4-g64-asym"])
def test_compressed_tensors_finds_our_weights(model, tmp_path, name) -> None:
    choose = matrices(name, head=False)
    assemble(model, "awq", tmp_path / "m", choose, slice_rows=32)
    expected, theirs = ours(model, choose), converted(tmp_path / "m")
    assert len(theirs) == 14
    source = load_file(model / "model.safetensors")
    for key, w in theirs.items():
        assert torch.equal(w, expected[key]), key
        error = (w - source[key].float()).pow(2).mean() / w.pow(2).mean()
        assert 0.01 * 4.0**-4 < error < 4 * 4.0**-4, key
    with open_checkpoint(tmp_path / "m") as checkpoint:
        assert set(checkpoint.tensors) == set(expected)
        for key, w in expected.items():
            assert torch.equal(checkpoint.read(key).float().reshape(w.shape), w), key


def test_the_config_is_what_autoawq_writes(model, tmp_path) -> None:
    def choose(tensor):
        return None if tensor.role.kind == "o" else matrices("int4-g32-asym", head=False)(tensor)

    assemble(model, "awq", tmp_path / "m", choose)
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    settings = config.pop("quantization_config")
    assert config == json.loads((model / "config.json").read_text())
    kept = settings.pop("modules_to_not_convert")
    assert sorted(kept) == ["lm_head", "model.layers.0.self_attn.o_proj", "model.layers.1.self_attn.o_proj"]
    assert settings == {
        "quant_method": "awq",
        "bits": 4,
        "group_size": 32,
        "zero_point": True,
        "version": "gemm",
    }
    from transformers import AwqConfig

    parsed = AwqConfig.from_dict(dict(settings))
    assert (parsed.bits, parsed.group_size, parsed.zero_point, parsed.format) == (4, 32, True, "gemm")
    assert set(converted(tmp_path / "m")) == {k for k in ours(model, choose) if "_proj.weight" in k and ".o_" not in k}


def test_symmetric_weights_have_eight_for_zero(model, tmp_path) -> None:
    assemble(model, "awq", tmp_path / "m", matrices("int4-g64", head=False))
    stored = load_file(tmp_path / "m" / "model.safetensors")
    assert set((stored["model.layers.1.mlp.up_proj.qzeros"].view(-1).long() & 0xFFFFFFFF).tolist()) == {0x88888888}


def test_nibbles_lie_in_awqs_order(tmp_path) -> None:
    """One row of eight holds the only weight that is not zero: its nibble, counted from the lowest bits."""
    name = "model.layers.0.mlp.up_proj.weight"
    found = []
    for row in range(8):
        w = torch.zeros(32, 32).half()
        w[row, 3] = -8
        w[row, 4] = 7
        save_file({name: w}, tmp_path / "w.safetensors")
        assemble(tmp_path / "w.safetensors", "awq", tmp_path / str(row), lambda t: "int4-g32-asym")
        words = load_file(tmp_path / str(row) / "model.safetensors")[name.replace("weight", "qweight")]
        at = [int(words[4, 0]) >> 4 * n & 15 for n in range(8)]
        found.append(max(range(8), key=at.__getitem__))
    assert found == [0, 4, 1, 5, 2, 6, 3, 7]


def test_slices_give_the_bytes_of_the_whole(tmp_path) -> None:
    torch.manual_seed(1)
    save_file({"model.layers.0.mlp.up_proj.weight": torch.randn(224, 96).bfloat16()}, tmp_path / "w.safetensors")
    for rows in (0, 32, 96):
        assemble(tmp_path / "w.safetensors", "awq", tmp_path / str(rows), lambda t: "int4-g32-asym", slice_rows=rows)
    files = [(tmp_path / str(rows) / "model.safetensors").read_bytes() for rows in (0, 32, 96)]
    assert files[0] == files[1] == files[2]


def test_groups_of_two_sizes_are_objected_to(model) -> None:
    with open_checkpoint(model) as checkpoint:
        tensors = [t for t in AWQ.outline(checkpoint).tensors if t.linear and t.role.kind != "head"]
    alike = [Assignment(t, get_format("int4-g32-asym" if n else "int4-g32")) for n, t in enumerate(tensors)]
    assert list(AWQ.objections(Assignments(alike))) == []
    (error,) = AWQ.objections(Assignments([*alike[:-1], Assignment(tensors[-1], get_format("int4-g64"))]))
    assert (error.severity, error.tensor) == ("error", tensors[-1].name)
    assert "one size" in error.message


@pytest.mark.parametrize("fmt", [f for f in FORMATS if f.encodable], ids=lambda f: f.name)
def test_formats_are_taken_by_name(fmt) -> None:
    reason = AWQ.refuses(fmt, _tensor("model.layers.0.mlp.up_proj.weight", (512, 512)))
    assert (reason is None) == (fmt.family == "dense" or fmt.name in TAKEN)
    assert reason is None or fmt.name in reason


def _tensor(name: str, shape: tuple[int, ...]) -> OutputTensor:
    role = role_of(name)
    return OutputTensor(name, Plain(name), shape, "BF16", role, is_linear(TensorInfo(name, shape, "BF16", 0), role))


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("model.layers.0.mlp.up_proj.weight", (64, 96), ""),
        ("model.layers.0.mlp.up_proj.weight", (40, 64), "40 rows are no multiple of 32"),
        ("lm_head.weight", (64, 64), "the head"),
        ("model.embed_tokens.weight", (64, 64), "embedding"),
        ("model.layers.0.input_layernorm.weight", (64,), "1-D"),
        ("model.layers.0.mlp.experts.gate_up_proj", (4, 64, 64), "expert"),
    ],
)
def test_only_what_clients_look_for_is_quantized(name, shape, said) -> None:
    reason = AWQ.refuses(get_format("int4-g32"), _tensor(name, shape))
    assert (said in (reason or "")) if said else reason is None


def test_through_the_engine_and_back(model, tmp_path) -> None:
    """Planned bytes are those on disk, in shards too; and the folder is a source like any other."""
    with open_checkpoint(model) as checkpoint:
        for shard_bytes in (None, 60_000):
            plan = make_plan(checkpoint, load("int4-g32-asym"), AWQ, shard_bytes=shard_bytes)
            assert not [p for p in plan.problems if p.severity == "error"]
            out = tmp_path / f"m{shard_bytes}"
            run(plan, checkpoint, out, workers=2)
            assert size_of(out) == plan.nbytes
            assert (len(plan.layout.files) > 2) == bool(shard_bytes)
    expected = ours(model, matrices("int4-g32-asym", head=False))
    with open_checkpoint(tmp_path / "m60000") as checkpoint:
        for key, w in expected.items():
            assert torch.equal(checkpoint.read(key).float().reshape(w.shape), w), key
        # AWQ's codes are GPTQ's: the other container holds the same weights, but for new scales.
        plan = make_plan(checkpoint, load("int8-g32-asym"), get_target("gptq"))
        run(plan, checkpoint, tmp_path / "gptq", workers=1)
    with open_checkpoint(tmp_path / "gptq") as checkpoint:
        key = "model.layers.0.mlp.up_proj.weight"
        error = (checkpoint.read(key) - expected[key]).pow(2).mean() / expected[key].pow(2).mean()
        assert 1e-9 < error < 1e-4
