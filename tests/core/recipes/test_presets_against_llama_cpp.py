"""llama.cpp's mixtures tensor by tensor: what our presets give each tensor of a GGUF is what llama.cpp's own quantizer
gave it, in every mixture, without and with an importance matrix. See make_mixtures.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from core.checkpoints import open_checkpoint
from core.formats.ggml.types import GGML_BY_ID
from core.recipes.presets import get_preset
from core.targets import get_target
from core.targets.base import Outline
from tests.core.recipes.make_mixtures import MIXTURES, MODELS, OUT, write

REFUSED = 255


@pytest.fixture(scope="module")
def theirs() -> dict[str, np.ndarray]:
    with np.load(OUT) as found:
        return dict(found)


@pytest.fixture(scope="module")
def outlines(tmp_path_factory) -> dict[str, Outline]:
    folder: Path = tmp_path_factory.mktemp("models")
    found = {}
    for name in MODELS:
        with open_checkpoint(write(name, folder / "m.gguf")) as checkpoint:
            found[name] = get_target("gguf").outline(checkpoint)
    return found


@pytest.mark.parametrize("importance", ["without", "with"])
@pytest.mark.parametrize("model", MODELS)
def test_every_tensor_gets_what_llama_cpp_gives_it(theirs, outlines, model, importance) -> None:
    tensors = outlines[model].tensors
    rows = dict(zip(theirs["mixtures"], theirs[f"{model}/{importance}"], strict=True))
    assert list(rows) == MIXTURES
    for mixture, numbers in rows.items():
        assert len(numbers) == len(tensors)
        if REFUSED in numbers:
            continue
        choices = get_preset(mixture).choose(outlines[model], importance == "with")
        ours = {t.name: "f32" if c.format == "keep" else c.format for t, c in zip(tensors, choices, strict=True)}
        wanted = {t.name: GGML_BY_ID[int(n)].name.lower() for t, n in zip(tensors, numbers, strict=True)}
        assert ours == wanted, mixture


def test_what_llama_cpp_refuses_without_importance_is_known(theirs) -> None:
    """Where no type fits the columns, llama.cpp refuses too; we take f16 there, and say so."""
    for model in (m for m in MODELS if "odd" not in m):
        rows = dict(zip(theirs["mixtures"], theirs[f"{model}/without"], strict=True))
        assert REFUSED not in theirs[f"{model}/with"], model
        refused = {mixture for mixture, numbers in rows.items() if REFUSED in numbers}
        assert refused == {mixture for mixture in MIXTURES if get_preset(mixture).needs_importance}, model
