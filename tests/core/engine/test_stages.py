"""Calibrated runs: what a method is told of each block comes from behind the quantized ones before it, whatever the
container does to names and rows, and a stopped run ends with the same bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import gguf
import numpy as np
import pytest
import torch

from core.checkpoints import open_checkpoint
from core.engine.pipeline import run
from core.engine.plan import make_plan, plan_json
from core.engine.preflight import preflight
from core.engine.stages import Sink
from core.errors import Cancelled, OutputError, PlanError
from core.formats import get_format
from core.methods import Method, Nearest
from core.methods.base import Statistic
from core.recipes import load
from core.recipes.model import Match, Recipe, Rule, Strategy
from core.targets import get_target
from tests.core.calibration.build import Hooked, model, samples_of, text_file
from tests.core.engine.build import Watch, digest

HESSIAN = Statistic.HESSIAN


class Probe(Method):
    """Rounds to nearest and remembers what it was told, by the shape and first weight of the rows."""

    name: ClassVar[str] = "probe"
    title = help = ""
    needs: ClassVar[frozenset[Statistic]] = frozenset({HESSIAN, Statistic.ACTIVATIONS})
    told: ClassVar[list[tuple[torch.Tensor, dict[Statistic, torch.Tensor]]]] = []

    def quantize(self, w: torch.Tensor, format: Any, stats: Any, params: Any, ctx: Any = None) -> Any:
        self.told.append((w.clone(), dict(stats)))
        return format.quantize(w, stats[Statistic.IMPORTANCE])


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[Probe]:
    import core.methods

    monkeypatch.setenv("QUANTBENCH_CALIBRATION", str(tmp_path / "cache"))
    monkeypatch.setattr(core.methods, "_BY_NAME", {"probe": Probe(), "nearest": Nearest()})
    Probe.told.clear()
    return Probe


def plan_for(checkpoint: Any, tmp_path: Path, target: str, recipe: str = "q4_0+probe") -> Any:
    samples = samples_of(checkpoint, text_file(tmp_path))
    return make_plan(checkpoint, load(recipe), get_target(target), calibration=samples)


def told_for(rows: torch.Tensor) -> dict[Statistic, torch.Tensor]:
    """What the method was told when it was given these rows, in any order."""
    wanted = rows.float().sort(0).values
    return next(s for w, s in Probe.told if w.shape == rows.shape and torch.equal(w.float().sort(0).values, wanted))


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_a_block_sees_what_quantized_blocks_give_it(tmp_path: Path, probe: type[Probe], kind: str) -> None:
    """The quantized file, run by transformers, gives the inputs of every block's first matrices."""
    import transformers

    model(tmp_path / "m", kind)
    with open_checkpoint(tmp_path / "m") as checkpoint:
        samples = samples_of(checkpoint, text_file(tmp_path))
        kept = Rule(Match(role=("embedding",)), Strategy("keep"))
        recipe = Recipe("probe", (kept, Rule(Match(), Strategy("q4_0", "probe"))))
        plan = make_plan(checkpoint, recipe, get_target("dense"), calibration=samples)
        report = run(plan, checkpoint, tmp_path / "q")
        ids = torch.from_numpy(plan.calibration.ids)
        weights = {name: checkpoint.read(name).clone() for name in checkpoint.tensors}
    quantized = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "q", dtype=torch.float32).eval()
    hooked = Hooked(quantized, ids)
    original = Hooked(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval(), ids)
    for layer in range(3):
        name = f"model.layers.{layer}.self_attn.k_proj"
        told = told_for(weights[f"{name}.weight"])
        scale = float(hooked.hessian(name).abs().max())
        assert float((told[HESSIAN] - hooked.hessian(name)).abs().max()) < 1e-4 * scale
        if layer:  # and not what the original gives
            assert float((told[HESSIAN] - original.hessian(name)).abs().max()) > 1e-2 * scale
    assert report.fallbacks == ()


def test_rows_that_gguf_moves_are_moved_back(tmp_path: Path, probe: type[Probe]) -> None:
    """q and k are permuted in a GGUF. The samples go on through the same weights, so the statistics are the same."""
    model(tmp_path / "m", "llama")
    with open_checkpoint(tmp_path / "m") as checkpoint:
        weights = {name: checkpoint.read(name).clone() for name in checkpoint.tensors}
        run(plan_for(checkpoint, tmp_path, "dense"), checkpoint, tmp_path / "q")
        dense = list(probe.told)
        probe.told.clear()
        plan = plan_for(checkpoint, tmp_path, "gguf")
        report = run(plan, checkpoint, tmp_path / "q.gguf")
    assert report.fallbacks == ("token_embd.weight: probe → nearest: no activations, hessian of its inputs is known",)
    assert len(dense) == len(probe.told) == 3 * 7 + 1
    for name in ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"):
        rows = weights[f"model.layers.2.{name}.weight"]
        here = told_for(rows)[HESSIAN]
        there = next(s for w, s in dense if torch.equal(w, rows))[HESSIAN]
        assert torch.equal(here, there)
    file = gguf.GGUFReader(tmp_path / "q.gguf")
    assert file.get_field("quantize.imatrix.dataset").contents() == "calibration.txt"
    assert (tmp_path / "q.gguf").stat().st_size == plan.nbytes
    assert plan_json(plan)["statistics"]["dataset"] == "calibration.txt"
    assert list((tmp_path / "cache").rglob("*.f32")) == []


def test_experts_are_told_of_their_own_tokens(tmp_path: Path, probe: type[Probe]) -> None:
    """Mixtral in a folder: every expert's matrices apart; the fused ones in transformers go on quantized."""
    model(tmp_path / "m", "mixtral")
    with open_checkpoint(tmp_path / "m") as checkpoint:
        run(plan_for(checkpoint, tmp_path, "dense"), checkpoint, tmp_path / "q")
        name = "model.layers.1.block_sparse_moe.experts.{}.w1.weight"
        told = [told_for(checkpoint.read(name.format(e)).clone())[HESSIAN] for e in range(4)]
    for a in range(4):
        assert float(told[a].abs().max()) > 0
        for b in range(a):
            assert not torch.allclose(told[a], told[b], rtol=1e-2)


def test_a_stopped_run_ends_with_the_same_bytes(tmp_path: Path, probe: type[Probe]) -> None:
    model(tmp_path / "m", "llama")
    with open_checkpoint(tmp_path / "m") as checkpoint:
        plan = plan_for(checkpoint, tmp_path, "gguf")
        run(plan, checkpoint, tmp_path / "whole.gguf")
        out = tmp_path / "q.gguf"
        for limit in (3, 12):  # inside the first block, then inside the second
            probe.told.clear()
            stop = Watch(lambda watch, limit=limit: len(probe.told) >= limit)
            with pytest.raises(Cancelled):
                run(plan, checkpoint, out, ctx=stop, resume=True, keep_partial=True, workers=1)
        probe.told.clear()
        report = run(plan, checkpoint, out, resume=True, workers=1)
        assert len(probe.told) == 2 * 7 + 1  # the first block was finished
        assert "done by an earlier run" in report.notes["resumed"]
        assert digest(out) == digest(tmp_path / "whole.gguf")
        assert len(report.tensors) == len(plan.tensors)


@pytest.mark.parametrize("recipe", ["q4_0+gptq", "int4-g32+obq"])
def test_a_stopped_run_with_gptq_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    """What later blocks are fitted to hangs on every bit of the earlier ones."""
    monkeypatch.setenv("QUANTBENCH_CALIBRATION", str(tmp_path / "cache"))
    model(tmp_path / "m", "llama")
    target = "gguf" if recipe.startswith("q") else "compressed-tensors"
    with open_checkpoint(tmp_path / "m") as checkpoint:
        plan = plan_for(checkpoint, tmp_path, target, recipe)
        whole = Watch()
        run(plan, checkpoint, tmp_path / "whole", ctx=whole, workers=1)
        out = tmp_path / "q"
        half = Watch(lambda watch: watch.checks > 2 * whole.checks // 3)
        with pytest.raises(Cancelled):
            run(plan, checkpoint, out, ctx=half, resume=True, keep_partial=True, workers=1)
        rest = Watch()
        report = run(plan, checkpoint, out, ctx=rest, resume=True, workers=1)
        assert "done by an earlier run" in report.notes["resumed"]
        assert rest.checks < 0.8 * whole.checks
        written = [path for path in sorted((tmp_path / "whole").rglob("*")) if path.is_file()] or [tmp_path / "whole"]
        for path in written:
            same = out / path.relative_to(tmp_path / "whole") if (tmp_path / "whole").is_dir() else out
            assert digest(same) == digest(path)


def test_a_run_stopped_without_keeping_leaves_nothing(tmp_path: Path, probe: type[Probe]) -> None:
    model(tmp_path / "m", "llama")
    with open_checkpoint(tmp_path / "m") as checkpoint:
        plan = plan_for(checkpoint, tmp_path, "gguf")
        with pytest.raises(Cancelled):
            run(plan, checkpoint, tmp_path / "q.gguf", ctx=Watch(lambda watch: len(probe.told) > 9), workers=1)
        assert [p for p in (tmp_path / "cache").rglob("*") if p.is_file()] == []
        assert {p.name for p in tmp_path.iterdir()} == {"m", "cache", "calibration.txt"}
        # What another text would give is another run.
        stop = Watch(lambda watch: len(probe.told) > 20)
        with pytest.raises(Cancelled):
            run(plan, checkpoint, tmp_path / "q.gguf", ctx=stop, workers=1, keep_partial=True)
        (tmp_path / "calibration.txt").write_text("another text, " * 400)
        samples = samples_of(checkpoint, tmp_path / "calibration.txt")
        other = make_plan(checkpoint, load("q4_0+probe"), get_target("gguf"), calibration=samples)
        with pytest.raises(OutputError, match="the calibration data"):
            run(other, checkpoint, tmp_path / "q.gguf", resume=True)


def test_a_cluster_and_a_full_disk_are_refused(tmp_path: Path, probe: type[Probe], monkeypatch) -> None:
    import shutil
    from collections import namedtuple

    model(tmp_path / "m", "llama")
    with open_checkpoint(tmp_path / "m") as checkpoint:
        plan = plan_for(checkpoint, tmp_path, "gguf")
        with pytest.raises(PlanError, match="works on one machine"):
            run(plan, checkpoint, tmp_path / "q.gguf", cluster="tcp://127.0.0.1:1")
        assert [p for p in preflight(plan, checkpoint, tmp_path / "q.gguf") if p.severity == "error"] == []
        usage = namedtuple("Usage", "total used free")
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 2 * 4 * plan.calibration.ids.size * 64 - 1))
        said = [str(p) for p in preflight(plan, checkpoint, tmp_path / "q.gguf")]
        assert any("calibration needs 73,728 bytes for hidden states" in line for line in said)


def test_the_sink_moves_everything_back(tmp_path: Path) -> None:
    """Permuted and merged rows and turned matrices end where they came from."""
    from safetensors.torch import save_file

    from core.engine.model import Fate, PlannedTensor
    from core.recipes.model import Strategy
    from core.roles import role_of
    from core.targets.base import OutputTensor
    from core.targets.gguf.rows import Interleaved
    from tests.core.engine.test_known import Stacked, Transposed

    tensors = {"a": torch.randn(8, 6), "b": torch.randn(8, 6), "c": torch.randn(6, 8), "q": torch.randn(16, 4)}
    save_file(tensors, tmp_path / "n.safetensors")
    outputs = [
        OutputTensor("ab", Stacked(("a", "b"), 8), (16, 6), "F32", role_of("ab")),
        OutputTensor("ct", Transposed("c"), (8, 6), "F32", role_of("ct")),
        OutputTensor("qp", Interleaved("q", 2), (16, 4), "F32", role_of("qp")),
    ]
    with open_checkpoint(tmp_path / "n.safetensors") as checkpoint:
        sink = Sink(checkpoint)
        for output in outputs:
            planned = PlannedTensor(output, Fate(Strategy("q8_0"), get_format("q8_0"), False, 0, "", "", False, 0))
            for start in range(0, output.rows, 3):
                stop = min(output.rows, start + 3)
                sink.keep(planned, start, stop, output.source.read(checkpoint, start, stop) + 1)
        for name, tensor in tensors.items():
            found = sink.get(name)
            assert found is not None
            np.testing.assert_array_equal(found.numpy(), (tensor + 1).numpy())
        assert sink.get("d") is None
