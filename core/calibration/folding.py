"""Folds: scales that move from the inputs of matrices into what makes these inputs; the model computes the same,

    y = (W · diag(s)) (diag(1/s) · x)

and a checkpoint that reads as if it had been stored folded. Where a fold is possible is found in tracing.py, which
scales are good is a method's business, and when it happens the engine's (core/engine/folds.py).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.calibration.statistics import Statistic, TensorStatistics
from core.checkpoints.base import Checkpoint

if TYPE_CHECKING:
    import numpy as np
    import torch


@dataclass(frozen=True)
class Part:
    """Outputs of a checkpoint tensor, or inputs of one.

    expert  its matrix, where the tensor is a stack
    turned  stored [inputs, outputs]
    first   the first of the outputs
    shift   1 for a norm that multiplies by 1 + weight
    vector  a norm's weight, or a bias
    """

    name: str
    expert: int | None = None
    turned: bool = False
    first: int = 0
    shift: float = 0.0
    vector: bool = False


@dataclass(frozen=True)
class Fold:
    """One set of scales that can be moved.

    size       how many scales
    producers  their outputs first … first + size are to be divided by the scales; a weight before its bias
    consumers  matrices whose inputs are to be multiplied
    index      for every input the number of its scale; () where input n has scale n. Heads that share their values have
               several inputs to a scale
    through    "norm" or "matrix": what makes the inputs
    """

    size: int
    producers: tuple[Part, ...]
    consumers: tuple[Part, ...]
    index: tuple[int, ...] = ()
    through: str = "norm"

    def spread(self, scales: torch.Tensor) -> torch.Tensor:
        """[size] as [inputs]."""
        return scales[list(self.index)] if self.index else scales


@dataclass(eq=False)
class Scaled:
    """What becomes of one stored tensor: rows and columns are multiplied, or (a vector) it has other values.

    rows     float32 [rows]
    columns  float32 [matrices of the stack, columns]
    values   float32 [numel]
    """

    rows: np.ndarray | None = None
    columns: np.ndarray | None = None
    values: np.ndarray | None = None

    def of_inputs(self, shape: tuple[int, ...], transposed: bool) -> np.ndarray | None:
        """float32 [matrices of the stack, inputs] that a matrix's inputs are multiplied by; None where by nothing.

        A transposed matrix's rows are its inputs, and nothing else of it is scaled that is known by its inputs.
        """
        if not transposed:
            return self.columns
        stack = shape[0] if len(shape) == 3 else 1
        return None if self.rows is None else self.rows.reshape(stack, -1)


@dataclass(eq=False)
class Scales:
    """Every tensor that folds change, by checkpoint name."""

    tensors: dict[str, Scaled] = field(default_factory=dict)

    def multiply(self, checkpoint: Checkpoint, part: Part, by: np.ndarray, outputs: bool) -> None:
        """Outputs (from part.first on) or inputs of a matrix. by: float32"""
        import numpy as np

        info = checkpoint.tensors[part.name]
        stack = info.shape[0] if len(info.shape) == 3 else 1
        height = info.rows // stack
        entry = self.tensors.setdefault(part.name, Scaled())
        if outputs != part.turned:
            if entry.rows is None:
                entry.rows = np.ones(info.rows, np.float32)
            at = (part.expert or 0) * height + (part.first if outputs else 0)
            entry.rows[at : at + len(by)] *= by
        else:
            if entry.columns is None:
                entry.columns = np.ones((stack, info.columns), np.float32)
            at = part.first if outputs else 0
            entry.columns[part.expert or 0, at : at + len(by)] *= by

    def __or__(self, other: Scales) -> Scales:
        return Scales({**self.tensors, **other.tensors})


class Folded(Checkpoint):
    """A checkpoint as it would be stored with its folds: what they change reads as float32, all else as it is."""

    def __init__(self, checkpoint: Checkpoint, scales: Scales) -> None:
        self._checkpoint, self._scales = checkpoint, scales.tensors
        self.path, self.kind, self.files = checkpoint.path, checkpoint.kind, checkpoint.files
        self.tensors, self.config, self.metadata = checkpoint.tensors, checkpoint.config, checkpoint.metadata

    def raw(self, name: str, start: int = 0, stop: int | None = None) -> memoryview:
        """Stored bytes as they are in the file: asked for where nothing is changed, and for hints about the file."""
        return self._checkpoint.raw(name, start, stop)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        import torch

        entry = self._scales.get(name)
        if entry is None:
            return self._checkpoint.read(name, start, stop)
        if entry.values is not None:
            info = self.tensors[name]
            return torch.from_numpy(entry.values).reshape(info.rows, info.columns)[start:stop].clone()
        w = self._checkpoint.read(name, start, stop).float()
        if entry.rows is not None:
            w = w * torch.from_numpy(entry.rows[start:stop])[:, None]
        if entry.columns is not None:
            stack = entry.columns.shape[0]
            each = self.tensors[name].rows // stack
            columns = torch.from_numpy(entry.columns)
            w = w * (columns if stack == 1 else columns[torch.arange(start, start + w.shape[0]) // each])
        return w

    def changed(self, name: str) -> torch.Tensor | None:
        """The tensor where a fold changes it, else None."""
        return self.read(name) if name in self._scales else None

    def file_of(self, name: str) -> Path:
        return self._checkpoint.file_of(name)

    def folder(self) -> Path:
        return self._checkpoint.folder()

    def fingerprint(self) -> str:
        return self._checkpoint.fingerprint()


def folded_statistics(
    known: Mapping[str, TensorStatistics], scales: Scales, checkpoint: Checkpoint
) -> dict[str, TensorStatistics]:
    """Statistics of inputs once these are divided by what their weights are multiplied by. The range of all inputs
    together does not follow from what is known, and is left out where they change."""
    found = dict(known)
    for name, before in known.items():
        entry = scales.tensors.get(name)
        if entry is None:
            continue
        by = entry.of_inputs(checkpoint.tensors[name].shape, before.transposed)
        if by is not None:
            by = by if before.stacked else by[0]
            values: dict[Statistic, np.ndarray] = {
                k: _divided(k, array, by) for k, array in before.values.items() if k is not Statistic.RANGE
            }
            found[name] = replace(before, values=values)
    return found


def _divided(kind: Statistic, array: np.ndarray, by: np.ndarray) -> np.ndarray:
    """by: [inputs], with experts one more in front as in the array"""
    import numpy as np

    if kind is Statistic.HESSIAN:
        return np.asarray(array / (by[..., :, None] * by[..., None, :]), np.float32)
    if kind is Statistic.IMPORTANCE:
        return np.asarray(array / (by * by), np.float32)
    return np.asarray(array / (by[..., None, :] if array.ndim > by.ndim else by), np.float32)


def save(path: Path, scales: Scales, notes: Mapping[str, Iterable[str]]) -> None:
    """Scales and what is to be said of them, in one file, which appears only when complete."""
    import numpy as np

    arrays: dict[str, Any] = {}
    index: dict[str, dict[str, str]] = {}
    for name, entry in scales.tensors.items():
        for kind, array in vars(entry).items():
            if array is not None:
                key = f"a{len(arrays)}"
                arrays[key] = array
                index.setdefault(name, {})[kind] = key
    said = {name: list(lines) for name, lines in notes.items()}
    arrays["index"] = np.frombuffer(json.dumps({"tensors": index, "notes": said}).encode(), np.uint8)
    partial = path.with_suffix(".partial")
    with open(partial, "wb") as file:
        np.savez(file, **arrays)
    os.replace(partial, path)


def load(path: Path) -> tuple[Scales, dict[str, list[str]]] | None:
    """What `save` wrote; None when there is nothing, or nothing sound."""
    import zipfile

    import numpy as np

    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            index = json.loads(arrays["index"].tobytes())
            tensors = {
                name: Scaled(**{kind: arrays[key] for kind, key in places.items()})
                for name, places in index["tensors"].items()
            }
            return Scales(tensors), index["notes"]
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        return None
