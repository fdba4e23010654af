"""What the window knows of a model's activations: which text or importance matrix was chosen, what it came to, and how
a plan and a run use it. No Qt; the jobs are started by app/calibrator.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from core.calibration.text import LENGTH, SAMPLES, SEED, TextSettings
from core.context import JobContext
from core.errors import CalibrationError

if TYPE_CHECKING:
    import torch

    from core.calibration.statistics import Statistic, Statistics
    from core.calibration.text import Samples
    from core.checkpoints.base import Checkpoint
    from core.engine.model import Plan, PlannedTensor
    from core.recipes.model import Recipe

Source = Literal["", "text", "imatrix"]


@dataclass(frozen=True, slots=True)
class CalibrationChoice:
    """What the user chose.

    source  "": nothing; "text": samples go through the model; "imatrix": a file says how much columns matter
    path    of the text (None: Python's standard library) or of the importance matrix
    samples, length, seed  of a text, as core.calibration.text.TextSettings says
    """

    source: Source = ""
    path: Path | None = None
    samples: int = SAMPLES
    length: int = LENGTH
    seed: int = SEED

    @property
    def label(self) -> str:
        """ "calib.txt · 128 × 512 tokens", "model.imatrix.gguf", or "" for nothing."""
        if self.source == "imatrix":
            return self.path.name if self.path is not None else ""
        if self.source == "text":
            from core.calibration.text import STANDARD_LIBRARY

            name = self.path.name if self.path is not None else STANDARD_LIBRARY
            return f"{name} · {self.samples:,} × {self.length:,} tokens"
        return ""

    @property
    def settings(self) -> TextSettings:
        return TextSettings(self.path, self.samples, self.length, self.seed)


@dataclass(frozen=True, eq=False)
class CalibrationData:
    """What a choice came to.

    samples   of a text, as the model's tokenizer cuts it
    gathered  statistics by tensor, from the file or from a walk through the model; None: not gathered yet
    error     why there is nothing, one line, or ""
    """

    choice: CalibrationChoice = field(default_factory=CalibrationChoice)
    samples: Samples | None = None
    gathered: Statistics | None = None
    error: str = ""


NOTHING = CalibrationData()


@dataclass(frozen=True)
class CalibrationRequest:
    checkpoint: Checkpoint
    choice: CalibrationChoice
    device: str = "cpu"


def load_task(request: CalibrationRequest, ctx: JobContext) -> CalibrationData:
    """Reads the file, or cuts the text into samples and looks for what an earlier walk kept of them. Takes seconds.

    raises  CalibrationError, MissingExtra, CheckpointError
    """
    choice = request.choice
    if choice.source == "imatrix":
        from core.calibration.imatrix import read_imatrix

        if choice.path is None:
            raise CalibrationError("no importance matrix is chosen", "choose a file that llama-imatrix wrote")
        return CalibrationData(choice, gathered=read_imatrix(choice.path))
    if choice.source == "text":
        from core.calibration.runner import kept_statistics
        from core.calibration.text import read_samples

        samples = read_samples(request.checkpoint, choice.settings)
        ctx.check()
        return CalibrationData(choice, samples, kept_statistics(request.checkpoint, samples))
    return CalibrationData(choice)


def gather_task(request: CalibrationRequest, ctx: JobContext) -> CalibrationData:
    """Sends the samples through the model as it is. Progress in bytes of the checkpoint; what a stopped walk finished
    is kept, and the next one goes on from there.

    raises  as core.calibration.runner.gather
    """
    from core.calibration.runner import gather

    gathered, samples = gather(request.checkpoint, request.choice.settings, device=request.device, ctx=ctx)
    return CalibrationData(request.choice, samples, gathered)


def needs_of(recipe: Recipe) -> frozenset[Statistic]:
    """What the methods of a recipe's rules use."""
    from core.methods import get_method

    methods: Iterable[str] = {r.method if r.strategy is None else r.strategy.method for r in recipe.rules}
    return frozenset[Any]().union(*(get_method(name).needs for name in methods))


def walks_along(recipe: Recipe) -> bool:
    """Whether samples must go through the model while it is quantized: some method uses more than one walk through the
    whole model can keep."""
    from core.calibration.runner import LIGHT

    return not needs_of(recipe) <= LIGHT


def plan_options(data: CalibrationData | None, recipe: Recipe) -> dict[str, Any]:
    """What make_plan is to know. None: the choice is still being read; then methods are promised what they need.

    raises  CalibrationError: the choice came to nothing
    """
    from core.calibration.runner import ALL

    if data is None:
        return {"statistics": ALL}
    if data.error:
        raise CalibrationError(data.error)
    if data.samples is not None and (data.gathered is None or walks_along(recipe)):
        return {"calibration": data.samples}
    if data.gathered is not None:
        return {"gathered": data.gathered}
    return {}


def statistics_of(plan: Plan, planned: PlannedTensor) -> Mapping[Statistic, torch.Tensor]:
    """What the plan knows of a tensor's inputs, for a look at some of its rows. Experts have statistics of their own,
    and a look that is spread over all of them goes without."""
    from core.engine.known import as_tensors

    known = plan.known.tensors.get(planned.tensor.name)
    return {} if known is None or known.stacked else as_tensors(known, "cpu")
