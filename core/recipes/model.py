"""What a recipe is: strategies, rules, and the recipe itself, as frozen records. Matching lives in matching.py, TOML in
toml.py, presets in presets/."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

KEEP = "keep"


@dataclass(frozen=True)
class Strategy:
    """Format + method + parameters: "q4_k", "int4-g128+gptq", "q4_k(effort=exact)". Format "keep" leaves the tensor
    unquantized.

    params  (key, value) pairs in the method's declared order, only those that differ from the defaults
    """

    format: str
    method: str = "nearest"
    params: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        return spelled(self.format, self.method, self.params)


def spelled(base: str, method: str, params: tuple[tuple[str, Any], ...]) -> str:
    """The short spelling of a format or preset with what goes with it: "q4_k", "q4_k(effort=exact)",
    "int4-g128+hqq(p=0.5, refine_scale=false)". Nearest is the method that goes without saying."""
    text = base if method == "nearest" else f"{base}+{method}"
    if not params:
        return text
    words = (f"{k}={str(v).lower() if isinstance(v, bool) else v}" for k, v in params)
    return f"{text}({', '.join(words)})"


@dataclass(frozen=True)
class Match:
    """Which tensors a rule speaks of; every given condition must hold.

    name     glob over the whole name (`*.q_proj.weight`), "re:…" for a regular expression searched in it, "" for any.
             Both the checkpoint's name and the container's name are tried
    names    exact names (an assignment by hand), empty for any
    role     any of core.roles.ROLES
    dtype    any of these source dtypes, upper case
    layers   inclusive range of layers, None for any
    min_columns, min_numel, ndim   shape conditions, None for any
    """

    name: str = ""
    names: tuple[str, ...] = ()
    role: tuple[str, ...] = ()
    dtype: tuple[str, ...] = ()
    layers: tuple[int, int] | None = None
    ndim: int | None = None
    min_columns: int | None = None
    min_numel: int | None = None


@dataclass(frozen=True)
class Rule:
    """A pattern and what it gives: either a strategy or a preset's own decision.

    Exactly one of strategy and preset is set. With a preset, `method` and `params` apply to all it quantizes.
    """

    match: Match
    strategy: Strategy | None = None
    preset: str = ""
    method: str = "nearest"
    params: tuple[tuple[str, Any], ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Recipe:
    """Ordered rules, first match wins; what no rule matches is kept."""

    name: str = ""
    rules: tuple[Rule, ...] = ()
    comment: str = ""


@dataclass(frozen=True, slots=True)
class Resolved:
    """What the recipe decided for one output tensor.

    strategy   as asked after presets and fall-backs; format "keep" when kept
    rule       index of the rule that won, or −1 (no rule)
    rule_text  for people: "2 · *.q_proj.weight" or "Q4_K_M" or "kept"
    reason     why kept, or what the preset or shape changed ("columns 100: q4_k → q5_0"); "" when as asked
    fallback   the reason is a substitution the user should see as a badge
    """

    strategy: Strategy
    rule: int
    rule_text: str
    reason: str = ""
    fallback: bool = False
    extras: Mapping[str, Any] = field(default_factory=dict)
