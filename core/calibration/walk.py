"""The way of the samples through a model, one decoder block at a time.

Memory holds one block and what was gathered of its inputs; the hidden states of all samples lie in two files, one read
and one written in turn. Each finished block is noted there, so that a walk that was stopped goes on from it. Where
nobody goes on with a walk, its states stay in memory up to SPILL_BYTES.

    walk = Walk(…)
    for index in range(walk.next, walk.count):
        statistics = walk.gather(index)       the block's inputs, as the blocks before left them
        walk.advance(index, replace)          the samples go on through the block, with other weights if given
    walk.head()                               the inputs of what follows the last block
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.calibration.gathering import KEPT_TOKENS, Gatherer, Key, Split, Watched
from core.calibration.library import quiet
from core.calibration.purpose import CALIBRATION, Purpose
from core.calibration.skeleton import Piece, Replace, Skeleton
from core.calibration.statistics import Statistic, TensorStatistics, stack, together
from core.calibration.text import Samples
from core.checkpoints.base import Checkpoint
from core.context import SILENT, JobContext
from core.errors import CalibrationError, Cancelled, WorkbenchError

if TYPE_CHECKING:
    import numpy as np
    import torch

# Tokens that go through a block together, at most (a sample at least).
BATCH_TOKENS = 2048
# Hidden states of a walk without identity, both sides of a block together.
SPILL_BYTES = 1 << 30
_STATE = "walk.json"


class _Reached(Watched):
    """The forward has come as far as it was wanted."""


def _keep(name: str) -> torch.Tensor | None:
    return None


class Walk:
    """One walk of the samples.

    folder  for hidden states: two files of 4 bytes · samples · length · hidden size
    identity  of the walk, by which a stopped one goes on; "" for one that nobody goes on with
    kinds   of statistics to gather
    batches how many parts the samples go through in
    next    the first block that is not finished: 0, or more after a walk with this folder and identity was stopped
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

        self.checkpoint, self.folder, self.identity = checkpoint, folder, identity
        self.kinds, self.device, self.ctx = kinds, device, ctx
        folder.mkdir(parents=True, exist_ok=True)
        self.ids = torch.from_numpy(samples.ids)
        count, length = self.ids.shape
        self.batch = next(n for n in range(max(1, min(count, BATCH_TOKENS // length)), 0, -1) if count % n == 0)
        self.batches = count // self.batch
        self._share = min(1.0, KEPT_TOKENS / (count * length))
        with quiet():
            self.skeleton = Skeleton(checkpoint, device, purpose)
            self.count = len(self.skeleton.blocks)
            self._check_ids()
            self._tuple = False
            self.next = self._resumed()
            self._prepare()

    # What blocks are given besides hidden states

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
        skeleton = self.skeleton
        self._inputs: list[list[tuple[tuple[Any, ...], dict[str, Any]]]] = []
        skeleton.load("")
        try:
            self._shape_of_output()
            shared: dict[int, tuple[tuple[Any, ...], dict[str, Any]]] = {}
            for batch in range(self.batches):
                self.ctx.check()
                calls = self._record(batch)
                if not batch:
                    hidden = calls[0][2]
                    self._open((len(self.ids), *hidden.shape[1:]))
                if not self.next:
                    self._write(0, batch, calls[0][2])
                for n, (args, options, _) in enumerate(calls):
                    if n in shared and _same(shared[n], (args, options)):
                        args, options = shared[n]
                    shared.setdefault(n, (args, options))
                    if len(self._inputs) <= n:
                        self._inputs.append([])
                    self._inputs[n].append((args, options))
            self._flush(0)
        finally:
            skeleton.release("")

    def _forward(self, samples: slice) -> Any:
        """Logits of the whole model on some of the ids, unless something raises _Reached before."""
        try:
            return self.skeleton.model(input_ids=self.ids[samples].to(self.device)).logits
        except (WorkbenchError, Cancelled, Watched):
            raise
        except Exception as error:  # a foreign model's code
            raise self._failed("the model", error) from error

    def _failed(self, what: str, error: Exception) -> WorkbenchError:
        from core.errors import DeviceError, one_line

        if "out of memory" in str(error).lower() or isinstance(error, MemoryError):
            return DeviceError(f"{self.device} has no memory left for {what}", self.skeleton.purpose.shorter)
        return CalibrationError(
            f"{what} cannot be run: {one_line(error)[:200]}", self.skeleton.purpose.otherwise, self.checkpoint.path
        )

    def _shape_of_output(self) -> None:
        """Whether blocks return hidden states alone, or in front of something: some models ask for the one, some for
        the other. The first block is run to see."""
        block = self.skeleton.model.get_submodule(self.skeleton.blocks[0])
        given: list[Any] = []

        def stop(*args: Any, **options: Any) -> None:
            given.append((args, options))
            raise _Reached

        block.forward = stop
        try:
            self._forward(self.part(0))
        except _Reached:
            pass
        finally:
            del block.forward
        if not given:
            raise CalibrationError("the model does not run its decoder blocks", where=self.checkpoint.path)
        self.skeleton.load(self.skeleton.blocks[0])
        try:
            args, options = given[0]
            self._tuple = isinstance(self._run(self.skeleton.blocks[0], args, options), tuple)
        finally:
            self.skeleton.release(self.skeleton.blocks[0])

    def _record(self, batch: int) -> list[tuple[tuple[Any, ...], dict[str, Any], torch.Tensor]]:
        """Arguments of every block, without the hidden states, and these. Blocks do nothing meanwhile."""
        calls: list[tuple[tuple[Any, ...], dict[str, Any], Any]] = []

        def call(n: int, *args: Any, **options: Any) -> Any:
            hidden, args, options = _apart(args, options)
            if n != len(calls) or (calls and hidden is not calls[-1][2]):
                raise CalibrationError(
                    "the model does something to hidden states between its blocks, which cannot be followed",
                    self.skeleton.purpose.otherwise,
                    self.checkpoint.path,
                )
            calls.append((args, options, hidden))
            if n == self.count - 1:
                raise _Reached
            return (hidden,) if self._tuple else hidden

        self._with_blocks(call, lambda: self._forward(self.part(batch)))
        if len(calls) < self.count:
            raise CalibrationError(
                f"the model runs {len(calls)} of its {self.count} blocks on a text",
                self.skeleton.purpose.otherwise,
                self.checkpoint.path,
            )
        return calls

    def _with_blocks(self, call: Any, run: Any) -> None:
        """`run` with every block's forward replaced by call(number, …)."""
        from functools import partial

        blocks = [self.skeleton.model.get_submodule(name) for name in self.skeleton.blocks]
        for n, block in enumerate(blocks):
            block.forward = partial(call, n)
        try:
            run()
        except _Reached:
            pass
        finally:
            for block in blocks:
                del block.forward

    def _run(self, name: str, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        try:
            return self.skeleton.model.get_submodule(name)(*args, **options)
        except (WorkbenchError, Cancelled, Watched):
            raise
        except Exception as error:  # a foreign model's code
            raise self._failed(name, error) from error

    # Hidden states

    def _open(self, shape: tuple[int, ...]) -> None:
        """The two files. What a stopped walk left in them is taken over, or it begins again."""
        import numpy as np

        if not self.identity and 8 * int(np.prod(shape)) <= SPILL_BYTES:
            self._files: list[np.ndarray] = [np.zeros(shape, np.float32) for _ in range(2)]
            return
        paths = [self.folder / f"hidden-{n}.f32" for n in range(2)]
        nbytes = 4 * int(np.prod(shape))
        if not all(path.is_file() and path.stat().st_size == nbytes for path in paths):
            self.next = 0
        mode: Any = "r+" if self.next else "w+"
        self._files = [np.memmap(path, np.float32, mode, shape=shape) for path in paths]

    def _resumed(self) -> int:
        try:
            state = json.loads((self.folder / _STATE).read_text())
            found = int(state["next"]) if state["identity"] == self.identity else 0
        except (OSError, ValueError, KeyError, TypeError):
            return 0
        return found if 0 < found <= self.count else 0

    def restart(self) -> None:
        """From the first block, whatever was finished."""
        if self.next:
            self.next = 0
            with quiet():
                self._prepare()

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the hidden states of all samples: samples, length, hidden size."""
        return tuple(self._files[0].shape)

    def part(self, n: int) -> slice:
        """The samples of a batch."""
        return slice(n * self.batch, (n + 1) * self.batch)

    def _read(self, block: int, batch: int) -> torch.Tensor:
        return self._states(block, self.part(batch))

    def _states(self, block: int, samples: slice) -> torch.Tensor:
        import torch

        array: np.ndarray = self._files[block % 2][samples]
        return torch.from_numpy(array.copy()).to(self.device)

    def _write(self, block: int, batch: int, hidden: torch.Tensor) -> None:
        """Hidden states before a block: those of one block lie in the one file, those of the next in the other."""
        self._files[block % 2][self.part(batch)] = hidden.float().cpu().numpy()

    def _finish(self, block: int) -> None:
        self.next = block + 1
        if not self.identity:
            return
        self._flush((block + 1) % 2)
        state = self.folder / _STATE
        partial = state.with_suffix(".partial")
        partial.write_text(json.dumps({"identity": self.identity, "next": block + 1}))
        os.replace(partial, state)

    def _flush(self, file: int) -> None:
        """What was written so far survives us. Only where somebody may go on with it."""
        import numpy as np

        states = self._files[file]
        if self.identity and isinstance(states, np.memmap):
            states.flush()

    def close(self) -> None:
        """The walk is over: its files go."""
        self._files.clear()
        for path in (*(self.folder / f"hidden-{n}.f32" for n in range(2)), self.folder / _STATE):
            path.unlink(missing_ok=True)
        for path in self.folder.glob("block-*.npz"):
            path.unlink(missing_ok=True)

    # Blocks

    def sources(self, block: int) -> tuple[str, ...]:
        """Checkpoint tensors of a block."""
        return self.skeleton.sources(self.skeleton.blocks[block])

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
        name = self.skeleton.blocks[block]
        with quiet():
            self.skeleton.load(name, replace)
            try:
                gatherer = self._pass(block, onward is not None)
                found = self._by_tensor(gatherer)
            finally:
                self.skeleton.release(name)
        if onward is not None:
            onward(found)
            self._finish(block)
        return found

    def advance(self, block: int, replace: Replace = _keep) -> None:
        """The samples go through a block with other weights where `replace` has them. raises as `gather` does"""
        assert block == self.next
        name = self.skeleton.blocks[block]
        with quiet():
            self.skeleton.load(name, replace)
            try:
                for batch in range(self.batches):
                    self.ctx.check()
                    self._through(block, batch, True)
                    self._told(batch, name)
            finally:
                self.skeleton.release(name)
        self._finish(block)

    @contextmanager
    def loaded(self, block: int, replace: Replace = _keep) -> Iterator[Callable[[], torch.Tensor]]:
        """A block with its weights, others where `replace` has them, and a way to run the first batch through it: gives
        hidden states, float32. raises as `gather` does"""
        name = self.skeleton.blocks[block]

        def forward() -> torch.Tensor:
            self.ctx.check()
            hidden = self._read(block, 0)
            args, options = self._inputs[block][0]
            out = self._run(name, (hidden, *args), options)
            return out[0] if isinstance(out, tuple) else out

        with quiet():
            self.skeleton.load(name, replace)
            try:
                yield forward
            finally:
                self.skeleton.release(name)

    def _pass(self, block: int, onward: bool) -> Gatherer:
        module = self.skeleton.model.get_submodule(self.skeleton.blocks[block])
        prefix = self.skeleton.blocks[block]
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

    def _told(self, batch: int, what: str) -> None:
        self.ctx.progress((batch + 1) * self.batch, len(self.ids), what)

    def _through(self, block: int, batch: int, onward: bool) -> None:
        hidden = self._read(block, batch)
        args, options = self._inputs[block][batch]
        args, options = (hidden, *args), options
        out = self._run(self.skeleton.blocks[block], args, options)
        if onward:
            hidden = out[0] if isinstance(out, tuple) else out
            if not bool(hidden.isfinite().all()):
                raise CalibrationError(
                    "its outputs hold NaN or Inf on the text",
                    "is the checkpoint sound?",
                    self.skeleton.blocks[block],
                )
            self._write(block + 1, batch, hidden)

    def head(self) -> dict[str, TensorStatistics]:
        """Statistics of the inputs of the output head; empty for a model without one. raises as `gather` does"""
        assert self.next == self.count
        head = self.skeleton.model.get_output_embeddings()
        if head is None:
            return {}
        with quiet():
            self.skeleton.load("")
            try:
                name = next(
                    n for n, p in self.skeleton.model.named_parameters(remove_duplicate=False) if p is head.weight
                )
                gatherer = Gatherer({name: head.weight}, self.kinds, self._share)
                for batch in range(self.batches):
                    self.ctx.check()
                    self._to_head(batch, gatherer)
                    self._told(batch, "the head")
                return self._by_tensor(gatherer)
            finally:
                self.skeleton.release("")

    def _to_head(self, batch: int, gatherer: Gatherer) -> None:
        def run() -> None:
            with gatherer.active():
                self._forward(self.part(batch))

        gatherer.stop = _Reached
        self._with_blocks(self._behind(self.part(batch)), run)

    def _behind(self, samples: slice) -> Any:
        """What stands for the blocks once all are finished: the last one returns what they made of these samples."""

        def call(n: int, *args: Any, **options: Any) -> Any:
            hidden, _, _ = _apart(args, options)
            if n == self.count - 1:
                hidden = self._states(self.count, samples)
            return (hidden,) if self._tuple else hidden

        return call

    def hidden(self, batch: int) -> torch.Tensor:
        """float32 [samples, length, hidden size]: the states of a batch before the block that is next."""
        return self._read(self.next, batch)

    @contextmanager
    def predicting(self) -> Iterator[Callable[[int], torch.Tensor]]:
        """After all blocks, a function: number of a sample → logits, float32 [length, vocabulary]. raises as `gather`
        does"""
        assert self.next == self.count
        made: list[torch.Tensor] = []

        def logits(sample: int) -> torch.Tensor:
            one = slice(sample, sample + 1)
            self._with_blocks(self._behind(one), lambda: made.append(self._forward(one)))
            return made.pop()[0].float()

        with quiet():
            self.skeleton.load("")
            try:
                yield logits
            finally:
                self.skeleton.release("")

    def _by_tensor(self, gatherer: Gatherer) -> dict[str, TensorStatistics]:
        """Statistics of parameters as those of the checkpoint tensors that they are made from."""
        seen: dict[Key, TensorStatistics] = gatherer.statistics()
        stacks = {(name, turned) for name, expert, turned in seen if expert is not None}
        for name, turned in stacks:
            columns = next(s.columns for (n, _, t), s in seen.items() if (n, t) == (name, turned))
            for matrix in range(gatherer.parameters[name].shape[0]):
                seen.setdefault((name, matrix, turned), _unreached(columns))
        found: dict[str, dict[int | None, list[tuple[Piece, TensorStatistics]]]] = {}
        for (name, expert, turned), known in seen.items():
            for piece in self.skeleton.origin(name, expert, turned):
                found.setdefault(piece.name, {}).setdefault(piece.expert, []).append((piece, known))
        return {name: self._of_tensor(name, parts) for name, parts in found.items()}

    def _of_tensor(self, name: str, parts: dict[int | None, list[tuple[Piece, TensorStatistics]]]) -> TensorStatistics:
        def one(pairs: Sequence[tuple[Piece, TensorStatistics]]) -> TensorStatistics:
            known = together([known for _, known in pairs])
            return TensorStatistics(known.values, known.counts, transposed=pairs[0][0].transposed)

        if None in parts:
            return one(parts[None])
        experts = self.checkpoint.tensors[name].shape[0]
        each = [one(parts[e]) for e in range(experts)]
        columns = each[0].columns
        reached = next((e for e in each if any(e.counts)), None)
        if reached is not None:
            each = [e if any(e.counts) else _unreached(columns, reached) for e in each]
        return stack(each)


def _unreached(columns: int, like: TensorStatistics | None = None) -> TensorStatistics:
    """Of an expert that no token reached: importance 1, and nothing else that says anything."""
    import numpy as np

    values = {kind: np.zeros_like(array) for kind, array in like.values.items()} if like is not None else {}
    values[Statistic.IMPORTANCE] = np.ones(columns, np.float32)
    return TensorStatistics(values, (0,), transposed=like is not None and like.transposed)


def _apart(args: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """Hidden states, and the other arguments: they come first, or by name."""
    if args:
        return args[0], args[1:], options
    rest = dict(options)
    return rest.pop("hidden_states"), (), rest


def _same(a: Any, b: Any) -> bool:
    """Whether two sets of arguments are equal, tensors by their values."""
    import torch

    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)
