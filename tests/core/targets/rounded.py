"""What a compressed-tensors scheme says of a layer's inputs, in plain torch from the definitions: the oracle of clients
that run such folders as they are. No tests here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from core.checkpoints import open_checkpoint

# (inputs, the layer's stored number for static ones) → inputs as the layer multiplies them
Round = Callable[[torch.Tensor, "torch.Tensor | None"], torch.Tensor]
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def _int8(x: torch.Tensor, step: torch.Tensor | None) -> torch.Tensor:
    step = x.abs().amax(-1, keepdim=True) / 127.5 if step is None else step.to(x.dtype)
    return (x / step).round().clamp(-128, 127) * step


def _fp8(x: torch.Tensor, step: torch.Tensor | None) -> torch.Tensor:
    step = x.abs().amax(-1, keepdim=True) / 448 if step is None else step.to(x.dtype)
    return (x / step).clamp(-448, 448).to(torch.float8_e4m3fn).to(x.dtype) * step


def _fp8_runs(x: torch.Tensor, step: torch.Tensor | None) -> torch.Tensor:
    """A step per 128 inputs of a token."""
    return _fp8(x.unflatten(-1, (-1, 128)), None).flatten(-2)


def _mx(largest_power: int, cast: Callable[[torch.Tensor], torch.Tensor]) -> Round:
    """A power of two per 32 inputs: that of the largest over the type's largest, one more from 1.75 times on."""

    def rounded(x: torch.Tensor, step: torch.Tensor | None) -> torch.Tensor:
        runs = x.float().unflatten(-1, (-1, 32))
        half, exponent = runs.abs().amax(-1, keepdim=True).frexp()
        power = torch.exp2(exponent - 1.0 - largest_power + (half >= 0.875))
        return (cast(runs / power) * power).flatten(-2).to(x.dtype)

    return rounded


def _nvfp4(x: torch.Tensor, divisor: torch.Tensor | None) -> torch.Tensor:
    assert divisor is not None
    runs = x.unflatten(-1, (-1, 16))
    local = (divisor.float() * (runs.abs().amax(-1, keepdim=True) / 6)).clamp(max=448)
    local = local.to(torch.float8_e4m3fn).float()
    step = local.where(local != 0, torch.full_like(local, 0.125)) / divisor.float()
    return (_fp4(runs / step) * step).flatten(-2).to(x.dtype)


def _fp4(x: torch.Tensor) -> torch.Tensor:
    """The nearest of E2M1's numbers; of two as near the one with the even code."""
    levels = torch.tensor(_E2M1, dtype=torch.float32)
    middles = (levels[1:] + levels[:-1]) / 2
    size = x.float().abs().clamp(max=6)
    low, high = (torch.bucketize(size, middles, right=right) for right in (False, True))
    code = torch.where((low == high) | (low % 2 == 0), low, high)
    return (levels[code] * x.sign()).to(x.dtype)


def _e4m3(x: torch.Tensor) -> torch.Tensor:
    return x.clamp(-448, 448).to(torch.float8_e4m3fn).float()


ROUND: dict[str, Round] = {
    "int8": _int8,
    "fp8": _fp8,
    "fp8-runs": _fp8_runs,
    "mxfp8": _mx(8, _e4m3),
    "mxfp4": _mx(2, _fp4),
    "nvfp4": _nvfp4,
}


def with_weights_of(folder: Path, source: Path, dtype: torch.dtype) -> Any:
    """The source's model in transformers, holding the weights that we read from the folder."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype).eval()
    with open_checkpoint(folder) as checkpoint:
        weights = {n: checkpoint.read(n).reshape(info.shape).to(dtype) for n, info in checkpoint.tensors.items()}
    model.load_state_dict(weights, strict=False)
    return model


def rounding_inputs(model: Any, kind: str, layers: Mapping[str, torch.Tensor | None]) -> Any:
    """The model with the inputs of these Linear modules rounded on the way. layers: module → its stored number."""
    for name, number in layers.items():

        def hook(module: Any, args: Any, number: torch.Tensor | None = number) -> tuple[torch.Tensor]:
            return (ROUND[kind](args[0], number),)

        model.get_submodule(name).register_forward_pre_hook(hook)
    return model
