"""A model's perplexity on a text, and another model's distance to it.

Both models go through the text together, one decoder block at a time: memory holds one block of each, their heads, and
the logits of one window; hidden states lie in files of their own until the end.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from core.calibration.statistics import Statistic
from core.calibration.walk import Walk
from core.checkpoints.base import Checkpoint
from core.context import SILENT, JobContext
from core.engine.devices import parse_device
from core.engine.memory import PeakMemory
from core.errors import EvaluationError, OutputError
from core.evaluation.figures import Counts, Distance, Perplexity
from core.evaluation.layers import LayerError, layer_errors
from core.evaluation.text import EVALUATION, Windows

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class BlockError:
    """How far hidden states are from the original's behind a block: Σ(h−ĥ)²/Σh² over all tokens. The errors of all
    blocks before it are in it."""

    name: str
    relative_error: float


@dataclass(frozen=True)
class Against:
    """The other model. layers and blocks: empty where they were not asked for."""

    perplexity: Perplexity
    distance: Distance
    blocks: tuple[BlockError, ...]
    layers: tuple[LayerError, ...] = ()


@dataclass(frozen=True)
class Evaluation:
    """seconds  of it all; tokens_per_second: tokens read, scored or not, over these, per model"""

    perplexity: Perplexity
    against: Against | None
    windows: int
    tokens: int
    seconds: float
    tokens_per_second: float
    peak_rss_bytes: int
    device: str


def evaluate(
    checkpoint: Checkpoint,
    windows: Windows,
    *,
    against: Checkpoint | None = None,
    layers: bool = False,
    device: str = "cpu",
    ctx: JobContext = SILENT,
) -> Evaluation:
    """Perplexity of a model, and, where `against` is given, of another one with its distance to it.

    checkpoint  the original: a folder, or what subjects.py makes of something else. against: the same model otherwise
    layers      the output error of every matrix on the original's activations, too
    ctx         progress in tokens, each counted once per model
    raises      EvaluationError, CalibrationError, CheckpointError, MissingExtra, DeviceError, OutputError, Cancelled
    """
    began = time.perf_counter()
    device = parse_device(device)
    _check_window(checkpoint, windows)
    memory = PeakMemory()
    models = [checkpoint] if against is None else [checkpoint, against]
    with ExitStack() as stack:
        folder = _folder()
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        ids = windows.samples.ids
        said = _Said(ctx, ids.size * len(models))
        watched = frozenset({Statistic.HESSIAN}) if layers and against is not None else frozenset[Statistic]()
        walks = []
        for n, model in enumerate(models):
            kinds = frozenset[Statistic]() if n else watched
            walks.append(Walk(model, windows.samples, folder / str(n), "", kinds, device, said, EVALUATION))
        said.parts = len(models) * (walks[0].count + 1)
        _check_same(walks)
        blocks: list[BlockError] = []
        errors: list[LayerError] = []
        for block in range(walks[0].count):
            memory.sample()
            if watched:
                found = walks[0].gather(block, onward=lambda kept: None)
            else:
                walks[0].advance(block)
            said.next()
            if against is not None:
                walks[1].advance(block)
                said.next()
                blocks.append(BlockError(walks[0].skeleton.blocks[block], _drift(walks[0], walks[1])))
            if watched and against is not None:
                errors += layer_errors(found, checkpoint, against, ctx)
        counts = _predict(walks, windows, said)
        memory.sample()
    seconds = time.perf_counter() - began
    other = None
    if against is not None:
        other = Against(counts.other_perplexity(), counts.distance(), tuple(blocks), tuple(errors))
    return Evaluation(
        counts.perplexity(),
        other,
        windows.count,
        ids.size,
        seconds,
        ids.size * len(models) / seconds,
        memory.peak(),
        device,
    )


class _Said:
    """Progress of parts of equal weight (a block, a head) as tokens; its checks are the caller's."""

    def __init__(self, ctx: JobContext, tokens: int) -> None:
        self.check, self.partial = ctx.check, ctx.partial
        self._ctx, self._tokens = ctx, tokens
        self._done = 0
        self.parts = 0

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Within a part."""
        if self.parts:
            share = (self._done + done / max(1, total)) / self.parts
            self._ctx.progress(int(self._tokens * share), self._tokens, note)

    def next(self) -> None:
        self._done += 1


def _folder() -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix="quantbench-evaluation-"))
    except OSError as error:
        raise OutputError(
            f"evaluation has no room to work in: {error.strerror or error}",
            "set TMPDIR to a folder with room",
            tempfile.gettempdir(),
        ) from error


def _check_window(checkpoint: Checkpoint, windows: Windows) -> None:
    config = checkpoint.config or {}
    inner = config.get("text_config")
    limits = [
        part.get(key)
        for part in (config, inner if isinstance(inner, dict) else {})
        for key in ("max_position_embeddings", "n_positions")
    ]
    limit = next((n for n in limits if isinstance(n, int) and n > 0), None)
    length = windows.samples.ids.shape[1]
    if limit is not None and length > limit:
        raise EvaluationError(
            f"a window of {length:,} tokens is longer than the {limit:,} that the model was made for",
            "give a smaller --window",
            checkpoint.path,
        )


def _check_same(walks: list[Walk]) -> None:
    """Whether two models can be compared at all."""
    if len(walks) < 2:
        return
    a, b = (walk.skeleton.model.config.get_text_config() for walk in walks)
    for key in ("num_hidden_layers", "hidden_size", "vocab_size"):
        if getattr(a, key, None) != getattr(b, key, None):
            raise EvaluationError(
                f"has {key} {getattr(b, key, None)}, the original {getattr(a, key, None)}",
                "compare a model with what was made from it",
                walks[1].checkpoint.path,
            )


def _drift(a: Walk, b: Walk) -> float:
    wrong = right = 0.0
    for batch in range(a.batches):
        wanted, found = a.hidden(batch).double(), b.hidden(batch).double()
        wrong += float((found - wanted).square().sum())
        right += float(wanted.square().sum())
    return wrong / right if right else 0.0


def _predict(walks: list[Walk], windows: Windows, said: _Said) -> Counts:
    """The last step: logits window by window."""
    import torch

    counts = Counts()
    ids = torch.from_numpy(windows.samples.ids)
    with ExitStack() as stack:
        logits = [stack.enter_context(walk.predicting()) for walk in walks]
        for n, first in enumerate(windows.first):
            said.check()
            made: list[torch.Tensor] = [predict(n) for predict in logits]
            try:
                counts.add(ids[n], first, *made)
            except ValueError as error:
                raise EvaluationError(
                    "its predictions hold NaN or Inf on the text",
                    "is the checkpoint sound?",
                    walks[error.args[1]].checkpoint.path,
                ) from error
            said.progress((n + 1) * len(walks), windows.count, "predictions")
    return counts


def without_layers(result: Evaluation) -> Evaluation:
    """The same without its long lists."""
    if result.against is None:
        return result
    return replace(result, against=replace(result.against, blocks=(), layers=()))
