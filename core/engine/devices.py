"""The devices to compute on: names, what is there, moving slices there and back. No choice of kernels (formats/)."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from core.errors import DeviceError

if TYPE_CHECKING:
    import torch

    from core.formats.base import Quantized

_NAME = re.compile(r"cpu|cuda(?::(\d{1,4}))?")


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """name is what `--device` takes ("cuda:0"); title is for people; memory in bytes, 0 when unknown."""

    name: str
    title: str
    memory_bytes: int


def usable_cores() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def parse_device(name: str) -> str:
    """ "cpu", or "cuda:n" with the index filled in, after looking whether it is there.

    raises  DeviceError for an unknown word, a torch without CUDA, or an index that does not exist
    """
    match = _NAME.fullmatch(name.strip().lower())
    if match is None:
        raise DeviceError(f"unknown device {name!r}", "known here: cpu, cuda, cuda:0, cuda:1, …")
    if match.group(0) == "cpu":
        return "cpu"
    import torch

    if not torch.cuda.is_available():
        built = "no CUDA device found" if torch.version.cuda or torch.version.hip else "this torch has no CUDA support"
        raise DeviceError(f"{name}: {built}", "use --device cpu, or install a CUDA build of torch and its driver")
    index = int(match.group(1) or 0)
    count = torch.cuda.device_count()
    if index >= count:
        raise DeviceError(f"{name} does not exist", f"present: {', '.join(f'cuda:{i}' for i in range(count))}")
    return f"cuda:{index}"


def list_devices() -> tuple[DeviceInfo, ...]:
    """The CPU and every CUDA device. Imports torch; call it off the GUI thread."""
    import psutil
    import torch

    found = [DeviceInfo("cpu", f"CPU, {usable_cores()} cores", psutil.virtual_memory().total)]
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            known = torch.cuda.get_device_properties(i)
            found.append(DeviceInfo(f"cuda:{i}", known.name, known.total_memory))
    return tuple(found)


def to_device(w: torch.Tensor, device: str) -> torch.Tensor:
    """w on the device, through pinned memory for CUDA so that the copy overlaps with other slices' work."""
    if device == "cpu":
        return w
    return w.pin_memory().to(device, non_blocking=True)


def to_cpu(quantized: Quantized) -> Quantized:
    """The same with its stored parts in CPU memory, ready for Target.store."""
    from core.formats.base import Quantized

    here = {key: part.cpu() for key, part in quantized.parts.items()}
    return Quantized(quantized.format, quantized.shape, parts=here, fallbacks=quantized.fallbacks)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or the machine, has no memory left."""
    if isinstance(error, MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "not enough memory" in text)
