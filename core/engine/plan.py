"""The plan: every output tensor's format, every byte's place, and what is known to be wrong before an output is named.

What needs the output path or the device is in preflight.py; what a recipe decides is in core/recipes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from core.calibration.runner import ALL
from core.calibration.statistics import Provenance, Statistic, Statistics
from core.calibration.text import Samples
from core.checkpoints.dialects import unread_quantization
from core.context import SILENT, JobContext
from core.engine import demands
from core.engine.demands import listed
from core.engine.known import Known, bind, by_source
from core.engine.model import Plan, PlannedTensor, Problem
from core.formats.ggml.types import GGML_TYPES
from core.parameters import INPUTS, PLAIN
from core.recipes.model import KEEP, Recipe, Resolved, Strategy
from core.recipes.resolving import MISFIT, REFUSED, resolve
from core.targets.base import Assignment, Layout, Outline, OutputTensor, Target
from core.tensors import DTYPES

if TYPE_CHECKING:
    from core.checkpoints.base import Checkpoint
    from core.formats.base import Format

# What can be written from numbers.
WRITABLE = ("f32", "f16", "bf16")


def make_plan(
    checkpoint: Checkpoint,
    recipe: Recipe,
    target: Target,
    ctx: JobContext = SILENT,
    *,
    statistics: frozenset[Statistic] = frozenset(),
    gathered: Statistics | None = None,
    calibration: Samples | None = None,
    outline: Outline | None = None,
    shard_bytes: int | None = None,
) -> Plan:
    """The whole run, laid out to the byte.

    statistics  what calibration will provide; methods that need more are an error among Plan.problems
    gathered    statistics that are there, under the checkpoint's or GGUF's names
    calibration samples that are to go through the model block by block while it is quantized
    outline     target.outline(checkpoint), where the caller has it already
    shard_bytes files hold at most this many bytes of tensors; None for the container's custom
    raises      TargetError when the checkpoint cannot be written so at all, RecipeError for a rule that makes no sense,
                CalibrationError for statistics of another model, Cancelled
    """
    outline = target.outline(checkpoint) if outline is None else outline
    known = Known()
    if gathered is not None:
        known = bind(by_source(gathered, checkpoint, outline if target.name == "gguf" else None), outline, checkpoint)
        outline = replace(outline, statistics=known.provenance)
    if calibration is not None:
        statistics |= ALL
        count = sum(t.linear for t in outline.tensors)
        name, chunks = calibration.name, len(calibration.ids)
        outline = replace(outline, statistics=Provenance("", name, count, chunks, calibration.identity))
    kinds = statistics | known.kinds
    ctx.check()
    resolved = resolve(recipe, outline, target, importance=Statistic.IMPORTANCE in kinds)
    ctx.check()
    assignments = _foldable(_Assigner(checkpoint, target).all(outline.tensors, resolved), resolved)
    ctx.check()
    layout = target.layout(checkpoint, outline, assignments, label_of(recipe), shard_bytes)
    planned = tuple(
        PlannedTensor(
            tensor=a.tensor,
            strategy=r.strategy,
            format=a.format,
            copy=a.copy,
            rule=r.rule,
            rule_text=r.rule_text,
            reason=r.reason,
            fallback=r.fallback,
            nbytes=stored_bytes(layout, a.tensor.name),
        )
        for a, r in zip(assignments, resolved, strict=True)
    )
    return Plan(
        source=checkpoint.path,
        fingerprint=checkpoint.fingerprint(),
        target=target,
        recipe=recipe,
        outline=outline,
        tensors=planned,
        layout=layout,
        problems=tuple(
            _problems(planned, resolved, outline, target, kinds, known, unread_quantization(checkpoint), recipe)
        ),
        known=known,
        kinds=kinds,
        calibration=calibration,
    )


def stored_bytes(layout: Layout, name: str) -> int:
    """Bytes of all that is stored for one output tensor."""
    places = layout.places.get(name, ())
    return places[0].stored.nbytes if len(places) == 1 else sum(place.stored.nbytes for place in places)


def label_of(recipe: Recipe) -> str:
    """What the container's metadata calls the mixture: the preset of the rule for all the rest, else the name."""
    from core.recipes.model import Match

    rest = next((rule for rule in recipe.rules if rule.match == Match()), None)
    return rest.preset if rest is not None and rest.preset else recipe.name


def plan_json(plan: Plan) -> dict[str, Any]:
    """What `plan --json` prints. bytes are exact; bpw is bits per weight as stored."""
    return {
        "tensors": [
            {
                "name": t.tensor.name,
                "source": list(t.tensor.source.names()),
                "shape": list(t.tensor.shape),
                "dtype": t.tensor.dtype,
                "strategy": str(t.strategy),
                "format": t.format.name,
                "rule": t.rule_text,
                "reason": t.reason,
                "fallback": t.fallback,
                "bytes": t.nbytes,
                "bpw": t.bpw,
            }
            for t in plan.tensors
        ],
        "bytes": plan.nbytes,
        "bpw": plan.bpw,
        "statistics": statistics_json(plan),
        "problems": [
            {"severity": p.severity, "message": p.said, "tensor": p.tensor, "hint": p.hint} for p in plan.problems
        ],
    }


def statistics_json(plan: Plan) -> dict[str, Any] | None:
    """Where the importance of columns comes from; None where nothing is known of it."""
    where = plan.outline.statistics
    if where is None:
        return None
    covered = sum(t.tensor.name in plan.known.tensors for t in plan.tensors if t.quantized)
    return {
        "file": where.file,
        "dataset": where.dataset,
        "entries": where.entries,
        "chunks": where.chunks,
        "kinds": sorted(kind.value for kind in plan.kinds),
        "covered": covered,
    }


def _foldable(assignments: Sequence[Assignment], resolved: Sequence[Resolved]) -> list[Assignment]:
    """Where a method may fold its scales into a layer's other tensors, these are written as numbers, not as the bytes
    that are there: the same bytes as long as nothing is folded."""
    folding = _folding()
    layers = {
        a.tensor.role.layer for a, r in zip(assignments, resolved, strict=True) if _folds(r.strategy, folding)
    } - {None}
    return [
        replace(a, copy=False) if a.copy and a.tensor.role.layer in layers and a.format.name in WRITABLE else a
        for a in assignments
    ]


def _folding() -> frozenset[str]:
    """The methods that may rescale what lies beside a layer."""
    from core.methods import METHODS

    return frozenset(m.name for m in METHODS if m.folds)


def _folds(strategy: Strategy, folding: frozenset[str]) -> bool:
    return strategy.method in folding and strategy.format != KEEP


class _Assigner:
    """From strategies to what is stored. Questions whose answer depends on shape and type alone are asked once."""

    def __init__(self, checkpoint: Checkpoint, target: Target) -> None:
        from core.formats import get_format

        self.checkpoint = checkpoint
        self.target = target
        self.format = lru_cache(maxsize=None)(get_format)
        self.formats: dict[tuple[object, ...], Format] = {}
        self.native: dict[tuple[object, ...], tuple[str, int] | None] = {}

    def all(self, tensors: Sequence[OutputTensor], resolved: Sequence[Resolved]) -> list[Assignment]:
        return [self.one(tensor, decision) for tensor, decision in zip(tensors, resolved, strict=True)]

    def one(self, tensor: OutputTensor, decision: Resolved) -> Assignment:
        strategy = decision.strategy
        if strategy.format == KEEP:
            wanted = self.target.keeps(tensor)
        else:
            key = (strategy.format, tensor.dtype, tensor.role.kind, tensor.linear)
            known = self.formats.get(key)
            wanted = known or self.target.adapt(self.format(strategy.format), tensor)
            self.formats[key] = wanted
        copy = self._untouched(tensor, strategy, wanted) and self._native(tensor, wanted)
        return Assignment(tensor, wanted, copy, inputs=str(dict(strategy.params).get(INPUTS.key, PLAIN)))

    @staticmethod
    def _untouched(tensor: OutputTensor, strategy: Strategy, format: Format) -> bool:
        """Whether no value is to change: kept, or asked for in the very type it has."""
        if strategy.format == KEEP:
            return True
        return strategy.method == "nearest" and format.name.upper() == tensor.dtype

    def _native(self, tensor: OutputTensor, format: Format) -> bool:
        """Whether the source's stored bytes are, as they stand, what the container would store."""
        name = tensor.source.verbatim()
        info = None if name is None else self.checkpoint.tensors.get(name)
        if info is None:
            return False
        key = (format, tensor.dtype, tensor.shape, len(tensor.source.beside()))
        if key not in self.native:
            stored = self.target.stored(Assignment(tensor, format, copy=True))
            alone = len(stored) == 1 + len(tensor.source.beside())
            self.native[key] = (stored[0].dtype, stored[0].nbytes) if alone else None
        return self.native[key] == (info.dtype, info.nbytes)


def _problems(
    planned: Sequence[PlannedTensor],
    resolved: Sequence[Resolved],
    outline: Outline,
    target: Target,
    statistics: frozenset[Statistic],
    known: Known,
    unread: str,
    recipe: Recipe,
) -> Iterable[Problem]:
    if unread:
        yield Problem(
            "error",
            f"the weights are stored as codes of {unread}, which this version does not read back",
            hint="start from the original weights",
        )
    yield from demands.needs(planned, statistics)
    yield from demands.inputs(planned, target, statistics, known)
    yield from demands.blind(planned, recipe, statistics)
    yield from demands.unweighted(planned, outline, statistics, known)
    for o in target.objections([t.assignment for t in planned]):
        yield Problem(o.severity, o.message, o.tensor, o.hint)
    if not any(t.quantized for t in planned):
        yield _nothing(planned, resolved, target)
    both = list(zip(planned, resolved, strict=True))

    def kept(kind: str) -> list[tuple[str, str]]:
        return [(t.tensor.name, f"kept: {r.reason}") for t, r in both if r.fallback and r.extras.get("kept") == kind]

    yield from listed("warning", kept(MISFIT), "it stays unquantized; give it another format")
    yield from listed(
        "warning", kept(REFUSED), "it stays unquantized; give it another format, or choose another target"
    )
    yield from listed(
        "warning",
        [
            (t.tensor.name, f"is {t.tensor.dtype} already, and loses again as {t.strategy}")
            for t in planned
            if _again(t)
        ],
        "start from the original weights",
    )
    merged = [(t.tensor.name, str(r.extras["sources"])) for t, r in both if "sources" in r.extras]
    yield from listed("warning", merged, "the first source decides; let one rule name all of them")
    changed = [(t.tensor.name, r.reason) for t, r in both if r.fallback and r.strategy.format != KEEP]
    yield from listed("note", changed, "")
    methods = _folding()
    moving = sorted({t.strategy.method for t in planned if _folds(t.strategy, methods)})
    if moving:
        yield Problem(
            "note",
            f"{' and '.join(moving)} may rescale norms and weights of the blocks: errors are told against "
            "the rescaled ones, and a comparison with the original's weights says nothing; compare what the models say",
        )
    yield from listed("note", [(name, f"left out: {why}") for name, why in outline.dropped.items()], "")
    yield from (Problem("note", text) for text in outline.notes)


def _nothing(planned: Sequence[PlannedTensor], resolved: Sequence[Resolved], target: Target) -> Problem:
    """Everything is kept: the reason that says most, of the tensor that matters most."""
    if not planned:
        return Problem("error", "nothing to quantize: the checkpoint holds no tensors")
    telling: Callable[[int], tuple[bool, int]] = lambda i: (resolved[i].fallback, planned[i].tensor.numel)  # noqa: E731
    index = max(range(len(planned)), key=telling)
    why = resolved[index].reason or "the recipe keeps it"
    hint = "choose another format or target"
    return Problem("error", f"nothing to quantize for {target.name}: kept, {why}", planned[index].tensor.name, hint)


def _again(t: PlannedTensor) -> bool:
    """Whether an already quantized tensor is quantized a second time."""
    if not t.quantized or t.copy or t.format.family == "dense":
        return False
    known = GGML_TYPES.get(t.tensor.dtype)
    stored = known.quantized if known is not None else t.tensor.dtype not in DTYPES
    return stored or t.tensor.dtype.startswith(("F8_", "F4"))
