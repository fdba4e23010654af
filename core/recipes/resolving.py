"""From rules to tensors: what each output tensor of an outline becomes, and why. Sizes and bytes come later, in the
plan (core/engine/plan.py)."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from core.errors import RecipeError
from core.recipes.checking import check_recipe
from core.recipes.matching import conflicts, describe, winners
from core.recipes.model import KEEP, Recipe, Resolved, Rule, Strategy
from core.recipes.presets import Choice, get_preset
from core.recipes.protect import is_gguf, protected, unreal
from core.recipes.remembering import PerOutline

if TYPE_CHECKING:
    from core.formats.base import Format
    from core.targets.base import Outline, OutputTensor, Target

# Resolved.extras["kept"]: why a tensor is kept, for those who count rather than read.
NO_RULE, BY_RULE, PROTECTED, REFUSED, MISFIT = "no rule", "rule", "protected", "refused", "misfit"


def resolve(recipe: Recipe, outline: Outline, target: Target, *, importance: bool = False) -> list[Resolved]:
    """One decision per output tensor, in the outline's order.

    importance  whether importance data will be there: some of llama.cpp's mixtures ask
    extras      "kept": one of the words above; "sources": for a merged tensor, which rules its other sources match
    raises      RecipeError for a rule that makes no sense
    """
    check_recipe(recipe)
    texts = _rule_texts(recipe)
    won = winners(recipe, outline)
    present = set(won)
    chosen = {
        rule.preset: _chosen(outline, rule.preset, importance)
        for index, rule in enumerate(recipe.rules)
        if rule.preset and index in present
    }
    decide = _Decider(target, is_gguf(outline))
    resolved: list[Resolved] = []
    for index, (tensor, winner) in enumerate(zip(outline.tensors, won, strict=True)):
        if winner < 0:
            resolved.append(_kept(-1, "kept", unreal(tensor) or "no rule matches", NO_RULE))
            continue
        rule = recipe.rules[winner]
        if rule.preset:
            resolved.append(decide.preset(tensor, winner, texts[winner], rule, chosen[rule.preset][index]))
        else:
            resolved.append(decide.strategy(tensor, winner, texts[winner], rule))
    disagreeing: dict[int, list[str]] = {}
    for conflict in conflicts(recipe, outline):
        other = texts[conflict.rule] if conflict.rule >= 0 else "no rule"
        disagreeing.setdefault(conflict.tensor, []).append(f"{conflict.source} matches {other}")
    for index, found in disagreeing.items():
        note = f"made from several tensors, of which {', '.join(found)}"
        before = resolved[index]
        resolved[index] = replace(before, extras={**before.extras, "sources": note})
    return resolved


def explain(resolved: Resolved) -> str:
    """A decision in a few words: "kept: norm", "q4_k", "q5_0 (columns 100: q4_k → q5_0)"."""
    if resolved.strategy.format == KEEP:
        return f"kept: {resolved.reason}" if resolved.reason else "kept"
    return f"{resolved.strategy} ({resolved.reason})" if resolved.reason else str(resolved.strategy)


# A preset's choices depend on the outline alone, not on the other rules.
_choices: PerOutline[dict[tuple[str, bool], list[Choice]]] = PerOutline(lambda _: {})


def _chosen(outline: Outline, preset: str, importance: bool) -> list[Choice]:
    known = _choices(outline)
    key = (preset, importance)
    if key not in known:
        known[key] = get_preset(preset).choose(outline, importance)
    return known[key]


class _Decider:
    """Decisions for one target. Remembers formats and misfits by shape: a model has few of either."""

    def __init__(self, target: Target, gguf_names: bool) -> None:
        from core.formats import get_format

        self.target = target
        self.gguf_names = gguf_names
        self.format = lru_cache(maxsize=None)(get_format)
        self.misfit = lru_cache(maxsize=None)(_misfit)
        self.method_misfit = lru_cache(maxsize=None)(_method_misfit)

    def strategy(self, tensor: OutputTensor, index: int, text: str, rule: Rule) -> Resolved:
        """An explicit format: what does not fit is kept, with why."""
        assert rule.strategy is not None
        if rule.strategy.format == KEEP:
            return _kept(index, text, "", BY_RULE)
        wanted = self.format(rule.strategy.format)
        why = self._untouched(tensor, wanted)
        if why:
            return _kept(index, text, why, PROTECTED)
        why = self.target.refuses(wanted, tensor) or ""
        if why:
            return _kept(index, text, why, REFUSED, self._surprising(tensor, rule))
        why = self.misfit(wanted, tensor.shape)
        if why:
            return _kept(index, text, f"{why}, as {wanted.name} needs", MISFIT, True)
        return Resolved(rule.strategy, index, text)

    def preset(self, tensor: OutputTensor, index: int, text: str, rule: Rule, choice: Choice) -> Resolved:
        """What a preset chose; it has already looked at the shape where it knows substitutes."""
        if choice.format == KEEP:
            why = choice.reason or protected(tensor, self.gguf_names)
            return _kept(index, text, why, PROTECTED, choice.fallback)
        try:
            wanted = self.format(choice.format)
        except RecipeError as error:
            return _kept(index, text, error.message, MISFIT, True)
        if not wanted.encodable:
            return _kept(index, text, f"{choice.format} cannot be written yet", MISFIT, True)
        why = self._untouched(tensor, wanted)
        if why:
            return _kept(index, text, why, PROTECTED)
        why = self.target.refuses(wanted, tensor) or ""
        if why:
            return _kept(index, text, why, REFUSED, self._surprising(tensor, rule))
        why = self.misfit(wanted, tensor.shape)
        if why:
            return _kept(index, text, f"{why}, as {wanted.name} needs", MISFIT, True)
        strategy, reason, fallback = Strategy(wanted.name, rule.method, rule.params), choice.reason, choice.fallback
        why = self.method_misfit(rule.method, wanted)
        if why:
            strategy = Strategy(wanted.name)
            reason = f"{reason}; " if reason else ""
            reason, fallback = f"{reason}{rule.method} → nearest: {why}", True
        return Resolved(strategy, index, text, reason, fallback)

    def _untouched(self, tensor: OutputTensor, format: Format) -> str:
        """Casts to plain floats touch all that holds real numbers; everything else leaves the delicate alone."""
        return unreal(tensor) if format.family == "dense" else protected(tensor, self.gguf_names)

    def _surprising(self, tensor: OutputTensor, rule: Rule) -> bool:
        """Whether the user should see a refusal as a badge. That a container keeps embeddings or norms under a rule for
        everything surprises nobody."""
        if rule.match.names:
            return True
        return tensor.linear and not protected(tensor, self.gguf_names)


def _misfit(format: Format, shape: tuple[int, ...]) -> str:
    return format.misfit(shape) or ""


def _method_misfit(method: str, format: Format) -> str:
    if method == "nearest":
        return ""
    if format.family == "dense":
        return f"{format.name} has no codes to choose"
    from core.methods import get_method

    try:
        return get_method(method).misfit(format) or ""
    except RecipeError:
        return ""  # The plan names unknown methods once, not per tensor.


def _kept(index: int, text: str, reason: str, kind: str, fallback: bool = False) -> Resolved:
    return Resolved(Strategy(KEEP), index, text, reason, fallback, {"kept": kind})


def _rule_texts(recipe: Recipe) -> list[str]:
    """Rules for people: "2 · *.q_proj.weight"; without the number when there is only one."""
    texts = []
    for number, rule in enumerate(recipe.rules, 1):
        words = describe(rule.match) or rule.preset or "all tensors"
        texts.append(words if len(recipe.rules) == 1 else f"{number} · {words}")
    return texts
