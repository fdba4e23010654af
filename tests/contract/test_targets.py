"""What every target promises, walked over the registries: what it writes is read back bit for bit, what it cannot carry
is refused by the tensor's name before anything is written, and docs/interop.md says what its evidence says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from core.checkpoints import open_checkpoint
from core.engine.pipeline import run
from core.engine.plan import make_plan
from core.errors import WorkbenchError
from core.formats import FORMATS, get_format
from core.recipes import load
from core.targets import TARGETS, Target
from resources import interop
from tests.core.targets.build import assemble, save_model

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
