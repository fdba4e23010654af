"""Presets by name: whole-model choices that people know from other tools. One file per family; PRESETS lists them."""

from __future__ import annotations

from core.errors import RecipeError
from core.recipes.presets.base import Choice, Preset
from core.recipes.presets.dense import DENSE
from core.recipes.presets.linears import LINEARS
from core.recipes.presets.llama_cpp import LLAMA_CPP
from core.recipes.spelling import suggest

PRESETS: tuple[Preset, ...] = (*LLAMA_CPP, *LINEARS, *DENSE)

__all__ = ["PRESETS", "Choice", "Preset", "get_preset"]


def get_preset(name: str, where: str = "") -> Preset:
    """The preset of that name in any case. Raises RecipeError with the closest names."""
    found = next((p for p in PRESETS if p.name.lower() == name.lower()), None)
    if found is None:
        names = [p.name for p in PRESETS]
        raise RecipeError(f"unknown preset {name!r}", suggest(name, names) or f"known: {', '.join(names)}", where)
    return found
