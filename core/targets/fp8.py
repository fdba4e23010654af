"""A Hugging Face folder with FP8 weights in the plain form ("fp8"), which transformers, vLLM and SGLang load.

Per Linear `X`: X.weight E4M3 [out, in], X.weight_scale_inv float32 [out/128, in/128], one number per block of
128 × 128, by which its values are multiplied. Clients round inputs as they come, a scale per 128 of a token; no choice
is given. Everything else is copied.

transformers finds the size of a block by dividing rows by the rows of scales, so an edge that is cut short would be
decoded with blocks of another size: both dimensions must be multiples of 128 here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from core.formats.base import Format, Quantized
from core.formats.fp8 import BLOCK, Fp8
from core.formats.mx import E4M3
from core.parameters import DYNAMIC, PLAIN
from core.targets.assignments import Assignments
from core.targets.base import COMPARED, Objection, OutputTensor, StoredTensor, Verified
from core.targets.folder import QuantizedFolder, left_out
from core.targets.fused import unlike
from core.targets.plain import data_of


class Fp8Folder(QuantizedFolder):
    """Linear weights in blocks; embeddings, the head and the rest as they are."""

    name = "fp8"
    title = "FP8 folder"
    help = (
        "8-bit floats with a scale per 128 × 128 (fp8-e4m3-b128), as DeepSeek and Qwen have it; for transformers, vLLM."
    )
    verified = (
        Verified("transformers", ("bf16", "fp8-e4m3-b128"), COMPARED, "tests/core/targets/test_fp8.py"),
        Verified("vLLM", ("fp8-e4m3-b128",), COMPARED, "tests/interop/vllm_clients.py"),
    )

    def carries(self, format: Format, tensor: OutputTensor) -> str | None:
        if not isinstance(format, Fp8) or format.dtype != E4M3 or format.granularity != "block":
            other = "gguf" if format.family == "ggml" else "compressed-tensors or dense"
            return f"fp8 has no {format.name}, only fp8-e4m3-b128 (the target {other} may take it)"
        if not tensor.linear:
            return None  # the base class has the words
        if tensor.role.kind == "head":
            return "the head: clients never look for a quantized one here"
        if tensor.rows % BLOCK or tensor.columns % BLOCK:
            return (
                f"{tensor.rows} × {tensor.columns} are no multiples of {BLOCK}: transformers would decode the edges "
                "wrongly; the target compressed-tensors takes it"
            )
        return None

    def refuses_inputs(self, format: Format, inputs: str) -> str | None:
        if inputs in (PLAIN, DYNAMIC):  # clients do the one thing whatever they are told
            return None
        return "fp8 has scales per block, and clients take no static inputs with them"

    def objections(self, assignments: Assignments) -> Iterable[Objection]:
        return unlike(assignments, alike=True)

    def pieces(self, tensor: OutputTensor, format: Format) -> tuple[StoredTensor, ...]:
        assert isinstance(format, Fp8)
        down, across = format.scales_shape(tensor.shape)
        return (
            StoredTensor(tensor.name, E4M3, (tensor.rows, tensor.columns), tensor.numel),
            StoredTensor(f"{tensor.name}_scale_inv", "F32", (down, across), 4 * down * across),
        )

    def put(
        self, tensor: OutputTensor, format: Format, quantized: Quantized, start: int, stop: int
    ) -> Iterator[tuple[str, int, memoryview | bytes]]:
        assert isinstance(format, Fp8)
        across = format.scales_shape(tensor.shape)[1]
        yield tensor.name, start * tensor.columns, data_of(quantized.parts["values"])
        yield f"{tensor.name}_scale_inv", 4 * (start // BLOCK) * across, data_of(quantized.parts["scale"])

    def settings(self, assignments: Assignments, config: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "quantization_config": {
                "quant_method": "fp8",
                "fmt": "e4m3",
                "activation_scheme": "dynamic",
                "weight_block_size": [BLOCK, BLOCK],
                "modules_to_not_convert": left_out(assignments),
            }
        }
