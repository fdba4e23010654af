"""The outliers panel: bars per column, row or input channel with a threshold to drag (bars.py), the map of |W| on the
same axis (weightmap.py), and the list of what lies beyond. What is shown is decided in state.py and heat.py."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any, cast

from PySide6.QtCore import QModelIndex, Qt, Slot
from PySide6.QtGui import QResizeEvent
from PySide6.QtWidgets import (
    QComboBox,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QSplitter,
    QStackedLayout,
    QTableView,
    QVBoxLayout,
    QWidget,
)

from app.buttons import flat_button
from app.cells import dress
from app.job_service import JobService
from app.labels import ElidedLabel, Heading, empty_label, hairline
from app.panels.outliers import findings
from app.panels.outliers.heat import Heat, HeatView
from app.panels.outliers.state import AXES, QUANTITIES, OutlierState
from app.panels.outliers.table import LineModel
from app.panels.outliers.widths import Widths
from app.panels.preview import Asked, PreviewPanel
from app.plotting.filling import Filling
from app.plotting.making import Making
from app.plotting.maps import ColorScale, colors
from app.plotting.words import short
from app.session import Notice, Session
from app.theme import current
from core.analysis.outliers import OutlierResult, Region, outliers, region

if TYPE_CHECKING:
    from app.panels.outliers.bars import Bars
    from app.panels.outliers.weightmap import WeightMap
    from app.plotting.plot import Plot

# Lines of the axis to either side of one that was chosen in the list.
AROUND = 32
# Below this height the list makes room for the plots.
LIST_FROM = 360


class OutliersPanel(PreviewPanel):
    """Large weights and large inputs of the first selected tensor."""

    key = "outliers"

    def __init__(self, session: Session, jobs: JobService) -> None:
        super().__init__(session, jobs)
        self._theme = current()
        self.state, self.heat = OutlierState(), Heat()
        self.plot: Plot | None = None  # with it: its two strips
        self.bars: Bars
        self.map: WeightMap
        self.making = Making(self._plot_steps)
        self._filling = Filling(self)
        self._shown: HeatView | None = None
        self._build()
        self._theme.changed.connect(self._redraw)
        self.watch()

    @property
    def busy(self) -> bool:
        """Whether a picture is being counted or drawn."""
        return super().busy or self._filling.busy

    # --- building -----------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        self.empty = empty_label(self.state.empty)
        self.heading = Heading()
        self.notes = QLabel()
        self.notes.setProperty("kind", "muted")
        self.notes.setWordWrap(True)
        self.notes.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.numbers = ElidedLabel("muted", apart="   ")
        self.scale = ColorScale()
        self._plots = QWidget()
        self._plot_box = QVBoxLayout(self._plots)
        self._plot_box.setContentsMargins(0, 0, 0, 0)
        self._plot_box.setSpacing(4)
        under = QHBoxLayout()
        under.setSpacing(16)
        under.addWidget(self.numbers, 1)
        under.addWidget(self.scale)
        self._plot_box.addLayout(under)
        self.list = QTableView()
        self.model = LineModel(self.list)
        self.list.setModel(self.model)
        self.list.setSelectionMode(QTableView.SelectionMode.SingleSelection)
        dress(self.list, words=True)
        self.widths = Widths(self.list)
        self.list.setAccessibleName("Beyond the threshold")
        self.list.clicked.connect(self._line_chosen)
        self.list.activated.connect(self._line_chosen)
        self.split = QSplitter(Qt.Orientation.Vertical)
        self.split.setChildrenCollapsible(False)
        self.split.addWidget(self._plots)
        self.split.addWidget(self.list)
        self.split.setStretchFactor(0, 3)
        self.split.setStretchFactor(1, 1)
        self.split.setSizes([300, 110])
        full = QWidget()
        column = QVBoxLayout(full)
        column.setContentsMargins(12, 8, 12, 8)
        column.setSpacing(4)
        column.addWidget(self.heading)
        column.addWidget(self.notes)
        column.addWidget(self.split, 1)
        column.addWidget(hairline())
        column.addLayout(self._controls())
        self._stack = QStackedLayout(self)
        self._stack.addWidget(self.empty)
        self._stack.addWidget(full)

    def _controls(self) -> QHBoxLayout:
        self.axis, self.quantity = QComboBox(), QComboBox()
        for box, choices in ((self.axis, AXES), (self.quantity, QUANTITIES)):
            for word, text, about in choices:
                box.addItem(text, word)
                box.setItemData(box.count() - 1, about, Qt.ItemDataRole.ToolTipRole)
        self.axis.setToolTip("What a bar stands for, and what runs along the plots")
        self.quantity.setToolTip("What the bars show")
        self.axis.currentIndexChanged.connect(self._axis_chosen)
        self.quantity.currentIndexChanged.connect(self._quantity_chosen)
        self.limit = QLineEdit()
        self.limit.setFixedWidth(self._theme.px(72))
        self.limit.setAlignment(Qt.AlignmentFlag.AlignRight)
        self.limit.setToolTip("Threshold: type it, or drag the dashed line")
        self.limit.setAccessibleName("Threshold")
        self.limit.editingFinished.connect(self._limit_typed)
        self.reset = flat_button(
            self._theme, "arrow-counter-clockwise", "Threshold as it was: 6 × RMS, or 6.0 for inputs"
        )
        self.reset.clicked.connect(self._reset_limit)
        self.log = flat_button(self._theme, "chart-bar-horizontal", "Show sizes on a logarithmic axis", "Log")
        self.log.setCheckable(True)
        self.log.toggled.connect(self._toggle_log)
        self.choices = self.axis, self.quantity, self.log  # the next window has them as they were left
        self.home = flat_button(
            self._theme, "arrows-out-line-horizontal", "Reset zoom (double-click the plot, or Home in it)"
        )
        self.home.clicked.connect(lambda: self.plot.go_home() if self.plot is not None else None)
        line = QHBoxLayout()
        line.setSpacing(8)
        beyond = QLabel("beyond")
        beyond.setProperty("kind", "muted")
        for widget in (self.axis, self.quantity, beyond, self.limit, self.reset):
            line.addWidget(widget)
        line.addStretch(1)
        line.addWidget(self.log)
        line.addWidget(self.home)
        return line

    def _make_plot(self) -> Plot:
        """At the first picture, as far as it was not made before."""
        self.making.finish()
        assert self.plot is not None
        return self.plot

    def _plot_steps(self) -> Iterator[None]:
        from app.panels.outliers.bars import Bars
        from app.panels.outliers.weightmap import WeightMap
        from app.plotting.plot import Plot

        plot = Plot("column", self.state.csv, "outliers")
        plot.setMinimumHeight(120)
        plot.begin_strip()
        yield
        self.bars = Bars(plot)
        self.bars.dragged.connect(self._set_limit)
        yield
        plot.begin_strip()
        yield
        self.map = WeightMap(plot, self.scale)
        yield
        colors()  # read from a file at its first use
        yield
        plot.hovered.connect(self._hovered)
        plot.exports.failed.connect(self._tell)
        plot.range_changed.connect(self._draw)
        plot.went_home.connect(self._rows_home)
        self._plot_box.insertWidget(0, plot, 1)
        plot.stand_before(self.list)
        self.plot = plot

    # --- following ----------------------------------------------------------------------------------------------------

    def follow(self) -> bool:
        fresh = self.state.follow(self._session)
        if fresh:
            self.heat.forget()
            self.drop_side("region")
        return fresh

    def asked(self) -> Asked | None:
        request = self.state.request
        return Asked(outliers, request, f"Outliers of {request.tensor.name}") if request is not None else None

    def take(self, value: Any, final: bool) -> None:
        self.state.take(cast(OutlierResult, value))

    def fail(self, line: str) -> None:
        self.state.fail(line)

    def show_progress(self, permille: int) -> None:
        self.heading.subtitle.setText(f"{findings.subtitle(self.state)} · {permille / 10:.0f} %")

    @Slot()
    def blank(self) -> None:
        if self.plot is not None and self.state.result is None:
            self._filling.hide(self.plot)
            self.scale.show_scale("", "")
            self.model.show([], self.state.x_label)
            for label in (self.heading.title, self.numbers, self.notes):
                label.setText("")
            self.heading.subtitle.setText(findings.subtitle(self.state))

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        self.list.setVisible(self.height() >= LIST_FROM)

    # --- showing ------------------------------------------------------------------------------------------------------

    def show_state(self) -> None:
        state = self.state
        self.empty.setText(state.empty)
        if state.request is None:
            self._stack.setCurrentIndex(0)
            return
        if state.result is None and not state.failure:
            return
        self._stack.setCurrentIndex(1)
        self._write()
        if state.result is None:
            self.model.show([], state.x_label)
            self.scale.show_scale("", "")
            self._filling.hide(self.plot)
            return
        plot = self.plot or self._make_plot()
        self._filling.begin(plot, lambda: self._fill(plot), self._fill_list)

    def _fill(self, plot: Plot) -> Generator[None, None, bool]:
        """Puts what there is to see into the plot."""
        state = self.state
        if state.result is None:
            return False
        go = self._filling.frame(plot, (state.result.name, state.axis), f"{state.result.name}-outliers")
        self.heat.turned = state.axis == "rows"
        self.map.frame(state.result, self.heat.turned, state.x_label)
        low, high = state.home()
        plot.set_home(low, high, (low, high), go=go)
        for strip in plot.strips:
            strip.item.vb.setLimits(minXRange=min(4, max(1, state.length)))
        if go:
            self._rows_home()
        yield
        self._draw(*plot.x_range)
        return True

    def _write(self) -> None:
        state = self.state
        self.heading.title.setText(state.title())
        self.heading.subtitle.setText(findings.subtitle(state))
        self.notes.setText(findings.notes(state))
        self.notes.setVisible(bool(findings.notes(state)))
        self.numbers.setText(findings.statistics(state))
        self.quantity.setEnabled(not state.on_inputs)
        for widget in (self.limit, self.reset):
            widget.setEnabled(state.has_threshold)
        if not self.limit.hasFocus():
            limit = state.threshold
            self.limit.setText(short(limit) if math.isfinite(limit) and state.has_threshold else "")

    @Slot()
    def _redraw(self) -> None:
        if self.plot is not None and self.state.result is not None:
            self._draw(*self.plot.x_range)
            self._fill_list()

    def _fill_list(self) -> None:
        if self.state.result is not None:
            self.model.show(self.state.listed(), self.state.x_label)

    @Slot(float, float)
    def _draw(self, low: float, high: float) -> None:
        if self.state.result is None or self.plot is None:
            return
        self.bars.show(self.state, low, high, self._theme)
        self._draw_map()

    def _draw_map(self) -> None:
        result, heat, request = self.state.result, self.heat, self.state.request
        assert result is not None
        view, cells = self.map.view, self.map.cells
        if result.exact and request is not None:
            closer = heat.closer(request, result, view, cells)
            if closer is not None:
                self.submit_side("region", Asked(region, closer, f"Part of {result.name}"), self._take_region)
        self._shown = heat.picture(result, view, cells)
        if self._shown is None:
            self.map.clear()
            return
        self.map.show(self._shown)
        self.map.mark(self.state.spots(), result.bad, self._theme)

    def _take_region(self, value: Any) -> None:
        self.heat.region = cast(Region, value)
        if self.state.result is not None and self.plot is not None:
            self._draw_map()

    # --- acting -------------------------------------------------------------------------------------------------------

    @Slot(int)
    def _axis_chosen(self, index: int) -> None:
        self.state.axis = self.axis.currentData()
        self.show_state()

    @Slot(int)
    def _quantity_chosen(self, index: int) -> None:
        self.state.quantity = self.quantity.currentData()
        self.show_state()

    @Slot(bool)
    def _toggle_log(self, on: bool) -> None:
        self.state.logarithmic = on
        self._redraw()

    @Slot()
    def _limit_typed(self) -> None:
        # What is no number is put back to what is in force.
        with contextlib.suppress(ValueError):
            self._set_limit(float(self.limit.text().strip().replace(",", ".")))
        self.limit.clearFocus()
        self._write()

    @Slot()
    def _reset_limit(self) -> None:
        self.state.reset_threshold()
        self._write()
        self._redraw()

    @Slot(float)
    def _set_limit(self, value: float) -> None:
        self.state.set_threshold(value)
        self._write()
        self._redraw()

    @Slot(QModelIndex)
    def _line_chosen(self, index: QModelIndex) -> None:
        """Shows the line's neighbourhood."""
        if self.plot is not None and index.isValid():
            at = self.model.lines[index.row()].index
            self.plot.show_range(at - AROUND - 0.5, at + AROUND + 0.5)

    @Slot(str)
    def _tell(self, line: str) -> None:
        self._session.notify(Notice("error", line))

    @Slot()
    def _rows_home(self) -> None:
        if self.state.result is not None and self.plot is not None:
            self.map.go_home()

    @Slot(object)
    def _hovered(self, x: float | None) -> None:
        state, result = self.state, self.state.result
        if x is None or result is None or self.plot is None:
            self.numbers.setText(findings.statistics(state))
            return
        cursor = self.plot.cursor()
        if cursor is not None and cursor[0] == 1:
            self.numbers.setText(self.heat.read_off(result, self._shown, cursor[1], cursor[2]))
        else:
            self.numbers.setText(findings.read_off(state, x))
