"""Whether a strategy, a rule or a recipe makes sense, and the short spelling of strategies ("int4-g128+gptq",
"q4_k(effort=exact)").

Names come from people and files, so every complaint says where, what, and the closest thing that exists.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from core.errors import RecipeError
from core.parameters import check_parameters
from core.recipes.matching import compile_pattern
from core.recipes.model import KEEP, Match, Recipe, Rule, Strategy
from core.recipes.presets import PRESETS, get_preset
from core.recipes.spelling import suggest
from core.roles import ROLES
from core.tensors import DTYPES

SEE_FORMATS = "`formats` lists all of them"


def make_strategy(
    format: str, method: str = "nearest", params: Mapping[str, Any] | None = None, where: str = ""
) -> Strategy:
    """A strategy whose format, method and parameters exist and fit each other; only parameters that differ from their
    defaults are kept.

    raises  RecipeError
    """
    from core.formats import get_format

    if format == KEEP:
        if method != "nearest" or params:
            raise RecipeError("keep takes no method and no parameters", "leave them out", where)
        return Strategy(KEEP)
    try:
        known = get_format(format)
    except RecipeError as error:
        raise RecipeError(error.message, error.hint or SEE_FORMATS, where) from None
    if not known.encodable:
        raise RecipeError(f"{format} can be read, but not written", SEE_FORMATS, where)
    checked = check_method(method, params or {}, where)
    if method != "nearest" or checked:
        from core.methods import get_method

        chosen = get_method(method)
        why = chosen.misfit(known)
        if why:
            raise RecipeError(f"{method} does not go with {format}: {why}", "take another format or method", where)
        why = chosen.unsuited(known, dict(checked))
        if why:
            raise RecipeError(f"{format}: {why}", "leave the parameter out, or take another format", where)
    return Strategy(known.name, method, checked)


def check_method(method: str, params: Mapping[str, Any], where: str = "") -> tuple[tuple[str, Any], ...]:
    """The parameters in their declared order, without those at their defaults. Raises RecipeError."""
    from core.methods import get_method

    try:
        known = get_method(method)
    except RecipeError as error:
        raise RecipeError(error.message, error.hint, where) from None
    values = check_parameters(known.all_parameters, params, where)
    return tuple((p.key, values[p.key]) for p in known.all_parameters if values[p.key] != p.default)


def parse_strategy(text: str, where: str = "") -> Strategy:
    """ "q4_k", "int4-g128+gptq", "q4_k(effort=exact)" or "keep" as a strategy. Raises RecipeError."""
    name, method, params = split_choice(text, where)
    return make_strategy(name.lower(), method, params, where)


def split_choice(text: str, where: str = "") -> tuple[str, str, dict[str, Any]]:
    """A format or a preset, then its method and parameters: "Q4_K_M+hqq(p=0.5)" → ("Q4_K_M", "hqq", {"p": 0.5}).

    Without a plus the method is "nearest". Values are numbers, true, false, or words. Raises RecipeError.
    """
    head, bracket, rest = text.strip().partition("(")
    base, plus, method = head.partition("+")
    base, method, rest = base.strip(), method.strip().lower(), rest.rstrip()
    params: dict[str, Any] = {}
    sound = bool(base) and bool(method) == bool(plus) and rest.endswith(")") == bool(bracket)
    for word in filter(None, (w.strip() for w in rest.removesuffix(")").split(","))):
        key, equals, value = (part.strip() for part in word.partition("="))
        sound = sound and bool(key and equals and value) and key not in params
        params[key.lower()] = _value(value)
    if not sound or (bracket and not params):
        hint = "write format, format+method or format(parameter=value), like q4_k, q4_k+gptq or q4_k(effort=exact)"
        raise RecipeError(f"{text!r} is not a strategy", hint, where)
    return base, method or "nearest", params


def _value(word: str) -> bool | int | float | str:
    """A parameter's value as typed."""
    if word.lower() in ("true", "false"):
        return word.lower() == "true"
    for number in (int, float):
        with suppress(ValueError):
            return number(word)
    return word


def check_match(match: Match, where: str = "") -> None:
    """Raises RecipeError when a condition can never hold or a pattern does not compile."""
    if match.name:
        try:
            compile_pattern(match.name)
        except RecipeError as error:
            raise RecipeError(f"name {match.name!r}: {error.message}", error.hint, where) from None
    for role in match.role:
        if role not in ROLES:
            raise RecipeError(f"unknown role {role!r}", suggest(role, ROLES) or f"known: {', '.join(ROLES)}", where)
    for dtype in match.dtype:
        if not _is_dtype(dtype):
            raise RecipeError(f"unknown dtype {dtype!r}", suggest(dtype, _dtypes()) or "such as BF16, F16, Q8_0", where)
    if match.layers is not None and not 0 <= match.layers[0] <= match.layers[1]:
        raise RecipeError(f"layers {list(match.layers)} is empty", "write [first, last], counted from 0", where)
    for key in ("ndim", "min_columns", "min_numel"):
        value = getattr(match, key)
        if value is not None and value < 0:
            raise RecipeError(f"{key} is {value}, must be ≥ 0", where=where)


def check_rule(rule: Rule, where: str = "") -> None:
    """Raises RecipeError unless the rule has exactly one of strategy and preset, and both it and its match exist.

    Methods are checked where recipes are read and made (`make_strategy`); one that is missing here is a problem of the
    plan, so that a recipe can be looked at on a machine that cannot run it.
    """
    from core.formats import get_format

    check_match(rule.match, where)
    if (rule.strategy is None) == (not rule.preset):
        raise RecipeError("a rule gives either a strategy or a preset", 'such as strategy = "q4_k"', where)
    if rule.preset:
        preset = get_preset(rule.preset, where)
        if not preset.available:
            raise RecipeError(f"preset {preset.name}: {preset.unavailable}", SEE_FORMATS, where)
    elif rule.strategy is not None and rule.strategy.format != KEEP:
        try:
            known = get_format(rule.strategy.format)
        except RecipeError as error:
            raise RecipeError(error.message, error.hint or SEE_FORMATS, where) from None
        if not known.encodable:
            raise RecipeError(f"{known.name} can be read, but not written", SEE_FORMATS, where)


def check_recipe(recipe: Recipe) -> None:
    """Raises RecipeError naming the first rule that makes no sense."""
    for number, rule in enumerate(recipe.rules, 1):
        check_rule(rule, f"{recipe.name or 'recipe'}, rule {number}")


def known_names() -> list[str]:
    """Presets, then formats: what `load` takes besides a path."""
    from core.formats import FORMATS

    return [p.name for p in PRESETS] + [f.name for f in FORMATS]


def _dtypes() -> list[str]:
    from core.formats.ggml.types import GGML_TYPES

    return [*DTYPES, *(name for name in GGML_TYPES if name not in DTYPES)]


def _is_dtype(name: str) -> bool:
    return name in _dtypes()
