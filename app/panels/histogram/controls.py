"""The line of controls under the histogram: whose levels are drawn, how bins and axis are made, and the way home."""

from __future__ import annotations

from PySide6.QtCore import QSignalBlocker, Qt
from PySide6.QtWidgets import QComboBox, QHBoxLayout, QSpinBox

from app.buttons import flat_button
from app.glossary import about
from app.panels.histogram.state import HistogramState
from app.theme import Theme


class Controls(QHBoxLayout):
    """scope: all groups or one, chosen by row and group; spread, log: switches; home: resets the zoom."""

    def __init__(self, theme: Theme) -> None:
        super().__init__()
        self.log = flat_button(theme, "chart-bar-horizontal", "Show shares on a logarithmic axis", "Log", check=True)
        self.scope = QComboBox()
        self.scope.addItems(["All groups", "One group"])
        self.scope.setToolTip("Levels and limits of all groups together, or of one that you choose")
        self.scope.setAccessibleName("Groups")
        self.row, self.group = QSpinBox(), QSpinBox()
        self.row.setPrefix("row ")
        self.group.setPrefix("group ")
        self.row.setToolTip("Row of the group, counted from 0")
        self.group.setToolTip(about("group"))
        for spin in (self.row, self.group):
            spin.setKeyboardTracking(False)
            spin.setAlignment(Qt.AlignmentFlag.AlignRight)
            spin.setMaximumWidth(theme.px(104))
            spin.hide()  # until one group is looked at
        self.spread = flat_button(
            theme,
            "columns",
            "Bins by Freedman and Diaconis: as narrow as the spread and the count allow",
            "FD",
            check=True,
        )
        self.spread.setAccessibleName("Bins by Freedman and Diaconis")
        self.home = flat_button(
            theme, "arrows-out-line-horizontal", "Reset zoom (double-click the plot, or Home in it)"
        )
        self.setSpacing(8)
        for widget in (self.scope, self.row, self.group):
            self.addWidget(widget)
        self.addStretch(1)
        for button in (self.spread, self.log, self.home):
            self.addWidget(button)

    def follow(self, state: HistogramState) -> None:
        """Offers what there is to choose for the tensor in view."""
        for widget in (self.scope, self.row, self.group):
            widget.setEnabled(state.choosable)
        for widget in (self.row, self.group):
            widget.setVisible(state.place is not None)
        for spin, last in ((self.row, state.request.tensor.rows if state.request else 1), (self.group, state.groups)):
            with QSignalBlocker(spin):
                spin.setRange(0, max(0, last - 1))
        if state.place is not None:
            for spin, value in zip((self.row, self.group), state.place, strict=True):
                with QSignalBlocker(spin):
                    spin.setValue(value)
        with QSignalBlocker(self.scope):
            self.scope.setCurrentIndex(0 if state.place is None else 1)
