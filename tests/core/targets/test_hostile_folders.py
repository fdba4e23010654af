"""Folders whose side files hold anything but what they should: a target answers with a plan or with one clear line."""

from __future__ import annotations

import copy
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from core.checkpoints import open_checkpoint
from core.errors import WorkbenchError
from core.targets import TARGETS
from core.targets.assignments import Assignments
from core.targets.base import Assignment
from tests.core.targets.build import gpt2_like, save_model, save_tokenizer, with_byte_fallback

ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1.5, 1e308, float("nan"), "x", "", [], {}, [None], {"a": 1}, [[1]], 10**30, 2**40, "\0"
)  # fmt: skip
FILES = ("config.json", "tokenizer.json", "tokenizer_config.json")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[Path]:
    root = tmp_path_factory.mktemp("sound")
    made = []
    for name, tokenizer in (("bytes", gpt2_like()), ("pieces", with_byte_fallback())):
        made.append(save_model(root / name, hidden_size=32, num_hidden_layers=1))
        save_tokenizer(made[-1], tokenizer)
    return made


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Ways to the first entries of a JSON value, at every depth."""
    found = [at] if at else []
    keys = list(value)[:30] if isinstance(value, dict) else range(min(len(value), 4)) if isinstance(value, list) else ()
    for key in keys:
        found += places(value[key], (*at, key))
    return found


def spoilt(value: Any, dice: random.Random) -> Any:
    *way, last = dice.choice(places(value))
    inner = value
    for key in way:
        inner = inner[key]
    if dice.random() < 0.2:
        del inner[last]
    else:
        inner[last] = copy.deepcopy(dice.choice(ODD))
    return value


@pytest.mark.parametrize("seed", range(6))
def test_a_target_answers_with_a_layout_or_one_line(folders, tmp_path, seed) -> None:
    dice = random.Random(seed)
    lines = []
    for number in range(60):
        folder = tmp_path / str(number)
        shutil.copytree(dice.choice(folders), folder)
        file = folder / dice.choice(FILES)
        file.write_text(json.dumps(spoilt(json.loads(file.read_text()), dice)))
        for target in TARGETS:
            try:
                with open_checkpoint(folder) as checkpoint:
                    outline = target.outline(checkpoint)
                    kept = Assignments([Assignment(t, target.keeps(t)) for t in outline.tensors])
                    assert target.layout(checkpoint, outline, kept).nbytes > 0
            except WorkbenchError as error:
                lines.append(str(error))
    assert lines
    assert not [line for line in lines if "\n" in line or len(line) > 600]
