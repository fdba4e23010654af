"""The columns of the tensor table. No Qt."""

from __future__ import annotations

from dataclasses import dataclass

from app.glossary import about


@dataclass(frozen=True, slots=True)
class Column:
    """One column. help: what is special about it here, behind the sentence of the glossary; number: right-aligned,
    tabular figures; width: the least, in pixels, before the user drags it."""

    id: str
    title: str
    help: str
    width: int
    number: bool = False

    @property
    def tip(self) -> str:
        return about(self.title, self.help)


COLUMNS = (
    Column("name", "tensor", "Name in the output; blocks can be folded", 168),
    Column("role", "role", "", 76),
    Column("shape", "shape", "", 84, number=True),
    Column("dtype", "dtype", "In the checkpoint", 50),
    Column("strategy", "strategy", "Double-click, F2 or Enter to change it", 113),
    Column("bpw", "bpw", "", 48, number=True),
    Column("size", "size", "In the output; bars on one scale", 66, number=True),
    Column(
        "sqnr",
        "SQNR, dB",
        "≈ is a preview from a sample of rows. A table that is sorted by it follows errors as they come, once a "
        "second, but not while you type or scroll, or have selected lines in hundreds of places",
        76,
        number=True,
    ),
    Column("rule", "rule", "The one that won here", 66),
)
PLACE = {c.id: i for i, c in enumerate(COLUMNS)}
