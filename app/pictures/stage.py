"""What scenes have in common: a window that is photographed in every look (theme and size), and when it has settled."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PySide6.QtGui import QImage
from PySide6.QtWidgets import QWidget

from app.pictures.small import save_small
from app.screenshot import Shots

# Opened as a copy, at a place that says nothing about this machine.
DEMO = Path(__file__).resolve().parent.parent.parent / "resources" / "demo"
# Tensors of it.
DOWN = "model.layers.1.mlp.down_proj.weight"
EMBEDDING = "model.embed_tokens.weight"  # at the top of the table: a popover fits under it
VALUE = "model.layers.1.self_attn.v_proj.weight"


class Stage:
    """A window, what it shows, and the looks it is photographed in."""

    def __init__(
        self, out: Path, folder: Path, odd: Path, themes: Sequence[str], sizes: Sequence[tuple[int, int]]
    ) -> None:
        self.out, self.folder, self.odd = out, folder, odd
        self.demo = folder / "demo"
        shutil.copytree(DEMO, self.demo)
        self.looks = [(theme, size) for size in sizes for theme in themes]
        self.missed: list[str] = []
        self._shots = Shots(out, themes[0], sizes[0])
        self.window = self._shots.window
        self.session = self.window.session
        self.wait = self._shots.wait
        self.pause = self._shots.pause
        self.select = self._shots.select
        self.show_panel = self._shots.show_panel

    def close(self) -> None:
        self._shots.close()

    def open(self, path: Path, preset: str = "Q4_K_M", target: str = "gguf") -> bool:
        """A checkpoint under a recipe without rules by hand, planned."""
        window, session = self.window, self.session
        while session.undo_label:
            session.undo()
        if session.target != target:
            window.commands.set_target(target)
        if session.recipe.name != preset or len(session.recipe.rules) != 1:
            window.commands.set_preset(preset)
        ready = self._shots.open(path)
        window.notices.dismiss()
        return ready

    def seen(self) -> bool:
        """Whether the errors of all that is on screen are known."""
        return self.wait(
            lambda: (
                self.session.planned
                and not self.window.planner.busy
                and not self.window.previews.busy
                and not self.window.commands.tensors.busy
            )
        )

    def painted(self) -> bool:
        """Whether no plot is held back while it is filled: a screen keeps it as it was, in a picture it is blank."""
        from app.plotting.plot import Plot

        return all(plot.viewport().updatesEnabled() for plot in self.window.findChildren(Plot))

    def quiet(self) -> None:
        """Takes away what is told above the panels, also what is told a turn later."""
        self.pause(0.3)
        self.window.notices.dismiss()

    def take(
        self, name: str, popup: Callable[[], QWidget | None] | None = None, settled: Callable[[], bool] | None = None
    ) -> bool:
        """Saves the window in every look; popup opens what is shown over it, and is closed again. Whether all of them
        had settled."""
        ready = True
        for theme, (width, height) in self.looks:
            self.window.theme.set_mode(theme)  # type: ignore[arg-type]
            self.window.resize(width, height)
            self.pause(0.3)
            if settled is not None:
                ready = self.wait(settled) and ready
            over = popup() if popup is not None else None
            self.pause(0.3)
            ready = self.wait(self.painted) and ready
            self.save(self._shots.image(), f"{name}-{theme}-{width}x{height}")
            if over is not None:
                over.close()
        return ready

    def save(self, image: QImage, name: str) -> None:
        path = self.out / f"{name}.png"
        if not save_small(image, path):
            raise SystemExit(f"pictures: {path} cannot be written")
        sys.stdout.write(f"{path}\n")


def exact(panel: Any) -> bool:
    result = panel.state.result
    return result is not None and result.exact and not panel.busy


def counted(panel: Any) -> bool:
    return panel.state.result is not None and panel.state.result.exact and not panel.busy


def written(stage: Stage, out: Path, preset: str) -> bool:
    """Runs the recipe (a preset, or "" for what is set) until its end has been told."""
    if preset and not stage.open(stage.demo, preset):
        return False
    if not stage.wait(lambda: stage.session.planned and not stage.window.planner.busy):
        return False
    stage.window.commands.quantize_to(out)
    return stage.wait(lambda: out.exists() and stage.window.jobs.settled)
