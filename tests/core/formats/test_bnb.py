"""NF4 and FP4 against bitsandbytes."""

from __future__ import annotations

import pytest
import torch

from core.formats import codebook as codebooks
from core.formats import fitting
from core.formats.bnb import BNB4, Bnb4, codebook, dynamic_map
from tests.core.formats import laws

BY_NAME = {f.name: f for f in BNB4}
ALL = pytest.mark.parametrize("f", BNB4, ids=lambda f: f.name)
SHAPES = ((16, 128), (33, 75), (1, 63), (7, 13), (300, 64), (5, 6), (2, 3), (256, 512))


@pytest.fixture
def no_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "on_lanes", lambda tensor: False)


def theirs(w: torch.Tensor, f: Bnb4):  # type: ignore[no-untyped-def]
    import bitsandbytes.functional as bnb

    return bnb.quantize_4bit(w, blocksize=64, compress_statistics=f.nested, quant_type=f.kind)


def test_names() -> None:
    assert list(BY_NAME) == ["nf4", "nf4-dq", "fp4", "fp4-dq"]


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_levels_are_bitsandbytes(kind: str) -> None:
    import bitsandbytes.functional as bnb

    book = codebook(kind)
    assert torch.equal(torch.tensor(book.values), bnb.get_4bit_type(kind, device="cpu"))
    assert [book.values[k] for k in book.order] == sorted(book.values)
    assert len(book.ascending) == (16 if kind == "nf4" else 15)


def test_dynamic_map_is_bitsandbytes() -> None:
    import bitsandbytes.functional as bnb

    assert torch.equal(dynamic_map(torch.device("cpu")), bnb.create_dynamic_map(signed=True))


@ALL
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_bytes_equal_bitsandbytes(f: Bnb4, dtype: torch.dtype) -> None:
    for shape in SHAPES:
        w = laws.weights(*shape, seed=7, dtype=dtype)
        packed, state = theirs(w, f)
        parts = f.quantize(w).parts
        assert torch.equal(parts["codes"], packed.view(-1))
        if not f.nested:
            assert torch.equal(parts["absmax"], state.absmax)
            continue
        # The mean is summed in another order; the codes of bitsandbytes come from a table that rounds.
        assert torch.allclose(parts["nested_offset"][0], state.offset, rtol=1e-6)
        assert torch.allclose(parts["nested_absmax"], state.state2.absmax, rtol=1e-5)
        off = (parts["absmax"].int() - state.absmax.int()).abs()
        # A single block is its own mean: the nested absmax is 0, and so is every level whatever the code.
        off = off * (state.state2.absmax > 0).repeat_interleave(256)[: off.numel()]
        assert off.max() <= 1
        assert off.sum() <= off.numel() // 100


@ALL
def test_ties_and_zero_blocks_equal_bitsandbytes(f: Bnb4) -> None:
    book = codebook(f.kind)
    w = torch.zeros(6, 64)
    w[0, :15] = torch.tensor(book.bounds)
    w[0, 15] = 1
    w[1] = -w[0]
    w[2, :3] = torch.tensor([1.0, 1e-30, -1e-30])
    w[4] = 1e-40
    packed, _ = theirs(w, f)
    assert torch.equal(f.quantize(w).parts["codes"], packed.view(-1))


@ALL
def test_their_bytes_decode_as_they_decode_them(f: Bnb4) -> None:
    import bitsandbytes.functional as bnb

    for shape in SHAPES:
        w = laws.weights(*shape, seed=8)
        packed, state = theirs(w, f)
        parts = {"codes": packed, "absmax": state.absmax}
        if f.nested:
            parts |= {"nested_absmax": state.state2.absmax, "nested_offset": state.offset}
        assert torch.equal(f.dequantize(parts, shape), bnb.dequantize_4bit(packed, state))


@ALL
def test_storage(f: Bnb4) -> None:
    for shape in SHAPES:
        laws.check_storage(f, laws.weights(*shape))
    assert f.nbytes((3, 128, 64)) == f.nbytes((384, 64))


def test_bits_per_weight() -> None:
    shape = (4096, 4096)
    assert BY_NAME["nf4"].bpw(shape) == 4.5
    assert BY_NAME["nf4-dq"].bpw(shape) == pytest.approx(4 + 8 / 64 + 32 / (64 * 256), abs=1e-5)


@ALL
@pytest.mark.parametrize("columns", [128, 75])
def test_columns_in_slices(f: Bnb4, columns: int) -> None:
    laws.check_columns(f, laws.weights(40, columns), (5, 64, 70))


@ALL
def test_extremes(f: Bnb4) -> None:
    laws.check_extremes(f, 72)
    laws.check_half(f, 72)


@pytest.mark.parametrize(("columns", "multiple"), [(128, 1), (96, 2), (75, 64), (8, 8)])
def test_row_slices_equal_the_whole(columns: int, multiple: int) -> None:
    for kind in ("nf4", "fp4"):
        f = BY_NAME[kind]
        assert f.row_multiple((1000, columns)) == multiple
        laws.check_rows(f, laws.weights(130, columns))
    assert BY_NAME["nf4-dq"].row_multiple((1000, columns)) == 0


@ALL
def test_error(f: Bnb4) -> None:
    w = torch.randn(256, 512, generator=torch.Generator().manual_seed(1))
    sqnr = laws.sqnr_db(w, f.quantize(w).dequantize())
    low, high = (20.3, 20.9) if f.kind == "nf4" else (17.5, 19.5)
    assert low < sqnr < high


def test_nearest_to_the_stored_absmax_is_no_worse() -> None:
    f = BY_NAME["nf4-dq"]
    w = laws.weights(64, 256, seed=9)
    grid = f.fit(w)
    nearest = f.decode(f.encode(w, grid), grid)
    assert laws.sqnr_db(w, nearest) >= laws.sqnr_db(w, f.quantize(w).dequantize())


@ALL
@pytest.mark.usefixtures("no_lanes")
def test_torch_reference_equals_the_lanes(f: Bnb4, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codebooks, "PIECE", 1 << 10)  # several pieces, too
    for shape in SHAPES[:-1]:
        w = laws.weights(*shape, seed=11)
        slow = f.quantize(w)
        back = slow.dequantize()
        with monkeypatch.context() as undo:
            undo.setattr(fitting, "on_lanes", lambda tensor: True)
            fast = f.quantize(w)
            assert torch.equal(fast.dequantize(), back)
        for key, part in slow.parts.items():
            assert torch.equal(part, fast.parts[key])
