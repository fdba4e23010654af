"""The plan: every output tensor's format, every byte's place, and what is known to be wrong before an output is named.

What needs the output path or the device is in preflight.py; what a recipe decides is in core/recipes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from core.calibration.runner import ALL
from core.calibration.statistics import Provenance, Statistic, Statistics
from core.calibration.text import Samples
from core.checkpoints.dialects import unread_quantization
from core.context import SILENT, JobContext
from core.engine import demands
from core.engine.demands import listed
from core.engine.known import Known, bind, by_source
from core.engine.model import Fate, Plan, Planned, PlannedTensor, Problem
from core.formats.ggml.types import GGML_TYPES
from core.kinds import Shared
from core.parameters import INPUTS, PLAIN
from core.recipes.model import KEEP, Recipe, Resolved, Strategy
from core.recipes.resolving import MISFIT, REFUSED, resolve
from core.targets.assignments import Assignments
from core.targets.base import Assignment, Layout, Outline, Target
from core.tensors import DTYPES

if TYPE_CHECKING:
    import numpy as np

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
    there = statistics | known.kinds
    ctx.check()
    resolved = resolve(recipe, outline, target, importance=Statistic.IMPORTANCE in there)
    ctx.check()
    assignments = _Assigner(checkpoint, target, outline, resolved).all()
    ctx.check()
    layout = target.layout(checkpoint, outline, assignments, label_of(recipe), shard_bytes)
    kinds = assignments.kinds
    fates = kinds.share([_fate(assignments[i], resolved[i], layout) for i in kinds.first])
    tensors = tuple(map(PlannedTensor, outline.tensors, fates))
    return Plan(
        source=checkpoint.path,
        fingerprint=checkpoint.fingerprint(),
        target=target,
        recipe=recipe,
        outline=outline,
        tensors=tensors,
        layout=layout,
        problems=tuple(
            _problems(
                Planned(tensors, kinds),
                assignments,
                resolved,
                outline,
                target,
                there,
                known,
                unread_quantization(checkpoint),
                recipe,
            )
        ),
        known=known,
        kinds=there,
        calibration=calibration,
    )


def _fate(assignment: Assignment, decision: Resolved, layout: Layout) -> Fate:
    return Fate(
        strategy=decision.strategy,
        format=assignment.format,
        copy=assignment.copy,
        rule=decision.rule,
        rule_text=decision.rule_text,
        reason=decision.reason,
        fallback=decision.fallback,
        nbytes=stored_bytes(layout, assignment.tensor.name),
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


def _folding() -> frozenset[str]:
    """The methods that may rescale what lies beside a layer."""
    from core.methods import METHODS

    return frozenset(m.name for m in METHODS if m.folds)


def _folds(strategy: Strategy, folding: frozenset[str]) -> bool:
    return strategy.method in folding and strategy.format != KEEP


class _Assigner:
    """From decisions to what is stored, asked once per kind of tensor and decision. Only whether the source's bytes are
    those that would be stored is looked up tensor by tensor."""

    def __init__(self, checkpoint: Checkpoint, target: Target, outline: Outline, resolved: Shared[Resolved]) -> None:
        self.checkpoint = checkpoint
        self.target = target
        self.tensors = outline.tensors
        self.resolved = resolved
        self.kinds = outline.kinds.split(resolved.of)

    def all(self) -> Assignments:
        formats = self.kinds.share([self._format(i) for i in self.kinds.first])
        copies = self._copies(formats)
        kinds = self.kinds.split(copies)
        stored = kinds.share([(formats[i], bool(copies[i]), False, self._inputs(i)) for i in kinds.first])
        return Assignments([Assignment(t, *given) for t, given in zip(self.tensors, stored, strict=True)], kinds)

    def _format(self, index: int) -> Format:
        from core.formats import get_format

        strategy, tensor = self.resolved[index].strategy, self.tensors[index]
        if strategy.format == KEEP:
            return self.target.keeps(tensor)
        return self.target.adapt(get_format(strategy.format), tensor)

    def _inputs(self, index: int) -> str:
        return str(dict(self.resolved[index].strategy.params).get(INPUTS.key, PLAIN))

    def _copies(self, formats: Shared[Format]) -> np.ndarray:
        """bool [tensors]: where the source's stored bytes are, as they stand, what the container would store, and no
        value is to change."""
        import numpy as np

        found = np.zeros(len(self.tensors), bool)
        native = self.kinds.share([self._native(i, formats[i]) for i in self.kinds.first])
        there, layers = self.checkpoint.tensors, self._folded_layers()
        for index in native.where(lambda known: known is not None):
            tensor = self.tensors[index]
            info = there.get(tensor.source.verbatim() or "")
            if info is not None and (info.dtype, info.nbytes) == native[index]:
                found[index] = tensor.role.layer not in layers or formats[index].name not in WRITABLE
        return found

    def _native(self, index: int, format: Format) -> tuple[str, int] | None:
        """dtype and bytes that a source must have to go over as it is; None where it cannot."""
        tensor, strategy = self.tensors[index], self.resolved[index].strategy
        untouched = strategy.format == KEEP or (strategy.method == "nearest" and format.name.upper() == tensor.dtype)
        if not untouched or tensor.source.verbatim() is None:
            return None
        stored = self.target.stored(Assignment(tensor, format, copy=True))
        alone = len(stored) == 1 + len(tensor.source.beside())
        return (stored[0].dtype, stored[0].nbytes) if alone else None

    def _folded_layers(self) -> set[int | None]:
        """Where a method may fold its scales into a layer's other tensors, these are written as numbers, not as the
        bytes that are there: the same bytes as long as nothing is folded."""
        folding = _folding()
        folded = self.resolved.where(lambda decision: _folds(decision.strategy, folding))
        return {self.tensors[i].role.layer for i in folded} - {None}


def _problems(
    planned: Planned,
    assignments: Assignments,
    resolved: Shared[Resolved],
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
    for o in target.objections(assignments):
        yield Problem(o.severity, o.message, o.tensor, o.hint)
    if not any(t.quantized for t in planned.samples):
        yield _nothing(planned, resolved, target)

    def kept(kind: str) -> list[tuple[str, str]]:
        def word(i: int) -> str | None:
            r = resolved[i]
            return f"kept: {r.reason}" if r.fallback and r.extras.get("kept") == kind else None

        return planned.said(word)

    def again(i: int) -> str | None:
        t = planned.tensors[i]
        return f"is {t.tensor.dtype} already, and loses again as {t.strategy}" if _again(t) else None

    def changed(i: int) -> str | None:
        r = resolved[i]
        return r.reason if r.fallback and r.strategy.format != KEEP else None

    yield from listed("warning", kept(MISFIT), "it stays unquantized; give it another format")
    yield from listed(
        "warning", kept(REFUSED), "it stays unquantized; give it another format, or choose another target"
    )
    yield from listed("warning", planned.said(again), "start from the original weights")
    merged = [
        (outline.tensors[i].name, str(resolved[i].extras["sources"]))
        for i in resolved.where(lambda r: "sources" in r.extras)
    ]
    yield from listed("warning", merged, "the first source decides; let one rule name all of them")
    yield from listed("note", planned.said(changed), "")
    methods = _folding()
    moving = sorted({t.strategy.method for t in planned.samples if _folds(t.strategy, methods)})
    if moving:
        yield Problem(
            "note",
            f"{' and '.join(moving)} may rescale norms and weights of the blocks: errors are told against "
            "the rescaled ones, and a comparison with the original's weights says nothing; compare what the models say",
        )
    yield from listed("note", [(name, f"left out: {why}") for name, why in outline.dropped.items()], "")
    yield from (Problem("note", text) for text in outline.notes)


def _nothing(planned: Planned, resolved: Shared[Resolved], target: Target) -> Problem:
    """Everything is kept: the reason that says most, of the tensor that matters most."""
    if not planned.tensors:
        return Problem("error", "nothing to quantize: the checkpoint holds no tensors")
    index = max(planned.kinds.first, key=lambda i: (resolved[i].fallback, planned.tensors[i].tensor.numel))
    why = resolved[index].reason or "the recipe keeps it"
    message = f"nothing to quantize for {target.name}: kept, {why}"
    return Problem("error", message, planned.tensors[index].tensor.name, "choose another format or target")


def _again(t: PlannedTensor) -> bool:
    """Whether an already quantized tensor is quantized a second time."""
    if not t.quantized or t.copy or t.format.family == "dense":
        return False
    known = GGML_TYPES.get(t.tensor.dtype)
    stored = known.quantized if known is not None else t.tensor.dtype not in DTYPES
    return stored or t.tensor.dtype.startswith(("F8_", "F4"))
