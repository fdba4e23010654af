"""Safetensors as they are written: headers, shards, the index. What the tensors mean is the targets' business."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from core.targets.base import FileLayout, Layout, Placed, StoredTensor
from core.tensors import DTYPES

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# What transformers asks for in every file.
METADATA = {"format": "pt"}
_ALIGNMENT = 8


def header(entries: Sequence[StoredTensor], metadata: Mapping[str, str] = METADATA) -> tuple[bytes, list[int]]:
    """Head of a file that holds the entries one after the other, and the offset of each in the file.

    The JSON is padded with spaces so that the data begins at a multiple of 8 bytes. Same entries, same bytes.
    """
    table: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    begins: list[int] = []
    at = 0
    for entry in entries:
        end = at + entry.nbytes
        table[entry.name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": (at, end)}
        begins.append(at)
        at = end
    text = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    base = 8 + len(text)
    return len(text).to_bytes(8, "little") + text, [base + begin for begin in begins]


def lay_out(
    tensors: Sequence[tuple[str, tuple[StoredTensor, ...]]],
    file_of: Mapping[str, str],
    sides: Mapping[str, bytes],
) -> Layout:
    """Places every stored tensor.

    tensors  output tensor name → its stored tensors, in order
    file_of  output tensor name → file name; files appear in the order of their first tensor

    Inside a file wide element types come first, so that each tensor begins at a multiple of its element's size. With
    several files an index is added to the sides.
    """
    names = list(dict.fromkeys(file_of[name] for name, _ in tensors)) or [WHOLE]
    number = {name: i for i, name in enumerate(names)}
    held: list[list[tuple[str, StoredTensor]]] = [[] for _ in names]
    for name, stored in tensors:
        held[number[file_of[name]]] += [(name, s) for s in stored]
    files: list[FileLayout] = []
    found: dict[str, list[Placed]] = {name: [] for name, _ in tensors}
    for i, entries in enumerate(held):
        entries.sort(key=lambda e: -DTYPES[e[1].dtype].bits)
        head, offsets = header([s for _, s in entries])
        for (name, stored_tensor), offset in zip(entries, offsets, strict=True):
            found[name].append(Placed(stored_tensor, i, offset))
        end = offsets[-1] + entries[-1][1].nbytes if entries else len(head)
        files.append(FileLayout(names[i], head, end))
    sides = dict(sides)
    if len(files) > 1:
        sides[INDEX] = index({s.name: names[i] for i, entries in enumerate(held) for _, s in entries}, held)
    return Layout(tuple(files), {name: tuple(places) for name, places in found.items()}, sides)


def index(weight_map: Mapping[str, str], held: Sequence[Sequence[tuple[str, StoredTensor]]]) -> bytes:
    """model.safetensors.index.json."""
    total = sum(stored.nbytes for entries in held for _, stored in entries)
    content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    return json_bytes(content)


def shards(tensors: Sequence[tuple[str, tuple[StoredTensor, ...]]], limit: int) -> dict[str, str]:
    """Output tensor name → file name: one file, or as few as hold at most `limit` bytes each, filled in order. What
    belongs to one output tensor stays together; one that is larger than the limit has a file to itself."""
    groups: list[list[str]] = [[]]
    room = limit
    for name, stored in tensors:
        nbytes = sum(s.nbytes for s in stored)
        if nbytes > room and groups[-1]:
            groups.append([])
            room = limit
        groups[-1].append(name)
        room -= nbytes
    if len(groups) == 1:
        return dict.fromkeys(groups[0], WHOLE)
    count = len(groups)
    return {name: f"model-{number:05d}-of-{count:05d}.safetensors" for number, g in enumerate(groups, 1) for name in g}


def json_bytes(content: object) -> bytes:
    """Side files as people read them."""
    return (json.dumps(content, ensure_ascii=False, indent=2) + "\n").encode()
