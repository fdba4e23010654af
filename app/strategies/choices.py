"""Which strategies a selection of tensors can take, how large it would be under each, why not under others. No Qt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from core.recipes.model import KEEP, Match, Recipe, Rule, Strategy

if TYPE_CHECKING:
    from core.targets.base import Outline, OutputTensor

# Tensors that differ in kind, looked at for one list of choices; the rest is taken for alike.
KINDS = 24


@dataclass(frozen=True, slots=True)
class StrategyChoice:
    """One line of the picker.

    nbytes   of all tensors under it, those it cannot take in their kept form; None when not computed
    bpw      of those that take it; 0 when none does
    misfits  how many tensors cannot take it, why says it for the first of them
    """

    text: str
    title: str
    family: str
    bpw: float
    nbytes: int
    misfits: int
    why: str


def strategy_choices(outline: Outline, target_name: str, tensors: Sequence[OutputTensor]) -> list[StrategyChoice]:
    """Every format for these tensors, the fitting ones first, by family and bits. Keep is among them."""
    from core.formats import FORMATS, get_format
    from core.recipes import resolve
    from core.targets import get_target
    from core.targets.base import Assignment

    target = get_target(target_name)
    kinds = Counter((t.shape, t.dtype, t.role.kind, t.linear) for t in tensors)
    first: dict[tuple[object, ...], OutputTensor] = {}
    for t in tensors:
        first.setdefault((t.shape, t.dtype, t.role.kind, t.linear), t)
    common = kinds.most_common(KINDS)
    samples = tuple(first[kind] for kind, _ in common)
    counts = [count for _, count in common]
    small = replace(outline, tensors=samples)
    found = []
    for order, (name, title, family, bits) in enumerate(_offers(FORMATS)):
        resolved = resolve(Recipe(rules=(Rule(Match(), Strategy(name)),)), small, target)
        nbytes = weights = taken = misfits = 0
        why = ""
        for tensor, decision, count in zip(samples, resolved, counts, strict=True):
            kept = decision.strategy.format == KEEP
            stored_in = target.keeps(tensor) if kept else target.adapt(get_format(name), tensor)
            size = count * sum(s.nbytes for s in target.stored(Assignment(tensor, stored_in)))
            nbytes += size
            if kept and name != KEEP:
                misfits += count
                why = why or decision.reason
            else:
                weights += count * tensor.numel
                taken += size
        choice = StrategyChoice(name, title, family, 8 * taken / weights if weights else 0.0, nbytes, misfits, why)
        found.append((weights == 0, order if family else -1, bits, choice))
    found.sort(key=lambda f: f[:2])
    return [choice for _, _, _, choice in found]


def narrowed(choices: Iterable[StrategyChoice], typed: str) -> list[StrategyChoice]:
    """Choices whose name or title holds every typed word; those that begin with it first."""
    word = typed.strip().lower().partition("+")[0].partition("(")[0].strip()
    if not word:
        return list(choices)
    words = word.split()
    found = [c for c in choices if all(w in f"{c.text} {c.title} {c.family}".lower() for w in words)]
    return sorted(found, key=lambda c: (not c.text.startswith(word), word not in c.text))


def _offers(formats: Iterable[object]) -> list[tuple[str, str, str, float]]:
    known = [f for f in formats if f.encodable]  # type: ignore[attr-defined]
    offers = [(KEEP, "leave it unquantized", "", 0.0)]
    offers += [(f.name, f.title, f.family, float(f.bits)) for f in known]  # type: ignore[attr-defined]
    return offers
