"""Presets that give every Linear of the transformer one format and keep head, embedding and norms: what publishers of
safetensors checkpoints do, under the names of compressed-tensors."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from core.recipes.presets.base import KEPT, Choice, Preset
from core.recipes.protect import protections

if TYPE_CHECKING:
    from core.targets.base import Outline

_KEPT_ROLES = ("head", "embedding")


def choose(format: str, outline: Outline, importance: bool) -> list[Choice]:
    """The format for every Linear weight but the head's."""
    given = Choice(format)
    choices = []
    for tensor, why in zip(outline.tensors, protections(outline), strict=True):
        if why:
            choices.append(KEPT)
        elif tensor.role.kind in _KEPT_ROLES:
            choices.append(Choice("keep", tensor.role.kind))
        elif not tensor.linear:
            choices.append(Choice("keep", "not a Linear weight"))
        else:
            choices.append(given)
    return choices


def _preset(name: str, format: str, title: str, help: str) -> Preset:
    return Preset(name, title, help, "compressed-tensors", "compressed-tensors", (format,), partial(choose, format))


LINEARS: tuple[Preset, ...] = (
    _preset(
        "W4A16",
        "int4-g128",
        "4-bit integers, groups of 128",
        "Symmetric int4 for every Linear, head and embedding kept; what vLLM serves fastest.",
    ),
    _preset(
        "W4A16_ASYM",
        "int4-g128-asym",
        "4-bit integers with zero points, groups of 128",
        "Asymmetric int4 for every Linear, head and embedding kept.",
    ),
    _preset(
        "W8A16",
        "int8",
        "8-bit integers, one scale per row",
        "Symmetric int8 for every Linear, head and embedding kept; near lossless.",
    ),
)
