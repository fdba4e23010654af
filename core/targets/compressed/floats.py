"""Floating codes.

FP8 ("float-quantized", "naive-quantized" where inputs stay as they are): X.weight E4M3 [out, in], X.weight_scale
float32 [out, 1] per row, [1] per tensor, [⌈out/128⌉, ⌈in/128⌉] per block. MXFP8 ("mxfp8-quantized"): X.weight E4M3,
X.weight_scale uint8 [out, in/32], exponents. NVFP4 ("nvfp4-pack-quantized"): X.weight_packed uint8 [out, in/2], the
first of a pair in the low nibble, X.weight_scale E4M3 [out, in/16], X.weight_global_scale float32 [1], a divisor.
MXFP4 ("mxfp4-pack-quantized"): X.weight_packed likewise, X.weight_scale uint8 [out, in/32].

Static inputs, from the largest input seen: FP8 X.input_scale float32 [1] = absmax / 448; NVFP4 X.input_global_scale
float32 [1] = 448 · 6 / absmax, beside scales per 16 that clients find as inputs come. Dynamic inputs: a scale per token
(per 128 of it with block weights, per 32 for MX).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from core.formats.base import Format, Quantized
from core.formats.fp8 import BLOCK, Fp8
from core.formats.ggml.format import GgmlFormat
from core.formats.mx import E2M1_LARGEST, E4M3, E4M3_LARGEST, MxFp8, NvFp4
from core.parameters import STATIC
from core.targets.base import OutputTensor, StoredTensor
from core.targets.compressed.base import Pieces, Storage, absmax, args, or_one, weight_only
from core.targets.plain import data_of

if TYPE_CHECKING:
    import torch

_MX_RUN = 32
_BLOCK_BYTES = 17  # of GGML's MXFP4: the exponent, 16 bytes of codes


class Float8(Storage):
    """E4M3 with a float32 scale per tensor, row or block."""

    def takes(self, format: Format) -> bool:
        return isinstance(format, Fp8) and format.dtype == E4M3

    def refuses_inputs(self, format: Format, inputs: str) -> str | None:
        assert isinstance(format, Fp8)
        if inputs == STATIC and format.granularity == "block":
            return "clients take static inputs with fp8-e4m3 or fp8-e4m3-tensor, not with blocks"
        return None

    def dialect(self, format: Format, inputs: str) -> str:
        return "naive-quantized" if weight_only(inputs) else "float-quantized"

    def weights(self, format: Format) -> dict[str, Any]:
        assert isinstance(format, Fp8)
        if format.granularity == "block":
            return args("float", 8, "block", block_structure=[BLOCK, BLOCK])
        return args("float", 8, {"row": "channel", "tensor": "tensor"}[format.granularity])

    def activations(self, format: Format, inputs: str) -> dict[str, Any] | None:
        assert isinstance(format, Fp8)
        if weight_only(inputs):
            return None
        if inputs == STATIC:
            return args("float", 8, "tensor")
        if format.granularity == "block":
            return args("float", 8, "group", group_size=BLOCK, dynamic=True)
        return args("float", 8, "token", dynamic=True)

    def pieces(self, tensor: OutputTensor, format: Format, inputs: str) -> tuple[StoredTensor, ...]:
        assert isinstance(format, Fp8)
        scales = format.scales_shape(tensor.shape)
        shape = (1,) if format.granularity == "tensor" else scales
        return (
            StoredTensor(tensor.name, E4M3, (tensor.rows, tensor.columns), tensor.numel),
            StoredTensor(f"{tensor.name}_scale", "F32", shape, 4 * scales[0] * scales[1]),
        )

    def put(
        self, tensor: OutputTensor, format: Format, inputs: str, quantized: Quantized, start: int, stop: int
    ) -> Pieces:
        assert isinstance(format, Fp8)
        parts, across = quantized.parts, format.scales_shape(tensor.shape)[1]
        yield tensor.name, start * tensor.columns, data_of(parts["values"])
        first = {"tensor": 0, "row": start, "block": start // BLOCK}[format.granularity]
        yield f"{tensor.name}_scale", 4 * first * across, data_of(parts["scale"])

    def input_piece(self, tensor: OutputTensor, format: Format) -> StoredTensor:
        return StoredTensor(f"{tensor.name.removesuffix('weight')}input_scale", "F32", (1,), 4)

    def input_scale(self, format: Format, statistics: Any) -> torch.Tensor:
        return or_one(absmax(statistics) / E4M3_LARGEST)


class MxFloat8(Storage):
    """E4M3 with a power of two per 32."""

    def takes(self, format: Format) -> bool:
        return isinstance(format, MxFp8)

    def refuses_inputs(self, format: Format, inputs: str) -> str | None:
        return "MX inputs have no static scale: take inputs=dynamic" if inputs == STATIC else None

    def dialect(self, format: Format, inputs: str) -> str:
        return "mxfp8-quantized"

    def weights(self, format: Format) -> dict[str, Any]:
        return args("float", 8, "group", group_size=_MX_RUN, scale_dtype="torch.uint8")

    def activations(self, format: Format, inputs: str) -> dict[str, Any] | None:
        return None if weight_only(inputs) else {**self.weights(format), "dynamic": True}

    def pieces(self, tensor: OutputTensor, format: Format, inputs: str) -> tuple[StoredTensor, ...]:
        groups = tensor.columns // _MX_RUN
        return (
            StoredTensor(tensor.name, E4M3, (tensor.rows, tensor.columns), tensor.numel),
            StoredTensor(f"{tensor.name}_scale", "U8", (tensor.rows, groups), tensor.rows * groups),
        )

    def put(
        self, tensor: OutputTensor, format: Format, inputs: str, quantized: Quantized, start: int, stop: int
    ) -> Pieces:
        parts = quantized.parts
        yield tensor.name, start * tensor.columns, data_of(parts["values"])
        yield f"{tensor.name}_scale", start * (tensor.columns // _MX_RUN), data_of(parts["scale"])


class NvFloat4(Storage):
    """E2M1 with an E4M3 scale per 16 and one float32 for the tensor."""

    def takes(self, format: Format) -> bool:
        return isinstance(format, NvFp4)

    def refuses_inputs(self, format: Format, inputs: str) -> str | None:
        return None if inputs == STATIC else "NVFP4 inputs need the tensor's range: take inputs=static"

    def dialect(self, format: Format, inputs: str) -> str:
        return "nvfp4-pack-quantized"

    def weights(self, format: Format) -> dict[str, Any]:
        return args("float", 4, "tensor_group", group_size=16, scale_dtype="torch.float8_e4m3fn")

    def activations(self, format: Format, inputs: str) -> dict[str, Any] | None:
        return None if weight_only(inputs) else {**self.weights(format), "dynamic": "local"}

    def pieces(self, tensor: OutputTensor, format: Format, inputs: str) -> tuple[StoredTensor, ...]:
        rows, columns = tensor.rows, tensor.columns
        return (
            StoredTensor(f"{tensor.name}_packed", "U8", (rows, columns // 2), rows * columns // 2),
            StoredTensor(f"{tensor.name}_scale", E4M3, (rows, columns // 16), rows * columns // 16),
            StoredTensor(f"{tensor.name}_global_scale", "F32", (1,), 4),
        )

    def put(
        self, tensor: OutputTensor, format: Format, inputs: str, quantized: Quantized, start: int, stop: int
    ) -> Pieces:
        parts = quantized.parts
        yield f"{tensor.name}_packed", start * tensor.columns // 2, data_of(parts["codes"])
        yield f"{tensor.name}_scale", start * tensor.columns // 16, data_of(parts["scale"])
        yield f"{tensor.name}_global_scale", 0, data_of(parts["inv_global_scale"])

    def input_piece(self, tensor: OutputTensor, format: Format) -> StoredTensor:
        return StoredTensor(f"{tensor.name.removesuffix('weight')}input_global_scale", "F32", (1,), 4)

    def input_scale(self, format: Format, statistics: Any) -> torch.Tensor:
        return or_one(E4M3_LARGEST * E2M1_LARGEST / absmax(statistics))


class MxFloat4(Storage):
    """E2M1 with a power of two per 32: GGML's MXFP4, whose blocks are taken apart."""

    def takes(self, format: Format) -> bool:
        return isinstance(format, GgmlFormat) and format.type_name == "MXFP4"

    def refuses_inputs(self, format: Format, inputs: str) -> str | None:
        return "MX inputs have no static scale: take inputs=dynamic" if inputs == STATIC else None

    def dialect(self, format: Format, inputs: str) -> str:
        return "mxfp4-pack-quantized"

    def weights(self, format: Format) -> dict[str, Any]:
        return args("float", 4, "group", group_size=_MX_RUN, scale_dtype="torch.uint8")

    def activations(self, format: Format, inputs: str) -> dict[str, Any] | None:
        return None if weight_only(inputs) else {**self.weights(format), "dynamic": True}

    def pieces(self, tensor: OutputTensor, format: Format, inputs: str) -> tuple[StoredTensor, ...]:
        rows, columns = tensor.rows, tensor.columns
        groups = columns // _MX_RUN
        return (
            StoredTensor(f"{tensor.name}_packed", "U8", (rows, columns // 2), rows * columns // 2),
            StoredTensor(f"{tensor.name}_scale", "U8", (rows, groups), rows * groups),
        )

    def put(
        self, tensor: OutputTensor, format: Format, inputs: str, quantized: Quantized, start: int, stop: int
    ) -> Pieces:
        from core.formats.codebook import pack_pairs
        from core.formats.ggml.layout import nibbles

        blocks = quantized.parts["blocks"].reshape(-1, _BLOCK_BYTES)
        codes = nibbles(blocks[:, 1:])
        yield f"{tensor.name}_packed", start * tensor.columns // 2, data_of(pack_pairs(codes, False))
        yield f"{tensor.name}_scale", start * (tensor.columns // _MX_RUN), data_of(blocks[:, 0])
