"""Whatever is wrong with a model, a text or an importance matrix: one line says so, the status is not 0, and nothing is
written. On the command line, as people meet it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.calibration.imatrix import write_imatrix
from core.calibration.statistics import Provenance, Statistic, Statistics, TensorStatistics
from core.cli import main
from tests.core.calibration.build import model, text_file

COMMANDS: dict[str, tuple[str, ...]] = {
    "quantize": ("quantize", "--recipe", "int4-g32+gptq", "--target", "dense", "--samples", "6", "--length", "24"),
    "imatrix": ("imatrix", "--samples", "6", "--length", "24"),
    "evaluate": ("evaluate", "--window", "24", "--samples", "6"),
}


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CALIBRATION", "ORIGINALS"):
        monkeypatch.setenv(f"QUANTBENCH_{name}", str(tmp_path / "caches" / name))


def fails(words: str, capsys: pytest.CaptureFixture[str], *args: object) -> None:
    capsys.readouterr()
    assert main([str(a) for a in args]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    lines = [line for line in said.err.splitlines() if line.startswith("quantbench: ")]
    assert len(lines) == 1
    assert said.err.rstrip("\n").endswith(lines[0])
    assert words in lines[0]
    assert not any(word in said.err for word in ("Traceback", "internal error", "torchao", "_pytree"))


def run(command: str, folder: Path, text: Path, out: Path) -> list[object]:
    name, *options = COMMANDS[command]
    given: dict[str, list[object]] = {
        "quantize": ["--calibration", text, "--out", out],
        "imatrix": ["--text", text, "--out", out],
        "evaluate": ["--text", text],
    }
    return [name, folder, *options, *given[command]]


def no_tokenizer(folder: Path, text: Path) -> None:
    for file in folder.glob("token*"):
        file.unlink()


def broken_tokenizer(folder: Path, text: Path) -> None:
    (folder / "tokenizer.json").write_text('{"model": 3}')


def too_short(folder: Path, text: Path) -> None:
    text.write_text("only this")


def missing(folder: Path, text: Path) -> None:
    text.unlink()


def a_folder(folder: Path, text: Path) -> None:
    text.unlink()
    text.mkdir()


def empty(folder: Path, text: Path) -> None:
    text.write_text(" \n\n")


def binary(folder: Path, text: Path) -> None:
    text.write_bytes(bytes(range(256)) * 200)


def unknown(folder: Path, text: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "starship", "architectures": ["StarshipForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))


def overflowing(folder: Path, text: Path) -> None:
    """Every weight is a number; what goes into the second block's matrices is none."""
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.input_layernorm.weight"] = torch.full((64,), 3e38)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def half_a_model(folder: Path, text: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.2.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


CASES: dict[Callable[[Path, Path], None], str] = {
    no_tokenizer: "has no tokenizer that transformers reads",
    broken_tokenizer: "has no tokenizer that transformers reads",
    too_short: "calibration.txt: has ",
    missing: "calibration.txt: cannot be read: No such file",
    a_folder: "calibration.txt: cannot be read: ",
    empty: "calibration.txt: is empty",
    binary: "calibration.txt: is no text",
    unknown: "StarshipForCausalLM",
    overflowing: "NaN or Inf on the",
    half_a_model: "up_proj",
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("damage", CASES, ids=lambda damage: damage.__name__)
def test_one_line_and_nothing_written(
    tmp_path: Path, caches: None, capsys: pytest.CaptureFixture[str], damage: Any, command: str
) -> None:
    folder, out = tmp_path / "m", tmp_path / "out"
    model(folder, "llama")
    text = text_file(tmp_path)
    damage(folder, text)
    before = {path for path in tmp_path.iterdir() if path.name != "caches"}
    fails(CASES[damage], capsys, *run(command, folder, text, out))
    assert {path for path in tmp_path.iterdir() if path.name != "caches"} == before
    assert not list((tmp_path / "caches").rglob("*.partial*"))


def of(name: str, columns: int) -> Statistics:
    known = TensorStatistics({Statistic.IMPORTANCE: torch.rand(columns).numpy()}, (10,))
    return Statistics(Provenance("", "other.txt", 1, 1, "x"), {name: known})


@pytest.mark.parametrize("suffix", ["gguf", "dat"])
@pytest.mark.parametrize(
    ("name", "columns", "words"),
    [
        ("blk.0.attn_q.weight", 96, "another model"),
        ("blk.77.attn_q.weight", 64, "none of its 1 tensors is in this model"),
        ("conv.weight", 64, "none of its 1 tensors is in this model"),
    ],
)
def test_an_imatrix_of_another_model(
    tmp_path: Path, caches: None, capsys: pytest.CaptureFixture[str], name: str, columns: int, words: str, suffix: str
) -> None:
    model(tmp_path / "m", "llama")
    write_imatrix(tmp_path / f"other.{suffix}", of(name, columns), 24)
    given = (tmp_path / "m", "--recipe", "q4_0", "--imatrix", tmp_path / f"other.{suffix}")
    fails(words, capsys, "plan", *given)
    fails(words, capsys, "quantize", *given, "--out", tmp_path / "out.gguf")
    fails(words, capsys, "evaluate", *given, "--text", text_file(tmp_path), "--window", "24", "--samples", "2")
    assert not (tmp_path / "out.gguf").exists()
