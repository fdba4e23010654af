"""Every GGML type decoded bit for bit as C code and the gguf package do, and packed back to the same bytes."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

import core.formats.fitting as fitting
from core.errors import CorruptFile, UnsupportedFormat
from core.formats.ggml.decode import dequantize
from core.formats.ggml.grids import grid_codes, magnitudes
from core.formats.ggml.layout import layout
from core.formats.ggml.types import GGML_BY_ID, GGML_TYPES
from tests.core.formats import llama
from tests.core.formats.make_grids import TYPES, published
from tests.core.formats.make_written import OUT

IN_MEMORY = {"Q8_1", "Q8_K"}
QUANTIZED = [t.name for t in GGML_TYPES.values() if t.quantized and t.name not in IN_MEMORY]
IN_GGUF = [n for n in QUANTIZED if n not in ("Q1_0", "Q2_0")]  # gguf-py 0.19 cannot decode them; C can


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Bit-equal, any NaN equal to any NaN."""
    return bool(((a.view(np.int32) == b.view(np.int32)) | (np.isnan(a) & np.isnan(b))).all())


def random_bytes(name: str, seed: int = 7) -> np.ndarray:
    kind = GGML_TYPES[name]
    return np.random.default_rng(seed).integers(0, 256, (6, 512 // kind.block * kind.type_size), np.uint8)


def written_by_llama(name: str) -> np.ndarray:
    with np.load(OUT) as stored:
        return stored[name]


def test_ids_and_sizes_are_ggufs() -> None:
    for kind in gguf.GGMLQuantizationType:
        ours = GGML_TYPES[kind.name]
        assert ours.id == kind.value
        if kind.name != "Q8_1":  # gguf-py counts 40 bytes; the C struct has 36
            assert (ours.block, ours.type_size) == gguf.GGML_QUANT_SIZES[kind]
    for kind in GGML_TYPES.values():
        assert GGML_BY_ID[kind.id] is kind
        assert llama.library().ggml_blck_size(kind.id) == kind.block
        assert llama.library().ggml_type_size(kind.id) == kind.type_size


@pytest.mark.parametrize("name", TYPES)
def test_grids_are_the_published_ones(name: str) -> None:
    assert np.array_equal(np.array(magnitudes(name), np.float32)[grid_codes(name)], published(name))


@pytest.mark.parametrize("name", IN_GGUF)
@pytest.mark.parametrize("make", [random_bytes, written_by_llama])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning", "ignore:overflow:RuntimeWarning")
def test_like_gguf(name: str, make) -> None:
    blocks = make(name)
    theirs = gguf.dequantize(blocks, gguf.GGMLQuantizationType[name])
    assert same_bits(dequantize(name, blocks, 512), theirs.reshape(-1, 512))


@pytest.mark.parametrize("name", QUANTIZED)
@pytest.mark.parametrize("make", [random_bytes, written_by_llama])
def test_like_llama(name: str, make) -> None:
    blocks = make(name)
    assert same_bits(dequantize(name, blocks, 512), llama.dequantize(name, blocks, 512))


@pytest.mark.parametrize("name", QUANTIZED)
def test_torch_path_agrees(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What GPUs run, where the test above went through lanes."""
    monkeypatch.setattr(fitting, "on_lanes", lambda tensor: False)
    blocks = random_bytes(name, seed=8)
    assert same_bits(dequantize(name, blocks, 512), llama.dequantize(name, blocks, 512))


@pytest.mark.parametrize("name", QUANTIZED)
@pytest.mark.parametrize("make", [random_bytes, written_by_llama])
def test_pack_gives_the_bytes_back(name: str, make) -> None:
    kind = GGML_TYPES[name]
    blocks = torch.from_numpy(make(name)).view(-1, kind.type_size)
    if make is random_bytes and name == "TQ1_0":
        blocks = layout(name).pack(layout(name).unpack(blocks))  # 256 bytes share 243 values; packing picks one
    again = layout(name).pack(layout(name).unpack(blocks))
    different = (again != blocks).any(0).nonzero().flatten().tolist()
    assert again.dtype == torch.uint8
    assert not different, f"bytes {different}"


def test_plain_types_and_torch_input() -> None:
    w = torch.randn(3, 8)
    for name, stored in (("F32", w), ("F16", w.half()), ("BF16", w.bfloat16()), ("F64", w.double())):
        out = dequantize(name, stored.view(torch.uint8), 8)
        assert isinstance(out, torch.Tensor)
        assert torch.equal(out, stored.float())


def test_read_only_and_unaligned_input() -> None:
    raw = np.arange(34 * 4, dtype=np.uint8)
    raw.setflags(write=False)
    assert np.array_equal(dequantize("Q8_0", raw, 32), llama.dequantize("Q8_0", raw, 32))
    shifted = torch.zeros(33, dtype=torch.uint8)[1:]
    assert torch.equal(dequantize("F32", shifted, 8), torch.zeros(1, 8))


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(UnsupportedFormat, match="columns 100 is not a multiple of 256"):
        dequantize("Q4_K", np.zeros(144, np.uint8), 100)
    with pytest.raises(CorruptFile, match="143 bytes are not whole Q4_K rows"):
        dequantize("Q4_K", np.zeros(143, np.uint8), 256)
    with pytest.raises(UnsupportedFormat, match="Q9_X"):
        dequantize("Q9_X", np.zeros(143, np.uint8), 256)
