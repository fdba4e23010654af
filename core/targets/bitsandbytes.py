"""A Hugging Face folder in bitsandbytes' form, which transformers loads as it is: NF4 and FP4 with or without nested
statistics, or the 8-bit weights of LLM.int8().

4 bit, per Linear `X`: X.weight uint8 [⌈weights/2⌉, 1], X.weight.absmax float32 [blocks] (uint8 when nested),
X.weight.quant_map float32 [16], nested also X.weight.nested_absmax float32 [⌈blocks/256⌉] and
X.weight.nested_quant_map float32 [256], and X.weight.quant_state.bitsandbytes__nf4 (or __fp4), a JSON object as bytes.
8 bit: X.weight int8 [out, in] and X.SCB float32 [out].

The JSON of nested statistics holds their offset, a number that is known only when the weights have been read; spaces
after the object fill it up to a length that is known before.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from core.formats.base import Format, Quantized
from core.formats.bnb import BLOCK, FP4, NESTED, NF4, Bnb4
from core.formats.llm_int8 import LlmInt8
from core.targets.assignments import Assignments
from core.targets.base import COMPARED, Assignment, Objection, OutputTensor, StoredTensor, Verified
from core.targets.folder import QuantizedFolder, left_out
from core.targets.plain import data_of, float_dtype
from core.tensors import DTYPES

# Room for any float32 as Python writes it: sign, 17 digits, point, exponent.
_NUMBER = 26


class BitsAndBytes(QuantizedFolder):
    """Linear weights; embeddings, the head and the rest as they are."""

    name = "bitsandbytes"
    title = "bitsandbytes folder"
    help = "NF4, FP4 or LLM.int8() weights as bitsandbytes keeps them (nf4, nf4-dq, fp4, fp4-dq, llm-int8)."
    verified = (
        Verified("transformers", ("nf4*", "fp4*", "llm-int8"), COMPARED, "tests/core/targets/test_bitsandbytes.py"),
        Verified("bitsandbytes", ("nf4*", "fp4*"), COMPARED, "tests/core/targets/test_bitsandbytes.py"),
    )

    def carries(self, format: Format, tensor: OutputTensor) -> str | None:
        if isinstance(format, Bnb4) or (isinstance(format, LlmInt8) and not format.outliers):
            if tensor.role.kind == "head":
                return "the head: transformers never looks for a quantized one here"
            return None
        if isinstance(format, LlmInt8):
            return f"bitsandbytes has no place for outlier columns; llm-int8 is its file, dense takes {format.name}"
        other = "gguf" if format.family == "ggml" else "compressed-tensors or dense"
        return (
            f"bitsandbytes has no {format.name}; its formats are nf4, fp4 and llm-int8 (the target {other} may take it)"
        )

    def objections(self, assignments: Assignments) -> Iterable[Objection]:
        """transformers builds all its modules from one quantization_config. The CPU fault was seen with 0.50.2, where
        columns were 80 or 96."""
        first = next((a for a in assignments if isinstance(a.format, Bnb4 | LlmInt8)), None)
        if first is None:
            return

        def odd(a: Assignment) -> bool:
            return isinstance(a.format, Bnb4) and bool(a.tensor.columns % BLOCK)

        def other(a: Assignment) -> bool:
            return isinstance(a.format, Bnb4 | LlmInt8) and a.format.name != first.format.name

        for a in assignments.where(lambda a: odd(a) or other(a)):
            if odd(a):
                yield Objection(
                    "warning",
                    a.tensor.name,
                    f"columns {a.tensor.columns} are no multiple of {BLOCK}: the file is right, and bitsandbytes 0.50 "
                    "decodes such rows wrongly on a CPU",
                    "leave it unquantized if CPUs are to run it",
                )
            if other(a):
                yield Objection(
                    "error",
                    a.tensor.name,
                    f"is {a.format.name}, {first.tensor.name} is {first.format.name}: a bitsandbytes folder "
                    "holds one quantized format",
                    "give all quantized tensors the same format, or choose another target",
                )

    def pieces(self, tensor: OutputTensor, format: Format) -> tuple[StoredTensor, ...]:
        name, rows, columns = tensor.name, tensor.rows, tensor.columns
        if isinstance(format, LlmInt8):
            scale = f"{name.removesuffix('.weight')}.SCB"
            return (
                StoredTensor(name, "I8", (rows, columns), rows * columns),
                StoredTensor(scale, "F32", (rows,), 4 * rows),
            )
        assert isinstance(format, Bnb4)
        codes, blocks = -(-rows * columns // 2), -(-rows * columns // BLOCK)
        absmax = (
            StoredTensor(f"{name}.absmax", "U8", (blocks,), blocks)
            if format.nested
            else StoredTensor(f"{name}.absmax", "F32", (blocks,), 4 * blocks)
        )
        found = [StoredTensor(name, "U8", (codes, 1), codes), absmax]
        if format.nested:
            outer = -(-blocks // NESTED)
            found.append(StoredTensor(f"{name}.nested_absmax", "F32", (outer,), 4 * outer))
            found.append(StoredTensor(f"{name}.nested_quant_map", "F32", (256,), 1024))
        found.append(StoredTensor(f"{name}.quant_map", "F32", (16,), 64))
        state = len(_state(tensor, format, 0.0))
        found.append(StoredTensor(_state_name(name, format), "U8", (state,), state))
        return tuple(found)

    def put(
        self, tensor: OutputTensor, format: Format, quantized: Quantized, start: int, stop: int
    ) -> Iterator[tuple[str, int, memoryview | bytes]]:
        import torch

        name, parts, first = tensor.name, quantized.parts, start * tensor.columns
        if isinstance(format, LlmInt8):
            yield name, first, data_of(parts["codes"])
            yield f"{name.removesuffix('.weight')}.SCB", 4 * start, data_of(parts["absmax"])
            return
        assert isinstance(format, Bnb4)
        yield name, first // 2, data_of(parts["codes"])
        yield f"{name}.absmax", first // BLOCK * (1 if format.nested else 4), data_of(parts["absmax"])
        if start:
            return
        offset = 0.0
        if format.nested:
            from core.formats.bnb import dynamic_map

            offset = float(parts["nested_offset"].reshape(()))
            yield f"{name}.nested_absmax", 0, data_of(parts["nested_absmax"])
            yield f"{name}.nested_quant_map", 0, data_of(dynamic_map(torch.device("cpu")))
        levels = NF4 if format.kind == "nf4" else FP4
        yield f"{name}.quant_map", 0, data_of(torch.tensor(levels, dtype=torch.float32))
        yield _state_name(name, format), 0, _state(tensor, format, offset)

    def settings(self, assignments: Assignments, config: Mapping[str, Any]) -> dict[str, Any]:
        used = next(a.format for a in assignments.samples if isinstance(a.format, Bnb4 | LlmInt8))
        four = isinstance(used, Bnb4)
        found: dict[str, Any] = {
            "quant_method": "bitsandbytes",
            "load_in_4bit": four,
            "load_in_8bit": not four,
            "llm_int8_threshold": 6.0,
            "llm_int8_skip_modules": left_out(assignments),
        }
        if isinstance(used, Bnb4):
            floats = [a.tensor.dtype for a in assignments.samples if a.format is used]
            found |= {
                "bnb_4bit_quant_type": used.kind,
                "bnb_4bit_use_double_quant": used.nested,
                "bnb_4bit_compute_dtype": _torch_name(floats[0]),
                "bnb_4bit_quant_storage": "uint8",
            }
        return {"quantization_config": found}


def _torch_name(dtype: str) -> str:
    return DTYPES[float_dtype(dtype)].torch_name


def _state_name(name: str, format: Bnb4) -> str:
    return f"{name}.quant_state.bitsandbytes__{format.kind}"


def _state(tensor: OutputTensor, format: Bnb4, offset: float) -> bytes:
    """The JSON that bitsandbytes keeps beside 4-bit weights; as long for one offset as for any other."""
    state: dict[str, Any] = {
        "quant_type": format.kind,
        "blocksize": BLOCK,
        "dtype": _torch_name(tensor.dtype),
        "shape": [tensor.rows, tensor.columns],
    }
    if not format.nested:
        return json.dumps(state).encode()
    state |= {"nested_blocksize": NESTED, "nested_dtype": "float32", "nested_offset": 0}
    room = len(json.dumps(state)) + _NUMBER
    state["nested_offset"] = offset
    return json.dumps(state).encode().ljust(room)
