"""Two checkpoints tensor by tensor. Values and names are checked by gguf-py and plain torch, not by our readers."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import main
from core.analysis.compare import compare
from core.analysis.comparison import chosen, comparison_csv, comparison_json, finding
from core.checkpoints import open_checkpoint
from core.errors import Cancelled, CheckpointError, OutputError
from tests.core.engine.build import checkpoint_file, quantize, weights


@pytest.fixture(scope="module")
def made(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The demo as two GGUFs."""
    folder = tmp_path_factory.mktemp("gguf")
    for name in ("q8_0", "q4_0"):
        quantize(demo, folder / f"{name}.gguf", name, "gguf")
    return folder / "q8_0.gguf", folder / "q4_0.gguf"


def compared(*paths: Path, **options):
    opened = [open_checkpoint(p) for p in paths]
    try:
        a, b, *source = opened
        return compare(a, b, source=source[0] if source else None, **options)
    finally:
        for checkpoint in opened:
            checkpoint.close()


def sqnr(w: torch.Tensor, w_hat: torch.Tensor) -> float:
    w, w_hat = w.double(), w_hat.double()
    return float(10 * torch.log10((w**2).sum() / ((w - w_hat) ** 2).sum()))


def by_gguf_py(path: Path) -> dict[str, torch.Tensor]:
    reader = gguf.GGUFReader(path)
    return {
        t.name: torch.from_numpy(np.array(gguf.dequantize(t.data, t.tensor_type)))
        .float()
        .reshape(t.shape[::-1].tolist())
        for t in reader.tensors
    }


def permuted(w: torch.Tensor, heads: int) -> torch.Tensor:
    """llama.cpp's order of the rows of a query or key projection (convert_hf_to_gguf.py, LlamaModel.permute)."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def test_a_gguf_meets_its_source_through_names_and_permutations(demo: Path, made: tuple[Path, Path]) -> None:
    result = compared(demo, made[1])
    source, stored = load_file(demo / "model.safetensors"), by_gguf_py(made[1])
    rows = {t.name: t for t in result.tensors}
    assert rows.keys() == stored.keys()
    assert result.only_a == result.only_b == ()
    with open_checkpoint(demo) as opened:
        heads = {"q": opened.config["num_attention_heads"], "k": opened.config["num_key_value_heads"]}
    moved = 0
    for name, row in rows.items():
        (here,) = row.names_a
        w = source[here].float()
        if row.role in heads:
            assert sqnr(w, stored[name]) < 5, "without the permutation they would not be alike"
            w = permuted(w, heads[row.role])
            moved += 1
        if row.dtype_b == "F32":
            assert math.isinf(row.sqnr_db)
        else:
            assert row.sqnr_db == pytest.approx(sqnr(w, stored[name]), abs=2e-3)
            assert 17 < row.sqnr_db < 50
            assert row.max_abs == pytest.approx(float((w - stored[name]).abs().max()), rel=1e-4)
        assert (row.dtype_a, row.bytes_a) == ("BF16", 2 * w.numel())
    assert moved == 8
    assert rows["blk.0.attn_q.weight"].names_a == ("model.layers.0.self_attn.q_proj.weight",)


def test_metadata_of_a_folder_is_held_against_a_gguf(demo: Path, made: tuple[Path, Path], tmp_path: Path) -> None:
    assert compared(demo, made[0]).metadata.keys() == {"general.file_type", "general.quantization_version"}
    between = compared(*made).metadata
    assert between == {"general.file_type": ("7", "2")}
    # Long values are compared whole, not by what is shown of them.
    a = checkpoint_file(tmp_path / "a.safetensors")
    paths = []
    for i, tail in enumerate("xy"):
        path = tmp_path / f"{i}.safetensors"
        save_file(weights(1), path, metadata={"long": "w" * 500 + tail, "same": "1"})
        paths.append(path)
    assert compared(*paths).metadata.keys() == {"long"}
    assert compared(a, a).metadata == {}


def test_a_common_source_says_how_far_each_is_from_it(demo: Path, made: tuple[Path, Path]) -> None:
    result = compared(*made, demo)
    alone = [{t.name: t for t in compared(demo, path).tensors} for path in made]
    for row in result.tensors:
        for sums, other in zip((row.source_a, row.source_b), alone, strict=True):
            assert sums is not None
            assert sums.sqnr_db == other[row.name].sqnr_db
    assert result.source_a.sqnr_db > result.source_b.sqnr_db + 20
    answer = comparison_json(result)
    assert answer["source_b"]["sqnr_db"] == pytest.approx(result.source_b.sqnr_db)
    lines = list(csv.DictReader(io.StringIO(comparison_csv(result.tensors))))
    assert len(lines) == len(result.tensors)
    assert float(lines[3]["sqnr_db_source_b"]) == pytest.approx(result.tensors[3].source_b.sqnr_db)


def test_wrappers_prefixes_do_not_part_a_model_from_itself(tmp_path: Path) -> None:
    plain = weights(3)
    a = checkpoint_file(tmp_path / "a.safetensors", plain)
    b = checkpoint_file(tmp_path / "b.safetensors", {f"module.{name}": w * 1 for name, w in plain.items()})
    result = compared(a, b)
    assert len(result.tensors) == 4
    assert all(math.isinf(t.sqnr_db) and t.names_b == (f"module.{t.name}",) for t in result.tensors)


def test_what_cannot_be_compared_is_a_row_with_a_note(tmp_path: Path) -> None:
    a = {"m.weight": torch.randn(8, 8), "n.weight": torch.randn(8, 8), "i": torch.arange(4), "only": torch.ones(2)}
    b = {"m.weight": torch.randn(8, 9), "n.weight": a["n.weight"] * 1, "i": torch.arange(4) + 1}
    result = compared(*(checkpoint_file(tmp_path / f"{i}.safetensors", t) for i, t in enumerate((a, b))))
    notes = {t.name: t.note for t in result.tensors}
    assert notes == {"i": "integer values differ", "m.weight": "shape 8×8 against 8×9", "n.weight": ""}
    assert result.only_a == ("only",)
    assert [t.name for t in chosen(result.tensors, "weight", "error")] == ["n.weight", "m.weight"]


INF, NAN = math.inf, math.nan


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.float8_e5m2])
def test_equal_files_are_equal_whatever_is_in_them(tmp_path: Path, dtype: torch.dtype) -> None:
    odd = torch.randn(8, 8)
    odd[0, :3] = torch.tensor([NAN, INF, -INF])
    tensors = {"odd": odd.to(dtype), "nan": torch.full((4,), NAN).to(dtype), "plain": torch.randn(8, 8).to(dtype)}
    path = checkpoint_file(tmp_path / "a.safetensors", tensors)
    result = compared(path, path, path)
    rows = {t.name: t for t in result.tensors}
    for row in result.tensors:
        assert (row.sqnr_db, row.relative_mse, row.max_abs, row.equal) == (INF, 0, 0, True)
        assert (row.source_a.sqnr_db, row.source_b.sqnr_db) == (INF, INF)
    assert [rows[n].note for n in ("odd", "nan", "plain")] == [
        "3 weights are NaN or infinite in both",
        "4 weights are NaN or infinite in both",
        "",
    ]
    assert finding(result) == "No weight differs in 3 tensors · 7 weights are NaN or infinite in both"
    answer = comparison_json(result)
    assert answer["non_finite"] == {"equal": 7, "different": 0}
    assert all(t["equal"] for t in answer["tensors"])


def test_nan_in_both_is_left_out_and_the_others_are_measured(tmp_path: Path) -> None:
    w, noise = torch.randn(64, 64), torch.randn(64, 64) * 0.01
    a, b = w.clone(), w + noise
    a[3, 5] = b[3, 5] = NAN
    a[4, 4] = b[4, 4] = -INF
    result = compared(*(checkpoint_file(tmp_path / f"{n}.safetensors", {"w": t}) for n, t in (("a", a), ("b", b))))
    (row,) = result.tensors
    kept = torch.isfinite(a)
    assert row.sqnr_db == pytest.approx(sqnr(a[kept], b[kept]), abs=1e-3)
    assert row.max_abs == pytest.approx(float((a - b)[kept].abs().max()), rel=1e-5)
    assert row.note == "2 weights are NaN or infinite in both"
    assert not row.equal
    assert finding(result) == f"{row.sqnr_db:.1f} dB between A and B over all weights · {row.note}"
    line = next(csv.DictReader(io.StringIO(comparison_csv(result.tensors))))
    assert line["note"] == row.note
    assert float(line["sqnr_db"]) == row.sqnr_db


@pytest.mark.parametrize(
    ("here", "there", "words"),
    [
        (0.5, NAN, "1 weight is NaN or infinite in B only"),
        (INF, 0.5, "1 weight is NaN or infinite in A only"),
        (INF, -INF, "1 weight is NaN or infinite in both, but not the same"),
        (NAN, INF, "1 weight is NaN or infinite in both, but not the same"),
    ],
)
def test_nan_on_one_side_is_no_number_and_comes_first(
    tmp_path: Path, capsys, here: float, there: float, words: str
) -> None:
    tensors = {"m": torch.randn(8, 8), "n": torch.randn(8, 8)}
    paths = []
    for name, value in (("a", here), ("b", there)):
        made = {n: t.clone() for n, t in tensors.items()}
        made["n"][2, 2] = value
        made["n"][3, 3] = NAN
        paths.append(checkpoint_file(tmp_path / f"{name}.safetensors", made))
    result = compared(*paths)
    row = result.tensors[1]
    assert math.isnan(row.sqnr_db)
    assert not row.equal
    assert row.note == finding(result) == words
    assert [t.name for t in chosen(result.tensors, sort="error")] == ["n", "m"]
    assert chosen(result.tensors, "infinite") == [row]
    assert main.main(["compare", *map(str, paths)]) == 0
    told = capsys.readouterr().out
    assert told.splitlines()[-1].endswith(words)
    assert "NaN dB" not in told


def test_nan_that_the_source_does_not_have_is_told(tmp_path: Path) -> None:
    w = torch.randn(8, 8)
    broken = w.clone()
    broken[0, 0] = NAN
    a = checkpoint_file(tmp_path / "a.safetensors", {"w": broken})
    source = checkpoint_file(tmp_path / "s.safetensors", {"w": w})
    (row,) = compared(a, a, source).tensors
    assert row.sqnr_db == INF
    assert math.isnan(row.source_a.sqnr_db)
    assert row.note == "1 weight is NaN or infinite in both · NaN or infinite weights of the source are others"


def test_what_is_not_measured_is_not_called_equal(tmp_path: Path) -> None:
    a = {"m": torch.ones(4, 4), "n": torch.ones(4, 4), "i": torch.arange(4)}
    b = {"m": torch.ones(4, 5), "n": torch.ones(4, 4), "i": torch.arange(4) + 1}
    result = compared(*(checkpoint_file(tmp_path / f"{i}.safetensors", t) for i, t in enumerate((a, b))))
    assert finding(result) == "No weight differs in 1 tensor · 2 tensors are not measured"
    assert {t.name: t.equal for t in result.tensors} == {"m": False, "n": True, "i": False}
    zero, one = (checkpoint_file(tmp_path / f"{n}.safetensors", {"w": torch.full((2, 2), float(n))}) for n in (0, 1))
    assert finding(compared(zero, one)) == "All weights of A are 0, those of B are not"


def test_complex_weights_are_compared_by_their_parts(tmp_path: Path) -> None:
    a = torch.complex(torch.randn(4, 6), torch.randn(4, 6))
    b = a + torch.complex(torch.full((4, 6), 0.01), torch.zeros(4, 6))
    paths = [tmp_path / f"{n}.safetensors" for n in "ab"]
    for path, t in zip(paths, (a, b), strict=True):
        save_file({"w": t}, path)
    (row,) = compared(*paths).tensors
    assert row.sqnr_db == pytest.approx(sqnr(torch.view_as_real(a), torch.view_as_real(b)), abs=1e-3)
    a[1, 1] = complex(NAN, 1)
    save_file({"w": a}, paths[0])
    (row,) = compared(paths[0], paths[0]).tensors
    assert row.equal


def test_strangers_have_nothing_in_common(tmp_path: Path) -> None:
    a = checkpoint_file(tmp_path / "a.safetensors", {"x": torch.ones(2)})
    b = checkpoint_file(tmp_path / "b.safetensors", {"y": torch.ones(2)})
    with pytest.raises(CheckpointError, match="no tensor in common"):
        compared(a, b)
    with pytest.raises(CheckpointError, match="has no tensor of the two files"):
        compared(a, a, b)


def test_it_stops_between_tensors(made: tuple[Path, Path]) -> None:
    seen = []

    class Impatient:
        def progress(self, done: int, total: int, note: str = "") -> None:
            assert 0 < done <= total

        def partial(self, value) -> None:
            seen.append(value)

        def check(self) -> None:
            if len(seen) == 3:
                raise Cancelled

    with pytest.raises(Cancelled):
        compared(*made, ctx=Impatient())
    assert len(seen) == 3


def test_the_command_writes_the_table(made: tuple[Path, Path], demo: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "table.csv"
    words = ["compare", *map(str, made), "--source", str(demo), "--csv", str(out), "--filter", "ffn", "--sort", "error"]
    assert main.main(words) == 0
    assert "to the source: A 4" in capsys.readouterr().out
    lines = list(csv.DictReader(io.StringIO(out.read_text(encoding="utf-8"))))
    errors = [float(line["sqnr_db"]) for line in lines]
    assert errors == sorted(errors)
    assert all("ffn" in line["name"] for line in lines)
    assert [p.name for p in tmp_path.iterdir()] == ["table.csv"]
    words[words.index(str(out))] = str(tmp_path / "missing" / "table.csv")
    assert main.main(words) == 1
    assert "cannot be written" in capsys.readouterr().err


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    from core.atomic import make_whole, write_whole

    path = tmp_path / "x.csv"
    write_whole(path, "old\r\n")
    assert path.read_bytes() == b"old\r\n"

    def broken(partial: Path) -> None:
        partial.write_text("half")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        make_whole(path, broken)
    assert path.read_bytes() == b"old\r\n"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(OutputError, match="cannot be written"):
        write_whole(tmp_path, "a folder is in the way")
    assert list(tmp_path.iterdir()) == [path]
