"""What several methods let a user set, declared once: damping, the effort that goes into grids, the range of integer
formats. Beside each parameter stands what becomes of its value. What one method alone has is declared in its own
module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from core.formats.base import BEST, EXACT, Format
from core.formats.uniform import MINMAX, RANGES, Uniform
from core.parameters import Parameter

# The effort after which models stray less (KLD): the format's own default.
AUTO = "auto"
PERCENTILE = 99.9

DAMP = Parameter(
    "damp", "float", 0.01, "Damping", "Share of the Hessian's mean diagonal that is added to it.", 0.0, 1.0
)
EFFORT = Parameter(
    "effort",
    "choice",
    AUTO,
    "Effort",
    "exact: llama.cpp's own bytes; best: lower error, same size, more time; auto: the better one by KLD.",
    choices=(AUTO, EXACT, BEST),
)
EFFORT_OF_GRIDS = replace(
    EFFORT, help="Of the grids: exact: llama.cpp's own search; best: a finer one; auto: the better one by KLD."
)
RANGE = Parameter(
    "range",
    "choice",
    MINMAX,
    "Range",
    "Of integer formats: minmax: all weights; percentile: all but the outermost; rmse: lowest error, searched.",
    choices=RANGES,
)
RANGE_SEARCHED = replace(RANGE, default="rmse")


def effort_of(format: Format, chosen: str) -> str:
    """The effort to fit the format's grids with, for a value of the parameter."""
    return format.default_effort if chosen == AUTO else chosen


def no_such_effort(format: Format, params: Mapping[str, Any]) -> str | None:
    """Why the format has no such effort, or None."""
    chosen = params.get("effort", AUTO)
    if chosen == AUTO or chosen in format.efforts:
        return None
    return f"no effort {chosen} here, only {' and '.join(format.efforts)}"


def as_fitted(format: Format, params: Mapping[str, Any]) -> Format:
    """The format with its range found as the method's parameters say. Same name, same bytes of storage."""
    chosen = params.get("range", MINMAX)
    if chosen == MINMAX or not isinstance(format, Uniform):
        return format
    return replace(format, range=chosen, percentile=params.get("percentile", PERCENTILE))


def with_range(format: Format, range: str) -> Format:
    """The format with this way of choosing the range, or its own where it has no such choice."""
    known = isinstance(format, Uniform) and range in format.ranges
    return as_fitted(format, {"range": range}) if known else format
