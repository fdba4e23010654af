"""Which container a recipe goes into where nobody names one: the first of a short list that carries it, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from core.errors import TargetError

if TYPE_CHECKING:
    from core.checkpoints.base import Checkpoint
    from core.context import JobContext
    from core.engine.model import Plan
    from core.recipes.model import Recipe

# Targets that are tried, in this order, when none is named: what most runtimes load comes first, and dense, which
# takes everything and makes nothing smaller, last. A bare file has no architecture, so it is never a GGUF.
_BY_ITSELF = ("gguf", "compressed-tensors", "bitsandbytes", "torchao", "mlx", "dense")


def make_plan_for(
    checkpoint: Checkpoint,
    recipe: Recipe,
    target: str,
    ctx: JobContext,
    **options: Any,
) -> tuple[Plan, str]:
    """The plan for the named target, or, without a name, for the first in _BY_ITSELF that carries the recipe; and why
    this one. Where something stands in the way of all, the first that has a place for any of its formats: what that
    one says is what is missing.

    options  of make_plan
    raises   what planning raises, for the last resort too
    """
    from core.engine.plan import make_plan
    from core.targets import get_target

    if target:
        return make_plan(checkpoint, recipe, get_target(target), ctx, **options), "as asked"
    why = "the source is a GGUF" if checkpoint.kind == "gguf" else "GGUF knows this architecture"
    unable: list[str] = []
    without: list[str] = []
    nearest: tuple[Plan, str] | None = None
    any_fits = False
    for name in _BY_ITSELF:
        try:
            made = make_plan(checkpoint, recipe, get_target(name), ctx, **options), why
        except TargetError:
            unable.append(name)
            why = _passed_over(unable, without)
            continue
        if not any(p.severity == "error" for p in made[0].problems):
            return made
        fits = any(t.quantized for t in made[0].tensors)
        if nearest is None or (fits and not any_fits):
            nearest, any_fits = made, fits
        without.append(name)
        why = _passed_over(unable, without)
    if nearest is None:
        raise TargetError("no target can write this checkpoint", "name one with --target to see why", checkpoint.path)
    return nearest


def _passed_over(unable: list[str], without: list[str]) -> str:
    """Why the targets before were not taken."""
    held = f"{_listed(unable)} cannot hold this model" if unable else ""
    carried = f"{_listed(without)} {'does' if len(without) == 1 else 'do'} not carry these formats" if without else ""
    return ", ".join(filter(None, (held, carried)))


def _listed(names: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
