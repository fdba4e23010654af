"""Presets that change the float type and quantize nothing. Norms and other small tensors follow where the container
lets them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from core.recipes.presets.base import Choice, Preset

if TYPE_CHECKING:
    from core.kinds import Shared
    from core.targets.base import Outline


def choose(format: str, outline: Outline, importance: bool) -> Shared[Choice]:
    """The format for every tensor."""
    return outline.kinds.share([Choice(format)] * len(outline.kinds))


def _preset(name: str, title: str, help: str) -> Preset:
    given = name.lower()
    return Preset(name, title, help, "dense", "", (given,), partial(choose, given))


DENSE: tuple[Preset, ...] = (
    _preset("F32", "32-bit float", "Everything in 32 bits; holds any source without loss."),
    _preset("BF16", "16-bit brain float", "Everything in bfloat16; what most models are published in."),
    _preset("F16", "16-bit float", "Everything in half precision; more digits than BF16, less range."),
)
