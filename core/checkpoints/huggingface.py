"""A Hugging Face folder: config.json, and the weights in one file or in shards that an index names.

Nothing outside the folder is read, whatever an index or a link says. What the files hold is the business of
safetensors.py and torch_archive.py.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from operator import attrgetter
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from core.checkpoints.base import Checkpoint
from core.checkpoints.jsontext import parse_object, short
from core.checkpoints.mapped import read_small, stamp
from core.checkpoints.safetensors import Safetensors
from core.checkpoints.torch_archive import TorchArchive
from core.errors import CheckpointError, CorruptFile
from core.ordering import natural_key, natural_order
from core.tensors import TensorInfo

if TYPE_CHECKING:
    import torch

CONFIG = "config.json"
# Tried in this order, as transformers does.
_WHOLE = ("model.safetensors", "pytorch_model.bin")
_INDEX_ENDINGS = (".safetensors.index.json", ".bin.index.json")
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
WEIGHT_ENDINGS = (".safetensors", ".gguf", ".bin", ".pt", ".pth")
_MAX_CONFIG_BYTES = 64 << 20
_MAX_INDEX_BYTES = 512 << 20


class HuggingFaceFolder(Checkpoint):
    """A folder with config.json and weights. Raises CheckpointError and its kinds, naming the file concerned."""

    kind = "huggingface"

    def __init__(self, path: Path) -> None:
        self.path = path
        names = _listing(path)
        if CONFIG not in names:
            raise CheckpointError(f"the folder has no {CONFIG}", _instead(path, names), path)
        config_file = inside(path, CONFIG, path)
        config_text = read_small(config_file, _MAX_CONFIG_BYTES, CONFIG)
        self.config = parse_object(config_text, config_file, CONFIG)
        self._sides = [config_file]
        digest = hashlib.sha256(config_text)
        index = None
        whole = _whole_file(names)
        if whole is not None:
            shards = [inside(path, whole, path)]
        else:
            index = path / _index_name(path, names)
            self._sides.append(index)
            index_text = read_small(inside(path, index.name, path), _MAX_INDEX_BYTES, "an index")
            digest.update(index_text)
            weight_map = _weight_map(index_text, index)
            shards = _shards(path, weight_map, index)
        self._digest = digest.digest()
        self._parts: list[Safetensors | TorchArchive] = []
        try:
            self._open(shards)
            if index is not None:
                self._check(weight_map, index)
        except BaseException:
            self.close()
            raise

    def _open(self, shards: Iterable[Path]) -> None:
        infos: list[TensorInfo] = []
        self._home: dict[str, Safetensors | TorchArchive] = {}
        metadata: dict[str, Any] = {}
        for file in shards:
            part = Safetensors(file) if file.suffix == ".safetensors" else TorchArchive(file)
            self._parts.append(part)
            for info in part.tensors.values():
                if info.name in self._home:
                    other = self._home[info.name].path.name
                    raise CorruptFile(f"tensor {short(info.name)} is in {other} and in {file.name}", where=self.path)
                self._home[info.name] = part
                infos.append(info)
            metadata.update(part.metadata)
        if len(self._parts) > 1:
            infos = natural_order(infos, attrgetter("name"))
        self.files = tuple(part.path for part in self._parts)
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType({t.name: t for t in infos})
        self.metadata: Mapping[str, Any] = MappingProxyType(metadata)

    def _check(self, weight_map: Mapping[str, str], index: Path) -> None:
        """Every tensor of the index is where the index says."""
        parts = {part.path: part for part in self._parts}
        named = {file: parts[self.path / file] for file in set(weight_map.values())}
        for name, file in weight_map.items():
            home = self._home.get(name)
            if home is None:
                raise CorruptFile(f"tensor {short(name)} is not in {file}, where the index has it", where=index)
            if home is not named[file]:
                raise CorruptFile(
                    f"tensor {short(name)} is in {home.path.name}, not in {file} as the index says", where=index
                )

    def file_of(self, name: str) -> Path:
        return self._home[name].path

    def raw(self, name: str, start: int = 0, stop: int | None = None) -> memoryview:
        return self._home[name].raw(name, start, stop)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        return self._home[name].read(name, start, stop)

    def fingerprint(self) -> str:
        sides = [(file.name, stamp(file)) for file in self._sides]
        text = repr((sides, [part.fingerprint() for part in self._parts]))
        return hashlib.sha256(text.encode() + self._digest).hexdigest()

    def close(self) -> None:
        for part in self._parts:
            part.close()


def inside(folder: Path, name: str, where: Path) -> Path:
    """folder / name, certain to lie inside the folder once links are followed.

    The download cache of Hugging Face (snapshots/<revision>/ of links into blobs/) counts as one folder.
    raises  CheckpointError when it does not; `where` is who named the file
    """
    parts = PurePosixPath(name).parts
    odd = not parts or "\0" in name or PureWindowsPath(name).drive or PureWindowsPath(name).root
    if odd or ".." in parts or ".." in PureWindowsPath(name).parts:
        raise CheckpointError(f"names {short(name)}, which is no file inside the folder", where=where)
    try:
        home = folder.resolve()
        real = (home / name).resolve()
    except (OSError, RuntimeError) as exc:  # a ring of links
        raise CheckpointError(f"{short(name)} is a link that leads nowhere", where=where) from exc
    allowed = [home]
    if home.parent.name == "snapshots":
        allowed.append(home.parent.parent / "blobs")
    if not any(real.is_relative_to(root) for root in allowed):
        hint = "open that file itself if you trust it, or put it in the folder"
        raise CheckpointError(f"{short(name)} is a link that leaves the folder", hint, where)
    return folder / name


def _listing(path: Path) -> frozenset[str]:
    try:
        return frozenset(os.listdir(path))
    except OSError as exc:
        raise CheckpointError(f"the folder cannot be read ({exc.strerror})", where=path) from exc


def _whole_file(names: frozenset[str]) -> str | None:
    """The one file that holds all weights, if there is one."""
    if _WHOLE[0] in names:
        return _WHOLE[0]
    if any(name.endswith(_INDEX_ENDINGS[0]) for name in names):
        return None
    single = [name for name in names if name.endswith(".safetensors")]
    if len(single) == 1:
        return single[0]
    return _WHOLE[1] if _WHOLE[1] in names and not single else None


def _index_name(path: Path, names: frozenset[str]) -> str:
    """The file name of the index. Raises CheckpointError where there is none, or no telling which."""
    for standard in _INDEXES:
        if standard in names:
            return standard
    for ending in _INDEX_ENDINGS:
        found = sorted(name for name in names if name.endswith(ending))
        if len(found) == 1:
            return found[0]
        if found:
            raise CheckpointError(f"has several indexes ({_few(found)})", "keep one of them in the folder", path)
    weights = sorted(name for name in names if name.endswith(WEIGHT_ENDINGS))
    if not weights:
        raise CheckpointError(f"has {CONFIG} and no weights", "was the download complete?", path)
    shards = [name for name in weights if name.endswith(".safetensors")]
    if shards:
        raise CheckpointError(
            f"has {len(shards)} safetensors files and no index that names them", f"add {_INDEXES[0]}", path
        )
    raise CheckpointError(f"has no weights that go with {CONFIG}", f"open {_few(weights)} itself", path)


def _weight_map(text: bytes, index: Path) -> dict[str, str]:
    found = parse_object(text, index, "the index").get("weight_map")
    if not isinstance(found, dict) or not found or not all(isinstance(v, str) for v in found.values()):
        raise CorruptFile("has no weight_map from tensor names to files", where=index)
    return found


def _shards(path: Path, weight_map: Mapping[str, str], index: Path) -> list[Path]:
    """The files that the index names. Raises CheckpointError for those that are missing, or not ours to read."""
    names = sorted(set(weight_map.values()), key=natural_key)
    files = [inside(path, name, index) for name in names]
    for file in files:
        if not file.name.endswith(WEIGHT_ENDINGS) or file.suffix == ".gguf":
            raise CorruptFile(f"names {short(file.name)}, which is no weights file", where=index)
    missing = [file.name for file in files if not file.exists()]
    if missing:
        count = f"{len(missing)} of {len(files)} files are missing" if len(files) > 1 else "its file is missing"
        raise CheckpointError(f"{count} ({_few(missing)})", "was the download complete?", index)
    return files


def _instead(path: Path, names: Iterable[str]) -> str:
    """What to do about a folder without config.json."""
    weights = [name for name in names if name.endswith(WEIGHT_ENDINGS)]
    if len(weights) == 1:
        return f"open {path / weights[0]} itself, or add the model's {CONFIG}"
    if weights:
        kinds = Counter(Path(name).suffix for name in weights)
        held = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        return f"it holds {held} files: open one of them, or add the model's {CONFIG}"
    return "open a folder as Hugging Face keeps models, or a weights file"


def _few(names: list[str], limit: int = 3) -> str:
    shown = ", ".join(short(name)[1:-1] for name in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
