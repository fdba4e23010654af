"""GPTQ folders: words and zero points decoded by numpy from the published layout, what config.json tells each client,
our own reader, and what the container refuses. How the clients themselves load such folders is in
docs/interop.md."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from core.checkpoints import open_checkpoint
from core.engine.pipeline import run
from core.engine.plan import make_plan
from core.errors import PlanError
from core.formats import FORMATS, get_format
from core.formats.base import Grid, Quantized
from core.formats.uniform import Uniform
from core.recipes import load
from core.targets import get_target
from core.targets.assignments import Assignments
from core.targets.base import Assignment, OutputTensor
from core.targets.gptq import quantization_config
from tests.core.targets.build import assemble, matrices, save_model, size_of

GPTQ = get_target("gptq")
LINEARS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), attention_bias=True)


def ours(folder: Path, choose) -> dict[str, torch.Tensor]:
    """What the weights must be by our own formats, straight from the source."""
    found = {}
    with open_checkpoint(folder) as checkpoint:
        for tensor in GPTQ.outline(checkpoint).tensors:
            w = tensor.source.read(checkpoint, 0, tensor.rows)
            name = choose(tensor)
            if name:
                w = GPTQ.adapt(get_format(name), tensor).quantize(w).dequantize()
            found[tensor.name] = w.float().reshape(tensor.shape)
    return found


def fields(stream: np.ndarray, bits: int) -> np.ndarray:
    """Numbers of `bits` bits, lowest first, of 32-bit words [words, n]: [numbers, n]."""
    words = stream.astype("<u4")
    single = (words[:, None, :] >> np.arange(32, dtype=np.uint32)[None, :, None]) & 1
    single = single.reshape(-1, bits, words.shape[1])
    return (single << np.arange(bits, dtype=np.uint32)[None, :, None]).sum(1).astype(np.int64)


def decoded(stored: dict[str, torch.Tensor], module: str, bits: int, added: int) -> torch.Tensor:
    """float32 [out, in] by the published layout: W[o, i] = (q[i, o] − z[g_idx[i], o]) · s[g_idx[i], o]."""
    piece = {part: stored[f"{module}.{part}"].numpy() for part in ("qweight", "qzeros", "scales", "g_idx")}
    codes = fields(piece["qweight"], bits)
    zeros = fields(piece["qzeros"].T, bits).T + added
    group_of = piece["g_idx"]
    level = (codes - zeros[group_of]).astype(np.float32)
    return torch.from_numpy((level * piece["scales"].astype(np.float32)[group_of]).T.copy())


@pytest.mark.parametrize(
    "name",
    [
        "int2-g16-asym",
        "int2-g32",
        "int3-g32",
        "int3-asym",
        "int4-g32",
        "int4-g32-asym",
        "int4",
        "int8",
        "int8-g32-asym",
    ],
)
def test_the_published_layout_holds_our_weights(model, tmp_path, name) -> None:
    fmt, choose = get_format(name), matrices(name, head=False)
    assert isinstance(fmt, Uniform)
    assemble(model, "gptq", tmp_path / "m", choose, slice_rows=32)
    stored = load_file(tmp_path / "m" / "model.safetensors")
    config = json.loads((tmp_path / "m" / "config.json").read_text())["quantization_config"]
    assert config["checkpoint_format"] == ("gptq" if fmt.symmetric else "gptq_v2")
    assert (config["bits"], config["group_size"], config["sym"]) == (fmt.width, fmt.group or -1, fmt.symmetric)
    assert "dynamic" not in config
    assert "modules_in_block_to_quantize" not in config
    expected = ours(model, choose)
    quantized = [n.removesuffix(".qweight") for n in stored if n.endswith(".qweight")]
    assert sorted(quantized) == sorted(f"model.layers.{n}.{m}" for n in (0, 1) for m in (*LINEARS, *MLP))
    source = load_file(model / "model.safetensors")
    for module in quantized:
        w = decoded(stored, module, fmt.width, 1 if fmt.symmetric else 0)
        assert torch.equal(w, expected[f"{module}.weight"]), module
        # Half a step at most lies between, but for what is clipped at the ends.
        error = (w - source[f"{module}.weight"].float()).pow(2).mean() / w.pow(2).mean()
        assert 0.01 * 4.0**-fmt.width < error < 4 * 4.0**-fmt.width, module
    for part, dtype in (("qweight", torch.int32), ("qzeros", torch.int32), ("scales", torch.float16)):
        assert stored[f"{quantized[0]}.{part}"].dtype == dtype
    assert stored["model.layers.0.self_attn.q_proj.bias"].dtype == torch.bfloat16
    with open_checkpoint(tmp_path / "m") as checkpoint:
        assert set(checkpoint.tensors) == set(expected)
        for key, w in expected.items():
            assert torch.equal(checkpoint.read(key).float().reshape(w.shape), w), key


@pytest.mark.parametrize(("name", "word"), [("int4-g32", 0x77777777), ("int8", 0x7F7F7F7F), ("int2-g32", 0x55555555)])
def test_symmetric_zero_points_are_the_words_that_all_clients_know(model, tmp_path, name, word) -> None:
    assemble(model, "gptq", tmp_path / "m", matrices(name, head=False))
    stored = load_file(tmp_path / "m" / "model.safetensors")
    assert set(stored["model.layers.0.mlp.up_proj.qzeros"].view(-1).tolist()) == {word}


def test_scales_are_those_of_gptqs_quantizer(tmp_path) -> None:
    """2·absmax / (2^b − 1), also where no weight is negative: there GPTQ's own clips what is beyond half the range."""
    torch.manual_seed(0)
    w = torch.randn(32, 64).half()
    w[5] = w[5].abs()
    save_file({"model.layers.0.mlp.up_proj.weight": w}, tmp_path / "w.safetensors")
    assemble(tmp_path / "w.safetensors", "gptq", tmp_path / "m", lambda t: "int4-g32")
    stored = load_file(tmp_path / "m" / "model.safetensors")
    absmax = w.float().view(32, 2, 32).abs().amax(-1)
    assert torch.equal(stored["model.layers.0.mlp.up_proj.scales"], (2 * absmax / 15).half().t())
    back = decoded(stored, "model.layers.0.mlp.up_proj", 4, 1)
    assert (back[5] - w[5]).abs().max() < 1.01 * absmax[5].max() / 15


def test_slices_give_the_bytes_of_the_whole(tmp_path) -> None:
    torch.manual_seed(1)
    name = "model.layers.0.mlp.up_proj.weight"
    save_file({name: torch.randn(224, 96).bfloat16()}, tmp_path / "w.safetensors")
    for fmt in ("int3-g32-asym", "int4", "int8-g32-asym"):
        for rows in (0, 32, 96):
            assemble(
                tmp_path / "w.safetensors", "gptq", tmp_path / fmt / str(rows), lambda t, f=fmt: f, slice_rows=rows
            )
        files = [(tmp_path / fmt / str(rows) / "model.safetensors").read_bytes() for rows in (0, 32, 96)]
        assert files[0] == files[1] == files[2]


def test_the_side_file_says_what_the_config_says(model, tmp_path) -> None:
    assemble(model, "gptq", tmp_path / "m", matrices("int4-g32", head=False))
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    side = json.loads((tmp_path / "m" / "quantize_config.json").read_text())
    assert config.pop("quantization_config") == side
    assert config == json.loads((model / "config.json").read_text())
    assert {k: side[k] for k in ("quant_method", "desc_act", "lm_head", "pack_dtype")} == {
        "quant_method": "gptq",
        "desc_act": False,
        "lm_head": False,
        "pack_dtype": "int32",
    }
    from transformers import GPTQConfig

    parsed = GPTQConfig.from_dict(dict(side))
    assert (parsed.bits, parsed.group_size, parsed.sym, parsed.format) == (4, 32, True, "gptq")


def _mixed(tensor: OutputTensor) -> str | None:
    kind, layer = tensor.role.kind, tensor.role.layer
    if kind in ("q", "k", "v") or (kind == "down" and layer == 1):
        return "int8"
    return "int4-g32" if kind in ("gate", "up", "down") else None


def test_modules_that_differ_are_told_to_each_client(model, tmp_path) -> None:
    assemble(model, "gptq", tmp_path / "m", _mixed)
    config = json.loads((tmp_path / "m" / "config.json").read_text())["quantization_config"]
    assert (config["bits"], config["group_size"]) == (4, 32)
    # GPTQModel and vLLM take the first rule that matches from the start of the name.
    rules = config["dynamic"]
    names = [f"model.layers.{n}.{m}" for n in (0, 1, 10) for m in (*LINEARS, *MLP)]
    eight = {n for n in names for p in rules if p[:2] == "+:" and re.match(p[2:], n)}
    kept = {n for n in names for p in rules if p[:2] == "-:" and re.match(p[2:], n)}
    assert eight == {f"model.layers.{n}.{m}" for n in (0, 1) for m in LINEARS[:3]} | {"model.layers.1.mlp.down_proj"}
    assert kept == {f"model.layers.{n}.self_attn.o_proj" for n in (0, 1)}
    assert {str(v) for p, v in rules.items() if p[0] == "+"} == {
        "{'bits': 8, 'group_size': -1, 'desc_act': False}",
    }
    # vLLM asks for the rule of what it computes together.
    assert any(re.match(p[2:], "model.layers.1.self_attn.qkv_proj") for p in rules if p[0] == "+")
    assert not any(re.match(p[2:], "model.layers.1.mlp.gate_up_proj") for p in rules)
    # transformers quantizes what ends so, vLLM what contains it.
    (listed,) = config["modules_in_block_to_quantize"]
    assert {n for n in names[:14] if any(n.endswith(m) for m in listed)} == set(names[:14]) - kept
    assert len(listed) == 6
    expected = ours(model, _mixed)
    with open_checkpoint(tmp_path / "m") as checkpoint:
        for key, w in expected.items():
            assert torch.equal(checkpoint.read(key).float().reshape(w.shape), w), key


def test_a_module_kept_in_one_layer_only_is_left_out_by_name(model, tmp_path) -> None:
    def choose(tensor):
        kept = tensor.name == "model.layers.1.mlp.down_proj.weight"
        return None if kept else matrices("int4-g32", head=False)(tensor)

    assemble(model, "gptq", tmp_path / "m", choose)
    config = json.loads((tmp_path / "m" / "config.json").read_text())["quantization_config"]
    (listed,) = config["modules_in_block_to_quantize"]
    assert "model.layers.0.mlp.down_proj" in listed
    assert "mlp.down_proj" not in listed
    assert "mlp.up_proj" in listed
    assert config["dynamic"] == {r"-:^model\.layers\.(?:1)\.mlp\.down_proj$": {}}


def test_columns_grouped_out_of_order_carry_their_groups(tmp_path) -> None:
    """As act-order leaves them: the method hands g_idx over with the grid, and the assignment says so beforehand."""
    torch.manual_seed(2)
    name = "model.layers.0.mlp.up_proj.weight"
    save_file({name: torch.zeros(32, 64).half()}, tmp_path / "w.safetensors")
    with open_checkpoint(tmp_path / "w.safetensors") as checkpoint:
        outline = GPTQ.outline(checkpoint)
        (tensor,) = outline.tensors
        fmt = GPTQ.adapt(get_format("int4-g32-asym"), tensor)
        assignment = Assignment(tensor, fmt, scattered=True)
        codes = torch.randint(-8, 8, (32, 64), dtype=torch.int8)
        group_of = (torch.arange(64, dtype=torch.int32) // 32)[torch.randperm(64)]
        scale = (torch.rand(32, 2) + 0.5).half()
        zero = torch.randint(-8, 8, (32, 2), dtype=torch.int8)
        grid = Grid({"scale": scale, "zero_point": zero, "g_idx": group_of})
        quantized = Quantized(fmt, (32, 64), codes=codes, grid=grid)
        layout = GPTQ.layout(checkpoint, outline, Assignments([assignment]))
        data = bytearray(layout.files[0].nbytes)
        data[: len(layout.files[0].head)] = layout.files[0].head
        places = {p.stored.name: p.offset for p in layout.places[name]}
        for stored, offset, piece in GPTQ.store(assignment, quantized, 0, 32):
            at = places[stored] + offset
            data[at : at + len(piece)] = piece
    assert quantization_config(Assignments([assignment]))["desc_act"] is True
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "model.safetensors").write_bytes(data)
    (tmp_path / "m" / "config.json").write_bytes(layout.sides["config.json"])
    expected = (codes.float() - zero.float()[:, group_of]) * scale.float()[:, group_of]
    stored = load_file(tmp_path / "m" / "model.safetensors")
    assert torch.equal(decoded(stored, name.removesuffix(".weight"), 4, 0), expected)
    with open_checkpoint(tmp_path / "m") as checkpoint:
        assert torch.equal(checkpoint.read(name), expected)


def problems(model: Path, tmp_path: Path, *rules: tuple[str, str]) -> list[tuple[str, str, str]]:
    """(severity, tensor, message) of a plan by rules of (names, format)."""
    text = "\n".join(f'[[rule]]\nname = "{name}"\nstrategy = "{fmt}"' for name, fmt in rules)
    (tmp_path / "r.toml").write_text(f"quantbench = 1\n{text}\n")
    with open_checkpoint(model) as checkpoint:
        plan = make_plan(checkpoint, load(str(tmp_path / "r.toml")), GPTQ)
        out = tmp_path / "out"
        if any(p.severity == "error" for p in plan.problems):
            with pytest.raises(PlanError):
                run(plan, checkpoint, out, workers=1)
            assert not out.exists()
        return [(p.severity, p.tensor, p.message) for p in plan.problems]


def test_formats_that_do_not_fit_together_are_objected_to(model) -> None:
    with open_checkpoint(model) as checkpoint:
        tensors = [t for t in GPTQ.outline(checkpoint).tensors if t.linear and t.role.kind != "head"]

    def objections(first: str, second: str):
        made = [Assignment(t, get_format(first if n else second)) for n, t in enumerate(tensors)]
        found = GPTQ.objections(Assignments(made))
        return [o for o in found if "vLLM computes" not in o.message and "vLLM loads" not in o.message]

    assert objections("int4-g32", "int4-g32") == []
    (warning,) = objections("int4-g32", "int8")
    assert (warning.severity, warning.tensor) == ("warning", tensors[1].name)
    assert "transformers" in warning.message
    errors = objections("int4-g32-asym", "int4-g32")
    assert {e.severity for e in errors} == {"error"}
    assert [e.tensor for e in errors] == [t.name for t in tensors[1:]]


@pytest.mark.parametrize("fmt", [f for f in FORMATS if f.encodable], ids=lambda f: f.name)
def test_formats_are_taken_by_kind(fmt) -> None:
    reason = GPTQ.refuses(fmt, _tensor("model.layers.0.mlp.up_proj.weight", (512, 512)))
    fits = type(fmt) is Uniform and fmt.width in (2, 3, 4, 8) and fmt.granularity in ("row", "group")
    assert (reason is None) == (fmt.family == "dense" or fits)
    assert reason is None or fmt.name in reason or "row or group" in reason


def _tensor(name: str, shape: tuple[int, ...]) -> OutputTensor:
    from core.roles import role_of
    from core.targets.base import Plain
    from core.targets.modules import is_linear
    from core.tensors import TensorInfo

    role = role_of(name)
    return OutputTensor(name, Plain(name), shape, "BF16", role, is_linear(TensorInfo(name, shape, "BF16", 0), role))


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("model.layers.0.mlp.up_proj.weight", (64, 96), ""),
        ("model.layers.0.mlp.up_proj.weight", (48, 64), "48 × 64 are no multiples of 32"),
        ("model.layers.0.mlp.up_proj.weight", (64, 48), "64 × 48 are no multiples of 32"),
        ("lm_head.weight", (64, 64), "the head"),
        ("score.weight", (64, 64), "outside of the layers"),
        ("model.embed_tokens.weight", (64, 64), "embedding"),
        ("model.layers.0.input_layernorm.weight", (64,), "1-D"),
        ("model.layers.0.mlp.experts.gate_up_proj", (4, 64, 64), "expert"),
    ],
)
def test_only_what_clients_look_for_is_quantized(name, shape, said) -> None:
    reason = GPTQ.refuses(get_format("int4"), _tensor(name, shape))
    assert (said in (reason or "")) if said else reason is None


def test_groups_that_no_client_takes_are_refused() -> None:
    tensor = _tensor("model.layers.0.mlp.up_proj.weight", (64, 96))
    assert "not 48" in (GPTQ.refuses(get_format("int4-g48"), tensor) or "")
    assert "compressed-tensors" in (GPTQ.refuses(get_format("int5"), tensor) or "")


def test_scales_beyond_half_precision_are_an_error(tmp_path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    save_file({name: torch.full((32, 64), 1e7).bfloat16()}, tmp_path / "w.safetensors")
    from core.errors import OutOfRange

    with pytest.raises(OutOfRange, match="row 0"):
        assemble(tmp_path / "w.safetensors", "gptq", tmp_path / "m", lambda t: "int4-g32")


def test_through_the_engine_and_back(model, tmp_path) -> None:
    """Planned bytes are those on disk, in shards too; and the folder is a source like any other."""
    with open_checkpoint(model) as checkpoint:
        for shard_bytes in (None, 60_000):
            plan = make_plan(checkpoint, load("int4-g32"), GPTQ, shard_bytes=shard_bytes)
            assert not [p for p in plan.problems if p.severity == "error"]
            out = tmp_path / f"m{shard_bytes}"
            run(plan, checkpoint, out, workers=2)
            assert size_of(out) == plan.nbytes
            assert (len(plan.layout.files) > 2) == bool(shard_bytes)
    expected = ours(model, matrices("int4-g32", head=False))
    with open_checkpoint(tmp_path / "m60000") as checkpoint:
        for key, w in expected.items():
            assert torch.equal(checkpoint.read(key).float().reshape(w.shape), w), key
        plan = make_plan(checkpoint, load("bf16"), get_target("dense"))
        run(plan, checkpoint, tmp_path / "dense", workers=1)
    assert not (tmp_path / "dense" / "quantize_config.json").exists()
    assert "quantization_config" not in json.loads((tmp_path / "dense" / "config.json").read_text())
    with open_checkpoint(tmp_path / "dense") as checkpoint:
        for key, w in expected.items():
            assert torch.equal(checkpoint.read(key).reshape(w.shape), w.bfloat16()), key


def test_mixing_symmetric_and_not_stops_the_run(model, tmp_path) -> None:
    plan = problems(model, tmp_path, ("*.mlp.*", "int4-g32"), ("*.self_attn.*", "int4-g32-asym"))
    errors = [p for p in plan if p[0] == "error"]
    assert errors
    assert all("symmetric or has zero points" in message for _, _, message in errors)


def test_the_grid_keeps_half_precision_scales() -> None:
    fmt = GPTQ.adapt(get_format("int4-g32"), _tensor("model.layers.0.mlp.up_proj.weight", (64, 96)))
    assert fmt == replace(get_format("int4-g32"), scale_dtype="F16")
