"""Blocks without super-blocks: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q1_0, Q2_0, and Q8_1, which lives in memory only."""

from __future__ import annotations

import torch
from torch import Tensor

from core.formats.ggml.layout import (
    Fields,
    Layout,
    Steps,
    gather,
    half,
    half_bytes,
    join_nibbles,
    nibbles,
    spread,
    words32,
    words32_bytes,
)


def _scaled(fields: Fields) -> Steps:
    return Steps(fields["d"].float())


def _shifted(fields: Fields) -> Steps:
    return Steps(fields["d"].float(), fields["m"].float())


def _q4_0(blocks: Tensor) -> Fields:
    return {"d": half(blocks, 0), "codes": nibbles(blocks[:, 2:18])}


def _q4_0_bytes(f: Fields) -> Tensor:
    return torch.cat((half_bytes(f["d"]), join_nibbles(f["codes"])), 1)


def _q4_1(blocks: Tensor) -> Fields:
    return {"d": half(blocks, 0), "m": half(blocks, 2), "codes": nibbles(blocks[:, 4:20])}


def _q4_1_bytes(f: Fields) -> Tensor:
    return torch.cat((half_bytes(f["d"]), half_bytes(f["m"]), join_nibbles(f["codes"])), 1)


def _five(blocks: Tensor, at: int) -> Tensor:
    """Codes of 5 bits: 32 fifth bits, then 32 nibbles."""
    fifth = words32(blocks, at, 1) >> torch.arange(32, device=blocks.device) & 1
    return nibbles(blocks[:, at + 4 : at + 20]) | fifth.to(torch.uint8) << 4


def _five_bytes(codes: Tensor) -> Tensor:
    fifth = (codes.long() >> 4 & 1) << torch.arange(32, device=codes.device)
    return torch.cat((words32_bytes(fifth.sum(1, keepdim=True)), join_nibbles(codes & 15)), 1)


def _q5_0(blocks: Tensor) -> Fields:
    return {"d": half(blocks, 0), "codes": _five(blocks, 2)}


def _q5_0_bytes(f: Fields) -> Tensor:
    return torch.cat((half_bytes(f["d"]), _five_bytes(f["codes"])), 1)


def _q5_1(blocks: Tensor) -> Fields:
    return {"d": half(blocks, 0), "m": half(blocks, 2), "codes": _five(blocks, 4)}


def _q5_1_bytes(f: Fields) -> Tensor:
    return torch.cat((half_bytes(f["d"]), half_bytes(f["m"]), _five_bytes(f["codes"])), 1)


def _q8_0(blocks: Tensor) -> Fields:
    return {"d": half(blocks, 0), "codes": blocks[:, 2:34].contiguous().view(torch.int8)}


def _q8_0_bytes(f: Fields) -> Tensor:
    return torch.cat((half_bytes(f["d"]), f["codes"].to(torch.int8).contiguous().view(torch.uint8)), 1)


def _q8_1(blocks: Tensor) -> Fields:
    return {"d": half(blocks, 0), "s": half(blocks, 2), "codes": blocks[:, 4:36].contiguous().view(torch.int8)}


def _q8_1_bytes(f: Fields) -> Tensor:
    return torch.cat((half_bytes(f["d"]), half_bytes(f["s"]), f["codes"].to(torch.int8).view(torch.uint8)), 1)


def _q1_0(blocks: Tensor) -> Fields:
    bits = spread(blocks[:, 2:18], 8, 1)  # [n, bit, byte]
    return {"d": half(blocks, 0), "codes": bits.transpose(1, 2).reshape(-1, 128)}


def _q1_0_bytes(f: Fields) -> Tensor:
    return torch.cat((half_bytes(f["d"]), gather(f["codes"].view(-1, 16, 8).transpose(1, 2), 1)), 1)


def _q2_0(blocks: Tensor) -> Fields:
    pairs = spread(blocks[:, 2:18], 4, 2)
    return {"d": half(blocks, 0), "codes": pairs.transpose(1, 2).reshape(-1, 64)}


def _q2_0_bytes(f: Fields) -> Tensor:
    return torch.cat((half_bytes(f["d"]), gather(f["codes"].view(-1, 16, 4).transpose(1, 2), 2)), 1)


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout("Q4_0", _q4_0, _q4_0_bytes, _scaled, 0, 15, zero=8),
        Layout("Q4_1", _q4_1, _q4_1_bytes, _shifted, 0, 15),
        Layout("Q5_0", _q5_0, _q5_0_bytes, _scaled, 0, 31, zero=16),
        Layout("Q5_1", _q5_1, _q5_1_bytes, _shifted, 0, 31),
        Layout("Q8_0", _q8_0, _q8_0_bytes, _scaled, -128, 127),
        Layout("Q8_1", _q8_1, _q8_1_bytes, _scaled, -128, 127),
        Layout("Q1_0", _q1_0, _q1_0_bytes, _scaled, 0, 1, table=(-1.0, 1.0)),
        Layout("Q2_0", _q2_0, _q2_0_bytes, _scaled, 0, 3, zero=1),
    )
}
