"""compressed-tensors folders read back as weights, against the package that defines them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.checkpoints import open_checkpoint
from core.checkpoints.dialects import QuantizedCheckpoint, unread_quantization
from core.errors import CorruptFile, UnsupportedFormat

STEM = "model.layers.0.mlp.up_proj"


def folder(path: Path, bits: int, strategy: str, symmetric: bool) -> torch.Tensor:
    """A folder with one weight quantized by compressed-tensors itself; returns what that package decodes."""
    from compressed_tensors.compressors.pack_quantized import pack_to_int32
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import dequantize, quantize
    from compressed_tensors.quantization.utils import calculate_qparams

    group = 32 if strategy == "group" else None
    args = QuantizationArgs(num_bits=bits, type="int", strategy=strategy, symmetric=symmetric, group_size=group)
    w = torch.randn(64, 96, generator=torch.Generator().manual_seed(bits)) * 0.05
    blocks = w.reshape(64, -1, 32) if group else w.reshape(64, 1, 96)
    scale, zero = calculate_qparams(blocks.amin(-1), blocks.amax(-1), args)
    zero = zero.to(torch.int8)
    codes = quantize(w, scale, zero, args, dtype=torch.int8)
    expected = dequantize(codes, scale, zero, args)
    packed = bits < 8 or strategy == "group"
    tensors = {f"{STEM}.weight_scale": scale}
    if packed:
        tensors[f"{STEM}.weight_packed"] = pack_to_int32(codes, bits)
        tensors[f"{STEM}.weight_shape"] = torch.tensor(w.shape)
    else:
        tensors[f"{STEM}.weight"] = codes
    if not symmetric:
        tensors[f"{STEM}.weight_zero_point"] = pack_to_int32(zero, bits, packed_dim=0).contiguous() if packed else zero
    path.mkdir()
    save_file({k: v.contiguous() for k, v in tensors.items()}, path / "model.safetensors")
    dialect = "pack-quantized" if packed else "int-quantized"
    config = {"quant_method": "compressed-tensors", "format": dialect, "config_groups": {"group_0": {"weights": {}}}}
    config["config_groups"]["group_0"]["weights"] = {"num_bits": bits}
    (path / "config.json").write_text(json.dumps({"architectures": ["X"], "quantization_config": config}))
    return expected


@pytest.mark.parametrize("symmetric", [True, False], ids=["sym", "asym"])
@pytest.mark.parametrize("strategy", ["group", "channel"])
@pytest.mark.parametrize("bits", range(2, 9))
def test_reads_what_the_package_wrote(tmp_path: Path, bits: int, strategy: str, symmetric: bool) -> None:
    expected = folder(tmp_path / "m", bits, strategy, symmetric)
    with open_checkpoint(tmp_path / "m") as checkpoint:
        assert isinstance(checkpoint, QuantizedCheckpoint)
        assert list(checkpoint.tensors) == [f"{STEM}.weight"]
        info = checkpoint.tensors[f"{STEM}.weight"]
        assert (info.shape, info.dtype) == ((64, 96), f"INT{bits}")
        assert torch.equal(checkpoint.read(info.name), expected)
        assert torch.equal(checkpoint.read(info.name, 17, 40), expected[17:40])
        assert checkpoint.file_of(info.name).name == "model.safetensors"
        assert unread_quantization(checkpoint) == ""
        with pytest.raises(UnsupportedFormat, match="several pieces"):
            checkpoint.raw(info.name)


@pytest.mark.parametrize(
    ("missing", "text"), [("weight_scale", "no weight_scale"), ("weight_shape", "no weight_shape")]
)
def test_missing_pieces_are_named(tmp_path: Path, missing: str, text: str) -> None:
    folder(tmp_path / "m", 4, "group", True)
    file = tmp_path / "m" / "model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if not k.endswith(missing)}, file)
    with pytest.raises(CorruptFile, match=text):
        open_checkpoint(tmp_path / "m")


def test_old_packing_is_refused(tmp_path: Path) -> None:
    """3 bits, ten to a word: what the package wrote before it packed densely."""
    folder(tmp_path / "m", 3, "group", True)
    file = tmp_path / "m" / "model.safetensors"
    tensors = load_file(file)
    tensors[f"{STEM}.weight_packed"] = torch.zeros(64, 10, dtype=torch.int32)
    save_file(tensors, file)
    with pytest.raises(UnsupportedFormat, match="before compressed-tensors"):
        open_checkpoint(tmp_path / "m")


def test_other_dialects_are_named(tmp_path: Path) -> None:
    folder(tmp_path / "m", 4, "group", True)
    (tmp_path / "m" / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "gptq"}}))
    with open_checkpoint(tmp_path / "m") as checkpoint:
        assert unread_quantization(checkpoint) == "gptq"
