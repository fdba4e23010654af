"""What the actions do: the flows of opening, assigning, running and closing. Questions go to Dialogs, work goes to the
planner and the quantizer, what changed comes back through the session.
"""

from __future__ import annotations

import os
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PySide6.QtCore import QUrl
from PySide6.QtGui import QDesktopServices

from app.edits import SetPreset, SetRecipe, SetTarget
from app.frame.reach import focus_panel, plot_in_front
from app.quantizing import errors_of
from app.report_page import ReportPage
from app.session import Notice, Session
from app.stopped_runs import StoppedRuns
from core.atomic import write_whole
from core.errors import WorkbenchError, one_line
from core.recipes.model import KEEP, Strategy

if TYPE_CHECKING:
    from app.actions import Action
    from app.main_window import MainWindow
    from app.panels.tensors.view import TensorsPanel
    from app.theme import Density, Mode, Theme
    from core.engine.model import Report


class Commands:
    """One per window."""

    def __init__(self, window: MainWindow) -> None:
        self._window = window
        self.session: Session = window.session
        self.stopped: StoppedRuns = StoppedRuns(window)
        self.report_page: ReportPage = ReportPage(window)
        self._last_out: Path | None = None

    def dispatch(self, action: Action) -> None:
        """Runs an action. Whatever goes wrong ends in the notice bar, with its traceback behind the disclosure."""
        try:
            action.handler(self)
        except WorkbenchError as error:
            self.session.notify(Notice("error", str(error)))
        except Exception as error:
            self.session.notify(Notice("error", f"{action.text}: {one_line(error)}", traceback.format_exc()))
        self._window.refresh_actions()

    # What actions ask

    @property
    def theme(self) -> Theme:
        return self._window.theme

    @property
    def tensors(self) -> TensorsPanel:
        return self._window.panel("tensors")  # type: ignore[return-value]

    @property
    def has_checkpoint(self) -> bool:
        return self.session.checkpoint is not None

    @property
    def has_selection(self) -> bool:
        return bool(self.session.selection)

    @property
    def can_quantize(self) -> bool:
        return self.session.plan is not None and self.session.planned

    @property
    def can_gather(self) -> bool:
        return self._window.calibrator.can_gather

    @property
    def is_running(self) -> bool:
        return bool(self._window.jobs.running())

    @property
    def has_result(self) -> bool:
        return self._last_out is not None

    @property
    def grouped(self) -> bool:
        return self.tensors.bar.group_button.isChecked()

    # File

    def open_file(self) -> None:
        path = self._ask_checkpoint(False)
        if path is not None:
            self.open_path(path)

    def open_folder(self) -> None:
        path = self._ask_checkpoint(True)
        if path is not None:
            self.open_path(path)

    def open_path(self, path: str | Path) -> None:
        """Opens a checkpoint in the background."""
        absolute = Path(os.path.abspath(path))
        self._window.planner.open(absolute)

    def open_demo(self) -> None:
        """The model that comes with the program."""
        from importlib.resources import files

        self.open_path(Path(str(files("resources").joinpath("demo"))))

    def drop(self, paths: list[str]) -> None:
        """Opens what was dropped onto the window: a recipe, or a checkpoint; several shards stand for their folder."""
        first = Path(paths[0])
        if first.suffix.lower() == ".toml":
            self._guard(lambda: self._take_recipe(first))
            return
        together = len(paths) > 1 and len({Path(p).parent for p in paths}) == 1
        self.open_path(first.parent if together or first.name == "config.json" else first)

    def _take_recipe(self, path: Path) -> None:
        from core.recipes import load_file

        self.session.apply(SetRecipe(load_file(path)), self)

    def close_checkpoint(self) -> None:
        self.session.close()

    def open_recipe(self) -> None:
        settings = self._window.settings
        path = self._window.dialogs.open_recipe(self._window, settings.get("files/recipe_folder"))
        if path is None:
            return
        settings.set("files/recipe_folder", str(path.parent))
        self._take_recipe(path)
        self.show_panel("rules")

    def save_recipe(self) -> None:
        from core.recipes.toml import dumps

        settings = self._window.settings
        folder = settings.get("files/recipe_folder") or str(Path.home())
        suggested = Path(folder) / f"{self.session.recipe.name or 'recipe'}.toml"
        path = self._window.dialogs.save_recipe(self._window, suggested)
        if path is None:
            return
        settings.set("files/recipe_folder", str(path.parent))
        write_whole(path, dumps(self.session.recipe))
        self.session.notify(Notice("note", f"Recipe saved as {path}"))

    def quit(self) -> None:
        self._window.close()

    # Edit

    def undo(self) -> None:
        self.session.undo(self)

    def redo(self) -> None:
        self.session.redo(self)

    def focus_filter(self) -> None:
        self.tensors.focus_filter()

    def keep_selection(self) -> None:
        self.tensors.assign(Strategy(KEEP))

    def add_rule(self) -> None:
        self.show_panel("rules")
        self._window.panel("rules").add()  # type: ignore[attr-defined]

    def set_preset(self, name: str) -> None:
        """Another preset or format; assignments by hand stay in front of it."""
        from core.recipes import load

        self._guard(lambda: self.session.apply(SetPreset(load(name)), self))

    def set_target(self, name: str) -> None:
        self._guard(lambda: self.session.apply(SetTarget(name), self))

    def choose_method(self) -> None:
        self._window.show_method()

    def choose_calibration(self, kind: str) -> None:
        """Asks for a text or an importance matrix, and calibrates with it."""
        settings = self._window.settings
        path = self._window.dialogs.open_calibration(self._window, kind, settings.get("files/calibration_folder"))
        if path is not None:
            settings.set("files/calibration_folder", str(path.parent))
        self._window.panel("calibration").take_file(kind, path)  # type: ignore[attr-defined]
        self.show_panel("calibration")

    def gather(self) -> None:
        self._window.calibrator.gather()

    def set_device(self, name: str) -> None:
        self.session.set_device(name, self)

    def _guard(self, change: Any) -> None:
        try:
            change()
        except WorkbenchError as error:
            self.session.notify(Notice("error", str(error)))

    # View

    def open_palette(self) -> None:
        self._window.open_palette()

    def toggle_grouped(self) -> None:
        self.tensors.bar.group_button.toggle()

    def set_theme(self, mode: Mode) -> None:
        self.theme.set_mode(mode)
        self._window.settings.set("theme/mode", mode)

    def set_density(self, density: Density) -> None:
        self.theme.set_density(density)
        self._window.settings.set("view/density", density)

    def step_font(self, by: int) -> None:
        """Larger or smaller text by so many percent; 0: the system's size again."""
        self.theme.set_font_percent(self.theme.font_percent + by if by else 100)
        self._window.settings.set("view/font_percent", self.theme.font_percent)

    def export_plot(self, values: bool) -> None:
        """The plot in front, as a picture or as its values."""
        exports = plot_in_front(self._window)
        if exports is None:
            self.session.notify(Notice("note", "No plot is on screen: select a tensor, or go to the error map"))
        else:
            exports.export_values() if values else exports.export_picture()

    def go_to(self, id: str) -> None:
        """Brings a panel to the front and gives it the keyboard."""
        self.show_panel(id)
        focus_panel(self._window.panel(id))

    def show_panel(self, id: str) -> None:
        self._window.show_panel(id)

    # Run

    def quantize(self) -> None:
        """Asks where to, looks ahead once more with that place, and starts. What stops it is said in the bar."""
        plan = self.session.plan
        if plan is None or not self.session.planned or self.session.checkpoint is None:
            self.session.notify(Notice("note", self.session.plan_error or "The plan is still being made"))
            return
        planner = self._window.planner
        certain = {*plan.problems, *self.session.found}
        stopping = [p for p in errors_of(self.session.problems) if p in certain]
        if stopping:
            self.session.notify(Notice("error", str(stopping[0]), "\n".join(map(str, stopping)), ("preflight",)))
            return
        target = plan.target
        out = self._window.dialogs.save_output(self._window, planner.suggested_output(), target.folder, target.suffix)
        if out is None:
            return
        self.quantize_to(out)

    def quantize_to(self, out: Path) -> None:
        """Starts a run to a path that the user chose (and agreed to replace, if it is a file)."""
        from core.engine.pipeline import can_resume

        plan = self.session.plan
        if plan is None:
            return
        out = Path(os.path.abspath(out))
        self._window.settings.set("files/output_folder", str(out.parent))
        self._window.planner.output_folder = str(out.parent)
        # Replacing was agreed to in the dialog; a folder is never replaced without a word.
        force = not plan.folder and out.is_file()
        self.stopped.no_more(out)
        job = self._window.quantizer.start(out, resume=can_resume(out), force=force)
        if job is not None:
            self.show_panel("jobs")

    def evaluate_recipe(self) -> None:
        """Judges what the recipe would write."""
        if self._window.evaluator.recipe(self._windows()) is None:
            self.session.notify(Notice("note", self.session.plan_error or "The plan is still being made"))
        else:
            self.show_panel("jobs")

    def evaluate_result(self) -> None:
        """Judges the written file against the open checkpoint."""
        if self._last_out is not None and self._window.evaluator.file(self._last_out, self._windows()) is not None:
            self.show_panel("jobs")

    def choose_evaluation_text(self) -> None:
        settings = self._window.settings
        before = settings.get("files/evaluation_text")
        folder = str(Path(before).parent) if before else settings.get("files/calibration_folder")
        path = self._window.dialogs.open_calibration(self._window, "text", folder)
        settings.set("files/evaluation_text", "" if path is None else str(path))
        name = "Python's standard library" if path is None else path.name
        self.session.notify(Notice("note", f"Evaluations predict {name} from now on"))

    def _windows(self) -> Any:
        """How evaluations read their text: as many windows as one waits for."""
        from core.evaluation.text import DEFAULT_WINDOWS, WindowSettings

        text = self._window.settings.get("files/evaluation_text")
        return WindowSettings(Path(text) if text else None, windows=DEFAULT_WINDOWS)

    def show_problems(self) -> None:
        self._window.show_problems()

    def toggle_pause(self) -> None:
        jobs = self._window.jobs
        for info in jobs.running()[:1]:
            jobs.resume(info.id) if jobs.is_paused(info.id) else jobs.pause(info.id)

    def cancel_job(self) -> None:
        for info in self._window.jobs.running()[:1]:
            self._window.quantizer.stop(info.id, discard=False)

    def took_report(self, report: Report) -> None:
        self._last_out = report.out

    # Judging

    @property
    def has_comparison(self) -> bool:
        panel = self._window.made_panel("compare")
        return panel is not None and len(panel.state.order) > 0  # type: ignore[attr-defined]

    def compare_with(self) -> None:
        """Asks for another checkpoint and compares the open one with it."""
        path = self._ask_checkpoint(False)
        if path is not None:
            self._compare_to(path)

    def compare_result(self) -> None:
        if self._last_out is not None:
            self._compare_to(self._last_out)

    def choose_for_compare(self, side: str, folder: bool) -> None:
        path = self._ask_checkpoint(folder)
        if path is not None:
            self._window.panel("compare").choose(side, str(path))  # type: ignore[attr-defined]

    def save_comparison(self) -> None:
        panel: Any = self._window.panel("compare")
        suggested = Path(self._window.settings.get("files/output_folder") or Path.home()) / "comparison.csv"
        kinds = "Comma-separated values (*.csv)"
        path = self._window.dialogs.save_file(self._window, "Export comparison", suggested, kinds)
        if path is not None:
            panel.export(path)

    def _compare_to(self, path: Path) -> None:
        self.show_panel("compare")
        self._window.panel("compare").compare_with(str(path))  # type: ignore[attr-defined]

    def _ask_checkpoint(self, folder: bool) -> Path | None:
        """A file or a folder that the user chose; the config.json of a folder stands for the folder."""
        dialogs, start = self._window.dialogs, self._window.settings.get("files/open_folder")
        path = (dialogs.open_folder if folder else dialogs.open_file)(self._window, start)
        return path.parent if path is not None and path.name == "config.json" else path

    def open_result(self) -> None:
        if self._last_out is not None:
            self._window.notices.dismiss()
            self.open_path(self._last_out)

    def reveal_result(self) -> None:
        if self._last_out is not None:
            self.reveal(self._last_out)

    def reveal(self, path: Path) -> None:
        """Opens the folder that holds a file."""
        folder = path if path.is_dir() else path.parent
        QDesktopServices.openUrl(QUrl.fromLocalFile(str(folder)))

    def show_tour(self) -> None:
        self._window.tour.begin()

    def about(self) -> None:
        from core import __version__

        self.session.notify(
            Notice("note", f"Quantbench {__version__}: quantize a model, and see in every tensor what it costs")
        )
