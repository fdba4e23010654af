"""Vocabularies: llama.cpp must cut texts into the very ids that the folder's own tokenizer gives, and gguf's reading of
the same folder must agree about special tokens."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from core.checkpoints import open_checkpoint
from core.errors import CheckpointError, CorruptFile
from core.targets import get_target
from tests.core.targets.build import (
    TEXTS,
    assemble,
    byte_level,
    gpt2_like,
    save_model,
    save_tokenizer,
    with_byte_fallback,
)
from tests.core.targets.llama_cpp import Answer, ask

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + TAIL
QWEN2 = LLAMA3.replace("{1,3}", "")
QWEN35 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|" + TAIL
CAMEL = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+%s"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*%s"
)
TEKKEN = CAMEL % ("", "") + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + TAIL
GPT4O = CAMEL % (CONTRACTIONS + "?", CONTRACTIONS + "?") + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + TAIL

DEEPSEEK_CODER = ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+")
DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+[\r\n]*|" + TAIL,
)


def split(*patterns: str) -> Any:
    steps = [pre_tokenizers.Split(Regex(p), "isolated") for p in patterns]
    return pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def deepseek_coder() -> Any:
    steps = [pre_tokenizers.Split(Regex(p), "isolated") for p in DEEPSEEK_CODER]
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([*steps, pre_tokenizers.Digits(individual_digits=True), last])


def digits_then_gpt2() -> Any:
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


BYTE_LEVEL: dict[str, Any] = {
    "gpt-2": lambda: gpt2_like(),
    "llama-bpe": lambda: byte_level(split(LLAMA3), ignore_merges=True),
    "smaug-bpe": lambda: byte_level(split(LLAMA3)),
    "qwen2": lambda: byte_level(split(QWEN2)),
    "qwen35": lambda: byte_level(split(QWEN35)),
    "tekken": lambda: byte_level(split(TEKKEN), ignore_merges=True),
    "gpt-4o": lambda: byte_level(split(GPT4O)),
    "deepseek-coder": lambda: byte_level(deepseek_coder()),
    "deepseek-v3": lambda: byte_level(split(*DEEPSEEK_V3)),
    "smollm": lambda: byte_level(digits_then_gpt2()),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A small model that every tokenizer of these tests is put beside."""
    return save_model(tmp_path_factory.mktemp("model"), hidden_size=32, num_hidden_layers=1, vocab_size=448)


def beside(model: Path, folder: Path, **files: Any) -> Path:
    """A folder with the model; files: name (dots as __) → JSON, text or bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((model / name).read_bytes())
    for name, content in files.items():
        path = folder / name.replace("__", ".")
        if isinstance(content, bytes | str):
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        else:
            path.write_text(json.dumps(content))
    return folder


def notes_of(folder: Path) -> tuple[str, ...]:
    with open_checkpoint(folder) as checkpoint:
        return get_target("gguf").outline(checkpoint).notes


def written(folder: Path, out: Path) -> dict[str, Any]:
    """tokenizer.* of the GGUF made from the folder."""
    assemble(folder, "gguf", out)
    fields = gguf.GGUFReader(out).fields
    return {k.removeprefix("tokenizer."): f.contents() for k, f in fields.items() if k.startswith("tokenizer.")}


@pytest.fixture(scope="module")
def made(model, tmp_path_factory) -> dict[str, tuple[Tokenizer, dict[str, Any], Answer]]:
    """Every kind: its tokenizer, what was written, what llama.cpp makes of TEXTS. One process for all."""
    root = tmp_path_factory.mktemp("kinds")
    tokenizers = {name: build() for name, build in BYTE_LEVEL.items()} | {"llama": with_byte_fallback()}
    fields = {}
    for name, tokenizer in tokenizers.items():
        save_tokenizer(beside(model, root / name), tokenizer)
        fields[name] = written(root / name, root / f"{name}.gguf")
    # Unigram, as tokenizer.json and as a SentencePiece file.
    tokenizers["unigram"] = tokenizers["unigram.model"] = unigram()
    save_tokenizer(beside(model, root / "unigram"), tokenizers["unigram"], unk_token="<unk>")
    fields["unigram"] = written(root / "unigram", root / "unigram.gguf")
    folder = beside(model, root / "unigram.model", tokenizer__model=sentencepiece_unigram(tokenizers["unigram"]))
    (folder / "tokenizer_config.json").write_text('{"add_bos_token": false}')
    fields["unigram.model"] = written(folder, root / "unigram.model.gguf")
    # The same pieces as a SentencePiece file, and nothing else.
    tokenizers["tokenizer.model"] = tokenizers["llama"]
    folder = beside(model, root / "tokenizer.model", tokenizer__model=sentencepiece(tokenizers["llama"]))
    (folder / "tokenizer_config.json").write_text('{"add_bos_token": false}')
    fields["tokenizer.model"] = written(folder, root / "tokenizer.model.gguf")
    answers = ask(*((root / f"{name}.gguf", TEXTS, []) for name in tokenizers))
    return {name: (tokenizers[name], fields[name], a) for name, a in zip(tokenizers, answers, strict=True)}


def varint(n: int) -> bytes:
    out = b""
    while n >= 128:
        out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def number(field_number: int, value: int) -> bytes:
    return varint(field_number << 3) + varint(value & 0xFFFFFFFFFFFFFFFF)


def unigram() -> Tokenizer:
    """Pieces with scores; spaces alone are marked, so that line breaks are characters on both sides."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300,
        special_tokens=["<unk>", "<s>", "</s>"],
        unk_token="<unk>",
        max_piece_length=8,
        show_progress=False,
    )
    tokenizer.train_from_iterator([text[:60] for text in TEXTS * 4], trainer)
    return tokenizer


def sentencepiece_unigram(tokenizer: Tokenizer) -> bytes:
    out = b""
    for token, (text, score) in enumerate(json.loads(tokenizer.to_str())["model"]["vocab"]):
        piece = field(1, text.encode()) + varint(2 << 3 | 5) + struct.pack("<f", score)
        out += field(1, piece + number(3, {0: 2, 1: 3, 2: 3}.get(token, 1)))
    trainer = number(3, 1) + number(40, 0) + number(41, 1) + number(42, 2) + number(43, -1)
    return out + field(2, trainer) + field(3, number(3, 1) + number(4, 0))


def sentencepiece(tokenizer: Tokenizer) -> bytes:
    """A tokenizer.model written by hand: pieces, scores by the order of merges, types."""

    content = json.loads(tokenizer.to_str())["model"]
    ranks: dict[str, int] = {}
    for order, (left, right) in enumerate(content["merges"]):
        ranks.setdefault(left + right, order)
    out = b""
    for text, token in sorted(content["vocab"].items(), key=lambda v: v[1]):
        kind = {0: 2, 1: 3, 2: 3}.get(token, 6 if text.startswith("<0x") else 1)
        score = -float(ranks.get(text, 10_000))
        piece = field(1, text.encode()) + varint(2 << 3 | 5) + struct.pack("<f", score) + number(3, kind)
        out += field(1, piece)
    trainer = number(3, 2) + number(35, 1) + number(40, 0) + number(41, 1) + number(42, 2) + number(43, -1)
    return out + field(2, trainer) + field(3, number(3, 1) + number(4, 0))


@pytest.mark.parametrize("name", BYTE_LEVEL)
def test_byte_level_texts_become_the_same_ids(made, name) -> None:
    tokenizer, fields, answer = made[name]
    assert fields["ggml.model"] == "gpt2"
    assert fields["ggml.pre"] == name
    assert answer.tokens == [tokenizer.encode(text).ids for text in TEXTS]


@pytest.mark.parametrize("name", ["llama", "tokenizer.model"])
def test_sentencepiece_texts_become_the_same_ids(made, name) -> None:
    tokenizer, fields, answer = made[name]
    assert fields["ggml.model"] == "llama"
    assert fields["ggml.add_space_prefix"] is True
    expected = [tokenizer.encode(text).ids for text in TEXTS]
    assert answer.tokens == expected
    assert any(3 <= token < 259 for ids in expected for token in ids), "no text falls back to bytes"


@pytest.mark.parametrize("name", ["unigram", "unigram.model"])
def test_unigram_texts_become_the_same_ids(made, name) -> None:
    tokenizer, fields, answer = made[name]
    assert fields["ggml.model"] == "t5"
    assert fields["ggml.remove_extra_whitespaces"] is False
    expected = [tokenizer.encode(text).ids for text in TEXTS]
    assert answer.tokens == expected
    assert any(0 in ids for ids in expected), "no text has unknown characters"


def test_types_and_padding(made) -> None:
    _, fields, answer = made["gpt-2"]
    assert answer.size == len(fields["ggml.tokens"]) == len(fields["ggml.token_type"]) == 448
    assert fields["ggml.tokens"][420:] == [f"[PAD{n}]" for n in range(420, 448)]
    assert set(fields["ggml.token_type"][420:]) == {5}
    assert fields["ggml.token_type"][:2] == [3, 3]
    assert set(fields["ggml.token_type"][2:420]) == {1}
    _, fields, _ = made["llama"]
    assert fields["ggml.token_type"][:3] == [2, 3, 3]
    assert set(fields["ggml.token_type"][3:259]) == {6}
    assert len(fields["ggml.scores"]) == 448


def test_merges_are_those_of_the_file(made) -> None:
    tokenizer, fields, _ = made["gpt-2"]
    assert fields["ggml.merges"] == [" ".join(m) for m in json.loads(tokenizer.to_str())["model"]["merges"]]


def template(first: str = "", last: str = "") -> Any:
    text = f"{first} $A {last}".strip()
    return processors.TemplateProcessing(single=text, pair=f"{text} $B", special_tokens=[("<s>", 0), ("</s>", 1)])


@pytest.mark.parametrize(
    ("first", "last", "settings"),
    [("", "", {}), ("<s>", "", {}), ("<s>", "</s>", {}), ("<s>", "", {"add_bos_token": False}), ("", "</s>", {})],
)
def test_what_is_put_around_a_text_is_what_gguf_reads(model, tmp_path, first, last, settings) -> None:
    tokenizer = gpt2_like()
    tokenizer.post_processor = template(first, last)
    folder = beside(model, tmp_path / "m")
    save_tokenizer(folder, tokenizer, pad_token="</s>", **settings)
    content = json.loads((folder / "tokenizer_config.json").read_text()) | settings
    (folder / "tokenizer_config.json").write_text(json.dumps(content))
    fields = written(folder, tmp_path / "m.gguf")
    theirs = gguf.SpecialVocab(folder, load_merges=True, n_vocab=448)
    assert fields["ggml.bos_token_id"] == theirs.special_token_ids["bos"] == 0
    assert fields["ggml.eos_token_id"] == theirs.special_token_ids["eos"] == 1
    assert fields["ggml.padding_token_id"] == theirs.special_token_ids["pad"] == 1
    assert fields["ggml.merges"] == theirs.merges
    for kind in ("bos", "eos"):
        assert fields[f"ggml.add_{kind}_token"] is theirs.add_special_token.get(kind, False)


def test_llama_cpp_adds_what_the_template_adds(model, tmp_path) -> None:
    tokenizer = gpt2_like()
    tokenizer.post_processor = template("<s>", "</s>")
    save_tokenizer(beside(model, tmp_path / "m"), tokenizer)
    written(tmp_path / "m", tmp_path / "m.gguf")
    (answer,) = ask((tmp_path / "m.gguf", TEXTS[:2], []))
    assert answer.tokens == [tokenizer.encode(text).ids for text in TEXTS[:2]]
    assert answer.tokens[0][0] == 0
    assert answer.tokens[0][-1] == 1


def test_added_tokens_are_found_in_texts(model, tmp_path) -> None:
    """Special ones, markup that is not called special, and plain words added after training."""
    tokenizer = gpt2_like()
    tokenizer.add_special_tokens([AddedToken("<|im_start|>", special=True)])
    tokenizer.add_tokens([AddedToken("<|tool|>", special=False), AddedToken("hello world", special=False)])
    save_tokenizer(beside(model, tmp_path / "m"), tokenizer)
    fields = written(tmp_path / "m", tmp_path / "m.gguf")
    assert fields["ggml.tokens"][420:423] == ["<|im_start|>", "<|tool|>", "hello world"]
    assert fields["ggml.token_type"][420:423] == [3, 3, 4]
    text = "<|im_start|>user says hello world<|tool|>"
    (answer,) = ask((tmp_path / "m.gguf", [text], []))
    assert answer.tokens == [tokenizer.encode(text).ids]


def test_chat_templates(model, tmp_path) -> None:
    tokenizer = json.loads(gpt2_like().to_str())
    one = beside(
        model, tmp_path / "one", tokenizer__json=tokenizer, tokenizer_config__json={"chat_template": "{{ a }}"}
    )
    assert written(one, tmp_path / "1.gguf")["chat_template"] == "{{ a }}"
    jinja = beside(model, tmp_path / "jinja", tokenizer__json=tokenizer, chat_template__jinja="{{ bé }}")
    assert written(jinja, tmp_path / "2.gguf")["chat_template"] == "{{ bé }}"
    several = {"chat_template": [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]}
    many = beside(model, tmp_path / "many", tokenizer__json=tokenizer, tokenizer_config__json=several)
    fields = written(many, tmp_path / "3.gguf")
    assert fields["chat_template"] == "d"
    assert fields["chat_template.tool_use"] == "t"
    assert fields["chat_templates"] == ["tool_use"]
    none = beside(model, tmp_path / "none", tokenizer__json=tokenizer)
    assert not [k for k in written(none, tmp_path / "4.gguf") if k.startswith("chat_template")]


def test_ids_of_config_json_serve_where_no_text_is_named(model, tmp_path) -> None:
    folder = beside(model, tmp_path / "m", tokenizer__json=json.loads(gpt2_like().to_str()))
    config = json.loads((folder / "config.json").read_text())
    config |= {"bos_token_id": 7, "eos_token_id": [9, 1], "pad_token_id": 100_000}
    (folder / "config.json").write_text(json.dumps(config))
    fields = written(folder, tmp_path / "m.gguf")
    assert fields["ggml.bos_token_id"] == 7
    assert fields["ggml.eos_token_id"] == 9
    assert "ggml.padding_token_id" not in fields
    assert any("pad_token_id 100000" in note for note in notes_of(folder))


def test_an_unknown_pre_tokenizer_is_said_aloud(model, tmp_path) -> None:
    tokenizer = byte_level(split(r"\p{L}+|\p{N}{1,7}|."))
    save_tokenizer(beside(model, tmp_path / "m"), tokenizer)
    assert written(tmp_path / "m", tmp_path / "m.gguf")["ggml.pre"] == "default"
    assert any("pre-tokenizer" in note and "1,7" in note for note in notes_of(tmp_path / "m"))


def test_no_tokenizer_gives_a_file_that_loads(model, tmp_path) -> None:
    folder = beside(model, tmp_path / "m")
    assert written(folder, tmp_path / "m.gguf") == {"ggml.model": "none"}
    assert any("tokenizer" in note for note in notes_of(folder))
    (answer,) = ask((tmp_path / "m.gguf", [], [3, 4]))
    assert not answer.error
    assert answer.logits.shape == (2, 448)


def test_a_tokenizer_of_another_kind_is_said_aloud(model, tmp_path) -> None:
    words = {"model": {"type": "WordLevel", "vocab": {"a": 0}}}
    folder = beside(model, tmp_path / "m", tokenizer__json=words)
    assert written(folder, tmp_path / "m.gguf") == {"ggml.model": "none"}
    assert any("WordLevel" in note for note in notes_of(folder))


def test_more_tokens_than_rows(model, tmp_path) -> None:
    tokenizer = gpt2_like()
    tokenizer.add_tokens([f"extra-{n}" for n in range(40)])
    save_tokenizer(beside(model, tmp_path / "m"), tokenizer)
    assert len(written(tmp_path / "m", tmp_path / "m.gguf")["ggml.tokens"]) == 448
    assert any("12 tokens beyond" in note for note in notes_of(tmp_path / "m"))


def test_a_changed_tokenizer_is_read_again(model, tmp_path) -> None:
    folder = beside(model, tmp_path / "m", tokenizer__json=json.loads(gpt2_like().to_str()))
    first = written(folder, tmp_path / "1.gguf")
    (folder / "tokenizer_config.json").write_text('{"bos_token": "</s>"}')
    second = written(folder, tmp_path / "2.gguf")
    assert first["ggml.bos_token_id"] == 0
    assert second["ggml.bos_token_id"] == 1


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("tokenizer.json", b"{", "not valid JSON"),
        ("tokenizer.json", b'{"decoder":{"type":"ByteLevel"},"model":{"type":"BPE","vocab":3,"merges":[]}}', "vocab"),
        (
            "tokenizer.json",
            b'{"decoder":{"type":"ByteLevel"},"model":{"type":"BPE","vocab":{"a":-1},"merges":[]}}',
            "id -1",
        ),
        (
            "tokenizer.json",
            b'{"decoder":{"type":"ByteLevel"},"model":{"type":"BPE","vocab":{"a":0},"merges":["abc"]}}',
            "merge",
        ),
        (
            "tokenizer.json",
            b'{"decoder":{"type":"ByteLevel"},"model":{"type":"BPE","vocab":{"a":99999999999},"merges":[]}}',
            "id 99999999999",
        ),
        ("tokenizer.model", b"\x0a\xff\xff\xff\xff\x0f", "beyond the end"),
        ("tokenizer.model", b"\x80" * 20, "cut off"),
        ("tokenizer.model", b"\x12\x00", "no pieces"),
    ],
)
def test_broken_tokenizers_are_one_clear_line(model, tmp_path, name, content, said) -> None:
    folder = beside(model, tmp_path / "m")
    (folder / name).write_bytes(content)
    with pytest.raises((CorruptFile, CheckpointError)) as caught:
        notes_of(folder)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_that_is_a_link_out_of_the_folder_is_not_read(model, tmp_path) -> None:
    outside = tmp_path / "secret.json"
    outside.write_text(json.dumps(json.loads(gpt2_like().to_str())))
    folder = beside(model, tmp_path / "m")
    try:
        (folder / "tokenizer.json").symlink_to(outside)
    except OSError:
        return  # this system lets nobody make links
    with pytest.raises(CheckpointError, match="leaves the folder"):
        notes_of(folder)
