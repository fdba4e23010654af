"""What compressed-tensors has to know of a family of weights: its pieces, and its words for config.json."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from core.calibration.statistics import Statistic
from core.formats.base import Format, Quantized
from core.parameters import PLAIN
from core.targets.base import OutputTensor, StoredTensor

if TYPE_CHECKING:
    import torch

Pieces = Iterator[tuple[str, int, "memoryview | bytes"]]


class Storage(ABC):
    """One family of formats in this container. Instances hold no state; STORAGES in target.py lists them."""

    @abstractmethod
    def takes(self, format: Format) -> bool:
        """Whether the family is the format's."""

    def refuses_inputs(self, format: Format, inputs: str) -> str | None:
        """Why clients cannot be told to treat inputs so, or None. Never asked for PLAIN."""
        return None

    @abstractmethod
    def dialect(self, format: Format, inputs: str) -> str:
        """The package's word for this way of storing: "pack-quantized"."""

    @abstractmethod
    def weights(self, format: Format) -> dict[str, Any]:
        """What a config group says of the weights."""

    @abstractmethod
    def activations(self, format: Format, inputs: str) -> dict[str, Any] | None:
        """What a config group says of the inputs; None: they stay as they are."""

    @abstractmethod
    def pieces(self, tensor: OutputTensor, format: Format, inputs: str) -> tuple[StoredTensor, ...]:
        """The stored tensors of one weight, without those of static inputs."""

    @abstractmethod
    def put(
        self, tensor: OutputTensor, format: Format, inputs: str, quantized: Quantized, start: int, stop: int
    ) -> Pieces:
        """For rows start … stop: (stored name, byte offset inside it, bytes)."""

    def input_piece(self, tensor: OutputTensor, format: Format) -> StoredTensor:
        """The number that clients with static inputs need."""
        raise NotImplementedError(f"{format.name} has no static inputs")

    def input_scale(self, format: Format, statistics: Any) -> torch.Tensor:
        """That number, in the type it is stored in before rounding to it: float32 [1]."""
        raise NotImplementedError(f"{format.name} has no static inputs")


def args(kind: str, bits: int, strategy: str, *, symmetric: bool = True, **more: Any) -> dict[str, Any]:
    """QuantizationArgs as the package writes them. kind: "int" or "float"."""
    return {
        "num_bits": bits,
        "type": kind,
        "symmetric": symmetric,
        "strategy": strategy,
        "group_size": None,
        "dynamic": False,
        **more,
    }


def moving_absmax(statistics: Any) -> torch.Tensor:
    """float32 [1]: the larger end of the moving range of the inputs."""
    found: torch.Tensor = statistics[Statistic.RANGE].float().abs().amax().reshape(1)
    return found


def absmax(statistics: Any) -> torch.Tensor:
    """float32 [1]: the largest input that was seen."""
    found: torch.Tensor = statistics[Statistic.ABSMAX].float().amax().reshape(1)
    return found


def or_one(scale: torch.Tensor) -> torch.Tensor:
    """The scale, 1 where all inputs were zeros."""
    return scale.where((scale > 0) & scale.isfinite(), scale.new_ones(()))


def weight_only(inputs: str) -> bool:
    return inputs == PLAIN
