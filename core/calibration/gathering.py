"""Sums over the inputs of every matrix that a model multiplies by.

While `Gatherer` is active, each multiplication by a loaded parameter, or by one expert's slice of a stack, is seen on
its way into torch: whatever the module around it is called, Linear, Conv1D or a mixture's experts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from core.calibration.statistics import Statistic, TensorStatistics
from core.errors import CalibrationError

if TYPE_CHECKING:
    import torch

# Weight of a new sample in the moving averages of the smallest and largest input.
SMOOTHING = 0.05
# Tokens kept as they came, of all samples together.
KEPT_TOKENS = 512

# A parameter's matrix: its name, its index in a stack, and whether its inputs run along its rows.
Key = tuple[str, int | None, bool]


class Sums:
    """Of the inputs of one matrix, over all tokens so far.

    share  of the tokens of a batch that are kept as they came
    """

    def __init__(self, kinds: frozenset[Statistic], share: float) -> None:
        self.kinds, self.share = kinds, share
        self.count = 0
        self._squares: torch.Tensor | None = None
        self._products: torch.Tensor | None = None
        self._largest: torch.Tensor | None = None
        self._absolutes: torch.Tensor | None = None
        self._range: torch.Tensor | None = None
        self._tokens: list[torch.Tensor] = []

    def add(self, x: torch.Tensor) -> None:
        """x: float32 [tokens, columns]. raises ValueError when it holds NaN or Inf"""
        import torch

        if not x.shape[0]:
            return
        squares = x.double().square().sum(0)
        if not torch.isfinite(squares).all():
            raise ValueError("NaN or Inf")
        before, self.count = self.count, self.count + x.shape[0]
        self._squares = squares if self._squares is None else self._squares.add_(squares)
        if Statistic.HESSIAN in self.kinds:
            # A mean that runs along, so that float32 keeps its digits over any number of tokens.
            scale = 2 / self.count
            if self._products is None:
                self._products = torch.zeros(x.shape[1], x.shape[1], device=x.device)
            self._products.addmm_(x.T, x, beta=before / self.count, alpha=scale)
        if Statistic.ABSMAX in self.kinds:
            largest = x.abs().amax(0)
            self._largest = largest if self._largest is None else torch.maximum(self._largest, largest)
        if Statistic.MAGNITUDE in self.kinds:
            absolutes = x.double().abs().sum(0)
            self._absolutes = absolutes if self._absolutes is None else self._absolutes.add_(absolutes)
        if Statistic.RANGE in self.kinds:
            now = torch.stack(torch.aminmax(x))
            self._range = now if self._range is None else torch.lerp(self._range, now, SMOOTHING)
        if Statistic.ACTIVATIONS in self.kinds:
            step = max(1, round(1 / self.share))
            self._tokens.append(x[step // 2 :: step].clone() if x.shape[0] > step // 2 else x[:1].clone())

    def values(self) -> dict[Statistic, Any]:
        """float32 arrays; nothing was added: nothing is known."""
        import torch

        if self._squares is None:
            return {}
        found = {Statistic.IMPORTANCE: (self._squares / self.count).float()}
        for kind, tensor in (
            (Statistic.HESSIAN, self._products),
            (Statistic.ABSMAX, self._largest),
            (Statistic.MAGNITUDE, None if self._absolutes is None else (self._absolutes / self.count).float()),
            (Statistic.RANGE, self._range),
            (Statistic.ACTIVATIONS, torch.cat(self._tokens) if self._tokens else None),
        ):
            if tensor is not None:
                found[kind] = tensor
        return {kind: tensor.cpu().numpy() for kind, tensor in found.items()}


@dataclass
class _Group:
    """Matrices that are given the very same inputs (q, k and v): one set of sums for all of them."""

    leader: Key
    sums: Sums
    current: Any = None  # the inputs last added


class Matrices:
    """Loaded parameters of two and more dimensions, by their memory."""

    def __init__(self, parameters: Mapping[str, torch.Tensor]) -> None:
        self._by_storage = {p.untyped_storage().data_ptr(): (name, p) for name, p in parameters.items() if p.dim() > 1}

    def found(self, w: Any, transposed: bool) -> list[tuple[Key, int | None]]:
        """The matrices that w is, each with its place in a batch of several; none for what is no stored matrix.

        w  [outputs, inputs], or [inputs, outputs] where transposed; or a batch of these
        """
        known = self._by_storage.get(_address(w))
        if known is None:
            return []
        if w.dim() == 3:
            return [(key, e) for e in range(w.shape[0]) for key, _ in self.found(w[e], transposed)]
        if w.dim() != 2:
            return []
        name, parameter = known
        rows, columns = parameter.shape[-2:]
        if w.stride() == (columns, 1) and tuple(w.shape) == (rows, columns):
            turned = transposed
        elif w.stride() == (1, columns) and tuple(w.shape) == (columns, rows):
            turned = not transposed
        else:
            return []  # a part of a matrix: nothing that is stored
        expert = (w.storage_offset() - parameter.storage_offset()) // (rows * columns) if parameter.dim() == 3 else None
        return [((name, expert, turned), None)]


class Watched(Exception):
    """Raised out of a forward by who watches it: no fault of the model."""


class Split(Watched):
    """Matrices once had the same inputs, and now have not: gather again, each on its own."""


@dataclass
class Gatherer:
    """Use `with gatherer.active():` around the forward of a batch.

    parameters  by name, those to be watched
    kinds       what is gathered
    share       see Sums
    sharing     whether matrices with the same inputs share their sums
    stop        raised once something was seen, when the rest of the forward is of no interest
    """

    parameters: Mapping[str, torch.Tensor]
    kinds: frozenset[Statistic]
    share: float
    sharing: bool = True
    stop: type[Exception] | None = None
    groups: dict[Key, _Group] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._matrices = Matrices(self.parameters)
        # Inputs of this forward; held, so that no other takes their identity.
        self._seen: dict[int, tuple[Any, _Group]] = {}

    def active(self) -> Any:
        """A context in which multiplications are seen. raises CalibrationError for NaN, Split"""
        self._seen.clear()
        for group in self.groups.values():
            group.current = None
        return watching(self.look)

    def look(self, x: torch.Tensor, w: torch.Tensor, transposed: bool) -> None:
        """x [..., inputs] is multiplied by w: [outputs, inputs], or [inputs, outputs] where transposed."""
        found = self._matrices.found(w, transposed)
        if not found:
            return
        if found[0][1] is None:
            self._add(found[0][0], x)
        elif x.dim() == 3 and x.shape[0] == len(found):  # a batch of experts, each with its own inputs
            for key, e in found:
                self._add(key, x[e])
        if self.stop is not None:
            raise self.stop

    def _add(self, key: Key, x: torch.Tensor) -> None:
        group = self.groups.get(key)
        if group is None:
            same = self._seen.get(id(x)) if self.sharing else None
            # Sums that had seen other tokens before are not this matrix's.
            if same is not None and same[1].sums.count == x.numel() // x.shape[-1]:
                self.groups[key] = same[1]
                return
            group = self.groups[key] = _Group(key, Sums(self.kinds, self.share))
        if group.leader != key:
            if group.current is not x:
                raise Split
            return
        try:
            group.sums.add(x.detach().reshape(-1, x.shape[-1]).float())
        except ValueError:
            raise CalibrationError(
                "its inputs hold NaN or Inf on the calibration text", "is the checkpoint sound?", key[0]
            ) from None
        group.current = x
        self._seen[id(x)] = (x, group)

    def statistics(self) -> dict[Key, TensorStatistics]:
        """What was seen, matrix by matrix. Matrices that share their inputs share the arrays."""
        made: dict[int, TensorStatistics] = {}
        for group in self.groups.values():
            if id(group) not in made:
                made[id(group)] = TensorStatistics(group.sums.values(), (group.sums.count,))
        return {key: made[id(group)] for key, group in self.groups.items()}


def _address(w: Any) -> int:
    """Where a tensor's memory begins; 0 for what is none, or has none."""
    import torch

    return w.untyped_storage().data_ptr() if isinstance(w, torch.Tensor) and w.device.type != "meta" else 0


def watching(look: Callable[[Any, Any, bool], Any]) -> Any:
    """A context in which look(inputs, matrix, transposed) sees every multiplication. What it returns, unless None, is
    multiplied in place of the inputs."""
    import torch
    from torch.overrides import TorchFunctionMode

    tensor = torch.Tensor
    linear = {torch.nn.functional.linear}
    products = {torch.matmul, torch.mm, torch.bmm, tensor.matmul, tensor.mm, tensor.bmm, tensor.__matmul__}
    sums = {torch.addmm, torch.baddbmm, tensor.addmm, tensor.baddbmm}
    # (place, names) of the inputs and of the matrix among a function's arguments
    inputs: dict[Any, tuple[int, tuple[str, ...]]] = dict.fromkeys(linear | products, (0, ("input",))) | dict.fromkeys(
        sums, (1, ("mat1", "batch1"))
    )
    matrix: dict[Any, tuple[int, tuple[str, ...]]] = dict.fromkeys(linear | products, (1, ("weight", "other", "mat2")))
    matrix |= dict.fromkeys(sums, (2, ("mat2", "batch2")))

    def pick(where: tuple[int, tuple[str, ...]], args: Any, kwargs: Any) -> Any:
        place, names = where
        return args[place] if len(args) > place else next((kwargs[n] for n in names if n in kwargs), None)

    class Watching(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if func in inputs:
                x = pick(inputs[func], args, kwargs)
                other = look(x, pick(matrix[func], args, kwargs), func not in linear)
                if other is not None:
                    args = tuple(other if a is x else a for a in args)
                    kwargs = {key: other if value is x else value for key, value in kwargs.items()}
            return func(*args, **kwargs)

    return Watching()
