"""The tensor table as a Qt model: model → block → tensor, flattened into lines.

The tree is flat on purpose. A QTreeView asks the model about every row it unfolds, which for 50,000 rows written in
Python takes seconds; a table view asks about the rows on screen alone, so folding is done in state.arrange.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import repeat
from typing import TYPE_CHECKING, Any

from PySide6.QtCore import (
    QAbstractTableModel,
    QItemSelectionRange,
    QModelIndex,
    QObject,
    QPersistentModelIndex,
    Qt,
    Signal,
)

from app.panels.tensors import texts
from app.panels.tensors.columns import COLUMNS, PLACE
from app.panels.tensors.errors import Errors, error_cell, update_worst
from app.panels.tensors.state import (
    MODEL,
    Arrangement,
    Cells,
    Filter,
    Look,
    Order,
    Rows,
    arrange,
    entry_block,
    ordering,
    tensors_of,
)

if TYPE_CHECKING:
    import numpy as np

    from app.panels.tensors.loading import TableData
    from app.session import ShownError

Index = QModelIndex | QPersistentModelIndex
NO_PARENT = QModelIndex()


# Made once: Qt asks for every cell, and combining Qt's enums in Python takes longer than drawing.
_LEFT = int(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter)
_RIGHT = int(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
_FLAGS = Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsSelectable | Qt.ItemFlag.ItemNeverHasChildren
_EDITABLE = _FLAGS | Qt.ItemFlag.ItemIsEditable


class TensorModel(QAbstractTableModel):
    """Lines of an arrangement. assigned(rows, text) when a strategy was typed into a cell."""

    assigned = Signal(object, str)

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self.rows: Rows | None = None
        self.cells: Cells | None = None
        self.errors: Errors | None = None
        self.passing: np.ndarray | None = None
        self.filter = Filter()
        self.order = Order()
        self.grouped = True
        self.folded: frozenset[str] = frozenset()
        self.title = ""
        self.source_bytes: Mapping[str, int] = {}
        self._ordered: np.ndarray | None = None
        self._lines: list[int] = []
        self._array: np.ndarray | None = None  # int64 [lines], the same as _lines; None without lines
        # The lines that anyone sees: changes elsewhere are told when they scroll in.
        self.on_screen = range(0, 1 << 30)
        self._shown = 0

    # What is shown

    def show(self, data: TableData) -> bool:
        """Swaps everything in at once. True when the lines are others, and nothing is selected any more."""
        same = data.rows is self.rows and data.passing is self.passing
        self.filter = data.filter
        self.rows, self.cells, self.errors, self.passing = data.rows, data.cells, data.errors, data.passing
        if data.look == self.look:
            self._ordered, arrangement = data.ordered, data.arrangement
        else:  # sorted or folded while the job ran
            self._ordered = self._order()
            arrangement = self._arranged()
        if same and arrangement.entries == self._lines:
            self.refresh()
            return False
        self._rearrange(arrangement)
        return True

    def clear(self) -> None:
        """No tensors."""
        self.rows = self.cells = self.errors = self.passing = self._ordered = None
        self.rearrange()

    @property
    def look(self) -> Look:
        """How tensors are laid out as lines now."""
        return Look(self.order, self.grouped, self._open_folds())

    def set_filter(self, wanted: Filter, passing: np.ndarray | None) -> None:
        self.filter, self.passing = wanted, passing
        self.rearrange()

    def set_order(self, order: Order) -> None:
        self.order = order
        self._ordered = self._order()
        self.rearrange()

    def set_grouped(self, grouped: bool) -> None:
        self.grouped = grouped
        self.rearrange()

    def set_folded(self, folded: frozenset[str]) -> None:
        self.folded = folded
        self.rearrange()

    def rearrange(self) -> None:
        """New lines from rows, filter, order and folds."""
        self._rearrange(self._arranged())

    def _rearrange(self, arrangement: Arrangement) -> None:
        self.beginResetModel()
        self._lines, self._shown, self._array = arrangement.entries, arrangement.shown, arrangement.array
        self.endResetModel()

    def moves(self, arrangement: Arrangement) -> np.ndarray | None:
        """int64 [lines]: where each line goes, if the same entries stand in another order; None where none moves."""
        import numpy as np

        before, after = self._entries(), arrangement.array
        if after is None or np.array_equal(before, after):
            return None
        lowest = int(after.min())
        place = np.zeros(int(after.max()) - lowest + 1, np.int64)
        place[after - lowest] = np.arange(after.size)
        return place[before - lowest]

    def reorder(self, ordered: np.ndarray, arrangement: Arrangement, moves: np.ndarray) -> None:
        """Moves the lines, and Qt's indices with them."""
        self.layoutAboutToBeChanged.emit()
        held = self.persistentIndexList()
        self._ordered, self._lines, self._array = ordered, arrangement.entries, arrangement.array
        self.changePersistentIndexList(held, [self.index(int(moves[i.row()]), i.column()) for i in held])
        self.layoutChanged.emit()

    def refresh(self) -> None:
        """The same lines with other contents."""
        if self._lines:
            self.dataChanged.emit(self.index(0, 0), self.index(len(self._lines) - 1, len(COLUMNS) - 1))

    def set_errors(self, changed: Mapping[int, ShownError]) -> None:
        """Errors of some rows became known. The order stays: following.py sees to it."""
        rows, errors = self.rows, self.errors
        if rows is None or errors is None:
            return
        for i, error in changed.items():
            errors.sqnr[i], errors.mark[i] = error_cell(error)
        blocks = {int(rows.block[i]) for i in changed}
        update_worst(rows, errors, blocks)
        # Cell by cell for what is on screen: told of a range, Qt repaints everything.
        column = PLACE["sqnr"]
        for line in range(self.on_screen.start, min(self.on_screen.stop, len(self._lines))):
            entry = self._lines[line]
            if entry in changed or entry == MODEL or (entry < 0 and entry_block(entry) in blocks):
                index = self.index(line, column)
                self.dataChanged.emit(index, index)

    def _order(self) -> np.ndarray | None:
        if self.rows is None:
            return None
        return ordering(self.rows, self.cells, self.errors.sqnr if self.errors else None, self.order)

    def _arranged(self) -> Arrangement:
        if self.rows is None or self._ordered is None:
            return Arrangement([], 0)
        look = self.look
        return arrange(self.rows, self._ordered, self.passing, look.grouped, look.folded, look.backwards)

    def _open_folds(self) -> frozenset[str]:
        # What was searched for must be seen.
        return frozenset() if self.filter else self.folded

    # Questions

    @property
    def lines(self) -> list[int]:
        return self._lines

    @property
    def shown(self) -> int:
        """Tensors that pass the filter."""
        return self._shown

    def entry(self, line: int) -> int:
        return self._lines[line]

    def depth(self, line: int) -> int:
        entry = self._lines[line]
        if not self.grouped or entry == MODEL:
            return 0
        return 2 if entry >= 0 else 1

    def is_folded(self, line: int) -> bool | None:
        """None for tensors, which have nothing to fold."""
        entry = self._lines[line]
        if entry >= 0 or self.rows is None:
            return None
        label = "" if entry == MODEL else self.rows.blocks[entry_block(entry)]
        return label in self._open_folds()

    def fold(self, lines: Iterable[int], folded: bool) -> None:
        rows = self.rows
        if rows is None or self.filter:
            return
        entries = [self._lines[n] for n in lines]
        labels = {"" if e == MODEL else rows.blocks[entry_block(e)] for e in entries if e < 0}
        self.set_folded(self.folded | labels if folded else self.folded - labels)

    def fold_all(self, folded: bool) -> None:
        if self.rows is not None:
            self.set_folded(frozenset(self.rows.blocks) if folded else frozenset())

    def rows_at(self, lines: Sequence[int]) -> list[int]:
        """Rows of the tensors that these lines stand for."""
        if self.rows is None:
            return []
        return tensors_of(self._entries()[lines], self.rows, self.passing)

    def names_at(self, lines: Sequence[int]) -> tuple[str, ...]:
        if self.rows is None:
            return ()
        rows = self.rows_at(lines)
        return self.rows.all_names if len(rows) == len(self.rows) else tuple(map(self.rows.names.__getitem__, rows))

    def lines_of(self, names: Iterable[str]) -> Sequence[int]:
        """Visible lines of tensors, ascending; with those of the blocks where it is all tensors."""
        import numpy as np

        rows = self.rows
        if rows is None:
            return []
        wanted = np.zeros(len(rows) + 1, bool)  # the last stands for entries that are no tensors
        if names == rows.all_names:
            wanted[:-1] = True
        else:
            places = np.fromiter(map(rows.index.get, names, repeat(-1)), np.int64)
            wanted[places[places >= 0]] = True
        lines = self._entries()
        if self._shown > 1 and (wanted[:-1] if self.passing is None else wanted[:-1] | ~self.passing).all():
            return range(len(lines))
        return np.flatnonzero(wanted[np.where(lines < 0, len(rows), lines)]).tolist()

    def _entries(self) -> np.ndarray:
        """int64 [lines]"""
        import numpy as np

        if self._array is None:
            self._array = np.array(self._lines, np.int64)
        return self._array

    def lines_between(self, first: int, last: int) -> QItemSelectionRange:
        """Whole lines, both ends included. Made without Qt's looking back at the model for every corner."""
        return QItemSelectionRange(self.createIndex(first, 0), self.createIndex(last, len(COLUMNS) - 1))

    # Qt's questions

    def rowCount(self, parent: Index = NO_PARENT) -> int:
        return 0 if parent.isValid() else len(self._lines)

    def columnCount(self, parent: Index = NO_PARENT) -> int:
        return 0 if parent.isValid() else len(COLUMNS)

    def headerData(self, section: int, orientation: Qt.Orientation, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        if orientation != Qt.Orientation.Horizontal or not 0 <= section < len(COLUMNS):
            return None
        column = COLUMNS[section]
        if role == Qt.ItemDataRole.DisplayRole:
            if column.id == "size":
                return f"size, {self.cells.unit[0] if self.cells else 'MiB'}"
            return column.title
        if role == Qt.ItemDataRole.ToolTipRole:
            return column.tip
        if role == Qt.ItemDataRole.TextAlignmentRole:
            return _RIGHT if column.number else _LEFT
        return None

    def flags(self, index: Index) -> Qt.ItemFlag:
        if not index.isValid():
            return Qt.ItemFlag.NoItemFlags
        return _EDITABLE if index.column() == PLACE["strategy"] and self.cells is not None else _FLAGS

    def data(self, index: Index, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        if not index.isValid() or not 0 <= index.row() < len(self._lines):
            return None
        column = COLUMNS[index.column()]
        if role == Qt.ItemDataRole.DisplayRole:
            return self.text(index.row(), column.id)
        if role == Qt.ItemDataRole.EditRole:
            return self.text(index.row(), column.id)
        if role == Qt.ItemDataRole.ToolTipRole:
            return self.tooltip(index.row(), column.id)
        if role == Qt.ItemDataRole.TextAlignmentRole:
            return _RIGHT if column.number else _LEFT
        return None

    def setData(self, index: Index, value: Any, role: int = Qt.ItemDataRole.EditRole) -> bool:
        if role != Qt.ItemDataRole.EditRole or not index.isValid() or index.column() != PLACE["strategy"]:
            return False
        self.assigned.emit(self.rows_at([index.row()]), str(value))
        return True

    def text(self, line: int, column: str) -> str:
        return texts.text(self, self._lines[line], column)

    def tooltip(self, line: int, column: str) -> str:
        return texts.tooltip(self, self._lines[line], column)
