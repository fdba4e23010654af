"""Lanes themselves: halves, sums, compiling ahead, what is kept on disk."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import core.formats.fitting as fitting
from core.formats import get_format
from core.formats.fitting import is_compiled, warm
from core.formats.fitting.compiled import available, kernel
from core.formats.fitting.lanes_bits import first_bad_rows, from_half, to_half
from core.formats.fitting.sums import _lanes, _torch, error_sums


@kernel
def _all_halves(source, back):
    for i in range(source.size):
        back[i] = from_half(source[i])


@kernel
def _to_halves(source, out):
    for i in range(source.size):
        out[i] = to_half(source[i])


def test_every_half_decodes_as_in_numpy() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    back = np.empty(bits.size, np.float32)
    _all_halves(bits, back)
    expected = bits.view(np.float16).astype(np.float32)
    assert ((back.view(np.int32) == expected.view(np.int32)) | (np.isnan(back) & np.isnan(expected))).all()


def test_floats_round_to_halves_as_in_numpy() -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    every = every[np.isfinite(every)]
    step = np.spacing(every)
    sample = np.random.default_rng(0).integers(0, 1 << 32, 200_000, dtype=np.uint64).astype(np.uint32).view(np.float32)
    ordered = np.sort(every)
    middles = (ordered[1:] + ordered[:-1]) / 2
    x = np.concatenate([every, every + step, every - step, middles, np.nextafter(middles, np.inf), sample])
    x = np.concatenate([x, np.array([65504, 65519.996, 65520, 1e30, np.inf, -np.inf, np.nan], np.float32)])
    out = np.empty(x.size, np.uint16)
    _to_halves(x, out)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = x.astype(np.float16)
    ours = out.view(np.float16)
    assert ((out == expected.view(np.uint16)) | (np.isnan(ours) & np.isnan(expected))).all()


def test_first_bad_rows() -> None:
    x = np.ones((5, 37), np.float32)
    limit = np.float32(100).view(np.int32)
    assert first_bad_rows(x.view(np.int32), limit) == (-1, -1)
    x[1, 36] = -101
    x[3, 0] = np.nan
    assert first_bad_rows(x.view(np.int32), limit) == (3, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_sums_on_lanes_and_in_torch_agree(dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(1)
    w = torch.randn(300_001, generator=g).to(dtype)
    v = w.float() + 0.01 * torch.randn(300_001, generator=g)
    quick, slow = _lanes(w, v), _torch(w, v)
    assert quick == pytest.approx(slow, rel=1e-12)
    x, y = w.double().numpy(), v.double().numpy()
    assert quick == pytest.approx(
        ((x**2).sum(), ((x - y) ** 2).sum(), np.abs(x - y).max(), (x * y).sum(), (y**2).sum()), rel=1e-12
    )


@pytest.mark.parametrize("sums", [_lanes, _torch, error_sums])
def test_sums_keep_nan_and_survive_extremes(sums) -> None:
    w = torch.ones(100)
    w[50] = math.nan
    assert all(math.isnan(v) for v in sums(w, torch.ones(100))[:4])
    assert sums(torch.zeros(0), torch.zeros(0)) == (0, 0, 0, 0, 0)
    tiny = torch.full((64,), 1e-30)
    assert sums(tiny, tiny * 0)[0] == pytest.approx(64e-60)
    huge = torch.full((64,), 1e30)
    assert sums(huge, huge)[4] == pytest.approx(64e60)


@pytest.mark.parametrize("name", ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "tq1_0", "tq2_0", "q2_0"])
def test_blocks_of_dust_are_zeros_in_kernels_without_a_search(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the torch reference clears beforehand, the kernels see for themselves."""
    g = np.random.default_rng(0)
    w = (g.standard_normal((48, 256)) * 10.0 ** g.integers(-45, -28, (48, 1))).astype(np.float32)
    w[::4, ::3] = -0.0
    w[1::4] = np.abs(w[1::4])
    w[2::4] = w[2::4, :1]
    w[3::8] = -np.abs(w[3::8])
    w[::5, 32:64], w[::5, 64] = 0, -0.0
    w[::3, 96:128] = g.standard_normal(32)
    f = get_format(name)
    ours = f.quantize(torch.from_numpy(w)).parts["blocks"]
    monkeypatch.setattr(fitting, "on_lanes", lambda tensor: False)
    assert torch.equal(ours, f.quantize(torch.from_numpy(w)).parts["blocks"])


@pytest.mark.parametrize("name", ["q8_0", "int4-g128", "fp8-e4m3", "mxfp8", "nvfp4", "nf4", "llm-int8", "f16"])
def test_warming_leaves_nothing_to_compile(name: str) -> None:
    f = get_format(name)
    warm(f)
    assert is_compiled(f)


def test_lanes_can_be_switched_off_and_kernels_kept_elsewhere(tmp_path) -> None:
    """The same bytes from an interpreter without lanes, and from one that compiles into another folder."""
    code = (
        "import torch, hashlib; from core.formats import get_format\n"
        "w = torch.randn(4, 256, generator=torch.Generator().manual_seed(0))\n"
        "q = get_format('q8_0').quantize(w).parts['blocks']\n"
        "print(hashlib.sha256(q.numpy().tobytes()).hexdigest())\n"
        "import sys; print('numba' in sys.modules)"
    )
    seen = {}
    for key, value in (("QUANTBENCH_NO_LANES", "1"), ("QUANTBENCH_KERNELS", str(tmp_path))):
        done = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, key: value}, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        seen[key] = done.stdout.split()
    assert seen["QUANTBENCH_NO_LANES"][0] == seen["QUANTBENCH_KERNELS"][0]
    assert [v[1] for v in seen.values()] == ["False", "True"]
    assert list(tmp_path.rglob("lanes_legacy.q8_0-*.nbi"))
    assert available()
