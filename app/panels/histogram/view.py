"""The histogram panel: follows the selection, asks for counts behind, draws what there is at once and the exact picture
in its place. What is shown is decided in state.py."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

from PySide6.QtCore import Qt, QTimer, Slot
from PySide6.QtGui import QColor, QResizeEvent, QShowEvent
from PySide6.QtWidgets import (
    QComboBox,
    QHBoxLayout,
    QLabel,
    QSpinBox,
    QStackedLayout,
    QVBoxLayout,
    QWidget,
)

from app.buttons import flat_button
from app.glossary import about
from app.job_service import JobService
from app.jobs import Done, Failed, JobId, Outcome, Progress
from app.labels import ElidedLabel, embolden, hairline
from app.panels.histogram.state import OVERLAYS, HistogramState, overlay_task
from app.plotting.making import Making
from app.session import Changes, Notice, Session
from app.theme import current
from core.analysis.histogram import GroupView, HistogramResult, group_view, histogram

if TYPE_CHECKING:
    from app.plotting.plot import Plot

KEY, GROUP_KEY, OVERLAY_KEY = "histogram", "histogram group", "histogram overlay"
# Lines of tensors laid over the first: colours that stand for nothing else in this plot.
OVERLAY_ROLES = ("done", "accent", "caution", "text")
OVERLAY_MS = 50
# Below these heights the plot needs the room more than its legend, and than the percentiles.
LEGEND_FROM, PERCENTILES_FROM = 340, 300


class HistogramPanel(QWidget):
    """Weights, what they become, and the difference, of the first selected tensor."""

    def __init__(self, session: Session, jobs: JobService) -> None:
        super().__init__()
        self._session, self._jobs, self._theme = session, jobs, current()
        self.state = HistogramState()
        self._job: JobId | None = None
        self._group_job: JobId | None = None
        self._overlay_job: JobId | None = None
        self._soon = QTimer(self)  # several tensors laid over come in at once: they are drawn together
        self._soon.setSingleShot(True)
        self._soon.setInterval(OVERLAY_MS)
        self._soon.timeout.connect(self._show)
        self._stale = True  # something changed while the panel was hidden
        self._framed = ""  # the tensor whose home view is set
        self.plot: Plot | None = None
        self.making = Making(self._plot_steps)
        self._build()
        session.selection_changed.connect(self._selected)
        session.changed.connect(self._changed)
        jobs.partial.connect(self._partial)
        jobs.finished.connect(self._finished)
        jobs.progressed.connect(self._progressed)
        self._theme.changed.connect(self._write_legend)
        self._refresh()

    # --- building -----------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        self.empty = QLabel(self.state.empty)
        self.empty.setWordWrap(True)
        self.empty.setProperty("kind", "muted")
        self.empty.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self.empty.setContentsMargins(24, 24, 24, 24)
        self.title = ElidedLabel()
        embolden(self.title)
        self.subtitle = ElidedLabel("muted", Qt.TextElideMode.ElideMiddle)
        self.percentiles, self.numbers = ElidedLabel("muted"), ElidedLabel("muted")
        self.legend, self.notes = QLabel(), QLabel()
        self.legend.setTextFormat(Qt.TextFormat.RichText)
        self.notes.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        for label, kind in ((self.legend, "muted"), (self.notes, "caution")):
            label.setProperty("kind", kind)
            label.setWordWrap(True)
        full = QWidget()
        self._column = QVBoxLayout(full)
        self._column.setContentsMargins(12, 8, 12, 8)
        self._column.setSpacing(4)
        for widget in (self.title, self.subtitle, self.notes, self.legend):
            self._column.addWidget(widget)
        self._place_of_plot = self._column.count()
        self._column.addStretch(1)
        self._column.addWidget(self.percentiles)
        self._column.addWidget(self.numbers)
        self._column.addWidget(hairline())
        self._column.addLayout(self._controls())
        self._stack = QStackedLayout(self)
        self._stack.addWidget(self.empty)
        self._stack.addWidget(full)

    def _controls(self) -> QHBoxLayout:
        self.log = flat_button(
            self._theme, "chart-bar-horizontal", "Show shares on a logarithmic axis", "Log", check=True
        )
        self.log.toggled.connect(self._toggle_log)
        self.scope = QComboBox()
        self.scope.addItems(["All groups", "One group"])
        self.scope.setToolTip("Levels and limits of all groups together, or of one that you choose")
        self.scope.currentIndexChanged.connect(self._scope_chosen)
        self.row, self.group = QSpinBox(), QSpinBox()
        self.row.setPrefix("row ")
        self.group.setPrefix("group ")
        self.row.setToolTip("Row of the group, counted from 0")
        self.group.setToolTip(about("group"))
        for spin in (self.row, self.group):
            spin.setKeyboardTracking(False)
            spin.setAlignment(Qt.AlignmentFlag.AlignRight)
            spin.setMaximumWidth(self._theme.px(104))
            spin.hide()  # until one group is looked at
            spin.valueChanged.connect(self._place_chosen)
        self.spread = flat_button(
            self._theme,
            "columns",
            "Bins by Freedman and Diaconis: as narrow as the spread and the count allow",
            "FD",
            check=True,
        )
        self.spread.setAccessibleName("Bins by Freedman and Diaconis")
        self.spread.toggled.connect(self._toggle_spread)
        self.home = flat_button(self._theme, "arrows-out-line-horizontal", "Reset zoom (double-click the plot)")
        self.home.clicked.connect(self._go_home)
        line = QHBoxLayout()
        line.setSpacing(8)
        for widget in (self.scope, self.row, self.group):
            line.addWidget(widget)
        line.addStretch(1)
        line.addWidget(self.spread)
        line.addWidget(self.log)
        line.addWidget(self.home)
        return line

    def _make_plot(self) -> Plot:
        """At the first picture, as far as it was not made before."""
        self.making.finish()
        assert self.plot is not None
        return self.plot

    def _plot_steps(self) -> Iterator[None]:
        from app.plotting.plot import Plot

        plot = Plot("weight", self.state.csv, "histogram")
        yield
        self._weights = plot.strip("% of weights", 7, lanes=2)
        yield
        self._residuals = plot.strip("residual, %", 3)
        yield
        self._original = self._weights.fill("original")
        self._dequantized = self._weights.line("dequantized")
        self._residual = self._residuals.fill("residual")
        self._overlays = [self._weights.line(role, 1.2) for role in OVERLAY_ROLES[:OVERLAYS]]
        self._levels = self._weights.ticks("text", 0)
        self._rug = self._weights.ticks("original", 1)
        self._limits = self._weights.dashes("text", 2)
        plot.exports.failed.connect(self._tell)
        plot.hovered.connect(self._hovered)
        plot.range_changed.connect(self._draw)
        self._column.setStretch(self._place_of_plot, 0)
        self._column.insertWidget(self._place_of_plot, plot, 1)
        self.plot = plot

    # --- following ----------------------------------------------------------------------------------------------------

    def _selected(self, names: object) -> None:
        self._refresh()

    def _changed(self, changes: Changes, initiator: object) -> None:
        if changes.checkpoint or changes.plan or changes.outline:
            self._refresh()

    def _refresh(self) -> None:
        if not self.isVisible():
            # Hidden behind another tab: nobody waits for the numbers.
            self._stale = True
            return
        self._stale = False
        if self.state.follow(self._session):
            assert self.state.request is not None
            self._submit()
        elif self.state.request is None and self._job is not None:
            self._jobs.cancel(self._job)
            self._job = None
        self._submit_overlays()
        self._show()

    def _submit_overlays(self) -> None:
        """Counts the other selected tensors, as far as that is not done."""
        request = self.state.overlay_request()
        if request is not None:
            self._overlay_job = self._jobs.submit(
                overlay_task, request, title="Histograms laid over", lane="preview", key=OVERLAY_KEY
            )
        elif self._overlay_job is not None:
            self._jobs.cancel(self._overlay_job)
            self._overlay_job = None

    @Slot()
    def _blank(self) -> None:
        """Nothing of the new tensor is there yet: take the picture of the one before away, so that nobody reads it as
        the new one's."""
        if self.state.result is None and self.plot is not None:
            self.plot.hide()
            for label in (self.title, self.percentiles, self.numbers, self.notes, self.legend):
                label.clear()
            self.subtitle.setText(self.state.subtitle())

    def showEvent(self, event: QShowEvent) -> None:
        super().showEvent(event)
        if self._stale:
            self._refresh()

    def _submit(self) -> None:
        request = self.state.request
        assert request is not None
        self._job = self._jobs.submit(
            histogram, request, title=f"Histogram of {request.tensor.name}", lane="preview", key=KEY
        )
        self._blank()
        self._submit_group()

    def _submit_group(self) -> None:
        request = self.state.group_request()
        if request is not None:
            title = f"Group of {request.histogram.tensor.name}"
            self._group_job = self._jobs.submit(group_view, request, title=title, lane="preview", key=GROUP_KEY)

    def _partial(self, job: JobId, value: object) -> None:
        result = cast(HistogramResult, value)
        if job == self._job and self.state.take(result):
            self._show()
        elif job == self._overlay_job and self.state.take_overlay(result) and not self._soon.isActive():
            self._soon.start()

    def _progressed(self, progress: Progress) -> None:
        if progress.id == self._job and progress.total and progress.elapsed > 1:
            self.subtitle.setText(f"{self.state.subtitle()} · {progress.permille / 10:.0f} %")

    def _finished(self, job: JobId, outcome: Outcome) -> None:
        if job == self._overlay_job:
            self._overlay_job = None
            if self._soon.isActive():
                self._soon.stop()
                self._show()
        elif job == self._job:
            self._job = None
            if isinstance(outcome, Done):
                self.state.take(outcome.result)
            elif isinstance(outcome, Failed):
                self.state.fail(outcome.line)
                self._session.notify(Notice("warning", f"No histogram: {outcome.line}", outcome.details))
            self._show()
        elif job == self._group_job:
            self._group_job = None
            if isinstance(outcome, Done):
                self.state.group = cast(GroupView, outcome.result)
                self._show()

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        self.legend.setVisible(self.height() >= LEGEND_FROM)
        self.percentiles.setVisible(self.height() >= PERCENTILES_FROM)

    # --- showing ------------------------------------------------------------------------------------------------------

    @Slot()
    def _show(self) -> None:
        state = self.state
        self.empty.setText(state.empty)
        if state.request is None or (state.result is None and not state.failure):
            self._stack.setCurrentIndex(0 if state.request is None else self._stack.currentIndex())
            if state.request is None:
                return
        self.title.setText(state.title())
        self.subtitle.setText(state.subtitle())
        self.notes.setText(state.notes())
        self.notes.setVisible(bool(state.notes()))
        self.percentiles.setText(state.percentiles())
        self.numbers.setText(state.statistics())
        self._write_legend()
        self._enable()
        if state.result is None:
            if state.failure:
                self._stack.setCurrentIndex(1)
                if self.plot is not None:
                    self.plot.hide()
            return
        plot = self.plot or self._make_plot()
        plot.show()
        self._stack.setCurrentIndex(1)
        # A zoom by hand stays while the picture of the same tensor becomes exact, or its strategy changes.
        fresh = self._framed != state.result.name
        go = fresh or plot.at_home
        self._framed = state.result.name
        plot.name = f"{state.result.name}-histogram"
        plot.set_home(*state.home(), state.bounds(), go=go)
        self._draw(*plot.x_range)

    @Slot(float, float)
    def _draw(self, low: float, high: float) -> None:
        state = self.state
        if state.result is None or self.plot is None:
            return
        picture = state.picture(low, high)
        for item, curve in (
            (self._original, picture.original),
            (self._dequantized, picture.dequantized),
            (self._residual, picture.residual),
        ):
            item.setVisible(curve is not None)
            if curve is not None:
                item.setFillLevel(picture.bottom)
                item.setData(x=curve.edges, y=curve.heights)
        self._dequantized.setFillLevel(None)
        for i, item in enumerate(self._overlays):
            item.setVisible(i < len(picture.others))
            if i < len(picture.others):
                item.setData(x=picture.others[i].edges, y=picture.others[i].heights)
            item.setFillLevel(None)
        self._weights.set_heights(picture.bottom, picture.top, state.logarithmic)
        self._residuals.set_heights(picture.bottom, picture.residual_top, state.logarithmic)
        self._residuals.show_message(self._no_residual())
        group = state.shown_group
        self._levels.setXVals(group.levels.tolist() if group is not None and group.levels is not None else [])
        chosen = state.place is not None and state.group is not None
        self._rug.setXVals(state.group.weights.tolist() if chosen and state.group is not None else [])
        from app.plotting.strip import place

        place(self._limits, state.limits())
        self._weights.item.update()

    def _no_residual(self) -> str:
        result = self.state.result
        assert result is not None
        if result.residual is not None or result.pending:
            return ""
        return "no difference" if result.dequantized is not None else "nothing to compare with"

    @Slot()
    def _write_legend(self) -> None:
        colors, state = self._theme.colors, self.state
        if state.result is None:
            self.legend.clear()
            return
        parts = [_key("■", colors.original, "original")]
        if state.result.dequantized is not None:
            parts.append(_key("━", colors.dequantized, "dequantized"))
            if state.result.residual is not None:
                parts.append(_key("■", colors.residual, "residual, below"))
        for role, other in zip(OVERLAY_ROLES, state.laid_over, strict=False):
            parts.append(_key("━", getattr(colors, role), other.name))
        if state.legend_levels():
            parts.append(_key("││", colors.text, state.legend_levels()))
        if state.place is not None and state.group is not None:
            parts.append(_key("││", colors.original, "its weights"))
        if state.legend_limits():
            parts.append(_key("┆", colors.text, state.legend_limits()))
        self.legend.setText(f'<div style="line-height: 120%">{"&nbsp;&nbsp; ".join(parts)}</div>')
        self.legend.setToolTip(state.legend_help())

    def _enable(self) -> None:
        state = self.state
        for widget in (self.scope, self.row, self.group):
            widget.setEnabled(state.choosable)
        for widget in (self.row, self.group):
            widget.setVisible(state.place is not None)
        for spin, last in ((self.row, state.request.tensor.rows if state.request else 1), (self.group, state.groups)):
            spin.blockSignals(True)
            spin.setRange(0, max(0, last - 1))
            spin.blockSignals(False)
        self.scope.blockSignals(True)
        self.scope.setCurrentIndex(0 if state.place is None else 1)
        self.scope.blockSignals(False)

    # --- acting -------------------------------------------------------------------------------------------------------

    @Slot(bool)
    def _toggle_log(self, on: bool) -> None:
        self.state.logarithmic = on
        if self.plot is not None:
            self._draw(*self.plot.x_range)

    @Slot(bool)
    def _toggle_spread(self, on: bool) -> None:
        self.state.by_spread = on
        if self.plot is not None:
            self._draw(*self.plot.x_range)

    @Slot(int)
    def _scope_chosen(self, index: int) -> None:
        if index == 0:
            self.state.place, self.state.group = None, None
        else:
            typical = self.state.shown_group
            at = (typical.row, typical.start // self.state.width) if typical is not None else (0, 0)
            self.state.place = at
            for spin, value in zip((self.row, self.group), at, strict=True):
                spin.blockSignals(True)
                spin.setValue(value)
                spin.blockSignals(False)
            self._submit_group()
        self._show()

    @Slot()
    def _place_chosen(self) -> None:
        self.state.place = (self.row.value(), self.group.value())
        self._submit_group()

    @Slot(str)
    def _tell(self, line: str) -> None:
        self._session.notify(Notice("error", line))

    @Slot()
    def _go_home(self) -> None:
        if self.plot is not None:
            self.plot.go_home()

    @Slot(object)
    def _hovered(self, x: float | None) -> None:
        self.numbers.setText(self.state.statistics() if x is None else self.state.read_off(x))


def _key(sign: str, color: QColor, text: str) -> str:
    """An entry of the legend; it never breaks inside."""
    return f'<span style="color:{color.name()}">{sign}</span>&nbsp;{text.replace(" ", "&nbsp;")}'
