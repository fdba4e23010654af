"""AWQ folders read back as weights, against what compressed-tensors' converter makes of the same tensors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from core.checkpoints import open_checkpoint
from core.checkpoints.dialects import QuantizedCheckpoint, unread_quantization
from core.errors import CorruptFile, UnsupportedFormat

STEM = "model.layers.0.mlp.up_proj"
ROWS, COLUMNS = 40, 96


def pieces(group: int = 32) -> dict[str, torch.Tensor]:
    """Any words are codes and zero points of some weight."""
    g = torch.Generator().manual_seed(group)
    groups = COLUMNS // group

    def words(*shape: int) -> torch.Tensor:
        return torch.randint(-(2**31), 2**31, shape, generator=g, dtype=torch.int64).to(torch.int32)

    return {
        f"{STEM}.qweight": words(COLUMNS, ROWS // 8),
        f"{STEM}.qzeros": words(groups, ROWS // 8),
        f"{STEM}.scales": (torch.rand(groups, ROWS, generator=g) * 0.1).half(),
    }


def folder(path: Path, tensors: dict[str, torch.Tensor], **config: object) -> Path:
    path.mkdir()
    save_file({k: v.contiguous() for k, v in tensors.items()}, path / "model.safetensors")
    settings = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "GEMM"} | config
    (path / "config.json").write_text(json.dumps({"quantization_config": settings}))
    return path


def converted(tensors: dict[str, torch.Tensor], group: int) -> torch.Tensor:
    """float32 [rows, columns] by way of compressed-tensors."""
    from compressed_tensors.compressors.pack_quantized import unpack_from_int32
    from compressed_tensors.entrypoints.convert.converters.autoawq import AutoAWQConverter

    made = AutoAWQConverter(group_size=group).process(dict(tensors))
    shape = torch.Size(made[f"{STEM}.weight_shape"].tolist())
    codes = unpack_from_int32(made[f"{STEM}.weight_packed"], 4, shape)
    scale = made[f"{STEM}.weight_scale"].float()
    zero = unpack_from_int32(made[f"{STEM}.weight_zero_point"], 4, scale.shape, packed_dim=0)
    return (codes.float() - zero.float().repeat_interleave(group, 1)) * scale.repeat_interleave(group, 1)


@pytest.mark.parametrize("group", [16, 32, 96])
def test_reads_what_compressed_tensors_makes_of_it(tmp_path: Path, group: int) -> None:
    tensors = pieces(group)
    expected = converted(tensors, group)
    assert expected.shape == (ROWS, COLUMNS)
    made = folder(tmp_path / "m", tensors, group_size=-1 if group == COLUMNS else group)
    with open_checkpoint(made) as checkpoint:
        assert isinstance(checkpoint, QuantizedCheckpoint)
        assert unread_quantization(checkpoint) == ""
        info = checkpoint.tensors[f"{STEM}.weight"]
        assert (info.shape, info.dtype) == ((ROWS, COLUMNS), "INT4")
        assert torch.equal(checkpoint.read(info.name), expected)
        for start, stop in ((0, 1), (5, 19), (8, 16), (39, 40)):
            assert torch.equal(checkpoint.read(info.name, start, stop), expected[start:stop])


def test_settings_in_a_file_of_their_own(tmp_path: Path) -> None:
    """Under the names that AutoAWQ had for them."""
    made = folder(tmp_path / "m", pieces())
    (made / "config.json").write_text('{"model_type": "llama"}')
    settings = '{"zero_point": true, "q_group_size": 32, "w_bit": 4, "version": "GEMM"}'
    (made / "quant_config.json").write_text(settings)
    with open_checkpoint(made) as checkpoint:
        assert torch.equal(checkpoint.read(f"{STEM}.weight"), converted(pieces(), 32))


def _without(part: str) -> dict[str, torch.Tensor]:
    return {k: v for k, v in pieces().items() if not k.endswith(part)}


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (_without("qzeros"), f"no {STEM}.qzeros"),
        (_without("scales"), f"no {STEM}.scales"),
        (_without("scales") | {f"{STEM}.scales": torch.ones(3, 32).half()}, "do not belong together"),
        (_without("scales") | {f"{STEM}.scales": torch.ones(40).half()}, r"the shape \[40\]"),
        (_without("qzeros") | {f"{STEM}.qzeros": torch.ones(2, 5, dtype=torch.int32)}, "do not belong together"),
        (_without("qweight") | {f"{STEM}.qweight": torch.ones(97, 5, dtype=torch.int32)}, "do not belong together"),
        # As GEMV stores it: [out, in/8].
        (_without("qweight") | {f"{STEM}.qweight": torch.ones(40, 12, dtype=torch.int32)}, "gemv"),
    ],
)
def test_pieces_that_do_not_fit_are_named(tmp_path: Path, tensors: dict[str, torch.Tensor], said: str) -> None:
    made = folder(tmp_path / "m", tensors)
    with pytest.raises(CorruptFile, match=said) as caught:
        open_checkpoint(made)
    assert STEM in str(caught.value)


@pytest.mark.parametrize(
    ("tensors", "config", "said"),
    [
        (pieces(), {"version": "gemv"}, "layout 'gemv'"),
        (pieces(), {"version": None, "format": "llm-awq"}, "layout 'llm-awq'"),
        (pieces(), {"bits": 3}, "of 3 bits"),
        (_without("scales") | {f"{STEM}.scales": torch.ones(3, 40).double()}, {}, "scales is F64"),
    ],
)
def test_what_is_not_read_is_said(tmp_path: Path, tensors, config, said: str) -> None:
    made = folder(tmp_path / "m", tensors, **config)
    with pytest.raises(UnsupportedFormat, match=said):
        open_checkpoint(made)
