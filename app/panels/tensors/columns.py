"""The columns of the tensor table. No Qt."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Column:
    """One column. number: right-aligned, tabular figures; width: the least, in pixels, before the user drags it."""

    id: str
    title: str
    help: str
    width: int
    number: bool = False


COLUMNS = (
    Column("name", "tensor", "Name in the output; blocks can be folded", 150),
    Column("role", "role", "What part of the model it is", 78),
    Column("shape", "shape", "Rows × columns, leading dimensions first", 88, number=True),
    Column("dtype", "dtype", "Type in the checkpoint", 52),
    Column("strategy", "strategy", "Format and method it gets; double-click, F2 or Enter to change", 96),
    Column("bpw", "bpw", "Stored bits per weight, scales and padding included", 54, number=True),
    Column("size", "size", "Bytes it takes in the output, bars on one scale", 76, number=True),
    Column(
        "sqnr",
        "SQNR, dB",
        "Signal to quantization noise of the weights: 10·log₁₀(Σw²/Σ(w−ŵ)²). ≈ is a preview from a sample of rows",
        76,
        number=True,
    ),
    Column("rule", "rule", "The rule that won", 76),
)
PLACE = {c.id: i for i, c in enumerate(COLUMNS)}
