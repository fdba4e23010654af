"""Quantized Hugging Face folders seen as the weights they stand for.

A *dialect* knows how one library stores a quantized weight: which tensors of the file belong together (codes, scales,
zero points, …) and what they decode to. A folder in a known dialect reads like any other checkpoint: each group of such
*pieces* is one tensor under the weight's own name, read as float32.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from core.checkpoints.base import Checkpoint
from core.errors import CorruptFile, UnsupportedFormat
from core.ordering import natural_order
from core.tensors import TensorInfo

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class QuantizedWeight(ABC):
    """One weight stored as several pieces. Small: it names tensors, it holds none.

    pieces  their names in the file, that of the codes first
    shape   of the weight, torch order
    dtype   what lists show: the format's name in upper case ("INT4", "NF4"), never a dtype of plain numbers
    """

    pieces: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str

    @property
    def rows(self) -> int:
        return prod(self.shape[:-1])

    @property
    def columns(self) -> int:
        return self.shape[-1]

    @abstractmethod
    def read(self, inner: Checkpoint, start: int, stop: int) -> torch.Tensor:
        """float32 [stop − start, columns]: rows start … stop, exactly as the dialect's own clients decode them before
        rounding to the model's type. inner is the checkpoint with the pieces as they are stored."""


class Dialect(ABC):
    """One library's way of storing quantized weights. DIALECTS in core/checkpoints/dialects/__init__.py lists them."""

    name: ClassVar[str]

    @abstractmethod
    def speaks(self, config: Mapping[str, Any]) -> bool:
        """Whether a model's config.json says that its weights are in this dialect."""

    @abstractmethod
    def weights(self, checkpoint: Checkpoint) -> Mapping[str, QuantizedWeight]:
        """The quantized weights by their own names ("model.layers.0.mlp.up_proj.weight"), from names, shapes and
        dtypes, without reading weights and without torch.

        raises  CorruptFile when pieces are missing or of the wrong shape, UnsupportedFormat for what cannot be decoded
        """


class QuantizedCheckpoint(Checkpoint):
    """A folder in a known dialect: pieces hidden, weights in their place. All else as in the checkpoint underneath.

    dialect  its name, e.g. "gptq"
    """

    def __init__(self, inner: Checkpoint, dialect: str, weights: Mapping[str, QuantizedWeight]) -> None:
        self.inner, self.dialect = inner, dialect
        self.path, self.kind, self.files = inner.path, inner.kind, inner.files
        self.config, self.metadata = inner.config, inner.metadata
        self._weights = weights
        hidden: set[str] = set()
        tensors = []
        for name, weight in weights.items():
            for piece in weight.pieces:
                if piece not in inner.tensors:
                    raise CorruptFile(f"the quantized weight has no {piece}", "is a shard missing?", inner.path)
            hidden.update(weight.pieces)
            nbytes = sum(inner.tensors[piece].nbytes for piece in weight.pieces)
            tensors.append(TensorInfo(name, weight.shape, weight.dtype, nbytes))
        for name, info in inner.tensors.items():
            if name in hidden:
                continue
            if name in weights:
                raise CorruptFile(f"{name} is stored twice, plainly and quantized", where=inner.path)
            tensors.append(info)
        self.tensors = {t.name: t for t in natural_order(tensors, attrgetter("name"))}

    def raw(self, name: str, start: int = 0, stop: int | None = None) -> memoryview:
        if name in self._weights:
            raise UnsupportedFormat("is stored in several pieces and has no bytes of its own", where=name)
        return self.inner.raw(name, start, stop)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        weight = self._weights.get(name)
        if weight is None:
            return self.inner.read(name, start, stop)
        return weight.read(self.inner, start, weight.rows if stop is None else stop)

    def quantized(self, name: str) -> QuantizedWeight | None:
        """How the weight is stored, None for one that is plain."""
        return self._weights.get(name)

    def file_of(self, name: str) -> Path:
        weight = self._weights.get(name)
        return self.inner.file_of(weight.pieces[0] if weight else name)

    def fingerprint(self) -> str:
        return self.inner.fingerprint()

    def folder(self) -> Path:
        return self.inner.folder()

    def close(self) -> None:
        self.inner.close()


def quantization_of(config: Mapping[str, Any] | None) -> dict[str, Any]:
    """The quantization_config of a config.json, or {}."""
    found = (config or {}).get("quantization_config")
    return found if isinstance(found, dict) else {}
