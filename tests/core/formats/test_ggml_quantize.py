"""Our bytes against those of llama.cpp's `ggml_quantize_chunk`: none may differ."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import core.formats.fitting as fitting
from core.errors import CalibrationError, NonFinite, OutOfRange
from core.formats import get_format
from core.formats.checks import checked_importance
from core.formats.fitting import reference
from core.formats.ggml.format import NEED_IMPORTANCE, UNWEIGHTED, WRITTEN
from core.formats.ggml.types import GGML_TYPES
from tests.core.formats import llama

TYPES = pytest.mark.parametrize("name", WRITTEN)
COLUMNS = 768


def weights(kind: str, rows: int = 24, columns: int = COLUMNS) -> np.ndarray:
    g = np.random.default_rng(sum(map(ord, kind)))
    w = g.standard_normal((rows, columns))
    if kind == "student":
        w = g.standard_t(5, (rows, columns)) * 0.02
    elif kind == "zeros":
        w[0] = 0
        w[1, :256] = 0
        w[2, 32:64] = 0
        w[3, ::2] = 0
        w[4, 5:] = 0
        w[5] = -0.0
        w[6] = np.where(g.random(columns) < 0.5, -0.0, 0.0)
        w[7] = np.where(g.random(columns) < 0.3, np.abs(w[7]), g.choice([-0.0, 0.0], columns))
    elif kind == "constant":
        w = np.repeat(np.linspace(-2, 2, rows)[:, None], columns, 1)
    elif kind == "one-sided":
        w = np.abs(w) * np.where(np.arange(rows) % 2, 1, -1)[:, None]
    elif kind == "integers":
        w = g.integers(-4, 5, (rows, columns)).astype(float)
    elif kind == "scales":
        w = w * np.logspace(-9, 4, rows)[:, None]
    elif kind == "tiny":
        w = w * np.logspace(-33, -27, rows)[:, None]
    elif kind == "specks":
        w[g.random((rows, columns)) < 0.2] *= 1e-38
    elif kind == "huge":
        w = w * np.logspace(1, 4, rows)[:, None]
    elif kind == "bf16":
        w = torch.from_numpy(w * 0.02).to(torch.bfloat16).double().numpy()
    elif kind == "outliers":
        w[g.random((rows, columns)) < 0.01] *= 50
    return w.astype(np.float32)


KINDS = (
    "gaussian",
    "student",
    "zeros",
    "constant",
    "one-sided",
    "integers",
    "scales",
    "tiny",
    "specks",
    "huge",
    "bf16",
    "outliers",
)


def importance(columns: int = COLUMNS) -> np.ndarray:
    return (np.random.default_rng(2).gamma(0.5, 1.0, columns) + 1e-3).astype(np.float32)


# Every type without importance and with it; some take none of the former.
CASES = [(n, given) for n in WRITTEN for given in (False, True) if given or n not in NEED_IMPORTANCE]
EVERY = pytest.mark.parametrize(
    ("name", "given"), CASES, ids=[f"{n}-{'importance' if g else 'plain'}" for n, g in CASES]
)


def ours(name: str, w: np.ndarray, given: np.ndarray | None = None) -> np.ndarray:
    imp = None if given is None else torch.from_numpy(given)
    return get_format(name.lower()).quantize(torch.from_numpy(w), imp).parts["blocks"].numpy()


@EVERY
def test_bytes_are_llamas(name: str, given: bool) -> None:
    imp = importance() if given else None
    for kind in KINDS:
        w = weights(kind)
        if name == "IQ3_S" and kind == "zeros":
            w[2] = w[3]  # a group of zeros: test_lattices.py
        different = int((ours(name, w, imp) != llama.quantize(name, w, imp)).sum())
        assert different == 0, f"{kind}: {different} bytes"


@EVERY
def test_bytes_are_llamas_on_many_blocks(name: str, given: bool) -> None:
    """Enough blocks for differences in the last bit of an intermediate to show."""
    w = weights("student", 128, 1024)
    imp = importance(1024) if given else None
    assert np.array_equal(ours(name, w, imp), llama.quantize(name, w, imp))


@EVERY
def test_reference_in_torch_gives_the_same_bytes(name: str, given: bool) -> None:
    imp = importance() if given else None
    for kind in ("gaussian", "zeros", "constant", "one-sided", "scales"):
        w = weights(kind, 10)
        if name == "IQ3_S" and kind == "zeros":
            w[2] = w[3]
        blocks, sound = reference.quantize(name, torch.from_numpy(w), None if imp is None else torch.from_numpy(imp))
        assert sound.all()
        assert np.array_equal(blocks.numpy(), llama.quantize(name, w, imp)), kind


@TYPES
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 65])
def test_any_number_of_blocks(name: str, rows: int) -> None:
    """Lanes are filled up at the end of a matrix; a piece boundary changes nothing."""
    block = GGML_TYPES[name].block
    w = weights("gaussian", rows, block)
    for given in (None, importance(block))[name in NEED_IMPORTANCE :]:
        assert np.array_equal(ours(name, w, given), llama.quantize(name, w, given))


@pytest.mark.parametrize("name", [n for n in WRITTEN if n != "MXFP4"])
def test_pieces_make_the_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    w = weights("student", 30)
    whole = ours(name, w, importance())
    monkeypatch.setattr(fitting, "PIECE", 7 * COLUMNS)
    assert np.array_equal(ours(name, w, importance()), whole)
    w[17] *= 1e20
    with pytest.raises(OutOfRange) as caught:
        ours(name, w, importance())
    assert caught.value.row == 17


@TYPES
@pytest.mark.parametrize("bits", [0x7FC00000, 0xFFC00000, 0x7F800001, 0xFF800001, 0x7F800000, 0xFF800000], ids=hex)
def test_not_a_number_is_found_wherever_it_is(name: str, bits: int) -> None:
    """Of either sign, beside any weights, at any place of a block."""
    for kind in ("gaussian", "zeros", "one-sided"):
        for at in (0, 15, 16, 31, 700, COLUMNS - 1):
            w = weights(kind, 9)
            w.view(np.uint32)[8, at] = bits
            with pytest.raises(NonFinite) as caught:
                ours(name, w, importance() if name in NEED_IMPORTANCE else None)
            assert caught.value.row == 8


@TYPES
def test_scales_at_the_edge_of_a_half(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where llama.cpp's file would hold an infinite scale we refuse, in both implementations; below it we write."""
    imp = importance(256) if name in NEED_IMPORTANCE else None
    for size in (1e5, 1e6, 1e7, 1e8, 1e9):
        w = weights("gaussian", 3, 256) * np.array([[1], [size], [1]], np.float32)
        theirs = llama.quantize(name, w, imp)
        for lanes in (True, False):
            if not lanes:
                monkeypatch.setattr(fitting, "on_lanes", lambda tensor: False)
            if llama.valid(name, theirs):
                assert np.array_equal(ours(name, w, imp), theirs)
            else:
                with pytest.raises(OutOfRange, match="row 1 needs a scale beyond 65504") as caught:
                    ours(name, w, imp)
                assert caught.value.row == 1
        monkeypatch.undo()


@pytest.mark.parametrize("name", [n for n in WRITTEN if n not in UNWEIGHTED])
def test_importance_lowers_the_weighted_error(name: str) -> None:
    w = weights("student", 64)
    given = importance()

    def weighted(blocks: np.ndarray) -> float:
        e = llama.dequantize(name, blocks, COLUMNS) - w
        return float((given.astype(np.float64) * e.astype(np.float64) ** 2).sum())

    even = np.ones(COLUMNS, np.float32) if name in NEED_IMPORTANCE else None
    assert weighted(ours(name, w, given)) < weighted(ours(name, w, even))


@pytest.mark.parametrize("name", NEED_IMPORTANCE)
def test_importance_is_asked_for_where_it_is_needed(name: str) -> None:
    with pytest.raises(CalibrationError, match=f"{name.lower()} needs importance of the columns") as caught:
        ours(name, weights("gaussian"))
    assert "imatrix" in caught.value.hint


@pytest.mark.parametrize("name", UNWEIGHTED)
def test_importance_changes_nothing_where_it_is_not_used(name: str) -> None:
    w = weights("student")
    assert np.array_equal(ours(name, w, importance()), ours(name, w))


@pytest.mark.parametrize("lanes", [True, False])
def test_mxfp4_scales_next_to_powers_of_two(lanes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Just below a power of two the logarithm rounds up to it, and llama.cpp's scale is twice as large."""
    if not lanes:
        monkeypatch.setattr(fitting, "on_lanes", lambda tensor: False)
    powers = 2.0 ** np.arange(-124, 128)
    below = powers[:, None] * (1 - np.arange(1, 100) * 2.0**-24)
    peaks = np.concatenate([powers, powers * (1 + 2.0**-23), below.ravel()]).astype(np.float32)
    w = weights("gaussian", peaks.size, 32)
    w *= (peaks / np.abs(w).max(1))[:, None] * np.float32(0.99)
    w[:, 7] = -peaks
    assert np.array_equal(ours("MXFP4", w), llama.quantize("MXFP4", w))


@pytest.mark.parametrize("lanes", [True, False])
def test_mxfp4_below_the_smallest_scale(lanes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp's scale byte wraps around there, to NaN at first; ours stops at 2^-128, and values stay close."""
    if not lanes:
        monkeypatch.setattr(fitting, "on_lanes", lambda tensor: False)
    w = weights("gaussian", 4, 32) * np.float32(2.0**-130)
    blocks = ours("MXFP4", w)
    assert (blocks[:, 0] == 0).all()
    assert np.abs(llama.dequantize("MXFP4", blocks, 32) - w).max() <= 2.0**-129


@pytest.mark.parametrize("effort", ["exact", "best"])
@pytest.mark.parametrize("lanes", [True, False])
def test_mxfp4_at_the_largest_weights(lanes: bool, effort: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the largest steps the largest levels are infinite. llama.cpp takes none of those, and neither does ours."""
    if not lanes:
        monkeypatch.setattr(fitting, "on_lanes", lambda tensor: False)
    peaks = np.finfo(np.float32).max * np.linspace(1, 0.25, 64, dtype=np.float32)
    w = weights("gaussian", peaks.size, 32)
    w *= (peaks / np.abs(w).max(1))[:, None] * np.float32(0.999)
    w[:, 7] = np.where(np.arange(peaks.size) % 2, peaks, -peaks)
    decoded = get_format("mxfp4").quantize(torch.from_numpy(w), None, effort).dequantize().numpy()
    theirs = llama.dequantize("MXFP4", llama.quantize("MXFP4", w), 32)
    assert np.isfinite(decoded).all()
    assert np.isfinite(theirs).all()
    lost, allowed = (((v.astype(np.float64) - w) ** 2).sum(1) for v in (decoded, theirs))
    assert (lost <= allowed * (1 + 1e-6)).all()


@pytest.mark.parametrize("name", ["TQ1_0", "TQ2_0", "Q2_0"])
@pytest.mark.parametrize("lanes", [True, False])
def test_scales_without_a_reciprocal_decode_to_zero(name: str, lanes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not lanes:
        monkeypatch.setattr(fitting, "on_lanes", lambda tensor: False)
    w = np.full((2, 256), 1e-40, np.float32)
    w[:, ::3] = 0
    blocks = ours(name, w)
    assert (llama.dequantize(name, blocks, 256) == 0).all()
    assert get_format(name).unpack({"blocks": torch.from_numpy(blocks)}, (2, 256))[0].max() <= 2


def test_importance_is_checked_and_floored() -> None:
    with pytest.raises(CalibrationError, match="3 values for 4 columns"):
        checked_importance(torch.ones(3), 4)
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(CalibrationError, match="negative, NaN or infinite"):
            checked_importance(torch.tensor([1.0, bad]), 2)
    assert checked_importance(None, 4) is None
    kept = torch.tensor([1.0, 2e-9, 3.0])
    assert torch.equal(checked_importance(kept, 3), kept)
    floored = checked_importance(torch.tensor([0.0, 3.0]), 2)
    assert floored.tolist() == pytest.approx([1.5e-10, 3.0])
    # A power of two apart: the same bytes come out.
    small = checked_importance(torch.tensor([1e-30, 3e-30]), 2)
    assert (small[1] / small[0]).item() == pytest.approx(3)
    assert 0.25 < small.mean() < 4


@pytest.mark.parametrize("name", ["Q4_K", "Q6_K", "Q4_0", "IQ4_XS", "IQ2_XXS", "IQ3_S"])
def test_tiny_importance_gives_the_bytes_of_ordinary_importance(name: str) -> None:
    w = weights("student", 8)
    given = importance()
    assert np.array_equal(ours(name, w, given * np.float32(2.0**-100)), ours(name, w, given))
