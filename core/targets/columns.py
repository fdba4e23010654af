"""Weights that a container keeps transposed: a slice of our rows is a strip of its columns, written line by line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from core.targets.plain import data_of

if TYPE_CHECKING:
    import torch


def strip(name: str, part: torch.Tensor, line_bytes: int, at: int) -> Iterator[tuple[str, int, memoryview | bytes]]:
    """(stored name, byte offset, bytes) of a strip of columns.

    part        [lines, columns of the strip], in the stored type
    line_bytes  of one whole line of the stored tensor
    at          byte inside every line at which the strip begins
    """
    data, lines = data_of(part), part.shape[0]
    width = data.nbytes // max(1, lines)
    if width == line_bytes:
        yield name, 0, data
        return
    for line in range(lines):
        yield name, line * line_bytes + at, data[line * width : (line + 1) * width]
