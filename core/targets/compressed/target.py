"""A Hugging Face folder in the compressed-tensors dialect, which vLLM and transformers load. What each family of
weights is stored as stands in integers.py and floats.py; everything else is copied.

Inputs are told of: a strategy's parameter `inputs` becomes `input_activations` of its config group, and for static
inputs one number per layer is stored, computed in `Storage.input_scale` from the statistics of the layer's inputs
(`Statistic.RANGE`, moving averages, for int8; `Statistic.ABSMAX`, the largest seen, for FP8 and NVFP4). A method that
changes what a layer sees, as SmoothQuant does, need do nothing here: the statistics that reach `store_inputs` are those
of the inputs that the stored weights will meet.

Formats and inputs may differ from tensor to tensor: each pair of them is a config group that names its modules.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from core.calibration.statistics import Statistic
from core.formats.base import Format, Quantized
from core.formats.fp8 import Fp8
from core.formats.mx import NvFp4
from core.formats.uniform import Uniform
from core.parameters import PLAIN, STATIC
from core.targets.assignments import Assignments
from core.targets.base import COMPARED, Assignment, Objection, OutputTensor, StoredTensor, Verified
from core.targets.compressed.base import Storage
from core.targets.compressed.floats import Float8, MxFloat4, MxFloat8, NvFloat4
from core.targets.compressed.integers import Integers
from core.targets.dense import with_scales
from core.targets.folder import QuantizedFolder, left_out, module_of, quantizes
from core.targets.fused import joined, unlike
from core.targets.plain import data_of
from core.tensors import DTYPES

if TYPE_CHECKING:
    import torch

STORAGES: tuple[Storage, ...] = (Integers(), Float8(), MxFloat8(), NvFloat4(), MxFloat4())
MIXED = "mixed-precision"


class CompressedTensors(QuantizedFolder):
    """Linear weights as integers or floating codes; embeddings, norms and the rest as they are."""

    name = "compressed-tensors"
    title = "compressed-tensors folder"
    help = (
        "Integers of 2 to 8 bits, FP8, MXFP8, NVFP4 and MXFP4, inputs plain, dynamic or static, in one folder or "
        "many; for vLLM and transformers."
    )
    verified = (
        Verified("transformers", ("bf16", "int*"), COMPARED, "tests/core/targets/test_compressed_tensors.py"),
        Verified(
            "transformers", ("fp8-e4m3*", "mx*", "nvfp4"), COMPARED, "tests/core/targets/test_compressed_floats.py"
        ),
        Verified(
            "vLLM",
            ("int?", "int8-asym", "int*-g*", "fp8-e4m3*", "mx*", "nvfp4"),
            COMPARED,
            "tests/interop/vllm_clients.py",
        ),
    )
    # Zero points are packed along the rows: 32 rows fill whole words, whatever the width.
    row_multiple = 32

    def carries(self, format: Format, tensor: OutputTensor) -> str | None:
        if any(storage.takes(format) for storage in STORAGES):
            return None
        other = "gguf" if format.family == "ggml" else "dense"
        return f"compressed-tensors has no {format.name} here; the target {other} takes it"

    def refuses_inputs(self, format: Format, inputs: str) -> str | None:
        storage = next((s for s in STORAGES if s.takes(format)), None)
        if inputs == PLAIN:
            return None
        if storage is None:
            return f"{format.name} is stored as plain numbers: clients leave its inputs alone"
        return storage.refuses_inputs(format, inputs)

    def objections(self, assignments: Assignments) -> Iterable[Objection]:
        yield from unlike(assignments)
        for a in assignments.where(lambda a: _by_block(a.format) and a.tensor.role.kind == "head"):
            yield Objection(
                "warning",
                a.tensor.name,
                f"is {a.format.name}: vLLM loads no head in blocks; transformers does",
                "keep it, or take fp8-e4m3 for it, if vLLM is to load it",
            )
        for a in assignments.samples:
            if isinstance(a.format, Uniform) and a.format.granularity == "tensor" and a.inputs == PLAIN:
                yield Objection(
                    "warning",
                    a.tensor.name,
                    f"{a.format.name} with plain inputs is nothing that vLLM knows; transformers loads it",
                    "take scales per row or group, or int8-tensor(inputs=dynamic), if vLLM is to load it",
                )
                return

    def together(self, assignments: Assignments) -> Iterable[Sequence[str]]:
        """q, k and v, and gate and up, where vLLM gives each bundle one scale of the tensor: of NVFP4 it takes the
        largest divisor and leaves all other numbers as they are; FP8 weights it would round once more."""
        for bundle in joined(assignments):
            if len({a.format for a in bundle}) == 1 and _one_scale(bundle[0].format):
                yield [a.tensor.name for a in bundle]

    def adapt(self, format: Format, tensor: OutputTensor) -> Format:
        return with_scales(format, tensor.dtype)

    def pieces(self, tensor: OutputTensor, format: Format) -> tuple[StoredTensor, ...]:
        return self.stored(Assignment(tensor, format))

    def put(
        self, tensor: OutputTensor, format: Format, quantized: Quantized, start: int, stop: int
    ) -> Iterator[tuple[str, int, memoryview | bytes]]:
        return self.store(Assignment(tensor, format), quantized, start, stop)

    def stored(self, assignment: Assignment) -> tuple[StoredTensor, ...]:
        storage = _storage(assignment.format)
        if storage is None:
            return super().stored(assignment)
        tensor, fmt, inputs = assignment.tensor, assignment.format, assignment.inputs
        found = storage.pieces(tensor, fmt, inputs)
        return (*found, storage.input_piece(tensor, fmt)) if self._static(assignment) else found

    def store(
        self, assignment: Assignment, quantized: Quantized, start: int, stop: int
    ) -> Iterator[tuple[str, int, memoryview | bytes]]:
        storage = _storage(assignment.format)
        if storage is None:
            yield from super().store(assignment, quantized, start, stop)
        else:
            yield from storage.put(assignment.tensor, assignment.format, assignment.inputs, quantized, start, stop)

    def store_inputs(
        self, assignment: Assignment, statistics: Mapping[Statistic, torch.Tensor]
    ) -> Iterator[tuple[str, int, memoryview | bytes]]:
        storage = _storage(assignment.format)
        if storage is not None and self._static(assignment):
            piece = storage.input_piece(assignment.tensor, assignment.format)
            number = storage.input_scale(assignment.format, statistics).to(DTYPES[piece.dtype].torch)
            yield piece.name, 0, data_of(number)

    def _static(self, assignment: Assignment) -> bool:
        """Also of a plan that will never run, whose inputs are refused: its sizes are asked for all the same."""
        return assignment.inputs == STATIC and self.refuses_inputs(assignment.format, STATIC) is None

    def settings(self, assignments: Assignments, config: Mapping[str, Any]) -> dict[str, Any]:
        return {"quantization_config": quantization_config(assignments)}


def quantization_config(assignments: Assignments) -> dict[str, Any]:
    """What config.json says about the quantized weights.

    One scheme: it targets every Linear, and `ignore` lists those it leaves out; a quantized head is named beside it,
    since vLLM's is no Linear. Several: each names its modules.
    """
    said = assignments.ask(lambda a: json.dumps(_scheme(a)) if quantizes(a.format) else "")
    schemes: dict[str, list[str]] = {text: [] for text in said.values if text}
    for assignment, text in zip(assignments, said, strict=True):
        if text:
            schemes[text].append(module_of(assignment.tensor))
    heads = [
        module_of(a.tensor) for a in assignments.where(lambda a: a.tensor.role.kind == "head" and quantizes(a.format))
    ]
    groups = {
        f"group_{n}": {"targets": ["Linear", *heads] if len(schemes) == 1 else modules, **json.loads(text)}
        for n, (text, modules) in enumerate(schemes.items())
    }
    dialects = {group["format"] for group in groups.values()}
    return {
        "quant_method": "compressed-tensors",
        "format": dialects.pop() if len(dialects) == 1 else MIXED,
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "config_groups": groups,
        "ignore": left_out(assignments),
    }


def _by_block(format: Format) -> bool:
    return isinstance(format, Fp8) and format.granularity == "block"


def _one_scale(format: Format) -> bool:
    return isinstance(format, NvFp4) or (isinstance(format, Fp8) and format.granularity == "tensor")


def _scheme(assignment: Assignment) -> dict[str, Any]:
    fmt, inputs = assignment.format, assignment.inputs
    storage = _storage(fmt)
    if storage is None:  # of a plan that will never run: the tensor is refused
        return {"weights": None, "input_activations": None, "output_activations": None, "format": "dense"}
    return {
        "weights": storage.weights(fmt),
        "input_activations": storage.activations(fmt, inputs),
        "output_activations": None,
        "format": storage.dialect(fmt, inputs),
    }


def _storage(format: Format) -> Storage | None:
    """None for what is stored as plain numbers."""
    return next((s for s in STORAGES if s.takes(format)), None) if quantizes(format) else None
