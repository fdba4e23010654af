"""The panels of the window, in the order of their tabs. A panel is one folder here and one line in PANELS."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from app.panels.base import PanelRecord

if TYPE_CHECKING:
    from PySide6.QtWidgets import QWidget

    from app.job_service import JobService
    from app.session import Session


class _Lazy:
    """A factory that imports "module:Class" when called."""

    def __init__(self, place: str) -> None:
        self._module, self._name = place.split(":")

    def __call__(self, session: Session, jobs: JobService) -> QWidget:
        return getattr(import_module(self._module), self._name)(session, jobs)


PANELS = (
    PanelRecord(
        "tensors",
        "Tensors",
        "main",
        "tree-structure",
        "Every tensor of the checkpoint and what becomes of it",
        _Lazy("app.panels.tensors.view:TensorsPanel"),
    ),
    PanelRecord(
        "histogram",
        "Histogram",
        "inspector",
        "chart-bar",
        "The selected tensor's weights against the levels of its strategy",
        _Lazy("app.panels.histogram.view:HistogramPanel"),
    ),
    PanelRecord(
        "outliers",
        "Outliers",
        "inspector",
        "crosshair",
        "The selected tensor's largest weights by row, column and place, and its inputs' where they are known",
        _Lazy("app.panels.outliers.view:OutliersPanel"),
    ),
    PanelRecord(
        "bench",
        "Bench",
        "inspector",
        "scales",
        "The selected tensors under several strategies: size against error",
        _Lazy("app.panels.bench.view:BenchPanel"),
    ),
    PanelRecord(
        "compare",
        "Compare",
        "inspector",
        "git-diff",
        "Two checkpoints of any kind, tensor by tensor",
        _Lazy("app.panels.compare.view:ComparePanel"),
    ),
    PanelRecord(
        "info",
        "Info",
        "inspector",
        "info",
        "What is known of the selected tensor, and which rule decided over it",
        _Lazy("app.panels.info.view:InfoPanel"),
    ),
    PanelRecord(
        "rules",
        "Rules",
        "bottom",
        "list-numbers",
        "The recipe: ordered rules, the first that matches wins",
        _Lazy("app.panels.rules.view:RulesPanel"),
    ),
    PanelRecord(
        "errormap",
        "Error map",
        "bottom",
        "grid-four",
        "The error of every tensor by layer and role, the worst first",
        _Lazy("app.panels.errormap.view:ErrorMapPanel"),
    ),
    PanelRecord(
        "calibration",
        "Calibration",
        "bottom",
        "activity",
        "What flows through the layers: the text that methods learn from, and what a calibrated run loses",
        _Lazy("app.panels.calibration.view:CalibrationPanel"),
    ),
    PanelRecord(
        "experiments",
        "Experiments",
        "bottom",
        "flask",
        "All runs so far: sizes, perplexity, KLD, speed",
        _Lazy("app.panels.experiments.view:ExperimentsPanel"),
    ),
    PanelRecord(
        "jobs",
        "Jobs",
        "bottom",
        "queue",
        "Running and finished work",
        _Lazy("app.panels.jobs.view:JobsPanel"),
    ),
    PanelRecord(
        "log",
        "Log",
        "bottom",
        "list-bullets",
        "What happened, with times",
        _Lazy("app.panels.log.view:LogPanel"),
    ),
)

__all__ = ["PANELS", "PanelRecord"]
