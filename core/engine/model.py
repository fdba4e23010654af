"""The records the engine passes around: plan, problems, reports. How they come about is in plan.py, preflight.py and
pipeline.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from core.calibration.statistics import Statistic
from core.calibration.text import Samples
from core.engine.known import Known
from core.formats.base import Format
from core.kinds import Kinds
from core.parameters import INPUTS, PLAIN
from core.recipes.model import KEEP, Recipe, Strategy
from core.targets.base import Assignment, Layout, Outline, OutputTensor, Target


@dataclass(frozen=True)
class Problem:
    """One finding of preflight. severity: "error" stops the run, "warning" and "note" do not; others: names of tensors
    beside `tensor` of which the same is said."""

    severity: str
    message: str
    tensor: str = ""
    hint: str = ""
    others: tuple[str, ...] = ()

    @property
    def said(self) -> str:
        """The message, and of how many tensors more."""
        more = len(self.others)
        return f"{self.message} (and {more:,} more tensor{'s' if more > 1 else ''})" if more else self.message

    def __str__(self) -> str:
        line = f"{self.tensor}: {self.said}" if self.tensor else self.said
        return f"{line}; {self.hint}" if self.hint else line


@dataclass(frozen=True)
class Fate:
    """What becomes of output tensors that are alike (`OutputTensor.kind`) and meet the same rule: one for all of them.

    strategy  its format is "keep" when not quantized
    format    what is stored
    nbytes    of all that is stored of one tensor
    """

    strategy: Strategy
    format: Format
    copy: bool
    rule: int
    rule_text: str
    reason: str
    fallback: bool
    nbytes: int

    @property
    def quantized(self) -> bool:
        return self.strategy.format != KEEP

    @property
    def inputs(self) -> str:
        """What is to happen to the layer's inputs: PLAIN, DYNAMIC or STATIC of core/parameters.py."""
        return str(dict(self.strategy.params).get(INPUTS.key, PLAIN))


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """One output tensor and its fate."""

    tensor: OutputTensor
    fate: Fate

    @property
    def strategy(self) -> Strategy:
        return self.fate.strategy

    @property
    def format(self) -> Format:
        return self.fate.format

    @property
    def copy(self) -> bool:
        return self.fate.copy

    @property
    def rule(self) -> int:
        return self.fate.rule

    @property
    def rule_text(self) -> str:
        return self.fate.rule_text

    @property
    def reason(self) -> str:
        return self.fate.reason

    @property
    def fallback(self) -> bool:
        return self.fate.fallback

    @property
    def nbytes(self) -> int:
        return self.fate.nbytes

    @property
    def quantized(self) -> bool:
        return self.fate.strategy.format != KEEP

    @property
    def inputs(self) -> str:
        return self.fate.inputs

    @property
    def bpw(self) -> float:
        return 8 * self.nbytes / self.tensor.numel if self.tensor.numel else 0.0

    @property
    def assignment(self) -> Assignment:
        return Assignment(self.tensor, self.format, self.copy, inputs=self.inputs)


class Planned:
    """All planned tensors, and which of them are alike and have one fate: what is asked of one is asked once per kind.

    tensors  in the container's order
    """

    def __init__(self, tensors: Sequence[PlannedTensor], kinds: Kinds | None = None) -> None:
        self.tensors = tensors
        self.kinds = kinds or Kinds.by(id(t.fate) for t in tensors)

    @property
    def samples(self) -> list[PlannedTensor]:
        """The first of each kind, in order."""
        return [self.tensors[i] for i in self.kinds.first]

    def where(self, question: Callable[[PlannedTensor], object]) -> list[PlannedTensor]:
        """Those to which the answer is yes, in order."""
        found = self.kinds.share([bool(question(t)) for t in self.samples])
        return [self.tensors[i] for i in found.where(bool)]

    def said(self, word: Callable[[int], str | None]) -> list[tuple[str, str]]:
        """(name, word) of the tensors about which there is something to say.

        word  asked with the index of the first of each kind
        """
        words = self.kinds.share([word(i) for i in self.kinds.first])
        return [(self.tensors[i].tensor.name, words[i] or "") for i in words.where(lambda w: w is not None)]


@dataclass(frozen=True)
class Plan:
    """The whole run before its first byte. `tensors` are in the container's order.

    nbytes       exact size of all files written
    source       the checkpoint's path; fingerprint: Checkpoint.fingerprint() when planned
    known        statistics of the output tensors that are there already
    kinds        statistics that the run can count on: known ones, and those that it will gather
    calibration  the samples that go through the model while it is quantized, or None
    """

    source: Path
    fingerprint: str
    target: Target
    recipe: Recipe
    outline: Outline
    tensors: tuple[PlannedTensor, ...]
    layout: Layout
    problems: tuple[Problem, ...] = ()
    known: Known = field(default_factory=Known)
    kinds: frozenset[Statistic] = frozenset()
    calibration: Samples | None = None

    @property
    def nbytes(self) -> int:
        return self.layout.nbytes

    @property
    def folder(self) -> bool:
        """Whether the output is a folder: the target's custom, or the parts of a file of limited size."""
        return self.target.folder or self.layout.in_parts

    @cached_property
    def planned(self) -> Planned:
        return Planned(self.tensors)

    @cached_property
    def bpw(self) -> float:
        """Stored bits per weight over all tensors (headers and side files left out)."""
        each = list(zip(self.planned.samples, self.planned.kinds.counts(), strict=True))
        count = sum(t.tensor.numel * n for t, n in each)
        return 8 * sum(t.nbytes * n for t, n in each) / count if count else 0.0


@dataclass(frozen=True)
class TensorReport:
    """What happened to one tensor. Errors are against the source in float32; None for copied bytes.

    sqnr_db       10·log₁₀(Σw²/Σ(w−ŵ)²), inf when exact
    relative_mse  Σ(w−ŵ)²/Σw²
    cosine        of the flattened tensors
    output_error  Σ‖(W−Ŵ)x‖²/Σ‖Wx‖² over the calibration's tokens, where their Hessian was known; no weight error
    """

    name: str
    strategy: str
    nbytes: int
    numel: int
    seconds: float
    sqnr_db: float | None = None
    relative_mse: float | None = None
    max_abs: float | None = None
    cosine: float | None = None
    fallbacks: tuple[str, ...] = ()
    output_error: float | None = None


@dataclass(frozen=True)
class Report:
    """A finished run."""

    out: Path
    nbytes: int
    seconds: float
    weights: int
    peak_rss_bytes: int
    device: str
    tensors: tuple[TensorReport, ...]
    fallbacks: tuple[str, ...] = ()
    notes: Mapping[str, str] = field(default_factory=dict)

    @property
    def weights_per_second(self) -> float:
        return self.weights / self.seconds if self.seconds > 0 else 0.0
