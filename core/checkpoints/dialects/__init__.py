"""How quantized folders are read: the dialects' registry. Importing it costs no torch."""

from __future__ import annotations

from core.checkpoints.base import Checkpoint
from core.checkpoints.dialects.awq import AwqDialect
from core.checkpoints.dialects.base import Dialect, QuantizedCheckpoint, QuantizedWeight, quantization_of
from core.checkpoints.dialects.beside import quantization_beside
from core.checkpoints.dialects.bitsandbytes import BitsAndBytesDialect
from core.checkpoints.dialects.compressed_tensors import CompressedTensorsDialect
from core.checkpoints.dialects.fp8 import Fp8Dialect
from core.checkpoints.dialects.gptq import GptqDialect
from core.checkpoints.dialects.mlx import MlxDialect
from core.checkpoints.dialects.torchao import TorchAoDialect

DIALECTS: tuple[Dialect, ...] = (
    CompressedTensorsDialect(),
    GptqDialect(),
    AwqDialect(),
    Fp8Dialect(),
    BitsAndBytesDialect(),
    TorchAoDialect(),
    MlxDialect(),
)


def as_weights(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint itself, or its view with weights in place of pieces where a dialect in DIALECTS speaks of it.

    raises  CorruptFile, UnsupportedFormat (the checkpoint is closed then)
    """
    try:
        beside = quantization_beside(checkpoint)
        if beside:
            checkpoint.config = {**(checkpoint.config or {}), "quantization_config": beside}
        config = checkpoint.config or {}
        dialect = next((d for d in DIALECTS if d.speaks(config)), None)
        if dialect is None:
            return checkpoint
        weights = dialect.weights(checkpoint)
        return QuantizedCheckpoint(checkpoint, dialect.name, weights) if weights else checkpoint
    except BaseException:
        checkpoint.close()
        raise


def unread_quantization(checkpoint: Checkpoint) -> str:
    """The dialect in which the weights are stored quantized and which is not undone on reading, or ""."""
    if isinstance(checkpoint, QuantizedCheckpoint):
        return ""
    found = quantization_of(checkpoint.config)
    return str(found.get("quant_method") or "an unnamed method") if found else ""


__all__ = [
    "DIALECTS",
    "Dialect",
    "QuantizedCheckpoint",
    "QuantizedWeight",
    "as_weights",
    "quantization_of",
    "unread_quantization",
]
