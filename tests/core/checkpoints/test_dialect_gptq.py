"""GPTQ folders read back as weights: files that GPTQModel 7.7.0 packed (written_by_gptqmodel.npz; how is in
docs/interop.md), files of other makers by the published layout, and corrupt ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from core.checkpoints import open_checkpoint
from core.checkpoints.dialects import QuantizedCheckpoint, unread_quantization
from core.errors import CorruptFile, UnsupportedFormat

STEM = "model.layers.0.mlp.up_proj"
GOLDENS = np.load(Path(__file__).with_name("written_by_gptqmodel.npz"))
ROWS, COLUMNS, GROUP = 32, 96, 32


def pieces(key: str, layout: str, order: bool = True) -> dict[str, torch.Tensor]:
    """The tensors of one golden, under the names of the file."""
    names = {"qweight": "qweight", f"qzeros.{layout}": "qzeros", "scales": "scales"}
    names |= {"g_idx": "g_idx"} if order else {}
    return {f"{STEM}.{name}": torch.from_numpy(GOLDENS[f"{key}.{part}"]) for part, name in names.items()}


def folder(path: Path, tensors: dict[str, torch.Tensor], **config: object) -> Path:
    path.mkdir()
    save_file({k: v.contiguous() for k, v in tensors.items()}, path / "model.safetensors")
    settings = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False} | config
    (path / "config.json").write_text(json.dumps({"quantization_config": settings}))
    return path


def expected(key: str) -> torch.Tensor:
    codes, zeros = (torch.from_numpy(GOLDENS[f"{key}.{part}"]).float() for part in ("codes", "zeros"))
    group_of = torch.from_numpy(GOLDENS[f"{key}.g_idx"]).long()
    scales = torch.from_numpy(GOLDENS[f"{key}.scales"]).float().t()
    return (codes - zeros[:, group_of]) * scales[:, group_of]


@pytest.mark.parametrize("layout", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("key", [f"{bits}{end}" for bits in (2, 3, 4, 8) for end in ("", "-scattered")])
def test_reads_what_gptqmodel_wrote(tmp_path: Path, key: str, layout: str) -> None:
    assert (GOLDENS[f"{key}.zeros"] == 0).any() or key.startswith("8"), "zero points of 0 are the hard case"
    made = folder(tmp_path / "m", pieces(key, layout), bits=int(key[0]), checkpoint_format=layout)
    with open_checkpoint(made) as checkpoint:
        assert isinstance(checkpoint, QuantizedCheckpoint)
        assert unread_quantization(checkpoint) == ""
        info = checkpoint.tensors[f"{STEM}.weight"]
        assert list(checkpoint.tensors) == [info.name]
        assert (info.shape, info.dtype) == ((ROWS, COLUMNS), f"INT{key[0]}")
        assert torch.equal(checkpoint.read(info.name), expected(key))
        for start, stop in ((0, 1), (5, 19), (31, 32)):
            assert torch.equal(checkpoint.read(info.name, start, stop), expected(key)[start:stop])


def test_no_order_is_the_ordinary_one(tmp_path: Path) -> None:
    made = folder(tmp_path / "m", pieces("4", "gptq_v2", order=False), checkpoint_format="gptq_v2")
    with open_checkpoint(made) as checkpoint:
        assert torch.equal(checkpoint.read(f"{STEM}.weight"), expected("4"))


def test_a_folder_that_does_not_say_is_the_first_version(tmp_path: Path) -> None:
    made = folder(tmp_path / "m", pieces("3", "gptq"))
    with open_checkpoint(made) as checkpoint:
        assert torch.equal(checkpoint.read(f"{STEM}.weight"), expected("3"))


def test_widths_and_groups_follow_from_the_shapes(tmp_path: Path) -> None:
    """As `dynamic` in a config would say; ours here is about another module."""
    other = {f"model.layers.1.{k}": v for k, v in pieces("8", "gptq_v2").items()}
    both = folder(tmp_path / "m", pieces("2", "gptq_v2") | other, checkpoint_format="gptq_v2", group_size=-1)
    with open_checkpoint(both) as checkpoint:
        assert torch.equal(checkpoint.read(f"{STEM}.weight"), expected("2"))
        assert torch.equal(checkpoint.read(f"model.layers.1.{STEM}.weight"), expected("8"))


def test_the_last_group_may_be_shorter(tmp_path: Path) -> None:
    """96 columns in groups of 64: two groups, and not of 48."""
    made = pieces("4", "gptq_v2", order=False)
    made = {k: v if k.endswith("qweight") else v[:2] for k, v in made.items()}
    group_of = torch.arange(COLUMNS) // 64
    codes, zeros = (torch.from_numpy(GOLDENS[f"4.{part}"]).float() for part in ("codes", "zeros"))
    wanted = (codes - zeros[:, group_of]) * made[f"{STEM}.scales"].float().t()[:, group_of]
    for name, more in (("a", {}), ("b", {f"{STEM}.g_idx": group_of.int()})):
        path = folder(tmp_path / name, made | more, checkpoint_format="gptq_v2", group_size=64)
        with open_checkpoint(path) as checkpoint:
            assert torch.equal(checkpoint.read(f"{STEM}.weight"), wanted)


@pytest.mark.parametrize("file", ["quantize_config.json", "config.json"])
def test_settings_in_a_file_of_their_own(tmp_path: Path, file: str) -> None:
    """As AutoGPTQ wrote them: config.json says nothing."""
    made = folder(tmp_path / "m", pieces("4", "gptq"))
    (made / "config.json").write_text('{"model_type": "llama"}')
    (made / file).write_text('{"bits": 4, "group_size": 32, "desc_act": false, "sym": false, "true_sequential": true}')
    with open_checkpoint(made) as checkpoint:
        if file == "config.json":  # a stranger's keys there mean nothing
            assert f"{STEM}.qweight" in checkpoint.tensors
        else:
            assert torch.equal(checkpoint.read(f"{STEM}.weight"), expected("4"))


def test_a_broken_file_of_settings_is_named(tmp_path: Path) -> None:
    made = folder(tmp_path / "m", pieces("4", "gptq"))
    (made / "config.json").write_text("{}")
    (made / "quantize_config.json").write_text("{bits: 4}")
    with pytest.raises(CorruptFile, match=r"quantize_config\.json.*not valid JSON"):
        open_checkpoint(made)


def _without(part: str) -> dict[str, torch.Tensor]:
    return {k: v for k, v in pieces("4", "gptq").items() if not k.endswith(part)}


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (_without("qzeros"), f"no {STEM}.qzeros"),
        (_without("scales"), f"no {STEM}.scales"),
        (_without("scales") | {f"{STEM}.scales": torch.ones(3, 31).half()}, "do not belong together"),
        (_without("qzeros") | {f"{STEM}.qzeros": torch.ones(2, 4, dtype=torch.int32)}, "do not belong together"),
        (_without("qweight") | {f"{STEM}.qweight": torch.ones(12, 31, dtype=torch.int32)}, "do not belong together"),
        (_without("qweight") | {f"{STEM}.qweight": torch.ones(12, dtype=torch.int32)}, r"the shape \[12\]"),
        (_without("qweight") | {f"{STEM}.qweight": torch.ones(0, 32, dtype=torch.int32)}, r"the shape \[0, 32\]"),
        (_without("g_idx") | {f"{STEM}.g_idx": torch.zeros(95, dtype=torch.int32)}, r"g_idx \[95\] for 96 columns"),
        (_without("g_idx") | {f"{STEM}.g_idx": torch.zeros(96)}, "F32 g_idx"),
        (
            _without("g_idx") | {f"{STEM}.qweight": torch.ones(13, 32, dtype=torch.int32)},
            "3 groups do not divide 104 columns",
        ),
    ],
)
def test_pieces_that_do_not_fit_are_named(tmp_path: Path, tensors: dict[str, torch.Tensor], said: str) -> None:
    made = folder(tmp_path / "m", tensors)
    with pytest.raises(CorruptFile, match=said) as caught:
        open_checkpoint(made)
    assert STEM in str(caught.value)


@pytest.mark.parametrize("value", [-1, 3])
def test_groups_that_are_not_there_are_named(tmp_path: Path, value: int) -> None:
    order = torch.zeros(COLUMNS, dtype=torch.int32)
    order[7] = value
    made = folder(tmp_path / "m", _without("g_idx") | {f"{STEM}.g_idx": order})
    with open_checkpoint(made) as checkpoint, pytest.raises(CorruptFile, match=rf"{STEM}\.g_idx.*there are 3"):
        checkpoint.read(f"{STEM}.weight")


@pytest.mark.parametrize(
    ("tensors", "config", "said"),
    [
        (pieces("4", "gptq"), {"checkpoint_format": "marlin"}, "layout 'marlin'"),
        (pieces("4", "gptq"), {"checkpoint_format": None, "format": "GPTQ_P"}, "layout 'gptq_p'"),
        (_without("scales") | {f"{STEM}.scales": torch.ones(3, 32).double()}, {}, "scales is F64"),
        (_without("qweight") | {f"{STEM}.qweight": torch.ones(12, 32)}, {}, "qweight is F32, not I32"),
        (
            _without("qzeros") | {f"{STEM}.qzeros": torch.ones(3, 5, dtype=torch.int32)},
            {"bits": 5},
            "of 5 bits; 2, 3, 4 and 8 are read",
        ),
    ],
)
def test_what_is_not_read_is_said(tmp_path: Path, tensors, config, said: str) -> None:
    made = folder(tmp_path / "m", tensors, **config)
    with pytest.raises(UnsupportedFormat, match=said):
        open_checkpoint(made)
