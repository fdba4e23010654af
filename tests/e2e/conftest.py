"""The main job on the demo checkpoint, run once per session and shared by the tests that look at its results."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from core.checkpoints import open_checkpoint
from core.engine.model import Plan, Report
from core.engine.pipeline import run
from core.engine.plan import make_plan
from core.recipes import load
from core.targets import get_target

Made = tuple[Path, Plan, Report]


@pytest.fixture(scope="session")
def quantize(tmp_path_factory, demo) -> Callable[[str, str], Made]:
    """quantize(recipe, target): the demo checkpoint, quantized; made once."""
    made: dict[tuple[str, str], Made] = {}

    def once(recipe: str, target_name: str) -> Made:
        if (recipe, target_name) not in made:
            target = get_target(target_name)
            folder = tmp_path_factory.mktemp("made")
            out = folder / f"demo-{recipe}{target.suffix}"
            with open_checkpoint(demo) as checkpoint:
                plan = make_plan(checkpoint, load(recipe), target)
                report = run(plan, checkpoint, out, workers=1)
            made[recipe, target_name] = (out, plan, report)
        return made[recipe, target_name]

    return once


@pytest.fixture(scope="session")
def tokens(demo) -> torch.Tensor:
    """int64 [8, 128]: source text of the standard library under the demo's tokenizer."""
    import textwrap

    from transformers import AutoTokenizer

    text = Path(textwrap.__file__).read_text(encoding="utf-8")
    ids = AutoTokenizer.from_pretrained(demo)(text)["input_ids"]
    return torch.tensor(ids[: 8 * 128]).reshape(8, 128)


@pytest.fixture(scope="session")
def logits(tokens) -> Callable[[torch.nn.Module], torch.Tensor]:
    """float32 [8, 128, vocabulary] of a model on `tokens`."""

    def of(model: torch.nn.Module) -> torch.Tensor:
        with torch.inference_mode():
            return model.eval()(tokens).logits.float()

    return of


@pytest.fixture(scope="session")
def original(demo) -> torch.nn.Module:
    """The demo model in float32."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(demo, dtype=torch.float32)
