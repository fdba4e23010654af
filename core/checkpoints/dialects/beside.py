"""Quantization settings in a file of their own: folders from before config.json had a place for them, by AutoGPTQ and
AutoAWQ."""

from __future__ import annotations

import os
from typing import Any

from core.checkpoints.base import Checkpoint
from core.checkpoints.dialects.base import quantization_of
from core.checkpoints.huggingface import inside
from core.checkpoints.jsontext import parse_object
from core.checkpoints.mapped import read_small

_MAX_BYTES = 1 << 24
# File → the method it speaks of when it does not say.
_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq"}


def quantization_beside(checkpoint: Checkpoint) -> dict[str, Any]:
    """What such a file says, with its quant_method; {} when config.json speaks itself, when no weights are packed, or
    when there is no such file.

    raises  CheckpointError, CorruptFile
    """
    if quantization_of(checkpoint.config) or not any(name.endswith(".qweight") for name in checkpoint.tensors):
        return {}
    folder = checkpoint.folder()
    for name, method in _FILES.items():
        if os.path.lexists(folder / name):
            path = inside(folder, name, folder)
            return {"quant_method": method} | parse_object(read_small(path, _MAX_BYTES, name), path, name)
    return {}
