"""The torch reference as a GPU runs it best: its hundreds of small steps compiled into few kernels by torch.compile,
where that is possible, else as written. `compiles` alone decides.

The bytes must stay: no product and sum become one operation (which rounds once instead of twice), and divisions are
correctly rounded. OPTIONS say so to the compiler; on a CPU, where the same compiler makes C++ of the same code, tests
hold it to the reference's bytes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch

# Searches whose steps depend on what they find (the neighbours of runs that are no points) stay as written.
UNFIT = frozenset(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"))
OPTIONS: dict[str, Any] = {
    "emulate_precision_casts": True,  # Triton: no fused multiply-add
    "eager_numerics.division_rounding": True,
    "cpp.enable_floating_point_contract_flag": "off",
}


@cache
def compiles(device_type: str) -> bool:
    """Whether searches on a kind of device go through torch.compile: on CUDA with Triton. Said once in the log."""
    if device_type == "cpu":
        return False
    possible = device_type == "cuda" and find_spec("triton") is not None and torch.cuda.is_available()
    log = logging.getLogger("quantbench")
    if possible:
        log.info("searches on %s are compiled by torch.compile at their first use", device_type)
    else:
        log.info("searches on %s run step by step: torch.compile needs CUDA and Triton", device_type)
    return possible


@cache
def _made(function: Callable[..., Any]) -> Callable[..., Any]:
    # Numbers of blocks and rows are left open: one compilation serves every tensor.
    return torch.compile(function, fullgraph=True, dynamic=True, options=OPTIONS)


def fused(name: str, function: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """The search of one type (a function of reference.py or searches_best.py), as it is to be run on a device."""
    return _made(function) if name not in UNFIT and compiles(device.type) else function
