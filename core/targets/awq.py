"""A Hugging Face folder as AutoAWQ writes it ("GEMM"), which vLLM, transformers (by GPTQModel) and AutoAWQ load.

Per Linear `X`: X.qweight int32 [in, out/8], eight neighbours along the rows in a word, in AWQ's own order of nibbles;
X.qzeros int32 [groups, out/8], likewise; X.scales float16 [groups, out]. Codes and zero points count from 0 to 15:
ŵ = scale · (q − z). The layout has no symmetric form: there z is 8. Everything else is copied.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from core.formats.base import Format, Quantized
from core.formats.uniform import Uniform
from core.targets.assignments import Assignments
from core.targets.base import COMPARED, SPECIFIED, Assignment, Objection, OutputTensor, StoredTensor, Verified
from core.targets.columns import strip
from core.targets.folder import QuantizedFolder, left_out, module_of
from core.targets.fused import unlike

if TYPE_CHECKING:
    import torch

# Those that all clients' kernels take.
GROUPS = (32, 64, 128)
# Eight rows fill a word; kernels on CPUs and GPUs take 32 and more.
MULTIPLE = 32


class Awq(QuantizedFolder):
    """Linear weights in 4-bit integers per group."""

    name = "awq"
    title = "AWQ folder"
    help = (
        "4-bit integers per group in AWQ's layout (int4-g32, int4-g64, int4-g128, and with -asym), for vLLM, "
        "transformers and AutoAWQ."
    )
    verified = (
        Verified("transformers with GPTQModel", ("int4-g*",), COMPARED, "tests/interop/gptqmodel_clients.py"),
        Verified("AutoAWQ", ("int4-g*",), SPECIFIED, "tests/core/targets/test_awq.py"),
        Verified("vLLM", ("int4-g*",), COMPARED, "tests/interop/vllm_clients.py"),
    )
    # A slice is written as one run of bytes per input: enough rows that the runs are half a KiB long.
    row_multiple = 1024

    def carries(self, format: Format, tensor: OutputTensor) -> str | None:
        if type(format) is not Uniform:
            other = "gguf" if format.family == "ggml" else "dense"
            return f"awq has no {format.name}, only int4 in groups; the target {other} takes it"
        if format.width != 4 or format.group not in GROUPS:
            sizes = ", ".join(f"int4-g{group}" for group in GROUPS)
            return f"awq has no {format.name}: choose {sizes} or one of them with -asym, or the target gptq"
        if not tensor.linear:
            return None  # the base class has the words
        if tensor.role.kind == "head":
            return "the head: clients never look for a quantized one here"
        if tensor.rows % MULTIPLE:
            return f"{tensor.rows} rows are no multiple of {MULTIPLE}, which awq packs together"
        return None

    def objections(self, assignments: Assignments) -> Iterable[Objection]:
        """Clients build all modules from one group_size."""
        used = assignments.where(lambda a: isinstance(a.format, Uniform))
        if len({_group(a) for a in assignments.samples if isinstance(a.format, Uniform)}) < 2:
            used = []
        for a in used:
            first = used[0]
            if _group(a) != _group(first):
                yield Objection(
                    "error",
                    a.tensor.name,
                    f"is {a.format.name}, {first.tensor.name} is {first.format.name}: "
                    "an AWQ folder has groups of one size",
                    "give all quantized tensors the same group, or choose the target gptq",
                )
        yield from unlike(assignments, alike=True)

    def adapt(self, format: Format, tensor: OutputTensor) -> Format:
        return replace(format, scale_dtype="F16") if isinstance(format, Uniform) else format

    def pieces(self, tensor: OutputTensor, format: Format) -> tuple[StoredTensor, ...]:
        module, rows, columns = module_of(tensor), tensor.rows, tensor.columns
        assert isinstance(format, Uniform)
        groups = columns // format.group
        return (
            StoredTensor(f"{module}.qweight", "I32", (columns, rows // 8), columns * rows // 2),
            StoredTensor(f"{module}.qzeros", "I32", (groups, rows // 8), groups * rows // 2),
            StoredTensor(f"{module}.scales", "F16", (groups, rows), groups * rows * 2),
        )

    def put(
        self, tensor: OutputTensor, format: Format, quantized: Quantized, start: int, stop: int
    ) -> Iterator[tuple[str, int, memoryview | bytes]]:
        from core.formats.interleaved import pack_columns

        module, rows, grid = module_of(tensor), tensor.rows, quantized.grid
        yield from strip(f"{module}.qweight", pack_columns(_unsigned(quantized.codes)), rows // 2, start // 2)
        yield from strip(f"{module}.qzeros", pack_columns(_zeros(quantized)), rows // 2, start // 2)
        yield from strip(f"{module}.scales", grid["scale"].t(), 2 * rows, 2 * start)

    def settings(self, assignments: Assignments, config: Mapping[str, Any]) -> dict[str, Any]:
        group = next(a.format.group for a in assignments.samples if isinstance(a.format, Uniform))
        return {
            "quantization_config": {
                "quant_method": "awq",
                "bits": 4,
                "group_size": group,
                "zero_point": True,
                "version": "gemm",
                "modules_to_not_convert": left_out(assignments),
            }
        }


def _group(assignment: Assignment) -> int:
    assert isinstance(assignment.format, Uniform)
    return assignment.format.group


def _unsigned(codes: torch.Tensor) -> torch.Tensor:
    """uint8, 0 … 15, of −8 … 7."""
    import torch

    return (codes + 8).to(torch.uint8)


def _zeros(quantized: Quantized) -> torch.Tensor:
    """uint8 [rows, groups]."""
    import torch

    zero = quantized.grid.get("zero_point")
    return torch.full(quantized.grid["scale"].shape, 8, dtype=torch.uint8) if zero is None else _unsigned(zero)
