"""Unigram vocabularies of a tokenizer.json: pieces with scores, T5's and XLM-R's. A tokenizer.model of this kind is
read in spm.py."""

from __future__ import annotations

import base64
import binascii

from core.errors import CorruptFile
from core.targets.gguf.pretokenizers import steps
from core.targets.gguf.special import TokenizerFiles
from core.targets.gguf.spm import override, space_prefix
from core.targets.gguf.tokens import Tokens, TokenType, added_tokens

# What a 32-bit float holds.
_MAX_SCORE = 3e38


def tokens(files: TokenizerFiles, notes: list[str]) -> Tokens:
    """Raises CorruptFile."""
    model = files.tokenizer["model"]
    vocab = model.get("vocab")
    if not isinstance(vocab, list):
        raise CorruptFile("tokenizer.json has no vocabulary", where=files.folder)
    made = Tokens("t5")
    unknown = model.get("unk_id")
    for number, entry in enumerate(vocab):
        text, score = entry if isinstance(entry, list) and len(entry) == 2 else (None, None)
        scored = isinstance(score, int | float) and not isinstance(score, bool) and abs(score) < _MAX_SCORE
        if not isinstance(text, str) or not scored:
            raise CorruptFile(f"entry {number} of the vocabulary is no piece with a score", where=files.folder)
        made.add(text, TokenType.UNKNOWN if number == unknown else TokenType.NORMAL, float(score or 0))
    if isinstance(unknown, int) and 0 <= unknown < len(made.texts):
        made.ids["unk"] = unknown
    made.adds = {"bos": False, "eos": False}
    made.flags["add_space_prefix"] = space_prefix(files)
    made.flags["remove_extra_whitespaces"] = _squeezes(files, made, notes)
    if model.get("byte_fallback") is True:
        notes.append("characters without a piece become bytes by this tokenizer, and the unknown token by llama.cpp")
    override(made, added_tokens(files.tokenizer, files.settings))
    return made


def _squeezes(files: TokenizerFiles, made: Tokens, notes: list[str]) -> bool:
    """The normalizer's map of characters; whether it makes one space of several."""
    squeezes = False
    for step in steps(files.tokenizer.get("normalizer")):
        kind = step.get("type")
        if kind == "Precompiled":
            try:
                made.charsmap = base64.b64decode(str(step.get("precompiled_charsmap") or ""), validate=True)
            except (binascii.Error, ValueError) as exc:
                raise CorruptFile(f"precompiled_charsmap is no base64 ({exc})", where=files.folder) from None
        elif kind == "Replace" and step.get("pattern") == {"Regex": " {2,}"}:
            squeezes = True
        elif kind not in ("Strip", "Replace", "Prepend"):
            notes.append(f"the normalizer {kind} is not carried over: llama.cpp takes text as it is")
    if any(s.get("type") == "WhitespaceSplit" for s in steps(files.tokenizer.get("pre_tokenizer"))):
        if not made.charsmap:
            notes.append("line breaks and tabs are spaces to this tokenizer, and characters to llama.cpp")
        return True  # splitting leaves no empty words
    return squeezes
