"""A Hugging Face folder as the tensors and key-values of a GGUF. What differs between models is in architectures.py,
finding the tensors in names.py, the vocabulary in tokenizer.py."""

from __future__ import annotations

from pathlib import Path

from core.checkpoints.base import Checkpoint
from core.checkpoints.gguf import Value
from core.errors import TargetError
from core.roles import role_of
from core.targets.base import Outline, OutputTensor
from core.targets.gguf import card, names, nvfp4
from core.targets.gguf.architectures import ARCHITECTURES, BY_CLASS
from core.targets.gguf.hyper import Hyper
from core.targets.gguf.keys import text, u32
from core.targets.gguf.names import Model
from core.targets.gguf.tokenizer import Vocabulary, vocabulary


def outline(checkpoint: Checkpoint) -> Outline:
    """Output tensors: embedding, layers in order, final norm, head, computed ones.

    raises  TargetError: no config.json, an unknown architecture, tensors that are missing, unknown or of
            the wrong shape
    """
    model = _model(checkpoint)
    notes = [*model.arch.check(model.hyper)]
    found = names.find(model)
    made = [*found.tensors]
    eights = sum(t.dtype.startswith("F8_") for t in made)
    if eights:
        notes.append(f"{eights} tensors of 8-bit floats become bf16 where they are kept: GGUF has no such type")
    if model.tied and model.head is None and model.hyper.get("tie_word_embeddings") is False:
        notes.append("there is no lm_head.weight: the embedding serves as head, though config.json does not tie them")
    notes += _vocabulary(model).notes
    for extra in model.arch.computed(model.hyper):
        made.append(OutputTensor(extra.name, extra.source, extra.shape, "F32", role_of(extra.name), linear=False))
    shape = {key: value.value for key, value in model.arch.pairs(model.hyper)}
    return Outline(
        tuple(nvfp4.marked(made, model.arch.name)),
        found.dropped,
        arch=model.arch.name,
        layers=shape["block_count"],
        heads=shape["attention.head_count"],
        kv_heads=shape["attention.head_count_kv"],
        experts=shape.get("expert_count", 0),
        tied=model.tied,
        notes=tuple(notes),
    )


def places(checkpoint: Checkpoint) -> names.Found:
    """Where each tensor of a model is in a GGUF of it, whatever its vocabulary. raises as `outline` does"""
    return names.find(_model(checkpoint))


def computed(checkpoint: Checkpoint) -> frozenset[str]:
    """Names of a GGUF's tensors that come from config.json alone."""
    model = _model(checkpoint)
    return frozenset(extra.name for extra in model.arch.computed(model.hyper))


def pairs(checkpoint: Checkpoint, outline: Outline) -> list[tuple[str, Value]]:
    """Key-values but for file type and quantization version."""
    model = _model(checkpoint)
    arch = model.arch.name
    each = zip(outline.kinds.first, outline.kinds.counts(), strict=True)
    weights = sum(outline.tensors[i].numel * count for i, count in each if outline.tensors[i].source.names())
    found = [("general.architecture", text(arch)), ("general.type", text("model"))]
    name = model_name(checkpoint.path)
    if name:
        found.append(("general.name", text(name)))
    found.append(("general.size_label", text(size_label(weights))))
    found += card.pairs(checkpoint.folder())
    for key, value in model.arch.pairs(model.hyper):
        found.append((key if key.startswith("tokenizer.") else f"{arch}.{key}", value))
    # Read where there is no tokenizer.
    found.append((f"{arch}.vocab_size", u32(model.vocabulary)))
    found += _vocabulary(model).pairs
    return found


def _vocabulary(model: Model) -> Vocabulary:
    # The ids of special tokens stand outside, whatever holds the language model's settings.
    config = {**model.hyper.config, **(model.checkpoint.config or {})}
    return vocabulary(model.checkpoint.folder(), model.vocabulary, config)


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


def _model(checkpoint: Checkpoint) -> Model:
    config = checkpoint.config
    if config is None:
        raise TargetError(
            "a weights file alone does not say which architecture it is, and GGUF needs that",
            "open the model's folder with its config.json, or write compressed-tensors or dense",
            checkpoint.path,
        )
    given = config.get("architectures")
    classes = [str(c) for c in given] if isinstance(given, list) else []
    arch = next((BY_CLASS[c] for c in classes if c in BY_CLASS), None)
    if arch is None:
        raise _unknown(classes, checkpoint.path)
    inner = config.get(arch.inner) if arch.inner else None
    own = inner if isinstance(inner, dict) else config
    return Model(checkpoint, arch, Hyper(own, checkpoint.path, arch.aliases, arch.defaults))


def _unknown(classes: list[str], path: Path) -> TargetError:
    hint = "convert it with llama.cpp and open the GGUF, or write compressed-tensors or dense"
    known = ", ".join(dict.fromkeys(arch.name for arch in ARCHITECTURES))
    if not classes:
        return TargetError(f"config.json names no architecture; known in GGUF: {known}", hint, path)
    what = f"architecture {', '.join(classes)[:100]} is not converted to GGUF here"
    return TargetError(f"{what}; known: {known}", hint, path)
