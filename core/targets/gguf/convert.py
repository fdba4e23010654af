"""A Hugging Face folder as the tensors and key-values of a GGUF. What differs between models is in architectures.py,
the vocabulary in tokenizer.py."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from core.checkpoints.base import Checkpoint
from core.checkpoints.gguf import Value
from core.errors import TargetError
from core.roles import role_of
from core.targets.base import Outline, OutputTensor, Plain, RowSource
from core.targets.gguf.architectures import ARCHITECTURES, Architecture, head_dim, kv_heads, sizes, text
from core.targets.gguf.hyper import Hyper
from core.targets.gguf.rows import Interleaved
from core.targets.gguf.tokenizer import vocabulary
from core.targets.plain import real
from core.tensors import TensorInfo

_INNER = re.compile(r"model\.layers\.(\d+)\.(.+)")
_KINDS = (".weight", ".bias")
_EMBEDDING = "model.embed_tokens.weight"
_HEAD = "lm_head.weight"
_NOT_LINEAR = frozenset({"norm", "bias", "embedding"})


@dataclass(frozen=True)
class _Model:
    """A checkpoint with its architecture and config."""

    checkpoint: Checkpoint
    arch: Architecture
    hyper: Hyper

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding: what llama.cpp takes for the size of the vocabulary."""
        embedding = self.checkpoint.tensors.get(_EMBEDDING)
        if embedding is None or len(embedding.shape) != 2 or not embedding.shape[0]:
            raise TargetError(f"{_EMBEDDING} is missing or no matrix", "is a shard missing?", self.checkpoint.path)
        return embedding.shape[0]

    @property
    def tied(self) -> bool:
        """No head of its own in the GGUF: the config ties it, its storage is the embedding's, or there is none."""
        head = self.checkpoint.tensors.get(_HEAD)
        return head is None or bool(head.alias) or self.hyper.flag("tie_word_embeddings")


def outline(checkpoint: Checkpoint) -> Outline:
    """Output tensors: embedding, layers in order, final norm, head, computed ones.

    raises  TargetError: no config.json, an unknown architecture, tensors that are missing, unknown or of
            the wrong shape
    """
    model = _model(checkpoint)
    notes = [*model.arch.check(model.hyper)]
    made, dropped = _tensors(model)
    _check_complete(model, made)
    eights = sum(t.dtype.startswith("F8_") for t in made)
    if eights:
        notes.append(f"{eights} tensors of 8-bit floats become bf16 where they are kept: GGUF has no such type")
    if model.tied and _HEAD not in checkpoint.tensors and model.hyper.config.get("tie_word_embeddings") is False:
        notes.append("there is no lm_head.weight: the embedding serves as head, though config.json does not tie them")
    notes += vocabulary(checkpoint.folder(), model.vocabulary, model.hyper.config).notes
    for extra in model.arch.computed(model.hyper):
        made.append(OutputTensor(extra.name, extra.source, extra.shape, "F32", role_of(extra.name), linear=False))
    return Outline(
        tuple(made),
        dropped,
        arch=model.arch.name,
        layers=model.hyper.whole("num_hidden_layers"),
        heads=model.hyper.whole("num_attention_heads"),
        kv_heads=kv_heads(model.hyper),
        tied=model.tied,
        notes=tuple(notes),
    )


def pairs(checkpoint: Checkpoint, outline: Outline) -> list[tuple[str, Value]]:
    """Key-values but for file type and quantization version."""
    model = _model(checkpoint)
    arch = model.arch.name
    weights = sum(t.numel for t in outline.tensors if t.source.names())
    found = [("general.architecture", text(arch)), ("general.type", text("model"))]
    name = model_name(checkpoint.path)
    if name:
        found.append(("general.name", text(name)))
    found.append(("general.size_label", text(size_label(weights))))
    found += [(f"{arch}.{key}", value) for key, value in model.arch.pairs(model.hyper, model.vocabulary)]
    found += vocabulary(checkpoint.folder(), model.vocabulary, model.hyper.config).pairs
    return found


def size_label(weights: int) -> str:
    """ "8.0B", "135M": at least two digits. source: the naming convention of GGUF files"""
    for step, suffix in ((1e-12, "T"), (1e-9, "B"), (1e-6, "M"), (1e-3, "K")):
        scaled = weights * step
        if scaled > 1 or suffix == "K":
            break
    digits = len(str(round(scaled)).lstrip("0"))
    return f"{scaled:.{max(2 - digits, 0)}f}{suffix}"


def model_name(path: Path) -> str:
    """The folder's name; in a download cache that of the repository. "" when the text could not be stored."""
    path = path.resolve()
    if path.parent.name == "snapshots":
        name = path.parent.parent.name.rpartition("--")[2]
    else:
        name = path.name
    return name if name.isprintable() else ""


def _model(checkpoint: Checkpoint) -> _Model:
    config = checkpoint.config
    if config is None:
        raise TargetError(
            "a weights file alone does not say which architecture it is, and GGUF needs that",
            "open the model's folder with its config.json, or write compressed-tensors or dense",
            checkpoint.path,
        )
    given = config.get("architectures")
    classes = [str(c) for c in given] if isinstance(given, list) else []
    for arch in ARCHITECTURES:
        if any(c in arch.classes for c in classes):
            return _Model(checkpoint, arch, Hyper(config, checkpoint.path))
    known = ", ".join(c for arch in ARCHITECTURES for c in arch.classes)
    what = (
        f"architecture {', '.join(classes)[:100]} is not converted" if classes else "config.json names no architecture"
    )
    raise TargetError(
        f"{what} to GGUF here; known: {known}",
        "convert it with llama.cpp and open the GGUF, or write compressed-tensors or dense",
        checkpoint.path,
    )


def _tensors(model: _Model) -> tuple[list[OutputTensor], dict[str, str]]:
    """Output tensors in order, and the checkpoint tensors without a place."""
    made: list[tuple[tuple[int, int], OutputTensor]] = []
    dropped: dict[str, str] = {}
    layers = model.hyper.whole("num_hidden_layers")
    inner = {stem: i for i, stem in enumerate(model.arch.inner)}
    outer = {stem: i for i, stem in enumerate(model.arch.outer)}
    for info in model.checkpoint.tensors.values():
        name = info.name
        if any(pattern.search(name) for pattern in model.arch.ignored):
            dropped[name] = "llama.cpp computes it"
            continue
        if name == _HEAD and model.tied:
            dropped[name] = "tied to the embedding"
            continue
        kind = next((k for k in _KINDS if name.endswith(k)), "")
        stem = name.removesuffix(kind)
        found = _INNER.fullmatch(stem)
        if kind and found and found.group(2) in inner and int(found.group(1)[:9]) < layers:
            layer, part = int(found.group(1)), found.group(2)
            target = model.arch.inner[part]
            output = _output(model, info, f"blk.{layer}.{target}{kind}", target)
            made.append(((layer + 1, inner[part]), output))
        elif kind and stem in outer:
            # The embedding first, norm and head last.
            place = (0, 0) if name == _EMBEDDING else (layers + 1, outer[stem])
            target = model.arch.outer[stem]
            made.append((place, _output(model, info, f"{target}{kind}", target)))
        else:
            raise TargetError(
                f"has no place in a GGUF of architecture {model.arch.name}",
                "the model is not what its config.json says, or a newer kind of it",
                name,
            )
    made.sort(key=lambda m: m[0])
    return [output for _, output in made], dropped


def _output(model: _Model, info: TensorInfo, name: str, stem: str) -> OutputTensor:
    if not real(info.dtype):
        raise TargetError(f"holds {info.dtype}, where {model.arch.name} has real numbers", where=info.name)
    _check_shape(model, info, stem, vector=name.endswith(".bias"))
    role = role_of(info.name)
    source: RowSource = Plain(info.name)
    which = model.arch.interleaved.get(stem)
    if which is not None:
        source = _interleaved(model, info, which)
    linear = len(info.shape) == 2 and role.kind not in _NOT_LINEAR
    return OutputTensor(name, source, info.shape, info.dtype, role, linear)


def _interleaved(model: _Model, info: TensorInfo, which: str) -> Interleaved:
    heads = model.hyper.whole("num_attention_heads") if which == "heads" else kv_heads(model.hyper)
    if head_dim(model.hyper) % 2:
        raise model.hyper.error(f"head_dim {head_dim(model.hyper)} is odd")
    return Interleaved(info.name, heads, vector=len(info.shape) == 1)


def _check_shape(model: _Model, info: TensorInfo, stem: str, vector: bool) -> None:
    """Raises TargetError when a tensor does not fit the config: llama.cpp would not load it."""
    words = model.arch.shapes[stem]
    known = sizes(model.hyper, model.vocabulary)
    wanted = tuple(known[word] for word in (words[:1] if vector else words))
    if info.shape != wanted:
        raise TargetError(
            f"has shape {_by(info.shape)}, where config.json means {_by(wanted)}",
            "do config.json and weights belong together?",
            info.name,
        )


def _by(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "of a scalar"


def _check_complete(model: _Model, made: Iterable[OutputTensor]) -> None:
    """Everything llama.cpp asks for is there. Raises TargetError."""
    names = {t.name for t in made}
    wanted = {"output_norm.weight": "model.norm.weight"}
    for layer in range(model.hyper.whole("num_hidden_layers")):
        if layer > len(names):
            break  # the first missing one is among those already listed
        for stem, target in model.arch.inner.items():
            if target not in model.arch.optional:
                wanted[f"blk.{layer}.{target}.weight"] = f"model.layers.{layer}.{stem}.weight"
    missing = [source for name, source in wanted.items() if name not in names]
    if missing:
        more = f" and {len(missing) - 1:,} more tensors are" if len(missing) > 1 else " is"
        raise TargetError(f"{missing[0]}{more} missing from the weights", "is a shard missing?", model.checkpoint.path)
