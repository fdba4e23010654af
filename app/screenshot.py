"""Pictures of the real window, for the documentation and for looking at: opens a checkpoint, selects, quantizes into a
temporary folder, and saves what is on screen after each step. Needs no display (QT_QPA_PLATFORM=offscreen).

    python -m app.screenshot --out DIR [--theme light|dark] [--size 1280x800] [--no-run] [CHECKPOINT]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PySide6.QtGui import QImage

TIMEOUT_SECONDS = 600.0


def main(argv: Sequence[str] | None = None) -> int:
    """Saves the pictures and prints their paths. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m app.screenshot", description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", nargs="?", default=None, help="file or folder to open; none: the empty window")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures")
    parser.add_argument("--theme", choices=("light", "dark"), default="light")
    parser.add_argument("--size", default="1280x800", help="width×height of the window in pixels")
    parser.add_argument("--select", default="", help="text of the filter that picks the tensor to look at")
    parser.add_argument("--no-run", action="store_true", help="do not quantize")
    args = parser.parse_args(argv)
    width, _, height = args.size.partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        parser.error(f"--size {args.size!r} is not like 1280x800")
    if not os.environ.get("DISPLAY") and not os.environ.get("WAYLAND_DISPLAY") and sys.platform.startswith("linux"):
        os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    args.out.mkdir(parents=True, exist_ok=True)
    from app.main import leave_if_stuck

    session = Shots(args.out, args.theme, (int(width), int(height)))
    status = session.take(args.checkpoint, args.select, args.no_run)
    leave_if_stuck(session.window, status)
    return status


class Shots:
    """One window and its pictures; app/pictures takes those of single panels with it."""

    def __init__(self, out: Path, theme: str, size: tuple[int, int]) -> None:
        from PySide6.QtCore import QSettings

        from app.main import make_application
        from app.main_window import MainWindow
        from app.settings import Settings
        from app.theme import Theme

        self.out = out
        self.suffix = f"{theme}-{size[0]}x{size[1]}"
        self.app = make_application()
        self.scratch = tempfile.TemporaryDirectory()
        store = QSettings(str(Path(self.scratch.name) / "settings.ini"), QSettings.Format.IniFormat)
        settings = Settings(store)
        settings.set("theme/mode", theme)
        settings.set("view/tour_seen", True)
        settings.set("files/output_folder", self.scratch.name)
        self.window = MainWindow(Theme(self.app), settings)
        self.window.resize(*size)
        self.window.show()
        self.window.load_panels()

    def take(self, checkpoint: str | None, select: str, no_run: bool) -> int:
        window = self.window
        try:
            if checkpoint is None:
                self.save("empty")
                return 0
            window.commands.open_path(checkpoint)
            if not self.wait(self._settled):
                sys.stderr.write("screenshot: the checkpoint was not planned in time\n")
                return 1
            window.commands.tensors.bar.edit.setText(select)
            self.wait(self._settled)
            self._pick_tensor()
            self.wait(lambda: self._settled() and not self._previews())
            self.save("open")
            if no_run:
                return 0
            out = Path(self.scratch.name) / ("out" + (window.session.plan.target.suffix if window.session.plan else ""))
            window.commands.quantize_to(out)
            done = self.wait(lambda: not window.jobs.running() and window.session.report is not None)
            self.wait(self._settled)
            self.save("quantized")
            if not done:
                sys.stderr.write("screenshot: the run did not finish\n")
            return 0 if done else 1
        finally:
            self.close()

    def close(self) -> None:
        """Closes the window and takes it apart."""
        from app.main import dispose

        self.window.close()
        self.wait(lambda: not self.window.isVisible(), 10.0)
        self.scratch.cleanup()
        dispose(self.window)

    def open(self, path: Path) -> bool:
        """Opens a checkpoint, if it is not open already, and waits for its plan."""
        session = self.window.session
        if session.checkpoint is None or session.checkpoint.path != path:
            self.window.commands.open_path(path)
            self.wait(lambda: session.checkpoint is not None and session.checkpoint.path == path)
        return self.wait(self._settled)

    def select(self, source: str) -> bool:
        """Selects the output tensor that is made from this tensor of the checkpoint. Whether there is one."""
        outline = self.window.session.outline
        found = [t.name for t in outline.tensors if source in t.source.names()] if outline is not None else []
        self.window.session.select(tuple(found[:1]))
        return bool(found)

    def show_panel(self, id: str) -> Any:
        """Brings a panel to the front."""
        self.window.show_panel(id)
        self.pause(0.1)
        return self.window.panel(id)

    def save(self, name: str) -> None:
        self._write(f"window-{name}-{self.suffix}.png")

    def image(self) -> QImage:
        """The window as it is, and what is open over it."""
        from PySide6.QtCore import Qt
        from PySide6.QtGui import QPainter

        seen = self.window.grab().toImage()
        painter = QPainter(seen)
        for popup in self.app.topLevelWidgets():
            if popup.isVisible() and popup.windowType() == Qt.WindowType.Popup:
                painter.drawPixmap(self.window.mapFromGlobal(popup.pos()), popup.grab())
        painter.end()
        return seen

    def _write(self, file: str) -> None:
        self.pause(0.3)
        path = self.out / file
        if not self.image().save(str(path)):
            raise SystemExit(f"screenshot: {path} cannot be written")
        sys.stdout.write(f"{path}\n")

    def wait(self, done: Callable[[], bool], seconds: float = TIMEOUT_SECONDS) -> bool:
        """Runs the event loop until something holds. Whether it did."""
        deadline = time.monotonic() + seconds
        while not done():
            if time.monotonic() > deadline:
                return False
            self.pause(0.02)
        return True

    def pause(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.app.processEvents()
            time.sleep(0.005)

    def _settled(self) -> bool:
        window = self.window
        session = window.session
        tensors = window.commands.tensors
        ready = session.planned or bool(session.plan_error)
        return ready and not window.planner.busy and not tensors.busy and session.checkpoint is not None

    def _previews(self) -> bool:
        return self.window.previews.busy

    def _pick_tensor(self) -> None:
        """The quantized tensor with the most weights that is on screen."""
        session = self.window.session
        shown = [t for t in map(session.tensor, self.window.commands.tensors.visible_names()) if t is not None]
        quantized = [t for t in shown if t.quantized]
        if quantized:
            best = max(quantized, key=lambda t: t.tensor.numel)
            session.select((best.tensor.name,))


if __name__ == "__main__":
    sys.exit(main())
