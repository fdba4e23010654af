"""Builders of checkpoint files, good ones and broken ones, byte by byte and without the readers under test. Others may
use `many_tensors`, which stands for a very large mixture-of-experts model. No tests here."""

from __future__ import annotations

import itertools
import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

EXPERTS = 64
_BLOCK = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate")
_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
MANY_ROWS, MANY_COLUMNS = 2, 32


def model_names(count: int) -> Iterator[str]:
    """`count` names as a mixture-of-experts model has them, of as many layers as it takes; experts apart."""

    def endless() -> Iterator[str]:
        yield "model.embed_tokens.weight"
        yield "model.norm.weight"
        yield "lm_head.weight"
        for layer in itertools.count():
            block = f"model.layers.{layer}"
            yield f"{block}.input_layernorm.weight"
            yield f"{block}.post_attention_layernorm.weight"
            yield from (f"{block}.{name}.weight" for name in _BLOCK)
            yield from (f"{block}.mlp.experts.{e}.{p}.weight" for e in range(EXPERTS) for p in _PROJECTIONS)

    return itertools.islice(endless(), count)


def safetensors_bytes(
    tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]], metadata: Mapping[str, str] | None = None
) -> bytes:
    """A .safetensors file of name → (dtype, shape, bytes), the header padded to 8 bytes."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    at = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in tensors.values())


def with_header(header: Any, data: bytes = b"") -> bytes:
    """A .safetensors file of a header given as JSON text, or as an object to be made such."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def many_tensors(path: Path, n: int) -> Path:
    """A .safetensors file of n small BF16 weights ([2, 32], norms [32]) named like a model of hundreds of layers."""
    path.write_bytes(safetensors_bytes(_many(model_names(n)), {"format": "pt"}))
    return path


def many_sharded(folder: Path, n: int, shards: int) -> Path:
    """The same as a Hugging Face folder. config.json says Mixtral, as far as reading it goes."""
    folder.mkdir(parents=True, exist_ok=True)
    names = list(model_names(n))
    weight_map = {}
    for s in range(shards):
        file = f"model-{s + 1:05d}-of-{shards:05d}.safetensors"
        mine = names[len(names) * s // shards : len(names) * (s + 1) // shards]
        (folder / file).write_bytes(safetensors_bytes(_many(mine), {"format": "pt"}))
        weight_map |= dict.fromkeys(mine, file)
    write_folder(folder, weight_map=weight_map)
    return folder


def write_folder(
    folder: Path, *, weight_map: Mapping[str, str] | None = None, files: Mapping[str, bytes] | None = None
) -> Path:
    """config.json, an index when a weight_map is given, and files as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"architectures": ["MixtralForCausalLM"], "hidden_size": 32}))
    if weight_map is not None:
        text = json.dumps({"metadata": {"total_size": 0}, "weight_map": dict(weight_map)})
        (folder / "model.safetensors.index.json").write_text(text)
    for name, data in (files or {}).items():
        (folder / name).write_bytes(data)
    return folder


def _many(names: Iterable[str]) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    random = np.random.default_rng(0)
    made: dict[str, tuple[str, tuple[int, ...], bytes]] = {}
    for name in names:
        shape = (MANY_COLUMNS,) if "norm" in name else (MANY_ROWS, MANY_COLUMNS)
        values = random.standard_normal(shape, dtype=np.float32)
        made[name] = ("BF16", shape, (values.view(np.uint32) >> 16).astype("<u2").tobytes())
    return made


# GGUF, from the description of the container alone.


def gguf_string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def gguf_pair(key: str | bytes, kind: int, data: bytes) -> bytes:
    return gguf_string(key) + struct.pack("<I", kind) + data


def gguf_record(name: str | bytes, dims: tuple[int, ...], kind: int, offset: int) -> bytes:
    """dims in ggml's order, columns first."""
    return gguf_string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def gguf_bytes(
    pairs: Iterable[bytes] = (),
    records: Iterable[bytes] = (),
    data: bytes = b"",
    *,
    version: int = 3,
    alignment: int = 32,
    pair_count: int | None = None,
    record_count: int | None = None,
) -> bytes:
    pairs, records = list(pairs), list(records)
    counts = (len(records) if record_count is None else record_count, len(pairs) if pair_count is None else pair_count)
    head = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join(pairs) + b"".join(records)
    return head + b"\0" * (-len(head) % alignment) + data


def many_gguf(path: Path, n: int, vocabulary: int = 0) -> Path:
    """A GGUF of n tensors F16 [2, 32], and a vocabulary of that many tokens with scores."""
    size = MANY_ROWS * MANY_COLUMNS * 2
    records = [gguf_record(name, (MANY_COLUMNS, MANY_ROWS), 1, i * size) for i, name in enumerate(model_names(n))]
    tokens = b"".join(gguf_string(f"▁token{i}") for i in range(vocabulary))
    pairs = [
        gguf_pair("general.architecture", 8, gguf_string("llama")),
        gguf_pair("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, vocabulary) + tokens),
        gguf_pair("tokenizer.ggml.scores", 9, struct.pack("<IQ", 6, vocabulary) + b"\0\0\0\0" * vocabulary),
    ]
    path.write_bytes(gguf_bytes(pairs, records, bytes(n * size)))
    return path
