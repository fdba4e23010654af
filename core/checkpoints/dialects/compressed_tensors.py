"""compressed-tensors: `X.weight_packed`, or an int8 or float8 `X.weight`, with its scales and zero points. What kind of
weight it is follows from the pieces, tensor by tensor, so a config's groups need not be matched with names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from core.checkpoints.base import Checkpoint
from core.checkpoints.dialects.base import Dialect, QuantizedWeight, quantization_of
from core.checkpoints.dialects.blocks import EXPONENTS, VALUES, block_floats
from core.errors import CorruptFile, UnsupportedFormat
from core.tensors import TensorInfo

if TYPE_CHECKING:
    import torch

    from core.formats.uniform import Uniform

_FORMATS = (
    "pack-quantized",
    "int-quantized",
    "float-quantized",
    "naive-quantized",
    "nvfp4-pack-quantized",
    "mxfp4-pack-quantized",
    "mxfp8-quantized",
    "mixed-precision",
)
# Numbers about what comes into the layer, which say nothing of the weight.
_OF_INPUTS = ("input_scale", "input_zero_point", "input_global_scale")


class CompressedTensorsDialect(Dialect):
    """Integers of 2 to 8 bits, FP8, MXFP8, NVFP4, MXFP4."""

    name: ClassVar[str] = "compressed-tensors"

    def speaks(self, config: Mapping[str, Any]) -> bool:
        found = quantization_of(config)
        sparse = found.get("sparsity_config")
        dense = not isinstance(sparse, dict) or sparse.get("format") in (None, "dense")
        return found.get("quant_method") == "compressed-tensors" and found.get("format") in _FORMATS and dense

    def weights(self, checkpoint: Checkpoint) -> Mapping[str, QuantizedWeight]:
        config = quantization_of(checkpoint.config)
        return {f"{stem}.weight": _weight(checkpoint, stem, config) for stem in _stems(checkpoint.tensors)}


@dataclass(frozen=True)
class _Fours(QuantizedWeight):
    """E2M1 codes in pairs. pieces are packed codes, scales and, for NVFP4, the divisor of all scales.

    run  columns that share a scale
    """

    run: int

    def read(self, inner: Checkpoint, start: int, stop: int) -> torch.Tensor:
        import torch

        from core.formats.codebook import dequantize_runs, e2m1
        from core.formats.mx import powers

        codes = inner.read(self.pieces[0], start, stop)
        step = inner.read(self.pieces[1], start, stop)
        if inner.tensors[self.pieces[1]].dtype in EXPONENTS:
            step = powers(step.view(torch.uint8))
        else:
            step = step.float() / inner.read(self.pieces[2]).float().reshape(1, 1)
        count = (stop - start) * self.columns
        flat = dequantize_runs(e2m1(), codes, step.reshape(-1), self.run, count, high_first=False)
        return flat.view(stop - start, self.columns)


@dataclass(frozen=True)
class _Integers(QuantizedWeight):
    """codes, scale and zero are names in the file; zero is "" when symmetric, order (of columns' groups) where they are
    runs."""

    codes: str
    scale: str
    zero: str
    order: str
    format: Uniform
    packed: bool

    def read(self, inner: Checkpoint, start: int, stop: int) -> torch.Tensor:
        import torch

        from core.formats.base import Grid
        from core.formats.bitstream import unpack_rows

        codes = inner.read(self.codes, start, stop)
        if self.packed:
            codes = unpack_rows(codes, self.format.width, self.columns).to(torch.int16) + self.format.qmin
        whole = self.format.granularity == "tensor"
        rows = slice(0, 1) if whole else slice(start, stop)
        parts = {"scale": _rows(inner, self.scale, rows.start, rows.stop)}
        if self.zero:
            parts["zero_point"] = self._zero(inner)[rows]
        if self.order:
            return self._scattered(inner, codes, parts)
        return self.format.decode(codes, Grid(parts))

    def _scattered(self, inner: Checkpoint, codes: torch.Tensor, parts: dict[str, torch.Tensor]) -> torch.Tensor:
        group_of = inner.read(self.order).reshape(-1).long()
        groups = parts["scale"].shape[1]
        if int(group_of.min()) < 0 or int(group_of.max()) >= groups:
            raise CorruptFile(f"{self.order} names groups beyond the {groups} there are", where=inner.path)
        level = codes.float()
        if self.zero:
            level = level - parts["zero_point"].float()[:, group_of]
        return level * parts["scale"].float()[:, group_of]

    def _zero(self, inner: Checkpoint) -> torch.Tensor:
        """int8-valued [rows, groups]; packed ones run along the rows."""
        import torch

        from core.formats.bitstream import unpack_rows

        zero = inner.read(self.zero)
        if zero.dtype != torch.int32:  # one per tensor is never packed
            return zero.reshape(-1, 1) if len(inner.tensors[self.zero].shape) < 2 else zero
        unpacked = unpack_rows(zero.t().contiguous(), self.format.width, self.rows)
        return unpacked.t().to(torch.int16) + self.format.qmin


def _rows(inner: Checkpoint, name: str, start: int, stop: int) -> torch.Tensor:
    if len(inner.tensors[name].shape) == 1:
        # One number per row without a second dimension, or one for the tensor.
        return inner.read(name).reshape(-1, 1)[start:stop]
    return inner.read(name, start, stop)


def _stems(tensors: Mapping[str, TensorInfo]) -> list[str]:
    packed = [name.removesuffix(".weight_packed") for name in tensors if name.endswith(".weight_packed")]
    plain = [
        name.removesuffix(".weight")
        for name, info in tensors.items()
        if name.endswith(".weight") and info.dtype in ("I8", *VALUES) and f"{name}_scale" in tensors
    ]
    return packed + plain


def _weight(checkpoint: Checkpoint, stem: str, config: Mapping[str, Any]) -> QuantizedWeight:
    tensors, where = checkpoint.tensors, f"{checkpoint.path}: {stem}"
    silent = tuple(f"{stem}.{part}" for part in _OF_INPUTS if f"{stem}.{part}" in tensors)
    if f"{stem}.weight_packed" not in tensors and tensors[f"{stem}.weight"].dtype in VALUES:
        zero = f"{stem}.weight_zero_point"
        if zero in tensors:
            silent = (*silent, zero)  # of symmetric floats: zeros
        asked = _block_structure(config)
        return block_floats(tensors, f"{stem}.weight", f"{stem}.weight_scale", asked, where, silent)
    if f"{stem}.weight_packed" in tensors and tensors[f"{stem}.weight_packed"].dtype == "U8":
        return _fours(tensors, stem, where, silent)
    return _integers(checkpoint, stem, config, silent)


def _fours(tensors: Mapping[str, TensorInfo], stem: str, where: str, silent: tuple[str, ...]) -> _Fours:
    codes, scale, divisor = (f"{stem}.weight_{part}" for part in ("packed", "scale", "global_scale"))
    if scale not in tensors:
        raise CorruptFile("the quantized weight has no weight_scale", "is a shard missing?", where)
    packed, scales = tensors[codes], tensors[scale]
    if len(packed.shape) != 2 or not packed.numel:
        raise CorruptFile(f"{codes} has the shape {list(packed.shape)}", where=where)
    rows, columns = packed.rows, 2 * packed.columns
    mx = scales.dtype in EXPONENTS
    run = 32 if mx else 16
    if not mx and scales.dtype != "F8_E4M3":
        raise UnsupportedFormat(f"4-bit floats with scales of type {scales.dtype}", where=where)
    if scales.shape != (rows, columns // run) or columns % run:
        raise CorruptFile(f"{list(scales.shape)} scales for {rows} × {columns} weights in runs of {run}", where=where)
    if mx:
        return _Fours((codes, scale, *silent), (rows, columns), "MXFP4-PACKED", run)
    if divisor not in tensors or tensors[divisor].numel != 1 or tensors[divisor].dtype not in ("F32", "F16", "BF16"):
        raise CorruptFile("the quantized weight has no weight_global_scale of one number", where=where)
    return _Fours((codes, scale, divisor, *silent), (rows, columns), "NVFP4-PACKED", run)


def _integers(checkpoint: Checkpoint, stem: str, config: Mapping[str, Any], silent: tuple[str, ...]) -> QuantizedWeight:
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
    shape_of = (f"{stem}.weight_shape",) if packed else ()
    order = f"{stem}.weight_g_idx"
    if order not in tensors:
        order = ""
    elif tensors[order].dtype not in ("I32", "I64") or tensors[order].numel != columns:
        raise CorruptFile(
            f"{tensors[order].dtype} g_idx {list(tensors[order].shape)} for {columns} columns", where=where
        )
    pieces = (codes, scale, *(() if symmetric else (zero,)), *shape_of, *((order,) if order else ()), *silent)
    used = order if granularity == "group" else ""
    return _Integers(pieces, (rows, columns), f"INT{bits}", codes, scale, "" if symmetric else zero, used, fmt, packed)


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


def _block_structure(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Rows and columns of a block, where all groups that have one agree."""
    groups = config.get("config_groups")
    found = set()
    for group in groups.values() if isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        block = weights.get("block_structure") if isinstance(weights, dict) else None
        if isinstance(block, list) and len(block) == 2 and all(type(n) is int and n > 0 for n in block):
            found.add((block[0], block[1]))
    return found.pop() if len(found) == 1 else None
