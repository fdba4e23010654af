"""What every plot offers behind its right button: copy and export, as a picture (PNG, SVG) or as values (CSV). Files
appear under their name only when complete; what goes wrong is said where the window says such things.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from PySide6.QtCore import QBuffer, QObject, QPoint, QRect, Signal, Slot
from PySide6.QtGui import QGuiApplication, QImage, QPainter
from PySide6.QtWidgets import QFileDialog, QMenu, QWidget

from app.theme import current
from core.atomic import write_whole
from core.errors import OutputError

PICTURES = "PNG picture (*.png);;SVG drawing (*.svg)"
VALUES = "Comma-separated values (*.csv)"
# Pictures have so many pixels for one of the screen.
SCALE = 2.0


class Exporter(QObject):
    """A child of the widget that is a plot.

    paint(painter)   draws all of it, ground included, in the widget's own coordinates
    values()         CSV
    name()           of files, without suffix
    ask_path(name, kinds)   asks for a file; a test puts its own there
    failed(line)     a file could not be written; whoever shows the plot says so in the notice bar
    """

    failed = Signal(str)

    def __init__(
        self,
        widget: QWidget,
        paint: Callable[[QPainter], None],
        values: Callable[[], str],
        name: Callable[[], str],
    ) -> None:
        super().__init__(widget)
        self._widget, self._paint, self._values, self._name = widget, paint, values, name
        self.ask_path: Callable[[str, str], str] = self._file_dialog

    def add_to(self, menu: QMenu) -> None:
        """The four actions, with a line between copying and exporting."""
        icon = current().icon
        menu.addAction(icon("copy"), "Copy picture", self.copy_picture)
        menu.addAction(icon("table"), "Copy values", self.copy_values)
        menu.addSeparator()
        menu.addAction(icon("image"), "Export picture…", self.export_picture)
        menu.addAction(icon("file-arrow-down"), "Export values…", self.export_values)

    def picture(self, scale: float = SCALE) -> QImage:
        """What is seen."""
        image = QImage(self._widget.size() * scale, QImage.Format.Format_ARGB32_Premultiplied)
        image.fill(current().colors.base)
        painter = QPainter(image)
        painter.setRenderHints(QPainter.RenderHint.TextAntialiasing | QPainter.RenderHint.Antialiasing)
        painter.scale(scale, scale)
        painter.setFont(self._widget.font())
        try:
            self._paint(painter)
        finally:
            painter.end()
        return image

    @property
    def file_name(self) -> str:
        """The name, without what file systems take for something else: tensors of some checkpoints are called a/b."""
        return "".join("_" if c in '/\\:*?"<>|' or ord(c) < 32 else c for c in self._name())

    @Slot()
    def copy_picture(self) -> None:
        QGuiApplication.clipboard().setImage(self.picture())

    @Slot()
    def copy_values(self) -> None:
        QGuiApplication.clipboard().setText(self._values())

    @Slot()
    def export_picture(self) -> None:
        """Asks for a path; the suffix decides between PNG and SVG."""
        chosen = self.ask_path(f"{self.file_name}.png", PICTURES)
        if not chosen:
            return
        path = Path(chosen if chosen.lower().endswith((".png", ".svg")) else f"{chosen}.png")
        draw = self._svg if path.suffix.lower() == ".svg" else self._png
        self._try(lambda: write_whole(path, draw()))

    @Slot()
    def export_values(self) -> None:
        chosen = self.ask_path(f"{self.file_name}.csv", VALUES)
        if chosen:
            path = Path(chosen if chosen.lower().endswith(".csv") else f"{chosen}.csv")
            self._try(lambda: write_whole(path, self._values()))

    def _png(self) -> bytes:
        buffer = QBuffer()
        buffer.open(QBuffer.OpenModeFlag.WriteOnly)
        self.picture().save(buffer, "PNG")  # type: ignore[call-overload]  # the stubs want bytes
        return bytes(buffer.data().data())

    def _svg(self) -> bytes:
        from PySide6.QtSvg import QSvgGenerator

        buffer, area = QBuffer(), QRect(QPoint(0, 0), self._widget.size())
        generator = QSvgGenerator()
        generator.setOutputDevice(buffer)
        generator.setSize(area.size())
        generator.setViewBox(area)
        generator.setTitle(self._name())
        painter = QPainter(generator)
        painter.setFont(self._widget.font())
        painter.fillRect(area, current().colors.base)
        try:
            self._paint(painter)
        finally:
            painter.end()
        return bytes(buffer.data().data())

    def _try(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OutputError as error:
            self.failed.emit(str(error))

    def _file_dialog(self, name: str, kinds: str) -> str:
        return QFileDialog.getSaveFileName(self._widget, "Export", name, kinds)[0]
