"""NVFP4 in a GGUF: llama.cpp multiplies with its scales wherever we write it, gguf decodes our blocks, and files with
scales go from GGUF to GGUF whole or not at all."""

from __future__ import annotations

import re
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from core.checkpoints import open_checkpoint
from core.engine.pipeline import run
from core.engine.plan import make_plan
from core.errors import CorruptFile
from core.formats import get_format
from core.formats.mx import NvFp4
from core.recipes import load
from core.targets import get_target
from core.targets.base import OutputTensor
from tests.core.targets.build import assemble
from tests.core.targets.llama_cpp import ask
from tests.core.targets.test_gguf_architectures import IDS, MODELS, WORDS, save

TARGET = get_target("gguf")
FEED_FORWARD = ("gate", "up", "down")
# Those in which llama.cpp knows scales in the feed-forward.
WHOLE = ("llama", "mistral", "mixtral", "qwen3", "qwen3moe")


def nvfp4(tensor: OutputTensor) -> str | None:
    return "nvfp4" if len(tensor.shape) > 1 and TARGET.refuses(get_format("nvfp4"), tensor) is None else None


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.square(values, dtype=np.float64).mean()))


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, dict[str, Path]]:
    """Every architecture: in 32-bit floats, in NVFP4, and in 32-bit floats decoded from that. Columns fit blocks."""
    root = tmp_path_factory.mktemp("files")
    made = {}
    for number, (name, (kind, settings)) in enumerate(MODELS.items()):
        fitting = {k: {96: 128, 32: 64 if k == "moe_intermediate_size" else 32}.get(v, v) if type(v) is int else v
                   for k, v in settings.items()}  # fmt: skip
        folder = save(root / str(number), kind, fitting, number, spread=0.08)
        made[name] = {key: root / f"{number}-{key}.gguf" for key in ("original", "nvfp4", "decoded")}
        assemble(folder, "gguf", made[name]["original"], lambda t: "f32")
        assemble(folder, "gguf", made[name]["nvfp4"], nvfp4)
        assemble(made[name]["nvfp4"], "gguf", made[name]["decoded"], lambda t: "f32")
    return made


def test_llama_cpp_multiplies_with_every_scale_that_is_written(files) -> None:
    found = iter(ask(*((path, [], IDS) for several in files.values() for path in several.values())))
    for name in files:
        original, ours, decoded = (next(found) for _ in range(3))
        assert not any(answer.error for answer in (original, ours, decoded)), name
        effect = rms(decoded.logits - original.logits) / rms(original.logits)
        apart = rms(ours.logits - decoded.logits) / rms(original.logits)
        # What is left are the 8 bits of the inputs, for which a router may choose another expert; without one scale it
        # is above 0.2.
        assert apart < (0.1 if "expert" in str(MODELS[name][1]) else 0.03), (name, apart)
        assert apart < effect < 0.6, (name, effect)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_written_and_what_is_refused(files, name) -> None:
    tensors = {t.name: t for t in gguf.GGUFReader(files[name]["nvfp4"]).tensors}
    kinds = {n: t.tensor_type.name for n, t in tensors.items()}
    assert kinds["token_embd.weight"] == "F32"
    assert kinds["blk.0.attn_output.weight"] == "NVFP4"
    with open_checkpoint(files[name]["original"]) as checkpoint:
        outline = TARGET.outline(checkpoint)
    for tensor in outline.tensors:
        if tensor.role.kind in FEED_FORWARD and len(tensor.shape) > 1:
            assert kinds[tensor.name] == ("NVFP4" if name in WHOLE else "F32")
            why = TARGET.refuses(get_format("nvfp4"), tensor)
            assert why is None if name in WHOLE else "leaves out the scale" in why
    for weight in (n for n, kind in kinds.items() if kind == "NVFP4"):
        scale = tensors[weight.removesuffix("weight") + "scale"]
        stacked = len(tensors[weight].shape) == 3
        assert scale.shape.tolist() == [tensors[weight].shape[2] if stacked else 1]
        assert (np.frexp(scale.data)[0] == 0.5).all()
    assert not [n for n, t in tensors.items() if n.endswith(".scale") and kinds[n[:-5] + "weight"] != "NVFP4"]


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_gguf_decodes_our_blocks(files, name) -> None:
    tensors = {t.name: t for t in gguf.GGUFReader(files[name]["nvfp4"]).tensors}
    decoded = {t.name: t.data for t in gguf.GGUFReader(files[name]["decoded"]).tensors}
    assert decoded.keys() == {n for n in tensors if not n.endswith(".scale")}
    seen = 0
    for weight, tensor in tensors.items():
        if tensor.tensor_type.name == "NVFP4":
            theirs = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            factor = tensors[weight.removesuffix("weight") + "scale"].data
            theirs = theirs * (factor[:, None, None] if theirs.ndim == 3 else factor)
            assert np.array_equal(theirs.reshape(decoded[weight].shape), decoded[weight]), weight
            seen += 1
    assert seen == 15


def test_the_power_of_two_costs_nothing() -> None:
    w = torch.randn(64, 256, generator=torch.Generator().manual_seed(0)) * 0.03
    errors = []
    for fmt in NvFp4("nvfp4"), NvFp4("nvfp4", power_of_two=True):
        errors.append(float((fmt.quantize(w).dequantize() - w).pow(2).mean() / w.pow(2).mean()))
    assert 0.98 < errors[1] / errors[0] < 1.02
    for value in (1e-44, 1e-38, 1e-30, 1.0, 1e30, 1e38, 3e38):
        back = NvFp4("nvfp4", power_of_two=True).quantize(torch.full((2, 64), value)).dequantize()
        assert back.isfinite().all()
        assert value < 1e-37 or float((back / value - 1).abs().max()) < 0.1


def test_the_plan_is_the_file_sharded_and_not(files, tmp_path) -> None:
    for shard_bytes in (None, 30_000):
        out = tmp_path / f"{shard_bytes}.gguf"
        with open_checkpoint(files["mixtral"]["original"]) as checkpoint:
            plan = make_plan(checkpoint, load("nvfp4"), TARGET, shard_bytes=shard_bytes)
            run(plan, checkpoint, out, workers=2)
        held = [out] if out.is_file() else sorted(out.iterdir())
        assert len(held) > (2 if shard_bytes else 0)
        assert sum(path.stat().st_size for path in held) == plan.nbytes
        with open_checkpoint(out) as again, open_checkpoint(files["mixtral"]["decoded"]) as wanted:
            for tensor in wanted.tensors:
                assert torch.equal(again.read(tensor).float(), wanted.read(tensor)), tensor


def test_scales_go_along_with_blocks_that_are_kept(files, tmp_path) -> None:
    source = files["mixtral"]["nvfp4"]
    assemble(source, "gguf", tmp_path / "same.gguf")
    assert (tmp_path / "same.gguf").read_bytes() == source.read_bytes()
    with open_checkpoint(source) as checkpoint:
        plan = make_plan(checkpoint, load("nvfp4"), TARGET)
        run(plan, checkpoint, tmp_path / "engine.gguf", workers=1)
        assert {t.tensor.name for t in plan.tensors if t.copy} > {"blk.0.ffn_up_exps.weight", "blk.1.attn_q.weight"}
    with open_checkpoint(source) as a, open_checkpoint(tmp_path / "engine.gguf") as b:
        assert a.tensors == b.tensors
        assert all(bytes(a.raw(name)) == bytes(b.raw(name)) for name in a.tensors)


def test_scales_go_with_blocks_that_are_quantized_again(files, tmp_path) -> None:
    """Left where they were, llama.cpp would multiply with them once more."""
    with open_checkpoint(files["llama"]["nvfp4"]) as checkpoint:
        plan = make_plan(checkpoint, load("Q8_0"), TARGET)
        run(plan, checkpoint, tmp_path / "m.gguf", workers=1)
    assert any("already" in p.message for p in plan.problems)
    assert not [t.name for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors if re.search(r"scale$", t.name)]
    ours, wanted = ask((tmp_path / "m.gguf", [], IDS), (files["llama"]["decoded"], [], IDS))
    assert rms(ours.logits - wanted.logits) < 0.03 * rms(wanted.logits)


def test_a_scale_per_expert_is_read(tmp_path) -> None:
    """As llama.cpp's converter writes it; and one that fits nothing."""
    w = torch.randn(3, 4, 64, generator=torch.Generator().manual_seed(1))
    blocks = gguf.quants.quantize(w.numpy(), gguf.GGMLQuantizationType.Q8_0)  # any bytes: NVFP4 has no quantizer there
    raw = np.ascontiguousarray(blocks.reshape(3, 4, -1)[:, :, :36]) & 0x77
    for count, name in ((3, "good"), (2, "bad")):
        writer = gguf.GGUFWriter(tmp_path / f"{name}.gguf", "llama")
        writer.add_tensor("blk.0.ffn_up_exps.weight", raw, raw_dtype=gguf.GGMLQuantizationType.NVFP4)
        writer.add_tensor("blk.0.ffn_up_exps.scale", np.array([0.5, 3.0, 0.1], np.float32)[:count])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    plain = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType.NVFP4)
    wanted = plain * np.array([0.5, 3.0, 0.1], np.float32)[:, None, None]
    with open_checkpoint(tmp_path / "good.gguf") as checkpoint:
        found = checkpoint.read("blk.0.ffn_up_exps.weight")
        assert np.array_equal(found.numpy(), wanted.reshape(12, 64))
        assert torch.equal(checkpoint.read("blk.0.ffn_up_exps.weight", 3, 9), found[3:9])
    with open_checkpoint(tmp_path / "bad.gguf") as checkpoint, pytest.raises(CorruptFile, match="no scale of"):
        checkpoint.read("blk.0.ffn_up_exps.weight")


def test_columns_that_do_not_fit_are_named(tmp_path) -> None:
    folder = save(tmp_path / "m", "Llama", WORDS, 0)
    with open_checkpoint(folder) as checkpoint:
        plan = make_plan(checkpoint, load("nvfp4"), TARGET)
    said = {p.tensor: p.message for p in plan.problems}
    assert "columns 96 is not a multiple of 64" in said["blk.0.ffn_down.weight"]
