"""Beginnings and ends: the ids of special tokens, whether they are put around a text, and chat templates. Said in up to
five files; who wins is stated here once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.checkpoints.gguf import Value, ValueType
from core.targets.gguf.pretokenizers import steps
from core.targets.gguf.tokens import Tokens
from core.targets.sides import side_file, side_json

# Kind → the key's stem in a GGUF ("seperator" is how it is spelt there).
_KEYS = {
    "bos": "bos",
    "eos": "eos",
    "unk": "unknown",
    "sep": "seperator",
    "pad": "padding",
    "cls": "cls",
    "mask": "mask",
}
_ADDABLE = ("bos", "eos", "sep")


@dataclass(frozen=True)
class TokenizerFiles:
    """What is said in the folder. Tables are {} where the file is missing.

    tokenizer  tokenizer.json
    settings   tokenizer_config.json
    ids        config.json's entries that end in _token_id, the first of several
    """

    folder: Path
    tokenizer: Mapping[str, Any]
    settings: Mapping[str, Any]
    ids: Mapping[str, int | None]


def pairs(files: TokenizerFiles, tokens: Tokens, notes: list[str]) -> list[tuple[str, Value]]:
    """Special ids, what is added around a text, chat templates."""
    found = []
    ids = _ids(files, tokens, notes)
    for kind, number in ids.items():
        found.append((f"tokenizer.ggml.{_KEYS[kind]}_token_id", Value.of(ValueType.UINT32, number)))
    for kind, flag in _adds(files, tokens, ids).items():
        found.append((f"tokenizer.ggml.add_{kind}_token", Value.of(ValueType.BOOL, flag)))
    return found + _templates(files)


def _ids(files: TokenizerFiles, tokens: Tokens, notes: list[str]) -> dict[str, int]:
    """tokenizer_config.json names tokens, config.json ids, the tokenizer knows its own: in this order."""
    by_text: dict[str, int] = {}
    for index, token in enumerate(tokens.texts):
        by_text.setdefault(token, index)
    found: dict[str, int] = {}
    for kind in _KEYS:
        entry = files.settings.get(f"{kind}_token")
        text = entry.get("content") if isinstance(entry, dict) else entry
        number = by_text.get(text) if isinstance(text, str) else None
        if number is None:
            number = files.ids.get(f"{kind}_token_id")
        if number is None or number < 0:
            number = tokens.ids.get(kind)
        if number is None:
            continue
        if number >= len(tokens.texts):
            notes.append(f"{kind}_token_id {number} is beyond the vocabulary of {len(tokens.texts):,} and is left out")
            continue
        found[kind] = number
    return found


def _adds(files: TokenizerFiles, tokens: Tokens, ids: Mapping[str, int]) -> dict[str, bool]:
    """What tokenizer_config.json says outright, else what the post-processor of tokenizer.json does."""
    found = dict(tokens.adds)
    if files.tokenizer:
        found |= {"bos": False, "eos": False}
        for step in _processors(files.tokenizer.get("post_processor")):
            single = step.get("single")
            if step.get("type") == "TemplateProcessing" and isinstance(single, list) and single:
                first, last = _special(single[0]), _special(single[-1])
                found["bos"] = first is not None and _is(first, "bos", tokens, ids)
                found["eos"] = last is not None and len(single) > 1 and _is(last, "eos", tokens, ids)
            elif step.get("type") in ("BertProcessing", "RobertaProcessing"):
                found |= {"bos": True, "eos": True}
    for kind in _ADDABLE:
        said = files.settings.get(f"add_{kind}_token")
        if isinstance(said, bool):
            found[kind] = said
    return {kind: flag for kind, flag in found.items() if kind in ids or not flag}


def _processors(post: Any) -> list[dict[str, Any]]:
    inner = post.get("processors") if isinstance(post, dict) else None
    if isinstance(inner, list):
        return [step for step in inner if isinstance(step, dict)]
    return steps(post)


def _special(entry: Any) -> str | None:
    token = entry.get("SpecialToken") if isinstance(entry, dict) else None
    text = token.get("id") if isinstance(token, dict) else None
    return text if isinstance(text, str) else None


def _is(text: str, kind: str, tokens: Tokens, ids: Mapping[str, int]) -> bool:
    number = ids.get(kind)
    return number is not None and tokens.texts[number] == text


def _templates(files: TokenizerFiles) -> list[tuple[str, Value]]:
    """Chat templates: chat_template.jinja, else tokenizer_config.json, else chat_template.json; named ones beside."""
    named: dict[str, str] = {}
    jinja = side_file(files.folder, "chat_template.jinja")
    if jinja is not None:
        named["default"] = jinja.decode("utf-8", "replace")
        extra = files.folder / "additional_chat_templates"
        for name in sorted(os.listdir(extra)) if extra.is_dir() else ():
            content = side_file(files.folder, f"{extra.name}/{name}") if name.endswith(".jinja") else None
            if content is not None:
                named[name.removesuffix(".jinja")] = content.decode("utf-8", "replace")
    else:
        given = files.settings.get("chat_template")
        if given is None:
            given = side_json(files.folder, "chat_template.json").get("chat_template")
        if isinstance(given, str):
            named["default"] = given
        for entry in given if isinstance(given, list) else ():
            if isinstance(entry, dict) and isinstance(entry.get("template"), str):
                named[str(entry.get("name", "default"))] = entry["template"]
    return _template_pairs({name: text for name, text in named.items() if text})


def _template_pairs(named: Mapping[str, str]) -> list[tuple[str, Value]]:
    others = {n: t for n, t in named.items() if n != "default" and n.replace("_", "").isalnum() and n.isascii()}
    found = [(f"tokenizer.chat_template.{name}", Value.of(ValueType.STRING, text)) for name, text in others.items()]
    if others:
        names = Value.of(ValueType.ARRAY, list(others), ValueType.STRING)
        found.insert(0, ("tokenizer.chat_templates", names))
    if "default" in named:
        found.append(("tokenizer.chat_template", Value.of(ValueType.STRING, named["default"])))
    return found
