"""Safetensors as they are written: headers, shards, the index. What the tensors mean is the targets' business."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from json.encoder import encode_basestring

from core.errors import TargetError
from core.ordering import PIECE, order_of
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
    parts = [f'"__metadata__":{_compact(dict(metadata))}'] if metadata else []
    begins: list[int] = []
    at = 0
    # Written out by hand: a hundred thousand tables for json to walk through take seconds. Many tensors, few shapes.
    words: dict[tuple[str, tuple[int, ...]], str] = {}
    for name, dtype, shape, nbytes in entries:
        begins.append(at)
        end = at + nbytes
        said = words.get((dtype, shape))
        if said is None:
            said = words[dtype, shape] = f'"dtype":"{dtype}","shape":[{",".join(map(str, shape))}]'
        parts.append(f'{encode_basestring(name)}:{{{said},"data_offsets":[{at},{end}]}}')
        at = end
    # A hundred thousand texts joined, copied and encoded at once keep all other threads waiting for 20 ms.
    pieces = [",".join(parts[start : start + PIECE]).encode() for start in range(0, len(parts), PIECE)]
    length = 2 + sum(map(len, pieces)) + max(0, len(pieces) - 1)
    padded = length + -length % _ALIGNMENT
    head = b"%b{%b}%b" % (padded.to_bytes(8, "little"), b",".join(pieces), b" " * (padded - length))
    return head, [8 + padded + begin for begin in begins]


def lay_out(
    tensors: Sequence[tuple[str, tuple[StoredTensor, ...]]],
    file_of: Mapping[str, str],
    sides: Mapping[str, bytes],
    metadata: Mapping[str, str] = METADATA,
) -> Layout:
    """Places every stored tensor.

    tensors  output tensor name → its stored tensors, in order
    file_of  output tensor name → file name; files appear in the order of their first tensor
    metadata `__metadata__` of every file

    Inside a file wide element types come first, so that each tensor begins at a multiple of its element's size. With
    several files an index is added to the sides.
    """
    names = list(dict.fromkeys(file_of[name] for name, _ in tensors)) or [WHOLE]
    number = {name: i for i, name in enumerate(names)}
    held: list[list[StoredTensor]] = [[] for _ in names]
    for name, stored in tensors:
        held[number[file_of[name]]] += stored
    files: list[FileLayout] = []
    offset_of: dict[str, int] = {}
    for file, entries in zip(names, held, strict=True):
        entries[:] = _wide_first(entries)
        head, offsets = header(entries, metadata)
        offset_of.update(zip((entry.name for entry in entries), offsets, strict=True))
        files.append(FileLayout(file, head, offsets[-1] + entries[-1].nbytes if entries else len(head)))
    if len(offset_of) < sum(map(len, held)):
        seen: set[str] = set()
        twice = next(e.name for entries in held for e in entries if e.name in seen or seen.add(e.name))  # type: ignore[func-returns-value]
        raise TargetError("two tensors would have this name in the output", "rename one of them", twice)
    places: dict[str, tuple[Placed, ...]] = {}
    for name, stored in tensors:
        file_number = number[file_of[name]]
        # A list first: from a generator this takes twice as long.
        places[name] = tuple([Placed(s, file_number, offset_of[s.name]) for s in stored])
    sides = dict(sides)
    if len(files) > 1:
        sides[INDEX] = index(dict(zip(names, held, strict=True)))
    return Layout(tuple(files), places, sides)


def _wide_first(entries: Sequence[StoredTensor]) -> list[StoredTensor]:
    by_bits: dict[int, list[StoredTensor]] = {}
    for entry in entries:
        by_bits.setdefault(DTYPES[entry.dtype].bits, []).append(entry)
    return [entry for bits in sorted(by_bits, reverse=True) for entry in by_bits[bits]]


def index(held: Mapping[str, Sequence[StoredTensor]]) -> bytes:
    """model.safetensors.index.json. held: file name → what it holds."""
    total = sum(entry.nbytes for entries in held.values() for entry in entries)
    weight_map = {entry.name: file for file, entries in held.items() for entry in entries}
    names = list(weight_map)
    in_order = {name: weight_map[name] for name in map(names.__getitem__, order_of(names))}
    return json_bytes({"metadata": {"total_size": total}, "weight_map": in_order})


def shards(tensors: Sequence[tuple[str, tuple[StoredTensor, ...]]], limit: int) -> dict[str, str]:
    """Output tensor name → file name: one file, or as few as hold at most `limit` bytes each, filled in order. What
    belongs to one output tensor stays together; one that is larger than the limit has a file to itself."""
    groups: list[list[str]] = [[]]
    room = limit
    for name, stored in tensors:
        nbytes = sum([s.nbytes for s in stored])
        if nbytes > room and groups[-1]:
            groups.append([])
            room = limit
        groups[-1].append(name)
        room -= nbytes
    if len(groups) == 1:
        return dict.fromkeys(groups[0], WHOLE)
    count = len(groups)
    return {name: f"model-{number:05d}-of-{count:05d}.safetensors" for number, g in enumerate(groups, 1) for name in g}


def _compact(content: object) -> str:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))


def json_bytes(content: object) -> bytes:
    """Side files as people read them."""
    return (json.dumps(content, ensure_ascii=False, indent=2) + "\n").encode()
