"""Running a model whose decoder blocks are loaded one at a time: what comes before the blocks, one block by itself,
what comes after them.

Blocks that are not loaded are stood in for, so that the model's own code decides what each block is given. Whatever
that code raises becomes an error of ours.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from core.calibration.gathering import Watched
from core.calibration.skeleton import Skeleton
from core.errors import CalibrationError, Cancelled, DeviceError, WorkbenchError, one_line

if TYPE_CHECKING:
    import torch

# What a block is given besides hidden states: positional arguments, and those by name.
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class Reached(Watched):
    """The forward has come as far as it was wanted."""


class Forward:
    """The forward of a skeleton on these ids, int64 [samples, length].

    Every method raises CalibrationError or DeviceError where the model cannot be run, and Cancelled.
    """

    def __init__(self, skeleton: Skeleton, ids: torch.Tensor) -> None:
        self.skeleton, self.ids = skeleton, ids
        # Whether blocks return hidden states in front of something, or alone.
        self._tuple = False

    def block(self, name: str, hidden: torch.Tensor, given: Arguments) -> torch.Tensor:
        """What a loaded block makes of hidden states, [samples, length, hidden size]."""
        args, options = given
        out = self._run(name, (hidden, *args), options)
        return out[0] if isinstance(out, tuple) else out

    def logits(self, samples: slice, states: Callable[[], torch.Tensor]) -> torch.Tensor:
        """[samples, length, vocabulary]: what follows the last block, loaded as the part "", makes of these states."""
        found: list[torch.Tensor] = []
        self._with_blocks(self._behind(states), lambda: found.append(self._model(samples)))
        return found.pop()

    def until(self, samples: slice, states: Callable[[], torch.Tensor], watched: Any) -> None:
        """As `logits`, inside a context that may raise Reached."""

        def run() -> None:
            with watched:
                self._model(samples)

        self._with_blocks(self._behind(states), run)

    def probe(self, samples: slice) -> None:
        """Sees whether blocks return hidden states alone, or in front of something: some models ask for the one, some
        for the other. The first block is loaded and run."""
        name = self.skeleton.blocks[0]
        block = self.skeleton.model.get_submodule(name)
        given: list[Any] = []

        def stop(*args: Any, **options: Any) -> None:
            given.append((args, options))
            raise Reached

        block.forward = stop
        try:
            self._model(samples)
        except Reached:
            pass
        finally:
            del block.forward
        if not given:
            raise CalibrationError("the model does not run its decoder blocks", where=self.skeleton.checkpoint.path)
        self.skeleton.load(name)
        try:
            args, options = given[0]
            self._tuple = isinstance(self._run(name, args, options), tuple)
        finally:
            self.skeleton.release(name)

    def arguments(self, samples: slice) -> tuple[torch.Tensor, list[Arguments]]:
        """Hidden states before the first block, and what each block is given besides them. Blocks do nothing meanwhile.
        After `probe`."""
        count = len(self.skeleton.blocks)
        calls: list[Arguments] = []
        states: list[torch.Tensor] = []

        def call(n: int, *args: Any, **options: Any) -> Any:
            hidden, args, options = _apart(args, options)
            if n != len(calls) or (states and hidden is not states[0]):
                raise self._otherwise(
                    "the model does something to hidden states between its blocks, which cannot be followed"
                )
            if not states:
                states.append(hidden)
            calls.append((args, options))
            if n == count - 1:
                raise Reached
            return self._returned(hidden)

        self._with_blocks(call, lambda: self._model(samples))
        if len(calls) < count:
            raise self._otherwise(f"the model runs {len(calls)} of its {count} blocks on a text")
        return states[0], calls

    def _behind(self, states: Callable[[], torch.Tensor]) -> Any:
        """What stands for the blocks once all are finished: the last one returns what they made of the samples."""

        def call(n: int, *args: Any, **options: Any) -> Any:
            hidden, _, _ = _apart(args, options)
            return self._returned(states() if n == len(self.skeleton.blocks) - 1 else hidden)

        return call

    def _returned(self, hidden: torch.Tensor) -> Any:
        return (hidden,) if self._tuple else hidden

    def _with_blocks(self, call: Any, run: Any) -> None:
        """`run` with every block's forward replaced by call(number, …)."""
        blocks = [self.skeleton.model.get_submodule(name) for name in self.skeleton.blocks]
        for n, block in enumerate(blocks):
            block.forward = partial(call, n)
        try:
            run()
        except Reached:
            pass
        finally:
            for block in blocks:
                del block.forward

    def _model(self, samples: slice) -> Any:
        """Logits of the whole model on some of the ids, unless something raises Reached before."""
        try:
            return self.skeleton.model(input_ids=self.ids[samples].to(self.skeleton.device)).logits
        except (WorkbenchError, Cancelled, Watched):
            raise
        except Exception as error:  # a foreign model's code
            raise self._failed("the model", error) from error

    def _run(self, name: str, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        try:
            return self.skeleton.model.get_submodule(name)(*args, **options)
        except (WorkbenchError, Cancelled, Watched):
            raise
        except Exception as error:  # a foreign model's code
            raise self._failed(name, error) from error

    def _failed(self, what: str, error: Exception) -> WorkbenchError:
        if "out of memory" in str(error).lower() or isinstance(error, MemoryError):
            return DeviceError(f"{self.skeleton.device} has no memory left for {what}", self.skeleton.purpose.shorter)
        return self._otherwise(f"{what} cannot be run: {one_line(error)[:200]}")

    def _otherwise(self, why: str) -> CalibrationError:
        return CalibrationError(why, self.skeleton.purpose.otherwise, self.skeleton.checkpoint.path)


def _apart(args: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """Hidden states, and the other arguments: they come first, or by name."""
    if args:
        return args[0], args[1:], options
    rest = dict(options)
    return rest.pop("hidden_states"), (), rest


def same_arguments(a: Any, b: Any) -> bool:
    """Whether two sets of arguments are equal, tensors by their values."""
    import torch

    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_arguments(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same_arguments, a, b))
    return bool(a == b)
