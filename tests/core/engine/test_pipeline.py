"""Runs from checkpoint to output: the same bytes whoever works, exact sizes, true reports, nothing left behind."""

from __future__ import annotations

import errno
import math
import os
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from core.checkpoints import open_checkpoint
from core.engine import task, units
from core.engine.pipeline import can_resume, run
from core.engine.plan import make_plan
from core.errors import Cancelled, CheckpointError, DeviceError, OutputError, PlanError, WorkbenchError
from core.recipes import load
from core.targets import get_target
from tests.core.engine.build import Watch, checkpoint_file, digest, leftovers, quantize, weights


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return checkpoint_file(tmp_path / "model.safetensors")


@pytest.fixture
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many units and pieces from small tensors: 32 rows and 8 rows of 256 columns."""
    monkeypatch.setattr(units, "UNIT_WEIGHTS", 32 * 256)
    monkeypatch.setattr(task, "PIECE_WEIGHTS", 8 * 256)


def size_on_disk(path: Path) -> int:
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) if path.is_dir() else path.stat().st_size


@pytest.mark.parametrize(
    ("recipe", "target"),
    [("int4-g128-asym", "compressed-tensors"), ("int8-tensor", "dense"), ("q4_k", "dense"), ("f32", "dense")],
)
def test_same_bytes_whatever_the_workers_and_slices(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str, target: str
) -> None:
    whole = quantize(source, tmp_path / "whole", recipe, target, workers=1)
    assert size_on_disk(tmp_path / "whole") == whole.nbytes
    monkeypatch.setattr(units, "UNIT_WEIGHTS", 32 * 256)
    monkeypatch.setattr(task, "PIECE_WEIGHTS", 8 * 256)
    for workers in (1, 2, 3):
        report = quantize(source, tmp_path / f"by{workers}", recipe, target, workers=workers)
        assert digest(tmp_path / f"by{workers}") == digest(tmp_path / "whole")
        for a, b in zip(report.tensors, whole.tensors, strict=True):
            assert (a.name, a.strategy, a.nbytes, a.max_abs) == (b.name, b.strategy, b.nbytes, b.max_abs)
            if b.relative_mse is not None:
                assert a.relative_mse == pytest.approx(b.relative_mse, rel=1e-9)


def test_values_are_those_of_the_format(source: Path, tmp_path: Path, small_units: None) -> None:
    """Read back with the safetensors library: every tensor is the format's own dequantization of the whole tensor."""
    with open_checkpoint(source) as checkpoint:
        plan = make_plan(checkpoint, load("int4-g128"), get_target("dense"))
        run(plan, checkpoint, tmp_path / "out", workers=2)
    (file,) = (tmp_path / "out").glob("*.safetensors")
    with safe_open(source, "pt") as a, safe_open(file, "pt") as b:
        assert set(a.keys()) == set(b.keys()) == {t.tensor.name for t in plan.tensors}
        for planned in plan.tensors:
            w, found = a.get_tensor(planned.tensor.name), b.get_tensor(planned.tensor.name)
            if planned.quantized:
                assert torch.equal(found, planned.format.quantize(w).dequantize().to(found.dtype))
                assert not torch.equal(found, w)
            else:
                assert torch.equal(found, w)


def test_report_is_true(source: Path, tmp_path: Path, small_units: None) -> None:
    watch = Watch()
    report = quantize(source, tmp_path / "out", "int4-g128", "dense", workers=2, ctx=watch)
    assert report.out == tmp_path / "out"
    assert report.weights == sum(t.numel for t in report.tensors) == 6 * 192 * 256 + 256
    assert report.weights_per_second == pytest.approx(report.weights / report.seconds)
    assert report.peak_rss_bytes > 50 << 20
    quantized = [t for t in report.tensors if t.strategy == "int4-g128"]
    assert len(quantized) == 6
    for t in quantized:
        # 4-bit absmax in groups of 128 on Gaussian weights: more would mean that the codes were not rounded.
        assert 18 < t.sqnr_db < 23
        assert t.relative_mse == pytest.approx(10 ** (-t.sqnr_db / 10))
        assert 0.99 < t.cosine < 0.998
        assert 0 < t.max_abs < 1
    # Each tensor is reported once, complete, when it is done; and progress ends where it said it would.
    assert sorted(t.name for t in watch.partials) == sorted(t.name for t in report.tensors)
    assert {t.name: t for t in watch.partials} == {t.name: t for t in report.tensors}
    done = [d for d, _ in watch.heard]
    assert done == sorted(done)
    assert {total for _, total in watch.heard} == {2 * report.weights}
    assert done[-1] == 2 * report.weights
    assert leftovers(tmp_path) == set()


def test_measuring_can_be_left_out(source: Path, tmp_path: Path) -> None:
    quantize(source, tmp_path / "with")
    report = quantize(source, tmp_path / "without", measure=False)
    assert all(t.sqnr_db is None and t.cosine is None for t in report.tensors)
    assert digest(tmp_path / "with") == digest(tmp_path / "without")


def test_copied_tensors_are_not_measured(source: Path, tmp_path: Path) -> None:
    report = quantize(source, tmp_path / "out")
    (norm,) = [t for t in report.tensors if t.name == "model.norm.weight"]
    assert (norm.strategy, norm.sqnr_db) == ("keep", None)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_weights_name_tensor_and_row(tmp_path: Path, small_units: None, bad: float) -> None:
    tensors = weights()
    tensors["model.layers.3.mlp.down_proj.weight"][150, 7] = bad
    source = checkpoint_file(tmp_path / "model.safetensors", tensors)
    with pytest.raises(CheckpointError, match=r"^model\.layers\.3\.mlp\.down_proj\.weight: row 150 ") as caught:
        quantize(source, tmp_path / "out", workers=2)
    assert "\n" not in str(caught.value)
    assert {p.name for p in tmp_path.iterdir()} == {"model.safetensors"}


def full_disk(after: int):
    """os.pwrite on a disk that takes `after` bytes."""
    pwrite, left, lock = os.pwrite, [after], threading.Lock()

    def write(descriptor: int, data: memoryview, offset: int) -> int:
        with lock:
            left[0] -= len(data)
            if left[0] < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
        return pwrite(descriptor, data, offset)

    return write


@pytest.mark.parametrize("after", [0, 1000, 200_000])
def test_full_disk(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_units: None, after: int
) -> None:
    monkeypatch.setattr(os, "pwrite", full_disk(after))
    with pytest.raises(OutputError, match="No space left on device; free some space or choose another disk"):
        quantize(source, tmp_path / "out", workers=2)
    assert {p.name for p in tmp_path.iterdir()} == {"model.safetensors"}


def test_full_disk_then_resume(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_units: None
) -> None:
    quantize(source, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full_disk(300_000))
        patch.setattr("core.engine.pipeline.COMMIT_SECONDS", 0)
        with pytest.raises(OutputError, match="No space left"):
            quantize(source, tmp_path / "out", workers=2, keep_partial=True)
    assert can_resume(tmp_path / "out")
    report = quantize(source, tmp_path / "out", resume=True)
    assert "done by an earlier run" in report.notes["resumed"]
    assert digest(tmp_path / "out") == digest(tmp_path / "whole")
    assert leftovers(tmp_path) == set()


def test_folder_that_may_not_be_written(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the system refuses is said in one line. (Tests may run as root, whom nothing is refused.)"""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(OutputError, match="Permission denied; choose a folder you may write to"):
        quantize(source, tmp_path / "out")
    assert leftovers(tmp_path) == set()


def test_output_over_input(source: Path, tmp_path: Path) -> None:
    before = source.read_bytes()
    with pytest.raises((OutputError, PlanError), match="input"):
        quantize(source, source, "q8_0", "dense", force=True)
    with pytest.raises((OutputError, PlanError), match="input"):
        quantize(source, tmp_path, "q8_0", "dense", force=True)
    assert source.read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} == {"model.safetensors"}


def test_existing_output(source: Path, tmp_path: Path) -> None:
    quantize(source, tmp_path / "out", "q8_0")
    before = digest(tmp_path / "out")
    with pytest.raises((OutputError, PlanError), match="exist"):
        quantize(source, tmp_path / "out", "int4-g128")
    assert digest(tmp_path / "out") == before
    quantize(source, tmp_path / "out", "int4-g128", force=True)
    assert digest(tmp_path / "out") != before
    assert leftovers(tmp_path) == set()


def test_source_truncated_during_the_run(source: Path, tmp_path: Path, small_units: None) -> None:
    """Touching the missing pages would end the process: the change must be seen first."""

    def shorten(watch: Watch) -> bool:
        if watch.checks == 20:
            time.sleep(0.06)  # longer than between two looks at the source
            os.truncate(source, 1000)
            time.sleep(0.06)
        return False

    with pytest.raises(CheckpointError, match="changed while it was being read"):
        quantize(source, tmp_path / "out", workers=1, ctx=Watch(shorten))
    assert leftovers(tmp_path) == set()


def test_source_changed_since_planning(source: Path, tmp_path: Path) -> None:
    with open_checkpoint(source) as checkpoint:
        plan = make_plan(checkpoint, load("q8_0"), get_target("dense"))
    checkpoint_file(source, weights(seed=1, rows=64))
    with open_checkpoint(source) as checkpoint, pytest.raises(WorkbenchError, match="chang"):
        run(plan, checkpoint, tmp_path / "out")
    assert leftovers(tmp_path) == set()


@pytest.mark.parametrize("after", [0, 1, 37])
def test_cancel_leaves_nothing(source: Path, tmp_path: Path, small_units: None, after: int) -> None:
    with pytest.raises(Cancelled):
        quantize(source, tmp_path / "out", workers=2, ctx=Watch(lambda w: w.checks > after))
    assert {p.name for p in tmp_path.iterdir()} == {"model.safetensors"}


def test_cancel_is_quick(tmp_path: Path) -> None:
    """Within 0.3 s of the request, threads gone, though the units are large. The quickest of three counts: the machine
    may be busy with other tests."""
    source = checkpoint_file(tmp_path / "model.safetensors", weights(3, 4096, 4096))
    before = threading.active_count()

    def seconds() -> float:
        asked: list[float] = []

        def stop(watch: Watch) -> bool:
            if len(watch.heard) > 3 and not asked:
                asked.append(time.perf_counter())
            return bool(asked)

        with pytest.raises(Cancelled):
            quantize(source, tmp_path / "out", "int8-g128-asym", workers=2, ctx=Watch(stop))
        return time.perf_counter() - asked[0]

    assert min(seconds() for _ in range(3)) < 0.3
    assert threading.active_count() == before


def test_cancel_can_keep_the_rest(source: Path, tmp_path: Path, small_units: None) -> None:
    whole = quantize(source, tmp_path / "whole")
    watch = Watch(lambda w: len(w.heard) > 60)
    with pytest.raises(Cancelled):
        quantize(source, tmp_path / "out", workers=2, ctx=watch, keep_partial=True)
    assert leftovers(tmp_path) == {".out.partial", ".out.journal"}
    assert can_resume(tmp_path / "out")
    watch = Watch()
    report = quantize(source, tmp_path / "out", workers=2, ctx=watch, resume=True)
    first, total = watch.heard[0]
    assert 0 < first < total  # progress starts where the stopped run ended
    assert watch.heard[-1] == (total, total)
    assert 0 < report.weights < whole.weights
    assert digest(tmp_path / "out") == digest(tmp_path / "whole")
    # Errors of slices done earlier come from the journal: exactly the same figures.
    strip = [(t.name, t.sqnr_db, t.relative_mse, t.max_abs, t.cosine) for t in report.tensors]
    assert strip == [(t.name, t.sqnr_db, t.relative_mse, t.max_abs, t.cosine) for t in whole.tensors]
    assert not can_resume(tmp_path / "out")


def test_resume_of_another_recipe_is_refused(source: Path, tmp_path: Path, small_units: None) -> None:
    with pytest.raises(Cancelled):
        quantize(source, tmp_path / "out", ctx=Watch(lambda w: len(w.heard) > 60), keep_partial=True)
    with pytest.raises(OutputError, match=r"cannot be resumed: the recipe.* changed since it was stopped"):
        quantize(source, tmp_path / "out", "int4-g64", resume=True)
    # Refused, not destroyed: the right recipe still continues.
    report = quantize(source, tmp_path / "out", resume=True)
    assert "done by an earlier run" in report.notes["resumed"]


def test_what_an_earlier_run_did_survives_another_stop(source: Path, tmp_path: Path, small_units: None) -> None:
    with pytest.raises(Cancelled):
        quantize(source, tmp_path / "out", ctx=Watch(lambda w: len(w.heard) > 40), keep_partial=True)
    with pytest.raises(Cancelled):
        quantize(source, tmp_path / "out", ctx=Watch(lambda w: len(w.heard) > 40), resume=True)
    with open_checkpoint(source) as checkpoint:
        plan = make_plan(checkpoint, load("int4-g128"), get_target("dense"))
        other = make_plan(checkpoint, load("int4-g64"), get_target("dense"))
    assert can_resume(tmp_path / "out")
    assert can_resume(tmp_path / "out", plan)
    assert not can_resume(tmp_path / "out", other)
    assert not can_resume(tmp_path / "out", plan, measure=False)
    quantize(source, tmp_path / "out", resume=True)
    quantize(source, tmp_path / "whole")
    assert digest(tmp_path / "out") == digest(tmp_path / "whole")


def test_without_resume_the_rest_is_replaced_and_said_so(source: Path, tmp_path: Path, small_units: None) -> None:
    with pytest.raises(Cancelled):
        quantize(source, tmp_path / "out", ctx=Watch(lambda w: len(w.heard) > 60), keep_partial=True)
    report = quantize(source, tmp_path / "out", "int4-g64")
    assert "was removed" in report.notes["discarded"]
    quantize(source, tmp_path / "direct", "int4-g64")
    assert digest(tmp_path / "out") == digest(tmp_path / "direct")


def test_resume_with_nothing_to_resume_says_so(source: Path, tmp_path: Path) -> None:
    report = quantize(source, tmp_path / "out", resume=True)
    assert report.notes["resumed"] == "nothing to resume: started from the beginning"


def test_pause_holds_and_goes_on(source: Path, tmp_path: Path, small_units: None) -> None:
    paused, go_on = threading.Event(), threading.Event()

    def hold(watch: Watch) -> bool:
        if len(watch.heard) > 10 and not go_on.is_set():
            paused.set()
            assert go_on.wait(20)
        return False

    watch = Watch(hold)
    thread = threading.Thread(target=quantize, args=(source, tmp_path / "out"), kwargs={"workers": 2, "ctx": watch})
    thread.start()
    assert paused.wait(20)
    time.sleep(0.1)
    count = len(watch.heard)
    time.sleep(0.2)
    assert len(watch.heard) == count
    assert not (tmp_path / "out").exists()
    go_on.set()
    thread.join(20)
    quantize(source, tmp_path / "whole")
    assert digest(tmp_path / "out") == digest(tmp_path / "whole")


def short_of_memory(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    """Fails like a device without memory for slices of more rows than `limit`."""
    original = task._Task._quantized

    def quantized(of: task._Task, w: torch.Tensor, *rest: object):
        if w.shape[0] > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return original(of, w, *rest)

    monkeypatch.setattr(task._Task, "_quantized", quantized)


def test_out_of_memory_once_halves_the_slice_and_says_so(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantize(source, tmp_path / "whole")
    short_of_memory(monkeypatch, limit=100)
    report = quantize(source, tmp_path / "out", workers=1)
    assert "ran out of memory; done in slices of 96 rows" in report.notes["memory"]
    assert digest(tmp_path / "out") == digest(tmp_path / "whole")


def test_out_of_memory_twice_is_an_error(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short_of_memory(monkeypatch, limit=50)
    with pytest.raises(DeviceError, match="this machine has no memory left; use fewer --workers"):
        quantize(source, tmp_path / "out", workers=1)
    assert leftovers(tmp_path) == set()


def test_torch_threads_are_given_back(source: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        quantize(source, tmp_path / "out", workers=2)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ("tpu", "unknown device 'tpu'; known here: cpu, cuda"),
        ("cuda:99", "cuda:99"),
        ("cuda:x", "unknown device"),
    ],
)
def test_devices_that_are_not_there(source: Path, tmp_path: Path, device: str, words: str) -> None:
    with pytest.raises(WorkbenchError, match=words) as caught:
        quantize(source, tmp_path / "out", device=device)
    assert isinstance(caught.value, DeviceError | PlanError)
    assert leftovers(tmp_path) == set()


def test_no_workers_is_a_mistake(source: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="0 workers"):
        quantize(source, tmp_path / "out", workers=0)
