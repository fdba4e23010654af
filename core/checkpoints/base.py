"""The contract of a checkpoint: headers at once, tensors when asked for, rows at a time.

Readers live beside this file, one per container, and are listed in READERS (core/checkpoints/__init__.py).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.tensors import TensorInfo

if TYPE_CHECKING:
    import torch


class Checkpoint(ABC):
    """An opened checkpoint. Reading is lazy, memory-mapped, and safe from several threads at once.

    path      what the user opened: a file or a folder
    kind      "safetensors", "huggingface" (folder with config.json), "torch" or "gguf"
    files     the files that hold tensors, in order
    tensors   by name, in natural order (core.tensors.natural_key)
    config    config.json of a folder (or beside the file), else None
    metadata  safetensors `__metadata__` or GGUF key-values (name → core.checkpoints.gguf.Value), else {}
    """

    path: Path
    kind: str
    files: tuple[Path, ...]
    tensors: Mapping[str, TensorInfo]
    config: dict[str, Any] | None
    metadata: Mapping[str, Any]

    @abstractmethod
    def raw(self, name: str, start: int = 0, stop: int | None = None) -> memoryview:
        """Stored bytes of rows start … stop (of the matrix with leading dimensions flattened), without a copy."""

    @abstractmethod
    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Rows start … stop as `[rows, columns]`: in the stored dtype where torch has it, float32 where blocks are
        dequantized. A scalar reads as [1, 1]. The tensor may share the file's memory: do not write into it.

        raises  KeyError for an unknown name, CorruptFile, UnsupportedFormat (a dtype torch lacks)
        """

    def file_of(self, name: str) -> Path:
        """The one of `files` that holds the tensor."""
        return self.files[0]

    def folder(self) -> Path:
        """Where side files (tokenizer.json, generation_config.json) are looked for."""
        return self.path if self.path.is_dir() else self.path.parent

    @abstractmethod
    def fingerprint(self) -> str:
        """Hex digest of headers, sizes and modification times: equal while the files are unchanged. Cheap."""

    @property
    def nbytes(self) -> int:
        """Stored bytes of all tensors (aliases counted once)."""
        return sum(t.nbytes for t in self.tensors.values() if not t.alias)

    @property
    def parameters(self) -> int:
        return sum(t.numel for t in self.tensors.values() if not t.alias)

    def close(self) -> None:
        """Unmaps the files. Tensors read before keep what they share."""

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
