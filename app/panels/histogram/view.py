"""The histogram panel: follows the selection, asks for counts behind, draws what there is at once and the exact picture
in its place. What is shown is decided in state.py."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, cast

from PySide6.QtCore import Qt, QTimer, Slot
from PySide6.QtGui import QResizeEvent, QShowEvent
from PySide6.QtWidgets import QLabel, QStackedLayout, QVBoxLayout, QWidget

from app.job_service import JobService
from app.jobs import Done, Failed, JobId, Outcome, Progress
from app.labels import ElidedLabel, Heading, empty_label, hairline
from app.panels.histogram.controls import Controls
from app.panels.histogram.legend import OVERLAY_ROLES, legend_html
from app.panels.histogram.picture import tick_places
from app.panels.histogram.requests import overlay_task
from app.panels.histogram.state import OVERLAYS, HistogramState
from app.plotting.filling import Filling
from app.plotting.making import Making
from app.session import Changes, Notice, Session
from app.theme import current
from core.analysis.histogram import GroupView, HistogramResult, group_view, histogram

if TYPE_CHECKING:
    from app.plotting.plot import Plot

KEY, GROUP_KEY, OVERLAY_KEY = "histogram", "histogram group", "histogram overlay"
OVERLAY_MS = 50
# Of a tensor this small, the exact picture follows that of the weights alone within a few milliseconds.
SMALL_WEIGHTS, PENDING_MS = 1 << 16, 40
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
        self._weights_only = QTimer(self)
        self._weights_only.setSingleShot(True)
        self._weights_only.setInterval(PENDING_MS)
        self._weights_only.timeout.connect(self._show)
        self._stale = True  # something changed while the panel was hidden
        self._drawn: tuple[object, ...] = ()  # what the plot shows
        self.plot: Plot | None = None
        self.making = Making(self._plot_steps)
        self._filling = Filling(self)
        self._build()
        session.selection_changed.connect(self._selected)
        session.changed.connect(self._changed)
        jobs.partial.connect(self._partial)
        jobs.finished.connect(self._finished)
        jobs.progressed.connect(self._progressed)
        self._theme.changed.connect(self._write_legend)
        self._refresh()

    @property
    def busy(self) -> bool:
        """Whether a picture is being counted or drawn."""
        counted = self._job is not None or self._overlay_job is not None or self._soon.isActive()
        return counted or self._filling.busy

    # --- building -----------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        self.empty = empty_label(self.state.empty)
        self.heading = Heading()
        self.percentiles, self.numbers = (ElidedLabel("muted", apart="  ") for _ in range(2))
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
        for widget in (self.heading, self.notes, self.legend):
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

    def _controls(self) -> Controls:
        made = self.controls = Controls(self._theme)
        self.log, self.spread, self.home = made.log, made.spread, made.home
        self.scope, self.row, self.group = made.scope, made.row, made.group
        self.log.toggled.connect(self._toggled)
        self.scope.currentIndexChanged.connect(self._scope_chosen)
        for spin in (self.row, self.group):
            spin.valueChanged.connect(self._place_chosen)
        self.spread.toggled.connect(self._toggled)
        self.choices = self.log, self.spread  # the next window has them as they were left
        self.home.clicked.connect(lambda: self.plot.go_home() if self.plot is not None else None)
        return made

    def _make_plot(self) -> Plot:
        """At the first picture, as far as it was not made before."""
        self.making.finish()
        assert self.plot is not None
        return self.plot

    def _plot_steps(self) -> Iterator[None]:
        from app.plotting.plot import Plot

        plot = Plot("weight", self.state.csv, "histogram")
        plot.begin_strip()
        yield
        self._weights = plot.strip("% of weights", 7, lanes=2)
        yield
        plot.begin_strip()
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
        self._zero = self._weights.dashes("muted", 1, Qt.PenStyle.DotLine)
        plot.exports.failed.connect(self._tell)
        plot.hovered.connect(self._hovered)
        plot.range_changed.connect(self._draw)
        self._column.setStretch(self._place_of_plot, 0)
        self._column.insertWidget(self._place_of_plot, plot, 1)
        plot.stand_before(self.scope)
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
            self._filling.hide(self.plot)
            for label in (self.heading.title, self.percentiles, self.numbers, self.notes, self.legend):
                label.clear()
            self.heading.subtitle.setText(self.state.subtitle())

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
        if self._group_job is not None:
            self._jobs.cancel(self._group_job)  # that of the strategy before
            self._group_job = None

    def _take(self, result: HistogramResult) -> bool:
        taken = self.state.take(result)
        if taken and self.state.group is None and self._group_job is None and not result.pending:
            self._submit_group()
        return taken

    def _submit_group(self) -> None:
        request = self.state.group_request()
        if request is not None:
            title = f"Group of {request.histogram.tensor.name}"
            self._group_job = self._jobs.submit(group_view, request, title=title, lane="preview", key=GROUP_KEY)

    def _partial(self, job: JobId, value: object) -> None:
        result = cast(HistogramResult, value)
        if job == self._job and self._take(result):
            if result.pending and result.rows * result.columns <= SMALL_WEIGHTS:
                self._weights_only.start()  # the rest is nearly there: one picture instead of two
            else:
                self._show()
        elif job == self._overlay_job and self.state.take_overlay(result) and not self._soon.isActive():
            self._soon.start()

    def _progressed(self, progress: Progress) -> None:
        if progress.id == self._job and progress.total and progress.elapsed > 1:
            self.heading.subtitle.setText(f"{self.state.subtitle()} · {progress.permille / 10:.0f} %")

    def _finished(self, job: JobId, outcome: Outcome) -> None:
        if job == self._overlay_job:
            self._overlay_job = None
            if self._soon.isActive():
                self._soon.stop()
                self._show()
        elif job == self._job:
            self._job = None
            self._weights_only.stop()
            if isinstance(outcome, Done):
                self._take(cast(HistogramResult, outcome.result))
            elif isinstance(outcome, Failed):
                self.state.fail(outcome.line)
                self._session.notify(Notice("warning", f"No histogram: {outcome.line}", outcome.details))
            result = self.state.result
            if self._overlay_job is not None and result is not None and result.rows * result.columns <= SMALL_WEIGHTS:
                self._soon.start()  # those laid over are nearly there, too
            else:
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
        if state.request is None:
            self._stack.setCurrentIndex(0)
            return
        self.heading.title.setText(state.title())
        self.heading.subtitle.setText(state.subtitle())
        self._write_notes()
        self.percentiles.setText(state.percentiles())
        self.numbers.setText(state.statistics())
        self._write_legend()
        self.controls.follow(state)
        if state.result is None:
            if state.failure:
                self._stack.setCurrentIndex(1)
                self._filling.hide(self.plot)
            return
        self._stack.setCurrentIndex(1)
        plot = self.plot or self._make_plot()
        # A plot is painted anew whenever it is touched, and most of what the session tells changes nothing in it.
        if self._filling.busy or plot.isHidden() or self._drawn != self._key(*plot.x_range):
            self._filling.begin(plot, lambda: self._fill(plot))

    def _fill(self, plot: Plot) -> Generator[None, None, bool]:
        """Puts what there is to see into the plot."""
        state = self.state
        if state.result is None:
            return False
        # A zoom by hand stays while the picture of the same tensor becomes exact, or its strategy changes.
        go = self._filling.frame(plot, state.result.name, f"{state.result.name}-histogram")
        plot.set_home(*state.home(), state.bounds(), go=go)
        self._draw(*plot.x_range)
        yield from ()
        return True

    def _key(self, low: float, high: float) -> tuple[object, ...]:
        """What a picture from low to high depends on."""
        state = self.state
        how = state.group, state.place, state.logarithmic, state.by_spread
        return (state.result, *how, *state.laid_over, low, high)

    @Slot(float, float)
    def _draw(self, low: float, high: float) -> None:
        state = self.state
        if state.result is None or self.plot is None:
            return
        drawn = self._key(low, high)
        if drawn == self._drawn:
            return
        self._drawn = drawn
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
        self._residuals.show_message(state.no_residual())
        group = state.shown_group
        pixel = (high - low) / max(1.0, self._weights.item.vb.width())
        self._levels.setXVals(tick_places(group.levels if group is not None else None, pixel))
        chosen = state.place is not None and state.group is not None
        self._rug.setXVals(state.group.weights.tolist() if chosen and state.group is not None else [])
        from app.plotting.strip import place

        place(self._limits, state.limits())
        zero = state.zero()
        place(self._zero, () if zero is None else (zero,))
        self._weights.item.update()

    def _write_notes(self) -> None:
        notes = self.state.notes()
        self.notes.setText(notes)
        self.notes.setVisible(bool(notes))

    @Slot()
    def _write_legend(self) -> None:
        self.legend.setText(legend_html(self.state, self._theme.colors))
        if self.state.result is not None:
            self.legend.setToolTip(self.state.legend_help())

    # --- acting -------------------------------------------------------------------------------------------------------

    @Slot()
    def _toggled(self) -> None:
        self.state.logarithmic, self.state.by_spread = self.log.isChecked(), self.spread.isChecked()
        self._write_notes()
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
            self._submit_group()
        self._show()

    @Slot()
    def _place_chosen(self) -> None:
        self.state.place = (self.row.value(), self.group.value())
        self._submit_group()

    @Slot(str)
    def _tell(self, line: str) -> None:
        self._session.notify(Notice("error", line))

    @Slot(object)
    def _hovered(self, x: float | None) -> None:
        at = self.plot.cursor() if self.plot is not None else None
        text = self.state.statistics() if x is None else self.state.read_off(x, at is not None and at[0] == 1)
        self.numbers.setText(text)
