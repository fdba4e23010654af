"""Which columns of a table are shown where not all of them have room: what is given up first goes first."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PySide6.QtWidgets import QTableView


def fitting(needed: Mapping[int, int], room: int, spare: Iterable[int]) -> set[int]:
    """The sections that are shown. needed: the widths of all; spare: those that can be given up, first to last."""
    shown = set(needed)
    for section in spare:
        if sum(needed[s] for s in shown) <= room:
            break
        shown.discard(section)
    return shown


def show_only(table: QTableView, shown: Collection[int], sections: Iterable[int]) -> None:
    """Hides those of the sections that are not shown; touches no other."""
    for section in sections:
        if table.isColumnHidden(section) == (section in shown):
            table.setColumnHidden(section, section not in shown)
