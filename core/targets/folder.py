"""A Hugging Face folder whose Linear weights are quantized in some library's dialect: what all such targets share.

Names, shards, side files and plain tensors are settled here; a dialect adds which formats it carries, the tensors it
stores a weight as, the bytes of each, and what config.json says about them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from core.checkpoints.base import Checkpoint
from core.errors import TargetError
from core.formats.base import Format, Quantized
from core.targets import safetensors
from core.targets.assignments import Assignments, named
from core.targets.base import Assignment, Layout, Outline, OutputTensor, StoredTensor, Target
from core.targets.dense import refuse_complex
from core.targets.modules import TiedHead, own_outline
from core.targets.plain import Verbatim, data_of, kept_as, real
from core.targets.sides import carried
from core.tensors import DTYPES

# Files of at most this size, as transformers splits them.
SHARD_BYTES = 5_000_000_000
_BARE_NOTE = (
    "there is no config.json beside the weights: the new one holds the quantization settings only, "
    "so add the model's own"
)
# What config.json may say of an earlier quantization.
_SETTINGS = ("quantization_config", "quantization")


class QuantizedFolder(Target):
    """Source names, side files carried along, plain tensors as they are.

    embeddings  whether clients can read embeddings (and a head tied to one) quantized
    """

    folder = True
    embeddings: ClassVar[bool] = False

    @abstractmethod
    def carries(self, format: Format, tensor: OutputTensor) -> str | None:
        """Why the dialect has no place for this format (or shape), or None. Asked for quantizing formats only."""

    @abstractmethod
    def pieces(self, tensor: OutputTensor, format: Format) -> tuple[StoredTensor, ...]:
        """The stored tensors of one quantized weight, exact."""

    @abstractmethod
    def put(
        self, tensor: OutputTensor, format: Format, quantized: Quantized, start: int, stop: int
    ) -> Iterator[tuple[str, int, memoryview | bytes]]:
        """For rows start … stop of a quantized weight: (stored name, byte offset inside it, bytes)."""

    @abstractmethod
    def settings(self, assignments: Assignments, config: Mapping[str, Any]) -> dict[str, Any]:
        """What goes into config.json beside the model's own keys (config). Asked only when a weight is quantized."""

    def sides(self, settings: Mapping[str, Any]) -> dict[str, bytes]:
        """Further small files that clients look for. settings is what went into config.json."""
        return {}

    def metadata(self, assignments: Assignments) -> Mapping[str, str]:
        """`__metadata__` of every safetensors file."""
        return safetensors.METADATA

    def outline(self, checkpoint: Checkpoint) -> Outline:
        if checkpoint.kind == "gguf":
            raise TargetError(
                f"a GGUF has neither the names nor the config.json that {self.name} needs",
                "open the original Hugging Face folder, or write gguf or dense",
                checkpoint.path,
            )
        refuse_complex(checkpoint)
        return own_outline(checkpoint, (_BARE_NOTE,) if checkpoint.config is None else ())

    def refuses(self, format: Format, tensor: OutputTensor) -> str | None:
        if format.family == "dense":
            return None if real(tensor.dtype) else f"{tensor.dtype} holds no real numbers"
        return self.carries(format, tensor) or self._unfit(tensor)

    def _unfit(self, tensor: OutputTensor) -> str | None:
        """Why clients look for no quantized weight here, or None."""
        if isinstance(tensor.source, TiedHead):
            return "tied to the embedding, which stays unquantized" if not self.embeddings else "tied to the embedding"
        if tensor.linear:
            return None
        if tensor.role.kind == "embedding":
            return None if self.embeddings else "an embedding: only Linear weights are quantized here"
        if len(tensor.shape) == 3 and "expert" in tensor.name:
            return "stacked experts: clients want one Linear weight per expert"
        if len(tensor.shape) < 2:
            return "1-D: only Linear weights are quantized here"
        return "not the weight of a Linear"

    def keeps(self, tensor: OutputTensor) -> Format:
        return kept_as(tensor.dtype)

    def stored(self, assignment: Assignment) -> tuple[StoredTensor, ...]:
        tensor, fmt = assignment.tensor, assignment.format
        if not quantizes(fmt):
            return (StoredTensor(tensor.name, fmt.name.upper(), tensor.shape, fmt.nbytes(tensor.shape)),)
        return self.pieces(tensor, fmt)

    def layout(
        self,
        checkpoint: Checkpoint,
        outline: Outline,
        assignments: Assignments,
        label: str = "",
        shard_bytes: int | None = None,
    ) -> Layout:
        tensors = named(assignments, self)
        sides = carried(checkpoint)
        config = {k: v for k, v in (checkpoint.config or {}).items() if k not in _SETTINGS}
        if any(quantizes(a.format) for a in assignments.samples):
            settings = self.settings(assignments, config)
            config.update(settings)
            sides.update(self.sides(settings))
        if config:
            sides["config.json"] = safetensors.json_bytes(config)
        file_of = safetensors.shards(tensors, shard_bytes or SHARD_BYTES)
        return safetensors.lay_out(tensors, file_of, sides, self.metadata(assignments))

    def store(
        self, assignment: Assignment, quantized: Quantized, start: int, stop: int
    ) -> Iterator[tuple[str, int, memoryview | bytes]]:
        tensor, fmt = assignment.tensor, assignment.format
        if quantizes(fmt):
            yield from self.put(tensor, fmt, quantized, start, stop)
            return
        width = DTYPES[fmt.name.upper()].bits // 8
        yield tensor.name, start * tensor.columns * width, data_of(quantized.parts["values"])


def quantizes(format: Format) -> bool:
    """Whether a weight in this format is stored as codes, not as plain numbers."""
    return format.family != "dense" and not isinstance(format, Verbatim)


def module_of(tensor: OutputTensor) -> str:
    """The Linear module whose weight this is: "model.layers.0.mlp.up_proj"."""
    return tensor.name.removesuffix(".weight")


def left_out(assignments: Assignments) -> list[str]:
    """The modules that stay unquantized though they are Linear; with the head, also where it is tied and not stored."""
    found = [module_of(a.tensor) for a in assignments.where(lambda a: a.tensor.linear and not quantizes(a.format))]
    return found if any(a.tensor.role.kind == "head" for a in assignments.samples) else [*found, "lm_head"]
