"""IQ2 and IQ3: neighbours of the lattices, the nearest codes of a stored grid, and llama.cpp's bytes of more kinds of
weights than every type is tested with."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import quants
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from core.formats import get_format
from core.formats.fitting import reference
from core.formats.ggml.format import NEED_IMPORTANCE
from core.formats.ggml.neighbours import LANES, SHELLS, neighbours
from tests.core.formats import llama

NAMES = ("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S")
TYPES = pytest.mark.parametrize("name", NAMES)
EVEN = ("IQ2_XXS", "IQ2_XS", "IQ3_XXS")


def points_of(name: str) -> np.ndarray:
    """Magnitudes float64 [points, run] as the gguf package has them."""
    kind = getattr(quants, name)
    kind.init_grid()
    return np.asarray(kind.grid, np.float64).reshape(kind.grid_shape)


def importance(columns: int) -> np.ndarray:
    return (np.random.default_rng(2).gamma(0.5, 1.0, columns) + 1e-3).astype(np.float32)


def ours(name: str, w: np.ndarray, imp: np.ndarray | None) -> np.ndarray:
    given = None if imp is None else torch.from_numpy(imp)
    return get_format(name).quantize(torch.from_numpy(w), given).parts["blocks"].numpy()


def check(name: str, w: np.ndarray) -> None:
    """Lanes and reference against llama.cpp, with importance and, where there is such a thing, without."""
    if name == "IQ3_S":
        groups = w.reshape(-1, 32)
        groups[~groups.any(1)] = 1  # llama.cpp's answer is broken there: see below
    for imp in (importance(w.shape[1]), None)[: 1 if name in NEED_IMPORTANCE else 2]:
        theirs = llama.quantize(name, w, imp)
        assert np.array_equal(ours(name, w, imp), theirs)
        blocks, sound = reference.quantize(name, torch.from_numpy(w), None if imp is None else torch.from_numpy(imp))
        assert sound.all()
        assert np.array_equal(blocks.numpy(), theirs)


@TYPES
@pytest.mark.parametrize("span", [1, 3, 1000])
@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_whole_numbers(name: str, span: int, data: st.DataObject) -> None:
    """Ties everywhere: between codes, between neighbours, between the weights that might take the wrong sign."""
    seed = data.draw(st.integers(0, 2**32 - 1))
    zeros = data.draw(st.floats(0, 0.99))
    g = np.random.default_rng(seed)
    w = g.integers(-span, span + 1, (2, 512)) * (g.random((2, 512)) >= zeros)
    check(name, w.astype(np.float32))


@TYPES
def test_tiny_and_huge_rows(name: str) -> None:
    """From where squares vanish to where products of four weights leave float32."""
    w = np.random.default_rng(3).standard_normal((13, 256)) * np.logspace(-42, 6, 13)[:, None]
    check(name, w.astype(np.float32))


@TYPES
def test_the_demos_weights(name: str, demo: Path) -> None:
    """Trained weights, stored in bf16."""
    tensors = load_file(demo / "model.safetensors")
    w = tensors["model.layers.1.mlp.down_proj.weight"][:6].float().numpy()
    check(name, np.ascontiguousarray(w[:, : w.shape[1] // 256 * 256]))


@pytest.mark.parametrize("lanes", [True, False])
def test_iq3_s_keeps_its_place_after_zeros(lanes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp writes the groups of a block that follow 32 zeros into the places of the groups before them, so that
    they decode to other weights. Ours are what it writes where the zeros come last."""
    if not lanes:
        monkeypatch.setattr("core.formats.fitting.on_lanes", lambda tensor: False)
    g = np.random.default_rng(4)
    w = g.standard_normal((6, 8, 32)).astype(np.float32)
    zero = g.random((6, 8)) < 0.4
    zero[:, 1] = True
    w[zero] = 0
    order = np.argsort(zero, axis=1, kind="stable")
    last = np.take_along_axis(w, order[:, :, None], 1).reshape(6, 256)
    sorted_back = llama.dequantize("IQ3_S", llama.quantize("IQ3_S", last), 256).reshape(6, 8, 32)
    expected = np.empty_like(sorted_back)
    np.put_along_axis(expected, order[:, :, None], sorted_back, 1)
    flat = w.reshape(6, 256)
    back = llama.dequantize("IQ3_S", ours("IQ3_S", flat, None), 256)
    assert np.array_equal(back, expected.reshape(6, 256))
    theirs = llama.dequantize("IQ3_S", llama.quantize("IQ3_S", flat), 256)
    assert np.abs(theirs - flat).max() > 3 * np.abs(back - flat).max()


@pytest.mark.parametrize("name", SHELLS)
def test_neighbours_are_the_closest_points(name: str) -> None:
    """By their distances, written out for a few runs, from the points that the gguf package has."""
    points = points_of(name if name != "IQ1_M" else "IQ1_S")
    sizes = np.unique(points)
    codes = np.searchsorted(sizes, points)
    lists = neighbours(name)
    assert np.array_equal(lists.codes, codes)
    run = codes.shape[1]
    seen = 0
    for number in np.random.default_rng(5).integers(0, len(sizes) ** run, 60):
        code = number // len(sizes) ** np.arange(run) % len(sizes)
        distances = ((codes - code) ** 2).sum(1)
        listed = lists.index[lists.first[number] : lists.first[number + 1]]
        if lists.point[number] >= 0:
            assert np.array_equal(codes[lists.point[number]], code)
            assert len(listed) == 0
            continue
        seen += 1
        farthest = np.unique(distances)[SHELLS[name] - 1]
        wanted = sorted((d, i) for i, d in enumerate(distances) if d <= farthest)
        filled = -len(wanted) % LANES
        assert listed.tolist() == [i for _, i in wanted] + [wanted[0][1]] * filled
        lanes = lists.lanes[lists.first[number] // LANES : lists.first[number + 1] // LANES]
        assert np.array_equal(lanes.transpose(0, 2, 1).reshape(-1, run), codes[listed])
    assert seen >= 10


@TYPES
def test_encode_finds_the_nearest_signed_points(name: str) -> None:
    """Against all points under all allowed signs, in float64."""
    f = get_format(name)
    g = torch.Generator().manual_seed(6)
    w = torch.randn(2, 256, generator=g)
    w[1, :64] *= 5
    grid = f.quantize(w, torch.ones(256)).grid
    other = torch.randn(2, 256, generator=g)
    back = f.decode(f.encode(other, grid), grid).double().numpy()
    # A step is what the smallest magnitude, 1 of IQ3_S, 4 of IQ3_XXS or 8 of IQ2, stands for.
    points = points_of(name)
    steps = f.layout.steps(dict(grid.parts)).step.double().numpy()
    signs = np.array(list(product((1, -1), repeat=8)))
    if name in EVEN:
        signs = signs[signs.prod(1) > 0]
    for row, at in ((0, 0), (0, 104), (1, 8), (1, 248)):
        target = other[row, at : at + 8].double().numpy()
        step = steps[row, at * steps.shape[1] // 256]
        least = np.full(len(signs), 0.0)
        for start in range(0, 8, points.shape[1]):
            part = slice(start, start + points.shape[1])
            values = step * signs[:, None, part] * points
            least += ((values - target[part]) ** 2).sum(2).min(1)
        assert ((back[row, at : at + 8] - target) ** 2).sum() == pytest.approx(least.min(), rel=1e-5)


@TYPES
def test_encode_of_stored_weights_gives_them_back(name: str) -> None:
    f = get_format(name)
    w = torch.randn(4, 512, generator=torch.Generator().manual_seed(7))
    w[2] *= 1e4
    w[3, :256] = 0
    q = f.quantize(w, torch.ones(512))
    assert torch.equal(f.decode(f.encode(q.dequantize(), q.grid), q.grid), q.dequantize())
    assert torch.equal(f.pack(f.encode(q.dequantize(), q.grid), q.grid)["blocks"][:3], q.parts["blocks"][:3])
    far = f.decode(f.encode(torch.full((4, 512), -3e38), q.grid), q.grid)
    assert far.isfinite().all()
