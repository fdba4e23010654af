"""What a model says of itself beside its weights, as `general.*` key-values: licence, origin, tags and languages from
the head of its README.md, settings for sampling from generation_config.json.

The head is YAML, of which real cards use little: scalars, and lists of scalars. Only that is read, and what is stranger
is passed over: nothing here is worth stopping a run for.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.checkpoints.gguf import Value, ValueType
from core.errors import CorruptFile
from core.targets.gguf.keys import f32, text, u32
from core.targets.sides import side_file, side_json

_KEY = re.compile(r"([A-Za-z_][\w-]*)\s*:(?:\s+(.*))?$")
_ID = re.compile(r"(?:https?://huggingface\.co/)?([\w.-]+)/([\w.-]+)$")
_MAX_ITEMS = 100
_MAX_CHARACTERS = 1_000
_MAX_LINES = 10_000
_NULLS = ("", "null", "~")
# transformers' word → llama.cpp's, and its kind.
_SAMPLING = {
    "top_k": ("top_k", ValueType.INT32),
    "top_p": ("top_p", ValueType.FLOAT32),
    "min_p": ("min_p", ValueType.FLOAT32),
    "temperature": ("temp", ValueType.FLOAT32),
}


def pairs(folder: Path) -> list[tuple[str, Value]]:
    """Raises CheckpointError for a file that is a link out of the folder or cannot be read."""
    card = front_matter((side_file(folder, "README.md") or b"").decode("utf-8", "replace"))
    found = _sampling(folder)
    for key, name in (("license", "license"), ("license_name", "license.name"), ("license_link", "license.link")):
        if card.get(key):
            found.append((f"general.{name}", text(",".join(card[key]))))
    found += _sources("base_model", card.get("base_model") or card.get("base_models") or [])
    found += _sources("dataset", card.get("datasets") or card.get("dataset") or [])
    for key, words in (("tags", ("tags", "pipeline_tag")), ("languages", ("languages", "language"))):
        items = [item for word in words for item in card.get(word, [])]
        if items:
            found.append((f"general.{key}", Value.of(ValueType.ARRAY, items, ValueType.STRING)))
    return found


def _sampling(folder: Path) -> list[tuple[str, Value]]:
    try:
        given = side_json(folder, "generation_config.json")
    except CorruptFile:
        return []
    found = []
    for key, (name, kind) in _SAMPLING.items():
        value = given.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            continue
        if kind == ValueType.FLOAT32 and abs(value) < 1e6:
            found.append((f"general.sampling.{name}", f32(float(value))))
        elif isinstance(value, int) and 0 <= value < 1 << 31:
            found.append((f"general.sampling.{name}", Value.of(kind, value)))
    return found


def _sources(kind: str, ids: list[str]) -> list[tuple[str, Value]]:
    """Where a model or its data come from. ids: of the Hugging Face hub, or addresses"""
    if not ids:
        return []
    found = [(f"general.{kind}.count", u32(len(ids)))]
    for number, given in enumerate(ids):
        stem = f"general.{kind}.{number}"
        known = _ID.match(given)
        if known:
            owner, name = known.groups()
            found.append((f"{stem}.name", text(title(name))))
            found.append((f"{stem}.organization", text(title(owner))))
            found.append((f"{stem}.repo_url", text(f"https://huggingface.co/{owner}/{name}")))
        elif given.startswith(("https://", "http://")):
            found.append((f"{stem}.repo_url", text(given)))
        else:
            found.append((f"{stem}.name", text(title(given))))
    return found


def title(identifier: str) -> str:
    """ "meta-llama" → "Meta Llama": words that are all small get a capital, but for versions and numbers."""

    def word(part: str) -> str:
        return part if not part.islower() or re.match(r"v\d+(?:\.\d+)*$|\d", part) else part.title()

    return " ".join(word(part) for part in identifier.replace("-", " ").split())


def front_matter(content: str) -> Mapping[str, list[str]]:
    """Scalars and lists of scalars of a README's head, each as a list; {} when there is no head."""
    lines = content.splitlines()[:_MAX_LINES]
    if not lines or lines[0].strip() != "---":
        return {}
    found: dict[str, list[str]] = {}
    key = ""
    for line in lines[1:]:
        if line.strip() == "---":
            break
        named = _KEY.match(line)
        if named:
            key, value = named.group(1), _uncommented(named.group(2) or "")
            inner = value[1:-1].split(",") if value.startswith("[") and value.endswith("]") else [value]
            if value[:1] not in ("|", ">", "{", "&", "*"):
                found[key] = _scalars(inner)
        elif key in found and line.lstrip().startswith("- "):
            found[key] = [*found[key], *_scalars([_uncommented(line.lstrip()[2:])])][:_MAX_ITEMS]
    return {key: items for key, items in found.items() if items}


def _uncommented(value: str) -> str:
    value = value.strip()
    if value[:1] in ("'", '"'):
        end = value.find(value[0], 1)
        return value[: end + 1] if end > 0 else value
    return re.split(r"\s#", value, maxsplit=1)[0].strip() if not value.startswith("#") else ""


def _scalars(items: list[str]) -> list[str]:
    """Without quotes; what is empty, too long, unprintable or a table of its own is passed over."""
    found = []
    for item in items[:_MAX_ITEMS]:
        plain: Any = item.strip()
        quoted = len(plain) > 1 and plain[0] in "'\"" and plain[-1] == plain[0]
        plain = plain[1:-1] if quoted else plain
        table = not quoted and re.match(r"[\w-]+:(\s|$)", plain)
        if plain not in _NULLS and not table and len(plain) <= _MAX_CHARACTERS and plain.isprintable():
            found.append(plain)
    return found
