"""Importance through the engine: the bytes are ggml's with the same importance, names find their tensors in every
target, and another importance is another run."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from core.calibration.imatrix import read_imatrix, write_imatrix
from core.calibration.statistics import Provenance, Statistic, Statistics, TensorStatistics, stack, together
from core.checkpoints import open_checkpoint
from core.engine.executors.dask import _alone
from core.engine.known import as_tensors, bind, by_source, trace
from core.engine.pipeline import can_resume, run
from core.engine.plan import make_plan, plan_json
from core.engine.units import cut
from core.engine.work import Work
from core.errors import CalibrationError, Cancelled, OutputError
from core.methods import Nearest
from core.recipes import load
from core.roles import role_of
from core.targets import get_target
from core.targets.base import Outline, OutputTensor, RowSource
from core.targets.gguf.rows import FromGguf, Interleaved
from tests.core.engine.build import Watch, digest
from tests.core.formats import llama as ggml

IMPORTANCE = Statistic.IMPORTANCE


def store(tensors: dict[str, TensorStatistics], identity: str = "i") -> Statistics:
    return Statistics(Provenance("dir/i.gguf", "wiki", len(tensors), 12, identity), tensors)


def weighted(columns: int, seed: int, experts: int = 0, count: int = 5) -> TensorStatistics:
    shape = (experts, columns) if experts else (columns,)
    values = np.random.default_rng(seed).exponential(size=shape).astype(np.float32) ** 3
    return TensorStatistics({IMPORTANCE: values}, (count,) * max(1, experts), stacked=bool(experts))


def blocks(file: gguf.GGUFReader, name: str) -> np.ndarray:
    return next(t for t in file.tensors if t.name == name).data


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nearest with the search that a format is known by, which for GGML's is llama.cpp's."""

    def quantize(self, w, format, stats, params, ctx=None):
        return format.quantize(w, stats.get(IMPORTANCE))

    monkeypatch.setattr(Nearest, "quantize", quantize)


@pytest.mark.usefixtures("exact")
def test_demo_with_an_importance_matrix_has_ggmls_bytes(demo: Path, tmp_path: Path) -> None:
    with open_checkpoint(demo) as checkpoint:
        outline = get_target("gguf").outline(checkpoint)
        wanted = [t for t in outline.tensors if t.name.startswith("blk.") and t.linear]
        given = store({t.name: weighted(t.columns, n) for n, t in enumerate(wanted)})
        write_imatrix(tmp_path / "i.gguf", given, 512)
        gathered = read_imatrix(tmp_path / "i.gguf")
        plan = make_plan(checkpoint, load("q4_k"), get_target("gguf"), gathered=gathered)
        run(plan, checkpoint, tmp_path / "q.gguf")
        assert (tmp_path / "q.gguf").stat().st_size == plan.nbytes
        file = gguf.GGUFReader(tmp_path / "q.gguf")
        for t in wanted[:9]:
            w = t.source.read(checkpoint, 0, t.rows).float().numpy()
            importance = gathered.tensors[t.name].values[IMPORTANCE]
            found = blocks(file, t.name)
            np.testing.assert_array_equal(found, ggml.quantize("Q4_K", w, importance), err_msg=t.name)
            assert (found != ggml.quantize("Q4_K", w)).any(), t.name
        embedding = outline.tensors[0]
        w = embedding.source.read(checkpoint, 0, embedding.rows).float().numpy()
        np.testing.assert_array_equal(blocks(file, embedding.name), ggml.quantize("Q4_K", w))
    assert file.get_field("quantize.imatrix.file").contents() == "i.gguf"
    assert file.get_field("quantize.imatrix.dataset").contents() == "wiki"
    assert file.get_field("quantize.imatrix.entries_count").contents() == len(wanted)
    assert file.get_field("quantize.imatrix.chunks_count").contents() == 12
    said = [str(p) for p in plan.problems]
    assert [s for s in said if "no importance data" in s] == [
        "token_embd.weight: no importance data: all columns count the same",
        "output.weight: no importance data: all columns count the same",
    ]
    label = plan_json(plan)["statistics"]
    assert (label["file"], label["covered"], label["kinds"]) == (str(tmp_path / "i.gguf"), len(wanted), ["importance"])


def test_gguf_names_reach_other_targets(demo: Path, tmp_path: Path) -> None:
    """The same values for the same weights, whatever the container calls them."""
    with open_checkpoint(demo) as checkpoint:
        outline = get_target("gguf").outline(checkpoint)
        given = store({t.name: weighted(t.columns, n) for n, t in enumerate(outline.tensors) if t.linear})
        plan = make_plan(checkpoint, load("q4_k"), get_target("dense"), gathered=given)
        names = {t.name: t.source.names()[0] for t in outline.tensors if t.linear}
        assert set(plan.known.tensors) == set(names.values())
        for name, source in names.items():
            np.testing.assert_array_equal(
                plan.known.tensors[source].values[IMPORTANCE], given.tensors[name].values[IMPORTANCE]
            )


def test_missing_entries_are_named_and_strangers_too(demo: Path) -> None:
    with open_checkpoint(demo) as checkpoint:
        outline = get_target("gguf").outline(checkpoint)
        entries = {t.name: weighted(t.columns, 0) for t in outline.tensors if t.linear}
        del entries["blk.2.ffn_up.weight"]
        entries["blk.77.attn_q.weight"] = weighted(256, 0)
        gathered = store(entries)
        problems = [
            (p.severity, str(p))
            for p in make_plan(checkpoint, load("q4_k"), get_target("gguf"), gathered=gathered).problems
        ]
        assert (
            "warning",
            "blk.2.ffn_up.weight: no importance data: all columns count the same; gather the importance matrix again",
        ) in problems
        # Q8_0 is the same with and without.
        eight = make_plan(checkpoint, load("q8_0"), get_target("gguf"), gathered=gathered).problems
        assert not [p for p in eight if "importance data:" in p.message]


def test_importance_of_another_model_is_refused(demo: Path) -> None:
    with open_checkpoint(demo) as checkpoint:
        target = get_target("gguf")
        with pytest.raises(CalibrationError, match=r"blk.0.attn_q.weight: the importance has 64 values"):
            make_plan(checkpoint, load("q4_k"), target, gathered=store({"blk.0.attn_q.weight": weighted(64, 0)}))
        with pytest.raises(CalibrationError, match="none of its 1 tensors is in this model"):
            make_plan(checkpoint, load("q4_k"), target, gathered=store({"blk.0.ssm_in.weight": weighted(64, 0)}))


def test_a_model_that_gguf_does_not_know(tmp_path: Path) -> None:
    save_file({"a.weight": torch.randn(256, 256)}, tmp_path / "m.safetensors")
    with open_checkpoint(tmp_path / "m.safetensors") as checkpoint:
        with pytest.raises(CalibrationError, match="named as in GGUF"):
            make_plan(
                checkpoint, load("q4_k"), get_target("dense"), gathered=store({"blk.0.x.weight": weighted(256, 0)})
            )
        own = make_plan(checkpoint, load("q4_k"), get_target("dense"), gathered=store({"a.weight": weighted(256, 0)}))
        assert set(own.known.tensors) == {"a.weight"}


def moe_gguf(path: Path, experts: int = 3, rows: int = 40, columns: int = 256) -> np.ndarray:
    w = np.random.default_rng(3).normal(size=(experts, rows, columns)).astype(np.float32)
    writer = gguf.GGUFWriter(path, arch="llama")
    writer.add_tensor("blk.0.ffn_up_exps.weight", w)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return w


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("piece", [1 << 20, 256 * 16])
def test_every_expert_has_its_own_importance(tmp_path: Path, monkeypatch, piece: int) -> None:
    """Pieces of a run never mix two experts, however they fall."""
    import core.engine.task as task

    monkeypatch.setattr(task, "PIECE_WEIGHTS", piece)
    w = moe_gguf(tmp_path / "m.gguf")
    known = weighted(256, 1, experts=3)
    known = TensorStatistics(known.values, (5, 0, 9), stacked=True)
    known.values[IMPORTANCE][1] = 1  # type: ignore[index]
    with open_checkpoint(tmp_path / "m.gguf") as checkpoint:
        plan = make_plan(
            checkpoint, load("q4_k"), get_target("gguf"), gathered=store({"blk.0.ffn_up_exps.weight": known})
        )
        assert ["no token reached 1 of 3 experts" in p.message for p in plan.problems if p.severity == "note"] == [True]
        run(plan, checkpoint, tmp_path / "q.gguf")
    found = blocks(gguf.GGUFReader(tmp_path / "q.gguf"), "blk.0.ffn_up_exps.weight")
    for e in range(3):
        np.testing.assert_array_equal(found[e], ggml.quantize("Q4_K", w[e], known.values[IMPORTANCE][e]))
    assert (found[0] != ggml.quantize("Q4_K", w[0], known.values[IMPORTANCE][2])).any()


def test_formats_that_need_importance_say_which_tensor_lacks_it(tmp_path: Path, monkeypatch) -> None:
    from core.formats.ggml.format import GgmlFormat

    moe_gguf(tmp_path / "m.gguf")
    monkeypatch.setattr(GgmlFormat, "needs_importance", property(lambda self: True))
    with open_checkpoint(tmp_path / "m.gguf") as checkpoint:
        target = get_target("gguf")
        (error,) = [p for p in make_plan(checkpoint, load("q4_k"), target).problems if p.severity == "error"]
        assert str(error).startswith("blk.0.ffn_up_exps.weight: q4_k cannot be written without importance data")
        given = store({"blk.0.ffn_up_exps.weight": weighted(256, 1, experts=3)})
        plan = make_plan(checkpoint, load("q4_k"), target, gathered=given)
        assert [p for p in plan.problems if p.severity == "error"] == []
        promised = make_plan(checkpoint, load("q4_k"), target, statistics=frozenset({IMPORTANCE}))
        assert [p for p in promised.problems if p.severity == "error"] == []


def test_another_importance_is_another_run(tmp_path: Path) -> None:
    moe_gguf(tmp_path / "m.gguf", experts=12, rows=4096)
    out = tmp_path / "q.gguf"
    with open_checkpoint(tmp_path / "m.gguf") as checkpoint:

        def plan(identity: str | None):
            given = store({"blk.0.ffn_up_exps.weight": weighted(256, 1, experts=12)}, identity or "")
            gathered = None if identity is None else given
            return make_plan(checkpoint, load("q4_k"), get_target("gguf"), gathered=gathered)

        first = plan("one")
        assert len(cut(first, checkpoint)) > 1
        run(first, checkpoint, tmp_path / "whole.gguf")
        stop = Watch(lambda watch: any(done > 0 for done, _ in watch.heard))
        with pytest.raises(Cancelled):
            run(first, checkpoint, out, ctx=stop, keep_partial=True, workers=1)
        for other in ("two", None):
            assert not can_resume(out, plan(other))
            with pytest.raises(OutputError, match="the calibration data"):
                run(plan(other), checkpoint, out, resume=True)
        assert can_resume(out, plan("one"))
        report = run(plan("one"), checkpoint, out, resume=True)
        assert report.notes["resumed"]
    assert digest(out) == digest(tmp_path / "whole.gguf")


def test_a_workers_message_holds_one_tensors_statistics(demo: Path) -> None:
    with open_checkpoint(demo) as checkpoint:
        outline = get_target("gguf").outline(checkpoint)
        given = store({t.name: weighted(t.columns, 0) for t in outline.tensors if t.linear})
        plan = make_plan(checkpoint, load("q4_k"), get_target("gguf"), gathered=given)
        work = Work.of(plan, checkpoint, "cpu", True)
        for unit in cut(plan, checkpoint):
            name = plan.tensors[unit.tensor].tensor.name
            alone, _ = pickle.loads(pickle.dumps(_alone(work, unit)))
            assert set(alone.statistics) == ({name} if name in given.tensors else set())
            if alone.statistics:
                one = as_tensors(alone.statistics[name], "cpu")[IMPORTANCE]
                np.testing.assert_array_equal(one.numpy(), given.tensors[name].values[IMPORTANCE])


# Renamed, merged and transposed tensors


@dataclass(frozen=True)
class Stacked(RowSource):
    """Matrices of `each` rows, one below the other."""

    parts: tuple[str, ...]
    each: int

    def names(self) -> tuple[str, ...]:
        return self.parts

    def read(self, checkpoint, start, stop):
        return torch.cat([checkpoint.read(name) for name in self.parts])[start:stop]


@dataclass(frozen=True)
class Transposed(RowSource):
    """Stored the other way round."""

    name: str

    def names(self) -> tuple[str, ...]:
        return (self.name,)

    def read(self, checkpoint, start, stop):
        return checkpoint.read(self.name)[:, start:stop].T


class Numbers:
    """Checkpoint enough to bind with."""

    def __init__(self, folder: Path, tensors: dict[str, torch.Tensor]) -> None:
        save_file(tensors, folder / "n.safetensors")
        self.opened = open_checkpoint(folder / "n.safetensors")


def outline_of(name: str, source: RowSource, shape: tuple[int, ...]) -> Outline:
    return Outline((OutputTensor(name, source, shape, "F32", role_of(name)),))


def test_origins_of_rows(tmp_path: Path) -> None:
    tensors = {f"e.{n}": torch.zeros(8, 6) for n in range(3)} | {"c": torch.zeros(6, 8)}
    opened = Numbers(tmp_path, tensors).opened
    stacked = Stacked(("e.0", "e.1", "e.2"), 8)
    assert [trace(stacked, opened, row).name for row in (0, 7, 8, 23)] == ["e.0", "e.0", "e.1", "e.2"]
    assert trace(Transposed("c"), opened, 3).transposed
    assert not trace(Interleaved("e.1", 2), opened, 3).transposed


def test_merged_experts_take_the_statistics_of_their_parts(tmp_path: Path) -> None:
    opened = Numbers(tmp_path, {f"e.{n}": torch.zeros(8, 6) for n in range(3)}).opened
    outline = outline_of("blk.0.ffn_up_exps.weight", Stacked(("e.0", "e.1", "e.2"), 8), (3, 8, 6))
    parts = {f"e.{n}": weighted(6, n, count=n) for n in range(3)}
    known = bind(store(parts), outline, opened).tensors["blk.0.ffn_up_exps.weight"]
    assert (known.stacked, known.counts) == (True, (0, 1, 2))
    for n in range(3):
        np.testing.assert_array_equal(known.values[IMPORTANCE][n], parts[f"e.{n}"].values[IMPORTANCE])
    # And back: an importance matrix of the stack, for a target that keeps the experts apart.
    apart = by_source(store({"blk.0.ffn_up_exps.weight": known}), opened, outline).tensors
    for n in range(3):
        np.testing.assert_array_equal(apart[f"e.{n}"].values[IMPORTANCE], parts[f"e.{n}"].values[IMPORTANCE])
        assert apart[f"e.{n}"].counts == (n,)
    # An expert without statistics leaves the stack without.
    assert bind(store({"e.0": parts["e.0"]}), outline, opened).tensors == {}


def test_columns_stored_the_other_way_round_are_not_mixed_up(tmp_path: Path) -> None:
    """Square, so that sizes do not tell: only a target that turns the matrix has its inputs as columns."""
    opened = Numbers(tmp_path, {"c": torch.zeros(8, 8)}).opened
    turned = outline_of("blk.0.attn_output.weight", Transposed("c"), (8, 8))
    kept = outline_of("c", FromGguf("c"), (8, 8))
    from_imatrix = by_source(store({"blk.0.attn_output.weight": weighted(8, 0)}), opened, turned)
    assert from_imatrix.tensors["c"].transposed
    assert set(bind(from_imatrix, turned, opened).tensors) == {"blk.0.attn_output.weight"}
    assert bind(from_imatrix, kept, opened).tensors == {}


def test_together_is_the_mean_over_tokens() -> None:
    a, b = weighted(4, 0, count=1), weighted(4, 1, count=3)
    mean = together([a, b]).values[IMPORTANCE]
    np.testing.assert_allclose(mean, 0.25 * a.values[IMPORTANCE] + 0.75 * b.values[IMPORTANCE], rtol=1e-6)
    assert together([a, a]) is a
    assert stack([a, b]).of_expert(1).counts == (3,)
