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
from typing import TYPE_CHECKING, Any, ClassVar

from core.context import SILENT, JobContext
from core.formats.base import Format, Quantized
from core.formats.llm_int8 import LlmInt8
from core.formats.uniform import MINMAX, Uniform
from core.methods.base import Method, Statistic
from core.methods.options import AUTO, EFFORT, PERCENTILE, RANGE, as_fitted, effort_of, no_such_effort
from core.parameters import Parameter

if TYPE_CHECKING:
    import torch


class Nearest(Method):
    name: ClassVar[str] = "nearest"
    title: ClassVar[str] = "Round to nearest"
    help: ClassVar[str] = (
        "The format's own fit, every weight on its nearest level. Needs no calibration; uses importance."
    )

    parameters: ClassVar[tuple[Parameter, ...]] = (
        EFFORT,
        RANGE,
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
        chosen, unknown = params.get("range", MINMAX), no_such_effort(format, params)
        if unknown:
            return unknown
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
        effort = effort_of(format, params.get("effort", AUTO))
        fitted, remark = as_fitted(format, params), ""
        absmax = stats.get(Statistic.ABSMAX)
        if absmax is not None and isinstance(fitted, LlmInt8):
            fitted, remark = fitted.by_activations(absmax)
        done = fitted.quantize(w, stats.get(Statistic.IMPORTANCE), effort)
        done.fallbacks += (remark,) if remark else ()
        return done
