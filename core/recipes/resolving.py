"""From rules to tensors: what each output tensor of an outline becomes, and why. Sizes and bytes come later, in the
plan (core/engine/plan.py)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from core.errors import RecipeError
from core.kinds import Shared
from core.parameters import INPUTS, PLAIN
from core.recipes.checking import check_recipe
from core.recipes.matching import conflicts, describe, winners
from core.recipes.model import KEEP, Recipe, Resolved, Rule, Strategy
from core.recipes.presets import Choice, get_preset
from core.recipes.protect import protections, unreal
from core.recipes.remembering import PerOutline

if TYPE_CHECKING:
    from core.formats.base import Format
    from core.targets.base import Outline, OutputTensor, Target

# Resolved.extras["kept"]: why a tensor is kept, for those who count rather than read.
NO_RULE, BY_RULE, PROTECTED, REFUSED, MISFIT = "no rule", "rule", "protected", "refused", "misfit"


def resolve(recipe: Recipe, outline: Outline, target: Target, *, importance: bool = False) -> Shared[Resolved]:
    """One decision per output tensor, in the outline's order; made once for all that are alike and meet the same rule.

    importance  whether importance data will be there: some of llama.cpp's mixtures ask
    extras      "kept": one of the words above; "sources": for a merged tensor, which rules its other sources match
    raises      RecipeError for a rule that makes no sense
    """
    import numpy as np

    check_recipe(recipe)
    texts = _rule_texts(recipe)
    won = winners(recipe, outline)
    present = sorted(set(won.tolist()) - {-1})
    chosen = {i: _chosen(outline, recipe.rules[i].preset, importance) for i in present if recipe.rules[i].preset}
    choice = np.zeros(len(won), np.int64)
    for winner, choices in chosen.items():
        choice[won == winner] = choices.of[won == winner]
    cases = outline.kinds.split(won, choice)
    decide = _Decider(target)
    guards = protections(outline)
    decided: list[Resolved] = []
    for index in cases.first:
        tensor, winner = outline.tensors[index], int(won[index])
        if winner < 0:
            decided.append(_kept(-1, "kept", unreal(tensor) or "no rule matches", NO_RULE))
            continue
        case = _Case(tensor, guards[index], winner, recipe.rules[winner], texts[winner])
        decided.append(decide.preset(case, chosen[winner][index]) if winner in chosen else decide.strategy(case))
    return _with_conflicts(cases.share(decided), recipe, outline, texts)


def _with_conflicts(resolved: Shared[Resolved], recipe: Recipe, outline: Outline, texts: list[str]) -> Shared[Resolved]:
    """The decisions, with a word about merged tensors whose sources other rules match."""
    disagreeing: dict[int, list[str]] = {}
    for conflict in conflicts(recipe, outline):
        other = texts[conflict.rule] if conflict.rule >= 0 else "no rule"
        disagreeing.setdefault(conflict.tensor, []).append(f"{conflict.source} matches {other}")
    if not disagreeing:
        return resolved
    values, of = [*resolved.values], resolved.of.copy()
    for index, found in disagreeing.items():
        note = f"made from several tensors, of which {', '.join(found)}"
        before = resolved[index]
        of[index] = len(values)
        values.append(replace(before, extras={**before.extras, "sources": note}))
    return Shared(values, of)


def explain(resolved: Resolved) -> str:
    """A decision in a few words: "kept: norm", "q4_k", "q5_0 (columns 100: q4_k → q5_0)"."""
    if resolved.strategy.format == KEEP:
        return f"kept: {resolved.reason}" if resolved.reason else "kept"
    return f"{resolved.strategy} ({resolved.reason})" if resolved.reason else str(resolved.strategy)


# A preset's choices depend on the outline alone, not on the other rules.
_choices: PerOutline[dict[tuple[str, bool], Shared[Choice]]] = PerOutline(lambda _: {})


def _chosen(outline: Outline, preset: str, importance: bool) -> Shared[Choice]:
    known = _choices(outline)
    key = (preset, importance)
    if key not in known:
        known[key] = get_preset(preset).choose(outline, importance)
    return known[key]


@dataclass(frozen=True, slots=True)
class _Case:
    """One tensor and the rule that won it. guard: why it is never quantized, or ""."""

    tensor: OutputTensor
    guard: str
    index: int
    rule: Rule
    text: str

    def kept(self, reason: str, kind: str, fallback: bool = False) -> Resolved:
        return _kept(self.index, self.text, reason, kind, fallback)


class _Decider:
    """Decisions for one target."""

    def __init__(self, target: Target) -> None:
        from core.formats import get_format

        self.target = target
        self.format = lru_cache(maxsize=None)(get_format)

    def strategy(self, case: _Case) -> Resolved:
        """An explicit format: what does not fit is kept, with why."""
        strategy = case.rule.strategy
        assert strategy is not None
        if strategy.format == KEEP:
            return case.kept("", BY_RULE)
        return self._kept_as(case, self.format(strategy.format)) or Resolved(strategy, case.index, case.text)

    def preset(self, case: _Case, choice: Choice) -> Resolved:
        """What a preset chose; it has already looked at the shape where it knows substitutes."""
        rule = case.rule
        if choice.format == KEEP:
            return case.kept(choice.reason or case.guard, PROTECTED, choice.fallback)
        try:
            wanted = self.format(choice.format)
        except RecipeError as error:
            return case.kept(error.message, MISFIT, True)
        if not wanted.encodable:
            return case.kept(f"{choice.format} cannot be written yet", MISFIT, True)
        kept = self._kept_as(case, wanted)
        if kept is not None:
            return kept
        params = rule.params
        if choice.inputs != PLAIN and INPUTS.key not in dict(params):
            params = (*params, (INPUTS.key, choice.inputs))
        why = _method_misfit(rule.method, wanted)
        if not why:
            # A preset's formats differ in what can be said of them; what a parameter says to some of them holds there.
            unsuited = _unsuited(rule.method, wanted, params)
            inputs = tuple(p for p in params if p[0] == INPUTS.key)
            strategy = Strategy(wanted.name, rule.method, inputs if unsuited else params)
            reason = "; ".join(filter(None, (choice.reason, unsuited)))
            return Resolved(strategy, case.index, case.text, reason, choice.fallback)
        reason = "; ".join(filter(None, (choice.reason, f"{rule.method} → nearest: {why}")))
        inputs = tuple(p for p in params if p[0] == INPUTS.key)
        return Resolved(Strategy(wanted.name, params=inputs), case.index, case.text, reason, True)

    def _kept_as(self, case: _Case, wanted: Format) -> Resolved | None:
        """The decision to keep a tensor that cannot or should not take a format; None when it takes it.

        Casts to plain floats touch all that holds real numbers; everything else leaves the delicate alone.
        """
        tensor = case.tensor
        why = unreal(tensor) if wanted.family == "dense" else case.guard
        if why:
            return case.kept(why, PROTECTED)
        refusal = self.target.refuses(wanted, tensor)
        if refusal:
            # That a container keeps embeddings or norms under a rule for everything surprises nobody.
            surprising = bool(case.rule.match.names) or (tensor.linear and not case.guard)
            return case.kept(refusal, REFUSED, surprising)
        misfit = wanted.misfit(tensor.shape)
        return case.kept(f"{misfit}, as {wanted.name} needs", MISFIT, True) if misfit else None


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


def _unsuited(method: str, format: Format, params: tuple[tuple[str, Any], ...]) -> str:
    if not params:
        return ""
    from core.methods import get_method

    try:
        return get_method(method).unsuited(format, dict(params)) or ""
    except RecipeError:
        return ""


_KEPT = Strategy(KEEP)


def _kept(index: int, text: str, reason: str, kind: str, fallback: bool = False) -> Resolved:
    return Resolved(_KEPT, index, text, reason, fallback, {"kept": kind})


def _rule_texts(recipe: Recipe) -> list[str]:
    """Rules for people: "2 · *.q_proj.weight"; without the number when there is only one."""
    texts = []
    for number, rule in enumerate(recipe.rules, 1):
        words = describe(rule.match) or rule.preset or "all tensors"
        texts.append(words if len(recipe.rules) == 1 else f"{number} · {words}")
    return texts
