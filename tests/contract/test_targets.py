"""What every target promises, walked over the registries: what it writes is read back bit for bit, what it cannot carry
is refused by the tensor's name before anything is written, and docs/interop.md says what its evidence says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import main
from core.checkpoints import open_checkpoint
from core.engine.pipeline import run
from core.engine.plan import make_plan
from core.errors import WorkbenchError
from core.formats import FORMATS, get_format
from core.recipes import load
from core.targets import TARGETS, Target
from core.targets.assignments import Assignments, named
from core.targets.base import Assignment
from resources import interop
from tests.core.targets.build import assemble, save_model, size_of

EVERY = pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """One layer, sides that every format fits, float32."""
    sides = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1, "vocab_size": 64}
    return save_model(tmp_path_factory.mktemp("model"), dtype=torch.float32, **sides)


def down(tensor) -> bool:
    return tensor.role.kind == "down"


@EVERY
def test_what_is_written_is_read_back(target: Target, model, tmp_path) -> None:
    """All formats but those that need importance, which GGUF stores as it does the others."""
    written = 0
    for name in interop.carried(target):
        fmt = get_format(name)
        if fmt.needs_importance:
            continue
        with open_checkpoint(model) as checkpoint:
            tensor = next(t for t in target.outline(checkpoint).tensors if down(t))
            if target.refuses(target.adapt(fmt, tensor), tensor):
                continue
            w = target.adapt(fmt, tensor).quantize(tensor.source.read(checkpoint, 0, tensor.rows)).dequantize()
        out = tmp_path / f"{name}{target.suffix}"
        assemble(model, target.name, out, lambda t, name=name: name if down(t) else None)
        with open_checkpoint(out) as again:
            assert torch.equal(again.read(tensor.name).float(), w), name
        written += 1
    assert written >= 2


@EVERY
def test_what_it_cannot_carry_is_refused_by_name(target: Target, model, tmp_path) -> None:
    """Every tensor is named, with the reason. The dense target alone takes everything."""
    taken = interop.carried(target)
    refused = [f.name for f in FORMATS if f.encodable and f.name not in taken and not f.needs_importance]
    assert bool(refused) == (target.name != "dense")
    for name in refused:
        with open_checkpoint(model) as checkpoint:
            plan = make_plan(checkpoint, load(name), target)
            assert any(p.severity == "error" and "nothing to quantize" in p.message for p in plan.problems), name
            assert any("down" in p.tensor and p.message.startswith("kept: ") for p in plan.problems), name
            if name == refused[0]:
                with pytest.raises(WorkbenchError):
                    run(plan, checkpoint, tmp_path / "out", workers=1)
                assert not list(tmp_path.iterdir())


@EVERY
def test_tensors_that_are_alike_are_answered_alike(target: Target, model, tmp_path_factory) -> None:
    """What plans ask once per kind is what each tensor would have been told: in a model of several layers, and, where
    there is one, its GGUF."""
    several = save_model(tmp_path_factory.mktemp("several"), num_hidden_layers=3, tie_word_embeddings=False)
    whole = tmp_path_factory.mktemp("whole") / "model.gguf"
    assemble(several, "gguf", whole)
    for path in (model, several, whole):
        with open_checkpoint(path) as checkpoint:
            try:
                outline = target.outline(checkpoint)
            except WorkbenchError:
                assert path == whole
                continue
            samples = [outline.tensors[i] for i in outline.kinds.first]
            assert path == model or len(samples) < len(outline.tensors) / 2
            alike = list(zip(outline.tensors, outline.kinds.share(samples), strict=True))
            assert all(target.keeps(t) == target.keeps(other) for t, other in alike)
            made = [Assignment(t, target.keeps(t)) for t in outline.tensors]
            assert [stored for _, stored in named(Assignments(made), target)] == [target.stored(a) for a in made]
            for fmt in FORMATS:
                adapted = [(target.adapt(fmt, t), t, target.adapt(fmt, other), other) for t, other in alike]
                assert all(a == b and target.refuses(a, t) == target.refuses(b, other) for a, t, b, other in adapted)
                made = [
                    Assignment(t, a, inputs=inputs)
                    for a, t, _, _ in adapted
                    if target.refuses(a, t) is None and a.misfit(t.shape) is None
                    for inputs in ("plain", "static")
                ]
                assert [stored for _, stored in named(Assignments(made), target)] == [target.stored(a) for a in made]


# A recipe that each takes, and one that it refuses.
RECIPES = {
    "gguf": ("Q4_K_M", "int4-g128"),
    "compressed-tensors": ("W4A16", "q4_k"),
    "gptq": ("int4-g128", "nf4"),
    "awq": ("int4-g64-asym", "int8"),
    "fp8": ("fp8-e4m3-b128", "fp8-e4m3"),
    "bitsandbytes": ("nf4-dq", "q4_k"),
    "torchao": ("int4-g32", "nf4"),
    "mlx": ("int4-g64-bias", "int4-g128-asym"),
    "dense": ("q4_0", ""),
}


@EVERY
def test_the_plan_is_the_disk_by_the_command_line(target: Target, model, tmp_path, capsys) -> None:
    """`plan` says the very bytes that `quantize` leaves, in one file and in several."""
    recipe, _ = RECIPES[target.name]
    asked = ["--recipe", recipe, "--target", target.name, "--json"]

    def says(*arguments: str) -> dict[str, Any]:
        assert main.main(list(arguments)) == 0
        answer: dict[str, Any] = json.loads(capsys.readouterr().out)
        return answer

    for number, shards in enumerate(([], ["--shard-size", "200kB"])):
        out = tmp_path / f"{number}{target.suffix}"
        planned = says("plan", str(model), *asked, *shards)
        done = says("quantize", str(model), *asked, *shards, "--out", str(out))
        assert planned["bytes"] == done["bytes"] == size_of(Path(done["out"]))
        with open_checkpoint(Path(done["out"])) as again:
            assert (len(again.files) > 1) == bool(shards)
            assert again.read("model.layers.0.mlp.down_proj.weight" if target.folder else "blk.0.ffn_down.weight").any()
        assert {path.name for path in tmp_path.iterdir()} <= {f"{n}{target.suffix}" for n in range(2)} | {"0", "1"}


@EVERY
def test_what_it_cannot_carry_stops_the_command_line(target: Target, model, tmp_path, capsys) -> None:
    """One line with a tensor's name, no success, nothing written."""
    _, recipe = RECIPES[target.name]
    if not recipe:
        assert target.name == "dense"
        return
    out = tmp_path / "out"
    status = main.main(["quantize", str(model), "--recipe", recipe, "--target", target.name, "--out", str(out)])
    told = capsys.readouterr()
    assert status == 1
    assert ".weight" in told.err.strip().splitlines()[-1], told.err
    assert not list(tmp_path.iterdir())


def test_a_quantized_folder_quantized_again_warns(model, tmp_path) -> None:
    for target in TARGETS:
        name = next(
            (n for n in ("int4-g64", "int4-g64-bias", "int4-g128-asym", "nf4") if n in interop.carried(target)), ""
        )
        if not name or target.name == "dense":
            continue
        out = tmp_path / target.name
        assemble(model, target.name, out, lambda t, name=name: name if down(t) else None)
        with open_checkpoint(out) as again:
            plan = make_plan(again, load("int8"), next(t for t in TARGETS if t.name == "dense"))
        assert any(p.severity == "warning" and "already" in p.message and "down" in p.tensor for p in plan.problems), (
            target.name
        )


@EVERY
def test_evidence_is_there(target: Target) -> None:
    assert target.verified
    for record in target.verified:
        assert any(interop.evidence(target, name).get(record.runtime) for name in interop.carried(target))
        for file in record.where.split(", "):
            assert (ROOT / file).is_file(), file


def test_the_page_is_up_to_date() -> None:
    """Else: python -m resources.interop."""
    text = interop.PAGE.read_text(encoding="utf-8")
    assert interop.page(text) == text
