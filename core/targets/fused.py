"""Modules that vLLM computes as one: their weights become one matrix, in one format, under one scale of the tensor."""

from __future__ import annotations

from collections.abc import Iterable

from core.ordering import order_of
from core.parameters import PLAIN
from core.targets.assignments import Assignments
from core.targets.base import Assignment, Objection
from core.targets.folder import module_of, quantizes

# What it calls the whole, and the last part of the names of what it joins (`packed_modules_mapping` of its models).
FUSED = (
    ("qkv_proj", ("q_proj", "k_proj", "v_proj")),
    ("gate_up_proj", ("gate_proj", "up_proj")),
    ("qkv_proj", ("query", "key", "value")),
    ("merged_qkv", ("wq", "wk", "wv")),
    ("w13", ("w1", "w3")),
    ("fused_qkv_a_proj", ("q_a_proj", "kv_a_proj_with_mqa")),
    ("in_proj_qkvz", ("in_proj_qkv", "in_proj_z")),
    ("in_proj_ba", ("in_proj_b", "in_proj_a")),
)
_WHOLE = {part: (whole, parts) for whole, parts in FUSED for part in parts}


def bundles(modules: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Name of the whole → names of its parts, for every whole all of whose parts are among the modules."""
    have = set(modules)
    found: dict[str, tuple[str, ...]] = {}
    names = list(have)
    for module in map(names.__getitem__, order_of(names)):
        stem, dot, last = module.rpartition(".")
        if last in _WHOLE:
            whole, parts = _WHOLE[last]
            joined = tuple(f"{stem}{dot}{part}" for part in parts)
            if have.issuperset(joined):
                found[f"{stem}{dot}{whole}"] = joined
    return found


def joined(assignments: Assignments) -> list[tuple[Assignment, ...]]:
    """The weights of every bundle that is there as a whole."""
    by_module = {module_of(a.tensor): a for a in assignments.where(_part)}
    return [tuple(by_module[part] for part in parts) for parts in bundles(by_module).values()]


def unlike(assignments: Assignments, *, alike: bool = False) -> Iterable[Objection]:
    """One warning where weights that vLLM joins differ: it refuses such a folder, though others load it.

    alike  all that is quantized is the same to it, and only whether a weight is counts; else its format counts, and
           what happens to its inputs
    """

    def scheme(a: Assignment) -> object:
        return (None if alike else (a.format, a.inputs)) if quantizes(a.format) else "plain"

    if len({scheme(a) for a in assignments.samples if _part(a)}) < 2:
        return
    for bundle in joined(assignments):
        first = bundle[0]
        for other in bundle[1:]:
            if scheme(other) != scheme(first):
                yield Objection(
                    "warning",
                    other.tensor.name,
                    f"is {_words(other)}, {first.tensor.name} is {_words(first)}: vLLM computes the two as one and "
                    "refuses a folder where they differ",
                    "give them the same format if vLLM is to load it",
                )
                return


def _part(assignment: Assignment) -> bool:
    """Whether vLLM may join this weight with others."""
    return assignment.tensor.linear and module_of(assignment.tensor).rpartition(".")[2] in _WHOLE


def _words(assignment: Assignment) -> str:
    name = assignment.format.name
    return name if assignment.inputs == PLAIN else f"{name} with {assignment.inputs} inputs"
