"""GPTQ: `X.qweight` with its zero points, scales and, often, the group of every column.

Widths and groups follow from the shapes, module by module, so a config's `dynamic` need not be understood. Zero points
of the first version are stored less one. Where one less than 0 was stored all the same, files and clients disagree;
they are read as GPTQModel does (and transformers through it): one is added to whole words, and carried from field to
field.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from core.checkpoints.base import Checkpoint
from core.checkpoints.dialects.base import Dialect, QuantizedWeight, quantization_of
from core.checkpoints.dialects.qweight import apart, pieces_of, place_of, stems
from core.errors import CorruptFile, UnsupportedFormat

if TYPE_CHECKING:
    import torch

    from core.formats.uniform import Uniform

V1, V2 = "gptq", "gptq_v2"
_WIDTHS = (2, 3, 4, 8)


class GptqDialect(Dialect):
    """Both versions, 2, 3, 4 and 8 bits, columns grouped in any order."""

    name: ClassVar[str] = "gptq"

    def speaks(self, config: Mapping[str, Any]) -> bool:
        return quantization_of(config).get("quant_method") == "gptq"

    def weights(self, checkpoint: Checkpoint) -> Mapping[str, QuantizedWeight]:
        config = quantization_of(checkpoint.config)
        found = stems(checkpoint)
        if not found:
            return {}
        layout = str(config.get("checkpoint_format") or config.get("format") or V1).lower()
        if layout not in (V1, V2):
            raise UnsupportedFormat(
                f"GPTQ weights in the layout {layout!r}",
                f"convert them to {V1} or {V2} with the tool that made them",
                checkpoint.path,
            )
        group = config.get("group_size")
        asked = group if isinstance(group, int) and not isinstance(group, bool) and group > 0 else 0
        return {f"{stem}.weight": _weight(checkpoint, stem, layout == V1, asked) for stem in found}


@dataclass(frozen=True)
class _Packed(QuantizedWeight):
    """pieces are qweight, qzeros, scales and, where the file has it, g_idx.

    run       columns of a group where no g_idx says otherwise; the last group may be shorter
    less_one  zero points are stored less one
    """

    format: Uniform
    run: int
    less_one: bool

    def read(self, inner: Checkpoint, start: int, stop: int) -> torch.Tensor:
        codes = inner.read(self.pieces[0])[:, start:stop].t().contiguous()
        scale = inner.read(self.pieces[2])[:, start:stop].t().float()
        zero = self._zeros(inner, start, stop)
        group_of = self._group_of(inner, scale.shape[1])
        if group_of is None:
            import torch

            signed = (zero + self.format.qmin).to(torch.int8)
            parts = {"codes": codes, "scale": scale, "zero_point": signed}
            return self.format.dequantize(parts, (stop - start, self.columns))
        from core.formats.bitstream import unpack_rows

        level = unpack_rows(codes, self.format.width, self.columns).float()
        level -= zero.float()[:, group_of]
        return level.mul_(scale[:, group_of])

    def _zeros(self, inner: Checkpoint, start: int, stop: int) -> torch.Tensor:
        """int16 [rows start … stop, groups], counted from 0."""
        import torch

        from core.formats.bitstream import unpack_rows

        width = self.format.width
        # Whatever the width, words and fields end together after 32 rows.
        first, last = start // 32 * 32, min(self.rows, -(-stop // 32) * 32)
        words = inner.read(self.pieces[1])[:, first * width // 32 : last * width // 32].long()
        if self.less_one and 32 % width == 0:
            words = words + sum(1 << bit for bit in range(0, 32, width)) & 0xFFFFFFFF
        zeros = unpack_rows(words, width, last - first)[:, start - first : stop - first].t().to(torch.int16)
        if self.less_one and 32 % width:  # these fields reach over the borders of words
            zeros = zeros + 1 & (1 << width) - 1
        return zeros

    def _group_of(self, inner: Checkpoint, groups: int) -> torch.Tensor | None:
        """int64 [columns], or None where all groups are runs of equal length, in order. Raises CorruptFile."""
        import torch

        runs = torch.arange(self.columns) // self.run
        if len(self.pieces) < 4:
            return None if self.columns % self.run == 0 else runs
        group_of = inner.read(self.pieces[3]).reshape(-1).long()
        if int(group_of.min()) < 0 or int(group_of.max()) >= groups:
            raise CorruptFile(
                f"g_idx names groups from {int(group_of.min())} to {int(group_of.max())}, and there are {groups}",
                where=f"{inner.path}: {self.pieces[3]}",
            )
        return None if self.columns % self.run == 0 and torch.equal(group_of, runs) else group_of


def _weight(checkpoint: Checkpoint, stem: str, less_one: bool, asked: int) -> QuantizedWeight:
    """asked is the group size in the config, 0 for whole rows or when it says nothing."""
    from core.formats.uniform import Uniform

    where = place_of(checkpoint, stem)
    codes, zeros, scales = pieces_of(checkpoint, stem)
    groups, rows = scales.shape
    width, rest = divmod(32 * zeros.columns, rows)
    if rest or codes.columns != rows or zeros.rows != groups:
        raise apart(codes, zeros, scales, "", where)
    if width not in _WIDTHS:
        raise UnsupportedFormat(f"GPTQ weights of {width} bits; 2, 3, 4 and 8 are read", where=where)
    columns, rest = divmod(32 * codes.rows, width)
    if rest:
        raise CorruptFile(f"codes of {width} bits do not fill {codes.rows} words", where=where)
    pieces = [codes.name, zeros.name, scales.name]
    order = f"{stem}.g_idx"
    if order in checkpoint.tensors:
        info = checkpoint.tensors[order]
        if info.dtype not in ("I32", "I64") or info.numel != columns:
            raise CorruptFile(f"{info.dtype} g_idx {list(info.shape)} for {columns} columns", where=where)
        pieces.append(order)
    run = asked if asked and -(-columns // asked) == groups else columns // groups
    if not run or (run * groups != columns and run != asked and order not in checkpoint.tensors):
        raise CorruptFile(f"{groups} groups do not divide {columns} columns, and there is no g_idx", where=where)
    even = columns % run == 0 and groups > 1
    fmt = Uniform(f"int{width}", width, "group" if even else "row", run if even else 0, False, "F32")
    return _Packed(tuple(pieces), (rows, columns), f"INT{width}", fmt, run, less_one)
