"""The way into the window. It is on screen before torch, numba and the plots are loaded; those come in afterwards, in a
thread of their own.

QUANTBENCH_TIMING=1 prints what the start took.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PySide6.QtWidgets import QApplication, QWidget

    from app.main_window import MainWindow
    from app.plotting.making import Making

# The interpreter hands over between threads this often. Beside a job that is all Python (50,000 small tensors) the
# window waits for its turn at every step; with 2 ms its longest stall was three times as long, the job no faster.
SWITCH_SECONDS = 0.0003
# How often the collector may look at everything that is not set aside.
SWEEP_MS = 60_000
# Between two parts of a plot that is built before anyone asks for it.
PLOT_STEP_MS = 30


class Timing:
    """Milliseconds since the start, printed as they come when asked for."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self.wanted = os.environ.get("QUANTBENCH_TIMING", "") not in ("", "0")
        self.marks: dict[str, float] = {}

    def mark(self, what: str) -> None:
        self.marks[what] = 1000 * (time.perf_counter() - self._began)
        if self.wanted:
            sys.stderr.write(f"quantbench: {what} after {self.marks[what]:.0f} ms\n")
            sys.stderr.flush()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the window until it is closed. argv: a checkpoint to open, or nothing. Returns the exit status."""
    timing = Timing()
    args = list(sys.argv[1:] if argv is None else argv)
    app = make_application()
    timing.mark("Qt ready")
    window = make_window(app)
    timing.mark("window built")
    window.show()
    app.processEvents()
    timing.mark("window visible")
    sys.excepthook = _into_notice(window)
    signal.signal(signal.SIGINT, lambda *_: window.close())
    beat = _heartbeat(app)
    finish_loading(window, timing)
    window.quantizer.look_for_kept()
    if args:
        window.commands.open_path(args[0])
    status = app.exec()
    beat.stop()
    leave_if_stuck(window, status)
    sys.excepthook = sys.__excepthook__
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    dispose(window)
    return status


def dispose(window: MainWindow) -> None:
    """Takes a closed window apart while Qt and the interpreter are both whole. Left to the interpreter's end, widgets
    and plots go in any order, and some of those orders end in a crash after all work is done."""
    from PySide6.QtCore import QCoreApplication, QEvent

    window.deleteLater()
    QCoreApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)
    QCoreApplication.processEvents()
    gc.collect()


def leave_if_stuck(window: MainWindow, status: int) -> None:
    """Ends the process here when a job would not stop: a thread inside a library cannot be ended, and the interpreter
    must not tear things down under it."""
    if window.stuck:
        sys.stderr.write(f"quantbench: not finished when the window closed: {', '.join(window.stuck)}\n")
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def make_application() -> QApplication:
    """The application, named, with interpreter settings that keep its window answering."""
    from PySide6.QtCore import Qt
    from PySide6.QtWidgets import QApplication

    from core.collector import in_short_looks

    sys.setswitchinterval(SWITCH_SECONDS)
    # numpy's BLAS would wait for its next call in a loop, on the core that the window needs. torch has its own.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    in_short_looks()
    QApplication.setApplicationName("Quantbench")
    QApplication.setApplicationDisplayName("Quantbench")
    QApplication.setHighDpiScaleFactorRoundingPolicy(Qt.HighDpiScaleFactorRoundingPolicy.PassThrough)
    existing = QApplication.instance()
    if isinstance(existing, QApplication):
        return existing
    return QApplication([sys.argv[0]])


def make_window(app: QApplication) -> MainWindow:
    """The window with the user's own settings, not shown yet."""
    from app.main_window import MainWindow
    from app.theme import Theme

    return MainWindow(Theme(app))


def finish_loading(window: MainWindow, timing: Timing) -> threading.Thread:
    """Loads what the first action would otherwise wait for: libraries in a thread, panels and their plots one by one
    between events."""
    from PySide6.QtCore import QTimer

    from app.frame.toolbar import Offer
    from app.panels import PANELS

    def libraries() -> None:
        import numpy  # noqa: F401
        import pyqtgraph  # noqa: F401
        import torch

        torch.set_num_threads(max(1, (os.cpu_count() or 2) - 1))
        import core.engine.pipeline  # the click on Quantize should not wait for it
        import core.engine.plan
        import core.engine.preflight
        import core.recipes.toml  # noqa: F401
        from core.engine.devices import list_devices

        _load_kernels()
        window.devices = tuple(Offer(d.name, f"{d.name}    {d.title}") for d in list_devices())
        timing.mark("libraries loaded")

    thread = threading.Thread(target=libraries, name="quantbench preload", daemon=True)
    thread.start()
    for i, record in enumerate(PANELS):
        QTimer.singleShot(50 * (i + 1), window, lambda r=record: window.panel(r.id))
    _make_plots(window, thread, timing)
    _sweep_when_quiet(window)
    return thread


def _sweep_when_quiet(window: MainWindow) -> None:
    """Looks at all objects once in a while, when no job runs."""
    from PySide6.QtCore import QTimer

    from core.collector import sweep

    timer = QTimer(window)
    timer.setInterval(SWEEP_MS)

    def look() -> None:
        if not window.jobs.running() and not window.jobs.previews():
            sweep()

    timer.timeout.connect(look)
    timer.start()


def _load_kernels() -> None:
    """numba and the kernels that count, where they were compiled before. They are loaded in long steps that hold the
    interpreter: the first click shall not meet them."""
    from core.formats.fitting.compiled import available, kept

    if not available():
        return
    import numpy as np

    from core.analysis.count_kernel import count_into
    from core.analysis.outlier_kernel import survey_rows  # noqa: F401

    if kept("count_kernel", "count_into"):
        count_into(np.zeros(1, np.float32), np.array([0.0, 1.0]), np.zeros(3, np.int64))


def _make_plots(window: MainWindow, loading: threading.Thread, timing: Timing) -> None:
    """Gets ready what is hidden so far, a part at a time, once the libraries are there: the first checkpoint comes onto
    the screen in one go, and everything that has its style by then is quick."""
    from PySide6.QtCore import QTimer

    from app.panels import PANELS

    timer = QTimer(window)
    timer.setInterval(PLOT_STEP_MS)
    steps: list[Iterator[None]] = []

    def step() -> None:
        panels = [panel for panel in (window.made_panel(record.id) for record in PANELS) if panel is not None]
        if loading.is_alive() or len(panels) < len(PANELS):
            return
        if not steps:
            steps.append(_preparations(panels))
        if next(steps[0], True):
            timer.stop()
            timing.mark("plots ready")
            window.ready = True

    timer.timeout.connect(step)
    timer.start()


def _preparations(panels: Sequence[QWidget]) -> Iterator[None]:
    """Styles the parts of hidden panels, and builds their plots."""
    from PySide6.QtWidgets import QWidget

    for panel in panels:
        for part in (panel, *panel.findChildren(QWidget)):
            part.ensurePolished()
        yield
        making: Making | None = getattr(panel, "making", None)
        while making is not None and making.step():
            yield


def _heartbeat(app: QApplication):
    """A timer that lets the interpreter see Ctrl+C in the terminal."""
    from PySide6.QtCore import QTimer

    timer = QTimer(app)
    timer.start(500)
    timer.timeout.connect(lambda: None)
    return timer


def _into_notice(window: MainWindow):
    """An excepthook: what slips through everywhere else is shown, not lost in a terminal nobody sees."""
    import traceback

    from app.session import Notice
    from core.errors import one_line

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        sys.__excepthook__(kind, error, trace)
        if isinstance(error, Exception):
            details = "".join(traceback.format_exception(kind, error, trace))
            window.session.notify(Notice("error", f"Unexpected: {one_line(error)}", details))

    return hook


if __name__ == "__main__":
    sys.exit(main())
