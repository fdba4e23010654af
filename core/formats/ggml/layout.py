"""What every GGML type says about its blocks: bytes to fields, fields to bytes, and the steps that turn codes into
numbers. The layouts themselves are in the family modules; here is their common shape and a few bit helpers.

A block is decoded as  ŵ = step · (level(code) + offset) + shift  with step, shift and offset constant over runs of
columns. All in float32, in the order of operations the format prescribes, so that results are bit-equal to ggml's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module

import torch
from torch import Tensor

from core.errors import UnsupportedFormat

# "codes" [n, block] and whatever else a block stores, each [n, k]; n blocks. Halves stay halves.
Fields = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Steps:
    """Per block: step [n, k], shift [n, k] or None, offset [n, m] or None; float32."""

    step: Tensor
    shift: Tensor | None = None
    offset: Tensor | None = None


@dataclass(frozen=True)
class Layout:
    """One type's blocks.

    unpack    uint8 [n, type_size] → Fields
    pack      Fields → uint8 [n, type_size]
    steps     Fields → Steps
    zero      subtracted from the code to get its level, where levels are integers
    table     levels by code, where they are not
    odd       codes are ±(2l+1) with l an index into these magnitudes
    qmin qmax range of codes
    counter   a field and how many of it a block has: tells blocks from fields in a row
    run       weights that are coded together
    """

    name: str
    unpack: Callable[[Tensor], Fields]
    pack: Callable[[Fields], Tensor]
    steps: Callable[[Fields], Steps]
    qmin: int
    qmax: int
    zero: int = 0
    table: tuple[float, ...] = ()
    odd: tuple[int, ...] = ()
    counter: tuple[str, int] = ("d", 1)
    run: int = 1

    def level(self, codes: Tensor) -> Tensor:
        """float32 of the same shape as codes."""
        if self.table:
            return torch.tensor(self.table, device=codes.device)[codes.long()]
        if self.odd:
            values = torch.tensor(self.odd, device=codes.device, dtype=torch.float32)
            size = values[codes.long().abs() >> 1]
            return torch.where(codes < 0, -size, size)
        level = codes.to(torch.float32)
        return level - self.zero if self.zero else level

    def level_values(self) -> tuple[float, ...]:
        """Every level, ascending."""
        if self.table:
            return tuple(sorted(set(self.table)))
        if self.odd:
            return tuple(-float(m) for m in reversed(self.odd)) + tuple(float(m) for m in self.odd)
        return tuple(float(q - self.zero) for q in range(self.qmin, self.qmax + 1))

    def nearest(self, target: Tensor) -> Tensor:
        """Codes of the levels closest to target (in steps), int8 or uint8; ties as round half to even, or upwards."""
        dtype = torch.int8 if self.qmin < 0 else torch.uint8
        if not self.table:
            return (target.round() + self.zero).clamp_(self.qmin, self.qmax).to(dtype)
        levels = torch.tensor(self.level_values(), device=target.device)
        codes = torch.tensor([self.table.index(v) for v in self.level_values()], dtype=dtype, device=target.device)
        middles = (levels[1:] + levels[:-1]) / 2
        return codes[torch.searchsorted(middles, target.contiguous(), right=True)]

    def values(self, codes: Tensor, steps: Steps) -> Tensor:
        """float32 [n, block]."""
        n, block = codes.shape
        level = self.level(codes)
        if steps.offset is not None:
            k = steps.offset.shape[1]
            level = (level.view(n, k, block // k) + steps.offset[:, :, None]).view(n, block)
        k = steps.step.shape[1]
        out = steps.step[:, :, None] * level.view(n, k, block // k)
        if steps.shift is not None:
            out += steps.shift[:, :, None]
        return out.view(n, block)

    def encode(self, w: Tensor, steps: Steps) -> Tensor:
        """Codes [n, block] of the levels nearest to w, float32 [n, block]. A step of 0 takes the code of level 0."""
        n, block = w.shape
        k = steps.step.shape[1]
        target = w.view(n, k, block // k)
        if steps.shift is not None:
            target = target - steps.shift[:, :, None]
        step = steps.step[:, :, None]
        return self.nearest(torch.where(step == 0, 0.0, target / step)).view(n, block)

    def decode(self, blocks: Tensor) -> Tensor:
        """uint8 [n, type_size] → float32 [n, block]."""
        fields = self.unpack(blocks)
        return self.values(fields["codes"], self.steps(fields))


_FAMILY = {
    **dict.fromkeys(("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q8_1", "Q1_0", "Q2_0"), "legacy"),
    **dict.fromkeys(("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_K"), "kquants"),
    **dict.fromkeys(("IQ4_NL", "IQ4_XS"), "codebook"),
    **dict.fromkeys(("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S", "IQ1_M"), "lattice"),
    **dict.fromkeys(("TQ1_0", "TQ2_0"), "ternary"),
    **dict.fromkeys(("MXFP4", "NVFP4"), "fp4"),
}


@cache
def layout(name: str) -> Layout:
    """The layout of a block-quantized type. Raises UnsupportedFormat."""
    if name not in _FAMILY:
        raise UnsupportedFormat(f"{name} is not a block-quantized GGML type")
    layouts = import_module(f"core.formats.ggml.{_FAMILY[name]}").LAYOUTS
    return layouts[name]


# --- bits -----------------------------------------------------------------------------------------------------------


def half(blocks: Tensor, at: int, count: int = 1) -> Tensor:
    """float16 [n, count] stored at byte `at`."""
    return blocks[:, at : at + 2 * count].contiguous().view(torch.float16)


def half_bytes(value: Tensor) -> Tensor:
    """uint8 [n, 2k] of float16 [n, k]."""
    return value.to(torch.float16).contiguous().view(torch.uint8)


def words16(blocks: Tensor, at: int, count: int) -> Tensor:
    """int32 [n, count] of little-endian uint16 at byte `at`."""
    pairs = blocks[:, at : at + 2 * count].reshape(-1, count, 2).to(torch.int32)
    return pairs[..., 0] | pairs[..., 1] << 8


def words16_bytes(words: Tensor) -> Tensor:
    """uint8 [n, 2k] of int32 [n, k]."""
    return torch.stack((words & 255, words >> 8 & 255), -1).to(torch.uint8).flatten(1)


def words32(blocks: Tensor, at: int, count: int) -> Tensor:
    """int64 [n, count] of little-endian uint32 at byte `at`."""
    quads = blocks[:, at : at + 4 * count].reshape(-1, count, 4).to(torch.int64)
    return quads[..., 0] | quads[..., 1] << 8 | quads[..., 2] << 16 | quads[..., 3] << 24


def words32_bytes(words: Tensor) -> Tensor:
    """uint8 [n, 4k] of int64 [n, k]."""
    return torch.stack([words >> s & 255 for s in (0, 8, 16, 24)], -1).to(torch.uint8).flatten(1)


def ramp(like: Tensor, count: int, step: int = 1) -> Tensor:
    """0, step, 2·step … as like's dtype and device: shift amounts."""
    return torch.arange(0, count * step, step, dtype=like.dtype, device=like.device)


def spread(x: Tensor, count: int, bits: int) -> Tensor:
    """[n, k] → [n, count, k]: field j of each element, `bits` wide, lowest first."""
    return x[:, None, :] >> ramp(x, count, bits)[:, None] & ((1 << bits) - 1)


def gather(x: Tensor, bits: int) -> Tensor:
    """[n, count, k] → [n, k]: the inverse of spread."""
    return (x << ramp(x, x.shape[1], bits)[:, None]).sum(1, dtype=torch.int32).to(x.dtype)


def nibbles(x: Tensor) -> Tensor:
    """[n, k] → [n, 2k]: all low nibbles, then all high ones."""
    return torch.cat((x & 15, x >> 4), 1)


def join_nibbles(codes: Tensor) -> Tensor:
    """[n, 2k] → [n, k]: the inverse of nibbles."""
    low, high = codes.to(torch.uint8).chunk(2, 1)
    return low | high << 4
