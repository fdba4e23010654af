"""WordPiece vocabularies, BERT's: tokenizer.json or vocab.txt. llama.cpp marks beginnings of words with ▁, where these
files mark continuations with ##."""

from __future__ import annotations

import re

from core.errors import CorruptFile
from core.targets.gguf.pretokenizers import steps
from core.targets.gguf.special import TokenizerFiles
from core.targets.gguf.tokens import Tokens, TokenType, added_tokens, checked_id
from core.targets.sides import side_file

_CONTINUES = "##"
_BEGINS = "▁"
# Medial jamo: what Hangul syllables are taken apart into.
_VOWELS = re.compile("[\u1161-\u1175]")


def tokens(files: TokenizerFiles, notes: list[str]) -> Tokens:
    """Of tokenizer.json. Raises CorruptFile."""
    model = files.tokenizer["model"]
    vocab = model.get("vocab")
    if not isinstance(vocab, dict):
        raise CorruptFile("tokenizer.json has no vocabulary", where=files.folder)
    if model.get("continuing_subword_prefix", _CONTINUES) != _CONTINUES:
        notes.append("pieces inside words are not marked by ##: llama.cpp cuts text otherwise")
    made = _made({checked_id(number): text for text, number in vocab.items()}, files)
    normalizers = steps(files.tokenizer.get("normalizer"))
    bert = next((step for step in normalizers if step.get("type") == "BertNormalizer"), {})
    if not bert or len(normalizers) > 1:
        notes.append("the normalizer is not BERT's alone: llama.cpp may cut text otherwise")
    if [step.get("type") for step in steps(files.tokenizer.get("pre_tokenizer"))] != ["BertPreTokenizer"]:
        notes.append("the pre-tokenizer is not BERT's: llama.cpp may cut text otherwise")
    for key in ("clean_text", "handle_chinese_chars"):
        if bert and bert.get(key) is not True:
            notes.append(f"the normalizer's {key} is off, and llama.cpp always does it")
    _normalizes(made, bert.get("lowercase") is not False, bert.get("strip_accents"))
    if made.flags["normalizer.strip_accents"] and any(_VOWELS.search(text) for text in made.texts):
        notes.append("llama.cpp takes the vowels of Korean for accents and drops them")
    return made


def tokens_of_text_file(files: TokenizerFiles) -> Tokens:
    """Of vocab.txt: a token per line. Raises CorruptFile."""
    lines = (side_file(files.folder, "vocab.txt") or b"").decode("utf-8", "replace").splitlines()
    made = _made(dict(enumerate(lines)), files)
    _normalizes(made, files.settings.get("do_lower_case") is not False, files.settings.get("strip_accents"))
    return made


def _normalizes(made: Tokens, lower: bool, accents: object) -> None:
    """Accents go with the case where nothing is said of them."""
    made.flags["normalizer.lowercase"] = lower
    made.flags["normalizer.strip_accents"] = accents if isinstance(accents, bool) else lower


def _made(by_id: dict[int, str], files: TokenizerFiles) -> Tokens:
    made = Tokens("bert")
    added = added_tokens(files.tokenizer, files.settings)
    # vocab.txt does not say which are special.
    usual = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
    for number in range(max((*by_id, *added), default=-1) + 1):
        if number in added or by_id.get(number) in usual:
            made.add(added[number].text if number in added else by_id[number], TokenType.CONTROL, 0.0)
        elif number in by_id:
            text = by_id[number]
            inside = text.startswith(_CONTINUES) and len(text) > len(_CONTINUES)
            made.add(text.removeprefix(_CONTINUES) if inside else f"{_BEGINS}{text}", TokenType.NORMAL, 0.0)
        else:
            made.add(f"[PAD{number}]", TokenType.UNUSED, 0.0)
    # llama.cpp puts "bos" and "sep" around a text.
    names = {"bos": "[CLS]", "eos": "[SEP]", "cls": "[CLS]", "sep": "[SEP]", "unk": "[UNK]", "pad": "[PAD]"}
    index = {text: number for number, text in reversed(list(enumerate(made.texts)))}
    made.ids = {kind: index[text] for kind, text in names.items() if text in index}
    made.adds = {"bos": "bos" in made.ids, "eos": "eos" in made.ids}
    return made
