"""The command line as another program meets it: its streams, its exit status, its one line when something fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import main
from tests.core.engine.build import checkpoint_file, leftovers, weights


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bare safetensors file: no architecture, small."""
    return checkpoint_file(tmp_path_factory.mktemp("source") / "model.safetensors")


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]):
    """A call in this process: torch is loaded once for all of them. Tests about processes start their own."""

    def call(*args: str | Path) -> Done:
        capsys.readouterr()
        status = main.main([str(arg) for arg in args])
        return Done(status, *capsys.readouterr())

    return call


def answer(done: Done) -> Any:
    """The one object on stdout, by a strict parser."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout, parse_constant=refuse)


def one_line(done: Done, status: int = 1) -> str:
    """The failure: its status, an empty stdout and one line on stderr."""
    assert done.returncode == status, (done.returncode, done.stderr)
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("quantbench: ")
    return lines[0].removeprefix("quantbench: ")


def test_inspect(cli, source: Path) -> None:
    found = answer(cli("inspect", source, "--json"))
    assert found["parameters"] == 6 * 192 * 256 + 256
    assert found["bytes"] == 2 * found["parameters"]
    assert {"name", "shape", "dtype", "bytes"} <= found["tensors"][0].keys()
    first = next(t for t in found["tensors"] if t["name"] == "model.layers.0.mlp.down_proj.weight")
    assert (first["shape"], first["dtype"], first["bytes"]) == ([192, 256], "BF16", 2 * 192 * 256)
    text = cli("inspect", source).stdout
    assert "model.layers.0.mlp.down_proj.weight  192×256  BF16   96.0 KiB" in text
    assert "7 tensors · 295,168 parameters · 576.5 KiB (590,336 bytes)" in text


def test_plan_is_what_quantize_writes(cli, source: Path, tmp_path: Path) -> None:
    options = ("--recipe", "int4-g128", "--target", "compressed-tensors")
    plan = answer(cli("plan", source, *options, "--json"))
    assert {"tensors", "bytes", "bpw", "problems", "target"} <= plan.keys()
    assert {"name", "strategy", "rule", "bytes", "bpw"} <= plan["tensors"][0].keys()
    assert plan["target"] == "compressed-tensors"
    made = answer(cli("quantize", source, *options, "--out", tmp_path / "out", "--json"))
    on_disk = sum(p.stat().st_size for p in (tmp_path / "out").rglob("*"))
    assert plan["bytes"] == made["bytes"] == on_disk
    assert {"out", "bytes", "seconds", "weights_per_second", "peak_rss_bytes", "fallbacks"} <= made.keys()
    assert made["out"] == str(tmp_path / "out")
    assert made["weights_per_second"] > 0
    assert made["peak_rss_bytes"] > 50 << 20
    errors = {t["name"]: t["sqnr_db"] for t in made["tensors"]}
    assert 18 < errors["model.layers.0.mlp.down_proj.weight"] < 23
    assert errors["model.norm.weight"] is None


def test_for_people(cli, source: Path, tmp_path: Path) -> None:
    planned = cli("plan", source, "--recipe", "q8_0", "--target", "dense")
    assert planned.returncode == 0, planned.stderr
    rows = planned.stdout.splitlines()
    assert rows[0].split() == ["tensor", "strategy", "rule", "size", "bpw", "note"]
    assert any(row.startswith("model.layers.0.mlp.down_proj.weight  q8_0") for row in rows)
    assert "q8_0 → dense (as asked)" in planned.stdout
    made = cli("quantize", source, "--recipe", "q8_0", "--target", "dense", "--out", tmp_path / "out")
    assert made.returncode == 0, made.stderr
    assert "q8_0 → dense (as asked)" in made.stderr  # before the work; stdout has the result
    assert "largest errors" in made.stdout
    assert f"{tmp_path / 'out'}: " in made.stdout
    assert "M weights/s on cpu" in made.stdout
    assert "peak memory" in made.stdout
    assert "\r" not in made.stderr  # no terminal, no repainting


NO_GGUF = "gguf cannot hold this model"


@pytest.mark.parametrize(
    ("recipe", "target", "why"),
    [
        ("int4-g128", "compressed-tensors", NO_GGUF),
        ("int8", "compressed-tensors", NO_GGUF),
        ("fp8-e5m2", "torchao", f"{NO_GGUF}, compressed-tensors and bitsandbytes do not carry these formats"),
        (
            "q8_0",
            "dense",
            f"{NO_GGUF}, compressed-tensors, bitsandbytes, torchao and mlx do not carry these formats",
        ),
    ],
)
def test_default_target_of_a_bare_file_is_stated(cli, source: Path, recipe: str, target: str, why: str) -> None:
    """What carries codes comes before dense, which makes nothing smaller."""
    plan = answer(cli("plan", source, "--recipe", recipe, "--json"))
    assert (plan["target"], plan["target_why"]) == (target, why)
    assert f"→ {target} ({plan['target_why']})" in cli("plan", source, "--recipe", recipe).stdout


def test_what_is_missing_is_said_by_a_target_with_a_place_for_the_format(cli, demo: Path, tmp_path: Path) -> None:
    """Nothing can be written without calibration; that GGUF has no such type is beside the point."""
    refused = cli("quantize", demo, "--recipe", "int4-g128+gptq", "--out", tmp_path / "out")
    assert refused.returncode != 0
    assert "→ compressed-tensors" in refused.stderr
    assert "gptq needs calibration data" in refused.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_default_target_of_a_known_architecture(cli, demo: Path, tmp_path: Path) -> None:
    """GGUF where GGUF can carry the recipe; named after model and recipe inside an existing folder."""
    made = answer(cli("quantize", demo, "--recipe", "q8_0", "--out", tmp_path, "--json"))
    assert made["target"] == "gguf"
    assert made["target_why"] == "GGUF knows this architecture"
    assert Path(made["out"]) == tmp_path / "demo-q8_0.gguf"
    assert (tmp_path / "demo-q8_0.gguf").stat().st_size == made["bytes"]
    again = answer(cli("plan", tmp_path / "demo-q8_0.gguf", "--recipe", "q4_0", "--json"))
    assert (again["target"], again["target_why"]) == ("gguf", "the source is a GGUF")
    ints = answer(cli("plan", demo, "--recipe", "int4-g128", "--json"))
    assert (ints["target"], ints["target_why"]) == ("compressed-tensors", "gguf does not carry these formats")
    compared = answer(cli("compare", demo, tmp_path / "demo-q8_0.gguf", "--json"))
    assert {"name", "sqnr_db", "relative_mse", "max_abs", "bytes_a", "bytes_b"} <= compared["tensors"][0].keys()
    sqnr = {t["name"]: t["sqnr_db"] for t in compared["tensors"]}
    reported = {t["name"]: t["sqnr_db"] for t in made["tensors"]}
    # What the run reported is what an independent look at the two files finds.
    checked = [name for name, value in reported.items() if value is not None]
    assert len(checked) > 20
    for name in checked:
        assert sqnr[name] == pytest.approx(reported[name], abs=1e-3)
    text = cli("compare", demo, tmp_path / "demo-q8_0.gguf").stdout
    assert "BF16 → Q8_0" in text
    assert "dB between A and B over all weights" in text


def test_formats(cli) -> None:
    known = answer(cli("formats", "--json"))
    by_name = {f["name"]: f for f in known["formats"]}
    assert {"bits", "bpw", "family", "columns", "encodable", "targets"} <= by_name["q4_k"].keys()
    assert (by_name["q4_k"]["bpw"], by_name["q4_k"]["columns"]) == (4.5, 256)
    assert {"gguf", "dense"} <= set(by_name["q4_k"]["targets"])
    assert "compressed-tensors" in by_name["int4-g128"]["targets"]
    assert "gguf" not in by_name["int4-g128"]["targets"]
    assert {p["name"] for p in known["presets"]} >= {"Q4_K_M", "Q4_K_S"}
    text = cli("formats").stdout
    assert len({line.index("gguf") for line in text.splitlines()[1:] if "gguf, " in line}) == 1  # columns are aligned


def test_formats_needs_no_torch(root: Path) -> None:
    code = "import sys; from main import main; main(['formats']); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60)
    assert not {"torch", "numba", "PySide6", "distributed"} & set(done.stderr.split())


def test_no_qt_in_a_whole_run(root: Path, source: Path, tmp_path: Path) -> None:
    args = ["quantize", str(source), "--recipe", "int8", "--out", str(tmp_path / "out"), "--json"]
    code = f"import sys; from main import main; assert main({args!r}) == 0; print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    modules = set(done.stderr.split())
    assert "torch" in modules
    assert not {m for m in modules if m.startswith(("PySide6", "app", "pyqtgraph"))}


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("quantize", "x", "--recipe", "q8_0"), "required: --out"),
        (("frobnicate",), "invalid choice: 'frobnicate'"),
        (("inspect",), "required: checkpoint"),
        (("quantize", "x", "--recipe", "q8_0", "--out", "y", "--workers", "0"), "'0' is not a number of 1 or more"),
        (("inspect", "x", "--colour"), "unrecognized arguments: --colour"),
    ],
)
def test_wrong_usage(cli, args: tuple[str, ...], words: str) -> None:
    line = one_line(cli(*args), status=2)
    assert words in line
    assert "--help" in line


def test_failures_are_one_line(cli, source: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out")
    assert "missing" in one_line(cli("inspect", tmp_path / "missing", "--json"))
    assert "unknown recipe 'q4_m'" in one_line(cli("quantize", source, "--recipe", "q4_m", *out))
    assert "evaluation needs tokenizer.json" in one_line(cli("evaluate", source, "--text", source, "--json"))
    line = one_line(cli("quantize", source, "--recipe", "q8_0", *out, "--calibration", source))
    assert "is no text" in line
    line = one_line(cli("quantize", source, "--recipe", "q8_0", *out, "--imatrix", source))
    assert "no importance matrix" in line
    line = one_line(cli("quantize", source, "--recipe", "q8_0", *out, "--target", "tarball"))
    assert "tarball" in line
    line = one_line(cli("quantize", source, "--recipe", "q8_0", *out, "--device", "cuda:77", "--json"))
    assert "cuda:77" in line
    assert list(tmp_path.iterdir()) == []


def test_failures_during_the_run_are_one_line(cli, tmp_path: Path) -> None:
    tensors = weights(2)
    tensors["model.layers.1.mlp.down_proj.weight"][5, 5] = float("nan")
    source = checkpoint_file(tmp_path / "model.safetensors", tensors)
    line = one_line(cli("quantize", source, "--recipe", "q8_0", "--out", tmp_path / "out", "--json"))
    assert line.startswith("model.layers.1.mlp.down_proj.weight: row 5 holds NaN or Inf")
    existing = tmp_path / "taken"
    existing.mkdir()
    (existing / "model.safetensors").write_bytes(b"precious")
    line = one_line(cli("quantize", source, "--recipe", "q8_0", "--out", existing, "--json"))
    assert "exists already" in line
    assert "--force" in line
    line = one_line(cli("quantize", source, "--recipe", "q8_0", "--out", tmp_path / "no" / "out", "--json"))
    assert str(tmp_path / "no") in line
    assert leftovers(tmp_path) == set()


def test_plan_with_an_error_prints_it_and_fails(cli, source: Path) -> None:
    done = cli("plan", source, "--recipe", "int4-g7", "--target", "dense", "--json")
    assert done.returncode == 1
    assert any(p["severity"] == "error" for p in json.loads(done.stdout)["problems"])
    assert done.stderr.startswith("quantbench: error: ")


@pytest.mark.parametrize("keep", [False, True])
def test_ctrl_c(root: Path, tmp_path: Path, keep: bool) -> None:
    source = checkpoint_file(tmp_path / "model.safetensors", weights(40, 1024, 1024))
    args = ["quantize", source, "--recipe", "q8_0", "--target", "dense", "--out", tmp_path / "out", "--workers", "1"]
    # Slow enough to be stopped in the middle, by a wait at every look at the stop button.
    code = f"""
import sys, time
import core.terminal
from core.engine import pipeline
from main import main
check = core.terminal.Progress.check
core.terminal.Progress.check = lambda self: (time.sleep(0.05), check(self))[1]
pipeline.COMMIT_SECONDS = 0
sys.exit(main({[*map(str, args), *(["--keep-partial"] if keep else [])]!r}))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    journal = tmp_path / ".out.journal"
    deadline = time.monotonic() + 60
    while not (journal.exists() and journal.read_bytes().count(b"\n") > 4):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert printed == ""
    last = errors.splitlines()[-1]
    if keep:
        assert last == "quantbench: cancelled; --resume continues it"
        assert leftovers(tmp_path) == {".out.partial", ".out.journal"}
    else:
        assert last == "quantbench: cancelled"
        assert leftovers(tmp_path) == set()
    assert not (tmp_path / "out").exists()


def test_a_reader_that_leaves(root: Path) -> None:
    """`quantbench formats | head -1`."""
    process = subprocess.Popen(
        [sys.executable, "main.py", "formats"], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait(30) == 141
    assert errors == ""


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp437"])
def test_consoles_that_know_few_characters(source: Path, encoding: str, root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "main.py", "inspect", str(source)],
        cwd=root,
        capture_output=True,
        timeout=60,
        env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"},
    )
    assert done.returncode == 0, done.stderr
    assert b"BF16" in done.stdout


def test_exact_copies_are_null_not_infinity(cli, source: Path) -> None:
    found = answer(cli("compare", source, source, "--json"))
    assert all(t["sqnr_db"] is None and t["relative_mse"] == 0 and t["max_abs"] == 0 for t in found["tensors"])
    assert "exact" in cli("compare", source, source).stdout


def test_main_without_arguments_opens_the_window(monkeypatch: pytest.MonkeyPatch, source: Path) -> None:
    import app.main

    opened: list[list[str]] = []
    monkeypatch.setattr(app.main, "main", lambda argv: opened.append(list(argv)) or 0)
    assert main.main([]) == 0
    assert main.main([str(source)]) == 0
    assert opened == [[], [str(source)]]
    assert main.main(["no such file"]) == 2
    assert len(opened) == 2


def test_resume_by_the_command_line(cli, root: Path, tmp_path: Path) -> None:
    """Killed in the middle, continued with --resume: the same bytes as undisturbed."""
    source = checkpoint_file(tmp_path / "model.safetensors", weights(30, 1024, 1024, dtype=torch.float32))
    args = ["quantize", source, "--recipe", "int8-g128", "--target", "compressed-tensors", "--workers", "1"]
    whole = answer(cli(*args, "--out", tmp_path / "whole", "--json"))
    code = f"""
import sys, time
from core.engine import pipeline
from core.terminal import Progress
from main import main
Progress.check = lambda self: time.sleep(0.03)
pipeline.COMMIT_SECONDS = 0
sys.exit(main({[*map(str, args), "--out", str(tmp_path / "out")]!r}))
"""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=root, stderr=subprocess.DEVNULL)
    journal = tmp_path / ".out.journal"
    deadline = time.monotonic() + 60
    while not (journal.exists() and journal.read_bytes().count(b"\n") > 6):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    resumed = answer(cli(*args, "--out", tmp_path / "out", "--resume", "--json"))
    assert "done by an earlier run" in resumed["notes"]["resumed"]
    assert [t["sqnr_db"] for t in resumed["tensors"]] == [t["sqnr_db"] for t in whole["tensors"]]
    from tests.core.engine.build import digest

    assert digest(tmp_path / "out") == digest(tmp_path / "whole")


def test_importance_by_the_command_line(cli, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text to an importance matrix, and that to a quantized file; or all in one."""
    monkeypatch.setenv("QUANTBENCH_CALIBRATION", str(tmp_path / "cache"))
    text = tmp_path / "text.txt"
    text.write_text("def f(x):\n    return x + 1\n" * 400)
    size = ("--samples", "4", "--length", "64")
    matrix = answer(cli("imatrix", demo, "--text", text, "--out", tmp_path / "i.gguf", *size, "--json"))
    assert matrix["bytes"] == (tmp_path / "i.gguf").stat().st_size
    assert (matrix["dataset"], len(matrix["tensors"]), matrix["unreached"]) == ("text.txt", 29, {})
    assert "exists already" in one_line(cli("imatrix", demo, "--text", text, "--out", tmp_path / "i.gguf", *size))
    options = ("--recipe", "q4_k", "--target", "gguf")
    plan = answer(cli("plan", demo, *options, "--imatrix", tmp_path / "i.gguf", "--json"))
    assert plan["statistics"]["kinds"] == ["importance"]
    one = answer(cli("quantize", demo, *options, "--imatrix", tmp_path / "i.gguf", "--out", tmp_path / "a", "--json"))
    assert one["statistics"]["file"] == str(tmp_path / "i.gguf")
    two = answer(cli("quantize", demo, *options, "--calibration", text, *size, "--out", tmp_path / "b", "--json"))
    assert (two["statistics"]["file"], two["statistics"]["dataset"]) == ("", "text.txt")
    without = answer(cli("quantize", demo, *options, "--out", tmp_path / "c", "--json"))
    assert without["statistics"] is None
    errors = [[t["sqnr_db"] for t in made["tensors"]] for made in (one, two, without)]
    assert errors[0] == pytest.approx(errors[1], abs=1e-3)
    assert errors[0] != pytest.approx(errors[2], abs=1e-3)
    both = ("--imatrix", tmp_path / "i.gguf", "--calibration", text)
    assert "give one of them" in one_line(cli("quantize", demo, *options, *both, "--out", tmp_path / "d"))
