"""A device that is not there: tensors that say they lie on a GPU and refuse to be mixed with others, computed on the
CPU. What runs on them runs on any device; what would fail there (a tensor made on the wrong device, a way through
numpy) fails here."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

# With a number of its own, so that nothing kept per device is ever taken for a real GPU's.
DEVICE = torch.device("cuda", 63)
# A copy back to the CPU of more elements than this is a round trip.
FEW = 64
MADE = {
    *(torch.tensor, torch.empty, torch.zeros, torch.ones, torch.full, torch.arange, torch.linspace, torch.eye),
    *(torch.as_tensor, torch.scalar_tensor, torch.rand, torch.randn, torch.empty_strided),
}


class Elsewhere(torch.Tensor):
    """A tensor of DEVICE, around the real one."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls: type, inner: torch.Tensor) -> Elsewhere:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device="meta",  # torch itself must not look for a GPU
        )
        made.inner = inner
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return DEVICE

    def __repr__(self, **_: Any) -> str:
        return f"Elsewhere({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        leaves = kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cpu"
        if "device" in kwargs:
            kwargs["device"] = torch.device("cpu")
        moves = func is torch.ops.aten._to_copy.default or func is torch.ops.aten.copy_.default

        def real(value: Any) -> Any:
            if isinstance(value, Elsewhere):
                return value.inner
            assert not isinstance(value, torch.Tensor) or value.device.type != "meta", f"{func}: a value was lost"
            if isinstance(value, torch.Tensor) and value.dim() and not moves:
                raise AssertionError(f"{func}: a tensor of the CPU, {tuple(value.shape)}, among others of a GPU")
            return value

        result = func(*tree_map(real, args), **tree_map(real, kwargs))
        if leaves:
            assert result.numel() <= FEW, f"{func}: {result.numel()} elements copied back to the CPU"
            return result
        if func._schema.is_mutable and args and isinstance(args[0], Elsewhere) and result is args[0].inner:
            return args[0]
        return tree_map(lambda value: Elsewhere(value) if isinstance(value, torch.Tensor) else value, result)


class Pretend(TorchFunctionMode):
    """While entered, tensors made on or moved to DEVICE are Elsewhere."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.device.__get__ and isinstance(args[0], Elsewhere):
            return DEVICE
        if func in MADE and kwargs.get("device") is not None and torch.device(kwargs["device"]) == DEVICE:
            return Elsewhere(func(*args, **{**kwargs, "device": "cpu"}))
        if func is torch.Tensor.to and DEVICE in (*args[1:], kwargs.get("device")):
            rest = [a for a in args[1:] if a != DEVICE]
            kwargs.pop("device", None)
            moved = func(args[0], *rest, **kwargs) if rest or kwargs else args[0]
            return moved if isinstance(moved, Elsewhere) else Elsewhere(moved.clone())
        if func is torch.where and any(isinstance(a, Elsewhere) for a in args):
            # Torch would make a tensor of a plain number where it takes the others to lie.
            args = tuple(torch.tensor(a) if isinstance(a, bool | int | float) else a for a in args)
        if func is torch.Tensor.__setitem__ and isinstance(args[2], bool | int | float):
            args = (args[0], args[1], torch.tensor(args[2], dtype=args[0].dtype))
        return func(*args, **kwargs)


def there(x: torch.Tensor) -> torch.Tensor:
    return Elsewhere(x.clone())


def back(x: torch.Tensor) -> torch.Tensor:
    assert isinstance(x, Elsewhere), "a result lies on the CPU"
    return x.inner
