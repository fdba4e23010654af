"""Methods are worth what the docs say: on the demo model, whose weights are trained, by KLD on a text it never saw. The
same code as `python -m benchmarks.quality`, on less text: bounds are wide enough for that, and narrow enough that a
method which does nothing, or too much, falls out of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.quality import DEMO, LENGTH, Bench, own_caches, rows
from core.calibration.runner import gather
from core.calibration.text import TextSettings
from core.checkpoints import open_checkpoint
from core.evaluation.text import WindowSettings, read_windows


def judged(bench: Bench, *formats: str) -> dict[tuple[str, str], float]:
    """KLD by format and method. The same tensors in the same bytes, for every method."""
    wanted = [r for r in rows() if r.format in formats and (r.target != "gguf" or "nearest" not in r.method)]
    made = [bench.judge(row) for row in wanted]
    assert len({(j.row.format, j.nbytes) for j in made}) == len(formats)
    return {(j.row.format, j.row.method): j.distance.kld_mean for j in made}


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with own_caches(), open_checkpoint(DEMO) as checkpoint:
        windows = read_windows(DEMO, WindowSettings(DEMO / "heldout.txt", LENGTH, windows=6))
        gathered, samples = gather(checkpoint, TextSettings(DEMO / "calibration.txt", 20, LENGTH))
        yield Bench(checkpoint, windows, samples, gathered)


def test_methods_come_in_order(bench: Bench) -> None:
    found = {method: value for (_, method), value in judged(bench, "int3-g128").items()}
    nearest, weighted, awq = found["nearest"], found["nearest, importance"], found["AWQ"]
    plain, ordered = found["GPTQ"], found["GPTQ, act-order"]
    assert max(plain, ordered) < min(weighted, awq)
    assert max(weighted, awq) < nearest
    assert ordered <= plain
    assert 0.2 * nearest < ordered
    assert 0.5 * nearest < min(weighted, awq)
    assert 0.02 < nearest < 0.2


@pytest.mark.parametrize(("name", "low", "high"), [("q4_k", 0.0045, 0.009), ("q3_k", 0.02, 0.042)])
def test_gptq_in_llama_cpps_formats(bench: Bench, name: str, low: float, high: float) -> None:
    """Its own quantizer with the same importance matrix leaves a KLD that GPTQ lowers by 40 % or more in the same
    bytes."""
    kld = judged(bench, name)
    theirs, ours = kld[name, "llama.cpp, imatrix"], kld[name, "GPTQ"]
    assert low < theirs < high
    assert 0.25 * theirs < ours < 0.6 * theirs
