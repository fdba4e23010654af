"""The small files beside the weights: which of them belong to a model, and reading them safely. Nothing outside the
checkpoint's folder is read."""

from __future__ import annotations

import os
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from core.checkpoints.base import Checkpoint
from core.checkpoints.huggingface import CONFIG, inside
from core.checkpoints.jsontext import parse_object
from core.checkpoints.mapped import read_small
from core.errors import CheckpointError

# Real tokenizers stay below 40 MB.
MAX_BYTES = 256 << 20

# What goes over into a folder that holds the same model in other numbers. config.json is written by the target.
_CARRIED = (
    "tokenizer*.json",
    "tokenizer.model*",
    "*.tiktoken",
    "tekken.json",
    "spiece.model",
    "sentencepiece*.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "generation_config.json",
    "chat_template.json",
    "chat_template.jinja",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "configuration_*.py",
    "modeling_*.py",
    "tokenization_*.py",
    "LICENSE*",
    "NOTICE*",
)
_TEMPLATES = "additional_chat_templates"


def carried(checkpoint: Checkpoint) -> dict[str, bytes]:
    """Tokenizer, generation and licence files of a Hugging Face folder by name, sorted; {} for anything else.

    raises  CheckpointError for a file that cannot be read, is too large, or is a link out of the folder
    """
    if checkpoint.kind != "huggingface":
        return {}
    folder = checkpoint.folder()
    names = [name for name in _listing(folder) if any(fnmatchcase(name, pattern) for pattern in _CARRIED)]
    templates = [f"{_TEMPLATES}/{name}" for name in _listing(folder / _TEMPLATES) if name.endswith(".jinja")]
    found = {}
    for name in [*names, *templates]:
        path = inside(folder, name, folder)
        # Empty merges and licences exist; they say nothing.
        if path.is_file() and path.stat().st_size:
            found[name] = read_small(path, MAX_BYTES, "a file beside the weights")
    return found


def side_file(folder: Path, name: str) -> bytes | None:
    """The bytes of a file in the folder, or None when it is not there or empty. Raises CheckpointError."""
    path = folder / name
    if not os.path.lexists(path):
        return None
    path = inside(folder, name, folder)
    if path.is_file() and not path.stat().st_size:
        return None
    return read_small(path, MAX_BYTES, name)


def side_json(folder: Path, name: str) -> dict[str, Any]:
    """The JSON object in a file of the folder, {} when there is none. Raises CheckpointError, CorruptFile."""
    data = side_file(folder, name)
    return {} if data is None else parse_object(data, folder / name, name)


def config_bytes(checkpoint: Checkpoint) -> bytes:
    """config.json as it stands in the folder."""
    folder = checkpoint.folder()
    return read_small(inside(folder, CONFIG, folder), MAX_BYTES, CONFIG)


def _listing(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as exc:
        raise CheckpointError(f"the folder cannot be read ({exc.strerror})", where=folder) from exc
