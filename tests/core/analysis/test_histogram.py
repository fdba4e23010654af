"""Histograms against numpy.histogram, the gguf package and arithmetic done here; first coarse, then exact."""

from __future__ import annotations

import math
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.analysis import counts as counting
from core.analysis.counts import Counter, Counts, MirrorCounter, Moments, add_counts_numpy
from core.analysis.error import sample_runs
from core.analysis.histogram import (
    BINS,
    FINE,
    SAMPLE_WEIGHTS,
    SLICE_WEIGHTS,
    GroupRequest,
    HistogramRequest,
    group_view,
    histogram,
)
from core.checkpoints.base import Checkpoint
from core.errors import Cancelled, CorruptFile, RecipeError, UnsupportedFormat
from core.formats import FORMATS, get_format
from core.methods.nearest import Nearest
from core.roles import role_of
from core.targets.base import OutputTensor, Plain
from core.tensors import TensorInfo


class Memory(Checkpoint):
    """One tensor "w", and the most rows that were read at once."""

    def __init__(self, w: torch.Tensor, dtype: str = "F32") -> None:
        self.w = w.flatten(0, -2)
        self.path, self.kind, self.files = Path("memory"), "safetensors", ()
        self.tensors = {"w": TensorInfo("w", tuple(w.shape), dtype, w.nbytes)}
        self.config, self.metadata = None, {}
        self.most = 0

    def raw(self, name: str, start: int = 0, stop: int | None = None) -> memoryview:
        raise NotImplementedError

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        part = self.w[start:stop]
        self.most = max(self.most, part.numel())
        return part

    def fingerprint(self) -> str:
        return ""


class Watcher:
    """A context that keeps everything, and cancels at the n-th check."""

    def __init__(self, cancel_at: int = 10**9) -> None:
        self.partials: list = []
        self.progressed: list[tuple[int, int]] = []
        self.checks = 0
        self.cancel_at = cancel_at

    def progress(self, done: int, total: int, note: str = "") -> None:
        self.progressed.append((done, total))

    def partial(self, value: object) -> None:
        self.partials.append(value)

    def check(self) -> None:
        self.checks += 1
        if self.checks >= self.cancel_at:
            raise Cancelled


def ask(w: torch.Tensor, format: str | None = None, ctx=None, *, dtype: str = "F32", **more):
    checkpoint = Memory(w, dtype)
    tensor = OutputTensor("w", Plain("w"), tuple(w.shape), dtype, role_of("w"))
    request = HistogramRequest(checkpoint, tensor, get_format(format) if format else None, label=format or "", **more)
    return histogram(request, ctx or Watcher())


def request_of(w: torch.Tensor, format: str | None) -> HistogramRequest:
    tensor = OutputTensor("w", Plain("w"), tuple(w.shape), "F32", role_of("w"))
    return HistogramRequest(Memory(w), tensor, get_format(format) if format else None)


def gaussian(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.02


def same_as_numpy(counts: Counts, values: torch.Tensor | np.ndarray) -> None:
    x = np.asarray(values, dtype=np.float64).ravel()
    expected, edges = np.histogram(x, bins=counts.counts.size, range=(counts.low, counts.high))
    np.testing.assert_array_equal(counts.counts, expected)
    np.testing.assert_allclose(counts.edges, edges, rtol=0, atol=0)
    assert counts.below == np.count_nonzero(x < counts.low)
    assert counts.above == np.count_nonzero(x > counts.high)
    assert counts.total == x.size


LARGE = gaussian(640, 512)  # 2.5 samples


# --- counters -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compiled", [False, True], ids=["numpy", "compiled"])
def test_counter_is_numpy_histogram(compiled: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(counting, "COMPILED_FROM", 1 if compiled else 1 << 60)
    x = gaussian(1, 100_000).numpy().ravel()
    x[:3] = np.nan, np.inf, -np.inf
    # Every edge itself, and its neighbours, where an index that is computed goes wrong first.
    edges = np.linspace(-0.03, 0.05, 301).astype(np.float32)
    x = np.concatenate((x, edges, np.nextafter(edges, np.float32(1)), np.nextafter(edges, np.float32(-1))))
    for low, high, bins in ((-0.03, 0.05, 300), (-0.03, 0.05, BINS * FINE), (1e-30, 3e-30, 64)):
        counter = Counter(low, high, bins)
        for part in np.array_split(x, 7):
            counter.add(np.ascontiguousarray(part))
        counts = counter.counts()
        inside = x[np.isfinite(x)].astype(np.float64)
        expected, _ = np.histogram(inside, bins=bins, range=(low, high))
        np.testing.assert_array_equal(counts.counts, expected)
        assert counts.below == np.count_nonzero(inside < low)
        assert counts.above == np.count_nonzero(inside > high)


@given(
    st.lists(
        st.lists(st.floats(-(2.0**100), 2.0**100, width=32), max_size=20),
        min_size=1,
        max_size=6,
    )
)
@settings(max_examples=150, deadline=None)
def test_mirror_counter_equals_one_pass(slices: list[list[float]]):
    counter = MirrorCounter(64)
    for part in slices:
        counter.add(np.array(part, np.float32))
    counts = counter.counts()
    everything = np.array([v for part in slices for v in part], np.float32)
    if not everything.any():
        assert counts is None
        return
    assert counts is not None
    assert counts.low == -counts.high
    assert math.log2(counts.high) == int(math.log2(counts.high))
    assert np.abs(everything).max() < counts.high <= 2 * float(np.abs(everything).max())
    same_as_numpy(counts, everything)


def test_the_two_ways_to_count_agree():
    from core.analysis.count_kernel import count_into

    x = (gaussian(1, 50_000) * 3).numpy().ravel()
    edges = np.linspace(-0.04, 0.06, 4097)
    a, b = np.zeros(4098, np.int64), np.zeros(4098, np.int64)
    count_into(x, edges, a)
    add_counts_numpy(x, edges, b)
    np.testing.assert_array_equal(a, b)
    assert a[0] > 0
    assert a[-1] > 0


def test_moments_of_slices():
    x = gaussian(1, 9000).numpy().ravel()
    x[10], x[20:23], x[4000] = np.nan, 0, np.inf
    moments = Moments()
    for part in np.array_split(x, 5):
        moments = moments.add(part)
    good = x[np.isfinite(x)].astype(np.float64)
    assert (moments.count, moments.nan, moments.infinite, moments.zeros) == (9000, 1, 1, 3)
    assert (moments.minimum, moments.maximum) == (good.min(), good.max())
    assert moments.mean == pytest.approx(good.mean(), rel=1e-9)
    assert moments.std == pytest.approx(good.std(), rel=1e-9)


def test_quantiles_to_one_bin():
    x = gaussian(1, 30_000).numpy().ravel()
    counter = Counter(float(x.min()), float(x.max()), BINS * FINE)
    counter.add(x)
    counts = counter.counts()
    width = (counts.high - counts.low) / (BINS * FINE)
    for percent in (0, 0.1, 1, 5, 50, 95, 99, 99.9, 100):
        assert abs(counts.quantile(percent / 100) - np.percentile(x, percent, method="inverted_cdf")) <= width
    assert counts.share_below(0.0) == pytest.approx((x < 0).mean(), abs=1e-3)
    assert math.isnan(Counter(0, 1, 8).counts().quantile(0.5))


def test_rebinning_joins_whole_bins():
    x = gaussian(1, 20_000).numpy().ravel()
    counter = Counter(-0.1, 0.1, BINS * FINE)
    counter.add(x)
    counts = counter.counts()
    for low, high in ((-0.1, 0.1), (-0.01, 0.013), (0.05, 0.9), (-5.0, -0.09), (0.01, 0.01)):
        part = counts.rebinned(low, high, BINS)
        assert part.counts.size <= BINS + 1
        assert part.low <= max(low, -0.1) + 1e-9
        assert part.high >= min(high, 0.1) - 1e-9
        assert part.total == x.size
        expected, _ = np.histogram(x.astype(np.float64), bins=part.edges)
        # Edges that are computed twice may differ in their last bit: a value between the two is in either bin.
        assert np.abs(expected - part.counts).sum() <= 2
    assert counts.rebinned(-0.1, 0.1, BINS).counts.size == BINS


# --- whole tensors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "format", ["q4_k", "q4_0", "q8_0", "q2_k", "q6_k", "int4-g128", "int4-g32-asym", "int8", "int8-tensor", "bf16"]
)
def test_every_kind_of_format_against_numpy(format: str):
    result = ask(LARGE, format)
    assert result.exact
    assert result.moments.count == LARGE.numel()
    known = get_format(format)
    whole = known.quantize(LARGE, None, known.default_effort).dequantize()
    same_as_numpy(result.original, LARGE)
    same_as_numpy(result.dequantized, whole)
    same_as_numpy(result.residual, LARGE - whole)
    assert result.zeros == int((whole == 0).sum())
    error = (LARGE.double() - whole.double()).square().sum()
    assert result.error.sqnr_db == pytest.approx(float(10 * torch.log10(LARGE.double().square().sum() / error)))
    assert result.notes == ()


def test_against_the_gguf_package():
    result = ask(LARGE, "q8_0", params={"effort": "exact"})
    blocks = gguf.quants.quantize(LARGE.numpy(), gguf.GGMLQuantizationType.Q8_0)
    same_as_numpy(result.dequantized, gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType.Q8_0))


@pytest.mark.parametrize(
    ("format", "low", "high"), [("q4_k", 22.4, 23.4), ("int4-g128", 18.6, 19.6), ("int8", 42.0, 43.1), ("q2_k", 9, 12)]
)
def test_quality_of_gaussian_weights(format: str, low: float, high: float):
    assert low < ask(LARGE, format).error.sqnr_db < high


def test_coarse_first_then_exact():
    ctx = Watcher()
    result = ask(LARGE, "int4-g128", ctx)
    alone, coarse = ctx.partials
    assert alone.pending
    assert alone.dequantized is None
    assert not alone.exact
    assert not coarse.pending
    assert not coarse.exact
    assert SAMPLE_WEIGHTS * 0.9 <= coarse.moments.count <= SAMPLE_WEIGHTS
    assert coarse.original.total == coarse.dequantized.total == coarse.moments.count
    assert result.exact
    assert abs(coarse.error.sqnr_db - result.error.sqnr_db) < 0.2
    assert ctx.progressed[-1] == (LARGE.numel(), LARGE.numel())
    assert ctx.progressed == sorted(ctx.progressed)


def test_a_small_tensor_is_exact_at_once():
    ctx = Watcher()
    result = ask(gaussian(8, 256), "q4_k", ctx)
    assert result.exact
    assert [p.pending for p in ctx.partials] == [True]


def test_only_the_weights():
    result = ask(LARGE)
    same_as_numpy(result.original, LARGE)
    assert result.dequantized is result.residual is result.error is result.reach is None
    assert (result.original.low, result.original.high) == (float(LARGE.min()), float(LARGE.max()))


def test_bfloat16_and_stacked_experts():
    w = gaussian(3 * 96, 512).bfloat16().reshape(3, 96, 512)
    result = ask(w, "q4_0", dtype="BF16")
    same_as_numpy(result.original, w.float())
    assert (result.rows, result.columns) == (288, 512)


def test_memory_stays_within_slices():
    w = gaussian(4096, 768)
    checkpoint = Memory(w)
    tensor = OutputTensor("w", Plain("w"), tuple(w.shape), "F32", role_of("w"))
    histogram(HistogramRequest(checkpoint, tensor, get_format("int4")), Watcher())
    assert checkpoint.most <= SLICE_WEIGHTS < w.numel()


def test_cancelled_between_slices():
    whole = Watcher()
    ask(LARGE, "q8_0", whole)
    for at in range(1, whole.checks + 1):
        with pytest.raises(Cancelled):
            ask(LARGE, "q8_0", Watcher(cancel_at=at))
    # A slice at a time: in either pass over three slices there is a check for each.
    assert ask(LARGE, "q8_0", Watcher(cancel_at=whole.checks + 1)).exact


def test_a_shared_grid_is_that_of_the_whole():
    # The largest weight is in a row that no sample holds.
    w = LARGE.clone()
    w[337, 5] = 1.0
    ctx = Watcher()
    result = ask(w, "int8-tensor", ctx)
    assert ctx.partials[-1].reach.highest < 0.2
    assert result.reach.highest == pytest.approx(127 / 127.5, rel=1e-3)
    assert result.reach.width == 512
    same_as_numpy(result.dequantized, get_format("int8-tensor").quantize(w).dequantize())
    assert result.dequantized.above == result.dequantized.below == 0


# --- odd weights ----------------------------------------------------------------------------------------------------


def test_constant_weights():
    w = torch.full((4, 256), 0.5)
    plain = ask(w)
    assert (plain.original.low, plain.original.high) == (0.25, 0.75)
    for result in (plain, ask(w, "q8_0")):
        assert result.original.total == 1024
        assert np.count_nonzero(result.original.counts) == 1


def test_zeros():
    result = ask(torch.zeros(4, 256), "int4-g128")
    assert (result.original.low, result.original.high) == (-0.5, 0.5)
    assert result.moments.zeros == result.zeros == 1024
    assert result.residual is None
    assert result.error.sqnr_db == math.inf
    assert result.reach is None  # a group of zeros reaches nowhere


@pytest.mark.parametrize("shape", [(0, 256), (4, 0), (0, 0)])
def test_empty(shape: tuple[int, int]):
    result = ask(torch.zeros(shape), "int4")
    assert result.exact
    assert result.original.total == 0
    assert (result.original.low, result.original.high) == (0.0, 1.0)
    assert result.dequantized is None
    assert math.isnan(result.moments.mean)


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e4])
def test_tiny_and_huge_weights(scale: float):
    w = gaussian(8, 256) * scale
    result = ask(w, "int8")
    same_as_numpy(result.original, w)


def test_not_a_number_is_counted_and_refused():
    w = LARGE.clone()
    w[2, 3], w[337, 0], w[338, 0] = torch.nan, torch.inf, -torch.inf
    result = ask(w, "q4_k")
    assert (result.moments.nan, result.moments.infinite) == (1, 2)
    assert result.original.total == w.numel() - 3
    assert result.dequantized is None
    # The row's number is the tensor's, not the sample's.
    assert result.notes == ("q4_k: row 2 holds NaN or Inf; repair the checkpoint, or keep this tensor as it is",)
    later = LARGE.clone()
    later[120, 0] = torch.nan
    assert 120 in {r for a, b in sample_runs(640, 512, SAMPLE_WEIGHTS) for r in range(a, b)}
    assert "row 120 holds" in ask(later, "q4_k").notes[0]


def test_not_a_number_that_the_sample_missed():
    w = LARGE.clone()
    w[337, 0] = torch.nan
    ctx = Watcher()
    result = ask(w, "q4_k", ctx)
    assert ctx.partials[-1].dequantized is not None
    assert result.dequantized is result.residual is result.error is result.reach is None
    assert "row 337 holds NaN" in result.notes[0]
    assert len(result.notes) == 1
    same_as_numpy(result.original, w[torch.isfinite(w)])


def test_a_misfit_is_a_note():
    result = ask(gaussian(8, 100), "q4_k")
    assert result.dequantized is None
    assert result.notes == ("q4_k does not fit: columns 100 is not a multiple of 256",)
    assert result.original.total == 800


def test_whole_numbers_and_complex_ones():
    result = ask(torch.arange(512).reshape(2, 256), "q8_0", dtype="I64")
    assert "never quantized" in result.notes[0]
    assert result.original.total == 512
    with pytest.raises(UnsupportedFormat, match="complex"):
        ask(torch.zeros(2, 2, dtype=torch.complex64), dtype="C64")


def test_what_the_reader_raises_is_not_swallowed():
    class Broken(Memory):
        def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
            raise CorruptFile("truncated", where="x.safetensors")

    tensor = OutputTensor("w", Plain("w"), (4, 256), "F32", role_of("w"))
    with pytest.raises(CorruptFile):
        histogram(HistogramRequest(Broken(gaussian(4, 256)), tensor, get_format("q4_k")))


def test_a_method_that_needs_calibration_is_shown_as_nearest(monkeypatch: pytest.MonkeyPatch):
    import core.methods
    from core.methods.base import Statistic

    class Needy(Nearest):
        name, needs = "needy", frozenset({Statistic.HESSIAN})

    known = core.methods.get_method
    monkeypatch.setattr(core.methods, "get_method", lambda n: Needy() if n == "needy" else known(n))
    result = ask(LARGE, "q8_0", method="needy")
    assert result.notes == ("needy needs calibration: shown rounded to nearest",)
    assert result.error.sqnr_db == ask(LARGE, "q8_0").error.sqnr_db
    later = ask(LARGE, "q8_0", method="needy", known="a text")
    assert later.notes == ("needy chooses while samples go through the model: shown rounded to nearest",)


@pytest.mark.parametrize("w", [LARGE, gaussian(40, 512)], ids=["in slices", "at once"])
def test_what_is_known_of_inputs_is_used(w: torch.Tensor):
    """As the run uses it: the picture's errors are those of the format's own fit with importance."""
    from core.methods.base import Statistic

    importance = torch.rand(512, generator=torch.Generator().manual_seed(3)) ** 4
    told = ask(w, "q4_k", stats={Statistic.IMPORTANCE: importance})
    fmt = get_format("q4_k")
    made = fmt.quantize(w, importance, fmt.default_effort).dequantize()
    assert told.error.e2 == pytest.approx(float((w - made).double().square().sum()), rel=1e-6)
    assert told.error.e2 > 1.01 * ask(w, "q4_k").error.e2  # what matters more costs the rest
    group = group_view(GroupRequest(HistogramRequest(Memory(w), request_of(w, None).tensor, fmt, stats={
        Statistic.IMPORTANCE: importance}), 7, 300))  # fmt: skip
    part = slice(group.group.start, group.group.stop)
    np.testing.assert_array_equal(group.dequantized, made[7, part].numpy())


# --- reach ----------------------------------------------------------------------------------------------------------


def test_reach_of_int4_groups_by_arithmetic():
    result = ask(LARGE, "int4-g128")
    groups = LARGE.numpy().reshape(640, 4, 128)
    scale = (np.abs(groups).max(2) / np.float32(7.5)).astype(np.float16).astype(np.float32)
    reach = result.reach
    assert reach.width == 128
    assert reach.lowest == pytest.approx(float(-8 * scale.max()))
    assert reach.highest == pytest.approx(float(7 * scale.max()))
    assert reach.tight_low == pytest.approx(float(-8 * scale.min()))
    assert reach.tight_high == pytest.approx(float(7 * scale.min()))
    slack = 15 * scale / 1024
    out = (groups > (7 * scale + slack)[:, :, None]) | (groups < (-8 * scale - slack)[:, :, None])
    assert reach.beyond == int(out.sum())
    assert reach.seen == LARGE.numel()
    assert 0.004 < reach.share_beyond < 0.009


def test_a_grid_with_the_largest_weight_on_it_has_nothing_beyond():
    # Q8_0's scale is rounded to 16 bits: its largest weights are a hair outside, and that is rounding.
    assert ask(LARGE, "q8_0", params={"effort": "exact"}).reach.beyond == 0
    assert ask(LARGE, "int8-asym").reach.beyond <= 640


@pytest.mark.parametrize(
    ("format", "width"),
    [("q4_k", 32), ("q6_k", 16), ("q4_0", 32), ("int4-g64", 64), ("int4", 512), ("int8-tensor", 512)],
)
def test_typical_group_is_one_of_the_tensor(format: str, width: int):
    reach = ask(LARGE, format).reach
    group = reach.typical
    assert reach.width == width == group.stop - group.start
    chosen = get_format(format)
    grid = chosen.fit(LARGE, None, chosen.default_effort)
    row = 0 if format.endswith("tensor") else group.row
    levels = chosen.levels(grid, row, group.start).numpy()
    if not format.endswith("tensor"):  # the sample's own grid, drawn until the exact one is there
        np.testing.assert_array_equal(group.levels, levels)
        assert (group.low, group.high) == (levels.min(), levels.max())
    assert reach.lowest <= group.low < group.high <= reach.highest


@pytest.mark.parametrize(
    "format", ["q4_k", "q4_0", "q3_k", "nf4", "int4-g128-asym", "int8-tensor", "fp8-e4m3", "llm-int8"]
)
def test_reach_does_not_depend_on_slices(format: str, monkeypatch: pytest.MonkeyPatch):
    w = LARGE.clone()
    w[300, :256] = 0
    whole = ask(w, format).reach
    monkeypatch.setattr("core.analysis.histogram.SLICE_WEIGHTS", 1 << 15)
    sliced = ask(w, format).reach
    for name in ("lowest", "highest", "tight_low", "tight_high", "beyond", "seen", "width"):
        assert getattr(sliced, name) == getattr(whole, name), name


def test_every_listed_format_is_shown_or_says_why():
    w = gaussian(32, 512)
    for known in FORMATS:
        result = ask(w, known.name)
        if result.dequantized is None:
            assert known.needs_importance or not known.encodable, known.name
            assert ("needs importance" if known.encodable else "not written") in result.notes[0]
            continue
        whole = known.quantize(w, None, known.default_effort).dequantize()
        same_as_numpy(result.dequantized, whole)
        if known.family == "dense":
            assert result.reach is None
        elif result.reach is not None:
            reach = result.reach
            assert reach.lowest <= whole.min() < whole.max() <= reach.highest, known.name
            assert reach.lowest <= reach.tight_low, known.name
            assert reach.tight_high <= reach.highest, known.name
            assert 512 % reach.width == 0
            # Signs alone: all weights beyond the mean magnitude.
            assert 0 <= reach.share_beyond < (0.5 if known.bits == 1 else 0.25), known.name
            view = group_view(GroupRequest(request_of(w, known.name), 5, 300))
            assert view.group.low <= view.dequantized.min(), known.name
            assert view.dequantized.max() <= view.group.high, known.name


def test_groups_of_zeros_are_no_part_of_the_envelope():
    w = gaussian(8, 256)
    w[0, :128] = 0  # scale 1 by rule: levels from −8 to 7
    assert ask(w, "int4-g128").reach.highest < 0.2


def test_dense_formats_have_no_reach():
    assert ask(LARGE, "f16").reach is None


@pytest.mark.parametrize("format", ["q4_k", "int4-g128-asym", "int8-tensor", "q4_0", "int4"])
def test_one_group(format: str):
    chosen = get_format(format)
    view = group_view(GroupRequest(request_of(LARGE, format), 333, 200))
    group = view.group
    whole = chosen.quantize(LARGE, None, chosen.default_effort)
    row = 0 if format.endswith("tensor") else 333
    np.testing.assert_array_equal(group.levels, chosen.levels(whole.grid, row, 200).numpy())
    assert group.row == 333
    assert group.start <= 200 < group.stop
    part = slice(group.start, group.stop)
    np.testing.assert_array_equal(view.weights, LARGE[333, part].numpy())
    np.testing.assert_array_equal(view.dequantized, whole.dequantize()[333, part].numpy())
    # Every dequantized weight is one of the levels, and the outermost levels are the limits.
    assert set(view.dequantized.tolist()) <= set(group.levels.tolist())
    assert (group.low, group.high) == (group.levels.min(), group.levels.max())


def test_one_group_outside_or_without_a_strategy():
    with pytest.raises(RecipeError, match="outside 640 × 512"):
        group_view(GroupRequest(request_of(LARGE, "q4_k"), 640, 0))
    with pytest.raises(RecipeError, match="no strategy"):
        group_view(GroupRequest(request_of(LARGE, None), 0, 0))
