"""Integer weights. Inputs left alone ("pack-quantized"): X.weight_packed int32 [out, ⌈in·b/32⌉], X.weight_scale
[out, groups] ([1] per tensor), X.weight_shape int64 [2], and with zero points X.weight_zero_point int32
[⌈out·b/32⌉, groups], packed along out (int8 [1] per tensor). Inputs rounded to int8 ("int-quantized"): X.weight int8
[out, in], whatever the width, and X.weight_scale.

Static inputs: X.input_scale [1] = absmax / 127.5 of the moving range, in the type of the weights' scales; symmetric.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from core.formats.base import Format, Quantized
from core.formats.uniform import Uniform
from core.parameters import DYNAMIC, STATIC
from core.targets.base import OutputTensor, StoredTensor
from core.targets.compressed.base import Pieces, Storage, args, moving_absmax, or_one, weight_only
from core.targets.plain import data_of
from core.tensors import DTYPES

if TYPE_CHECKING:
    import torch

PACKED, PLAIN_CODES = "pack-quantized", "int-quantized"
_STRATEGY = {"tensor": "tensor", "row": "channel", "group": "group"}


class Integers(Storage):
    """Uniform formats with integer zero points; others have grids (a fractional zero) that have no place here."""

    def takes(self, format: Format) -> bool:
        return type(format) is Uniform and format.granularity in _STRATEGY

    def refuses_inputs(self, format: Format, inputs: str) -> str | None:
        assert isinstance(format, Uniform)
        if not format.symmetric:
            return f"clients take {inputs} inputs with symmetric weights, not with {format.name}"
        if format.width == 8:
            if format.granularity == "group":
                return f"clients take {inputs} inputs with int8 or int8-tensor, not in groups"
            return None
        if format.width == 4 and inputs == DYNAMIC and format.granularity != "tensor":
            return None
        fit = "int8 and int4" if inputs == DYNAMIC else "int8"
        return f"clients take {inputs} inputs with {fit}, not with {format.name}"

    def dialect(self, format: Format, inputs: str) -> str:
        return PACKED if weight_only(inputs) else PLAIN_CODES

    def weights(self, format: Format) -> dict[str, Any]:
        assert isinstance(format, Uniform)
        strategy, group = _STRATEGY[format.granularity], format.group or None
        return args("int", format.width, strategy, symmetric=format.symmetric, group_size=group)

    def activations(self, format: Format, inputs: str) -> dict[str, Any] | None:
        if weight_only(inputs):
            return None
        return args("int", 8, "tensor") if inputs == STATIC else args("int", 8, "token", dynamic=True)

    def pieces(self, tensor: OutputTensor, format: Format, inputs: str) -> tuple[StoredTensor, ...]:
        assert isinstance(format, Uniform)
        rows, columns = tensor.rows, tensor.columns
        words = _words(columns * format.width)
        scales = format.scales_shape(tensor.shape)
        whole = format.granularity == "tensor"
        scale_bytes = scales[0] * scales[1] * _scale_bytes(format)
        scale = StoredTensor(f"{tensor.name}_scale", format.scale_dtype, (1,) if whole else scales, scale_bytes)
        if not weight_only(inputs):
            return StoredTensor(tensor.name, "I8", (rows, columns), rows * columns), scale
        found = [StoredTensor(f"{tensor.name}_packed", "I32", (rows, words), rows * words * 4), scale]
        if not format.symmetric and whole:
            found.append(StoredTensor(f"{tensor.name}_zero_point", "I8", (1,), 1))
        elif not format.symmetric:
            zeros = (_words(rows * format.width), scales[1])
            found.append(StoredTensor(f"{tensor.name}_zero_point", "I32", zeros, zeros[0] * zeros[1] * 4))
        found.append(StoredTensor(f"{tensor.name}_shape", "I64", (2,), 16))
        return tuple(found)

    def put(
        self, tensor: OutputTensor, format: Format, inputs: str, quantized: Quantized, start: int, stop: int
    ) -> Pieces:
        assert isinstance(format, Uniform)
        name, parts = tensor.name, quantized.parts
        packed = weight_only(inputs)
        if packed:
            yield f"{name}_packed", start * _words(tensor.columns * format.width) * 4, data_of(parts["codes"])
        else:
            yield name, start * tensor.columns, data_of(quantized.codes)
        groups = format.scales_shape(tensor.shape)[1]
        whole = format.granularity == "tensor"
        at = 0 if whole else start * groups
        yield f"{name}_scale", at * _scale_bytes(format), data_of(parts["scale"])
        if not format.symmetric and whole:
            yield f"{name}_zero_point", 0, data_of(parts["zero_point"])
        elif not format.symmetric:
            offset = start * format.width // 32 * groups * 4
            yield f"{name}_zero_point", offset, data_of(_packed_along_rows(parts["zero_point"], format))
        if start == 0 and packed:
            yield f"{name}_shape", 0, b"".join(n.to_bytes(8, "little") for n in (tensor.rows, tensor.columns))

    def input_piece(self, tensor: OutputTensor, format: Format) -> StoredTensor:
        assert isinstance(format, Uniform)
        name = f"{tensor.name.removesuffix('weight')}input_scale"
        return StoredTensor(name, format.scale_dtype, (1,), _scale_bytes(format))

    def input_scale(self, format: Format, statistics: Any) -> torch.Tensor:
        return or_one(moving_absmax(statistics) / 127.5)


def _scale_bytes(format: Uniform) -> int:
    return DTYPES[format.scale_dtype].bits // 8


def _words(bits: int) -> int:
    return (bits + 31) // 32


def _packed_along_rows(zero: torch.Tensor, format: Uniform) -> torch.Tensor:
    """int32 [⌈rows·b/32⌉, groups] of int8 [rows, groups]."""
    import torch

    from core.formats.bitstream import pack_rows

    codes = zero.to(torch.int16) - format.qmin
    return pack_rows(codes.t(), format.width).t().contiguous()
