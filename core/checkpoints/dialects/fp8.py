"""FP8 in the plain Hugging Face form, as DeepSeek and Qwen publish it: `X.weight` in 8-bit floats and
`X.weight_scale_inv`, which is a multiplier despite its name, per block of 128 × 128 or another size. Older files per
tensor call it `X.weight_scale`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from core.checkpoints.base import Checkpoint
from core.checkpoints.dialects.base import Dialect, QuantizedWeight, quantization_of
from core.checkpoints.dialects.blocks import VALUES, block_floats

_SCALES = ("weight_scale_inv", "weight_scale")
# Numbers about what comes into the layer, which say nothing of the weight.
_OF_INPUTS = ("activation_scale", "input_scale")


class Fp8Dialect(Dialect):
    """Blocks of any size, edges smaller; one scale per row or tensor."""

    name: ClassVar[str] = "fp8"

    def speaks(self, config: Mapping[str, Any]) -> bool:
        return quantization_of(config).get("quant_method") == "fp8"

    def weights(self, checkpoint: Checkpoint) -> Mapping[str, QuantizedWeight]:
        tensors = checkpoint.tensors
        block = quantization_of(checkpoint.config).get("weight_block_size")
        sound = isinstance(block, list) and len(block) == 2 and all(type(n) is int and n > 0 for n in block)
        asked = (block[0], block[1]) if isinstance(block, list) and sound else None
        found: dict[str, QuantizedWeight] = {}
        for name, info in tensors.items():
            if info.dtype not in VALUES or not name.endswith(".weight"):
                continue
            stem = name.removesuffix(".weight")
            scale = next((f"{stem}.{part}" for part in _SCALES if f"{stem}.{part}" in tensors), "")
            if scale:  # without one the numbers stand for themselves
                silent = tuple(f"{stem}.{part}" for part in _OF_INPUTS if f"{stem}.{part}" in tensors)
                where = f"{checkpoint.path}: {stem}"
                found[name] = block_floats(tensors, name, scale, asked, where, silent)
        return found
