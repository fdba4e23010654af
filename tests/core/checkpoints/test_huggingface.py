"""Folders as transformers writes them, and folders that are wrong in every way an index or a link can be."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from core.checkpoints import open_checkpoint
from core.errors import CheckpointError, CorruptFile, UnsupportedFormat
from core.ordering import natural_key
from tests.core.checkpoints.build import many_sharded, model_names, safetensors_bytes, write_folder

A = safetensors_bytes({"a": ("U8", (2,), b"12")})
B = safetensors_bytes({"b": ("U8", (2,), b"34")})


def tiny_llama() -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=11,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).to(torch.bfloat16)


@pytest.mark.parametrize("shard", ["1GB", "60KB"])
def test_reads_what_transformers_writes(tmp_path: Path, shard: str) -> None:
    model = tiny_llama()
    model.save_pretrained(tmp_path, max_shard_size=shard)
    expected = {name: t.detach() for name, t in model.state_dict().items()}
    with open_checkpoint(tmp_path) as ours:
        assert ours.kind == "huggingface"
        assert (len(ours.files) > 3) == (shard == "60KB")
        assert ours.folder() == tmp_path
        assert ours.config is not None
        assert ours.config["architectures"] == ["LlamaForCausalLM"]
        assert ours.metadata["format"] == "pt"
        assert list(ours.tensors) == sorted(expected, key=natural_key)
        for name, t in expected.items():
            assert torch.equal(ours.read(name), t.reshape(-1, t.shape[-1])), name
            assert ours.file_of(name) in ours.files
        index = tmp_path / "model.safetensors.index.json"
        if index.exists():
            weight_map = json.loads(index.read_text())["weight_map"]
            assert {name: ours.file_of(name).name for name in ours.tensors} == weight_map


@pytest.mark.parametrize("sharded", [False, True])
def test_reads_folders_of_pytorch_files(tmp_path: Path, sharded: bool) -> None:
    expected = {name: t.detach() for name, t in tiny_llama().state_dict().items()}
    names = sorted(expected)
    (tmp_path / "config.json").write_text("{}")
    if sharded:
        files = {f"pytorch_model-{i + 1:05d}-of-00002.bin": names[i::2] for i in range(2)}
        for file, mine in files.items():
            torch.save({name: expected[name] for name in mine}, tmp_path / file)
        weight_map = {name: file for file, mine in files.items() for name in mine}
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    else:
        torch.save(expected, tmp_path / "pytorch_model.bin")
    with open_checkpoint(tmp_path) as ours:
        assert set(ours.tensors) == set(names)
        for name, t in expected.items():
            assert torch.equal(ours.read(name), t.reshape(-1, t.shape[-1])), name
            assert bytes(ours.raw(name)) == t.contiguous().view(torch.uint8).numpy().tobytes()


def test_safetensors_win_over_pickles(tmp_path: Path) -> None:
    """Both in one folder is common; pickles are only read when nothing else is there."""
    folder = write_folder(tmp_path / "m", files={"model.safetensors": A, "pytorch_model.bin": b"\x80\x02 not read"})
    with open_checkpoint(folder) as ours:
        assert [f.name for f in ours.files] == ["model.safetensors"]


def test_one_safetensors_file_of_another_name(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", files={"consolidated.safetensors": A, "pytorch_model.bin": b"not read"})
    with open_checkpoint(folder) as ours:
        assert list(ours.tensors) == ["a"]


def test_index_of_a_variant(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", files={"x.safetensors": A, "y.safetensors": B})
    text = json.dumps({"weight_map": {"a": "x.safetensors", "b": "y.safetensors"}})
    (folder / "model.fp16.safetensors.index.json").write_text(text)
    with open_checkpoint(folder) as ours:
        assert [f.name for f in ours.files] == ["x.safetensors", "y.safetensors"]
    (folder / "model.fp8.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match="several indexes"):
        open_checkpoint(folder)


def test_shards_in_a_folder_below(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", weight_map={"a": "parts/x.safetensors"})
    (folder / "parts").mkdir()
    (folder / "parts" / "x.safetensors").write_bytes(A)
    with open_checkpoint(folder) as ours:
        assert bytes(ours.raw("a")) == b"12"


def test_tensors_the_index_forgot_are_there(tmp_path: Path) -> None:
    both = safetensors_bytes({"a": ("U8", (1,), b"1"), "extra": ("U8", (1,), b"2")})
    folder = write_folder(tmp_path / "m", weight_map={"a": "x.safetensors"}, files={"x.safetensors": both})
    with open_checkpoint(folder) as ours:
        assert list(ours.tensors) == ["a", "extra"]


def test_many_shards(tmp_path: Path) -> None:
    with open_checkpoint(many_sharded(tmp_path / "m", 2000, 7)) as ours:
        assert set(ours.tensors) == set(model_names(2000))
        assert [f.name for f in ours.files] == [f"model-{i:05d}-of-00007.safetensors" for i in range(1, 8)]


def test_fingerprint_follows_every_file(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", weight_map={"a": "x.safetensors"}, files={"x.safetensors": A})
    seen = set()
    for file in ("config.json", "model.safetensors.index.json", "x.safetensors"):
        with open_checkpoint(folder) as ours, open_checkpoint(folder) as again:
            assert ours.fingerprint() == again.fingerprint()
            seen.add(ours.fingerprint())
            os.utime(folder / file, ns=(1, 1))
            assert ours.fingerprint() not in seen
            seen.add(ours.fingerprint())
    assert len(seen) == 4


# What an index says, and the line about it.
WRONG_INDEXES = {
    "names a missing file": ({"a": "x.safetensors", "b": "gone.safetensors"}, "1 of 2 files are missing (gone.safe"),
    "all missing": ({f"t{i}": f"{i}.safetensors" for i in range(9)}, "and 6 more"),
    "climbs out": ({"a": "../x.safetensors"}, "no file inside the folder"),
    "climbs out later": ({"a": "sub/../../x.safetensors"}, "no file inside the folder"),
    "climbs out with backslashes": ({"a": "..\\x.safetensors"}, "no file inside the folder"),
    "absolute": ({"a": "/etc/passwd"}, "no file inside the folder"),
    "a drive": ({"a": "C:\\x.safetensors"}, "no file inside the folder"),
    "a share": ({"a": "\\\\server\\x.safetensors"}, "no file inside the folder"),
    "empty name": ({"a": ""}, "no file inside the folder"),
    "a NUL": ({"a": "x\0.safetensors"}, "no file inside the folder"),
    "config.json as weights": ({"a": "config.json"}, "no weights file"),
    "a GGUF as a shard": ({"a": "x.gguf"}, "no weights file"),
    "tensor not in its shard": ({"a": "x.safetensors", "c": "x.safetensors"}, "'c' is not in x.safetensors"),
    "tensor in another shard": ({"a": "x.safetensors", "b": "x.safetensors", "z": "y.safetensors"}, "'b' is in y"),
    "tensor in two shards": ({"a": "x.safetensors", "z": "twin.safetensors"}, "'a' is in twin.safetensors and in x"),
    "no map": ([], "no weight_map"),
    "empty map": ({}, "no weight_map"),
    "map to numbers": ({"a": 1}, "no weight_map"),
}


@pytest.mark.parametrize(("weight_map", "message"), WRONG_INDEXES.values(), ids=list(WRONG_INDEXES))
def test_wrong_indexes(tmp_path: Path, weight_map: object, message: str) -> None:
    files = {"x.safetensors": A, "y.safetensors": B, "twin.safetensors": A, "x.gguf": b"GGUF"}
    folder = write_folder(tmp_path / "m", files=files)
    (tmp_path / "x.safetensors").write_bytes(A)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    assert message in str(caught.value)
    assert str(folder) in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("text", ["", "{", "[]", '{"weight_map": {"a": "x", "a": "y"}}', "[" * 100_000, "\xff"])
def test_unreadable_index_and_config(tmp_path: Path, text: str) -> None:
    folder = write_folder(tmp_path / "m", files={"x.safetensors": A})
    index = folder / "model.safetensors.index.json"
    index.write_bytes(text.encode("latin-1"))
    with pytest.raises(CorruptFile, match=r"index\.json"):
        open_checkpoint(folder)
    index.rename(folder / "config.json")
    with pytest.raises(CorruptFile, match=r"config\.json"):
        open_checkpoint(folder)


def test_infinity_in_a_config_is_usual(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", files={"model.safetensors": A})
    (folder / "config.json").write_text('{"time_step_limit": [0.0, Infinity]}')
    with open_checkpoint(folder) as ours:
        assert ours.config == {"time_step_limit": [0.0, float("inf")]}


def test_broken_shard_is_named(tmp_path: Path) -> None:
    weight_map = {"a": "x.safetensors", "b": "y.safetensors"}
    folder = write_folder(tmp_path / "m", weight_map=weight_map, files={"x.safetensors": A, "y.safetensors": B[:-1]})
    with pytest.raises(CorruptFile, match=r"y\.safetensors: the tensors end at"):
        open_checkpoint(folder)


def test_folders_that_are_no_models(tmp_path: Path) -> None:
    def line() -> str:
        with pytest.raises(CheckpointError) as caught:
            open_checkpoint(tmp_path)
        return str(caught.value)

    assert "the folder has no config.json" in line()
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    assert f"open {tmp_path / 'x.gguf'} itself" in line()
    (tmp_path / "y.safetensors").write_bytes(A)
    assert "1 .gguf, 1 .safetensors files: open one of them" in line()
    (tmp_path / "y.safetensors").unlink()
    (tmp_path / "config.json").write_text("{}")
    assert "has no weights that go with config.json; open x.gguf itself" in line()
    (tmp_path / "x.gguf").unlink()
    assert "has config.json and no weights" in line()
    for i in range(2):
        (tmp_path / f"model-0000{i + 1}-of-00002.safetensors").write_bytes(A)
    assert "2 safetensors files and no index" in line()


def symlink(link: Path, to: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(to)


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "model.safetensors.index.json", "shard.safetensors"]
)
def test_links_do_not_lead_out(tmp_path: Path, name: str) -> None:
    weight_map = {"a": "shard.safetensors"} if name != "model.safetensors" else None
    folder = write_folder(tmp_path / "m", weight_map=weight_map)
    for file in ("model.safetensors",) if weight_map is None else ("shard.safetensors",):
        (folder / file).write_bytes(A)
    open_checkpoint(folder).close()
    (folder / name).rename(tmp_path / "outside")
    symlink(folder / name, tmp_path / "outside")
    with pytest.raises(CheckpointError, match="is a link that leaves the folder"):
        open_checkpoint(folder)
    (folder / name).unlink()
    symlink(folder / name, folder / name)
    with pytest.raises(CheckpointError):
        open_checkpoint(folder)


def test_links_within_the_folder_and_to_it(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", files={"weights-v2": A})
    symlink(folder / "model.safetensors", Path("weights-v2"))
    symlink(tmp_path / "elsewhere", folder)
    for path in (folder, tmp_path / "elsewhere"):
        with open_checkpoint(path) as ours:
            assert bytes(ours.raw("a")) == b"12"


def test_download_cache_of_hugging_face(tmp_path: Path) -> None:
    """snapshots/<revision>/ holds links into blobs/, two folders above."""
    home = tmp_path / "models--someone--model"
    blobs = write_folder(home / "blobs", files={"0123": A})
    (blobs / "config.json").rename(blobs / "4567")
    snapshot = home / "snapshots" / "main"
    symlink(snapshot / "config.json", Path("../../blobs/4567"))
    symlink(snapshot / "model.safetensors", Path("../../blobs/0123"))
    with open_checkpoint(snapshot) as ours:
        assert bytes(ours.raw("a")) == b"12"
    (tmp_path / "outside").write_bytes(A)
    (snapshot / "model.safetensors").unlink()
    symlink(snapshot / "model.safetensors", tmp_path / "outside")
    with pytest.raises(CheckpointError, match="leaves the folder"):
        open_checkpoint(snapshot)


def test_config_and_index_point_to_their_folder(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", weight_map={"a": "x.safetensors"}, files={"x.safetensors": A})
    for name in ("config.json", "model.safetensors.index.json"):
        with pytest.raises(UnsupportedFormat, match="open the folder itself"):
            open_checkpoint(folder / name)


def test_a_bare_file_has_no_config(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m")
    save_file({"a": torch.ones(2)}, folder / "model.safetensors")
    with open_checkpoint(folder / "model.safetensors") as ours:
        assert ours.config is None
        assert ours.folder() == folder
