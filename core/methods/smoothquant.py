"""SmoothQuant: outliers of the inputs are moved into the weights, so that both can be rounded to 8 bits.

    s_j = max|x_j|^α / max|w_j|^(1−α)

Inputs are divided by s in the norm before the layers, weights multiplied; then weights are rounded to nearest. What
rounds the inputs is the container's business: by a scale that each token finds for itself, or one that is fixed from
the range that calibration saw.

Source: Xiao et al. 2022, arXiv:2211.10438. A column of zero weights takes the input's size alone, an input that was
never seen keeps its scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from core.calibration.statistics import Statistic
from core.context import SILENT, JobContext
from core.formats.base import Format, Quantized
from core.methods.base import Consumer, Method, Scaling
from core.methods.nearest import Nearest
from core.methods.scaling import evened, only_rounds, over_inputs
from core.parameters import Parameter

if TYPE_CHECKING:
    import torch

ALPHA = 0.5
_LEAST = 1e-5


class SmoothQuant(Method):
    name: ClassVar[str] = "smoothquant"
    title: ClassVar[str] = "SmoothQuant"
    help: ClassVar[str] = (
        "Moves outliers of the inputs into the weights, for 8-bit activations. Needs calibration; changes norms."
    )
    needs: ClassVar[frozenset[Statistic]] = frozenset({Statistic.ABSMAX})
    folds: ClassVar[frozenset[str]] = frozenset({"norm"})
    parameters: ClassVar[tuple[Parameter, ...]] = (
        Parameter(
            "alpha",
            "float",
            ALPHA,
            "Alpha",
            "How much of the outliers moves: 0 none, 1 all. Published: 0.85 for Llama 2 and 3, 0.8 for Mistral.",
            0.0,
            1.0,
        ),
    )

    def misfit(self, format: Format) -> str | None:
        return only_rounds(format)

    def scaling(
        self,
        consumers: Sequence[Consumer],
        tied: torch.Tensor | None,
        params: Mapping[str, Any],
        ctx: JobContext = SILENT,
    ) -> Scaling:
        import torch

        ctx.check()
        alpha = self.given(params)["alpha"]
        x = over_inputs(consumers, tied, lambda c: c.stats[Statistic.ABSMAX], largest=True)
        w = evened(torch.stack([c.w.abs().amax(0) for c in consumers]).amax(0), tied, largest=True)
        scales = x.clamp(min=_LEAST).pow(alpha) / torch.where(w > 0, w.clamp(min=_LEAST).pow(1 - alpha), 1.0)
        scales = scales.clamp(_LEAST, 1 / _LEAST)
        return Scaling(torch.where(x > 0, scales, 1.0))

    def quantize(
        self,
        w: torch.Tensor,
        format: Format,
        stats: Mapping[Statistic, torch.Tensor],
        params: Mapping[str, Any],
        ctx: JobContext = SILENT,
    ) -> Quantized:
        return Nearest().quantize(w, format, stats, {}, ctx)
