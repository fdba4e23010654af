"""What torch.save wrote: zip archives, mapped, and the pickles of torch before 1.6, read whole. Opening imports torch.

Pickles are programs. They go through torch's weights_only loader, which builds tensors and plain containers and runs
nothing else; whatever asks for more is refused.
"""

from __future__ import annotations

import hashlib
import pickle
import re
import threading
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from core.checkpoints.base import Checkpoint
from core.checkpoints.jsontext import short
from core.checkpoints.mapped import CUT_OFF, read_bytes, regular_size, row_range, stamp
from core.errors import CheckpointError, CorruptFile, UnsupportedFormat
from core.ordering import natural_order
from core.tensors import DTYPES, TensorInfo

if TYPE_CHECKING:
    import torch

ZIP_MAGIC = b"PK\x03\x04"
# Training scripts put the weights under one of these and their own affairs beside it.
WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
# The protocol torch.save writes; torch.load warns about others (an old file has several pickles, each with its own).
_USUAL_PROTOCOL = 2
_MAX_DEPTH = 32
_MAX_ENTRIES = 500_000
# A view that repeats its storage (torch.expand) may grow up to this; more is an attack on memory.
_MAX_EXPANDED_BYTES = 16 << 20
# Warning filters are the process's: only one thread may change them at a time.
_WARNINGS = threading.Lock()


class TorchArchive(Checkpoint):
    """A .pt, .pth or .bin file. Tensors of nested dictionaries have dotted names, a wrapper ("state_dict") is left out.

    metadata  what else the file holds: entry → a few words; none of it is used
    raises    CheckpointError (also for pickles that try to run code), CorruptFile, UnsupportedFormat
    """

    kind = "torch"

    def __init__(self, path: Path) -> None:
        size = regular_size(path)
        self._stamp = stamp(path)
        loaded, storages = _load(path, size)
        self.path = path
        self.files = (path,)
        self.config = None
        tensors, notes = _named_tensors(loaded, path)
        owners: dict[tuple[Any, ...], str] = {}
        infos = [_info(name, tensor, owners, path) for name, tensor in tensors.items()]
        if storages is not None:
            _check_storages(tensors, storages, path)
        infos = natural_order(infos, attrgetter("name"))
        self._loaded: dict[str, torch.Tensor] | None = tensors
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType({t.name: t for t in infos})
        self.metadata: Mapping[str, Any] = MappingProxyType(notes)

    def _slice(self, name: str, start: int, stop: int | None) -> torch.Tensor:
        """Rows [rows, columns], contiguous."""
        info = self.tensors[name]
        first, last = row_range(info, start, stop)
        loaded = self._loaded
        if loaded is None:
            raise CheckpointError("is closed", where=self.path)
        return loaded[name].reshape(info.rows, info.columns)[first:last].contiguous()

    def raw(self, name: str, start: int = 0, stop: int | None = None) -> memoryview:
        """As the contract says; rows of a transposed tensor are copied, they are not stored one after the other."""
        import torch

        rows = self._slice(name, start, stop)
        return rows.reshape(-1).view(torch.uint8).numpy().data.toreadonly()

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        return self._slice(name, start, stop)

    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr((self.path.name, stamp(self.path))).encode())
        for info in self.tensors.values():
            digest.update(repr((info.name, info.shape, info.dtype, info.alias)).encode())
        return digest.hexdigest()

    def close(self) -> None:
        self._loaded = None


def looks_like(head: bytes) -> bool:
    """Whether a file begins as a zip archive or as a pickle does."""
    return head.startswith(ZIP_MAGIC) or (head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"))


def _load(path: Path, size: int) -> tuple[Any, Counter[int] | None]:
    """The unpickled object, storages mapped where the file allows it; and for archives the sizes of all entries."""
    head = read_bytes(path, 16)
    if not looks_like(head):
        raise UnsupportedFormat("is neither a zip archive nor a pickle", "what did torch.save write it with?", path)
    if path.suffix.lower() == ".safetensors":  # a name that promises: no pickle inside
        hint = "rename it to .pt if you trust it"
        raise UnsupportedFormat("is a file of torch.save under the name of a safetensors file", hint, path)
    zipped = head.startswith(ZIP_MAGIC)
    protocol, sizes = _check_zip(path, size) if zipped else (head[1], None)

    import torch

    try:
        quiet = not zipped or protocol != _USUAL_PROTOCOL
        with _WARNINGS, warnings.catch_warnings(action="ignore") if quiet else nullcontext():
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped), sizes
    except Exception as exc:  # a hostile pickle can make the loader raise anything
        raise _translated(exc, path) from exc


def _check_zip(path: Path, size: int) -> tuple[int, Counter[int]]:
    """The pickle protocol of a torch archive and the sizes of its entries. Raises for other zip files, and for those
    that torch would misread."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            pickled = next(
                (e for e in entries if e.filename.endswith("/data.pkl") and e.filename.count("/") == 1), None
            )
            if pickled is None:
                raise UnsupportedFormat("is a zip archive, but not one of torch.save (it has no data.pkl)", where=path)
            root = pickled.filename.removesuffix("data.pkl")
            if any(e.filename == f"{root}constants.pkl" for e in entries):
                hint = "save the module's state_dict() instead"
                raise UnsupportedFormat("is a TorchScript program, not a checkpoint of tensors", hint, path)
            for entry in entries:
                stored = entry.compress_type == zipfile.ZIP_STORED and entry.compress_size == entry.file_size
                if not stored or entry.header_offset + entry.file_size > size:
                    raise CorruptFile(f"{short(entry.filename)} is compressed or reaches beyond the file", where=path)
            with archive.open(pickled) as stream:
                head = stream.read(2)
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, NotImplementedError, EOFError) as exc:
        raise CorruptFile(f"is a broken zip archive ({exc})", CUT_OFF, path) from exc
    return head[1] if len(head) == 2 and head[0] == 0x80 else 0, Counter(entry.file_size for entry in entries)


def _check_storages(tensors: Mapping[str, torch.Tensor], sizes: Counter[int], path: Path) -> None:
    """Every storage is as long as an entry of the archive: torch believes what the pickle says of lengths."""
    seen: set[int] = set()
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        nbytes, begin = storage.nbytes(), storage.data_ptr()
        if not nbytes or begin in seen:
            continue
        seen.add(begin)
        if not sizes[nbytes]:
            raise CorruptFile(
                f"tensor {short(name)} claims {nbytes:,} bytes that no entry of the archive has", where=path
            )
        sizes[nbytes] -= 1


_ASKS_FOR = re.compile(r"GLOBAL:? ([\w.]+)")


def _translated(exc: Exception, path: Path) -> CheckpointError:
    """One line for whatever the loader said."""
    text = str(exc)
    asked = _ASKS_FOR.search(text)
    if asked:
        return CheckpointError(
            f"holds a pickle that asks to run {asked.group(1).rstrip('.')}; nothing of it was run",
            "only plain tensors are read: save the state_dict() as safetensors",
            path,
        )
    if isinstance(exc, MemoryError) or "can't allocate" in text or "not enough memory" in text:
        return CheckpointError("asks for more memory than there is", where=path)
    detail = ""
    if isinstance(exc, RuntimeError | pickle.UnpicklingError | EOFError):  # others name a place in torch's own code
        detail = text.split("WeightsUnpickler error:", 1)[-1].strip().split("\n", 1)[0][:160]
    said = f" ({detail})" if detail else ""
    return CorruptFile(f"is not a readable torch archive of tensors{said}", CUT_OFF, path)


def _named_tensors(loaded: Any, path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors by dotted name in the file's order, and what was left out."""
    import torch

    if isinstance(loaded, torch.Tensor):
        raise UnsupportedFormat("holds one tensor without a name", "save a dict of named tensors", path)
    if not isinstance(loaded, Mapping):
        raise UnsupportedFormat(f"holds a {type(loaded).__name__}, not a dict of named tensors", where=path)
    notes: dict[str, str] = {}
    for _ in range(_MAX_DEPTH):
        inner = _wrapped(loaded)
        if inner is None:
            break
        notes |= {str(key): _words(value) for key, value in loaded.items() if value is not loaded[inner]}
        loaded = loaded[inner]
    tensors: dict[str, torch.Tensor] = {}
    for count, (name, value) in enumerate(_leaves(loaded)):
        if count > _MAX_ENTRIES:  # dictionaries that share dictionaries multiply
            raise CorruptFile(f"holds more than {_MAX_ENTRIES:,} entries", where=path)
        if not isinstance(value, torch.Tensor):
            notes[name] = _words(value)
        elif name in tensors:
            raise CorruptFile(f"two tensors are named {short(name)}", where=path)
        else:
            tensors[name] = value.detach()
    if not tensors:
        raise UnsupportedFormat("holds no tensors", where=path)
    return tensors, notes


def _wrapped(loaded: Mapping[Any, Any]) -> str | None:
    """The key under which the weights lie, when the dictionary is only a wrapper around them."""
    import torch

    if any(isinstance(value, torch.Tensor) for value in loaded.values()):
        return None
    return next((key for key in WRAPPERS if isinstance(loaded.get(key), Mapping) and loaded[key]), None)


def _leaves(loaded: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    """Everything in nested dictionaries, with dotted names. A dictionary that is empty or lies very deep (it may hold
    itself) is a leaf."""
    open_levels = [("", iter(loaded.items()))]
    while open_levels:
        prefix, items = open_levels[-1]
        for key, child in items:
            name = f"{prefix}{key}"
            if isinstance(child, Mapping) and child and len(open_levels) < _MAX_DEPTH:
                open_levels.append((f"{name}.", iter(child.items())))
                break
            yield name, child
        else:
            open_levels.pop()


def _words(value: Any) -> str:
    kind = type(value).__name__
    if isinstance(value, bool | int | float | str):
        return f"{kind} {short(value)}, not used"
    return f"{kind} of {len(value)}, not used" if hasattr(value, "__len__") else f"{kind}, not used"


def _info(name: str, tensor: torch.Tensor, owners: dict[tuple[Any, ...], str], path: Path) -> TensorInfo:
    """The record of a loaded tensor. Raises for what is no plain, dense tensor of a dtype we name."""
    import torch

    where = f"{path}: {short(name)}"
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        kind = str(tensor.layout).removeprefix("torch.") if tensor.layout != torch.strided else str(tensor.dtype)
        raise UnsupportedFormat(f"a {kind} tensor on {tensor.device.type} has no plain bytes", where=where)
    dtype = next((d for d in DTYPES.values() if d.torch_name and d.torch == tensor.dtype), None)
    if dtype is None:
        raise UnsupportedFormat(f"{str(tensor.dtype).removeprefix('torch.')} is not read here", where=where)
    nbytes = tensor.numel() * tensor.element_size()
    if nbytes > max(tensor.untyped_storage().nbytes(), _MAX_EXPANDED_BYTES):
        raise UnsupportedFormat(f"a view that repeats its memory to {nbytes:,} bytes is not read", where=where)
    alias = ""
    if nbytes:
        owner = owners.setdefault((tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype), name)
        alias = owner if owner != name else ""
    return TensorInfo(name, tuple(tensor.shape), dtype.name, nbytes, alias)
