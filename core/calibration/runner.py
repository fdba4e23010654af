"""Gathering without quantizing: the samples go through the model as it is, as llama-imatrix does it. The result is kept
and used again for the same checkpoint, text and settings.

Quantizing each block before the samples go on is the engine's business (core/engine/stages.py).
"""

from __future__ import annotations

from collections.abc import Callable

from core.calibration import kept
from core.calibration.statistics import Statistic, Statistics, TensorStatistics
from core.calibration.text import Samples, TextSettings, read_samples
from core.calibration.walk import Walk
from core.checkpoints.base import Checkpoint
from core.context import SILENT, JobContext

# What a walk through the whole model can keep of every tensor. Hessians of all tensors at once would not fit.
LIGHT = frozenset({Statistic.IMPORTANCE, Statistic.ABSMAX, Statistic.RANGE})
# What is known of a block while its samples go through.
ALL = LIGHT | {Statistic.HESSIAN, Statistic.ACTIVATIONS, Statistic.MAGNITUDE}
_RESULT = "statistics.npz"


class Counted:
    """Progress of a walk, told in samples of the block at work; its checks are the caller's.

    doing  what the samples are there for
    say    told the share of the block's samples that is through, and this in words
    """

    def __init__(self, ctx: JobContext, say: Callable[[float, str], None] = lambda share, text: None) -> None:
        self.check, self.partial = ctx.check, ctx.partial
        self.doing, self.say = "gathering", say

    def progress(self, done: int, total: int, note: str = "") -> None:
        self.say(done / max(1, total), f"{note}: {self.doing}, {done:,} of {total:,} samples")


def gather(
    checkpoint: Checkpoint, settings: TextSettings, *, device: str = "cpu", ctx: JobContext = SILENT
) -> tuple[Statistics, Samples]:
    """LIGHT statistics of every matrix of the model, by checkpoint name, and the samples they come from.

    ctx     progress in bytes of the checkpoint
    raises  CalibrationError, MissingExtra, CheckpointError, DeviceError, OutputError (no room to work in), Cancelled.
            What a stopped walk finished stays, and the next one goes on from there
    """
    samples = read_samples(checkpoint, settings)
    before = kept_statistics(checkpoint, samples)
    if before is not None:
        return before, samples
    identity = _identity(checkpoint, samples)
    folder = kept.folder_of("light", *identity)
    told = Counted(ctx)
    walk = Walk(checkpoint, samples, folder, repr(identity), LIGHT, device, told)
    found: dict[str, TensorStatistics] = {}
    for block in range(walk.next):
        done = kept.load(folder / f"block-{block}.npz")
        if done is None:
            walk.restart()
            found.clear()
            break
        found |= done[0]
    sizes = [sum(checkpoint.tensors[name].nbytes for name in walk.sources(n)) for n in range(walk.count)]
    for block in range(walk.next, walk.count):
        passed = sum(sizes[:block])
        ctx.progress(passed, sum(sizes), walk.skeleton.blocks[block])

        def say(share: float, text: str, passed: int = passed, size: int = sizes[block]) -> None:
            ctx.progress(passed + int(share * size), sum(sizes), text)

        told.say = say

        def keep(tensors: dict[str, TensorStatistics], block: int = block) -> None:
            kept.save(folder / f"block-{block}.npz", tensors)

        found |= walk.gather(block, onward=keep)
    told.say = lambda share, text: ctx.progress(sum(sizes), sum(sizes), text)
    found |= walk.head()
    ctx.progress(sum(sizes), sum(sizes))
    kept.save(folder / _RESULT, found)
    walk.close()
    return kept.as_store(found, samples.name, len(samples.ids)), samples


def kept_statistics(checkpoint: Checkpoint, samples: Samples) -> Statistics | None:
    """What an earlier `gather` found with these samples, or None."""
    known = kept.load(kept.folder_of("light", *_identity(checkpoint, samples)) / _RESULT)
    return None if known is None else kept.as_store(known[0], samples.name, len(samples.ids))


def _identity(checkpoint: Checkpoint, samples: Samples) -> tuple[str, ...]:
    return checkpoint.fingerprint(), samples.identity, kept.libraries()
