"""What is kept of an original gives the figures of a walk, and takes no more room than it may."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.calibration import states, walk
from core.checkpoints import open_checkpoint
from core.errors import Cancelled
from core.evaluation import originals, perplexity
from core.evaluation.perplexity import Evaluation, evaluate
from core.evaluation.text import Windows, WindowSettings, read_windows
from tests.core.calibration.build import model, text_file
from tests.core.engine.build import Watch

WINDOW = 24


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QUANTBENCH_ORIGINALS", str(tmp_path / "originals"))
    return tmp_path / "originals"


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path, Windows]:
    """An original, a model like it, and a text of windows that overlap: not all score the same number."""
    import torch

    model(tmp_path / "a", "llama")
    other = model(tmp_path / "b", "llama")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.004)
    other.save_pretrained(tmp_path / "b")
    settings = WindowSettings(text_file(tmp_path), WINDOW, stride=10, windows=5)
    return tmp_path / "a", tmp_path / "b", read_windows(tmp_path / "a", settings)


def judged(a: Path, b: Path | None, windows: Windows, **options: Any) -> Evaluation:
    with open_checkpoint(a) as original:
        if b is None:
            return evaluate(original, windows, **options)
        with open_checkpoint(b) as other:
            return evaluate(original, windows, against=other, **options)


def figures(found: Evaluation) -> Evaluation:
    """Without what depends on the clock."""
    return replace(found, seconds=0.0, tokens_per_second=0.0, peak_rss_bytes=0, kept=False)


def test_the_second_evaluation_has_the_figures_of_the_first(
    store: Path, pair: tuple[Path, Path, Windows], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, windows = pair
    walked: list[Path] = []

    class Counted(walk.Walk):
        def __init__(self, checkpoint: Any, *rest: Any) -> None:
            walked.append(checkpoint.path)
            super().__init__(checkpoint, *rest)

    monkeypatch.setattr(perplexity, "Walk", Counted)
    first = judged(a, b, windows)
    again = judged(a, b, windows)
    assert walked == [a, b, b]
    assert (first.kept, again.kept) == (False, True)
    assert figures(again) == figures(first)
    assert first.against is not None
    assert 1e-6 < first.against.distance.kld_mean < 1
    alone = judged(a, None, windows)
    assert walked == [a, b, b]
    assert alone.perplexity == first.perplexity
    # Layer errors need the original's activations, which are not kept.
    assert judged(a, b, windows, layers=True).against is not None
    assert walked == [a, b, b, a, b]


def test_other_text_and_other_weights_are_other_originals(store: Path, pair: tuple[Path, Path, Windows]) -> None:
    a, b, windows = pair
    judged(a, None, windows)
    fewer = replace(windows, first=(3, *windows.first[1:]))
    assert not judged(a, None, fewer).kept
    assert not judged(b, None, windows).kept
    assert judged(a, None, windows).kept
    weights = a / "model.safetensors"
    os.utime(weights, (1, 1))
    assert not judged(a, None, windows).kept


def test_room_is_bounded_and_the_oldest_goes(
    store: Path, pair: tuple[Path, Path, Windows], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, windows = pair
    judged(a, None, windows)
    (kept,) = store.iterdir()
    one = sum(file.stat().st_size for file in kept.iterdir())
    assert one > 4 * windows.scored * 100
    monkeypatch.setattr(originals, "LIMIT_BYTES", int(1.5 * one))
    os.utime(kept / "original.json", (1, 1))
    judged(b, None, windows)
    (now,) = store.iterdir()
    assert now != kept
    monkeypatch.setattr(originals, "LIMIT_BYTES", one // 2)
    assert not judged(a, None, windows).kept
    assert list(store.iterdir()) == [now]


def test_damage_and_cancelling_leave_nothing_that_looks_whole(store: Path, pair: tuple[Path, Path, Windows]) -> None:
    a, _, windows = pair
    whole = judged(a, None, windows)
    (kept,) = store.iterdir()
    for name in ("logits.f32", "hidden.f32", "original.json"):
        (kept / name).write_bytes((kept / name).read_bytes()[:-9])
        again = judged(a, None, windows)
        assert not again.kept
        assert figures(again) == figures(whole)
        assert judged(a, None, windows).kept
    for file in kept.iterdir():
        file.unlink()
    kept.rmdir()
    for checks in (1, 4, 7):
        with pytest.raises(Cancelled):
            judged(a, None, windows, ctx=Watch(after(checks)))
        assert list(store.iterdir()) == []


def after(checks: int) -> Any:
    """True once it was asked so often."""
    left = [checks]

    def stop(_: Any) -> bool:
        left[0] -= 1
        return left[0] < 0

    return stop


def test_a_place_that_cannot_be_written_is_no_failure(
    tmp_path: Path, pair: tuple[Path, Path, Windows], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, _, windows = pair
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("QUANTBENCH_ORIGINALS", str(tmp_path / "file"))
    assert judged(a, None, windows).perplexity == judged(a, None, windows).perplexity


def test_states_beyond_the_limit_lie_in_files_until_the_end(
    store: Path, tmp_path: Path, pair: tuple[Path, Path, Windows], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, windows = pair
    monkeypatch.setenv("TMPDIR", str(tmp_path / "room"))
    (tmp_path / "room").mkdir()
    monkeypatch.setattr("tempfile.tempdir", None)
    seen: list[set[str]] = []

    def look(_: Any) -> bool:
        seen.append({path.name for path in (tmp_path / "room").rglob("*.f32")})
        return False

    in_memory = judged(a, b, windows, layers=True, ctx=Watch(look))
    assert set().union(*seen) == set()
    monkeypatch.setattr(states, "SPILL_BYTES", 1000)
    on_disk = judged(a, b, windows, layers=True, ctx=Watch(look))
    assert seen[-1] == {"hidden-0.f32", "hidden-1.f32"}
    assert figures(on_disk) == figures(in_memory)
    assert list((tmp_path / "room").iterdir()) == []
    with pytest.raises(Cancelled):
        judged(a, b, windows, layers=True, ctx=Watch(after(6)))
    assert list((tmp_path / "room").iterdir()) == []
