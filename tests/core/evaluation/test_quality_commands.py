"""evaluate, generate and experiments on the command line: JSON fields, the row each run leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from core.cli import main


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.setenv("QUANTBENCH_EXPERIMENTS", str(tmp_path / "log.db"))
    monkeypatch.setenv("QUANTBENCH_ORIGINALS", str(tmp_path / "originals"))

    def call(*args: object, status: int = 0) -> Any:
        capsys.readouterr()
        assert main([str(a) for a in args]) == status
        said = capsys.readouterr()
        return json.loads(said.out) if "--json" in args and not status else said

    return call


def test_a_day_of_experiments(cli: Any, demo: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.py"
    text.write_text("import os\n\n\ndef size(path):\n    return os.stat(path).st_size\n" * 40)
    small = ("--text", text, "--window", 64, "--samples", 3)
    out = tmp_path / "small.gguf"
    cli("quantize", demo, "--recipe", "Q4_K_M", "--out", out, "--json")
    written = cli("evaluate", demo, "--against", out, *small, "--json")
    assert written["tokens"] == 3 * 63
    assert {"perplexity", "kld_mean", "kld_p99", "top1_agreement"} <= written["against"].keys()
    assert 0 < written["against"]["kld_mean"] < 0.1
    assert len(written["against"]["blocks"]) == 4
    assert "layers" not in written["against"]
    recipe = cli("evaluate", demo, "--recipe", "Q4_K_M", *small, "--layers", "--json")
    same = ("perplexity", "kld_mean", "kld_max", "top1_agreement")
    assert {k: recipe["against"][k] for k in same} == {k: written["against"][k] for k in same}
    assert recipe["perplexity"] == written["perplexity"]
    assert [x["original_kept"] for x in (written, recipe)] == [False, False]  # layer errors need a walk
    third = cli("evaluate", demo, "--recipe", "Q4_K_M", *small, "--json")
    assert third["original_kept"]
    assert {k: third["against"][k] for k in same} == {k: written["against"][k] for k in same}
    assert len(recipe["against"]["layers"]) == 4 * 7
    cli("generate", out, "--prompt", "import ", "--tokens", 5, "--json")
    rows = cli("experiments", "--json")["experiments"]
    assert [r["kind"] for r in rows] == ["generation", "evaluation", "evaluation", "evaluation", "quantization"]
    del rows[1]
    assert rows[0]["output_tokens"] == 5
    assert rows[1]["recipe"] == "Q4_K_M"
    assert rows[2]["out"] == str(out)
    assert rows[1]["kld"] == rows[2]["kld"] == written["against"]["kld_mean"]
    assert rows[3]["bytes"] == out.stat().st_size
    assert all(r["device"] == "cpu" and r["seconds"] > 0 and r["peak_bytes"] > 2**24 for r in rows)
    assert cli("experiments", "--csv").out.count("\n") == 6
    assert "Q4_K_M" in cli("experiments").out
    lines = cli("evaluate", demo, "--against", out, *small, "--score", "half").out
    assert "second half scored" in lines
    assert "same top token" in lines


def test_a_damaged_log_stops_no_run(cli: Any, demo: Path, tmp_path: Path) -> None:
    (tmp_path / "log.db").write_bytes(b"nonsense" * 200)
    answer = cli("quantize", demo, "--recipe", "q8_0", "--out", tmp_path / "x.gguf", "--json")
    assert "logged beside the log" in answer["unlogged"]
    assert (tmp_path / "x.gguf").exists()
    said = cli("experiments", status=1)
    assert said.err.count("\n") == 1
    assert "damaged" in said.err


def test_wrong_choices_are_one_line(cli: Any, demo: Path, tmp_path: Path) -> None:
    both = cli("evaluate", demo, "--against", demo, "--recipe", "q4_0", status=1).err
    assert "give one of them" in both
    assert "no formats" not in both
    wrong = cli("evaluate", demo, "--recipe", "q9_9", "--window", 64, "--samples", 1, status=1).err
    assert "unknown recipe" in wrong.splitlines()[-1]
