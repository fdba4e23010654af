"""Rules as text and back, without Qt: what a rule's cell shows, and how what was typed becomes a match."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from core.errors import RecipeError
from core.recipes.model import Match, Recipe, Rule, Strategy, spelled

# One condition: word:value, or word≥value for numbers.
_CONDITION = re.compile(r"(role|dtype|layers?|ndim)[:=](.+)|(columns|weights)(?:>=|≥|:)(.+)", re.IGNORECASE)
HELP = (
    "A glob over the whole name (*.q_proj.weight), re:… for a regular expression, and conditions: "
    "role:v,down  layers:0-3  dtype:BF16  ndim:2  columns>=256  weights>=65536"
)
EVERYTHING = "*"


@dataclass(frozen=True, slots=True)
class RuleLine:
    """One line of the panel. counts are None while they are being computed.

    pattern    as in the pattern cell; editable is False for assignments by hand, whose names are not typed
    shadowed   it matches tensors, and rules before it take them all
    """

    pattern: str
    strategy: str
    kind: str  # "by hand", "preset" or "rule"
    editable: bool
    matched: int | None = None
    won: int | None = None
    names: tuple[str, ...] = ()

    @property
    def shadowed(self) -> bool:
        return bool(self.matched) and self.won == 0


def lines_of(recipe: Recipe, counts: list[tuple[int, int]] | None) -> list[RuleLine]:
    """The recipe, line by line."""
    from app.edits import is_by_hand

    found = []
    for i, rule in enumerate(recipe.rules):
        matched, won = counts[i] if counts is not None and i < len(counts) else (None, None)
        if is_by_hand(rule):
            names = rule.match.names
            text = names[0] if len(names) == 1 else f"{len(names):,} tensors, assigned by hand"
            found.append(RuleLine(text, strategy_text(rule), "by hand", False, matched, won, names))
        else:
            kind = "preset" if rule.preset else "rule"
            names = rule.match.names
            text = match_text(rule.match)
            if names:
                text = f"{len(names):,} tensors by name" if text == EVERYTHING else f"{text}, {len(names):,} by name"
            found.append(RuleLine(text, strategy_text(rule), kind, not names, matched, won, names))
    return found


def strategy_text(rule: Rule) -> str:
    """ "q4_k", "Q4_K_M" or either with "+method" and parameters."""
    if rule.preset:
        return spelled(rule.preset, rule.method, rule.params)
    return str(rule.strategy)


def match_text(match: Match) -> str:
    """A match as it can be typed; "*" when it takes everything."""
    words = []
    if match.role:
        words.append(f"role:{','.join(match.role)}")
    if match.layers is not None:
        low, high = match.layers
        words.append(f"layers:{low}" if low == high else f"layers:{low}-{high}")
    if match.dtype:
        words.append(f"dtype:{','.join(match.dtype)}")
    if match.ndim is not None:
        words.append(f"ndim:{match.ndim}")
    if match.min_columns is not None:
        words.append(f"columns>={match.min_columns}")
    if match.min_numel is not None:
        words.append(f"weights>={match.min_numel}")
    if match.name:
        words.append(match.name)
    return " ".join(words) or EVERYTHING


def parse_match(text: str) -> Match:
    """The match that was typed. Raises RecipeError saying which word makes no sense."""
    from core.recipes.checking import check_match

    match = Match()
    words = text.split()
    for i, word in enumerate(words):
        if word.startswith("re:"):
            # A regular expression may hold spaces: it is the rest of the line.
            match = replace(match, name=" ".join(words[i:]))
            break
        match = _with_condition(match, word)
    if match.name == EVERYTHING:
        match = replace(match, name="")
    check_match(match, text)
    return match


def _with_condition(match: Match, word: str) -> Match:
    found = _CONDITION.fullmatch(word)
    if found is None:
        if match.name:
            raise RecipeError(f"two patterns, {match.name} and {word}", "make two rules", word)
        return replace(match, name=word)
    key, value = (found[1] or found[3]).lower(), found[2] or found[4]
    if key == "role":
        return replace(match, role=tuple(value.lower().split(",")))
    if key == "dtype":
        return replace(match, dtype=tuple(value.upper().split(",")))
    if key.startswith("layer"):
        low, _, high = value.replace("–", "-").partition("-")
        return replace(match, layers=(_number(low, word), _number(high or low, word)))
    number = _number(value, word)
    if key == "ndim":
        return replace(match, ndim=number)
    return replace(match, min_columns=number) if key == "columns" else replace(match, min_numel=number)


def _number(text: str, word: str) -> int:
    digits = text.replace("_", "").replace(",", "")
    if not digits.isdecimal():
        raise RecipeError(f"{text!r} is not a whole number", HELP, word)
    return int(digits)


def retyped(rule: Rule, pattern: str | None = None, strategy: str | None = None) -> Rule:
    """The rule with a typed pattern or strategy. Raises RecipeError."""
    if pattern is not None:
        return replace(rule, match=parse_match(pattern))
    assert strategy is not None
    chosen, preset, method, params = parse_choice(strategy)
    return replace(rule, strategy=chosen, preset=preset, method=method, params=params)


def parse_choice(text: str) -> tuple[Strategy | None, str, str, tuple[tuple[str, object], ...]]:
    """strategy, preset, method and params of what was typed: a strategy, "keep", or a preset. Raises RecipeError."""
    from core.recipes import load, parse_strategy
    from core.recipes.model import KEEP

    if text.strip().lower() == KEEP:
        return parse_strategy(KEEP), "", "nearest", ()
    if text.lower().endswith(".toml") or "/" in text:
        raise RecipeError(f"{text!r} is not a strategy", "open a recipe file from the menu", text)
    rule = load(text).rules[0]
    return rule.strategy, rule.preset, rule.method, rule.params
