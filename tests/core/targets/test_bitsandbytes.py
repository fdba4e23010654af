"""bitsandbytes folders: loaded by transformers, decoded by bitsandbytes, read back, and what the container refuses."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

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
from tests.core.targets.build import assemble, gpt2_like, matrices, save_model, save_tokenizer, size_of

SHAPES = {"hidden_size": 64, "intermediate_size": 128, "vocab_size": 300}
# Largest RMS difference between bitsandbytes' logits and those of our weights, in units of what quantizing changed.
LOGITS = {"nf4": 0.1, "nf4-dq": 0.1, "fp4": 0.1, "fp4-dq": 0.1, "llm-int8": 5.0}
FOUR = ["nf4", "nf4-dq", "fp4", "fp4-dq"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = save_model(tmp_path_factory.mktemp("model"), **SHAPES)
    save_tokenizer(folder, gpt2_like())
    return folder


@pytest.fixture(scope="module")
def odd(tmp_path_factory) -> Path:
    """72 columns: blocks of 64 run from one row into the next."""
    return save_model(tmp_path_factory.mktemp("odd"), **SHAPES | {"intermediate_size": 72})


def linear(name: str):
    return matrices(name, head=False)


def dequantized(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """What the quantized weights must be by our own format, straight from the source."""
    found = {}
    with open_checkpoint(folder) as checkpoint:
        for tensor in get_target("bitsandbytes").outline(checkpoint).tensors:
            w = tensor.source.read(checkpoint, 0, tensor.rows)
            if linear(name)(tensor):
                w = get_format(name).quantize(w).dequantize()
            found[tensor.name] = w.float().reshape(tensor.shape)
    return found


@pytest.mark.parametrize("name", FOUR)
def test_bitsandbytes_decodes_what_we_wrote(odd, tmp_path, name) -> None:
    """By its own state and its own kernel, bit for bit."""
    from bitsandbytes.functional import QuantState, dequantize_4bit

    assemble(odd, "bitsandbytes", tmp_path / "m", linear(name))
    stored = load_file(tmp_path / "m" / "model.safetensors")
    seen = 0
    for key, w in dequantized(odd, name).items():
        if f"{key}.absmax" not in stored:
            assert torch.equal(stored[key].float(), w)
            continue
        pieces = {k: v for k, v in stored.items() if k.startswith(f"{key}.")}
        state = QuantState.from_dict(pieces, device=torch.device("cpu"))
        assert state.nested == name.endswith("-dq")
        state.dtype = torch.float32
        decoded = dequantize_4bit(stored[key], state)
        # Nested statistics are added up in another order there: one unit in the last place of the absmax.
        torch.testing.assert_close(decoded, w, rtol=3e-7 if state.nested else 0, atol=0)
        seen += 1
    assert seen == 14


@pytest.mark.parametrize("name", [*FOUR, "llm-int8"])
def test_reads_back_as_our_own_weights(odd, tmp_path, name) -> None:
    assemble(odd, "bitsandbytes", tmp_path / "m", linear(name))
    with open_checkpoint(tmp_path / "m") as again:
        assert isinstance(again, QuantizedCheckpoint)
        expected = dequantized(odd, name)
        assert again.tensors.keys() == expected.keys()
        for key, w in expected.items():
            assert torch.equal(again.read(key).float().reshape(w.shape), w), key
        down = "model.layers.1.mlp.down_proj.weight"
        assert again.tensors[down].dtype == name.upper()
        assert torch.equal(again.read(down, 5, 12), expected[down][5:12])


@pytest.mark.parametrize("name", [*FOUR, "llm-int8"])
def test_transformers_loads_it(model, tmp_path, name) -> None:
    """bitsandbytes' modules hold our weights, and the logits are near those of our weights: its 4-bit kernels round the
    weights to bfloat16, the 8-bit one quantizes activations too."""
    from bitsandbytes.functional import dequantize_4bit
    from transformers import AutoModelForCausalLM

    assemble(model, "bitsandbytes", tmp_path / "m", linear(name))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "m", device_map="cpu", dtype=torch.float32).eval()
        ours = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    expected = dequantized(model, name)
    seen = 0
    for key, module in theirs.named_modules():
        kind = type(module).__name__
        if kind == "Linear4bit":
            state = module.weight.quant_state
            state.dtype, kept = torch.float32, state.dtype
            decoded = dequantize_4bit(module.weight.data, state)
            state.dtype = kept
            # Nested statistics as in the test above.
            torch.testing.assert_close(decoded, expected[f"{key}.weight"], rtol=3e-7, atol=0)
            seen += 1
        elif kind == "Linear8bitLt":
            scale = module.weight.SCB.float()
            decoded = module.weight.data.float() * scale[:, None] * 7.874015718698502e-3
            assert torch.equal(decoded, expected[f"{key}.weight"])
            seen += 1
    assert seen == 14
    ids = torch.tensor([[3, 70, 8, 255, 19, 44]])
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = ours(ids).logits
        ours.load_state_dict(expected)
        wanted, got = ours(ids).logits, theirs(ids).logits.float()
    moved, off = (wanted - before).square().mean().sqrt(), (got - wanted).square().mean().sqrt()
    assert 0 < off < LOGITS[name] * moved


@pytest.mark.parametrize("name", [*FOUR, "llm-int8"])
@pytest.mark.parametrize("shard", [None, 60_000])
def test_plan_is_the_disk_to_the_byte(model, tmp_path, name, shard) -> None:
    target = get_target("bitsandbytes")
    with open_checkpoint(model) as checkpoint:
        plan = make_plan(checkpoint, load(name), target, shard_bytes=shard)
        assert not [p for p in plan.problems if p.severity == "error"]
        assert (len(plan.layout.files) > 1) == bool(shard)
        run(plan, checkpoint, tmp_path / "out", workers=1)
    assert size_of(tmp_path / "out") == plan.nbytes
    with open_checkpoint(tmp_path / "out") as again:
        for key, w in dequantized(model, name).items():
            assert torch.equal(again.read(key).float().reshape(w.shape), w), key


def test_slices_give_the_bytes_of_the_whole(model, tmp_path) -> None:
    for name in ("nf4", "llm-int8"):
        for rows, out in ((0, "whole"), (8, "slices")):
            assemble(model, "bitsandbytes", tmp_path / name / out, linear(name), slice_rows=rows)
        whole, slices = (tmp_path / name / f / "model.safetensors" for f in ("whole", "slices"))
        assert whole.read_bytes() == slices.read_bytes()


def test_rows_that_bitsandbytes_misreads_on_a_cpu_are_named(odd) -> None:
    with open_checkpoint(odd) as checkpoint:
        for name, count in (("nf4", 2), ("llm-int8", 0)):
            plan = make_plan(checkpoint, load(name), get_target("bitsandbytes"))
            found = [
                p.tensor for p in plan.problems if p.severity == "warning" and "decodes such rows wrongly" in p.message
            ]
            assert found == [f"model.layers.{n}.mlp.down_proj.weight" for n in range(count)]


@pytest.mark.parametrize(
    ("name", "text"), [("q4_k", "no q4_k"), ("int4-g32", "no int4-g32"), ("llm-int8-o16", "outlier columns")]
)
def test_other_formats_are_refused_by_name(model, tmp_path, name, text) -> None:
    with open_checkpoint(model) as checkpoint:
        plan = make_plan(checkpoint, load(name), get_target("bitsandbytes"))
        (error,) = [p for p in plan.problems if p.severity == "error"]
        assert error.tensor.endswith(".weight")
        assert text in error.message or any(text in p.message for p in plan.problems)
        with pytest.raises(Exception, match="nothing to quantize"):
            run(plan, checkpoint, tmp_path / "out", workers=1)
    assert list(tmp_path.iterdir()) == []


def test_one_folder_holds_one_quantized_format(model, tmp_path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text('quantbench = 1\n[[rule]]\nname = "*.mlp.*"\nstrategy = "nf4"\n[[rule]]\nstrategy = "llm-int8"\n')
    with open_checkpoint(model) as checkpoint:
        plan = make_plan(checkpoint, load(str(recipe)), get_target("bitsandbytes"))
    errors = [p for p in plan.problems if p.severity == "error"]
    assert errors
    assert all("one quantized format" in p.message or "more tensors" in p.message for p in errors)


def test_files_of_bitsandbytes_itself_are_read(tmp_path) -> None:
    """Another block size, nested, from bitsandbytes' own quantizer. (Its CPU kernel of 0.50.2 decodes wrongly where
    columns are no multiple of the block and rows are few; so they are here.)"""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    w = torch.randn(24, 128, generator=torch.Generator().manual_seed(3))
    codes, state = quantize_4bit(w, quant_type="nf4", compress_statistics=True, blocksize=128)
    tensors = {"a.weight": codes, **{f"a.weight.{k}": v for k, v in state.as_dict(packed=True).items()}}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "bitsandbytes"}}))
    with open_checkpoint(tmp_path) as checkpoint:
        assert list(checkpoint.tensors) == ["a.weight"]
        torch.testing.assert_close(checkpoint.read("a.weight"), dequantize_4bit(codes, state), rtol=3e-7, atol=0)
        assert torch.equal(checkpoint.read("a.weight", 7, 9), checkpoint.read("a.weight")[7:9])


@pytest.mark.parametrize("missing", ["absmax", "quant_map", "nested_absmax"])
def test_missing_pieces_are_named(model, tmp_path, missing) -> None:
    assemble(model, "bitsandbytes", tmp_path / "m", linear("nf4-dq"))
    file = tmp_path / "m" / "model.safetensors"
    key = f"model.layers.0.mlp.up_proj.weight.{missing}"
    save_file({k: v for k, v in load_file(file).items() if k != key}, file)
    with pytest.raises(CorruptFile, match=missing):
        open_checkpoint(tmp_path / "m")


def test_broken_states_are_named(model, tmp_path) -> None:
    assemble(model, "bitsandbytes", tmp_path / "m", linear("nf4"))
    file = tmp_path / "m" / "model.safetensors"
    key = "model.layers.0.mlp.up_proj.weight.quant_state.bitsandbytes__nf4"
    for text, error in (
        ('{"shape": [72, 64], "blocksize": 0}', "blocksize 0"),
        ('{"shape": [9999999, 64], "blocksize": 64}', "belong to"),
        ("[", "quant_state"),
    ):
        tensors = load_file(file) | {key: torch.tensor(list(text.encode()), dtype=torch.uint8)}
        (tmp_path / "b").mkdir(exist_ok=True)
        (tmp_path / "b" / "config.json").write_bytes((tmp_path / "m" / "config.json").read_bytes())
        save_file(tensors, tmp_path / "b" / "model.safetensors")
        with pytest.raises(CorruptFile, match=error):
            open_checkpoint(tmp_path / "b")
    tensors = {"a.weight": torch.zeros(4, 4, dtype=torch.int8), "a.SCB": torch.zeros(4)}
    tensors["a.weight_format"] = torch.ones((), dtype=torch.uint8)
    save_file(tensors, tmp_path / "b" / "model.safetensors")
    with pytest.raises(UnsupportedFormat, match="laid out"):
        open_checkpoint(tmp_path / "b")
