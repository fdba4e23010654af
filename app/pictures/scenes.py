"""What is photographed: one function per scene, which opens what it needs, waits until it has settled and takes
pictures in every look (theme and size). They run in the order of SCENES, in one window, and return whether they were
ready in time."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PySide6.QtCore import Qt
from PySide6.QtGui import QImage
from PySide6.QtWidgets import QWidget

from app.pictures.oddities import HUMPS, NAN, SPIKE
from app.pictures.small import save_small
from app.screenshot import Shots

# Opened as a copy, at a place that says nothing about this machine.
DEMO = Path(__file__).resolve().parent.parent.parent / "resources" / "demo"
DOWN = "model.layers.1.mlp.down_proj.weight"
EMBEDDING = "model.embed_tokens.weight"  # at the top of the table: a popover fits under it
VALUE = "model.layers.1.self_attn.v_proj.weight"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


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
        return self.wait(lambda: not self.window.previews.busy and not self.window.commands.tensors.busy)

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
            self.save(self._shots.image(), f"{name}-{theme}-{width}x{height}")
            if over is not None:
                over.close()
        return ready

    def save(self, image: QImage, name: str) -> None:
        path = self.out / f"{name}.png"
        if not save_small(image, path):
            raise SystemExit(f"pictures: {path} cannot be written")
        sys.stdout.write(f"{path}\n")


# The frame


def empty(stage: Stage, name: str) -> bool:
    """The first start, with its first steps; and the step that speaks of the toolbar, over the demo."""
    tour = stage.window.tour
    tour.begin()
    ready = stage.take(name)
    ready = stage.open(stage.demo) and ready
    for _ in range(2):
        tour.next.click()
    ready = stage.take("tour") and ready
    tour.end()
    stage.session.close()
    return stage.take("empty-recent") and ready


def tensors(stage: Stage, name: str) -> bool:
    """The table, and the levels of a K-quant over the weights of the selected tensor."""
    if not (stage.open(stage.demo) and stage.select(DOWN)):
        return False
    panel = stage.show_panel("histogram")
    ready = stage.seen() and stage.wait(lambda: _exact(panel))
    return stage.take(name, settled=lambda: _exact(panel)) and ready


def palette(stage: Stage, name: str) -> bool:
    """Every action by its name."""
    return stage.open(stage.demo) and stage.take(name, stage.window.open_palette)


def preflight(stage: Stage, name: str) -> bool:
    """What is known before the first byte is written: a container that cannot carry what was asked for."""
    if not stage.open(stage.demo, "W4A16"):
        return False
    ready = stage.wait(lambda: bool(stage.session.problems) or bool(stage.session.plan_error))
    return stage.take(name, stage.window.show_problems) and ready


def picker(stage: Stage, name: str) -> bool:
    """A strategy for the selected tensors, with the parameters of its method."""
    if not (stage.open(stage.demo) and stage.select(EMBEDDING)):
        return False
    assigner = stage.window.commands.tensors.assigner

    def opened() -> QWidget | None:
        stage.window.commands.tensors.open_picker()
        found = assigner.picker
        if found is not None:
            found.form.show_choice("gptq", {})
            stage.pause(0.1)
            found.adjustSize()
        return found

    return stage.take(name, opened)


def method(stage: Stage, name: str) -> bool:
    """How codes are chosen for all that the recipe's last rule decides over."""
    return stage.open(stage.demo) and stage.take(name, stage.window.show_method)


def error(stage: Stage, name: str) -> bool:
    """A file that is no checkpoint: what, where, what to try."""
    if not stage.open(stage.demo):
        return False
    broken = stage.folder / "cut-off.safetensors"
    broken.write_bytes((stage.demo / "model.safetensors").read_bytes()[:4096])
    stage.window.commands.open_path(broken)
    ready = stage.wait(lambda: stage.window.notices.notice is not None)
    stage.take(name)
    stage.window.notices.dismiss()
    return ready


# Looking


def histogram(stage: Stage, name: str) -> bool:
    """The grid of int4 in groups, on a logarithmic axis."""
    if not (stage.open(stage.demo, "W4A16", "compressed-tensors") and stage.select(VALUE)):
        return False
    panel = stage.show_panel("histogram")
    ready = stage.wait(lambda: _exact(panel)) and stage.seen()
    panel.log.setChecked(True)
    ready = stage.take(name, settled=lambda: _exact(panel)) and ready
    panel.log.setChecked(False)
    return ready


def overlay(stage: Stage, name: str) -> bool:
    """Several selected tensors over one another."""
    if not (stage.open(stage.demo) and stage.select(VALUE)):
        return False
    outline = stage.session.outline
    assert outline is not None
    wanted = [t.name for t in outline.tensors if t.name.endswith(("attn_v.weight", "blk.0.ffn_down.weight"))]
    stage.session.select(tuple(wanted[:4]))
    panel = stage.show_panel("histogram")

    def ready() -> bool:
        return _exact(panel) and len(panel.state.laid_over) == len(wanted[:4]) - 1

    return stage.wait(ready) and stage.take(name, settled=ready)


def humps(stage: Stage, name: str) -> bool:
    """A tensor with two humps."""
    return _odd_histogram(stage, name, HUMPS)


def notanumber(stage: Stage, name: str) -> bool:
    """A tensor with a NaN."""
    if not (stage.open(stage.odd) and stage.select(NAN)):
        return False
    panel = stage.show_panel("outliers")
    return stage.take(name, settled=lambda: _counted(panel))


def outliers(stage: Stage, name: str) -> bool:
    """A spike, a dead column and three loud channels."""
    if not (stage.open(stage.odd) and stage.select(SPIKE)):
        return False
    panel = stage.show_panel("outliers")
    return stage.take(name, settled=lambda: _counted(panel))


def errormap(stage: Stage, name: str) -> bool:
    """Every tensor measured, one role selected."""
    if not stage.open(stage.demo):
        return False
    panel = stage.show_panel("errormap")
    ready = stage.wait(lambda: panel.state.ready and panel.state.complete)
    layout = panel.state.layout
    if ready and layout is not None:
        line = layout.lines.index("down")
        stage.session.select(panel.state.in_cells((line, c) for c in range(1, len(layout.columns))))
        panel.canvas.hovered.emit(line, 1)
    return stage.take(name) and ready


def bench(stage: Stage, name: str) -> bool:
    """A tensor of the demo under what GGUF carries."""
    if not (stage.open(stage.demo) and stage.select(DOWN)):
        return False
    panel = stage.show_panel("bench")

    def done() -> bool:
        state = panel.state
        return state.request is not None and not panel.busy and all(r.final for r in state.listed())

    return stage.wait(done) and stage.take(name, settled=done)


def info(stage: Stage, name: str) -> bool:
    """What is known of one tensor."""
    if not (stage.open(stage.demo) and stage.select(DOWN)):
        return False
    stage.show_panel("info")
    return stage.seen() and stage.take(name)


def compare(stage: Stage, name: str) -> bool:
    """The demo as Q4_K_M and as Q8_0, each against what they were made from."""
    made = [stage.folder / f"demo-{preset}.gguf" for preset in ("Q8_0", "Q4_K_M")]
    for preset, out in zip(("Q8_0", "Q4_K_M"), made, strict=True):
        if not out.exists() and not _written(stage, out, preset):
            return False
    stage.window.notices.dismiss()
    panel = stage.show_panel("compare")
    panel.choose("a", str(made[0]))
    panel.choose("source", str(stage.demo))
    panel.compare_with(str(made[1]))
    ready = stage.wait(lambda: panel.state.result is not None)
    panel.table.horizontalHeader().setSortIndicator(panel.model.section_of("sqnr"), Qt.SortOrder.AscendingOrder)
    return stage.take(name) and ready


# Doing


def rules(stage: Stage, name: str) -> bool:
    """Rules before a preset: one that wins some tensors, one that never gets any."""
    from app.edits import AddRule
    from core.recipes import parse_strategy
    from core.recipes.model import Match, Rule

    if not stage.open(stage.demo):
        return False
    for match, strategy in (("*.ffn_down.*", "q6_k"), ("*.attn_v.*", "q5_k+gptq"), ("blk.0.attn_v.*", "q8_0")):
        stage.session.apply(AddRule(len(stage.session.recipe.rules) - 1, Rule(Match(match), parse_strategy(strategy))))
    stage.show_panel("rules")
    ready = stage.wait(lambda: stage.session.planned and not stage.window.planner.busy) and stage.seen()
    return stage.take(name) and ready


def calibration(stage: Stage, name: str) -> bool:
    """Importance gathered on a text; then a run with GPTQ, whose loss appears layer by layer."""
    if not stage.open(stage.demo, "Q3_K_M"):
        return False
    from app.edits import SetCalibration, SetMethod

    choice = replace(stage.session.calibration, source="text", path=None, samples=16, length=128)
    stage.session.apply(SetCalibration(choice))
    if not stage.wait(lambda: stage.window.calibrator.can_gather):
        return False
    stage.show_panel("calibration")
    stage.window.commands.gather()
    ready = stage.wait(lambda: getattr(stage.session.calibration_data, "gathered", None) is not None)
    ready = stage.take("calibration-gathered") and ready
    stage.session.apply(SetMethod("gptq", ()))
    if not _written(stage, stage.folder / "demo-gptq.gguf", ""):
        return False
    stage.show_panel("calibration")
    stage.window.notices.dismiss()
    return stage.take(name) and ready


def jobs(stage: Stage, name: str) -> bool:
    """Finished runs and one that is held."""
    window = stage.window
    if not (stage.open(stage.demo) and _written(stage, stage.folder / "demo-Q4_K_M.gguf", "Q4_K_M")):
        return False
    done = stage.take("jobs-finished")
    window.notices.dismiss()
    if not stage.open(stage.demo, "Q8_0"):
        return False
    window.commands.quantize_to(stage.folder / "demo-Q8_0.gguf")
    for info in window.jobs.running():
        window.jobs.pause(info.id)
    stage.pause(0.5)
    ready = stage.take(name) and done
    for info in window.jobs.running():
        window.jobs.resume(info.id)
    return stage.wait(lambda: not window.jobs.running()) and ready


def experiments(stage: Stage, name: str) -> bool:
    """Recipes judged on a text: size against distance, and the rows of the log."""
    text = stage.folder / "evaluation.txt"
    text.write_text(Path(argparse.__file__).read_text(encoding="utf-8")[:24_000], encoding="utf-8")
    stage.window.settings.set("files/evaluation_text", str(text))
    for preset in ("Q8_0", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q4_0"):
        if not stage.open(stage.demo, preset):
            return False
        stage.window.commands.evaluate_recipe()
        if not stage.wait(lambda: not stage.window.jobs.running()):
            return False
    stage.window.notices.dismiss()
    panel = stage.show_panel("experiments")
    ready = stage.wait(lambda: len(panel.state.points) >= 5)
    return stage.take(name) and ready


def log(stage: Stage, name: str) -> bool:
    """What happened so far."""
    if not stage.open(stage.demo):
        return False
    stage.show_panel("log")
    return stage.take(name)


def report(stage: Stage, name: str) -> bool:
    """The page of a run, as a browser shows it. Needs one of BROWSERS; without it the picture is left out."""
    browser = next((found for b in BROWSERS if (found := shutil.which(b))), None)
    if browser is None:
        sys.stderr.write(f"pictures: no {name} without one of {', '.join(BROWSERS)}\n")
        return True
    if stage.window.quantizer.last is None and not _written(stage, stage.folder / "demo-report.gguf", "Q4_K_M"):
        return False
    from core.report import write_report

    page = stage.folder / "report.html"
    last = stage.window.quantizer.last
    assert last is not None
    write_report(page, *last)
    for theme, (width, height) in stage.looks:
        out = stage.folder / "page.png"
        options = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--window-size={width},{height}",
        ]
        options += ["--blink-settings=preferredColorScheme=0"] if theme == "dark" else []
        subprocess.run([browser, *options, f"--screenshot={out}", page.as_uri()], check=True, capture_output=True)
        stage.save(QImage(str(out)), f"{name}-{theme}-{width}x{height}")
    return True


def _exact(panel: Any) -> bool:
    result = panel.state.result
    return result is not None and result.exact and panel._job is None


def _counted(panel: Any) -> bool:
    return panel.state.result is not None and panel.state.result.exact and not panel.busy


def _odd_histogram(stage: Stage, name: str, tensor: str) -> bool:
    if not (stage.open(stage.odd) and stage.select(tensor)):
        return False
    panel = stage.show_panel("histogram")
    return stage.take(name, settled=lambda: _exact(panel))


def _written(stage: Stage, out: Path, preset: str) -> bool:
    """Runs the recipe (a preset, or "" for what is set) to its end."""
    if preset and not stage.open(stage.demo, preset):
        return False
    if not stage.wait(lambda: stage.session.planned and not stage.window.planner.busy):
        return False
    stage.window.commands.quantize_to(out)
    return stage.wait(lambda: out.exists() and not stage.window.jobs.running())


SCENES: dict[str, Callable[[Stage, str], bool]] = {
    "empty": empty,
    "tensors": tensors,
    "palette": palette,
    "preflight": preflight,
    "picker": picker,
    "method": method,
    "error": error,
    "histogram": histogram,
    "overlay": overlay,
    "humps": humps,
    "nan": notanumber,
    "outliers": outliers,
    "errormap": errormap,
    "bench": bench,
    "info": info,
    "rules": rules,
    "jobs": jobs,
    "calibration": calibration,
    "experiments": experiments,
    "log": log,
    "compare": compare,
    "report": report,
}
