"""What is photographed, in this order, in one window. A scene is a function: it opens what it needs, waits until that
has settled, takes pictures in every look, and returns whether it was ready in time.
"""

from __future__ import annotations

from collections.abc import Callable

from app.pictures import doing, frame, looking
from app.pictures.stage import Stage

SCENES: dict[str, Callable[[Stage, str], bool]] = {
    "empty": frame.empty,
    "tensors": frame.tensors,
    "palette": frame.palette,
    "preflight": frame.preflight,
    "picker": frame.picker,
    "method": frame.method,
    "error": frame.error,
    "histogram": looking.histogram,
    "overlay": looking.overlay,
    "humps": looking.humps,
    "nan": looking.notanumber,
    "outliers": looking.outliers,
    "errormap": looking.errormap,
    "bench": looking.bench,
    "info": looking.info,
    "rules": doing.rules,
    "jobs": doing.jobs,
    "calibration": doing.calibration,
    "experiments": doing.experiments,
    "log": doing.log,
    "compare": looking.compare,
    "report": doing.report,
}
