"""Looking through tensors faster than they are counted: what is painted is the selected tensor's, or nothing."""

from __future__ import annotations

import pytest
from PySide6.QtCore import QEvent, QObject
from PySide6.QtWidgets import QApplication


class Paints(QObject):
    """Whose picture was on the plot, and which tensor was selected, at every paint."""

    def __init__(self, window, panel) -> None:
        super().__init__(window)
        self._window, self._panel = window, panel
        self.seen: list[tuple[str, str]] = []
        panel.plot.viewport().installEventFilter(self)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        if event.type() == QEvent.Type.Paint:
            self.seen.append((self.picture, self.selected))
        return False

    @property
    def picture(self) -> str:
        """The name that was written on the plot when its curves were set."""
        return self._panel.plot.name.rpartition("-")[0]

    @property
    def selected(self) -> str:
        return next(iter(self._window.session.selection), "")


@pytest.mark.parametrize("name", ["histogram", "outliers"])
def test_twenty_clicks_never_show_another_tensors_picture(opened, qtbot, name: str) -> None:
    # Kept tensors only: nothing here is about formats, and no kernel is compiled.
    opened.toolbar.preset.chosen.emit("bf16")
    opened.show_panel(name)
    panel, table, session = opened.panel(name), opened.commands.tensors.table, opened.session
    qtbot.waitUntil(lambda: session.planned and not opened.planner.busy, timeout=30_000)
    matrices = [t.tensor.name for t in session.plan.tensors if len(t.tensor.shape) == 2]
    lines = {n: table.tensors.lines_of([n])[0] for n in matrices}

    def ready(wanted: str) -> bool:
        result = panel.state.result
        return panel.plot is not None and panel.plot.isVisible() and result is not None and result.name == wanted

    def click(wanted: str) -> None:
        table.setCurrentIndex(table.tensors.index(lines[wanted], 0))
        # The session is told 40 ms later, as one does who moves with the arrow keys; here it is what counts.
        opened.commands.tensors._settle_selection()
        assert session.selection == (wanted,)
        assert panel.plot is None or not panel.plot.isVisible() or panel.state.result.name == wanted

    click(matrices[0])
    qtbot.waitUntil(lambda: ready(matrices[0]), timeout=30_000)
    paints = Paints(opened, panel)
    for i in range(20):
        click(matrices[(7 * i + 3) % len(matrices)])
        for _ in range(i % 5):
            QApplication.processEvents()
            # A plot whose painting is held back is still about the tensor before.
            if panel.plot.isVisible() and panel.plot.viewport().updatesEnabled():
                assert paints.picture == paints.selected
        if i % 6 == 5:
            qtbot.waitUntil(lambda n=session.selection[0]: ready(n), timeout=30_000)
    last = session.selection[0]
    qtbot.waitUntil(lambda: ready(last) and panel.state.result.exact and not panel.busy, timeout=30_000)
    QApplication.processEvents()
    assert paints.seen, "nothing was painted"
    assert all(picture == selected for picture, selected in paints.seen)
    assert paints.seen[-1] == (last, last)
