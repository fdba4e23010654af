"""`tokenizer.ggml.pre`: how a text is cut before BPE merges, recognised by the rules in tokenizer.json themselves.

The names and what they stand for are facts of llama.cpp (llama-vocab.cpp); one that is not recognised becomes "default"
with a note, because wrong cuts make other tokens than the model was trained on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_MARKS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_MARKS_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_WORD = r"[^\r\n\p{L}\p{N}]?"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# Real tokenizers nest once.
_MAX_DEPTH = 8

# Rules as pieces of the steps; see `_signature`.
Signature = tuple[str, ...]

_LLAMA3 = rf"{_CONTRACTIONS}|{_WORD}\p{{L}}+|\p{{N}}{{1,3}}|{_MARKS}|{_TAIL}"
_O200K_CONTRACTIONS = f"{_CONTRACTIONS}?"

_KNOWN: dict[Signature, str] = {
    ("bytes+gpt2",): "gpt-2",
    (_GPT2, "bytes"): "gpt-2",
    (_LLAMA3, "bytes"): "llama-bpe",
    (rf"{_CONTRACTIONS}|{_WORD}\p{{L}}+|\p{{N}}|{_MARKS}|{_TAIL}", "bytes"): "qwen2",
    (
        rf"{_CONTRACTIONS}|{_WORD}[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_TAIL}",
        "bytes",
    ): "qwen35",
    (
        rf"{_WORD}{_UPPER}*{_LOWER}+|{_WORD}{_UPPER}+{_LOWER}*|\p{{N}}|{_MARKS_SLASH}|{_TAIL}",
        "bytes",
    ): "tekken",
    (
        rf"{_WORD}{_UPPER}*{_LOWER}+{_O200K_CONTRACTIONS}|{_WORD}{_UPPER}+{_LOWER}*{_O200K_CONTRACTIONS}"
        rf"|\p{{N}}{{1,3}}|{_MARKS_SLASH}|{_TAIL}",
        "bytes",
    ): "gpt-4o",
    ("digits", "bytes+gpt2"): "smollm",
    (
        "[\r\n]",
        r"\s?\p{L}+",
        r"\s?\p{P}+",
        "[一-龥ࠀ-一가-퟿]+",
        "digits",
        "bytes",
    ): "deepseek-coder",
    (
        r"\p{N}{1,3}",
        "[一-龥぀-ゟ゠-ヿ]+",
        r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
        rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_TAIL}",
        "bytes",
    ): "deepseek-v3",
}


def pre_name(tokenizer: Mapping[str, Any]) -> tuple[str, str]:
    """The name for `tokenizer.ggml.pre`, and a note where it is a guess or differs in a detail."""
    signature = _signature(tokenizer.get("pre_tokenizer"))
    name = _KNOWN.get(signature)
    if name is None:
        shown = " · ".join(signature)
        text = shown if len(shown) <= 160 else f"{shown[:159]}…"
        return "default", f"the pre-tokenizer is none that is known ({text}): llama.cpp may cut text otherwise"
    model = tokenizer.get("model")
    if name == "llama-bpe" and not (isinstance(model, dict) and model.get("ignore_merges") is True):
        # The same rule without Llama 3's habit of taking whole words from the vocabulary.
        name = "smaug-bpe"
    prefix = any(step.get("add_prefix_space") is True for step in steps(tokenizer.get("pre_tokenizer")))
    return name, "a space is put before every text by this tokenizer, and not by llama.cpp" if prefix else ""


def steps(part: Any, depth: int = 0) -> list[dict[str, Any]]:
    """A pre-tokenizer, decoder or normalizer as the list of its steps, sequences unrolled; [] for none."""
    if not isinstance(part, dict):
        return []
    for key in ("pretokenizers", "decoders", "normalizers"):
        inner = part.get(key)
        if part.get("type") == "Sequence" and isinstance(inner, list) and depth < _MAX_DEPTH:
            return [step for entry in inner for step in steps(entry, depth + 1)]
    return [part]


def _signature(pre: Any) -> Signature:
    """What each step does: the pattern of a split, "digits", "bytes" with or without GPT-2's pattern, or its type."""
    found = []
    for step in steps(pre):
        kind = step.get("type")
        if kind == "Split":
            pattern = step.get("pattern")
            regex = pattern.get("Regex") if isinstance(pattern, dict) else None
            # Two ways of saying that what the pattern matches are the pieces.
            way = (step.get("behavior"), step.get("invert") is True)
            pieces = way in (("Isolated", False), ("Removed", True))
            found.append(regex if isinstance(regex, str) and pieces else "a split of another kind")
        elif kind == "Digits":
            found.append("digits" if step.get("individual_digits") is True else "runs of digits")
        elif kind == "ByteLevel":
            found.append("bytes" if step.get("use_regex") is False else "bytes+gpt2")
        else:
            found.append(str(kind))
    return tuple(found)
