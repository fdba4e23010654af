"""Round to nearest: each weight takes the closest level of a grid fitted to the weights alone (or, where importance is
known and the format can use it, to the weights and how much each column matters).

How much work goes into the grid is the parameter `effort`: "exact" is the search a format is known by, so that GGML
types come out byte for byte as from llama.cpp; "best" goes on from there to a lower error, in the same format and
size; "auto" takes the one after which models stray less (KLD): best where there is one, but exact for IQ4_NL and
IQ4_XS. In a recipe: q4_k(effort=exact).

How far the levels of a uniform format reach is the parameter `range`; core/formats/uniform.py says what its values
mean. In a recipe: int4-g128(range=rmse), int8(range=percentile, percentile=99.99)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from core.context import SILENT, JobContext
from core.formats.base import BEST, EXACT, Format, Quantized
from core.formats.llm_int8 import LlmInt8
from core.formats.uniform import MINMAX, RANGES, Uniform
from core.methods.base import Method, Statistic
from core.parameters import Parameter

if TYPE_CHECKING:
    import torch

AUTO = "auto"
PERCENTILE = 99.9


def as_fitted(format: Format, params: Mapping[str, Any]) -> Format:
    """The format with its range found as the method's parameters say. Same name, same bytes of storage."""
    chosen = params.get("range", MINMAX)
    if chosen == MINMAX or not isinstance(format, Uniform):
        return format
    return replace(format, range=chosen, percentile=params.get("percentile", PERCENTILE))


class Nearest(Method):
    name: ClassVar[str] = "nearest"
    title: ClassVar[str] = "Round to nearest"
    help: ClassVar[str] = (
        "The format's own fit, every weight on its nearest level. Needs no calibration; uses importance."
    )

    parameters: ClassVar[tuple[Parameter, ...]] = (
        Parameter(
            "effort",
            "choice",
            AUTO,
            "Effort",
            "exact: llama.cpp's own bytes; best: lower error, same size, more time; auto: the better one by KLD.",
            choices=(AUTO, EXACT, BEST),
        ),
        Parameter(
            "range",
            "choice",
            MINMAX,
            "Range",
            "Of integer formats: minmax: all weights; percentile: all but the outermost; rmse: lowest error, searched.",
            choices=RANGES,
        ),
        Parameter(
            "percentile",
            "float",
            PERCENTILE,
            "Percentile",
            "With range percentile: this share of a scale's weights, the others cut off at both ends.",
            50.0,
            100.0,
        ),
    )

    def unsuited(self, format: Format, params: Mapping[str, Any]) -> str | None:
        effort, chosen = params.get("effort", AUTO), params.get("range", MINMAX)
        if effort != AUTO and effort not in format.efforts:
            return f"no effort {effort} here, only {' and '.join(format.efforts)}"
        if chosen != "percentile" and params.get("percentile", PERCENTILE) != PERCENTILE:
            return "percentile goes with range=percentile"
        if chosen == MINMAX:
            return None
        if not isinstance(format, Uniform):
            return f"no range {chosen} here, only integer formats have one"
        return None if chosen in format.ranges else f"no range {chosen} here, only {' and '.join(format.ranges)}"

    def quantize(
        self,
        w: torch.Tensor,
        format: Format,
        stats: Mapping[Statistic, torch.Tensor],
        params: Mapping[str, Any],
        ctx: JobContext = SILENT,
    ) -> Quantized:
        ctx.check()
        effort = params.get("effort", AUTO)
        effort = format.default_effort if effort == AUTO else effort
        fitted, remark = as_fitted(format, params), ""
        absmax = stats.get(Statistic.ABSMAX)
        if absmax is not None and isinstance(fitted, LlmInt8):
            fitted, remark = fitted.by_activations(absmax)
        done = fitted.quantize(w, stats.get(Statistic.IMPORTANCE), effort)
        done.fallbacks += (remark,) if remark else ()
        return done
