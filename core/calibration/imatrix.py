"""llama.cpp's importance matrices: files that hold the mean x² of every input channel, in the GGUF form and in the
older .dat form. Tensors are named as in GGUF (`blk.0.attn_q.weight`).

    GGUF   <weight>.in_sum2  F32 (columns, experts): Σx² over tokens;  <weight>.counts  F32 (1, experts): tokens
    .dat   per weight: calls, and mean x² · calls for every column of every expert

A count of 0 is an expert that no token reached: its importance is 1 everywhere, as llama.cpp has it.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.calibration.statistics import Provenance, Statistic, Statistics, TensorStatistics
from core.checkpoints.gguf import Gguf, Value, ValueType, encode_pair, encode_string
from core.checkpoints.gguf import looks_like as looks_like_gguf
from core.checkpoints.jsontext import short
from core.checkpoints.mapped import CUT_OFF, read_bytes, read_small
from core.errors import CalibrationError, CorruptFile
from core.formats.ggml.types import GGML_TYPES

if TYPE_CHECKING:
    import numpy as np

SUMS, COUNTS = ".in_sum2", ".counts"
# Names in a .dat; longer ones are damage.
_MAX_NAME = 1024
# An imatrix of the largest models has some hundred MiB.
_MAX_BYTES = 4 << 30
_ALIGNMENT = 32
_I32 = struct.Struct("<i")


def read_imatrix(path: Path) -> Statistics:
    """The importance of every tensor in the file, by GGUF name; stacks of experts as (experts, columns).

    raises  CalibrationError, CheckpointError and CorruptFile: one line that says what is wrong with which file
    """
    head = read_bytes(path, 512)
    digest = hashlib.sha256(read_small(path, _MAX_BYTES, "an importance matrix")).hexdigest()
    tensors, datasets, chunks = _read_gguf(path) if looks_like_gguf(head) else _read_dat(path)
    if not tensors:
        raise CalibrationError("holds no importance of any tensor", "gather it again", path)
    dataset = ", ".join(datasets)
    return Statistics(Provenance(str(path), dataset, len(tensors), chunks, f"imatrix {digest}"), tensors)


def write_imatrix(path: Path, statistics: Statistics, chunk_size: int) -> int:
    """Writes the GGUF form, or the older one where the path ends in .dat. The file appears only when complete; returns
    its bytes.

    chunk_size  tokens in a sample
    raises      CalibrationError when there is no importance, OSError
    """
    older = path.suffix.lower() == ".dat"
    data = _dat_bytes(statistics, chunk_size) if older else _gguf_bytes(statistics, chunk_size)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return len(data)


def _read_gguf(path: Path) -> tuple[dict[str, TensorStatistics], list[str], int]:
    with Gguf(path) as file:
        kind = file.metadata.get("general.type")
        if kind is None or kind.value != "imatrix":
            raise CalibrationError("is a GGUF, and no importance matrix", "give the file llama-imatrix wrote", path)
        found: dict[str, TensorStatistics] = {}
        for name, info in file.tensors.items():
            if not name.endswith(SUMS):
                continue
            weight = name.removesuffix(SUMS)
            counted = file.tensors.get(weight + COUNTS)
            if counted is None:
                raise CorruptFile(f"{short(weight)} has sums and no counts", where=path)
            if info.dtype != "F32" or counted.dtype != "F32" or info.rows != counted.numel or not info.numel:
                raise CorruptFile(f"{short(weight)}: sums and counts do not belong together", where=path)
            sums = file.read(name).numpy().astype("float64")
            counts = file.read(weight + COUNTS).numpy().astype("float64").reshape(-1)
            _require_sound(path, weight, sums, counts)
            found[weight] = _entry(sums, counts)
        datasets = _datasets(file.metadata.get("imatrix.datasets"))
        chunks = file.metadata.get("imatrix.chunk_count")
        return found, datasets, int(chunks.value) if chunks is not None and chunks.type == ValueType.UINT32 else 0


def _datasets(value: Value | None) -> list[str]:
    if value is None or value.type != ValueType.ARRAY or value.element != ValueType.STRING:
        return []
    return [str(text) for text in value.value]


def _read_dat(path: Path) -> tuple[dict[str, TensorStatistics], list[str], int]:
    """How many experts there are is not said: a stack has one row here, which grows when it meets its tensor."""
    import numpy as np

    data = read_small(path, _MAX_BYTES, "an importance matrix")
    at = 0

    def number(what: str, least: int, most: int) -> int:
        nonlocal at
        if at + 4 > len(data):
            raise CorruptFile(f"ends inside {what}", CUT_OFF, path, offset=at)
        value = int(_I32.unpack_from(data, at)[0])
        if not least <= value <= most:
            raise CorruptFile(f"{what} is {value:,}: no importance matrix", "give a file of llama-imatrix", path, at)
        at += 4
        return value

    def text(what: str, least: int, most: int) -> str:
        nonlocal at
        length = number(f"the length of {what}", least, most)
        if at + length > len(data):
            raise CorruptFile(f"ends inside {what}", CUT_OFF, path, offset=at)
        at += length
        return data[at - length : at].decode("utf-8", "replace")

    found: dict[str, TensorStatistics] = {}
    for _ in range(number("the number of entries", 1, len(data) // 12)):
        name = text("a name", 1, _MAX_NAME)
        calls = number(f"the calls of {short(name)}", 0, (1 << 31) - 1)
        count = number(f"the length of {short(name)}", 1, (1 << 31) - 1)
        if at + 4 * count > len(data):
            raise CorruptFile(f"ends inside the values of {short(name)}", CUT_OFF, path, offset=at)
        sums = np.frombuffer(data, "<f4", count, at).astype(np.float64)[None]
        at += 4 * count
        counts = np.array([float(calls)])
        _require_sound(path, name, sums, counts)
        found[name] = _entry(sums, counts)
    if at == len(data):
        return found, [], 0  # older files end here, or after the next number
    chunks = number("the last chunk", 0, (1 << 31) - 1)
    return found, [text("the data set", 0, 1 << 16)] if at < len(data) else [], chunks


def _require_sound(path: Path, name: str, sums: np.ndarray, counts: np.ndarray) -> None:
    import numpy as np

    if not (np.isfinite(sums).all() and np.isfinite(counts).all()) or (sums < 0).any() or (counts < 0).any():
        raise CalibrationError(f"{short(name)} holds negative, NaN or infinite values", "gather it again", path)


def _entry(sums: np.ndarray, counts: np.ndarray) -> TensorStatistics:
    """float64 [experts, columns] and [experts] as importance; a single row is no stack."""
    import numpy as np

    seen = counts > 0
    importance = np.where(seen[:, None], sums / np.where(seen, counts, 1)[:, None], 1.0).astype(np.float32)
    whole = tuple(int(c) for c in counts)
    if len(whole) == 1:
        return TensorStatistics({Statistic.IMPORTANCE: importance[0]}, whole)
    return TensorStatistics({Statistic.IMPORTANCE: importance}, whole, stacked=True)


def _importance(statistics: Statistics) -> list[tuple[str, TensorStatistics, np.ndarray]]:
    """By name, what an importance matrix can hold. raises CalibrationError: there is nothing"""
    found = [
        (name, known, known.values[Statistic.IMPORTANCE])
        for name, known in sorted(statistics.tensors.items())
        if Statistic.IMPORTANCE in known.values
    ]
    if not found:
        raise CalibrationError("nothing was gathered that an importance matrix could hold")
    return found


def _dat_bytes(statistics: Statistics, chunk_size: int) -> bytes:
    found = _importance(statistics)
    parts = [_I32.pack(len(found))]

    def text(words: str) -> bytes:
        data = words.encode()
        return _I32.pack(len(data)) + data

    for name, known, importance in found:
        # Calls are what this form counts: one for each sample, as llama.cpp turns tokens into them.
        calls = max(1, -(-max(known.counts) // max(1, chunk_size)))
        values = (importance.astype("float64") * calls).astype("<f4")
        parts += [text(name), _I32.pack(calls), _I32.pack(values.size), values.tobytes()]
    return b"".join([*parts, _I32.pack(statistics.provenance.chunks), text(statistics.provenance.dataset)])


def _gguf_bytes(statistics: Statistics, chunk_size: int) -> bytes:
    import numpy as np

    arrays: list[tuple[str, np.ndarray]] = []
    for name, known, importance in _importance(statistics):
        counts = np.array(known.counts, np.float32)
        matrix = np.atleast_2d(importance).astype(np.float64) * counts[:, None].astype(np.float64)
        arrays += [(name + SUMS, matrix.astype("<f4")), (name + COUNTS, counts[:, None].astype("<f4"))]
    where = statistics.provenance
    pairs: Mapping[str, Value] = {
        "general.type": Value.of(ValueType.STRING, "imatrix"),
        "imatrix.datasets": Value.of(ValueType.ARRAY, [where.dataset], ValueType.STRING),
        "imatrix.chunk_count": Value.of(ValueType.UINT32, where.chunks),
        "imatrix.chunk_size": Value.of(ValueType.UINT32, chunk_size),
    }
    return _assembled(pairs, arrays)


def _assembled(pairs: Mapping[str, Value], arrays: list[tuple[str, Any]]) -> bytes:
    """A GGUF of F32 matrices."""
    head = [struct.pack("<4sIQQ", b"GGUF", 3, len(arrays), len(pairs))]
    head += [encode_pair(key, value) for key, value in pairs.items()]
    body: list[bytes] = []
    at = 0
    for name, array in arrays:
        rows, columns = array.shape
        head.append(encode_string(name) + struct.pack("<IQQIQ", 2, columns, rows, GGML_TYPES["F32"].id, at))
        padding = -array.nbytes % _ALIGNMENT
        body.append(array.tobytes() + b"\0" * padding)
        at += array.nbytes + padding
    records = b"".join(head)
    return records + b"\0" * (-len(records) % _ALIGNMENT) + b"".join(body)


def require_columns(name: str, known: TensorStatistics, columns: int, experts: int) -> TensorStatistics:
    """The statistics if they fit a tensor of this shape, with a .dat's single row of all experts taken apart.

    experts  0 where the tensor is one matrix
    raises   CalibrationError: they belong to another model
    """
    importance = known.values.get(Statistic.IMPORTANCE)
    if importance is None:
        return known
    if (
        experts
        and not known.stacked
        and importance.size == experts * columns
        and set(known.values) == {Statistic.IMPORTANCE}
    ):
        parted = importance.reshape(experts, columns)
        return TensorStatistics({Statistic.IMPORTANCE: parted}, known.counts * experts, stacked=True)
    wanted = (experts, columns) if experts else (columns,)
    if importance.shape != wanted:
        sizes = " × ".join(map(str, importance.shape)), " × ".join(map(str, wanted))
        raise CalibrationError(
            f"the importance has {sizes[0]} values and the tensor {sizes[1]} columns",
            "it belongs to another model",
            name,
        )
    return known
