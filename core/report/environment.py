"""The machine and the versions that a run was made with, as label and value."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version

from core import __version__
from core.engine.devices import list_devices, usable_cores
from core.engine.progress import bytes_text

# Packages that have a say in the bytes, the figures or the model.
PACKAGES = ("torch", "numpy", "numba", "safetensors", "transformers")


def versions() -> list[tuple[str, str]]:
    """Quantbench, Python and the packages that are installed."""
    found = [("Quantbench", __version__), ("Python", platform.python_version())]
    for name in PACKAGES:
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:
            continue
    return found


def machine(device: str) -> list[tuple[str, str]]:
    """System, processor, memory, and the device that computed."""
    import psutil

    found = [
        ("system", f"{platform.system()} {platform.release()}".strip()),
        ("processor", f"{_processor()}, {usable_cores()} cores usable"),
        ("memory", bytes_text(psutil.virtual_memory().total)),
    ]
    title = next((d.title for d in list_devices() if d.name == device), "")
    return [*found, ("device", f"{device} ({title})" if title else device)]


def _processor() -> str:
    if sys.platform.startswith("linux"):
        try:
            with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
                for line in lines:
                    key, _, value = line.partition(":")
                    if key.strip() in ("model name", "Hardware"):
                        return value.strip()
        except OSError:
            pass
    return platform.processor() or platform.machine()
