"""Text to statistics: samples, what is kept and used again, and every input that cannot be calibrated with."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from core.calibration import kept, runner
from core.calibration.imatrix import read_imatrix, write_imatrix
from core.calibration.runner import LIGHT, gather
from core.calibration.statistics import Statistic
from core.calibration.text import STANDARD_LIBRARY, TextSettings, read_samples
from core.calibration.walk import Walk
from core.checkpoints import open_checkpoint
from core.engine.known import by_gguf
from core.errors import CalibrationError, Cancelled
from tests.core.calibration.build import LENGTH, SAMPLES, Hooked, model, text_file
from tests.core.engine.build import Watch

IMPORTANCE = Statistic.IMPORTANCE


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QUANTBENCH_CALIBRATION", str(tmp_path / "cache"))
    return tmp_path / "cache"


def settings(text: Path | None, samples: int = SAMPLES, length: int = LENGTH, seed: int = 0) -> TextSettings:
    return TextSettings(text, samples, length, seed)


def test_samples_are_those_of_the_tokenizer(tmp_path: Path) -> None:
    import transformers

    model(tmp_path / "m", "llama")
    text = text_file(tmp_path)
    with open_checkpoint(tmp_path / "m") as checkpoint:
        first = read_samples(checkpoint, settings(text))
        again = read_samples(checkpoint, settings(text))
        longer = read_samples(checkpoint, settings(text, length=LENGTH + 1))
        library = read_samples(checkpoint, settings(None))
    assert first.ids.shape == (SAMPLES, LENGTH)
    assert first.ids.dtype == np.int64
    assert first.identity == again.identity != longer.identity
    assert (first.name, library.name) == ("calibration.txt", STANDARD_LIBRARY)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    assert tokenizer.decode(first.ids.reshape(-1)) in text.read_bytes().decode()


def test_the_seed_chooses_the_pieces(tmp_path: Path) -> None:
    model(tmp_path / "m", "llama")
    with open_checkpoint(tmp_path / "m") as checkpoint:
        seeds = {read_samples(checkpoint, settings(None, seed=seed)).identity for seed in (0, 1, 0)}
    assert len(seeds) == 2


def test_an_importance_matrix_from_a_text(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours, written and read by others, against hooks in transformers; the second time it comes from the cache."""
    made = model(tmp_path / "m", "llama")
    text = text_file(tmp_path)
    with open_checkpoint(tmp_path / "m") as checkpoint:
        found, samples = gather(checkpoint, settings(text))
        assert found.kinds == LIGHT
        named, known = by_gguf(found, checkpoint)
        assert known
        write_imatrix(tmp_path / "i.gguf", named, LENGTH)
        monkeypatch.setattr(runner, "Walk", None)  # a second walk would fail
        again, _ = gather(checkpoint, settings(text))
    assert again.provenance == found.provenance
    for name, t in found.tensors.items():
        np.testing.assert_array_equal(again.tensors[name].values[IMPORTANCE], t.values[IMPORTANCE])
    hooked = Hooked(made, torch.from_numpy(samples.ids))
    tensors = {t.name: t.data for t in gguf.GGUFReader(tmp_path / "i.gguf").tensors}
    assert len(tensors) == 2 * (3 * 7 + 1)
    pairs = {"attn_q": "self_attn.q_proj", "attn_output": "self_attn.o_proj", "ffn_down": "mlp.down_proj"}
    for layer in range(3):
        for ours, theirs in pairs.items():
            name = f"blk.{layer}.{ours}.weight"
            importance = tensors[f"{name}.in_sum2"][0] / tensors[f"{name}.counts"][0]
            wanted = hooked.importance(f"model.layers.{layer}.{theirs}").numpy()
            np.testing.assert_allclose(importance, wanted, rtol=1e-4)
    assert read_imatrix(tmp_path / "i.gguf").provenance.chunks == SAMPLES
    assert [p.name for p in cache.rglob("*") if p.is_file()] == ["statistics.npz"]


def test_a_stopped_walk_goes_on(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model(tmp_path / "m", "llama")
    text = text_file(tmp_path)
    gathered: list[int] = []
    original = Walk.gather
    monkeypatch.setattr(Walk, "gather", lambda self, n, onward=None: (gathered.append(n), original(self, n, onward))[1])
    with open_checkpoint(tmp_path / "m") as checkpoint:
        with pytest.raises(Cancelled):
            gather(checkpoint, settings(text), ctx=Watch(lambda watch: len(gathered) == 2))
        assert gathered == [0, 1]
        went_on, _ = gather(checkpoint, settings(text))
        assert gathered == [0, 1, 1, 2]
        kept.remove(cache)
        whole, _ = gather(checkpoint, settings(text))
        assert gathered[4:] == [0, 1, 2]
    assert went_on.provenance == whole.provenance
    assert set(went_on.tensors) == set(whole.tensors)


def test_a_damaged_cache_is_walked_again(tmp_path: Path, cache: Path) -> None:
    model(tmp_path / "m", "llama")
    text = text_file(tmp_path)
    with open_checkpoint(tmp_path / "m") as checkpoint:
        first, _ = gather(checkpoint, settings(text))
        (file,) = (p for p in cache.rglob("*") if p.is_file())
        file.write_bytes(file.read_bytes()[:-100])
        again, _ = gather(checkpoint, settings(text))
    assert first.provenance == again.provenance


def test_what_cannot_be_calibrated_is_one_line(tmp_path: Path, cache: Path) -> None:
    model(tmp_path / "m", "llama")
    text = text_file(tmp_path)
    folder = tmp_path / "m"

    def said(given: TextSettings, path: Path = folder) -> str:
        with open_checkpoint(path) as checkpoint, pytest.raises(CalibrationError) as error:
            gather(checkpoint, given)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "tokens, and 999 samples of 24 need 23,976; give a longer text" in said(settings(text, samples=999))
    assert "cannot be read: No such file" in said(settings(tmp_path / "none.txt"))
    empty = tmp_path / "empty.txt"
    empty.write_text(" \n")
    assert f"{empty}: is empty" in said(settings(empty))
    assert "is no text" in said(settings(folder / "model.safetensors"))
    assert "0 samples" in said(settings(text, samples=0))
    assert "length of 2 or more" in said(settings(text, length=1))
    assert "needs its folder with config.json" in said(settings(text), folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    odd = {**config, "model_type": "starship", "architectures": ["StarshipForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(odd))
    assert "cannot build a causal language model of architecture StarshipForCausalLM" in said(settings(text))
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 40, "tie_word_embeddings": True}))
    assert "the tokenizer gives token 419, and the model knows 40" in said(settings(text))
    (folder / "config.json").write_text(json.dumps(config))
    for file in folder.glob("token*"):
        file.unlink()
    assert "has no tokenizer that transformers reads" in said(settings(text))


def test_remote_code_is_never_run(tmp_path: Path, cache: Path) -> None:
    model(tmp_path / "m", "llama")
    folder, trap = tmp_path / "m", tmp_path / "ran"
    for name in ("modeling_odd.py", "configuration_odd.py", "tokenization_odd.py"):
        (folder / name).write_text(f"open({str(trap)!r}, 'w')\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "odd",
        "auto_map": {"AutoConfig": "configuration_odd.Odd", "AutoModelForCausalLM": "modeling_odd.Odd"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    with open_checkpoint(folder) as checkpoint, pytest.raises(CalibrationError):
        gather(checkpoint, settings(text_file(tmp_path)))
    assert not trap.exists()
