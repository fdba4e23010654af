"""The way of the samples through a model, one decoder block at a time.

Memory holds one block and what was gathered of its inputs. forward.py runs the model around its blocks, states.py keeps
the hidden states and how far they have come, by_tensor.py says which checkpoint tensors the statistics belong to.

    walk = Walk(…)
    for index in range(walk.next, walk.count):
        statistics = walk.gather(index)       the block's inputs, as the blocks before left them
        walk.advance(index, replace)          the samples go on through the block, with other weights if given
    walk.head()                               the inputs of what follows the last block
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from core.calibration.by_tensor import by_tensor
from core.calibration.forward import Arguments, Forward, Reached, same_arguments
from core.calibration.gathering import KEPT_TOKENS, Gatherer, Split
from core.calibration.library import quiet
from core.calibration.purpose import CALIBRATION, Purpose
from core.calibration.skeleton import Replace, Skeleton
from core.calibration.states import States
from core.calibration.statistics import Statistic, TensorStatistics
from core.calibration.text import Samples
from core.checkpoints.base import Checkpoint
from core.context import SILENT, JobContext
from core.errors import CalibrationError

if TYPE_CHECKING:
    import torch

# Tokens that go through a block together, at most (a sample at least).
BATCH_TOKENS = 2048


def _keep(name: str) -> torch.Tensor | None:
    return None


class Walk:
    """One walk of the samples.

    folder  for hidden states: two files of 4 bytes · samples · length · hidden size
    identity  of the walk, by which a stopped one goes on; "" for one that nobody goes on with
    kinds   of statistics to gather
    batches how many parts the samples go through in
    ctx     progress in samples of the block at work
    raises  CalibrationError: what the model does cannot be followed block by block; OSError for the folder
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        samples: Samples,
        folder: Path,
        identity: str,
        kinds: frozenset[Statistic],
        device: str = "cpu",
        ctx: JobContext = SILENT,
        purpose: Purpose = CALIBRATION,
    ) -> None:
        import torch

        self.checkpoint, self.kinds, self.device, self.ctx = checkpoint, kinds, device, ctx
        self._states = States(folder, identity)
        self.ids = torch.from_numpy(samples.ids)
        count, length = self.ids.shape
        self.batch = next(n for n in range(max(1, min(count, BATCH_TOKENS // length)), 0, -1) if count % n == 0)
        self.batches = count // self.batch
        self._share = min(1.0, KEPT_TOKENS / (count * length))
        with quiet():
            self.skeleton = Skeleton(checkpoint, device, purpose)
            self.count = len(self.skeleton.blocks)
            self._check_ids()
            self._forward = Forward(self.skeleton, self.ids)
            self._states.resume(self.count)
            self._prepare()

    @property
    def next(self) -> int:
        """The first block that is not finished: 0, or more after a walk with this folder and identity was stopped."""
        return self._states.next

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the hidden states of all samples: samples, length, hidden size."""
        return self._states.shape

    def sources(self, block: int) -> tuple[str, ...]:
        """Checkpoint tensors of a block."""
        return self.skeleton.sources(self.skeleton.blocks[block])

    def part(self, n: int) -> slice:
        """The samples of a batch."""
        return slice(n * self.batch, (n + 1) * self.batch)

    def hidden(self, batch: int) -> torch.Tensor:
        """float32 [samples, length, hidden size]: the states of a batch before the block that is next."""
        return self._read(self.next, self.part(batch))

    def restart(self) -> None:
        """From the first block, whatever was finished."""
        if self.next:
            self._states.next = 0
            with quiet():
                self._prepare()

    def close(self) -> None:
        """The walk is over: its files go, and what was kept of its blocks."""
        self._states.close()
        for path in self._states.folder.glob("block-*.npz"):
            path.unlink(missing_ok=True)

    # Before the blocks

    def _check_ids(self) -> None:
        words = self.skeleton.model.get_input_embeddings().weight.shape[0]
        largest = int(self.ids.max())
        if largest >= words:
            raise CalibrationError(
                f"the tokenizer gives token {largest:,}, and the model knows {words:,}",
                "do tokenizer and weights belong together?",
                self.checkpoint.path,
            )

    def _prepare(self) -> None:
        """Runs everything before the blocks once: first hidden states, and what each block is given besides them."""
        self._inputs: list[list[Arguments]] = []  # by block and batch
        with self._loaded(""):
            self._forward.probe(self.part(0))
            shared: dict[int, Arguments] = {}
            for batch in range(self.batches):
                self.ctx.check()
                hidden, calls = self._forward.arguments(self.part(batch))
                if not batch:
                    self._states.open((len(self.ids), *hidden.shape[1:]))
                if not self.next:
                    self._states.write(0, self.part(batch), hidden)
                for n, given in enumerate(calls):
                    if n in shared and same_arguments(shared[n], given):
                        given = shared[n]
                    shared.setdefault(n, given)
                    if len(self._inputs) <= n:
                        self._inputs.append([])
                    self._inputs[n].append(given)
            self._states.flush(0)

    # Through a block

    def gather(
        self,
        block: int,
        onward: Callable[[dict[str, TensorStatistics]], None] | None = None,
        replace: Replace = _keep,
    ) -> dict[str, TensorStatistics]:
        """Statistics of the inputs of a block's matrices, by checkpoint tensor.

        onward  the samples go through at once, as `advance` without other weights has it, and the block is finished
                once this has kept its statistics
        replace other weights, where it has them
        raises  CalibrationError, DeviceError, Cancelled
        """
        assert block == self.next
        with quiet(), self._loaded(self.skeleton.blocks[block], replace):
            found = by_tensor(self._pass(block, onward is not None), self.skeleton)
        if onward is not None:
            onward(found)
            self._states.finish(block)
        return found

    def advance(self, block: int, replace: Replace = _keep) -> None:
        """The samples go through a block with other weights where `replace` has them. raises as `gather` does"""
        assert block == self.next
        name = self.skeleton.blocks[block]
        with quiet(), self._loaded(name, replace):
            for batch in range(self.batches):
                self.ctx.check()
                self._through(block, batch, True)
                self._told(batch, name)
        self._states.finish(block)

    @contextmanager
    def loaded(self, block: int, replace: Replace = _keep) -> Iterator[Callable[[], torch.Tensor]]:
        """A block with its weights, others where `replace` has them, and a way to run the first batch through it: gives
        hidden states, float32. raises as `gather` does"""

        def forward() -> torch.Tensor:
            self.ctx.check()
            return self._made_of(block, 0)

        with quiet(), self._loaded(self.skeleton.blocks[block], replace):
            yield forward

    @contextmanager
    def _loaded(self, part: str, replace: Replace = _keep) -> Iterator[None]:
        self.skeleton.load(part, replace)
        try:
            yield
        finally:
            self.skeleton.release(part)

    def _pass(self, block: int, onward: bool) -> Gatherer:
        prefix = self.skeleton.blocks[block]
        module = self.skeleton.model.get_submodule(prefix)
        parameters = {f"{prefix}.{name}": p for name, p in module.named_parameters()}
        for sharing in (True, False):
            gatherer = Gatherer(parameters, self.kinds, self._share, sharing)
            try:
                for batch in range(self.batches):
                    self.ctx.check()
                    with gatherer.active():
                        self._through(block, batch, onward)
                    self._told(batch, prefix)
                return gatherer
            except Split:
                assert sharing
        raise AssertionError

    def _through(self, block: int, batch: int, onward: bool) -> None:
        hidden = self._made_of(block, batch)
        if onward:
            if not bool(hidden.isfinite().all()):
                raise CalibrationError(
                    "its outputs hold NaN or Inf on the text",
                    "is the checkpoint sound?",
                    self.skeleton.blocks[block],
                )
            self._states.write(block + 1, self.part(batch), hidden)

    def _made_of(self, block: int, batch: int) -> torch.Tensor:
        """The states behind a loaded block."""
        hidden = self._read(block, self.part(batch))
        return self._forward.block(self.skeleton.blocks[block], hidden, self._inputs[block][batch])

    def _read(self, block: int, samples: slice) -> torch.Tensor:
        """The states of samples before a block; behind the last one, before the block of number `count`."""
        return self._states.read(block, samples).to(self.device)

    def _told(self, batch: int, what: str) -> None:
        self.ctx.progress((batch + 1) * self.batch, len(self.ids), what)

    # Behind the blocks

    def head(self) -> dict[str, TensorStatistics]:
        """Statistics of the inputs of the output head; empty for a model without one. raises as `gather` does"""
        assert self.next == self.count
        model = self.skeleton.model
        head = model.get_output_embeddings()
        if head is None:
            return {}
        with quiet(), self._loaded(""):
            name = next(n for n, p in model.named_parameters(remove_duplicate=False) if p is head.weight)
            gatherer = Gatherer({name: head.weight}, self.kinds, self._share, stop=Reached)
            for batch in range(self.batches):
                self.ctx.check()
                part = self.part(batch)
                self._forward.until(part, partial(self._read, self.count, part), gatherer.active())
                self._told(batch, "the head")
            return by_tensor(gatherer, self.skeleton)

    @contextmanager
    def predicting(self) -> Iterator[Callable[[int], torch.Tensor]]:
        """After all blocks, a function: number of a sample → logits, float32 [length, vocabulary]. raises as `gather`
        does"""
        assert self.next == self.count

        def logits(sample: int) -> torch.Tensor:
            one = slice(sample, sample + 1)
            return self._forward.logits(one, partial(self._read, self.count, one))[0].float()

        with quiet(), self._loaded(""):
            yield logits
