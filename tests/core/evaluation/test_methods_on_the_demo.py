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


@pytest.fixture(scope="module")
def kld() -> Iterator[dict[tuple[str, str], float]]:
    with own_caches(), open_checkpoint(DEMO) as checkpoint:
        windows = read_windows(DEMO, WindowSettings(DEMO / "heldout.txt", LENGTH, windows=8))
        gathered, samples = gather(checkpoint, TextSettings(DEMO / "calibration.txt", 48, LENGTH))
        bench = Bench(checkpoint, windows, samples, gathered)
        wanted = [r for r in rows() if r.format != "int4-g128" and (r.target != "gguf" or "nearest" not in r.method)]
        made = [bench.judge(row) for row in wanted]
        # The same tensors in the same bytes, for every method.
        assert len({(j.row.format, j.nbytes) for j in made}) == 3
        yield {(j.row.format, j.row.method): j.distance.kld_mean for j in made}


def test_methods_come_in_order(kld: dict[tuple[str, str], float]) -> None:
    found = {method: value for (name, method), value in kld.items() if name == "int3-g128"}
    nearest, weighted, awq = found["nearest"], found["nearest, importance"], found["AWQ"]
    plain, ordered = found["GPTQ"], found["GPTQ, act-order"]
    assert max(plain, ordered) < min(weighted, awq)
    assert max(weighted, awq) < nearest
    assert ordered <= plain
    assert 0.2 * nearest < ordered
    assert 0.5 * nearest < min(weighted, awq)
    assert 0.02 < nearest < 0.2


@pytest.mark.parametrize(("name", "low", "high"), [("q4_k", 0.0045, 0.009), ("q3_k", 0.02, 0.042)])
def test_gptq_in_llama_cpps_formats(kld: dict[tuple[str, str], float], name: str, low: float, high: float) -> None:
    """Its own quantizer with the same importance matrix leaves a KLD that GPTQ lowers by 40 % or more in the same
    bytes."""
    theirs, ours = kld[name, "llama.cpp, imatrix"], kld[name, "GPTQ"]
    assert low < theirs < high
    assert 0.25 * theirs < ours < 0.6 * theirs
