"""Where a block lets scales be moved: found by running it with one producer's outputs scaled, and watching.

A producer is a norm, or outputs of a matrix. Every output gets a factor of its own. As the block runs, each
multiplication by a stored matrix is compared with the one of an undisturbed run: its inputs are what they were, or they
are scaled column by column with factors that were given (then the matrix is a consumer, and its inputs are put right
before it goes on), or they are anything else (then nothing can be moved). At the end the block's outputs must be what
they were. So it does not matter what modules are called, or whether scores, gates and residuals lie between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from core.calibration.folding import Fold, Part
from core.calibration.gathering import Key, Matrices, Watched, watching
from core.calibration.skeleton import Piece, Skeleton

if TYPE_CHECKING:
    import torch

# Relative differences of float32 sums that count as none, and as a scaled column.
_SAME, _SCALED = 1e-5, 1e-4

Forward = Callable[[], "torch.Tensor"]


class _Otherwise(Watched):
    """What was scaled reaches something else than stored matrices."""


@dataclass(frozen=True)
class _Producer:
    """Parameters whose outputs first … first + size are scaled together.

    weight  None of a stack's matrices is left out
    bias    added to the outputs, or ""
    """

    weight: str
    bias: str
    first: int
    size: int
    turned: bool = False
    vector: bool = False
    shift: float = 0.0


def find_folds(skeleton: Skeleton, block: str, forward: Forward) -> list[Fold]:
    """All folds of a loaded block, no inputs in two of them.

    forward  runs the block on a few samples
    """
    tracer = _Tracer(skeleton, block, forward)
    folds: list[Fold] = []
    taken: set[tuple[str, int | None]] = set()
    for producer in tracer.candidates():
        for fold in tracer.folds_of(producer):
            consumed = {(part.name, part.expert) for part in fold.consumers}
            # Inputs are scaled once; the first producer that was found is the nearest to a norm.
            if not consumed & taken:
                taken |= consumed
                folds.append(fold)
    return folds


class _Tracer:
    def __init__(self, skeleton: Skeleton, block: str, forward: Forward) -> None:
        self.skeleton, self.block, self.forward = skeleton, block, forward
        self.module = skeleton.model.get_submodule(block)
        self.parameters: Mapping[str, torch.Tensor] = {f"{block}.{n}": p for n, p in self.module.named_parameters()}
        self.calls: list[tuple[Key, torch.Tensor]] = []
        with self._watched(lambda key, x: self.calls.append((key, x.detach()))):
            self.output = forward().detach().clone()
        self.widths = {key: x.shape[-1] for key, x in self.calls}

    @contextmanager
    def _watched(self, see: Callable[[Key, Any], Any]) -> Iterator[None]:
        matrices = Matrices(self.parameters)

        def look(x: Any, w: Any, transposed: bool) -> Any:
            found = matrices.found(w, transposed)
            if not found:
                return None
            if found[0][1] is None:
                return see(found[0][0], x)
            if x.dim() != 3 or x.shape[0] != len(found):
                return None
            import torch

            seen = [see(key, x[e]) for key, e in found]
            return (
                None
                if all(s is None for s in seen)
                else torch.stack([x[e] if s is None else s for e, s in enumerate(seen)])
            )

        with watching(look):
            yield

    def _unseen(self) -> list[str]:
        """Matrices that no token of the traced samples reached."""
        seen = {name for (name, _, _), _ in self.calls}
        return [n for n, p in self.parameters.items() if p.dim() > 1 and n not in seen and not n.endswith("bias")]

    # Candidates

    def candidates(self) -> Iterator[_Producer]:
        widths = set(self.widths.values())
        for name, module in self.module.named_modules():
            own = dict(module.named_parameters(recurse=False))
            if own and all(p.dim() == 1 and p.shape == next(iter(own.values())).shape for p in own.values()):
                prefix = f"{self.block}.{name}." if name else f"{self.block}."
                leaves = sorted(own, key=lambda leaf: "bias" in leaf)
                size = own[leaves[0]].numel()
                if size in widths and len(leaves) <= 2:
                    bias = f"{prefix}{leaves[1]}" if len(leaves) == 2 else ""
                    for shift in (0.0, 1.0):
                        yield _Producer(f"{prefix}{leaves[0]}", bias, 0, size, vector=True, shift=shift)
        for name, turned in dict.fromkeys((name, turned) for name, _, turned in self.widths):
            p = self.parameters[name]
            outputs = int(p.shape[-1] if turned else p.shape[-2])
            for first in self._starts(outputs):
                size = outputs - first
                if any(width % size == 0 for width in widths):
                    yield _Producer(name, self._bias(name, p, outputs), first, size, turned)

    def _starts(self, outputs: int) -> list[int]:
        """Where a part of a matrix's outputs may begin that is of a kind: all, the second half (gates and values), the
        last third, or as many as there are values (queries, keys and values in one)."""
        config = self.skeleton.model.config.get_text_config()
        heads = getattr(config, "num_attention_heads", None) or 0
        shared = getattr(config, "num_key_value_heads", None) or heads
        found = [0]
        if outputs % 2 == 0:
            found.append(outputs // 2)
        if outputs % 3 == 0:
            found.append(outputs // 3 * 2)
        if heads and outputs % (heads + 2 * shared) == 0:
            found.append(outputs - outputs // (heads + 2 * shared) * shared)
        return list(dict.fromkeys(found))

    def _bias(self, name: str, p: torch.Tensor, outputs: int) -> str:
        owner = name.rpartition(".")[0]
        for candidate in (f"{owner}.bias", f"{name}_bias"):
            found = self.parameters.get(candidate)
            if found is not None and found.shape == (*p.shape[:-2], outputs):
                return candidate
        return ""

    # Trying one

    def folds_of(self, producer: _Producer) -> list[Fold]:
        factors = _factors(producer.size, self.output.device)
        try:
            with self._scaled(producer, 1 / factors):
                consumers = self._consumers(producer, factors)
        except _Otherwise:
            return []
        return self._as_folds(producer, consumers)

    @contextmanager
    def _scaled(self, producer: _Producer, by: torch.Tensor) -> Iterator[None]:
        """The producer's parameters in place multiplied, and put back."""
        run = slice(producer.first, producer.first + producer.size)
        kept = []
        for name in filter(None, (producer.weight, producer.bias)):
            data = self.parameters[name].data
            kept.append((data, data.clone()))
            if producer.vector and name == producer.weight:
                data.add_(producer.shift).mul_(by).sub_(producer.shift)
            elif producer.vector or name == producer.bias or producer.turned:
                data[..., run] *= by
            else:
                data[..., run, :] *= by[:, None]
        try:
            yield
        finally:
            for data, before in kept:
                data.copy_(before)

    def _consumers(self, producer: _Producer, factors: torch.Tensor) -> dict[Key, tuple[int, ...]]:
        """Matrices whose inputs came scaled, each with the number of every input's factor. raises _Otherwise"""
        found: dict[Key, tuple[int, ...]] = {}
        place = 0

        def see(key: Key, x: torch.Tensor) -> torch.Tensor | None:
            nonlocal place
            if place >= len(self.calls):
                raise _Otherwise
            wanted, before = self.calls[place]
            place += 1
            if wanted != key or before.shape != x.shape:
                raise _Otherwise
            if _near(x, before, _SAME):
                return None
            index = _matched(x, before, factors)
            if found.setdefault(key, index) != index:
                raise _Otherwise
            return x * factors[list(index)]

        with self._watched(see):
            out = self.forward()
        # A model's own float32 sums may run in another order when numbers change: not bit for bit the same.
        if place != len(self.calls) or not found or not _near(out, self.output, _SCALED):
            raise _Otherwise
        return found

    def _as_folds(self, producer: _Producer, consumers: dict[Key, tuple[int, ...]]) -> list[Fold]:
        """In the checkpoint's own terms; for stacks of experts, one fold for each."""
        index = next(iter(consumers.values()))
        if any(other != index for other in consumers.values()):
            return []
        plain = () if index == tuple(range(producer.size)) else index
        names = {(name, turned) for name, _, turned in consumers}
        stack = (
            0
            if producer.vector
            else (self.parameters[producer.weight].dim() == 3) * len(self.parameters[producer.weight])
        )
        experts = range(stack) if stack else (None,)
        found = []
        for expert in experts:
            made = self._produced(producer, expert)
            if not made or (stack and any(self.parameters[name].dim() != 3 for name, _ in names)):
                return []
            parts = []
            for name, turned in sorted(names):
                # An expert that was not reached here may be reached by other samples: a stack is one consumer.
                count = len(self.parameters[name]) if self.parameters[name].dim() == 3 else 0
                for matrix in [expert] if stack else (range(count) if count else [None]):
                    parts += [_part(piece) for piece in self.skeleton.origin(name, matrix, turned)]
            if not stack and self._may_be_consumer(producer.size, names):
                return []
            through = "norm" if producer.vector else "matrix"
            found.append(Fold(producer.size, made, tuple(dict.fromkeys(parts)), plain, through))
        return found

    def _may_be_consumer(self, size: int, names: set[tuple[str, bool]]) -> bool:
        """Whether a matrix that the samples did not reach could have the same inputs."""
        return any(size in self.parameters[name].shape for name in self._unseen() if not _lookup(name))

    def _produced(self, producer: _Producer, expert: int | None) -> tuple[Part, ...]:
        if producer.vector:
            names = [self.skeleton.vector(n) for n in (producer.weight, producer.bias) if n]
            if None in names:
                return ()
            shifts = (producer.shift, 0.0)
            return tuple(Part(str(n), shift=s, vector=True) for n, s in zip(names, shifts, strict=False))
        stop = producer.first + producer.size
        pieces = self.skeleton.outputs(producer.weight, expert, producer.turned, producer.first, stop)
        if len(pieces) != 1:
            return ()
        piece, first, _ = pieces[0]
        made = [Part(piece.name, piece.expert, piece.transposed, first)]
        if producer.bias:
            name = self.skeleton.vector(producer.bias)
            if name is None or expert is not None:
                return ()
            made.append(Part(name, first=producer.first, vector=True))
        return tuple(made)


def _part(piece: Piece) -> Part:
    return Part(piece.name, piece.expert, piece.transposed)


def _lookup(name: str) -> bool:
    """Whether rows of it are looked up, not multiplied."""
    return "embed" in name or "rotary" in name


def _factors(size: int, device: Any) -> torch.Tensor:
    """float32 [size]: as many different numbers between 1/2 and 2, in no order."""
    import torch

    order = torch.randperm(size, generator=torch.Generator().manual_seed(size))
    return torch.exp2(2 * (order + 0.5) / size - 1).float().to(device)


def _near(x: torch.Tensor, y: torch.Tensor, tolerance: float) -> bool:
    difference = float((x.double() - y.double()).norm())
    return difference <= tolerance * float(y.double().norm())


def _matched(x: torch.Tensor, before: torch.Tensor, factors: torch.Tensor) -> tuple[int, ...]:
    """For every column of x the number of the factor that it was divided by. raises _Otherwise"""
    import torch

    x, before = x.reshape(-1, x.shape[-1]).double(), before.reshape(-1, before.shape[-1]).double()
    power = before.square().sum(0)
    ratio = (x * before).sum(0) / power
    dead = power == 0
    if bool((x[:, dead] != 0).any()):
        raise _Otherwise
    if not bool((ratio[~dead] > 0).all()):
        raise _Otherwise
    wanted = -torch.log2(factors.double())
    ordered, order = wanted.sort()
    given = torch.log2(torch.where(dead, 1.0, ratio))
    spot = (
        torch.searchsorted(ordered, given).clamp(1, max(1, len(ordered) - 1)) if len(ordered) > 1 else given.long() * 0
    )
    if len(ordered) > 1:
        lower = (given - ordered[spot - 1]).abs() < (ordered[spot] - given).abs()
        spot = spot - lower.long()
    index = order[spot]
    if bool(dead.any()):
        # Nothing is seen of a column that is zero throughout; in their own order all the same when the others are.
        if len(factors) != len(dead):
            raise _Otherwise
        index = torch.where(dead, torch.arange(len(dead), device=index.device), index)
    spacing = 2 / len(factors)
    if bool(((given - wanted[index]).abs()[~dead] > 0.25 * spacing).any()):
        raise _Otherwise
    if not _near(x, before * torch.exp2(wanted[index]), _SCALED):
        raise _Otherwise
    return tuple(index.tolist())
