"""What methods, presets and clients ask for and a plan may lack: statistics, columns few enough, words for inputs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from core.calibration.statistics import Statistic
from core.engine.known import Known
from core.engine.model import Planned, PlannedTensor, Problem
from core.errors import RecipeError
from core.formats.ggml.format import UNWEIGHTED, GgmlFormat
from core.parameters import PLAIN, STATIC
from core.recipes.model import Recipe
from core.targets.base import STATIC_NEEDS, Outline, Target

if TYPE_CHECKING:
    from core.formats.base import Format
    from core.methods import Method

# Findings of one kind that are listed tensor by tensor; the rest is counted.
LISTED = 20


def listed(severity: str, found: Sequence[tuple[str, str]], hint: str) -> Iterable[Problem]:
    """One problem per (tensor, message), as long as there are not too many to read; then one per message for the rest,
    and in the end one for all that is left."""
    for name, message in found[:LISTED]:
        yield Problem(severity, message, name, hint)
    rest: dict[str, list[str]] = {}
    for name, message in found[LISTED:]:
        rest.setdefault(message, []).append(name)
    messages = list(rest)
    for message in messages[:LISTED]:
        first, *others = rest[message]
        yield Problem(severity, message, first, hint, tuple(others))
    if len(messages) > LISTED:
        first, *others = (name for message in messages[LISTED:] for name in rest[message])
        yield Problem(severity, f"{messages[LISTED]}, or the like", first, hint, tuple(others))


def needs(planned: Planned, statistics: frozenset[Statistic]) -> Iterable[Problem]:
    """Methods that do not exist, those whose statistics nobody will gather, matrices too large for theirs, and formats
    on which they do badly."""
    from core.methods import get_method

    ready: dict[str, Method] = {}
    first: dict[str, str] = {}
    for t in planned.samples:
        if t.quantized:
            first.setdefault(t.strategy.method, t.tensor.name)
    for named, name in first.items():
        try:
            ready[named] = get_method(named)
        except RecipeError as error:
            yield Problem("error", error.message, name, error.hint)
            continue
        missing = ready[named].needs - statistics
        if missing:
            words = ", ".join(sorted(s.value for s in missing))
            yield Problem(
                "error",
                f"{named} needs calibration data ({words})",
                name,
                "give a calibration text, or take the method nearest",
            )

    def large(i: int) -> str | None:
        t = planned.tensors[i]
        method = ready.get(t.strategy.method) if t.quantized else None
        return None if method is None else method.too_large(t.tensor.columns) or None

    def doubtful(i: int) -> str | None:
        t = planned.tensors[i]
        method = ready.get(t.strategy.method) if t.quantized else None
        return None if method is None else method.doubt(t.format, dict(t.strategy.params)) or None

    yield from listed("error", planned.said(large), "take another method there")
    yield from listed("warning", planned.said(doubtful), "the error of each layer's output is in the report")


def inputs(planned: Planned, target: Target, statistics: frozenset[Statistic], known: Known) -> Iterable[Problem]:
    """Inputs that the container has no word for, and static ones whose range nobody knows."""

    def refused(t: PlannedTensor) -> str | None:
        return None if t.inputs == PLAIN else target.refuses_inputs(t.format, t.inputs)

    later = statistics >= STATIC_NEEDS and known.provenance is None  # the run will gather them
    unknown: list[tuple[str, str]] = []
    for t in () if later else planned.where(lambda t: t.inputs == STATIC and not refused(t)):
        there = known.tensors.get(t.tensor.name)
        if there is None or not there.knows(STATIC_NEEDS):
            unknown.append((t.tensor.name, "static inputs need calibration data (absmax, range)"))
    said = planned.said(lambda i: refused(planned.tensors[i]) or None)
    yield from listed("error", said, "leave inputs out, or choose another format or target")
    yield from listed("error", unknown, "calibrate with a text, or take inputs=dynamic")


def blind(planned: Planned, recipe: Recipe, statistics: frozenset[Statistic]) -> Iterable[Problem]:
    """Presets that nobody makes without importance data: llama-quantize refuses them."""
    from core.recipes.presets import get_preset

    if Statistic.IMPORTANCE in statistics:
        return
    used = {t.rule for t in planned.samples if t.quantized}
    names = dict.fromkeys(rule.preset for i, rule in enumerate(recipe.rules) if rule.preset and i in used)
    for name in names:
        if get_preset(name).needs_importance:
            yield Problem(
                "error",
                f"{name} needs importance data: llama.cpp does not make it without",
                hint="give --imatrix or --calibration, or take Q2_K or a larger preset",
            )


def unweighted(planned: Planned, outline: Outline, statistics: frozenset[Statistic], known: Known) -> Iterable[Problem]:
    """Tensors about whose columns nothing is known, where it matters."""
    importance = Statistic.IMPORTANCE
    later = importance in statistics and known.provenance is None  # the run will gather it
    required: list[tuple[str, str]] = []
    missing: list[tuple[str, str]] = []
    looked_up: list[tuple[str, str]] = []
    unreached: list[tuple[str, str]] = []

    def concerned(t: PlannedTensor) -> bool:
        """Whether importance can matter here, and anything can be said about it."""
        if not t.quantized or t.copy or t.format.family == "dense":
            return False
        return t.format.needs_importance or (known.provenance is not None and _weighs(t.format))

    for t in planned.where(concerned):
        name = t.tensor.name
        there = known.tensors.get(name)
        # Rows of an embedding are looked up, not multiplied; one that serves as head is both.
        no_inputs = t.tensor.role.kind == "embedding" and not outline.tied
        if there is None or importance not in there.values:
            if t.format.needs_importance and (no_inputs or not later):
                required.append((name, f"{t.format.name} cannot be written without importance data"))
            elif known.provenance is not None and _weighs(t.format):
                listed_in = looked_up if t.tensor.role.kind in ("embedding", "head") else missing
                listed_in.append((name, "no importance data: all columns count the same"))
        elif not all(there.counts) and _weighs(t.format):
            none = there.counts.count(0)
            unreached.append((name, f"no token reached {none} of {len(there.counts)} experts: all columns count there"))
    yield from listed("error", required, "give it another format, or importance data that covers it")
    yield from listed("warning", missing, "gather the importance matrix again")
    yield from listed("note", looked_up, "")
    yield from listed("note", unreached, "")
    if known.strangers:
        more = f" and {len(known.strangers) - 1:,} more" if len(known.strangers) > 1 else ""
        yield Problem("note", f"importance data for {known.strangers[0]}{more} has no tensor here")


def _weighs(format: Format) -> bool:
    """Whether importance can change what is written."""
    return not (isinstance(format, GgmlFormat) and format.type_name in UNWEIGHTED)
