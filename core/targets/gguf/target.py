"""The GGUF target: what the container takes, its layout, and the bytes of quantized rows. Converting models is
convert.py's, taking GGUF files over is passthrough.py's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import islice, repeat
from math import prod
from pathlib import PurePath

from core.calibration.statistics import Provenance
from core.checkpoints.base import Checkpoint
from core.checkpoints.gguf import Gguf, Value, ValueType
from core.checkpoints.gguf_header import ALIGNMENT_KEY
from core.formats import get_format
from core.formats.base import Format, Quantized
from core.formats.dense import Dense
from core.formats.ggml.format import GgmlFormat
from core.formats.ggml.types import GGML_TYPES
from core.formats.mx import NvFp4
from core.targets.assignments import Assignments, named
from core.targets.base import (
    COMPARED,
    Assignment,
    FileLayout,
    Layout,
    Outline,
    OutputTensor,
    Placed,
    StoredTensor,
    Target,
    Verified,
)
from core.targets.gguf import convert, nvfp4, passthrough, splits
from core.targets.gguf.filetype import file_type
from core.targets.gguf.rows import FromGguf
from core.targets.gguf.writer import DEFAULT_ALIGNMENT, MAX_NAME_BYTES, build
from core.targets.plain import data_of, real, stored_as

QUANTIZATION_VERSION = 2
_DELICATE = frozenset({"norm", "bias", "router", "position"})
_KEPT = {"F64": "f32", "F32": "f32", "F16": "f16", "BF16": "bf16"}


@cache
def _has_types(kind: type[Format]) -> bool:
    """Whether GGUF has types for formats of this kind."""
    return issubclass(kind, Dense | GgmlFormat | NvFp4)


class GgufFile(Target):
    """One GGUF file of version 3, little-endian; where the size of files is limited, a folder of parts."""

    name = "gguf"
    title = "GGUF"
    help = "One file for llama.cpp and everything built on it."
    verified = (
        Verified(
            "llama.cpp",
            ("f32",),
            COMPARED,
            "tests/core/targets/test_gguf_architectures.py, tests/core/targets/test_gguf_models.py",
        ),
        Verified(
            "llama.cpp",
            ("f16", "bf16", "q*", "iq*", "tq*", "mxfp4"),
            COMPARED,
            "tests/core/targets/test_gguf_types.py",
        ),
        Verified("llama.cpp", ("nvfp4",), COMPARED, "tests/core/targets/test_gguf_nvfp4.py"),
        Verified("transformers", ("bf16", "q4_k", "q6_k"), COMPARED, "tests/e2e/test_main_job.py"),
    )
    folder = False
    suffix = ".gguf"

    def outline(self, checkpoint: Checkpoint) -> Outline:
        if isinstance(checkpoint, Gguf):
            return passthrough.outline(checkpoint)
        return convert.outline(checkpoint)

    def refuses(self, format: Format, tensor: OutputTensor) -> str | None:
        if not real(tensor.dtype):
            return f"{tensor.dtype} holds no real numbers"
        if not _has_types(type(format)):
            return f"GGUF has no type for {format.name}"
        delicate = len(tensor.shape) < 2 or tensor.role.kind in _DELICATE
        stays = isinstance(tensor.source, FromGguf) and format.name.upper() == tensor.dtype
        if delicate and format.name != "f32" and not stays:
            what = "1-D" if len(tensor.shape) < 2 else tensor.role.kind
            return f"{what}: llama.cpp needs it in f32"
        return nvfp4.refuses(tensor) if isinstance(format, NvFp4) else None

    def adapt(self, format: Format, tensor: OutputTensor) -> Format:
        return nvfp4.adapted(format) if isinstance(format, NvFp4) else format

    def keeps(self, tensor: OutputTensor) -> Format:
        if isinstance(tensor.source, FromGguf):
            return stored_as(tensor.dtype)
        if not real(tensor.dtype):
            return stored_as(tensor.dtype)
        if len(tensor.shape) < 2 or tensor.role.kind in _DELICATE:
            return get_format("f32")
        # 8-bit floats, and integers read back with their scales.
        return get_format(_KEPT.get(tensor.dtype, "bf16"))

    def stored(self, assignment: Assignment) -> tuple[StoredTensor, ...]:
        tensor, dtype = assignment.tensor, assignment.format.name.upper()
        if isinstance(assignment.format, NvFp4) and not assignment.copy:
            return nvfp4.stored(tensor)
        own = StoredTensor(tensor.name, dtype, tensor.shape, GGML_TYPES[dtype].nbytes(tensor.shape))
        parts = tensor.source.parts if assignment.copy and isinstance(tensor.source, FromGguf) else ()
        return (own, *(StoredTensor(name, "F32", shape, 4 * prod(shape)) for name, shape in parts))

    def layout(
        self,
        checkpoint: Checkpoint,
        outline: Outline,
        assignments: Assignments,
        label: str = "",
        shard_bytes: int | None = None,
    ) -> Layout:
        entries = named(assignments, self)
        stored = [s for _, several in entries for s in several]
        computed = any(not a.copy for a in assignments.samples)
        alignment, limit = DEFAULT_ALIGNMENT, None
        versions: dict[str, Value] = {}
        if computed or not isinstance(checkpoint, Gguf):
            versions = {
                "general.quantization_version": Value.of(ValueType.UINT32, QUANTIZATION_VERSION),
                "general.file_type": Value.of(ValueType.UINT32, file_type(label, stored)),
            }
        if computed and outline.statistics is not None:
            versions |= _calibration_pairs(outline.statistics)
        if isinstance(checkpoint, Gguf):
            pairs = passthrough.pairs(checkpoint)
            alignment = checkpoint.alignment
        else:
            pairs, limit = convert.pairs(checkpoint, outline), MAX_NAME_BYTES
        given = {**dict(pairs), **versions}
        if shard_bytes is None:
            head, offsets, nbytes = build(given.items(), stored, alignment, limit)
            placed: Iterator[Placed] = map(Placed, stored, repeat(0), offsets)
            files: tuple[FileLayout, ...] = (FileLayout("", head, nbytes),)
        else:
            files, placed = _split(checkpoint, given, splits.parts(stored, shard_bytes), alignment, limit, label)
        return Layout(files, {name: tuple(islice(placed, len(several))) for name, several in entries})

    def store(
        self, assignment: Assignment, quantized: Quantized, start: int, stop: int
    ) -> Iterator[tuple[str, int, memoryview | bytes]]:
        tensor, fmt = assignment.tensor, assignment.format
        if isinstance(fmt, NvFp4):
            yield from nvfp4.pieces(tensor, quantized.parts, start)
            return
        row = GGML_TYPES[fmt.name.upper()].row_bytes(tensor.columns)
        part = quantized.parts["values" if isinstance(fmt, Dense) else "blocks"]
        yield tensor.name, start * row, data_of(part)


def _split(
    checkpoint: Checkpoint,
    pairs: Mapping[str, Value],
    parts: Sequence[Sequence[StoredTensor]],
    alignment: int,
    limit: int | None,
    label: str,
) -> tuple[tuple[FileLayout, ...], Iterator[Placed]]:
    """A folder of parts, and where its tensors lie, in order. The first part holds all key-values, as llama.cpp expects
    it."""
    total = sum(map(len, parts))
    stem = convert.model_name(checkpoint.path) if checkpoint.path.is_dir() else checkpoint.path.stem
    others = {key: value for key, value in pairs.items() if key == ALIGNMENT_KEY}
    files: list[FileLayout] = []
    places: list[Placed] = []
    for number, tensors in enumerate(parts):
        said = [*(pairs if number == 0 else others).items(), *splits.pairs(number, len(parts), total)]
        head, offsets, nbytes = build(said, tensors, alignment, limit)
        files.append(FileLayout(splits.file_name(stem, label, number, len(parts)), head, nbytes))
        places += map(Placed, tensors, repeat(number), offsets)
    return tuple(files), iter(places)


def _calibration_pairs(given: Provenance) -> dict[str, Value]:
    """What llama-quantize notes of an importance matrix; the file by name, without the folders of this machine."""
    pairs = {}
    name = PurePath(given.file).name
    if name and name.isprintable():
        pairs["quantize.imatrix.file"] = Value.of(ValueType.STRING, name)
    if given.dataset and given.dataset.isprintable():
        pairs["quantize.imatrix.dataset"] = Value.of(ValueType.STRING, given.dataset)
    pairs["quantize.imatrix.entries_count"] = Value.of(ValueType.UINT32, given.entries)
    if given.chunks:
        pairs["quantize.imatrix.chunks_count"] = Value.of(ValueType.UINT32, given.chunks)
    return pairs
