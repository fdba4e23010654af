"""Quantized folders in the compressed-tensors dialect, seen as the weights they stand for.

`X.weight_packed` (or an int8 `X.weight`) with its scales and zero points becomes one tensor `X.weight` that reads as
float32. Other quantized dialects are left as they are stored; `unread_quantization` names them, so that nobody takes
codes for weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.checkpoints.base import Checkpoint
from core.errors import CorruptFile, UnsupportedFormat
from core.tensors import TensorInfo, natural_key

if TYPE_CHECKING:
    import torch

    from core.formats.uniform import Uniform

_INTEGER = ("pack-quantized", "int-quantized", "mixed-precision")


@dataclass(frozen=True, slots=True)
class _Module:
    """The stored pieces of one quantized weight, by their names in the file; zero is "" when symmetric."""

    codes: str
    scale: str
    zero: str
    format: Uniform
    shape: tuple[int, int]
    packed: bool


def quantization_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """The quantization_config of config.json, or {}."""
    found = (checkpoint.config or {}).get("quantization_config")
    return found if isinstance(found, dict) else {}


def unread_quantization(checkpoint: Checkpoint) -> str:
    """The dialect in which the weights are stored quantized and which is not undone on reading, or ""."""
    if isinstance(checkpoint, CompressedCheckpoint):
        return ""
    found = quantization_of(checkpoint)
    return str(found.get("quant_method") or "an unnamed method") if found else ""


def decompressed(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint itself, or its view with weights in place of codes for an integer compressed-tensors folder.

    raises  CorruptFile when scales are missing or of the wrong shape, UnsupportedFormat for the packing of before 0.20
    """
    config = quantization_of(checkpoint)
    if config.get("quant_method") != "compressed-tensors" or config.get("format") not in _INTEGER:
        return checkpoint
    try:
        modules = {f"{stem}.weight": _module(checkpoint, stem, config) for stem in _stems(checkpoint.tensors)}
    except BaseException:
        checkpoint.close()
        raise
    return CompressedCheckpoint(checkpoint, modules) if modules else checkpoint


class CompressedCheckpoint(Checkpoint):
    """See the module's first lines. Everything else is as in the checkpoint underneath."""

    def __init__(self, inner: Checkpoint, modules: Mapping[str, _Module]) -> None:
        self.inner = inner
        self.path, self.kind, self.files = inner.path, inner.kind, inner.files
        self.config, self.metadata = inner.config, inner.metadata
        self._modules = modules
        hidden = {f"{name}_shape" for name in modules}
        tensors = []
        for name, module in modules.items():
            pieces = {module.codes, module.scale, module.zero, f"{name}_shape"} & set(inner.tensors)
            hidden |= pieces
            nbytes = sum(inner.tensors[piece].nbytes for piece in pieces)
            tensors.append(TensorInfo(name, module.shape, f"INT{module.format.width}", nbytes))
        tensors += [info for name, info in inner.tensors.items() if name not in hidden]
        self.tensors = {t.name: t for t in sorted(tensors, key=lambda t: natural_key(t.name))}

    def raw(self, name: str, start: int = 0, stop: int | None = None) -> memoryview:
        if name in self._modules:
            raise UnsupportedFormat("is stored in several pieces and has no bytes of its own", where=name)
        return self.inner.raw(name, start, stop)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        module = self._modules.get(name)
        if module is None:
            return self.inner.read(name, start, stop)
        import torch

        from core.formats.base import Grid
        from core.formats.bitstream import unpack_rows

        stop = module.shape[0] if stop is None else stop
        codes = self.inner.read(module.codes, start, stop)
        if module.packed:
            codes = unpack_rows(codes, module.format.width, module.shape[1]).to(torch.int16) + module.format.qmin
        whole = module.format.granularity == "tensor"
        parts = {"scale": self._rows(module.scale, 0 if whole else start, 1 if whole else stop)}
        if module.zero:
            parts["zero_point"] = self._zero(module)[0 if whole else start : 1 if whole else stop]
        return module.format.decode(codes, Grid(parts))

    def _rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        if len(self.inner.tensors[name].shape) == 1:
            # One number per row without a second dimension, or one for the tensor.
            return self.inner.read(name).reshape(-1, 1)[start:stop]
        return self.inner.read(name, start, stop)

    def _zero(self, module: _Module) -> torch.Tensor:
        """int8-valued [rows, groups]; packed ones run along the rows."""
        import torch

        from core.formats.bitstream import unpack_rows

        zero = self.inner.read(module.zero)
        if zero.dtype != torch.int32:  # one per tensor is never packed
            return zero.reshape(-1, 1) if len(self.inner.tensors[module.zero].shape) < 2 else zero
        unpacked = unpack_rows(zero.t().contiguous(), module.format.width, module.shape[0])
        return unpacked.t().to(torch.int16) + module.format.qmin

    def file_of(self, name: str) -> Path:
        module = self._modules.get(name)
        return self.inner.file_of(module.codes if module else name)

    def fingerprint(self) -> str:
        return self.inner.fingerprint()

    def folder(self) -> Path:
        return self.inner.folder()

    def close(self) -> None:
        self.inner.close()


def _stems(tensors: Mapping[str, TensorInfo]) -> list[str]:
    packed = [name.removesuffix(".weight_packed") for name in tensors if name.endswith(".weight_packed")]
    plain = [
        name.removesuffix(".weight")
        for name, info in tensors.items()
        if name.endswith(".weight") and info.dtype == "I8" and f"{name}_scale" in tensors
    ]
    return packed + plain


def _module(checkpoint: Checkpoint, stem: str, config: Mapping[str, Any]) -> _Module:
    from core.formats.uniform import Uniform

    tensors = checkpoint.tensors
    where = f"{checkpoint.path}: {stem}"
    packed = f"{stem}.weight_packed" in tensors
    codes = f"{stem}.weight_packed" if packed else f"{stem}.weight"
    scale, zero = f"{stem}.weight_scale", f"{stem}.weight_zero_point"
    if scale not in tensors:
        raise CorruptFile("the quantized weight has no weight_scale", "is a shard missing?", where)
    rows, words = tensors[codes].rows, tensors[codes].columns
    if packed:
        if f"{stem}.weight_shape" not in tensors:
            raise CorruptFile("the packed weight has no weight_shape", "is a shard missing?", where)
        shape = _whole_numbers(checkpoint, f"{stem}.weight_shape")
        if len(shape) != 2 or shape[0] != rows or shape[1] < 1:
            raise CorruptFile(f"weight_shape says {shape}, the packed weight has {rows} rows", where=where)
        columns = shape[1]
        bits = next((b for b in _widths(config) if (columns * b + 31) // 32 == words), 0)
        if not bits:
            raise UnsupportedFormat(
                f"{words} words per row of {columns} columns fit none of the widths {_widths(config)} in its config",
                "files packed before compressed-tensors 0.20 have another layout; convert it there",
                where,
            )
    else:
        columns, bits = words, 8
    scales = tensors[scale]
    per_row = scales.numel // rows if scales.numel % max(rows, 1) == 0 else 0
    if scales.numel == 1 and rows != 1:
        granularity, group = "tensor", 0
    elif per_row == 1:
        granularity, group = "row", 0
    elif per_row > 1 and columns % per_row == 0:
        granularity, group = "group", columns // per_row
    else:
        raise CorruptFile(f"{scales.numel} scales do not divide {rows} × {columns} weights", where=where)
    symmetric = zero not in tensors
    if scales.dtype not in ("F32", "F16", "BF16"):
        raise UnsupportedFormat(f"scales of type {scales.dtype}", where=where)
    name = f"int{bits}"
    fmt = Uniform(name, bits, granularity, group, symmetric, scales.dtype)
    return _Module(codes, scale, "" if symmetric else zero, fmt, (rows, columns), packed)


def _whole_numbers(checkpoint: Checkpoint, name: str) -> list[int]:
    """A small integer tensor without torch: opening stays cheap."""
    width = {"I64": 8, "I32": 4}.get(checkpoint.tensors[name].dtype)
    if width is None:
        raise CorruptFile(f"{name} is {checkpoint.tensors[name].dtype}, not whole numbers", where=checkpoint.path)
    data = bytes(checkpoint.raw(name))
    return [int.from_bytes(data[i : i + width], "little", signed=True) for i in range(0, len(data), width)]


def _widths(config: Mapping[str, Any]) -> list[int]:
    """Widths that the config's groups name, or all of them."""
    groups = config.get("config_groups")
    found = []
    for group in groups.values() if isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        bits = weights.get("num_bits") if isinstance(weights, dict) else None
        if isinstance(bits, int) and 2 <= bits <= 8:
            found.append(bits)
    return sorted(set(found)) or list(range(2, 9))
