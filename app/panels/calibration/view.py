"""The calibration panel: which text goes through the model, what is known of it, and the loss of a calibrated run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from PySide6.QtCore import QSignalBlocker, Qt, Signal, Slot
from PySide6.QtWidgets import QComboBox, QGridLayout, QHBoxLayout, QLabel, QPushButton, QSpinBox, QVBoxLayout, QWidget

from app.calibration import CalibrationChoice, CalibrationData
from app.edits import SetCalibration
from app.glossary import explain
from app.job_service import JobService
from app.jobs import JobId, JobInfo
from app.labels import ElidedLabel, embolden
from app.panels.calibration.chart import LossChart
from app.panels.calibration.state import EMPTY, LossState, status
from app.session import Changes, Notice, Session
from app.theme import current
from core.engine.model import TensorReport

FORM_WIDTH = 448
NONE, LIBRARY, TEXT, IMATRIX = "", "library", "text", "imatrix"
SOURCES = (
    (NONE, "None", "Every column of a weight counts the same"),
    (LIBRARY, "Python's standard library", "The sources of the interpreter: text that everybody has"),
    (TEXT, "Text file …", "A text of the kind that the model is used for, in UTF-8"),
    (IMATRIX, "Importance matrix …", "A file that llama-imatrix or Quantbench wrote, .gguf or .dat"),
)


class CalibrationPanel(QWidget):
    """files_asked("text" | "imatrix"): the window has the dialogs and answers with `take_file`. gather_asked: the
    window's calibrator does it; `show_busy` tells how far it is."""

    files_asked = Signal(str)
    gather_asked = Signal()

    def __init__(self, session: Session, jobs: JobService) -> None:
        super().__init__()
        self._session = session
        self._loading = self._gathering = False
        self._run: JobId | None = None
        self.losses = LossState()
        self.source = QComboBox(self)
        self.source.setAccessibleName("Calibration")
        self.source.setToolTip(explain("calibration"))
        for place, (value, text, tip) in enumerate(SOURCES):
            self.source.addItem(text, value)
            self.source.setItemData(place, tip, Qt.ItemDataRole.ToolTipRole)
        self.name = ElidedLabel("muted", Qt.TextElideMode.ElideMiddle, self)
        self.samples = _number(self, "Samples", 1, 1_000_000, "How many pieces of the text go through the model")
        self.length = _number(self, "Tokens", 2, 1_000_000, "How long each sample is, in the model's tokens")
        self.seed = _number(self, "Seed", 0, 2**31 - 1, "Another seed chooses other pieces of the text")
        self.gather = QPushButton("Gather now", self)
        self.gather.setProperty("kind", "outline")
        self.gather.setToolTip("Sends the samples through the model, so that previews know which columns matter")
        self.gather.clicked.connect(self.gather_asked)
        self.status = QLabel(self)
        self.status.setWordWrap(True)
        self.status.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.status.setAlignment(Qt.AlignmentFlag.AlignTop)
        self.title = ElidedLabel("", Qt.TextElideMode.ElideMiddle, self)
        embolden(self.title)
        self.chart = LossChart(current(), self.losses, self)
        self.chart.exports.failed.connect(self._tell)
        self._build()
        self.source.activated.connect(self._chosen)
        for field in (self.samples, self.length, self.seed):
            field.editingFinished.connect(self._retyped)
        session.changed.connect(self._changed)
        jobs.started.connect(self._started)
        jobs.partial.connect(self._partial)
        self._jobs = jobs
        self._show()

    def _build(self) -> None:
        form = self._form = QWidget(self)
        grid = QGridLayout(form)
        grid.setContentsMargins(12, 8, 8, 8)
        grid.setHorizontalSpacing(8)
        grid.setVerticalSpacing(8)
        grid.addWidget(_label("Calibrate with", self.source, form), 0, 0)
        self.source.setMinimumWidth(208)
        grid.addWidget(self.source, 0, 1)
        grid.addWidget(self.name, 0, 2)
        numbers = QHBoxLayout()
        numbers.setSpacing(8)
        for field in (self.samples, self.length, self.seed):
            if field is not self.samples:
                numbers.addSpacing(8)
                numbers.addWidget(_label(field.accessibleName(), field, form))
            numbers.addWidget(field)
        numbers.addStretch(1)
        grid.addWidget(_label("Samples", self.samples, form), 1, 0)
        grid.addLayout(numbers, 1, 1, 1, 2)
        below = QHBoxLayout()
        below.setSpacing(8)
        below.addWidget(self.gather, 0, Qt.AlignmentFlag.AlignTop)
        below.addWidget(self.status, 1)
        self.status.setContentsMargins(0, 5, 0, 0)  # in line with the button's word
        grid.addLayout(below, 2, 0, 1, 3)
        grid.setColumnStretch(2, 1)
        grid.setRowStretch(2, 1)
        right = QVBoxLayout()
        right.setContentsMargins(8, 8, 12, 8)
        right.setSpacing(4)
        right.addWidget(self.title)
        right.addWidget(self.chart, 1)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(0)
        layout.addWidget(form)
        layout.addLayout(right, 1)
        self._fit()
        current().resized.connect(self._fit)

    @Slot()
    def _fit(self) -> None:
        """For text of the present size."""
        self._form.setFixedWidth(current().px(FORM_WIDTH))
        for field in (self.samples, self.length, self.seed):
            field.setFixedWidth(current().px(72))

    # Called by the window

    def show_busy(self, loading: bool, gathering: bool) -> None:
        self._loading, self._gathering = loading, gathering
        self._show()

    def take_file(self, kind: str, path: Path | None) -> None:
        """The file that was chosen; None: the user thought better of it."""
        if path is None:
            self._show()
        elif kind == IMATRIX:
            self._apply(replace(self._session.calibration, source="imatrix", path=path))
        else:
            self._apply(replace(self._typed(), source="text", path=path))

    # By the user

    @Slot(int)
    def _chosen(self, place: int) -> None:
        value = self.source.itemData(place)
        if value in (TEXT, IMATRIX):
            self.files_asked.emit(value)
        elif value == LIBRARY:
            self._apply(replace(self._typed(), source="text", path=None))
        else:
            self._apply(replace(self._typed(), source="", path=None))

    @Slot()
    def _retyped(self) -> None:
        if self._session.calibration.source == "text":
            self._apply(self._typed())

    def _typed(self) -> CalibrationChoice:
        return replace(
            self._session.calibration,
            samples=self.samples.value(),
            length=self.length.value(),
            seed=self.seed.value(),
        )

    def _apply(self, choice: CalibrationChoice) -> None:
        self._session.apply(SetCalibration(choice), self)
        self._show()

    @Slot(str)
    def _tell(self, line: str) -> None:
        self._session.notify(Notice("error", line))

    # By the session and the jobs

    def _changed(self, changes: Changes, initiator: object) -> None:
        if changes.checkpoint:
            self._run = None
            self._forget()
        if changes.calibration or changes.checkpoint or changes.recipe:
            self._show()

    def _started(self, job: JobId) -> None:
        if any(info.id == job and _writes(info) for info in self._jobs.running()):
            self._run = job
            self._forget()

    def _partial(self, job: JobId, value: object) -> None:
        values = value if isinstance(value, tuple) else (value,)
        if any(isinstance(v, CalibrationData) for v in values):
            self._show()
        if job == self._run:
            added = [self.losses.add(v) for v in values if isinstance(v, TensorReport)]
            if any(added):
                self.title.setText(self.losses.title)
                self.chart.update()

    def _forget(self) -> None:
        self.losses.clear()
        self.title.setText("")
        self.chart.update()

    def _show(self) -> None:
        session = self._session
        choice = session.calibration
        value = choice.source if choice.source != "text" or choice.path is not None else LIBRARY
        with QSignalBlocker(self.source):
            self.source.setCurrentIndex(self.source.findData(value))
        self.name.setText(choice.path.name if choice.path is not None else "")
        self.name.setToolTip(str(choice.path or ""))
        for field, number in ((self.samples, choice.samples), (self.length, choice.length), (self.seed, choice.seed)):
            with QSignalBlocker(field):
                field.setValue(number)
            field.setEnabled(choice.source != "imatrix")
        data = session.calibration_data
        there = session.checkpoint is not None
        self.setEnabled(there)
        ready = data is not None and data.samples is not None and data.gathered is None
        self.gather.setVisible(choice.source == "text")
        self.gather.setEnabled(ready and not self._gathering)
        text, role = status(session, self._loading, self._gathering) if there else (EMPTY, "muted")
        self.status.setText(text)
        self.status.setProperty("kind", role)
        self.status.style().unpolish(self.status)
        self.status.style().polish(self.status)


def _writes(info: JobInfo) -> bool:
    return info.out is not None


def _label(text: str, field: QWidget, parent: QWidget) -> QLabel:
    label = QLabel(text, parent)
    label.setProperty("kind", "muted")
    label.setBuddy(field)
    label.setToolTip(field.toolTip())
    return label


def _number(parent: QWidget, name: str, low: int, high: int, help: str) -> QSpinBox:
    field = QSpinBox(parent)
    field.setRange(low, high)
    field.setGroupSeparatorShown(True)
    field.setAlignment(Qt.AlignmentFlag.AlignRight)
    field.setAccessibleName(name)
    field.setToolTip(help)
    field.setKeyboardTracking(False)
    return field
