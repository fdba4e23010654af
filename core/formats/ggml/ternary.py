"""Three levels: TQ2_0 (2 bits each) and TQ1_0 (five to a byte, in base 3)."""

from __future__ import annotations

import torch
from torch import Tensor

from core.formats.ggml.layout import Fields, Layout, Steps, gather, half, half_bytes, ramp

_POWERS = (1, 3, 9, 27, 81)


def _trits(x: Tensor, count: int) -> Tensor:
    """[n, k] bytes → [n, count, k]: digit j of byte·3ʲ read as a fraction of 256."""
    powers = torch.tensor(_POWERS[:count], dtype=torch.int32, device=x.device)
    turned = x[:, None, :].to(torch.int32) * powers[:, None] & 255
    return (turned * 3 >> 8).to(torch.uint8)


def _trit_bytes(trits: Tensor) -> Tensor:
    """[n, count ≤ 5, k] → [n, k]; missing digits are 0. The byte is ⌈value·256/243⌉."""
    powers = torch.tensor(_POWERS[::-1][: trits.shape[1]], dtype=torch.int32, device=trits.device)
    value = (trits.to(torch.int32) * powers[:, None]).sum(1)
    return ((value * 256 + 242) // 243).to(torch.uint8)


def _tq1_0(blocks: Tensor) -> Fields:
    parts = (_trits(blocks[:, :32], 5), _trits(blocks[:, 32:48], 5), _trits(blocks[:, 48:52], 4))
    return {"codes": torch.cat([p.flatten(1) for p in parts], 1), "d": half(blocks, 52)}


def _tq1_0_bytes(f: Fields) -> Tensor:
    c = f["codes"]
    pieces = (c[:, :160].reshape(-1, 5, 32), c[:, 160:240].reshape(-1, 5, 16), c[:, 240:].reshape(-1, 4, 4))
    return torch.cat((*(_trit_bytes(p) for p in pieces), half_bytes(f["d"])), 1)


def _tq2_0(blocks: Tensor) -> Fields:
    x = blocks[:, :64].reshape(-1, 2, 1, 32)
    return {"codes": (x >> ramp(x, 4, 2)[:, None] & 3).reshape(-1, 256), "d": half(blocks, 64)}


def _tq2_0_bytes(f: Fields) -> Tensor:
    return torch.cat((gather(f["codes"].reshape(-1, 4, 32), 2).view(-1, 64), half_bytes(f["d"])), 1)


def _step(f: Fields) -> Steps:
    return Steps(f["d"].float())


LAYOUTS = {
    "TQ1_0": Layout("TQ1_0", _tq1_0, _tq1_0_bytes, _step, 0, 2, zero=1),
    "TQ2_0": Layout("TQ2_0", _tq2_0, _tq2_0_bytes, _step, 0, 2, zero=1),
}
