"""The vocabulary of a Hugging Face folder as GGUF key-values: which kind of tokenizer there is, and what all
kinds have in common. Byte-level BPE is in bpe.py, SentencePiece in spm.py and unigram.py, WordPiece in wordpiece.py,
special tokens and templates in special.py.

Nothing is run: the files are read as data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from core.checkpoints.gguf import Value, ValueType
from core.checkpoints.mapped import stamp
from core.errors import CorruptFile
from core.targets.gguf import bpe, special, spm, unigram, wordpiece
from core.targets.gguf.tokens import Tokens, TokenType
from core.targets.sides import side_file, side_json

_READ = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "added_tokens.json",
    "special_tokens_map.json",
    "merges.txt",
    "vocab.json",
    "vocab.txt",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates",
)


@dataclass(frozen=True)
class Vocabulary:
    """Key-values in order, and what is worth a line before the run."""

    pairs: tuple[tuple[str, Value], ...]
    notes: tuple[str, ...]


def vocabulary(folder: Path, size: int, config: Mapping[str, Any]) -> Vocabulary:
    """The tokenizer of a folder for an embedding of `size` rows. Remembered until a file changes.

    raises  CheckpointError or CorruptFile for a tokenizer that is there and cannot be read
    """
    stamps = tuple((name, stamp(folder / name)) for name in _READ if (folder / name).exists())
    ids = tuple((key, _first_id(config[key])) for key in sorted(config) if key.endswith("_token_id"))
    return _vocabulary(folder, size, ids, stamps)


def _first_id(value: Any) -> int | None:
    """Of an id, or of several."""
    first = value[0] if isinstance(value, list) and value else value
    return first if isinstance(first, int) and not isinstance(first, bool) else None


@lru_cache(maxsize=4)
def _vocabulary(
    folder: Path, size: int, ids: tuple[tuple[str, int | None], ...], stamps: tuple[object, ...]
) -> Vocabulary:
    files = special.TokenizerFiles(
        folder,
        tokenizer=side_json(folder, "tokenizer.json"),
        settings=side_json(folder, "tokenizer_config.json"),
        ids=dict(ids),
    )
    notes: list[str] = []
    tokens = _tokens(files, notes)
    if tokens is None:
        notes.append("no tokenizer that could be carried over: the GGUF has none, and works on token ids only")
        return Vocabulary((("tokenizer.ggml.model", Value.of(ValueType.STRING, "none")),), tuple(notes))
    tokens = _sized(tokens, size, notes)
    pairs = [
        ("tokenizer.ggml.model", Value.of(ValueType.STRING, tokens.model)),
        ("tokenizer.ggml.pre", Value.of(ValueType.STRING, tokens.pre)),
        ("tokenizer.ggml.tokens", Value.of(ValueType.ARRAY, tokens.texts, ValueType.STRING)),
    ]
    if tokens.scores:
        pairs.append(("tokenizer.ggml.scores", Value.of(ValueType.ARRAY, tokens.scores, ValueType.FLOAT32)))
    types = [int(t) for t in tokens.types]
    pairs.append(("tokenizer.ggml.token_type", Value.of(ValueType.ARRAY, types, ValueType.INT32)))
    if tokens.merges:
        pairs.append(("tokenizer.ggml.merges", Value.of(ValueType.ARRAY, tokens.merges, ValueType.STRING)))
    for key, flag in tokens.flags.items():
        pairs.append((f"tokenizer.ggml.{key}", Value.of(ValueType.BOOL, flag)))
    if tokens.charsmap:
        charsmap = Value.of(ValueType.ARRAY, tokens.charsmap, ValueType.UINT8)
        pairs.append(("tokenizer.ggml.precompiled_charsmap", charsmap))
    pairs += special.pairs(files, tokens, notes)
    return Vocabulary(tuple(pairs), tuple(notes))


def _tokens(files: special.TokenizerFiles, notes: list[str]) -> Tokens | None:
    """The vocabulary by whichever reader understands it; None when there is none, or no counterpart in GGUF."""
    model = files.tokenizer.get("model")
    kind = model.get("type", "BPE") if isinstance(model, dict) else ""
    if isinstance(model, dict) and kind == "BPE" and bpe.is_byte_level(files.tokenizer):
        return bpe.tokens(files, notes)
    if isinstance(model, dict) and kind == "WordPiece":
        return wordpiece.tokens(files, notes)
    sentencepiece = side_file(files.folder, "tokenizer.model")
    if sentencepiece is not None:
        try:
            return spm.tokens(sentencepiece, files, notes)
        except CorruptFile as error:
            if not model:
                raise
            notes.append(f"tokenizer.model is no SentencePiece model ({error.message}); tokenizer.json is taken")
    if isinstance(model, dict) and kind == "BPE" and model.get("byte_fallback"):
        return spm.tokens_of_json(files, notes)
    if isinstance(model, dict) and kind == "Unigram":
        return unigram.tokens(files, notes)
    if model:
        notes.append(f"tokenizer.json holds a tokenizer of type {kind}, which is not carried over")
    elif (files.folder / "vocab.json").exists() and (files.folder / "merges.txt").exists():
        return bpe.tokens_of_text_files(files, notes)
    elif (files.folder / "vocab.txt").exists():
        return wordpiece.tokens_of_text_file(files)
    return None


def _sized(tokens: Tokens, size: int, notes: list[str]) -> Tokens:
    """Exactly one token per row of the embedding."""
    extra = len(tokens.texts) - size
    if extra > 0:
        notes.append(f"{extra:,} tokens beyond the {size:,} rows of the embedding are left out")
        return tokens.cut(size)
    if extra < 0:
        known = set(tokens.texts)
        for number in range(len(tokens.texts), size):
            name = f"[PAD{number}]"
            while name in known:
                name += "_"
            tokens.add(name, TokenType.UNUSED, spm.UNUSED_SCORE)
    return tokens
