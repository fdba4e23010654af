"""Recipe files: TOML in, TOML out.

    quantbench = 1                      # version of this notation
    name = "small but careful"

    [[rule]]                            # in order, the first that matches wins
    role = ["v", "down"]
    layers = [0, 3]
    strategy = "q6_k"

    [[rule]]
    name = "*.o_proj.weight"            # or "re:…", or names = ["…", "…"]
    strategy = { format = "int4-g128", method = "gptq", damp = 0.02 }

    [[rule]]                            # no condition: all that is left
    preset = "Q4_K_M"

Reading is strict: a key we do not know, a value of another type or a format that does not exist is an error with file
and rule number, never skipped. Writing then reading gives the same recipe.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.errors import RecipeError
from core.recipes.checking import check_method, check_rule, make_strategy, split_choice
from core.recipes.model import Match, Recipe, Rule, Strategy
from core.recipes.presets import get_preset
from core.recipes.spelling import suggest

VERSION = 1

_TOP = ("quantbench", "name", "comment", "rule")
_CONDITIONS = ("name", "names", "role", "dtype", "layers", "ndim", "min_columns", "min_numel")
_RULE = (*_CONDITIONS, "strategy", "preset", "note")


def loads(text: str, where: str | Path = "recipe") -> Recipe:
    """The recipe a TOML text describes. Raises RecipeError naming `where` and the rule, counted from 1."""
    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        raise RecipeError(f"not TOML: {error}", where=where) from None
    _check_version(table, where)
    _only(table, _TOP, where)
    rules = table.get("rule", [])
    if not isinstance(rules, list) or not all(isinstance(rule, dict) for rule in rules):
        raise RecipeError("rule is not a list of tables", "begin each rule with [[rule]]", where)
    return Recipe(
        name=_text(table, "name", where),
        rules=tuple(_rule(rule, f"{where}, rule {number}") for number, rule in enumerate(rules, 1)),
        comment=_text(table, "comment", where),
    )


def dumps(recipe: Recipe) -> str:
    """TOML that `loads` turns back into an equal recipe."""
    lines = [f"quantbench = {VERSION}"]
    lines += [f"{key} = {_value(text)}" for key, text in (("name", recipe.name), ("comment", recipe.comment)) if text]
    for rule in recipe.rules:
        lines += ["", "[[rule]]", *(f"{key} = {_value(value)}" for key, value in _pairs(rule))]
    return "\n".join(lines) + "\n"


def _check_version(table: Mapping[str, Any], where: str | Path) -> None:
    if "quantbench" not in table:
        raise RecipeError("not a recipe of ours", f"its first line should be quantbench = {VERSION}", where)
    version = table["quantbench"]
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise RecipeError(f"quantbench is {version!r}, not a version", f"write quantbench = {VERSION}", where)
    if version > VERSION:
        hint = f"this program reads version {VERSION}; update it"
        raise RecipeError(f"written in version {version} of the recipe notation", hint, where)


def _rule(table: Mapping[str, Any], where: str) -> Rule:
    _only(table, _RULE, where)
    match = Match(
        name=_text(table, "name", where),
        names=_texts(table, "names", where),
        role=tuple(word.lower() for word in _texts(table, "role", where)),
        dtype=tuple(word.upper() for word in _texts(table, "dtype", where)),
        layers=_layers(table, where),
        ndim=_count(table, "ndim", where),
        min_columns=_count(table, "min_columns", where),
        min_numel=_count(table, "min_numel", where),
    )
    note = _text(table, "note", where)
    if ("strategy" in table) == ("preset" in table):
        raise RecipeError("a rule gives either a strategy or a preset", 'such as strategy = "q4_k"', where)
    if "strategy" in table:
        name, method, params = _choice(table["strategy"], "strategy", "format", where)
        rule = Rule(match, make_strategy(name.lower(), method, params, where), note=note)
    else:
        name, method, params = _choice(table["preset"], "preset", "name", where)
        preset = get_preset(name, where)
        rule = Rule(match, preset=preset.name, method=method, params=check_method(method, params, where), note=note)
    check_rule(rule, where)
    return rule


def _choice(value: Any, key: str, main: str, where: str) -> tuple[str, str, dict[str, Any]]:
    """ "base+method(parameter=value)" or {main = base, method = …, parameters} → base, method, parameters."""
    if isinstance(value, str):
        return split_choice(value, where)
    if not isinstance(value, dict):
        raise RecipeError(f"{key} is {_kind(value)}, not text or a table", f'write {key} = "…"', where)
    if main not in value:
        raise RecipeError(f"{key} has no {main}", f'write {key} = {{ {main} = "…", … }}', where)
    for word in (main, "method"):
        if not isinstance(value.get(word, ""), str):
            raise RecipeError(f"{key}.{word} is {_kind(value[word])}, not text", where=where)
    params = {k: v for k, v in value.items() if k not in (main, "method")}
    return value[main], value.get("method", "nearest").lower(), params


def _only(table: Mapping[str, Any], known: tuple[str, ...], where: str | Path) -> None:
    for key in table:
        if key not in known:
            hint = suggest(key, known) or f"known here: {', '.join(known)}"
            raise RecipeError(f"unknown key {key!r}", hint, where)


def _text(table: Mapping[str, Any], key: str, where: str | Path) -> str:
    value = table.get(key, "")
    if not isinstance(value, str):
        raise RecipeError(f"{key} is {_kind(value)}, not text", f'write {key} = "…"', where)
    return value


def _texts(table: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    value = table.get(key, [])
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise RecipeError(f"{key} is not a list of texts", f'write {key} = ["…", "…"]', where)
    if key in table and not value:
        raise RecipeError(f"{key} is an empty list", "leave it out to match all", where)
    return tuple(value)


def _count(table: Mapping[str, Any], key: str, where: str) -> int | None:
    value = table.get(key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise RecipeError(f"{key} is {_kind(value)}, not a whole number", where=where)
    return value


def _layers(table: Mapping[str, Any], where: str) -> tuple[int, int] | None:
    value = table.get("layers")
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        return value, value
    if not isinstance(value, list) or len(value) != 2 or any(type(item) is not int for item in value):
        raise RecipeError("layers is not a layer or a pair of layers", "write layers = [first, last], from 0", where)
    return value[0], value[1]


def _kind(value: Any) -> str:
    words = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "a table"}
    return words.get(type(value), "a date or time")


def _pairs(rule: Rule) -> list[tuple[str, Any]]:
    match = rule.match
    pairs = [(key, getattr(match, key)) for key in _CONDITIONS]
    pairs = [(key, value) for key, value in pairs if value is not None and value not in ((), "")]
    if rule.strategy is not None:
        pairs.append(("strategy", _spelled(rule.strategy)))
    else:
        named = Strategy(rule.preset, rule.method, rule.params)
        pairs.append(("preset", _spelled(named, "name")))
    if rule.note:
        pairs.append(("note", rule.note))
    return pairs


def _spelled(strategy: Strategy, main: str = "format") -> Any:
    if not strategy.params:
        return str(strategy)
    return {main: strategy.format, "method": strategy.method, **dict(strategy.params)}


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items()) + " }"
    items = [_value(item) for item in value]
    line = "[" + ", ".join(items) + "]"
    return line if len(line) <= 100 else "[\n" + "".join(f"  {item},\n" for item in items) + "]"


_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b", "\f": "\\f"}


def _quoted(text: str) -> str:
    return '"' + "".join(_ESCAPES.get(c, c if c >= " " and c != "\x7f" else f"\\u{ord(c):04x}") for c in text) + '"'


def _key(key: str) -> str:
    bare = key.isascii() and key.replace("_", "a").replace("-", "a").isalnum()
    return key if bare else _quoted(key)
