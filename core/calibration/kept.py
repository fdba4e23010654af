"""Where calibration keeps what it found: one folder of the user's cache for every checkpoint, text and settings. What a
stopped walk left there goes on; what a finished one left is used again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from core.calibration.statistics import Provenance, Statistic, Statistics, TensorStatistics
from core.errors import OutputError

# Changes whenever the same text would give other figures.
VERSION = 1


def base_folder() -> Path:
    """Under which all is kept: QUANTBENCH_CALIBRATION, or a part of the user's cache."""
    import platformdirs

    given = os.environ.get("QUANTBENCH_CALIBRATION")
    return Path(given) if given else Path(platformdirs.user_cache_dir("quantbench", appauthor=False)) / "calibration"


def folder_of(*identity: object) -> Path:
    """The folder for what these words identify; made when it is not there. raises OutputError"""
    digest = hashlib.sha256(repr((VERSION, *identity)).encode()).hexdigest()
    folder = base_folder() / digest[:24]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"calibration cannot keep its data: {error.strerror or error}",
            "set QUANTBENCH_CALIBRATION to a folder",
            folder,
        ) from error
    return folder


def libraries() -> str:
    """Versions of what computes: others may round otherwise."""
    from importlib.metadata import PackageNotFoundError, version

    found = []
    for name in ("torch", "transformers"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"no {name}")
    return ", ".join(found)


def remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def save(path: Path, tensors: dict[str, TensorStatistics], **more: Any) -> None:
    """Statistics in one file, which appears only when complete. more: what else JSON can say"""
    import numpy as np

    index: dict[str, Any] = {"tensors": {}, **more}
    arrays: dict[str, Any] = {}
    for name, known in tensors.items():
        places = {}
        for kind, array in known.values.items():
            key = f"a{len(arrays)}"
            arrays[key], places[kind.value] = array, key
        index["tensors"][name] = [places, list(known.counts), known.stacked, known.transposed]
    arrays["index"] = np.frombuffer(json.dumps(index).encode(), np.uint8)
    partial = path.with_suffix(".partial")
    with open(partial, "wb") as file:
        np.savez(file, **arrays)
    os.replace(partial, path)


def load(path: Path) -> tuple[dict[str, TensorStatistics], dict[str, Any]] | None:
    """What `save` wrote; None when there is nothing, or nothing sound."""
    import zipfile

    import numpy as np

    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            index = json.loads(arrays["index"].tobytes())
            tensors = {
                name: TensorStatistics(
                    {Statistic(kind): arrays[key] for kind, key in places.items()}, tuple(counts), stacked, transposed
                )
                for name, (places, counts, stacked, transposed) in index.pop("tensors").items()
            }
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        return None
    return tensors, index


def as_store(tensors: dict[str, TensorStatistics], dataset: str, samples: int) -> Statistics:
    """Gathered statistics as a store whose identity is their content."""
    digest = hashlib.sha256()
    for name, known in sorted(tensors.items()):
        digest.update(repr((name, known.counts, known.stacked, known.transposed)).encode())
        for kind, array in sorted(known.values.items(), key=lambda pair: pair[0].value):
            digest.update(kind.value.encode() + array.tobytes())
    provenance = Provenance("", dataset, len(tensors), samples, f"calibration {digest.hexdigest()}")
    return Statistics(provenance, tensors)
