"""A vocabulary on its way into a GGUF: texts, types, scores, merges by token id."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any

from core.errors import CorruptFile

# No vocabulary comes near; an id beyond it is a broken file.
MAX_TOKENS = 1 << 23

# Values of `tokenizer.ggml.model` whose tokens have scores: SentencePiece's BPE and Unigram.
SCORED = ("llama", "t5")


class TokenType(IntEnum):
    """Numbers of llama.cpp, and of SentencePiece."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass
class Tokens:
    """model, pre  `tokenizer.ggml.model` and `.pre`
    texts, types, scores  one per id; scores only for the models in SCORED
    flags          further `tokenizer.ggml.*` switches
    ids            special tokens that the tokenizer itself knows ("bos" → 1)
    adds           what it puts around a text ("bos" → True)
    charsmap       SentencePiece's compiled map of characters, which Unigram applies to texts
    """

    model: str
    pre: str = "default"
    texts: list[str] = field(default_factory=list)
    types: list[TokenType] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    merges: list[str] = field(default_factory=list)
    flags: dict[str, bool] = field(default_factory=dict)
    ids: dict[str, int] = field(default_factory=dict)
    adds: dict[str, bool] = field(default_factory=dict)
    charsmap: bytes = b""

    def add(self, text: str, type: TokenType, score: float) -> None:
        self.texts.append(text)
        self.types.append(type)
        if self.model in SCORED:
            self.scores.append(score)

    def cut(self, size: int) -> Tokens:
        return replace(self, texts=self.texts[:size], types=self.types[:size], scores=self.scores[:size])


@dataclass(frozen=True, slots=True)
class Added:
    """A token beyond the trained vocabulary."""

    text: str
    special: bool

    @property
    def type(self) -> TokenType:
        """Texts that look like markup are control tokens even where the file does not call them special: llama.cpp's
        own converter takes them so, and its programs look for them."""
        marked = self.text.startswith(("<|", "<｜")) and self.text.endswith(("|>", "｜>"))
        return TokenType.CONTROL if self.special or marked else TokenType.USER_DEFINED


def added_tokens(tokenizer: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[int, Added]:
    """By id, from tokenizer.json and, where that is silent, tokenizer_config.json. Raises CorruptFile."""
    found: dict[int, Added] = {}
    decoder = settings.get("added_tokens_decoder")
    for key, entry in decoder.items() if isinstance(decoder, dict) else ():
        if isinstance(entry, dict) and isinstance(entry.get("content"), str) and str(key).isdecimal():
            found[checked_id(int(key[:12]))] = Added(entry["content"], entry.get("special") is True)
    listed = tokenizer.get("added_tokens")
    for entry in listed if isinstance(listed, list) else ():
        if isinstance(entry, dict) and isinstance(entry.get("content"), str):
            found[checked_id(entry.get("id"))] = Added(entry["content"], entry.get("special") is True)
    return found


def checked_id(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < MAX_TOKENS:
        raise CorruptFile(f"the tokenizer has a token with the id {value!r}")
    return value
