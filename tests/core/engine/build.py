"""Small checkpoints and runs for the tests of the engine. No tests here."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from core.checkpoints import open_checkpoint
from core.engine.model import Report
from core.engine.pipeline import run
from core.engine.plan import make_plan
from core.recipes import load
from core.targets import get_target


def weights(
    count: int = 6, rows: int = 192, columns: int = 256, seed: int = 0, dtype: torch.dtype = torch.bfloat16
) -> dict[str, torch.Tensor]:
    """`count` Linear weights of a Llama by name, and a norm."""
    g = torch.Generator().manual_seed(seed)
    made = {
        f"model.layers.{i}.mlp.down_proj.weight": torch.randn(rows, columns, generator=g).to(dtype)
        for i in range(count)
    }
    return made | {"model.norm.weight": torch.ones(columns, dtype=dtype)}


def checkpoint_file(path: Path, tensors: Mapping[str, torch.Tensor] | None = None) -> Path:
    save_file(dict(tensors if tensors is not None else weights()), path)
    return path


def quantize(source: Path, out: Path, recipe: str = "int4-g128", target: str = "dense", **options: Any) -> Report:
    """Plans and runs in one go."""
    with open_checkpoint(source) as checkpoint:
        plan = make_plan(checkpoint, load(recipe), get_target(target))
        return run(plan, checkpoint, out, **options)


def digest(path: Path) -> str:
    """Of a file, or of a folder's files with their names."""
    sha = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
        sha.update(str(file.relative_to(path)).encode())
        sha.update(hashlib.sha256(file.read_bytes()).digest())
    return sha.hexdigest()


def leftovers(folder: Path) -> set[str]:
    """Names in a folder that begin with a dot: partials, journals, folders moved aside."""
    return {p.name for p in folder.iterdir() if p.name.startswith(".")}


class Watch:
    """A JobContext that keeps what it hears, and stops when `stop_when(self)` says so."""

    def __init__(self, stop_when: Any = None) -> None:
        self.heard: list[tuple[int, int]] = []
        self.partials: list[Any] = []
        self.checks = 0
        self._stop_when = stop_when

    def progress(self, done: int, total: int, note: str = "") -> None:
        self.heard.append((done, total))

    def partial(self, value: Any) -> None:
        self.partials.append(value)

    def check(self) -> None:
        from core.errors import Cancelled

        self.checks += 1
        if self._stop_when is not None and self._stop_when(self):
            raise Cancelled
