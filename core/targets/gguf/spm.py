"""SentencePiece vocabularies: tokenizer.model, read as the protocol buffer it is, and tokenizer.json with byte
fallback.

Only what llama.cpp uses is read: pieces, scores, types, special ids, and what is done to spaces and characters.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

from core.errors import CorruptFile
from core.targets.gguf.pretokenizers import steps
from core.targets.gguf.special import TokenizerFiles
from core.targets.gguf.tokens import Added, Tokens, TokenType, added_tokens, checked_id
from core.targets.sides import side_json

UNUSED_SCORE = -10000.0
_ADDED_SCORE = -1000.0
_VARINT, _I64, _BYTES, _I32 = 0, 1, 2, 5
# Types that an entry among the added tokens does not change: <unk> stays unknown, <0x0A> a byte.
_FIXED = (TokenType.UNKNOWN, TokenType.CONTROL, TokenType.BYTE)
# Field numbers of sentencepiece_model.proto.
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_UNIGRAM, _BPE = 1, 2


def tokens(data: bytes, files: TokenizerFiles, notes: list[str]) -> Tokens:
    """Of tokenizer.model. Raises CorruptFile when it is no such file, or not of the BPE kind."""
    made = Tokens("llama")
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    for number, value in _fields(data):
        if number == _PIECES:
            _add_piece(made, dict(_fields(_bytes(value))))
        elif number == _TRAINER:
            trainer = dict(_fields(_bytes(value)))
        elif number == _NORMALIZER:
            normalizer = dict(_fields(_bytes(value)))
    if not made.texts:
        raise CorruptFile("no pieces in it", where=files.folder / "tokenizer.model")
    if trainer.get(3, 1) == _UNIGRAM and not trainer.get(35):
        made.model = "t5"
        made.charsmap = _bytes(normalizer.get(2, b""))
        made.flags["remove_extra_whitespaces"] = bool(normalizer.get(4, 1))
    elif trainer.get(3, 1) != _BPE:
        # llama.cpp's Unigram knows no bytes.
        notes.append("tokenizer.model is not of the BPE kind: llama.cpp cuts text into the same pieces only mostly")
    if made.model == "llama" and normalizer.get(2):
        notes.append("tokenizer.model maps characters to others first, which llama.cpp does not do for this kind")
    ids = {"unk": trainer.get(40, 0), "bos": trainer.get(41, 1), "eos": trainer.get(42, 2), "pad": trainer.get(43, -1)}
    made.ids = {kind: _signed(number) for kind, number in ids.items() if 0 <= _signed(number) < len(made.texts)}
    made.adds = {"bos": True, "eos": False}
    prefix = files.settings.get("add_prefix_space")
    made.flags["add_space_prefix"] = prefix if isinstance(prefix, bool) else bool(normalizer.get(3, 1))
    found = added_tokens(files.tokenizer, files.settings)
    for text, number in side_json(files.folder, "added_tokens.json").items():
        found.setdefault(checked_id(number), Added(text, False))
    override(made, found)
    return made


def tokens_of_json(files: TokenizerFiles, notes: list[str]) -> Tokens:
    """Of a tokenizer.json whose BPE falls back to bytes: the same kind, with scores made from the order of merges."""
    model = files.tokenizer["model"]
    vocab, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocab, dict) or not isinstance(merges, list):
        raise CorruptFile("tokenizer.json has no vocabulary or merges", where=files.folder)
    rank: dict[str, int] = {}
    for order, merge in enumerate(merges):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise CorruptFile(f"{str(merge)[:40]!r} is no merge of two tokens", where=files.folder)
        rank.setdefault("".join(pair), order)
    by_id = {checked_id(number): text for text, number in vocab.items()}
    unknown = model.get("unk_token")
    made = Tokens("llama")
    for number in range(max(by_id, default=-1) + 1):
        text = by_id.get(number)
        if text is None:
            made.add(f"[PAD{number}]", TokenType.UNUSED, UNUSED_SCORE)
        elif text == unknown:
            made.add(text, TokenType.UNKNOWN, 0.0)
            made.ids["unk"] = number
        elif _byte_token(text):
            made.add(text, TokenType.BYTE, 0.0)
        else:
            # No merge makes it: a single character, never weighed against another.
            made.add(text, TokenType.NORMAL, -float(rank.get(text, len(merges))))
    made.adds = {"bos": False, "eos": False}
    made.flags["add_space_prefix"] = space_prefix(files)
    override(made, added_tokens(files.tokenizer, files.settings))
    if not any(t == TokenType.BYTE for t in made.types):
        raise CorruptFile("tokenizer.json falls back to bytes and has no tokens for them", where=files.folder)
    return made


def space_prefix(files: TokenizerFiles) -> bool:
    """Whether tokenizer.json puts a space in front of a text."""
    for step in steps(files.tokenizer.get("normalizer")):
        if step.get("type") == "Prepend":
            return True
    for step in steps(files.tokenizer.get("pre_tokenizer")):
        if step.get("type") == "Metaspace":
            scheme = step.get("prepend_scheme")
            return scheme != "never" if isinstance(scheme, str) else step.get("add_prefix_space") is not False
    return False


def override(made: Tokens, added: dict[int, Added]) -> None:
    """Tokens that were added after training, inside the vocabulary or behind it."""
    for number in sorted(added):
        token = added[number]
        while len(made.texts) <= number:
            made.add(f"[PAD{len(made.texts)}]", TokenType.UNUSED, UNUSED_SCORE)
        text = token.text if token.type == TokenType.CONTROL else token.text.replace("▁", " ")
        if made.types[number] in _FIXED and made.texts[number] == token.text:
            continue
        made.texts[number], made.types[number] = text, token.type
        made.scores[number] = _ADDED_SCORE


def _add_piece(made: Tokens, piece: dict[int, Any]) -> None:
    try:
        text = _bytes(piece.get(1, b"")).decode("utf-8")
        kind = TokenType(piece.get(3, 1))
    except (UnicodeDecodeError, ValueError) as exc:
        raise CorruptFile(f"piece {len(made.texts)} is broken ({exc})") from None
    score = piece.get(2, b"\0\0\0\0")
    if not isinstance(score, bytes) or len(score) != 4:
        raise CorruptFile(f"piece {len(made.texts)} has a score that is no 32-bit float")
    made.add(text, kind, struct.unpack("<f", score)[0])


def _byte_token(text: str) -> bool:
    return len(text) == 6 and text.startswith("<0x") and text.endswith(">")


def _bytes(value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise CorruptFile("a field is a number where text is expected")
    return value


def _signed(number: Any) -> int:
    """Negative numbers are stored as 64-bit two's complement."""
    value = number if isinstance(number, int) else -1
    return value - (1 << 64) if value >= 1 << 63 else value


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field number and value of each field of one message: an int, or bytes for everything else. Raises CorruptFile."""
    at, end = 0, len(data)
    while at < end:
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if kind == _BYTES:
            size, at = _varint(data, at)
        elif kind in (_I32, _I64):
            size = 4 if kind == _I32 else 8
        else:
            raise CorruptFile(f"wire type {kind} at byte {at}", offset=at)
        if at + size > end:
            raise CorruptFile(f"a field reaches beyond the end at byte {at}", offset=at)
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at
    raise CorruptFile(f"a number is cut off at byte {at}", offset=at)
