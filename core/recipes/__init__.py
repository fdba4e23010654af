"""Who gets what: rules, presets, and how they resolve.

load(text)                          preset, format[+method] or path → Recipe
resolve(recipe, outline, target)    one Resolved per output tensor
match_counts(recipe, outline)       (matched, won) per rule
parse_strategy("q4_k+gptq")         the short spelling of a strategy
core.recipes.toml                   recipe files
"""

from __future__ import annotations

from core.recipes.checking import check_recipe, make_strategy, parse_strategy
from core.recipes.loading import load, load_file
from core.recipes.matching import describe, is_shadowed, match_counts, winners
from core.recipes.model import KEEP, Match, Recipe, Resolved, Rule, Strategy
from core.recipes.presets import PRESETS, Preset, get_preset
from core.recipes.resolving import explain, resolve

__all__ = [
    "KEEP",
    "PRESETS",
    "Match",
    "Preset",
    "Recipe",
    "Resolved",
    "Rule",
    "Strategy",
    "check_recipe",
    "describe",
    "explain",
    "get_preset",
    "is_shadowed",
    "load",
    "load_file",
    "make_strategy",
    "match_counts",
    "parse_strategy",
    "resolve",
    "winners",
]
