"""Round to nearest: each weight takes the closest level of a grid fitted to the weights alone (or, where importance is
known and the format can use it, to the weights and how much each column matters)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from core.context import SILENT, JobContext
from core.formats.base import Format, Quantized
from core.methods.base import Method, Statistic

if TYPE_CHECKING:
    import torch


class Nearest(Method):
    name: ClassVar[str] = "nearest"
    title: ClassVar[str] = "Round to nearest"
    help: ClassVar[str] = (
        "The format's own fit, every weight on its nearest level. Needs no calibration; uses importance."
    )

    def quantize(
        self,
        w: torch.Tensor,
        format: Format,
        stats: Mapping[Statistic, torch.Tensor],
        params: Mapping[str, Any],
        ctx: JobContext = SILENT,
    ) -> Quantized:
        ctx.check()
        return format.quantize(w, stats.get(Statistic.IMPORTANCE))
