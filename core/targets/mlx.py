"""A Hugging Face folder as mlx-lm writes it, for MLX on Apple silicon (and on CPUs).

Per Linear or embedding `X`: X.weight uint32 [out, in·b/32], the codes of a row as one stream of bits, lowest first, and

    affine  X.scales and X.biases [out, in/g] in the model's type: ŵ = scale · q + bias, q = 0 … 2^b − 1,
            b of 2, 3, 4, 5, 6 and 8, g of 32, 64 and 128
    mxfp4   X.scales uint8 [out, in/32], exponents + 127, of E2M1 codes
    mxfp8   X.scales uint8 [out, in/32] of E4M3 codes

config.json says the bits, group and mode of most weights in "quantization", and the modules that differ. Everything
else is copied, under its own name: mlx-lm renames, and stacks the experts, as it loads.

Symmetric integers go in exactly, with bias = −2^(b−1) · scale; so that this holds in float32 arithmetic too, their
scales have 16 bits. Whole zero points do not survive a bias that is rounded. NVFP4 here has no scale of the tensor,
which ours needs.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from core.errors import OutOfRange
from core.formats.base import Format, Quantized
from core.formats.biased import Biased
from core.formats.ggml.format import GgmlFormat
from core.formats.mx import MxFp8
from core.formats.uniform import Uniform
from core.targets.assignments import Assignments
from core.targets.base import COMPARED, SPECIFIED, Assignment, Objection, OutputTensor, StoredTensor, Verified
from core.targets.dense import with_scales
from core.targets.folder import QuantizedFolder, module_of, quantizes
from core.targets.plain import data_of, float_dtype
from core.tensors import DTYPES

if TYPE_CHECKING:
    import torch

WIDTHS = (2, 3, 4, 5, 6, 8)
GROUPS = (32, 64, 128)
_MX_GROUP = 32
_EXPERT = re.compile(r"^(.*\bexperts)\.\d+\.(.+)$")

_Scheme = tuple[int, int, str]


class Mlx(QuantizedFolder):
    """Linear weights, embeddings and the head."""

    name = "mlx"
    title = "MLX folder"
    help = "For mlx-lm: int2, 3, 4, 5, 6 and 8 in groups of 32, 64 or 128 (int4-g64-bias, int4-g64 …), mxfp4, mxfp8."
    verified = (
        Verified(
            "mlx-lm",
            ("int*-bias", "int4-g32", "int4-g64", "int8-g128", "mxfp4", "mxfp8"),
            COMPARED,
            "benchmarks/mlx.py",
        ),
        Verified("mlx-lm", ("int*",), SPECIFIED, "tests/core/targets/test_mlx.py"),
    )
    embeddings = True

    def carries(self, format: Format, tensor: OutputTensor) -> str | None:
        if isinstance(format, MxFp8) or _is_mxfp4(format):
            return None
        if type(format) not in (Uniform, Biased):
            other = "gguf" if format.family == "ggml" else "dense"
            return (
                f"MLX has no {format.name} here, only integers in groups, mxfp4 and mxfp8; the target {other} takes it"
            )
        assert isinstance(format, Uniform)
        if format.width not in WIDTHS:
            return f"MLX has 2, 3, 4, 5, 6 and 8 bits, not {format.width}"
        if format.group not in GROUPS:
            return f"MLX has groups of 32, 64 and 128: choose int{format.width}-g64-bias"
        if not (format.symmetric or isinstance(format, Biased)):
            return f"MLX stores a bias, not a zero point: choose int{format.width}-g{format.group}-bias"
        return None

    def objections(self, assignments: Assignments) -> Iterable[Objection]:
        """mlx-lm stacks the experts of a layer, so their weights must be of one kind."""
        first: dict[str, Assignment] = {}
        for a in assignments:
            found = _EXPERT.match(a.tensor.name)
            if not found:
                continue
            other = first.setdefault(f"{found[1]}.{found[2]}", a)
            if other.format.name != a.format.name:
                yield Objection(
                    "error",
                    a.tensor.name,
                    f"is {a.format.name}, {other.tensor.name} is {other.format.name}: mlx-lm stacks a layer's experts",
                    "give all experts of a layer the same format",
                )

    def adapt(self, format: Format, tensor: OutputTensor) -> Format:
        fitting = with_scales(format, tensor.dtype)
        if type(fitting) is Uniform and fitting.scale_dtype == "F32":
            return replace(fitting, scale_dtype="BF16")
        return fitting

    def pieces(self, tensor: OutputTensor, format: Format) -> tuple[StoredTensor, ...]:
        bits, group, mode = scheme_of(format)
        rows, words, groups = tensor.rows, tensor.columns * bits // 32, tensor.columns // group
        module = module_of(tensor)
        found = [StoredTensor(tensor.name, "U32", (rows, words), 4 * rows * words)]
        dtype = float_dtype(tensor.dtype) if mode == "affine" else "U8"
        size = rows * groups * DTYPES[dtype].bits // 8
        for part in ("scales", "biases") if mode == "affine" else ("scales",):
            found.append(StoredTensor(f"{module}.{part}", dtype, (rows, groups), size))
        return tuple(found)

    def put(
        self, tensor: OutputTensor, format: Format, quantized: Quantized, start: int, stop: int
    ) -> Iterator[tuple[str, int, memoryview | bytes]]:
        bits, group, mode = scheme_of(format)
        module = module_of(tensor)
        codes, scales, biases = _parts(format, quantized)
        yield tensor.name, start * tensor.columns * bits // 8, data_of(codes)
        wide = DTYPES[float_dtype(tensor.dtype)].torch
        at = start * tensor.columns // group
        if mode != "affine":
            yield f"{module}.scales", at, data_of(scales)
            return
        assert biases is not None
        for part, numbers in (("scales", scales), ("biases", biases)):
            stored = numbers.to(wide)
            if not stored.isfinite().all():
                raise OutOfRange("needs a bias beyond the range of f16", "choose an int…-bias format", tensor.name)
            yield f"{module}.{part}", at * stored.element_size(), data_of(stored)

    def settings(self, assignments: Assignments, config: Mapping[str, Any]) -> dict[str, Any]:
        weights: Counter[_Scheme] = Counter()
        used = assignments.where(lambda a: quantizes(a.format))
        for a in used:
            weights[scheme_of(a.format)] += a.tensor.numel
        common = weights.most_common(1)[0][0]
        found: dict[str, Any] = _said(common)
        for a in used:
            scheme = scheme_of(a.format)
            if scheme != common:
                found[_module_there(a.tensor)] = _said(scheme)
        # Twice, as mlx-lm does: other clients look for the second and see that this is nothing of theirs.
        return {"quantization": found, "quantization_config": found}

    def metadata(self, assignments: Assignments) -> Mapping[str, str]:
        return {"format": "mlx"}


def scheme_of(format: Format) -> _Scheme:
    """Bits, group and mode."""
    if isinstance(format, Uniform):
        return format.width, format.group, "affine"
    return (8, _MX_GROUP, "mxfp8") if isinstance(format, MxFp8) else (4, _MX_GROUP, "mxfp4")


def _is_mxfp4(format: Format) -> bool:
    return isinstance(format, GgmlFormat) and format.type_name == "MXFP4"


def _said(scheme: _Scheme) -> dict[str, Any]:
    return {"group_size": scheme[1], "bits": scheme[0], "mode": scheme[2]}


def _module_there(tensor: OutputTensor) -> str:
    """The module in mlx-lm's model: there a layer's experts are one."""
    found = _EXPERT.match(module_of(tensor))
    if not found:
        return module_of(tensor)
    switched = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}.get(found[2], found[2])
    return f"{found[1].removesuffix('experts')}switch_mlp.{switched}"


def _parts(format: Format, quantized: Quantized) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Codes in words or bytes, scales, and biases where there are some."""
    from core.formats.codebook import pack_pairs

    if isinstance(format, Biased):
        parts = quantized.parts
        return parts["codes"], parts["scale"], parts["bias"]
    if isinstance(format, Uniform):
        parts = quantized.parts
        scale = parts["scale"].float()
        return parts["codes"], scale, scale * format.qmin
    if isinstance(format, MxFp8):
        return quantized.parts["values"], quantized.parts["scale"], None
    return pack_pairs(quantized.codes, high_first=False), quantized.grid["e"], None
