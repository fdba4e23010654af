"""The contract of a method: how codes are chosen inside a format's grid."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from core.calibration.statistics import Statistic
from core.context import SILENT, JobContext
from core.formats.base import Format, Quantized
from core.parameters import INPUTS, Parameter

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class Consumer:
    """A matrix whose inputs can be scaled, with the rest of its kind.

    w       float32 [rows, columns]
    stats   of its inputs; tokens: how many these are
    """

    w: torch.Tensor
    format: Format
    stats: Mapping[Statistic, torch.Tensor]
    tokens: int


@dataclass(frozen=True, eq=False)
class Scaling:
    """Scales for the inputs of consumers: float32 [columns], all ones where nothing is gained. The errors of their
    outputs, relative to the unscaled one's, where the method has measured it: None if not."""

    scales: torch.Tensor
    error: float | None = None


class Method(ABC):
    """One way of choosing codes. METHODS in core/methods/__init__.py lists them."""

    name: ClassVar[str]
    title: ClassVar[str]
    help: ClassVar[str]
    needs: ClassVar[frozenset[Statistic]] = frozenset()
    # Used as well, where they could be gathered.
    uses: ClassVar[frozenset[Statistic]] = frozenset()
    # What it moves scales into, before it quantizes: "norm", "matrix" (core/calibration/folding.py).
    folds: ClassVar[frozenset[str]] = frozenset()
    parameters: ClassVar[tuple[Parameter, ...]] = ()

    @property
    def all_parameters(self) -> tuple[Parameter, ...]:
        """What a strategy with this method may set: the method's own, then what the container is told about inputs."""
        return (*self.parameters, INPUTS)

    def given(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """A value for each of the method's own parameters: what is set, else the default."""
        return {p.key: params.get(p.key, p.default) for p in self.parameters}

    def misfit(self, format: Format) -> str | None:
        """Why the method makes no sense on this format, or None."""
        return None

    def unsuited(self, format: Format, params: Mapping[str, Any]) -> str | None:
        """Why these values of the method's parameters make no sense on a format that the method takes, or None."""
        return None

    def doubt(self, format: Format, params: Mapping[str, Any]) -> str | None:
        """Why what comes out is likely to be poor, or None."""
        return None

    def too_large(self, columns: int) -> str | None:
        """Why the method does not take a matrix of so many columns, or None."""
        return None

    def forget(self) -> None:
        """Frees what was kept from one slice to the next; called when a run is over."""

    def scaling(
        self,
        consumers: Sequence[Consumer],
        tied: torch.Tensor | None,
        params: Mapping[str, Any],
        ctx: JobContext = SILENT,
    ) -> Scaling:
        """Scales for the inputs that consumers share. Only for a method with `folds`.

        tied  int64 [columns]: inputs of the same number must have the same scale; None: each may have its own
        """
        raise NotImplementedError(f"{self.name} moves no scales")

    @abstractmethod
    def quantize(
        self,
        w: torch.Tensor,
        format: Format,
        stats: Mapping[Statistic, torch.Tensor],
        params: Mapping[str, Any],
        ctx: JobContext = SILENT,
    ) -> Quantized:
        """Quantized rows of w, floating [rows, columns], on w's device. Calls ctx.check() between column batches."""
