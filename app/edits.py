"""What a user can do to the recipe and the target, as frozen records that know their label and their inverse. No Qt;
the undo stack is the session's.

An assignment by hand is a rule like any other: exact names, in front of all other rules.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any

from app.calibration import CalibrationChoice
from core.errors import RecipeError
from core.recipes.checking import make_strategy
from core.recipes.model import KEEP, Match, Recipe, Rule, Strategy, spelled


@dataclass(frozen=True, slots=True)
class Document:
    """What edits change: the recipe, the name of the target, and what tells how much columns matter."""

    recipe: Recipe
    target: str
    calibration: CalibrationChoice = field(default_factory=CalibrationChoice)


class Edit(ABC):
    """One undoable change."""

    @property
    @abstractmethod
    def label(self) -> str:
        """A few words in the imperative: "Assign q4_k to 3 tensors"."""

    @abstractmethod
    def apply(self, document: Document) -> Document:
        """The changed document; equal when nothing changes. Raises RecipeError for a rule that is not there."""

    def invert(self, before: Document) -> Edit:
        """The edit that turns apply(before) back into before."""
        return Restore(before, self.label)

    def merged(self, later: Edit) -> Edit | None:
        """One edit that does this and then `later`, when people would see them as one; else None."""
        return None


@dataclass(frozen=True, slots=True)
class Restore(Edit):
    """Back to a whole document."""

    document: Document
    text: str

    @property
    def label(self) -> str:
        return self.text

    def apply(self, document: Document) -> Document:
        return self.document


@dataclass(frozen=True, slots=True)
class AssignStrategy(Edit):
    """Gives tensors a strategy by hand; None takes the assignment by hand away, so that the rules decide again."""

    names: tuple[str, ...]
    strategy: Strategy | None

    @property
    def label(self) -> str:
        if self.strategy is None:
            return f"Let the rules decide for {_tensors(self.names)}"
        if self.strategy.format == "keep":
            return f"Keep {_tensors(self.names)}"
        return f"Assign {self.strategy} to {_tensors(self.names)}"

    def apply(self, document: Document) -> Document:
        rules = _without_names(document.recipe.rules, self.names)
        if self.strategy is not None and self.names:
            rules = _with_names(rules, self.names, self.strategy)
        return _with_rules(document, rules)


@dataclass(frozen=True, slots=True)
class AddRule(Edit):
    """Puts a rule at an index (negative or too large: at the end)."""

    index: int
    rule: Rule

    @property
    def label(self) -> str:
        return f"Add rule {_rule_text(self.rule)}"

    def apply(self, document: Document) -> Document:
        rules = list(document.recipe.rules)
        rules.insert(self._place(len(rules)), self.rule)
        return _with_rules(document, tuple(rules))

    def invert(self, before: Document) -> Edit:
        return RemoveRule(self._place(len(before.recipe.rules)))

    def _place(self, count: int) -> int:
        return count if self.index < 0 or self.index > count else self.index


@dataclass(frozen=True, slots=True)
class RemoveRule(Edit):
    index: int

    @property
    def label(self) -> str:
        return f"Remove rule {self.index + 1}"

    def apply(self, document: Document) -> Document:
        rules = list(document.recipe.rules)
        _check_index(self.index, rules)
        del rules[self.index]
        return _with_rules(document, tuple(rules))

    def invert(self, before: Document) -> Edit:
        return AddRule(self.index, before.recipe.rules[self.index])


@dataclass(frozen=True, slots=True)
class MoveRule(Edit):
    """Takes the rule at `index` out and puts it back so that it stands at `to`."""

    index: int
    to: int

    @property
    def label(self) -> str:
        return f"Move rule {self.index + 1} to {self.to + 1}"

    def apply(self, document: Document) -> Document:
        rules = list(document.recipe.rules)
        _check_index(self.index, rules)
        _check_index(self.to, rules)
        if self.index == self.to:
            return document
        rules.insert(self.to, rules.pop(self.index))
        return _with_rules(document, tuple(rules))

    def invert(self, before: Document) -> Edit:
        return MoveRule(self.to, self.index)

    def merged(self, later: Edit) -> Edit | None:
        if isinstance(later, MoveRule) and later.index == self.to:
            return MoveRule(self.index, later.to)
        return None


@dataclass(frozen=True, slots=True)
class ReplaceRule(Edit):
    index: int
    rule: Rule

    @property
    def label(self) -> str:
        return f"Change rule {self.index + 1} to {_rule_text(self.rule)}"

    def apply(self, document: Document) -> Document:
        rules = list(document.recipe.rules)
        _check_index(self.index, rules)
        if rules[self.index] == self.rule:
            return document
        rules[self.index] = self.rule
        return _with_rules(document, tuple(rules))

    def invert(self, before: Document) -> Edit:
        return ReplaceRule(self.index, before.recipe.rules[self.index])


@dataclass(frozen=True, slots=True)
class SetRecipe(Edit):
    """Another recipe as a whole: a preset, a file, or a format for everything."""

    recipe: Recipe

    @property
    def label(self) -> str:
        return f"Use recipe {self.recipe.name}" if self.recipe.name else "Use another recipe"

    def apply(self, document: Document) -> Document:
        return document if document.recipe == self.recipe else replace(document, recipe=self.recipe)

    def invert(self, before: Document) -> Edit:
        return SetRecipe(before.recipe)


@dataclass(frozen=True, slots=True)
class SetPreset(Edit):
    """Another preset (or format) under the assignments made by hand, which stay."""

    recipe: Recipe

    @property
    def label(self) -> str:
        return f"Use preset {self.recipe.name}"

    def apply(self, document: Document) -> Document:
        recipe = replace(self.recipe, rules=(*leading_by_hand(document.recipe.rules), *self.recipe.rules))
        return document if document.recipe == recipe else replace(document, recipe=recipe)


@dataclass(frozen=True, slots=True)
class SetTarget(Edit):
    target: str

    @property
    def label(self) -> str:
        return f"Write {self.target}"

    def apply(self, document: Document) -> Document:
        return document if document.target == self.target else replace(document, target=self.target)

    def invert(self, before: Document) -> Edit:
        return SetTarget(before.target)


@dataclass(frozen=True, slots=True)
class SetMethod(Edit):
    """Another method for the last rule, the one for all the rest. params: those that differ from its defaults."""

    method: str
    params: tuple[tuple[str, Any], ...] = ()

    @property
    def label(self) -> str:
        return f"Use method {self.method}"

    def apply(self, document: Document) -> Document:
        rules = list(document.recipe.rules)
        _check_index(len(rules) - 1, rules)
        last = rules[-1]
        if last.strategy is None:
            changed = replace(last, method=self.method, params=self.params)
        elif last.strategy.format == KEEP:
            raise RecipeError("what is kept has no method", "choose a preset or a format first")
        else:
            changed = replace(last, strategy=make_strategy(last.strategy.format, self.method, dict(self.params)))
        if changed == last:
            return document
        base = spelled(changed.preset, self.method, self.params) if changed.preset else str(changed.strategy)
        name = base if document.recipe.name == _base_name(last) else document.recipe.name
        return replace(document, recipe=replace(document.recipe, name=name, rules=(*rules[:-1], changed)))

    def merged(self, later: Edit) -> Edit | None:
        """A method and its parameters are chosen step by step."""
        return later if isinstance(later, SetMethod) else None


@dataclass(frozen=True, slots=True)
class SetCalibration(Edit):
    choice: CalibrationChoice

    @property
    def label(self) -> str:
        return f"Calibrate with {self.choice.label}" if self.choice.source else "Use no calibration"

    def apply(self, document: Document) -> Document:
        return document if document.calibration == self.choice else replace(document, calibration=self.choice)

    def invert(self, before: Document) -> Edit:
        return SetCalibration(before.calibration)


def _base_name(rule: Rule) -> str:
    """What a recipe of this one rule is called."""
    return spelled(rule.preset, rule.method, rule.params) if rule.preset else str(rule.strategy)


def is_by_hand(rule: Rule) -> bool:
    """Whether a rule only names tensors: an assignment made by hand."""
    return bool(rule.match.names) and rule.strategy is not None and rule.match == Match(names=rule.match.names)


def leading_by_hand(rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    """The assignments by hand that stand before every other rule."""
    count = next((i for i, rule in enumerate(rules) if not is_by_hand(rule)), len(rules))
    return rules[:count]


def _without_names(rules: tuple[Rule, ...], named: tuple[str, ...]) -> tuple[Rule, ...]:
    if not any(is_by_hand(rule) for rule in rules):
        return rules  # 50,000 names make no set for nothing
    names = frozenset(named)
    kept: list[Rule] = []
    for rule in rules:
        if not is_by_hand(rule) or names.isdisjoint(rule.match.names):
            kept.append(rule)
            continue
        rest = tuple(n for n in rule.match.names if n not in names)
        if rest:
            kept.append(replace(rule, match=Match(names=rest)))
    return tuple(kept)


def _with_names(rules: tuple[Rule, ...], names: tuple[str, ...], strategy: Strategy) -> tuple[Rule, ...]:
    """Adds to the leading rule with this strategy, or puts a new one in front."""
    for i, rule in enumerate(leading_by_hand(rules)):
        if rule.strategy == strategy:
            joined = replace(rule, match=Match(names=(*rule.match.names, *names)))
            return (*rules[:i], joined, *rules[i + 1 :])
    return (Rule(Match(names=names), strategy), *rules)


def _with_rules(document: Document, rules: tuple[Rule, ...]) -> Document:
    if rules == document.recipe.rules:
        return document
    return replace(document, recipe=replace(document.recipe, rules=rules))


def _check_index(index: int, rules: list[Rule]) -> None:
    if not 0 <= index < len(rules):
        raise RecipeError(f"there is no rule {index + 1}", f"the recipe has {len(rules)}")


def _tensors(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{len(names):,} tensors"


def _rule_text(rule: Rule) -> str:
    match = rule.match
    what = match.name or (_tensors(match.names) if match.names else "/".join(match.role)) or "all tensors"
    return f"{what} → {rule.preset or rule.strategy}"
