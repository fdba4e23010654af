"""The window: where panels, toolbar and notice bar stand, what is remembered, how it opens and closes. What actions do
is in commands.py, what is shown in panels/.
"""

from __future__ import annotations

from pathlib import Path

from PySide6.QtCore import QEvent, Qt, Slot
from PySide6.QtGui import QAction, QCloseEvent, QDragEnterEvent, QDropEvent, QKeySequence, QShowEvent
from PySide6.QtWidgets import (
    QMainWindow,
    QProgressBar,
    QSplitter,
    QStackedWidget,
    QVBoxLayout,
    QWidget,
)

from app.actions import ACTIONS, MENUS, make_actions, refresh
from app.calibrator import Calibrator
from app.commands import Commands
from app.compiling import CompilingNotice
from app.dialogs import Dialogs, NativeDialogs
from app.edits import Document
from app.evaluating import Evaluator
from app.frame.closing import Closing
from app.frame.empty import EmptyPage
from app.frame.memory import local_paths, remember, restore
from app.frame.method import MethodPopover
from app.frame.notices import NoticeBar
from app.frame.palette import CommandPalette
from app.frame.places import PanelPlaces
from app.frame.problems import ProblemsPopover
from app.frame.recent import RecentMenu
from app.frame.toolbar import Offer, Toolbar
from app.frame.tour import tour_of
from app.job_service import JobService
from app.jobs import JobId, JobInfo, Outcome, Progress
from app.leftovers import Leftovers
from app.planner import Planner
from app.previews import ErrorPreviews
from app.quantizing import Quantizer
from app.session import Changes, Session
from app.settings import Settings
from app.theme import Theme

START_SIZE = (1280, 800)


class MainWindow(QMainWindow):
    """Everything a test needs to drive it is public: session, jobs, planner, quantizer, dialogs, actions, panel()."""

    def __init__(
        self,
        theme: Theme,
        settings: Settings | None = None,
        dialogs: Dialogs | None = None,
        jobs: JobService | None = None,
    ) -> None:
        super().__init__()
        self.theme = theme
        self.settings = settings if settings is not None else Settings()
        self.dialogs: Dialogs = dialogs if dialogs is not None else NativeDialogs()
        self.session = Session(self)
        self.jobs = jobs if jobs is not None else JobService(self)
        self.leftovers = Leftovers(self.jobs, self)
        self.session.left.connect(self.leftovers.keep)
        self.planner = Planner(self.session, self.jobs, self.settings.get("files/output_folder"))
        self.calibrator = Calibrator(self.session, self.jobs)
        self.quantizer = Quantizer(self.session, self.jobs)
        self.evaluator = Evaluator(self.session, self.jobs)
        self.commands = Commands(self)
        self.actions_by_id = make_actions(self.commands, theme, self)
        self.devices: tuple[Offer, ...] = (Offer("cpu", "CPU"),)
        self.ready = False  # all that is loaded after the window was on screen is there
        self._no_plan = ""  # why there is no plan, as the notice bar says it
        self.stuck: tuple[str, ...] = ()  # jobs that would not stop when the window closed
        theme.set_mode(self.settings.get("theme/mode"))
        theme.set_density(self.settings.get("view/density"))
        theme.set_font_percent(self.settings.get("view/font_percent"))
        self._start_recipe()
        self._build()
        self._connect()
        self.closing = Closing(self)
        restore(self)
        self._retitle()
        self._refresh_toolbar()
        self.refresh_actions()

    # Building

    def _start_recipe(self) -> None:
        """What the last session worked with. A preset that is gone is no reason not to start."""
        from core.errors import WorkbenchError
        from core.recipes import load

        self.session.set_device(self.settings.get("work/device"))
        document = self.session.document
        try:
            recipe = load(self.settings.get("work/recipe"))
        except WorkbenchError:
            recipe = document.recipe
        self.session.begin(Document(recipe, self._known_target(self.settings.get("work/target"))))

    def _known_target(self, name: str) -> str:
        from core.targets import TARGETS

        return name if any(t.name == name for t in TARGETS) else self.session.target

    def _build(self) -> None:
        self.setWindowTitle("Quantbench")
        self.setAcceptDrops(True)
        self.resize(*START_SIZE)
        self.setMinimumSize(960, 560)
        self.recent_menu = RecentMenu(self)
        self.toolbar = Toolbar(
            self.theme, self.session, self.actions_by_id, self.recent_menu, lambda: self.devices, self
        )
        self.progress = QProgressBar(self)
        self.progress.setProperty("kind", "thin")
        self.progress.setTextVisible(False)
        self.progress.setRange(0, 1000)
        self.progress.setFixedHeight(4)
        keep = self.progress.sizePolicy()
        keep.setRetainSizeWhenHidden(True)
        self.progress.setSizePolicy(keep)
        self.progress.hide()
        self.notices = NoticeBar(self.theme, self.actions_by_id, self)
        self.compiling = CompilingNotice(self.notices)
        self.columns = QSplitter(Qt.Orientation.Horizontal, self)
        self.rows = QSplitter(Qt.Orientation.Vertical, self)
        self._places = PanelPlaces(self, self._panel_made)
        self.inspector, self.bottom = self._places.inspector, self._places.bottom
        self.columns.addWidget(self._places.main)
        self.columns.addWidget(self.inspector)
        self.columns.setStretchFactor(0, 3)
        self.columns.setStretchFactor(1, 2)
        self.columns.setChildrenCollapsible(False)
        self.rows.addWidget(self.columns)
        self.rows.addWidget(self.bottom)
        self.rows.setStretchFactor(0, 3)
        self.rows.setStretchFactor(1, 1)
        self.rows.setChildrenCollapsible(False)
        self.columns.setSizes([760, 520])
        self.rows.setSizes([500, 230])
        self.empty = EmptyPage(self.theme, self)
        self.empty.show_recent(self.settings.get("files/recent"))
        self.pages = QStackedWidget(self)
        self.pages.addWidget(self.empty)
        self.pages.addWidget(self.rows)
        self.tour = tour_of(self)
        self.tour.finished.connect(lambda: self.settings.set("view/tour_seen", True))
        center = QWidget(self)
        layout = QVBoxLayout(center)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(0)
        for widget in (self.toolbar, self.progress, self.notices, self.tour):
            layout.addWidget(widget)
        layout.addWidget(self.pages, 1)
        self.setCentralWidget(center)
        self._build_menus()

    def _build_menus(self) -> None:
        for title in MENUS:
            menu = self.menuBar().addMenu(title)
            for record in ACTIONS:
                if record.menu != title:
                    continue
                if record.section:
                    menu.addSeparator()
                menu.addAction(self.actions_by_id[record.id])
                if record.id == "open-folder":
                    menu.addMenu(self.recent_menu)

    def _connect(self) -> None:
        self.session.changed.connect(self._changed)
        self.session.selection_changed.connect(self.refresh_actions)
        self.session.noticed.connect(self.notices.show_notice)
        self.planner.opened.connect(self._opened)
        self.planner.busy_changed.connect(self._refresh_toolbar)
        self.calibrator.busy_changed.connect(self._calibration_changed)
        stopped = self.commands.stopped
        self.quantizer.stopped.connect(stopped.took_stop)
        self.quantizer.failed.connect(stopped.took_rest)
        self.quantizer.found.connect(stopped.took_kept)
        self.quantizer.reopened.connect(stopped.took_reopened)
        self.quantizer.finished.connect(self.commands.took_report)
        self.jobs.finished.connect(self.commands.report_page.took_page)
        self.jobs.progressed.connect(self._progressed)
        self.jobs.queued.connect(self._jobs_changed)
        self.jobs.finished.connect(self._job_finished)
        self.empty.open_asked.connect(self._open_from_page)
        self.empty.demo.clicked.connect(self.actions_by_id["open-demo"].trigger)
        self.toolbar.preset_chosen.connect(self.commands.set_preset)
        self.toolbar.target_chosen.connect(self.commands.set_target)
        self.toolbar.device_chosen.connect(self.commands.set_device)
        tensors = self.commands.tensors
        self.previews = ErrorPreviews(self.session, self.jobs, tensors.visible_names, lambda: tensors.busy)
        tensors.viewport_changed.connect(self.previews.look)
        escape = QAction(self)
        escape.setShortcut(QKeySequence("Esc"))
        escape.triggered.connect(self.notices.dismiss)
        self.notices.addAction(escape)
        self.theme.changed.connect(self._refresh_toolbar)

    # Panels

    def panel(self, id: str) -> QWidget:
        """A panel by its record's id, made now if it was not yet."""
        return self._places.panel(id)

    def made_panel(self, id: str) -> QWidget | None:
        """A panel that is there already."""
        return self._places.made.get(id)

    def made_panels(self) -> tuple[QWidget, ...]:
        return tuple(self._places.made.values())

    def show_panel(self, id: str) -> None:
        """Brings a panel to the front."""
        self._places.show(id)
        if id == "tensors":
            self.commands.tensors.table.setFocus()

    def load_panels(self) -> None:
        """Makes every panel that is not there yet; they follow the session from then on."""
        self._places.load()

    def _panel_made(self, id: str, panel: QWidget) -> None:
        """What a panel asks of the window."""
        if id == "rules":
            panel.files_asked.connect(self._rules_asked)  # type: ignore[attr-defined]
        elif id == "compare":
            panel.path_asked.connect(self.commands.choose_for_compare)  # type: ignore[attr-defined]
            panel.listed_changed.connect(self.refresh_actions)  # type: ignore[attr-defined]
            panel.save_asked.connect(self.actions_by_id["save-comparison"].trigger)  # type: ignore[attr-defined]
        elif id == "calibration":
            panel.files_asked.connect(self._calibration_asked)  # type: ignore[attr-defined]
            panel.gather_asked.connect(self.actions_by_id["gather"].trigger)  # type: ignore[attr-defined]

    def _rules_asked(self, what: str) -> None:
        self.actions_by_id["open-recipe" if what == "open" else "save-recipe"].trigger()

    def _calibration_asked(self, kind: str) -> None:
        self.actions_by_id[f"calibrate-{kind}"].trigger()

    @Slot()
    def _calibration_changed(self) -> None:
        panel = self.made_panel("calibration")
        if panel is not None:
            panel.show_busy(self.calibrator.loading, self.calibrator.gathering is not None)  # type: ignore[attr-defined]
        self.refresh_actions()

    # Following the session

    def _changed(self, changes: Changes, initiator: object) -> None:
        if changes.checkpoint:
            self.tour.look_again()
            self._retitle()
            if self.session.checkpoint is not None:
                self.pages.setCurrentWidget(self.rows)
                self.commands.tensors.table.setFocus()
            else:
                self.empty.show_recent(self.settings.get("files/recent"))
                self.pages.setCurrentWidget(self.empty)
        if changes.recipe or changes.target or changes.device:
            self._remember_work()
        if self._no_plan and self._no_plan != self.session.plan_error:
            self.notices.withdraw(self._no_plan)
        self._no_plan = self.session.plan_error
        if changes.errors and not (changes.plan or changes.history):
            if changes.problems:
                self.toolbar.show_problems()
            return
        self._refresh_toolbar()
        self.refresh_actions()

    def _remember_work(self) -> None:
        from core.recipes import PRESETS

        name = self.session.recipe.name
        if any(p.name == name for p in PRESETS):
            self.settings.set("work/recipe", name)
        self.settings.set("work/target", self.session.target)
        self.settings.set("work/device", self.session.device)

    @Slot()
    def _refresh_toolbar(self) -> None:
        self.toolbar.show_choices()
        self.toolbar.show_size(self.planner.free_bytes, self.planner.busy)
        self.toolbar.show_problems()

    @Slot()
    def refresh_actions(self, *_: object) -> None:
        """Enables and checks actions; undo and redo say what they would do."""
        refresh(self.actions_by_id, self.commands)
        for name, label in (("undo", self.session.undo_label), ("redo", self.session.redo_label)):
            word = name.capitalize()
            self.actions_by_id[name].setText(f"{word}: {label[0].lower()}{label[1:]}" if label else word)

    def _retitle(self) -> None:
        checkpoint = self.session.checkpoint
        self.setWindowTitle(f"{checkpoint.path.name} · Quantbench" if checkpoint is not None else "Quantbench")

    @Slot(str, object)
    def _opened(self, path: str, checkpoint: object) -> None:
        self.settings.add_recent(path)
        self.settings.set("files/open_folder", str(Path(path).parent))

    # Jobs

    def _progressed(self, progress: Progress) -> None:
        if any(info.id == progress.id for info in self.jobs.running()):
            self.progress.setValue(progress.permille)
            self.progress.show()

    def _jobs_changed(self, info: JobInfo) -> None:
        if info.lane == "heavy":
            self.refresh_actions()

    def _job_finished(self, job: JobId, outcome: Outcome) -> None:
        if not self.jobs.running():
            self.progress.hide()
            self.progress.setValue(0)
        if self.jobs.outcome(job) is not None:
            self.refresh_actions()
            self.planner.look_again()  # the output is there now, or its place is taken

    # Small windows

    def open_palette(self) -> CommandPalette:
        """The command palette, over this window."""
        shown = [self.actions_by_id[r.id] for r in ACTIONS if r.id != "palette"]
        palette = CommandPalette(self.theme, shown, self)
        palette.open()
        return palette

    def show_problems(self) -> ProblemsPopover:
        """The list of what preflight found, under its button."""
        popover = ProblemsPopover(self.theme, self.session.problems, self)
        popover.tensors_chosen.connect(lambda names: self.session.select(names, self))
        popover.open_under(self.toolbar.preflight)
        return popover

    def show_method(self) -> MethodPopover:
        """Method and parameters of the recipe's last rule, under their button."""
        popover = MethodPopover(self.session, self)
        popover.calibration_asked.connect(lambda: self.show_panel("calibration"))
        popover.open_under(self.toolbar.method)
        return popover

    @Slot(str)
    def _open_from_page(self, path: str) -> None:
        if path:
            self.commands.open_path(path)
        else:
            self.actions_by_id["open-file"].trigger()

    # Dropping

    def dragEnterEvent(self, event: QDragEnterEvent) -> None:
        if local_paths(event.mimeData()):
            event.acceptProposedAction()

    def dropEvent(self, event: QDropEvent) -> None:
        paths = local_paths(event.mimeData())
        if paths:
            event.acceptProposedAction()
            self.commands.drop(paths)

    # Coming and going

    def showEvent(self, event: QShowEvent) -> None:
        super().showEvent(event)
        if self.tour.at < 0 and not self.settings.get("view/tour_seen"):
            self.tour.begin()
        self._places.fill_soon()

    def closeEvent(self, event: QCloseEvent) -> None:
        if not self.closing.may_close():
            event.ignore()
            return
        remember(self)
        # Gone for the eye at once; a compiler at work may take its seconds.
        self.hide()
        self.closing.leave()
        super().closeEvent(event)

    def changeEvent(self, event: QEvent) -> None:
        super().changeEvent(event)
        if event.type() == QEvent.Type.PaletteChange:
            self.update()
