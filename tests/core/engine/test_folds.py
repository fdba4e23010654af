"""Methods that move scales, in whole runs: the files compute what the original computes, whatever container; plan,
report and resume know of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from core.checkpoints import open_checkpoint
from core.engine.pipeline import run
from core.engine.plan import make_plan
from core.errors import Cancelled
from core.recipes import load
from core.recipes.model import Match, Recipe, Rule, Strategy
from core.targets import get_target
from tests.core.calibration.build import model, samples_of, text_file
from tests.core.engine.build import Watch, digest


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("QUANTBENCH_CALIBRATION", str(tmp_path / "cache"))
    return tmp_path / "cache"


def outliers(folder: Path, kind: str, **options: Any) -> Any:
    """A model some of whose norms' outputs are 8 times the others, and quiet layers."""
    made = model(folder, kind, **options)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.dim() == 1 and name.endswith("weight") and parameter.numel() == 64:
                parameter[5::16] = 8 - (kind == "gemma3")
            elif parameter.dim() > 1:
                parameter *= 0.4
    made.save_pretrained(folder)
    return made


def recipe_of(text: str) -> Recipe:
    keep = Rule(Match(role=("embedding", "head", "router")), Strategy("keep"))
    return Recipe(text, (keep, *load(text).rules))


def made(tmp_path: Path, recipe: str, target: str, out: str, **options: Any) -> tuple[Any, Any]:
    with open_checkpoint(tmp_path / "m") as checkpoint:
        samples = samples_of(checkpoint, text_file(tmp_path))
        plan = make_plan(checkpoint, recipe_of(recipe), get_target(target), calibration=samples)
        return plan, run(plan, checkpoint, tmp_path / out, **options)


def logits(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    import transformers

    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return loaded(input_ids=ids).logits


def off(folder: Path, original: Path) -> float:
    """Relative error of the logits, the median of some tokens: a few may go to other experts."""
    ids = torch.arange(3, 43).view(2, 20)
    wanted = logits(original, ids)
    return float(((logits(folder, ids) - wanted).norm(dim=-1) / wanted.norm(dim=-1)).median())


@pytest.mark.parametrize("kind", ["llama", "gemma3", "gpt2", "mixtral"])
def test_files_with_folds_compute_the_same(tmp_path: Path, kind: str) -> None:
    """In 8 bits nearly nothing is lost: a fold that was not undone somewhere would show. Norms have other values, and
    what is said of them is that they lose nothing."""
    outliers(tmp_path / "m", kind)
    plan, report = made(tmp_path, "int8-g32+smoothquant", "dense", "q")
    made(tmp_path, "int8-g32+nearest", "dense", "nearest")
    nearest = off(tmp_path / "nearest", tmp_path / "m")
    assert nearest < 0.04
    assert 0.3 * nearest < off(tmp_path / "q", tmp_path / "m") < 2 * nearest
    with open_checkpoint(tmp_path / "m") as before, open_checkpoint(tmp_path / "q") as after:
        norms = [
            n for n, t in before.tensors.items() if len(t.shape) == 1 and not torch.equal(before.read(n), after.read(n))
        ]
        assert sum(t.nbytes for t in before.tensors.values()) == sum(t.nbytes for t in after.tensors.values())
    assert plan.nbytes == sum(p.stat().st_size for p in (tmp_path / "q").iterdir())
    assert any("rescale" in p.message for p in plan.problems)
    # attention's output and the MLP's second matrix have no norm before them
    if kind != "gpt2":  # its Conv1D stays as it is stored here, inputs along the rows: nothing of it can be scaled
        assert len(norms) >= 2 * 3
        assert all("not scaled" in line for line in report.fallbacks)
    assert len(report.fallbacks) >= 2 * 3


def test_scales_help_where_inputs_have_outliers(tmp_path: Path) -> None:
    outliers(tmp_path / "m", "gemma3")
    found = {}
    for recipe in ("int3-g32+nearest", "int3-g32+awq(scale=false)", "int3-g32+awq"):
        made(tmp_path, recipe, "dense", recipe)
        found[recipe] = off(tmp_path / recipe, tmp_path / "m")
    nearest, clipped, scaled = found.values()
    assert 0.3 * nearest < scaled < 0.8 * nearest
    assert scaled < 0.9 * clipped


def test_folds_reach_permuted_and_shifted_tensors_of_a_gguf(tmp_path: Path) -> None:
    """GGUF stores 1 + w of Gemma's norms, and permutes llama's q and k: the product of norm and weight is, column by
    column, what it was."""
    for kind, norm, weight in (
        ("gemma3", "pre_feedforward_layernorm", "mlp.up_proj"),
        ("llama", "input_layernorm", "self_attn.v_proj"),
    ):
        (tmp_path / kind).mkdir()
        scalar = {"query_pre_attn_scalar": 16} if kind == "gemma3" else {}
        outliers(tmp_path / kind / "m", kind, **scalar)
        made(tmp_path / kind, "q8_0+smoothquant", "gguf", "q.gguf")
        reader = gguf.GGUFReader(tmp_path / kind / "q.gguf")
        tensors = {t.name: gguf.dequantize(t.data, t.tensor_type) for t in reader.tensors}
        names = {"mlp.up_proj": ("ffn_norm", "ffn_up"), "self_attn.v_proj": ("attn_norm", "attn_v")}[weight]
        found = tensors[f"blk.1.{names[0]}.weight"] * tensors[f"blk.1.{names[1]}.weight"]
        with open_checkpoint(tmp_path / kind / "m") as checkpoint:
            shift = 1.0 if kind == "gemma3" else 0.0
            one = checkpoint.read(f"model.layers.1.{norm}.weight").numpy() + shift
            wanted = one * checkpoint.read(f"model.layers.1.{weight}.weight").numpy()
        assert np.linalg.norm(found - wanted) < 0.02 * np.linalg.norm(wanted)
        assert not np.allclose(tensors[f"blk.1.{names[0]}.weight"], one.reshape(-1), rtol=0.05)


def test_norms_in_16_bits_take_their_rounding_into_the_weights(tmp_path: Path) -> None:
    """A bf16 norm cannot hold norm / s: the weights are multiplied by what it holds, so that nothing is lost. q is
    kept, and shows by what it was multiplied."""
    made_ = outliers(tmp_path / "m", "llama")
    made_.to(torch.bfloat16).save_pretrained(tmp_path / "m")
    with open_checkpoint(tmp_path / "m") as checkpoint:
        samples = samples_of(checkpoint, text_file(tmp_path))
        rules = (Rule(Match(role=("k",)), Strategy("int8", "smoothquant")), Rule(Match(), Strategy("keep")))
        plan = make_plan(checkpoint, Recipe("k", rules), get_target("dense"), calibration=samples)
        run(plan, checkpoint, tmp_path / "q")
    with open_checkpoint(tmp_path / "m") as before, open_checkpoint(tmp_path / "q") as after:
        assert before.tensors["model.norm.weight"].dtype == after.tensors["model.norm.weight"].dtype == "BF16"
        name = "model.layers.0.{}.weight".format
        old, new = (c.read(name("input_layernorm")).float() for c in (before, after))
        w, w_new = (c.read(name("self_attn.q_proj")).float() for c in (before, after))
        s = old / new  # exactly what the weights were multiplied by, but for their own rounding
        ratio = (w_new * w).sum(0) / (w * w).sum(0)
    assert float((ratio / s - 1).abs().max()) < 3e-3
    assert float((ratio / s - 1).abs().mean()) < 5e-4  # the norm's own rounding has a mean of 1e-3


def test_a_stopped_run_ends_with_the_same_bytes(tmp_path: Path, cache: Path) -> None:
    outliers(tmp_path / "m", "llama")
    with open_checkpoint(tmp_path / "m") as checkpoint:
        samples = samples_of(checkpoint, text_file(tmp_path))
        plan = make_plan(checkpoint, recipe_of("int4-g32+awq"), get_target("dense"), calibration=samples)
        whole = run(plan, checkpoint, tmp_path / "whole", workers=1)
        out = tmp_path / "q"
        for limit in (5, 16):  # tensors, inside the first block and inside the second

            def enough(watch: Watch, limit: int = limit) -> bool:
                return len(watch.partials) >= limit

            with pytest.raises(Cancelled):
                run(plan, checkpoint, out, ctx=Watch(enough), resume=True, keep_partial=True, workers=1)
            assert list(cache.rglob("fold-*.npz"))
        report = run(plan, checkpoint, out, resume=True, workers=1)
    assert digest(out) == digest(tmp_path / "whole")
    assert report.fallbacks == whole.fallbacks
    assert list(cache.rglob("fold-*.npz")) == []


def test_what_cannot_be_scaled_is_said(tmp_path: Path) -> None:
    """OLMo 2 has its norms behind the layers; a head has its norm outside of the blocks."""
    outliers(tmp_path / "m", "llama")
    with open_checkpoint(tmp_path / "m") as checkpoint:
        samples = samples_of(checkpoint, text_file(tmp_path))
        keep = Rule(Match(role=("embedding",)), Strategy("keep"))
        recipe = Recipe("x", (keep, *load("int4-g32+awq").rules))
        plan = make_plan(checkpoint, recipe, get_target("dense"), calibration=samples)
        report = run(plan, checkpoint, tmp_path / "q")
    assert report.fallbacks == ("lm_head.weight: awq: its inputs are not scaled, nothing before it can take scales",)


def test_tensors_of_untouched_blocks_are_still_copied(tmp_path: Path) -> None:
    outliers(tmp_path / "m", "llama")
    with open_checkpoint(tmp_path / "m") as checkpoint:
        samples = samples_of(checkpoint, text_file(tmp_path))
        rules = (Rule(Match(layers=(1, 1)), Strategy("int4-g32", "awq")), Rule(Match(), Strategy("keep")))
        plan = make_plan(checkpoint, Recipe("one block", rules), get_target("dense"), calibration=samples)
        copied = {t.tensor.role.layer: t.copy for t in plan.tensors if t.tensor.role.kind == "norm"}
        assert copied == {None: True, 0: True, 1: False, 2: True}
        run(plan, checkpoint, tmp_path / "q")
        with open_checkpoint(tmp_path / "q") as after:
            for name in ("model.layers.0.input_layernorm.weight", "model.layers.2.mlp.up_proj.weight"):
                assert torch.equal(after.read(name), checkpoint.read(name))
            name = "model.layers.1.input_layernorm.weight"
            assert not torch.equal(after.read(name), checkpoint.read(name))


def test_a_fold_that_changes_the_function_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were the tracing wrong, the check on the folded block would say so."""
    import core.engine.folds as folds

    found = folds.find_folds

    def wrong(*args: Any) -> Any:
        return [replace(fold, consumers=fold.consumers[:-1]) for fold in found(*args)]

    outliers(tmp_path / "m", "llama")
    monkeypatch.setattr(folds, "find_folds", wrong)
    _, report = made(tmp_path, "int4-g32+awq", "dense", "q")
    assert len(report.fallbacks) == 3 * 7
    assert all("the block would compute something else" in line for line in report.fallbacks)
