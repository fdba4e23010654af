"""A Hugging Face folder in the compressed-tensors dialect, which vLLM and transformers load: integer weights packed
into 32-bit words ("pack-quantized", the dense packing of compressed-tensors 0.20), scales in the model's own type.

Per Linear `X`: X.weight_packed int32 [out, ⌈in·b/32⌉], X.weight_scale [out, groups] ([1] per tensor),
X.weight_shape int64 [2], and with zero points X.weight_zero_point int32 [⌈out·b/32⌉, groups], packed along out
(int8 [1] per tensor). int8 with one scale per row or tensor is stored as it is ("int-quantized"): X.weight int8
[out, in], X.weight_scale, and X.weight_zero_point int8 shaped like the scale. Everything else is copied.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from core.formats.base import Format, Quantized
from core.formats.uniform import Uniform
from core.targets.base import Assignment, OutputTensor, StoredTensor
from core.targets.dense import with_scales
from core.targets.folder import QuantizedFolder, left_out, module_of
from core.targets.plain import data_of
from core.tensors import DTYPES

if TYPE_CHECKING:
    import torch

PACKED, PLAIN, MIXED = "pack-quantized", "int-quantized", "mixed-precision"
_STRATEGY = {"tensor": "tensor", "row": "channel", "group": "group"}


class CompressedTensors(QuantizedFolder):
    """Linear weights in uniform formats; embeddings, norms and the rest as they are."""

    name = "compressed-tensors"
    title = "compressed-tensors folder"
    help = "Safetensors with packed integer weights, for vLLM and transformers."
    # Zero points are packed along the rows: 32 rows fill whole words, whatever the width.
    row_multiple = 32

    def carries(self, format: Format, tensor: OutputTensor) -> str | None:
        # Its subclasses have grids (a fractional zero) that this dialect has no place for.
        if type(format) is Uniform and format.granularity in _STRATEGY:
            return None
        other = "gguf" if format.family == "ggml" else "dense"
        return f"compressed-tensors has no {format.name} here; the target {other} takes it"

    def adapt(self, format: Format, tensor: OutputTensor) -> Format:
        return with_scales(format, tensor.dtype)

    def pieces(self, tensor: OutputTensor, format: Format) -> tuple[StoredTensor, ...]:
        assert isinstance(format, Uniform)
        rows, columns = tensor.rows, tensor.columns
        words = _words(columns * format.width)
        scales = format.scales_shape(tensor.shape)
        whole = format.granularity == "tensor"
        count = scales[0] * scales[1]
        scale_bytes = count * DTYPES[format.scale_dtype].bits // 8
        scale = StoredTensor(f"{tensor.name}_scale", format.scale_dtype, (1,) if whole else scales, scale_bytes)
        if not _packed(format):
            found = [StoredTensor(tensor.name, "I8", (rows, columns), rows * columns), scale]
            if not format.symmetric:
                found.append(StoredTensor(f"{tensor.name}_zero_point", "I8", scale.shape, count))
            return tuple(found)
        found = [StoredTensor(f"{tensor.name}_packed", "I32", (rows, words), rows * words * 4), scale]
        if not format.symmetric and whole:
            found.append(StoredTensor(f"{tensor.name}_zero_point", "I8", (1,), 1))
        elif not format.symmetric:
            zeros = (_words(rows * format.width), scales[1])
            found.append(StoredTensor(f"{tensor.name}_zero_point", "I32", zeros, zeros[0] * zeros[1] * 4))
        found.append(StoredTensor(f"{tensor.name}_shape", "I64", (2,), 16))
        return tuple(found)

    def settings(self, assignments: Sequence[Assignment], config: Mapping[str, Any]) -> dict[str, Any]:
        return {"quantization_config": quantization_config(assignments)}

    def put(
        self, tensor: OutputTensor, format: Format, quantized: Quantized, start: int, stop: int
    ) -> Iterator[tuple[str, int, memoryview | bytes]]:
        assert isinstance(format, Uniform)
        name, parts = tensor.name, quantized.parts
        if _packed(format):
            yield f"{name}_packed", start * _words(tensor.columns * format.width) * 4, data_of(parts["codes"])
        else:
            yield name, start * tensor.columns, data_of(quantized.codes)
        groups = format.scales_shape(tensor.shape)[1]
        whole = format.granularity == "tensor"
        at = 0 if whole else start * groups
        yield f"{name}_scale", at * DTYPES[format.scale_dtype].bits // 8, data_of(parts["scale"])
        if not format.symmetric and (whole or not _packed(format)):
            yield f"{name}_zero_point", at, data_of(parts["zero_point"])
        elif not format.symmetric:
            offset = start * format.width // 32 * groups * 4
            yield f"{name}_zero_point", offset, data_of(_packed_along_rows(parts["zero_point"], format))
        if start == 0 and _packed(format):
            yield f"{name}_shape", 0, b"".join(n.to_bytes(8, "little") for n in (tensor.rows, tensor.columns))


def quantization_config(assignments: Sequence[Assignment]) -> dict[str, Any]:
    """What config.json says about the quantized weights.

    One scheme: it targets every Linear, and `ignore` lists those it leaves out. Several: each names its modules.
    """
    schemes: dict[tuple[Any, ...], list[str]] = {}
    for assignment in assignments:
        fmt = assignment.format
        if isinstance(fmt, Uniform):
            key = (fmt.width, fmt.granularity, fmt.group, fmt.symmetric)
            schemes.setdefault(key, []).append(module_of(assignment.tensor))
    groups = {
        f"group_{n}": {
            "targets": ["Linear"] if len(schemes) == 1 else modules,
            "weights": _weights(*scheme),
            "input_activations": None,
            "output_activations": None,
            "format": _dialect(scheme[0], scheme[1]),
        }
        for n, (scheme, modules) in enumerate(schemes.items())
    }
    dialects = {_dialect(scheme[0], scheme[1]) for scheme in schemes}
    return {
        "quant_method": "compressed-tensors",
        "format": dialects.pop() if len(dialects) == 1 else MIXED,
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "config_groups": groups,
        "ignore": left_out(assignments),
    }


def _weights(width: int, granularity: str, group: int, symmetric: bool) -> dict[str, Any]:
    return {
        "num_bits": width,
        "type": "int",
        "symmetric": symmetric,
        "strategy": _STRATEGY[granularity],
        "group_size": group or None,
        "dynamic": False,
    }


def _dialect(width: int, granularity: str) -> str:
    """int8 with one scale per row or tensor is stored as it is; everything else packed into words."""
    return PLAIN if width == 8 and granularity != "group" else PACKED


def _packed(format: Uniform) -> bool:
    return _dialect(format.width, format.granularity) == PACKED


def _words(bits: int) -> int:
    return (bits + 31) // 32


def _packed_along_rows(zero: torch.Tensor, format: Uniform) -> torch.Tensor:
    """int32 [⌈rows·b/32⌉, groups] of int8 [rows, groups]."""
    import torch

    from core.formats.bitstream import pack_rows

    codes = zero.to(torch.int16) - format.qmin
    return pack_rows(codes.t(), format.width).t().contiguous()
