"""A checkpoint that is only headers, and a container that is bytes in a row: enough to plan with. No tests here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from core.checkpoints.base import Checkpoint
from core.formats import get_format
from core.formats.base import Format, Quantized
from core.formats.ggml.types import GGML_TYPES
from core.targets.assignments import Assignments
from core.targets.base import (
    Assignment,
    FileLayout,
    Layout,
    Outline,
    OutputTensor,
    Placed,
    StoredTensor,
    Target,
)
from core.tensors import DTYPES, TensorInfo


def stored_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    if dtype in DTYPES:
        count = 1
        for n in shape:
            count *= n
        return count * DTYPES[dtype].bits // 8
    return GGML_TYPES[dtype].nbytes(shape)


class Headers(Checkpoint):
    """The sources of an outline, without their values. `stamp` stands for the files' times."""

    kind = "safetensors"
    config = None
    metadata: Mapping[str, Any]

    def __init__(self, path: Path, outline: Outline, stamp: str = "1") -> None:
        self.path = path
        self.files = (path,)
        self.metadata = {}
        self.stamp = stamp
        self.tensors = {}
        for t in outline.tensors:
            names = t.source.names()
            shape = t.shape if len(names) == 1 else t.shape[1:]
            for name in names:
                self.tensors[name] = TensorInfo(name, shape, t.dtype, stored_bytes(t.dtype, shape))

    def raw(self, name: str, start: int = 0, stop: int | None = None) -> memoryview:
        raise NotImplementedError

    def read(self, name: str, start: int = 0, stop: int | None = None):
        raise NotImplementedError

    def fingerprint(self) -> str:
        return self.stamp


class Row(Target):
    """GGML blocks and plain numbers one after the other, behind a head of 128 bytes. Norms are F32."""

    name = "row"
    title = "bytes in a row"
    help = ""
    folder = False
    suffix = ".row"

    def __init__(self, outline: Outline, *, folder: bool = False) -> None:
        self._outline = outline
        self.folder = folder  # type: ignore[misc]
        self.labels: list[str] = []

    def outline(self, checkpoint: Checkpoint) -> Outline:
        return self._outline

    def refuses(self, format: Format, tensor: OutputTensor) -> str | None:
        if format.family == "uniform":
            return f"no room for {format.name}"
        if format.family == "dense" and format.name != "f32" and len(tensor.shape) < 2:
            return "norms are f32"
        return None

    def keeps(self, tensor: OutputTensor) -> Format:
        if len(tensor.shape) < 2:
            return get_format("f32")
        return get_format(tensor.dtype.lower()) if tensor.dtype not in ("I64",) else get_format("f32")

    def stored(self, assignment: Assignment) -> tuple[StoredTensor, ...]:
        t, dtype = assignment.tensor, assignment.format.name.upper()
        return (StoredTensor(t.name, dtype, t.shape, assignment.format.nbytes(t.shape)),)

    def layout(
        self,
        checkpoint: Checkpoint,
        outline: Outline,
        assignments: Assignments,
        label: str = "",
        shard_bytes: int | None = None,
    ) -> Layout:
        self.labels.append(label)
        places, offset = {}, 128
        for assignment in assignments:
            (stored,) = self.stored(assignment)
            places[assignment.tensor.name] = (Placed(stored, 0, offset),)
            offset += -(-stored.nbytes // 32) * 32
        return Layout((FileLayout("", b"\0" * 128, offset),), places)

    def store(
        self, assignment: Assignment, quantized: Quantized, start: int, stop: int
    ) -> Iterator[tuple[str, int, memoryview | bytes]]:
        raise NotImplementedError
