"""The same units on two worker processes over loopback: same bytes; lost workers; what is said when nobody is there."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.engine import units, work
from core.engine.executors import dask as executor
from core.errors import Cancelled, CheckpointError, DeviceError, MissingExtra
from tests.core.engine.build import Watch, checkpoint_file, digest, leftovers, quantize, weights


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    import dask
    from distributed import LocalCluster

    # No spilling to disk; a worker that dies comes back at once.
    with (
        dask.config.set({"distributed.worker.memory.terminate": False, "distributed.scheduler.allowed-failures": 1}),
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",  # it listens in any case: on a port that nobody else has
            memory_limit=0,
            silence_logs=50,
        ) as made,
    ):
        yield made


@pytest.fixture(autouse=True)
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "UNIT_WEIGHTS", 32 * 256)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return checkpoint_file(tmp_path / "model.safetensors")


def test_same_bytes_and_report_as_threads(cluster: Any, source: Path, tmp_path: Path) -> None:
    here = quantize(source, tmp_path / "here", workers=2)
    watch = Watch()
    there = quantize(source, tmp_path / "there", cluster=cluster.scheduler_address, ctx=watch)
    assert digest(tmp_path / "here") == digest(tmp_path / "there")
    assert watch.heard[-1][0] == watch.heard[-1][1]
    for a, b in zip(here.tensors, there.tensors, strict=True):
        assert (a.name, a.nbytes, a.max_abs, a.sqnr_db) == (b.name, b.nbytes, b.max_abs, b.sqnr_db)
    assert leftovers(tmp_path) == set()


def test_stopped_on_the_cluster_resumed_at_home(cluster: Any, source: Path, tmp_path: Path) -> None:
    with pytest.raises(Cancelled):
        quantize(
            source,
            tmp_path / "out",
            cluster=cluster.scheduler_address,
            ctx=Watch(lambda w: len(w.heard) > 10),
            keep_partial=True,
        )
    report = quantize(source, tmp_path / "out", resume=True)
    assert "done by an earlier run" in report.notes["resumed"]
    quantize(source, tmp_path / "whole")
    assert digest(tmp_path / "out") == digest(tmp_path / "whole")


def test_errors_of_a_worker_are_those_of_a_thread(cluster: Any, tmp_path: Path) -> None:
    tensors = weights()
    tensors["model.layers.2.mlp.down_proj.weight"][40, 0] = float("nan")
    source = checkpoint_file(tmp_path / "model.safetensors", tensors)
    with pytest.raises(CheckpointError, match=r"^model\.layers\.2\.mlp\.down_proj\.weight: row 40 "):
        quantize(source, tmp_path / "out", cluster=cluster.scheduler_address)
    assert leftovers(tmp_path) == set()


def dies_once(work_: work.Work, unit: units.Unit, paths: tuple[str, ...]) -> Any:
    """Like a worker whose machine goes down under the first unit it gets."""
    marker = Path(paths[0]).parent.parent / "died"
    try:
        marker.touch(exist_ok=False)
    except FileExistsError:
        return executor._do(work_, unit, paths)
    os._exit(1)


def dies_always(work_: work.Work, unit: units.Unit, paths: tuple[str, ...]) -> Any:
    os._exit(1)


def fails_always(work_: work.Work, unit: units.Unit, paths: tuple[str, ...]) -> Any:
    raise ZeroDivisionError("something unexpected")


def test_a_lost_worker_is_replaced(cluster: Any, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quantize(source, tmp_path / "whole")
    monkeypatch.setattr(executor, "_task", dies_once)
    quantize(source, tmp_path / "out", cluster=cluster.scheduler_address)
    assert (tmp_path / "died").exists()
    assert digest(tmp_path / "out") == digest(tmp_path / "whole")


@pytest.mark.parametrize(
    ("task", "words"),
    [(dies_always, "lost its worker .* while doing model"), (fails_always, "ZeroDivisionError: something unexpected")],
)
def test_what_goes_on_failing_is_an_error(
    cluster: Any, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: Any, words: str
) -> None:
    monkeypatch.setattr(executor, "_task", task)
    with pytest.raises(DeviceError, match=words):
        quantize(source, tmp_path / "out", cluster=cluster.scheduler_address)
    assert leftovers(tmp_path) == set()


def test_nobody_answers(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "CONNECT_SECONDS", 0.5)
    with pytest.raises(DeviceError, match=r"tcp://127\.0\.0\.1:9: no Dask scheduler answers; start one with"):
        quantize(source, tmp_path / "out", cluster="tcp://127.0.0.1:9")
    assert leftovers(tmp_path) == set()


@pytest.mark.parametrize("address", ["nonsense", "gopher://x:1", ":::", "tcp://"])
def test_addresses_that_are_none(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setattr(executor, "CONNECT_SECONDS", 0.5)
    with pytest.raises(DeviceError, match="no Dask scheduler answers"):
        quantize(source, tmp_path / "out", cluster=address)
    assert leftovers(tmp_path) == set()


def test_without_the_extra(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(
        MissingExtra, match=r'a cluster needs the package distributed; pip install "quantbench\[cluster'
    ):
        quantize(source, tmp_path / "out", cluster="tcp://127.0.0.1:8786")
    assert leftovers(tmp_path) == set()
