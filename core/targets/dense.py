"""A folder of safetensors in which every weight is a plain number again: for clients that read nothing else, for
looking at what quantization does to a model, and for turning a GGUF back into floats.

A quantized weight is stored as what its format decodes to, rounded to the source's own type: BF16, F16 and F32 stay,
F64 becomes F32. GGML blocks become F16, which keeps more digits of them than BF16 (one that does not fit its range is
an error, never an infinity); MXFP4, NVFP4 and 8-bit floats become BF16, which holds them exactly, and so do integers
read back with their scales. The presets F32, F16 and BF16 choose otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from core.checkpoints.base import Checkpoint
from core.errors import OutOfRange, TargetError
from core.formats.base import Format, Quantized
from core.formats.dense import Dense
from core.formats.uniform import Uniform
from core.targets import safetensors
from core.targets.assignments import Assignments, named
from core.targets.base import COMPARED, Assignment, Layout, Outline, OutputTensor, StoredTensor, Target, Verified
from core.targets.modules import own_outline
from core.targets.plain import FLOATS, Verbatim, data_of, float_dtype, kept_as, real, stored_as
from core.targets.sides import carried, config_bytes
from core.tensors import DTYPES

if TYPE_CHECKING:
    import torch

_GGUF_NOTE = "tensor names are those of the GGUF, and there is no config.json: this is for looking at, not for running"


class DenseFolder(Target):
    """Source names, source shards, side files carried along."""

    name = "dense"
    title = "Safetensors, plain floats"
    help = "Every weight as a plain number; quantized ones as what they decode to. No smaller, readable by everything."
    verified = (Verified("transformers", ("*",), COMPARED, "tests/core/targets/test_dense.py"),)
    folder = True

    def outline(self, checkpoint: Checkpoint) -> Outline:
        refuse_complex(checkpoint)
        return own_outline(checkpoint, (_GGUF_NOTE,) if checkpoint.kind == "gguf" else ())

    def refuses(self, format: Format, tensor: OutputTensor) -> str | None:
        return None if real(tensor.dtype) else f"{tensor.dtype} holds no real numbers"

    def keeps(self, tensor: OutputTensor) -> Format:
        return kept_as(tensor.dtype)

    def adapt(self, format: Format, tensor: OutputTensor) -> Format:
        return with_scales(format, tensor.dtype)

    def stored(self, assignment: Assignment) -> tuple[StoredTensor, ...]:
        tensor = assignment.tensor
        dtype = _stored_dtype(assignment)
        return (StoredTensor(tensor.name, dtype, tensor.shape, stored_as(dtype).nbytes(tensor.shape)),)

    def layout(
        self,
        checkpoint: Checkpoint,
        outline: Outline,
        assignments: Assignments,
        label: str = "",
        shard_bytes: int | None = None,
    ) -> Layout:
        tensors = named(assignments, self)
        sides = carried(checkpoint)
        if checkpoint.config is not None:
            sides["config.json"] = _config(checkpoint, assignments)
        if shard_bytes:
            return safetensors.lay_out(tensors, safetensors.shards(tensors, shard_bytes), sides)
        return safetensors.lay_out(tensors, _source_shards(checkpoint, assignments), sides)

    def store(
        self, assignment: Assignment, quantized: Quantized, start: int, stop: int
    ) -> Iterator[tuple[str, int, memoryview | bytes]]:
        tensor = assignment.tensor
        dtype = _stored_dtype(assignment)
        if isinstance(assignment.format, Dense):
            values = quantized.parts["values"]
        else:
            values = _rounded(quantized.dequantize(), dtype)
        yield tensor.name, start * tensor.columns * DTYPES[dtype].bits // 8, data_of(values)


def with_scales(format: Format, dtype: str) -> Format:
    """The format with its scales in the type that clients keep them in: that of the model's floats."""
    wanted = float_dtype(dtype)
    if isinstance(format, Uniform) and format.scale_dtype != wanted:
        return replace(format, scale_dtype=wanted)
    return format


def refuse_complex(checkpoint: Checkpoint) -> None:
    """Raises TargetError for what safetensors has no word for."""
    for info in checkpoint.tensors.values():
        if info.dtype == "C128":
            raise TargetError(
                f"{info.dtype} cannot be stored in safetensors", "take the tensor out of the source", info.name
            )


def _stored_dtype(assignment: Assignment) -> str:
    kind = assignment.format
    return kind.dtype if isinstance(kind, (Dense, Verbatim)) else float_dtype(assignment.tensor.dtype)


def _rounded(values: torch.Tensor, dtype: str) -> torch.Tensor:
    """float32 in the stored type. Raises OutOfRange where a finite number would become infinite."""
    narrow = values.to(DTYPES[dtype].torch)
    if dtype == "F16" and not narrow.isfinite().all():
        row = int((~narrow.isfinite()).any(1).nonzero()[0, 0])
        raise OutOfRange(
            f"row {row} decodes to numbers beyond the range of f16", "choose the preset BF16 or F32", row=row
        )
    return narrow


def _source_shards(checkpoint: Checkpoint, assignments: Assignments) -> dict[str, str]:
    """Output tensor name → file name: the source's own shards, under the names that safetensors have."""
    names = [a.tensor.name for a in assignments]
    if len(checkpoint.files) == 1 or checkpoint.kind == "gguf":
        return dict.fromkeys(names, safetensors.WHOLE)
    renamed = {file: _shard_name(file.name) for file in checkpoint.files}
    if len(set(renamed.values())) < len(renamed):
        count = len(renamed)
        renamed = {f: f"model-{n:05d}-of-{count:05d}.safetensors" for n, f in enumerate(checkpoint.files, 1)}
    return {name: renamed[checkpoint.file_of(name)] for name in names}


def _shard_name(name: str) -> str:
    path = PurePosixPath(name)
    if path.suffix == ".safetensors":
        return name
    return f"{path.stem.replace('pytorch_model', 'model')}.safetensors"


def _config(checkpoint: Checkpoint, assignments: Assignments) -> bytes:
    """config.json, byte for byte unless it would lie: a quantization_config goes, and the dtype follows where all
    weights were given another."""
    assert checkpoint.config is not None
    config: dict[str, Any] = dict(checkpoint.config)
    gone = config.pop("quantization_config", None) is not None
    given = {_stored_dtype(a) for a in assignments.samples if len(a.tensor.shape) > 1} & set(FLOATS)
    changed = len(given) == 1 and _with_dtype(config, DTYPES[next(iter(given))].torch_name)
    return safetensors.json_bytes(config) if gone or changed else config_bytes(checkpoint)


def _with_dtype(config: dict[str, Any], dtype: str) -> bool:
    """Whether the config named another dtype, which is replaced, in the part about the language model too."""
    changed = False
    for key in ("dtype", "torch_dtype"):
        if isinstance(config.get(key), str) and config[key] != dtype:
            config[key], changed = dtype, True
    inner: Mapping[str, Any] | Any = config.get("text_config")
    if isinstance(inner, dict):
        part = dict(inner)
        if _with_dtype(part, dtype):
            config["text_config"], changed = part, True
    return changed
