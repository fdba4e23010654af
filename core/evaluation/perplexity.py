"""A model's perplexity on a text, and another model's distance to it.

Both models go through the text together, one decoder block at a time: memory holds one block of each, their heads, and
the logits of one window; hidden states lie in files of their own until the end. What the original made of the text is
kept (originals.py), so that it need not go through it again for the next model.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from core.calibration.statistics import Statistic, TensorStatistics
from core.calibration.walk import Walk
from core.checkpoints.base import Checkpoint
from core.context import SILENT, JobContext
from core.engine.devices import parse_device
from core.engine.memory import PeakMemory
from core.errors import EvaluationError, OutputError
from core.evaluation import originals
from core.evaluation.figures import Counts, Distance, Perplexity
from core.evaluation.layers import LayerError, layer_errors
from core.evaluation.originals import Kept, Recorder, Sizes
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
    """seconds  of it all; tokens_per_second: tokens read, scored or not, over these, per model that went through them
    kept     the original's part comes from an earlier evaluation
    """

    perplexity: Perplexity
    against: Against | None
    windows: int
    tokens: int
    seconds: float
    tokens_per_second: float
    peak_rss_bytes: int
    device: str
    kept: bool = False


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
    with ExitStack() as stack:
        folder = _folder()
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        name = originals.identity(checkpoint, windows, device)
        watched = frozenset({Statistic.HESSIAN}) if layers and against is not None else frozenset[Statistic]()
        kept = originals.find(name, windows.first, device) if name and not watched else None
        models = [m for m in (checkpoint if kept is None else None, against) if m is not None]
        ids = windows.samples.ids
        said = _Said(ctx, ids.size * max(1, len(models)))

        def walk(model: Checkpoint, number: int, kinds: frozenset[Statistic]) -> Walk:
            return Walk(model, windows.samples, folder / str(number), "", kinds, device, said, EVALUATION)

        first = None if kept is not None else walk(checkpoint, 0, watched)
        second = None if against is None else walk(against, 1, frozenset())
        sizes = kept.sizes if kept is not None else _sizes(first)
        if second is not None:
            _check_same(sizes, second)
        recorder = originals.Recorder(name if kept is None else "", sizes, windows.scored)
        stack.callback(recorder.drop)
        said.parts = len(models) * (len(sizes.blocks) + 1) or 1
        blocks: list[BlockError] = []
        errors: list[LayerError] = []
        for block, label in enumerate(sizes.blocks):
            memory.sample()
            found: dict[str, TensorStatistics] = {}
            if first is not None:
                if watched:
                    found = first.gather(block, onward=lambda kept: None)
                else:
                    first.advance(block)
                for batch in range(first.batches):
                    recorder.hidden(block, first.part(batch), first.hidden(batch))
                said.next()
            if second is not None:
                second.advance(block)
                said.next()
                blocks.append(BlockError(label, _drift(kept or first, second, block)))
            if found and against is not None:
                errors += layer_errors(found, checkpoint, against, ctx)
        counts = _predict(kept or first, second, windows, said, recorder)
        recorder.finish()
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
        kept is not None,
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


_KEYS = ("num_hidden_layers", "hidden_size", "vocab_size")


def _sizes(walk: Walk | None) -> Sizes:
    assert walk is not None
    config = walk.skeleton.model.config.get_text_config()
    return Sizes(walk.skeleton.blocks, walk.shape, {key: getattr(config, key, None) for key in _KEYS})


def _check_same(original: Sizes, other: Walk) -> None:
    """Whether two models can be compared at all."""
    found = _sizes(other)
    for key in _KEYS:
        if original.keys[key] != found.keys[key]:
            raise EvaluationError(
                f"has {key} {found.keys[key]}, the original {original.keys[key]}",
                "compare a model with what was made from it",
                other.checkpoint.path,
            )


def _drift(original: Walk | Kept | None, other: Walk, block: int) -> float:
    assert original is not None
    wrong = right = 0.0
    for batch in range(other.batches):
        states = original.hidden(block, other.part(batch)) if isinstance(original, Kept) else original.hidden(batch)
        wanted, found = states.double(), other.hidden(batch).double()
        wrong += float((found - wanted).square().sum())
        right += float(wanted.square().sum())
    return wrong / right if right else 0.0


def _predict(
    original: Walk | Kept | None, other: Walk | None, windows: Windows, said: _Said, recorder: Recorder
) -> Counts:
    """The last step: logits window by window."""
    import torch

    assert original is not None
    counts = Counts()
    ids = torch.from_numpy(windows.samples.ids)
    with ExitStack() as stack:
        walks = [walk for walk in (original, other) if isinstance(walk, Walk)]
        logits = [stack.enter_context(walk.predicting()) for walk in walks]
        for n, first in enumerate(windows.first):
            said.check()
            # Position n predicts token n + 1.
            made: list[torch.Tensor] = [predict(n)[first - 1 : -1] for predict in logits]
            if isinstance(original, Kept):
                made.insert(0, original.logits(n))
            recorder.logits(made[0])
            try:
                counts.add(ids[n, first:], *made)
            except ValueError as error:
                # What is kept of an original has passed here before: the wrong one went through the text just now.
                wrong = walks[-1 if error.args[1] else 0]
                raise EvaluationError(
                    "its predictions hold NaN or Inf on the text", "is the checkpoint sound?", wrong.checkpoint.path
                ) from error
            said.progress((n + 1) * max(1, len(walks)), windows.count, "predictions")
    return counts
