"""A Hugging Face folder as GPTQ's own tools write it, which GPTQModel, transformers and vLLM load.

Per Linear `X` with b bits: X.qweight int32 [in·b/32, out], the codes as one stream of bits down every column;
X.qzeros int32 [groups, out·b/32], the zero points along the rows; X.scales float16 [groups, out]; X.g_idx int32 [in],
the group of every input. Codes and zero points count from 0: ŵ = scale · (q − z). Everything else is copied.

Symmetric formats have z = 2^(b−1), the same scales as GPTQ's quantizer (2·absmax / (2^b − 1); that one treats groups
without a negative weight apart, and clips them) and go into the first version of the layout, `"gptq"`, which every
client reads and which holds z − 1. There it has no room for z = 0, and clients disagree on what overflows; so folders
with zero points are `"gptq_v2"`, which holds z as it is.

transformers (by optimum) gives all modules the same bits and group. Where they differ, `dynamic` says so, which
GPTQModel and vLLM read. What stays unquantized `dynamic` tells GPTQModel, and `modules_in_block_to_quantize`, which
names the others, tells transformers and vLLM.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any

import core
from core.formats.base import Format, Quantized
from core.formats.uniform import Uniform
from core.targets import safetensors
from core.targets.assignments import Assignments
from core.targets.base import COMPARED, SPECIFIED, Assignment, Objection, OutputTensor, StoredTensor, Verified
from core.targets.columns import strip
from core.targets.folder import QuantizedFolder, module_of
from core.targets.fused import bundles, unlike
from core.targets.plain import data_of

if TYPE_CHECKING:
    import torch

WIDTHS = (2, 3, 4, 8)
# What GPTQModel's kernels take; those for GPUs take 32, 64 and 128.
GROUPS = (16, 32, 64, 128, 256, 512, 1024)
# Both sides are packed into words, and 32 codes fill whole ones whatever the width.
MULTIPLE = 32
V1, V2 = "gptq", "gptq_v2"
_SIDE = "quantize_config.json"
_LAYER = re.compile(r"^(.*?\.?(?:layers|blk|h|blocks|layer|block))\.(\d+)\.(.+)$")

_Scheme = tuple[int, int, bool]


class Gptq(QuantizedFolder):
    """Linear weights of the layers, in integers of 2, 3, 4 or 8 bits per group or row."""

    name = "gptq"
    title = "GPTQ folder"
    help = (
        "Integers of 2, 3, 4 or 8 bits per group or row in GPTQ's layout (int4-g128, int4-g128-asym, int8 …), "
        "for GPTQModel, transformers and vLLM."
    )
    verified = (
        Verified(
            "transformers with GPTQModel", ("int*-g*", "int8-asym"), COMPARED, "tests/interop/gptqmodel_clients.py"
        ),
        Verified("transformers with GPTQModel", ("int*",), SPECIFIED, "tests/core/targets/test_gptq.py"),
        Verified("vLLM", ("int4", "int4-g??", "int4-g128"), COMPARED, "tests/interop/vllm_clients.py"),
        Verified("vLLM", ("int8", "int8-g??", "int8-g128"), SPECIFIED, "tests/core/targets/test_gptq.py"),
    )
    # A slice is written as one run of bytes per word of a column: enough rows that the runs are 2 KiB long.
    row_multiple = 512

    def carries(self, format: Format, tensor: OutputTensor) -> str | None:
        if type(format) is not Uniform:
            other = "gguf" if format.family == "ggml" else "dense"
            return f"gptq has no {format.name}, only integers per row or group; the target {other} takes it"
        if format.width not in WIDTHS:
            return f"gptq has 2, 3, 4 and 8 bits, not {format.width}; the target compressed-tensors takes {format.name}"
        if format.granularity not in ("row", "group"):
            return f"gptq has scales per row or group, not per {format.granularity}: choose int{format.width}"
        if format.group and format.group not in GROUPS:
            return f"gptq's clients take groups of {', '.join(map(str, GROUPS))}, not {format.group}"
        if not tensor.linear:
            return None  # the base class has the words
        if tensor.role.kind == "head":
            return "the head: transformers never looks for a quantized one here"
        if tensor.role.layer is None:
            return "outside of the layers, where clients look for no quantized weight"
        if tensor.rows % MULTIPLE or tensor.columns % MULTIPLE:
            return f"{tensor.rows} × {tensor.columns} are no multiples of {MULTIPLE}, which gptq packs into words"
        return None

    def objections(self, assignments: Assignments) -> Iterable[Objection]:
        """All zero points of a folder are stored in one way, and transformers builds all modules alike."""
        used = _quantized(assignments)
        warned = False
        kinds = [a for a in assignments.samples if isinstance(a.format, Uniform)]
        for a in used if len({(_scheme(a), _uniform(a).symmetric) for a in kinds}) > 1 else ():
            fmt, first = _uniform(a), _uniform(used[0])
            differs = f"is {fmt.name}, {used[0].tensor.name} is {first.name}"
            if fmt.symmetric != first.symmetric:
                yield Objection(
                    "error",
                    a.tensor.name,
                    f"{differs}: a GPTQ folder is symmetric or has zero points",
                    "give all quantized tensors formats with -asym, or none",
                )
            elif _scheme(a) != _scheme(used[0]) and not warned:
                warned = True
                yield Objection(
                    "warning",
                    a.tensor.name,
                    f"{differs}: GPTQModel and vLLM read several widths and groups, transformers expects one",
                    "give all quantized tensors the same format if transformers is to load them",
                )
        yield from unlike(assignments)
        yield from _unknown_to_vllm(kinds)

    def adapt(self, format: Format, tensor: OutputTensor) -> Format:
        return replace(format, scale_dtype="F16") if isinstance(format, Uniform) else format

    def pieces(self, tensor: OutputTensor, format: Format) -> tuple[StoredTensor, ...]:
        assert isinstance(format, Uniform)
        module, rows, columns = module_of(tensor), tensor.rows, tensor.columns
        groups = format.scales_shape(tensor.shape)[1]

        def stored(part: str, dtype: str, shape: tuple[int, ...], width: int) -> StoredTensor:
            return StoredTensor(f"{module}.{part}", dtype, shape, prod(shape) * width)

        return (
            stored("qweight", "I32", (columns * format.width // 32, rows), 4),
            stored("qzeros", "I32", (groups, rows * format.width // 32), 4),
            stored("scales", "F16", (groups, rows), 2),
            stored("g_idx", "I32", (columns,), 4),
        )

    def put(
        self, tensor: OutputTensor, format: Format, quantized: Quantized, start: int, stop: int
    ) -> Iterator[tuple[str, int, memoryview | bytes]]:
        assert isinstance(format, Uniform)
        module, rows, parts = module_of(tensor), tensor.rows, quantized.parts
        yield from strip(f"{module}.qweight", parts["codes"].t(), 4 * rows, 4 * start)
        zeros = _zeros(format, parts.get("zero_point"), parts["scale"])
        yield from strip(f"{module}.qzeros", zeros, rows * format.width // 8, start * format.width // 8)
        yield from strip(f"{module}.scales", parts["scale"].t(), 2 * rows, 2 * start)
        if start == 0:
            yield f"{module}.g_idx", 0, data_of(_group_of_columns(format, tensor.columns, parts.get("g_idx")))

    def settings(self, assignments: Assignments, config: Mapping[str, Any]) -> dict[str, Any]:
        return {"quantization_config": quantization_config(assignments)}

    def sides(self, settings: Mapping[str, Any]) -> dict[str, bytes]:
        return {_SIDE: safetensors.json_bytes(settings["quantization_config"])}


def quantization_config(assignments: Assignments) -> dict[str, Any]:
    """What config.json and quantize_config.json say: the scheme of most weights, and where modules differ from it."""
    used = _quantized(assignments)
    weights: dict[_Scheme, int] = {}
    for a in used:
        weights[_scheme(a)] = weights.get(_scheme(a), 0) + a.tensor.numel
    common = max(weights, key=lambda scheme: weights[scheme])
    chosen = [module_of(a.tensor) for a in used]
    left = assignments.where(lambda a: not isinstance(a.format, Uniform) and a.tensor.linear and _in_layer(a.tensor))
    kept = [module_of(a.tensor) for a in left]
    bits, group, act_order = common
    found: dict[str, Any] = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": group,
        "desc_act": act_order,
        "sym": _uniform(used[0]).symmetric,
        "lm_head": False,
        "checkpoint_format": V1 if _uniform(used[0]).symmetric else V2,
        "pack_dtype": "int32",
        "meta": {"quantizer": [f"quantbench:{core.__version__}"]},
    }
    rules: dict[str, Any] = {}
    for other in weights:
        if other == common:
            continue
        modules = [module_of(a.tensor) for a in used if _scheme(a) == other]
        given = {"bits": other[0], "group_size": other[1], "desc_act": other[2]}
        # vLLM asks for the rule of the whole that it makes of some.
        rules |= {f"+:{pattern}": given for pattern in _patterns([*modules, *bundles(modules)])}
    rules |= {f"-:{pattern}": {} for pattern in _patterns([*kept, *bundles(kept)])}
    if rules:
        found["dynamic"] = rules
    if kept:
        found["modules_in_block_to_quantize"] = [_endings(chosen, kept)]
    return found


def _quantized(assignments: Assignments) -> list[Assignment]:
    return assignments.where(lambda a: isinstance(a.format, Uniform))


def _unknown_to_vllm(used: Sequence[Assignment]) -> Iterable[Objection]:
    """One warning: seen with vLLM 0.32 ("Unsupported quantization config")."""
    for a in used:
        fmt = _uniform(a)
        if fmt.width not in (4, 8) or not fmt.symmetric:
            yield Objection(
                "warning",
                a.tensor.name,
                f"is {fmt.name}: of GPTQ folders vLLM loads symmetric 4 and 8 bits only, others load this one too",
                "take the target compressed-tensors if vLLM is to load it",
            )
            return


def _uniform(assignment: Assignment) -> Uniform:
    assert isinstance(assignment.format, Uniform)
    return assignment.format


def _scheme(assignment: Assignment) -> _Scheme:
    """Bits, group (−1: the row) and whether columns are grouped out of order."""
    fmt = _uniform(assignment)
    return fmt.width, fmt.group or -1, assignment.scattered


def _in_layer(tensor: OutputTensor) -> bool:
    return tensor.role.layer is not None


def _patterns(modules: Iterable[str]) -> list[str]:
    """Regular expressions that match these modules and no others; one for all layers' modules of a name."""
    layers: dict[tuple[str, str], list[str]] = {}
    alone = []
    for module in modules:
        found = _LAYER.match(module)
        if found:
            layers.setdefault((found[1], found[3]), []).append(found[2])
        else:
            alone.append(f"^{re.escape(module)}$")
    together = [
        rf"^{re.escape(stem)}\.(?:{'|'.join(numbers)})\.{re.escape(rest)}$" for (stem, rest), numbers in layers.items()
    ]
    return together + alone


def _endings(chosen: Sequence[str], kept: Sequence[str]) -> list[str]:
    """For each chosen module what it ends with: the name inside its layer where no module that is kept ends so too,
    else the whole name."""
    found: dict[str, None] = {}
    for module in chosen:
        inner = _LAYER.match(module)
        ending = inner[3] if inner else module
        found[module if any(k.endswith(ending) for k in kept) else ending] = None
    return list(found)


def _zeros(format: Uniform, zero: torch.Tensor | None, scale: torch.Tensor) -> torch.Tensor:
    """int32 [groups, rows·b/32] as stored, of int8 [rows, groups] or None."""
    import torch

    from core.formats.bitstream import pack_rows

    if zero is None:
        stored = torch.full(scale.shape, -format.qmin - 1, dtype=torch.int16)
    else:
        stored = zero.to(torch.int16) - format.qmin
    return pack_rows(stored.t(), format.width)


def _group_of_columns(format: Uniform, columns: int, given: torch.Tensor | None) -> torch.Tensor:
    """int32 [columns]: what the method says, else the ordinary runs."""
    import torch

    if given is not None:
        return given.reshape(columns).to(torch.int32)
    return torch.arange(columns, dtype=torch.int32) // (format.group or columns)
