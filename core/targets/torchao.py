"""A Hugging Face folder as transformers (from 5.0) saves models that torchao quantized, and loads them.

Per Linear `X`: X._weight_qdata with one element per weight, and X._weight_scale. What they are says the metadata of the
safetensors file, in JSON under the weight's own name, by the class of tensor that torchao makes of them:

    Int8Tensor                int8 [out, in], scale float32 [out, 1] ([1, 1] per tensor), zero points int8, all zero
    IntxUnpackedToInt8Tensor  integers of 2 to 8 bits, each in a byte; scale [out, groups] in the model's type, and
                              zero_point like it, int8 or, where zero is no whole code, in the model's type
    Float8Tensor              float8 [out, in], scale float32 [out, 1] ([1, 1] per tensor)

Every file has the metadata of all tensors: transformers puts those of all files together. config.json repeats how such
weights are made, which loading does not depend on. All else is copied.

Beside int8 weights with a scale per row torchao can round what they are multiplied by to 8 bits as well, as the model
runs ("dynamic" inputs, W8A8).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from core.formats.base import Format, Quantized
from core.formats.fp8 import Fp8
from core.formats.shifted import Shifted
from core.formats.uniform import Uniform
from core.parameters import DYNAMIC, PLAIN
from core.targets import safetensors
from core.targets.assignments import Assignments
from core.targets.base import COMPARED, SPECIFIED, Assignment, OutputTensor, StoredTensor, Verified
from core.targets.dense import with_scales
from core.targets.folder import QuantizedFolder, left_out, module_of, quantizes
from core.targets.plain import data_of, float_dtype
from core.tensors import DTYPES

INT8, INTX, FLOAT8 = "Int8Tensor", "IntxUnpackedToInt8Tensor", "Float8Tensor"
_GRANULARITIES = ("tensor", "row", "group")
# Inputs as Int8DynamicActivationInt8WeightConfig has them.
_ROUNDED = {
    "_type": "QuantizeTensorToInt8Kwargs",
    "_data": {
        "granularity": {"_type": "PerRow", "_data": {"dim": -1}},
        "mapping_type": {"_type": "MappingType", "_data": "SYMMETRIC"},
        "reduce_range": False,
    },
}


class TorchAo(QuantizedFolder):
    """Linear weights in integers of 2 to 8 bits (each in a byte) or 8-bit floats."""

    name = "torchao"
    title = "torchao folder"
    help = (
        "torchao's tensors for transformers: int8, fp8-e4m3, fp8-e5m2; int2 to int7, groups and zero points too, "
        "but each code in a byte."
    )
    verified = (
        Verified("transformers", ("f32", "int*", "fp8-*"), COMPARED, "tests/core/targets/test_torchao.py"),
        Verified("vLLM", ("int*", "fp8-*"), SPECIFIED, "tests/core/targets/test_torchao.py"),
    )

    def carries(self, format: Format, tensor: OutputTensor) -> str | None:
        if isinstance(format, Fp8):
            if format.granularity in ("row", "tensor"):
                return None
            return "torchao has scales of 8-bit floats per row or tensor: choose fp8-e4m3"
        if not isinstance(format, Uniform):
            other = "gguf" if format.family == "ggml" else "dense"
            return f"torchao has no {format.name} here; the target {other} takes it"
        if type(format) not in (Uniform, Shifted):
            return f"torchao has zero points, and no bias as {format.name} has: the targets mlx and dense take it"
        if format.granularity not in _GRANULARITIES:
            return f"torchao has scales per row, group or tensor, not per {format.granularity}"
        if format.granularity == "tensor" and kind_of(format) != INT8:
            return f"torchao has one scale for a whole tensor only in int8-tensor, not in {format.name}"
        return None

    def refuses_inputs(self, format: Format, inputs: str) -> str | None:
        if inputs == PLAIN or (inputs == DYNAMIC and isinstance(format, Uniform) and format.name == "int8"):
            return None
        return (
            f"torchao rounds inputs as they come, and beside int8 weights with a scale per row only, not {format.name}"
        )

    def adapt(self, format: Format, tensor: OutputTensor) -> Format:
        if isinstance(format, Uniform) and kind_of(format) == INT8:
            return replace(format, scale_dtype="F32")
        return with_scales(format, tensor.dtype)

    def pieces(self, tensor: OutputTensor, format: Format) -> tuple[StoredTensor, ...]:
        assert isinstance(format, Uniform | Fp8)
        shape, scales = (tensor.rows, tensor.columns), format.scales_shape(tensor.shape)
        count = scales[0] * scales[1]
        data, scale, zero = (f"{_stem(tensor)}_{part}" for part in ("qdata", "scale", "zero_point"))
        if isinstance(format, Fp8):
            return (
                StoredTensor(data, format.dtype, shape, tensor.numel),
                StoredTensor(scale, "F32", scales, 4 * count),
            )
        width = DTYPES[format.scale_dtype].bits // 8
        whole = not isinstance(format, Shifted)
        return (
            StoredTensor(data, "I8", shape, tensor.numel),
            StoredTensor(scale, format.scale_dtype, scales, width * count),
            StoredTensor(zero, "I8" if whole else format.scale_dtype, scales, (1 if whole else width) * count),
        )

    def put(
        self, tensor: OutputTensor, format: Format, quantized: Quantized, start: int, stop: int
    ) -> Iterator[tuple[str, int, memoryview | bytes]]:
        assert isinstance(format, Uniform | Fp8)
        stem, parts = _stem(tensor), quantized.parts
        scales = format.scales_shape(tensor.shape)
        first = 0 if scales[0] == 1 else start * scales[1]
        codes = parts["values"] if isinstance(format, Fp8) else quantized.codes
        yield f"{stem}_qdata", start * tensor.columns, data_of(codes)
        yield f"{stem}_scale", first * parts["scale"].element_size(), data_of(parts["scale"])
        if isinstance(format, Uniform):
            zero = format.zero_of(quantized.grid)
            size = 1 if zero is None else zero.element_size()
            data = bytes(parts["scale"].numel()) if zero is None else data_of(zero)
            yield f"{stem}_zero_point", first * size, data

    def metadata(self, assignments: Assignments) -> Mapping[str, str]:
        if not any(quantizes(a.format) for a in assignments.samples):
            return safetensors.METADATA
        found = dict(safetensors.METADATA)
        said = assignments.ask(lambda a: json.dumps(self._described(a) if quantizes(a.format) else {"_type": "Tensor"}))
        # A name without a module is nothing that torchao could be asked for.
        known = {a.tensor.name: text for a, text in zip(assignments, said, strict=True) if "." in a.tensor.name}
        found |= known
        found["tensor_names"] = json.dumps(list(known))
        return found

    def _described(self, assignment: Assignment) -> dict[str, Any]:
        """The tensor of torchao's that the pieces are given to."""
        tensor, fmt = assignment.tensor, assignment.format
        assert isinstance(fmt, Uniform | Fp8)
        kind = kind_of(fmt)
        scales = fmt.scales_shape(tensor.shape)
        data: dict[str, Any] = {
            "block_size": [tensor.rows // scales[0], tensor.columns // scales[1]],
            "dtype": _dtype(DTYPES[float_dtype(tensor.dtype)].torch_name),
        }
        names = ["qdata", "scale"] if kind == FLOAT8 else ["qdata", "scale", "zero_point"]
        if kind == INT8:
            dynamic = assignment.inputs == DYNAMIC
            data |= {"act_quant_kwargs": _ROUNDED if dynamic else None, "reduce_range": False}
        elif kind == INTX:
            assert isinstance(fmt, Uniform)
            data |= {"target_dtype": _dtype(f"int{fmt.width}"), "activation_quantization": None}
        else:
            data |= {
                "mm_config": None,
                "act_quant_kwargs": None,
                "kernel_preference": {"_type": "KernelPreference", "_data": "AUTO"},
            }
        return {"_type": kind, "_data": data, "_tensor_data_names": names}

    def settings(self, assignments: Assignments, config: Mapping[str, Any]) -> dict[str, Any]:
        modules: dict[str, list[str]] = {}
        said = assignments.ask(
            lambda a: json.dumps(_config(a.format, a.inputs)) if isinstance(a.format, Uniform | Fp8) else ""
        )
        for a, text in zip(assignments, said, strict=True):
            if text:
                modules.setdefault(text, []).append(module_of(a.tensor))
        if len(modules) == 1:
            made = json.loads(next(iter(modules)))
        else:
            each = {module: json.loads(text) for text, names in modules.items() for module in names}
            made = {"_type": "FqnToConfig", "_version": 1, "_data": {"fqn_to_config": each}}
        return {
            "quantization_config": {
                "quant_method": "torchao",
                "quant_type": {"default": made},
                "modules_to_not_convert": left_out(assignments),
                "include_input_output_embeddings": False,
                "untie_embedding_weights": False,
            }
        }


def kind_of(format: Uniform | Fp8) -> str:
    """The class of torchao's that holds such weights. Int8Tensor multiplies without looking at zero points."""
    if isinstance(format, Fp8):
        return FLOAT8
    plain = type(format) is Uniform and format.width == 8 and format.symmetric
    return INT8 if plain and format.granularity in ("row", "tensor") else INTX


def _stem(tensor: OutputTensor) -> str:
    return f"{module_of(tensor)}._weight"


def _dtype(name: str) -> dict[str, Any]:
    return {"_type": "torch.dtype", "_data": name}


def _config(format: Uniform | Fp8, inputs: str) -> dict[str, Any]:
    """torchao's own record of how such weights are made of others."""
    kind = kind_of(format)
    granularity: dict[str, Any] = {"_type": "PerTensor", "_version": 1, "_data": {}}
    if format.granularity == "row":
        granularity = {"_type": "PerRow", "_version": 1, "_data": {"dim": -1}}
    if isinstance(format, Fp8):
        name = "Float8WeightOnlyConfig"
        data = {"weight_dtype": _dtype(DTYPES[format.dtype].torch_name), "granularity": granularity}
    elif kind == INT8 and inputs == DYNAMIC:
        name, data = "Int8DynamicActivationInt8WeightConfig", {"granularity": granularity}
    elif kind == INT8:
        name, data = "Int8WeightOnlyConfig", {"granularity": granularity}
    else:
        name = "IntxWeightOnlyConfig"
        granularity = {"_type": "PerAxis", "_version": 1, "_data": {"axis": 0}}
        if format.group:
            granularity = {"_type": "PerGroup", "_version": 1, "_data": {"group_size": format.group}}
        mapping = "SYMMETRIC" if format.symmetric else "ASYMMETRIC"
        data = {
            "weight_dtype": _dtype(f"int{format.width}"),
            "granularity": granularity,
            "mapping_type": {"_type": "MappingType", "_data": mapping},
        }
    return {"_type": name, "_version": 2, "_data": data}
