"""Fixtures of the window's tests: settings of their own, scripted dialogs, and a check that nothing is left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyqtgraph  # noqa: F401  # as in the program, before jobs: two threads that miss colorama at once end in a KeyError
import pytest
from PySide6.QtCore import QSettings, Qt
from PySide6.QtGui import QGuiApplication
from PySide6.QtWidgets import QApplication, QDialog, QWidget

from app.dialogs import CloseAnswer
from app.settings import Settings
from core.formats.fitting.compiled import watch
from tests.app.gates import Gate


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The offscreen platform grumbles about every popup, and means no harm."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.qt_log_ignore("This plugin does not support", extend=True))


# Every job stops this soon after it was cancelled; a compiler under way cannot be stopped, and may take longer.
STOP_SECONDS, COMPILE_SECONDS = 10.0, 120.0
_compiled: list[str] = []  # kernels that are being compiled
watch(lambda name, begins: _compiled.append(name) if begins else _compiled.remove(name))


def _end(thread: threading.Thread) -> None:
    """Waits for a thread whose job was cancelled."""
    began = last = time.monotonic()
    while thread.is_alive() and time.monotonic() - last < STOP_SECONDS and time.monotonic() - began < COMPILE_SECONDS:
        thread.join(0.05)
        if _compiled:
            last = time.monotonic()


def _ours() -> set[threading.Thread]:
    return {t for t in threading.enumerate() if t.name.startswith("quantbench")}


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test that leaves a job's thread or a window behind."""
    before = _ours()
    yield
    app = QApplication.instance()
    if isinstance(app, QApplication):
        for _ in range(3):
            app.processEvents()
            app.sendPostedEvents(None, 52)  # DeferredDelete
    for thread in _ours() - before:
        _end(thread)
    left = [t.name for t in _ours() - before if t.is_alive()]
    assert not left, f"threads left: {left}"
    if isinstance(app, QApplication):
        windows = [w for w in app.topLevelWidgets() if w.isVisible()]
        assert not windows, f"windows left: {windows}"
        assert QGuiApplication.mouseButtons() == Qt.MouseButton.NoButton, "a button of the mouse is still held down"
        assert app.activePopupWidget() is None, "a popup is still open"


@pytest.fixture(autouse=True)
def no_modal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A modal dialog would wait forever: it fails the test instead."""

    def refuse(self: QDialog, *_: object) -> int:
        raise AssertionError(f"a modal dialog: {type(self).__name__} {self.windowTitle()!r}")

    monkeypatch.setattr(QDialog, "exec", refuse)


@pytest.fixture(autouse=True)
def runs_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where stopped runs are written down: a folder of the test's own, which is not there yet."""
    folder = tmp_path_factory.mktemp("kept") / "runs"
    monkeypatch.setenv("QUANTBENCH_RUNS", str(folder))
    return folder


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings in a file of the test's own, of someone who has seen the first steps."""
    made = Settings(QSettings(str(tmp_path / "settings.ini"), QSettings.Format.IniFormat))
    made.set("view/tour_seen", True)
    return made


@dataclass
class ScriptedDialogs:
    """Answers in advance; a question without one fails the test."""

    file: Path | None = None
    folder: Path | None = None
    output: Path | None = None
    recipe: Path | None = None
    saved_recipe: Path | None = None
    calibration: Path | None = None
    saved_file: Path | None = None
    close: CloseAnswer = "stay"
    asked: list[str] = field(default_factory=list)
    close_lists: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())

    def open_file(self, parent: QWidget, folder: str) -> Path | None:
        self.asked.append("open_file")
        return self.file

    def open_folder(self, parent: QWidget, folder: str) -> Path | None:
        self.asked.append("open_folder")
        return self.folder

    def save_output(self, parent: QWidget, suggested: Path, folder: bool, suffix: str) -> Path | None:
        self.asked.append("save_output")
        return self.output

    def open_recipe(self, parent: QWidget, folder: str) -> Path | None:
        self.asked.append("open_recipe")
        return self.recipe

    def save_recipe(self, parent: QWidget, suggested: Path) -> Path | None:
        self.asked.append("save_recipe")
        return self.saved_recipe

    def open_calibration(self, parent: QWidget, kind: str, folder: str) -> Path | None:
        self.asked.append(f"open_calibration {kind}")
        return self.calibration

    def save_file(self, parent: QWidget, title: str, suggested: Path, kinds: str) -> Path | None:
        self.asked.append("save_file")
        return self.saved_file

    def ask_close(self, parent: QWidget, runs: tuple[str, ...], others: tuple[str, ...]) -> CloseAnswer:
        self.asked.append("ask_close")
        self.close_lists = (runs, others)
        return self.close


@pytest.fixture
def dialogs() -> ScriptedDialogs:
    return ScriptedDialogs()


@pytest.fixture
def window(qtbot, settings: Settings, dialogs: ScriptedDialogs) -> Iterator[object]:
    """The real window, shown, with every panel made; closed again at the end."""
    from app.main_window import MainWindow
    from app.theme import Theme

    app = QApplication.instance()
    assert isinstance(app, QApplication)
    made = MainWindow(Theme(app), settings, dialogs)
    qtbot.addWidget(made)
    made.show()
    made.load_panels()
    yield made
    dialogs.close = "discard"
    made.close()
    qtbot.waitUntil(lambda: not made.isVisible(), timeout=10_000)


@pytest.fixture
def settled(window, qtbot) -> Callable[[], None]:
    """Waits until the window shows the plan of what the session says."""

    def ready() -> bool:
        session = window.session
        planned = session.planned or bool(session.plan_error)
        return planned and not window.planner.busy and not window.commands.tensors.busy

    return lambda: qtbot.waitUntil(ready, timeout=30_000)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """Runs stop at their first finished tensor until it is opened."""
    made = Gate(monkeypatch)
    yield made
    made.open.set()


@pytest.fixture
def opened(window, demo: Path, settled) -> object:
    """The window with the demo checkpoint open and planned."""
    window.commands.open_path(demo)
    settled()
    return window
