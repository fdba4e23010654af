"""A Hugging Face folder in the compressed-tensors dialect, which vLLM and transformers load: integer weights packed
into 32-bit words ("pack-quantized", the dense packing of compressed-tensors 0.20), scales in the model's own type.

Per Linear `X`: X.weight_packed int32 [out, ⌈in·b/32⌉], X.weight_scale [out, groups] ([1] per tensor),
X.weight_shape int64 [2], and with zero points X.weight_zero_point int32 [⌈out·b/32⌉, groups], packed along out
(int8 [1] per tensor). int8 with one scale per row or tensor is stored as it is ("int-quantized"): X.weight int8
[out, in], X.weight_scale, and X.weight_zero_point int8 shaped like the scale. Everything else is copied.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from core.checkpoints.base import Checkpoint
from core.checkpoints.compressed import CompressedCheckpoint
from core.errors import TargetError
from core.formats.base import Format, Quantized
from core.formats.uniform import Uniform
from core.targets import safetensors
from core.targets.base import Assignment, Layout, Outline, OutputTensor, StoredTensor, Target
from core.targets.dense import refuse_complex, with_scales
from core.targets.modules import TiedHead, own_outline
from core.targets.plain import data_of, real, stored_as
from core.targets.sides import carried
from core.tensors import DTYPES

if TYPE_CHECKING:
    import torch

# Files of at most this size, as transformers splits them.
SHARD_BYTES = 5_000_000_000
PACKED, PLAIN, MIXED = "pack-quantized", "int-quantized", "mixed-precision"
_STRATEGY = {"tensor": "tensor", "row": "channel", "group": "group"}
_BARE_NOTE = (
    "there is no config.json beside the weights: the new one holds the quantization_config only, so add the model's own"
)


class CompressedTensors(Target):
    """Linear weights in uniform formats; embeddings, norms and the rest as they are."""

    name = "compressed-tensors"
    title = "compressed-tensors folder"
    help = "Safetensors with packed integer weights, for vLLM and transformers."
    folder = True
    # Zero points are packed along the rows: 32 rows fill whole words, whatever the width.
    row_multiple = 32

    def outline(self, checkpoint: Checkpoint) -> Outline:
        if checkpoint.kind == "gguf":
            raise TargetError(
                "a GGUF has neither the names nor the config.json that compressed-tensors needs",
                "open the original Hugging Face folder, or write gguf or dense",
                checkpoint.path,
            )
        if isinstance(checkpoint, CompressedCheckpoint):
            raise TargetError(
                "the weights are quantized in this dialect already",
                "start from the original model, or write gguf or dense",
                checkpoint.path,
            )
        refuse_complex(checkpoint)
        return own_outline(checkpoint, (_BARE_NOTE,) if checkpoint.config is None else ())

    def refuses(self, format: Format, tensor: OutputTensor) -> str | None:
        if format.family == "dense":
            return None if real(tensor.dtype) else f"{tensor.dtype} holds no real numbers"
        # Its subclasses have grids (a fractional zero) that this dialect has no place for.
        if type(format) is not Uniform:
            other = "gguf" if format.family == "ggml" else "dense"
            return f"compressed-tensors has no {format.name} here; the target {other} takes it"
        if isinstance(tensor.source, TiedHead):
            return "tied to the embedding, which stays unquantized"
        if tensor.linear:
            return None
        if tensor.role.kind == "embedding":
            return "an embedding: only Linear weights are quantized here"
        if len(tensor.shape) == 3 and "expert" in tensor.name:
            return "stacked experts: clients want one Linear weight per expert"
        if len(tensor.shape) < 2:
            return "1-D: only Linear weights are quantized here"
        return "not the weight of a Linear"

    def keeps(self, tensor: OutputTensor) -> Format:
        return stored_as(tensor.dtype)

    def adapt(self, format: Format, tensor: OutputTensor) -> Format:
        return with_scales(format, tensor.dtype)

    def stored(self, assignment: Assignment) -> tuple[StoredTensor, ...]:
        tensor, fmt = assignment.tensor, assignment.format
        if not isinstance(fmt, Uniform):
            dtype = fmt.name.upper()
            return (StoredTensor(tensor.name, dtype, tensor.shape, fmt.nbytes(tensor.shape)),)
        rows, columns = tensor.rows, tensor.columns
        words = _words(columns * fmt.width)
        scales = fmt.scales_shape(tensor.shape)
        whole = fmt.granularity == "tensor"
        scale_shape = (1,) if whole else scales
        count = scales[0] * scales[1]
        if not _packed(fmt):
            found = [
                StoredTensor(tensor.name, "I8", (rows, columns), rows * columns),
                StoredTensor(
                    f"{tensor.name}_scale", fmt.scale_dtype, scale_shape, count * DTYPES[fmt.scale_dtype].bits // 8
                ),
            ]
            if not fmt.symmetric:
                found.append(StoredTensor(f"{tensor.name}_zero_point", "I8", scale_shape, count))
            return tuple(found)
        found = [
            StoredTensor(f"{tensor.name}_packed", "I32", (rows, words), rows * words * 4),
            StoredTensor(
                f"{tensor.name}_scale", fmt.scale_dtype, scale_shape, count * DTYPES[fmt.scale_dtype].bits // 8
            ),
        ]
        if not fmt.symmetric and whole:
            found.append(StoredTensor(f"{tensor.name}_zero_point", "I8", (1,), 1))
        elif not fmt.symmetric:
            zeros = (_words(rows * fmt.width), scales[1])
            found.append(StoredTensor(f"{tensor.name}_zero_point", "I32", zeros, zeros[0] * zeros[1] * 4))
        found.append(StoredTensor(f"{tensor.name}_shape", "I64", (2,), 16))
        return tuple(found)

    def layout(
        self, checkpoint: Checkpoint, outline: Outline, assignments: Sequence[Assignment], label: str = ""
    ) -> Layout:
        tensors = [(a.tensor.name, self.stored(a)) for a in assignments]
        sides = carried(checkpoint)
        config = dict(checkpoint.config or {})
        config.pop("quantization_config", None)
        quantization = quantization_config(assignments)
        if quantization:
            config["quantization_config"] = quantization
        if config:
            sides["config.json"] = safetensors.json_bytes(config)
        return safetensors.lay_out(tensors, safetensors.shards(tensors, SHARD_BYTES), sides)

    def store(
        self, assignment: Assignment, quantized: Quantized, start: int, stop: int
    ) -> Iterator[tuple[str, int, memoryview | bytes]]:
        tensor, fmt, parts = assignment.tensor, assignment.format, quantized.parts
        if not isinstance(fmt, Uniform):
            width = DTYPES[fmt.name.upper()].bits // 8
            yield tensor.name, start * tensor.columns * width, data_of(parts["values"])
            return
        name = tensor.name
        if _packed(fmt):
            yield f"{name}_packed", start * _words(tensor.columns * fmt.width) * 4, data_of(parts["codes"])
        else:
            yield name, start * tensor.columns, data_of(quantized.codes)
        groups = fmt.scales_shape(tensor.shape)[1]
        whole = fmt.granularity == "tensor"
        at = 0 if whole else start * groups
        yield f"{name}_scale", at * DTYPES[fmt.scale_dtype].bits // 8, data_of(parts["scale"])
        if not fmt.symmetric and (whole or not _packed(fmt)):
            yield f"{name}_zero_point", at, data_of(parts["zero_point"])
        elif not fmt.symmetric:
            offset = start * fmt.width // 32 * groups * 4
            yield f"{name}_zero_point", offset, data_of(_packed_along_rows(parts["zero_point"], fmt))
        if start == 0 and _packed(fmt):
            shape = b"".join(n.to_bytes(8, "little") for n in (tensor.rows, tensor.columns))
            yield f"{name}_shape", 0, shape


def quantization_config(assignments: Sequence[Assignment]) -> dict[str, Any]:
    """What config.json says about the quantized weights; {} when there are none.

    One scheme: it targets every Linear, and `ignore` lists those it leaves out. Several: each names its modules.
    """
    schemes: dict[tuple[Any, ...], list[str]] = {}
    ignore: list[str] = []
    heads = 0
    for assignment in assignments:
        tensor, fmt = assignment.tensor, assignment.format
        module = tensor.name.removesuffix(".weight")
        heads += tensor.role.kind == "head"
        if isinstance(fmt, Uniform):
            key = (fmt.width, fmt.granularity, fmt.group, fmt.symmetric)
            schemes.setdefault(key, []).append(module)
        elif tensor.linear:
            ignore.append(module)
    if not schemes:
        return {}
    if not heads:
        ignore.append("lm_head")  # tied: not in the file, and a Linear of the model all the same
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
        "ignore": ignore,
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
