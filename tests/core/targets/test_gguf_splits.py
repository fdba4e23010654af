"""A GGUF in parts: llama.cpp loads it from the first, gguf reads every part, the engine writes the folder whole."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from core.checkpoints import open_checkpoint
from core.engine.pipeline import run
from core.engine.plan import make_plan
from core.errors import PlanError, TargetError
from core.recipes import load
from core.targets import get_target
from core.targets.base import StoredTensor
from core.targets.gguf import splits
from tests.core.targets.build import gpt2_like, save_model, save_tokenizer
from tests.core.targets.llama_cpp import ask

IDS = [5, 9, 17, 300, 2]
LIMIT = 40_000


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = save_model(tmp_path_factory.mktemp("models") / "Tiny-1M", dtype=torch.float32)
    save_tokenizer(folder, gpt2_like())
    return folder


def quantized(source: Path, out: Path, recipe: str, shard_bytes: int | None) -> Path:
    with open_checkpoint(source) as checkpoint:
        plan = make_plan(checkpoint, load(recipe), get_target("gguf"), shard_bytes=shard_bytes)
        run(plan, checkpoint, out, workers=1)
    held = [out] if out.is_file() else list(out.iterdir())
    assert sum(p.stat().st_size for p in held) == plan.nbytes
    return out


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory) -> Path:
    return quantized(model, tmp_path_factory.mktemp("whole") / "whole.gguf", "Q8_0", None)


@pytest.fixture(scope="module")
def parts(model, tmp_path_factory) -> list[Path]:
    return sorted(quantized(model, tmp_path_factory.mktemp("parts") / "out", "Q8_0", LIMIT).iterdir())


def test_names_and_what_the_parts_say_of_each_other(parts, whole) -> None:
    count = len(parts)
    assert count > 2
    assert [p.name for p in parts] == [f"Tiny-1M-Q8_0-{n:05d}-of-{count:05d}.gguf" for n in range(1, count + 1)]
    one = gguf.GGUFReader(whole)
    readers = [gguf.GGUFReader(p) for p in parts]
    for number, reader in enumerate(readers):
        fields = {k: f.contents() for k, f in reader.fields.items() if k.startswith("split.")}
        assert fields == {"split.no": number, "split.count": count, "split.tensors.count": len(one.tensors)}
        kinds = {k: f.types[0].name for k, f in reader.fields.items() if k.startswith("split.")}
        assert kinds == {"split.no": "UINT16", "split.count": "UINT16", "split.tensors.count": "INT32"}
        held = sum(int(t.n_bytes) for t in reader.tensors)
        assert held <= LIMIT or len(reader.tensors) == 1
        others = [k for k in reader.fields if not k.startswith(("split.", "GGUF."))]
        assert (number == 0) == bool(others)
    mine = {k: str(f.contents()) for k, f in readers[0].fields.items() if not k.startswith(("split.", "GGUF."))}
    assert mine == {k: str(f.contents()) for k, f in one.fields.items() if not k.startswith("GGUF.")}
    together = [t for reader in readers for t in reader.tensors]
    assert [t.name for t in together] == [t.name for t in one.tensors]
    for a, b in zip(together, one.tensors, strict=True):
        assert a.tensor_type == b.tensor_type
        assert np.array_equal(a.data, b.data)


def test_llama_cpp_loads_the_parts_by_the_first(parts, whole) -> None:
    split, one = ask((parts[0], [], IDS), (whole, [], IDS))
    assert not split.error
    assert np.array_equal(split.logits, one.logits)


def test_parts_become_one_file_and_other_parts(model, parts, whole, tmp_path) -> None:
    """Any part, or their folder, opens all of them."""
    assert quantized(parts[1], tmp_path / "one.gguf", "Q8_0", None).read_bytes() == whole.read_bytes()
    again = sorted(quantized(parts[0].parent, tmp_path / "again", "Q8_0", 2 * LIMIT).iterdir())
    assert 1 < len(again) < len(parts)
    assert again[0].name == f"Tiny-1M-Q8_0-00001-of-{len(again):05d}.gguf"
    assert quantized(again[0], tmp_path / "back.gguf", "Q8_0", None).read_bytes() == whole.read_bytes()


def test_a_limit_that_is_not_reached_still_makes_a_folder(model, whole, tmp_path) -> None:
    out = quantized(model, tmp_path / "out", "Q8_0", 1 << 30)
    assert [p.name for p in out.iterdir()] == ["Tiny-1M-Q8_0.gguf"]
    assert (out / "Tiny-1M-Q8_0.gguf").read_bytes() == whole.read_bytes()


def test_parts_are_not_written_over_a_file(model, tmp_path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"mine")
    with pytest.raises(PlanError, match=r"m\.gguf is a file, and gguf writes a folder"):
        quantized(model, tmp_path / "m.gguf", "Q8_0", LIMIT)
    assert (tmp_path / "m.gguf").read_bytes() == b"mine"


def test_cutting() -> None:
    sizes = [5, 5, 11, 1, 9, 10]
    tensors = [StoredTensor(str(n), "I8", (size,), size) for n, size in enumerate(sizes)]
    assert [[t.nbytes for t in part] for part in splits.parts(tensors, 10)] == [[5, 5], [11], [1, 9], [10]]
    assert splits.parts([], 10) == [[]]
    with pytest.raises(TargetError, match="65,536 parts"):
        splits.parts([StoredTensor(str(n), "I8", (2,), 2) for n in range(65_536)], 1)


@pytest.mark.parametrize(
    ("stem", "label", "name"),
    [
        ("Llama-3", "Q4_K_M", "Llama-3-Q4_K_M-00002-of-00003.gguf"),
        ("Llama-3-Q4_K_M-00001-of-00009", "Q4_K_M", "Llama-3-Q4_K_M-00002-of-00003.gguf"),
        ("a b/c", "my recipe", "a-b-c-00002-of-00003.gguf"),
        ("", "", "model-00002-of-00003.gguf"),
        ("...", "", "model-00002-of-00003.gguf"),
    ],
)
def test_names_of_parts(stem, label, name) -> None:
    assert splits.file_name(stem, label, 1, 3) == name
