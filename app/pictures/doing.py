"""Scenes of what is done: rules, calibration, runs, evaluations, and what is told of them."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from PySide6.QtGui import QImage

from app.pictures.stage import Stage, written

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


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

    def gathered() -> bool:
        return getattr(stage.session.calibration_data, "gathered", None) is not None

    # What an earlier run of this script gathered may have been kept.
    if not stage.wait(lambda: gathered() or stage.window.calibrator.can_gather):
        return False
    stage.show_panel("calibration")
    if not gathered():
        stage.window.commands.gather()
    ready = stage.wait(gathered) and stage.seen()
    stage.quiet()
    ready = stage.take("calibration-gathered") and ready
    stage.session.apply(SetMethod("gptq", ()))
    if not written(stage, stage.folder / "demo-gptq.gguf", ""):
        return False
    stage.show_panel("calibration")
    stage.quiet()
    return stage.take(name) and ready


def jobs(stage: Stage, name: str) -> bool:
    """Finished runs and one that is held."""
    window = stage.window
    if not (stage.open(stage.demo) and written(stage, stage.folder / "demo-Q4_K_M.gguf", "Q4_K_M")):
        return False
    done = stage.take("jobs-finished")
    stage.quiet()
    if not (stage.open(stage.demo, "Q8_0") and stage.seen()):
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
    stage.quiet()
    panel = stage.show_panel("experiments")
    ready = stage.wait(lambda: len(panel.state.points) >= 5) and stage.seen()
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
    if stage.window.quantizer.last is None and not written(stage, stage.folder / "demo-report.gguf", "Q4_K_M"):
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
