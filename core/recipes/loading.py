"""From what a person types to a recipe: a preset, a format, either with a method or parameters behind it, or a recipe
file."""

from __future__ import annotations

from pathlib import Path

from core.errors import RecipeError
from core.recipes.checking import SEE_FORMATS, check_method, known_names, make_strategy, split_choice
from core.recipes.model import Match, Recipe, Rule, spelled
from core.recipes.presets import PRESETS, Preset
from core.recipes.spelling import suggest

# A recipe that names 100,000 tensors by hand has a few MiB.
_LARGEST_FILE = 64 << 20


def load(text: str) -> Recipe:
    """The recipe that `--recipe` names.

    text    "Q4_K_M" (preset), "q4_k" (that format for every tensor it fits), either with "+method" and
            "(parameter=value, …)" behind it, or a path to TOML. Case counts only where a preset and a format differ in
            nothing else: Q4_0 is llama.cpp's mixture, with its 6-bit head, and q4_0 the format alone
    raises  RecipeError with the closest names
    """
    if _looks_like_path(text):
        return load_file(Path(text))
    base, method, given = split_choice(text, "recipe")
    preset = _preset(base)
    if preset is not None:
        if not preset.available:
            raise RecipeError(f"preset {preset.name}: {preset.unavailable}", SEE_FORMATS)
        params = check_method(method, given, text)
        name = spelled(preset.name, method, params)
        return Recipe(name, (Rule(Match(), preset=preset.name, method=method, params=params),), preset.title)
    if not _is_format(base.lower()):
        close = suggest(base, known_names())
        hint = (
            f"{close} {SEE_FORMATS}" if close else f"give a preset, a format, or a path to a .toml file; {SEE_FORMATS}"
        )
        raise RecipeError(f"unknown recipe {text!r}", hint)
    strategy = make_strategy(base.lower(), method, given, text)
    return Recipe(str(strategy), (Rule(Match(), strategy),), "every tensor that fits")


def load_file(path: Path) -> Recipe:
    """A recipe file. Raises RecipeError: unreadable, not TOML, or not a recipe of ours."""
    from core.recipes.toml import loads

    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise RecipeError(
            f"cannot be read: {error.strerror or error}", "give a preset, or a .toml file", path
        ) from error
    if len(content) > _LARGEST_FILE:
        raise RecipeError("larger than any recipe", "is it a checkpoint?", path)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(f"not UTF-8 at byte {error.start}", "save it as UTF-8", path) from None
    return loads(text, path)


def _looks_like_path(text: str) -> bool:
    return text.lower().endswith(".toml") or "/" in text or "\\" in text


def _preset(name: str) -> Preset | None:
    """Spelled exactly so; else, unless it is a format, in any case."""
    exact = next((p for p in PRESETS if p.name == name), None)
    if exact is not None or _is_format(name):
        return exact
    return next((p for p in PRESETS if p.name.lower() == name.lower()), None)


def _is_format(name: str) -> bool:
    from core.formats import get_format

    try:
        get_format(name)
    except RecipeError:
        return False
    return True
