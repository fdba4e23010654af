"""Byte-level BPE vocabularies: tokenizer.json, or vocab.json with merges.txt. How text is split before merging is
recognised in pretokenizers.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.errors import CorruptFile
from core.targets.gguf.pretokenizers import pre_name, steps
from core.targets.gguf.special import TokenizerFiles
from core.targets.gguf.tokens import Tokens, TokenType, added_tokens, checked_id
from core.targets.sides import side_file, side_json


def is_byte_level(tokenizer: Mapping[str, Any]) -> bool:
    """Whether the tokens of a tokenizer.json spell bytes in GPT-2's alphabet."""
    parts = [*steps(tokenizer.get("pre_tokenizer")), *steps(tokenizer.get("decoder"))]
    return any(part.get("type") == "ByteLevel" for part in parts)


def tokens(files: TokenizerFiles, notes: list[str]) -> Tokens:
    """Of tokenizer.json. Raises CorruptFile."""
    model = files.tokenizer["model"]
    vocab = model.get("vocab")
    if not isinstance(vocab, dict):
        raise CorruptFile("tokenizer.json has no vocabulary", where=files.folder)
    pre, why = pre_name(files.tokenizer)
    if why:
        notes.append(why)
    for part in steps(files.tokenizer.get("normalizer")):
        if part.get("type") not in ("NFC",):
            notes.append(f"the normalizer {part.get('type')} is not carried over: llama.cpp takes text as it is")
    made = _made(vocab, model.get("merges"), files)
    made.pre = pre
    return made


def tokens_of_text_files(files: TokenizerFiles, notes: list[str]) -> Tokens:
    """Of vocab.json and merges.txt, GPT-2's files from before tokenizer.json. Raises CorruptFile."""
    vocab = side_json(files.folder, "vocab.json")
    lines = (side_file(files.folder, "merges.txt") or b"").decode("utf-8", "replace").splitlines()
    merges = [line for line in lines if line.strip() and not line.startswith("#version")]
    notes.append("there is no tokenizer.json: the pre-tokenizer is taken to be that of gpt-2")
    made = _made(vocab, merges, files)
    made.pre = "gpt-2"
    return made


def _made(vocab: Mapping[str, Any], merges: Any, files: TokenizerFiles) -> Tokens:
    made = Tokens("gpt2")
    by_id = {checked_id(number): text for text, number in vocab.items()}
    added = added_tokens(files.tokenizer, files.settings)
    made.merges = _merges(merges, files)
    for number in range(max((*by_id, *added), default=-1) + 1):
        if number in added:
            token = added[number]
            text = token.text if token.type == TokenType.CONTROL else token.text.replace("▁", " ")
            made.add(text, token.type, 0.0)
        elif number in by_id:
            made.add(by_id[number], TokenType.NORMAL, 0.0)
        else:
            made.add(f"[PAD{number}]", TokenType.UNUSED, 0.0)
    return made


def _merges(merges: Any, files: TokenizerFiles) -> list[str]:
    """ "left right" each; a space inside a part is written as the byte alphabet writes it."""
    if not isinstance(merges, list):
        raise CorruptFile("tokenizer.json has no list of merges", where=files.folder)
    made = []
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise CorruptFile(f"{str(merge)[:40]!r} is no merge of two tokens", where=files.folder)
        made.append(f"{pair[0].replace(' ', 'Ġ')} {pair[1].replace(' ', 'Ġ')}")
    return made
