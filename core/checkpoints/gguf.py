"""GGUF files, in one piece or split: tensors mapped, block-quantized ones decoded to float32 when read.

Header bytes are parsed in gguf_header.py, key-values live in gguf_values.py, block layouts in core.formats.ggml.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from core.checkpoints.base import Checkpoint
from core.checkpoints.gguf_header import MAGIC, GgufHeader, parse_header
from core.checkpoints.gguf_values import Value, ValueType, encode_pair, encode_string
from core.checkpoints.jsontext import short
from core.checkpoints.mapped import MappedFile, as_rows, regular_size, row_range, stamp
from core.errors import CheckpointError, CorruptFile
from core.formats.ggml.types import GGML_TYPES
from core.ordering import natural_order
from core.tensors import TensorInfo

if TYPE_CHECKING:
    import torch

__all__ = ["Gguf", "Value", "ValueType", "encode_pair", "encode_string", "looks_like", "only_split"]

_WEIGHT, SCALE = ".weight", ".scale"
_SPLIT_NAME = re.compile(r"^(.*)-(\d{5})-of-(\d{5})\.gguf$")


class Gguf(Checkpoint):
    """A GGUF of version 2 or 3; any part of a split one opens all of them.

    metadata    key → Value, in the file's order (of the first part)
    file_order  tensor names in the order of the records
    alignment   of the tensors' offsets
    raises      CheckpointError (missing parts), CorruptFile, UnsupportedFormat (big endian, version 1, unknown types)
    """

    kind = "gguf"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = None
        self._home: dict[str, MappedFile] = {}
        self._spans: dict[str, tuple[int, int]] = {}
        self._parts: list[MappedFile] = []
        try:
            headers = self._open(path)
        except BaseException:
            self.close()
            raise
        infos = [info for header in headers for info in header.infos]
        self.file_order: tuple[str, ...] = tuple(info.name for info in infos)
        infos = natural_order(infos, attrgetter("name"))
        self.files = tuple(part.path for part in self._parts)
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType({t.name: t for t in infos})
        self.metadata: Mapping[str, Any] = MappingProxyType(headers[0].values)
        self.alignment = headers[0].alignment
        self.version = headers[0].version

    def _open(self, path: Path) -> list[GgufHeader]:
        opened, opened_header = self._read(path)
        count = _number(opened_header, "split.count", path)
        if count <= 1:
            self._add(opened, opened_header)
            return [opened_header]
        paths = _split_paths(path, count)
        headers: list[GgufHeader] = []
        for number, part_path in enumerate(paths):
            part, header = (opened, opened_header) if part_path == path else self._read(part_path)
            if _number(header, "split.no", part_path) != number or _number(header, "split.count", part_path) != count:
                raise CorruptFile(f"is not part {number + 1} of {count}, as its name says", where=part_path)
            self._add(part, header)
            headers.append(header)
        promised = _number(headers[0], "split.tensors.count", path, len(self._home))
        if promised != len(self._home):
            raise CorruptFile(f"the parts hold {len(self._home):,} tensors, {promised:,} were split", where=path)
        return headers

    def _read(self, path: Path) -> tuple[MappedFile, GgufHeader]:
        regular_size(path)
        part = MappedFile(path)
        self._parts.append(part)  # so that it is closed whatever happens
        with part.view(0, part.size) as view:
            return part, parse_header(view, path)

    def _add(self, part: MappedFile, header: GgufHeader) -> None:
        self._parts.remove(part)
        self._parts.append(part)
        for name, span in header.spans.items():
            if name in self._home:
                raise CorruptFile(f"tensor {short(name)} is in {self._home[name].path.name} too", where=part.path)
            self._home[name] = part
            self._spans[name] = span

    def file_of(self, name: str) -> Path:
        return self._home[name].path

    def span(self, name: str) -> tuple[int, int]:
        """First byte and the one behind the last, in the file that holds the tensor."""
        return self._spans[name]

    def _rows(self, info: TensorInfo, start: int, stop: int | None) -> tuple[int, int, int]:
        first, last = row_range(info, start, stop)
        row = GGML_TYPES[info.dtype].row_bytes(info.columns)
        begin = self._spans[info.name][0]
        return begin + first * row, begin + last * row, last - first

    def raw(self, name: str, start: int = 0, stop: int | None = None) -> memoryview:
        begin, end, _ = self._rows(self.tensors[name], start, stop)
        return self._home[name].view(begin, end)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        info = self.tensors[name]
        begin, end, rows = self._rows(info, start, stop)
        stored = self._home[name].tensor(begin, end)
        if not GGML_TYPES[info.dtype].quantized:
            return as_rows(stored, info, rows)
        import torch

        from core.formats.ggml.decode import dequantize

        if begin == end:
            return torch.empty(rows, info.columns, dtype=torch.float32)
        values = dequantize(info.dtype, stored.view(rows, -1), info.columns)
        scale = self._scale(info)
        return values if scale is None else self._scaled(values, info, scale, start)

    def _scale(self, info: TensorInfo) -> TensorInfo | None:
        """The tensor whose number, or number per expert, an NVFP4 weight is multiplied with."""
        if info.dtype != "NVFP4" or not info.name.endswith(_WEIGHT):
            return None
        return self.tensors.get(info.name.removesuffix(_WEIGHT) + SCALE)

    def _scaled(self, values: torch.Tensor, info: TensorInfo, scale: TensorInfo, start: int) -> torch.Tensor:
        experts = info.shape[0] if len(info.shape) > 2 else 1
        if scale.dtype != "F32" or scale.numel not in (1, experts):
            raise CorruptFile(
                f"{scale.dtype} of shape {list(scale.shape)} is no scale of {info.name}", where=scale.name
            )
        import torch

        factors = self.read(scale.name).view(-1)
        rows = torch.arange(start, start + len(values)) // max(info.rows // scale.numel, 1)
        return values * factors[rows][:, None]

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for part in self._parts:
            digest.update(repr((part.path.name, stamp(part.path))).encode())
        for name, info in self.tensors.items():
            digest.update(repr((name, info.shape, info.dtype, self._spans[name])).encode())
        for key, value in self.metadata.items():
            digest.update(encode_pair(key, value))
        return digest.hexdigest()

    def close(self) -> None:
        for part in self._parts:
            part.close()


def looks_like(head: bytes) -> bool:
    """Whether a file begins as GGUF files do, of either endianness."""
    return head.startswith(MAGIC)


def _number(header: GgufHeader, key: str, path: Path, default: int = 0) -> int:
    """An integer among the key-values. Raises CorruptFile when it is something else."""
    value = header.values.get(key)
    if value is None:
        return default
    if value.type in (ValueType.STRING, ValueType.ARRAY, ValueType.FLOAT32, ValueType.FLOAT64, ValueType.BOOL):
        raise CorruptFile(f"{key} is {short(str(value))}, not a whole number", where=path)
    return int(value.value)


def only_split(folder: Path) -> Path | None:
    """The first part where the folder's GGUF files are the parts of one model and nothing else, else None."""
    names = sorted(path.name for path in folder.glob("*.gguf"))
    found = [_SPLIT_NAME.match(name) for name in names]
    sets = {(f.group(1), f.group(3)) if f else None for f in found}
    return folder / names[0] if len(sets) == 1 and None not in sets else None


def _split_paths(path: Path, count: int) -> Sequence[Path]:
    """All parts, by name. Raises CheckpointError for those that are not there."""
    named = _SPLIT_NAME.match(path.name)
    if named is None or int(named.group(3)) != count:
        hint = f"name the parts NAME-00001-of-{count:05d}.gguf and so on"
        raise CheckpointError(f"is one of {count} parts, and its name does not say which", hint, path)
    paths = [path.with_name(f"{named.group(1)}-{n:05d}-of-{count:05d}.gguf") for n in range(1, count + 1)]
    missing = [p.name for p in paths if not p.exists()]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise CheckpointError(f"parts are missing: {', '.join(missing[:3])}{more}", "put all parts in one folder", path)
    return paths
