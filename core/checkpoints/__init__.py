"""Where weights come from. `open_checkpoint(path)` is the one way in; READERS lists what can be opened.

Importing this, and opening anything but a torch archive, imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from core.checkpoints import gguf, safetensors, torch_archive
from core.checkpoints.base import Checkpoint
from core.checkpoints.dialects import as_weights
from core.checkpoints.huggingface import CONFIG, HuggingFaceFolder
from core.checkpoints.mapped import read_bytes, regular_size
from core.checkpoints.strangers import refuse_stranger, unknown
from core.errors import CheckpointError


@dataclass(frozen=True)
class Reader:
    """One kind of file.

    title       for file dialogs
    looks_like  whether a file's first bytes (up to 512) are of this kind
    suffixes    by which a file is taken when its first bytes say nothing; the reader then says what is wrong with it
    """

    name: str
    title: str
    suffixes: tuple[str, ...]
    looks_like: Callable[[bytes], bool]
    open: Callable[[Path], Checkpoint]


READERS: tuple[Reader, ...] = (
    Reader("gguf", "GGUF", (".gguf",), gguf.looks_like, gguf.Gguf),
    Reader("safetensors", "Safetensors", (".safetensors",), safetensors.looks_like, safetensors.Safetensors),
    Reader("torch", "Torch archive", (".pt", ".pth", ".bin"), torch_archive.looks_like, torch_archive.TorchArchive),
)

_HEAD_BYTES = 512


def open_checkpoint(path: str | Path) -> Checkpoint:
    """The checkpoint at `path`: a Hugging Face folder, a folder with the parts of one GGUF, or a file of any kind in
    READERS.

    raises  CheckpointError, UnsupportedFormat or CorruptFile: one line that says what is wrong with which file
    """
    path = Path(path)
    try:
        folder = path.is_dir()
    except (OSError, ValueError) as exc:  # a name with a NUL in it, a name too long
        raise CheckpointError(f"cannot be opened ({exc})", where=ascii(str(path))) from exc
    if folder:
        first = None if (path / CONFIG).exists() else gguf.only_split(path)
        if first is not None:
            return gguf.Gguf(first)
        return as_weights(HuggingFaceFolder(path))
    regular_size(path)
    head = read_bytes(path, _HEAD_BYTES)
    refuse_stranger(path, head)
    reader = next((r for r in READERS if r.looks_like(head)), None)
    if reader is None:
        reader = next((r for r in READERS if path.suffix.lower() in r.suffixes), None)
    if reader is None:
        raise unknown(path, head)
    return reader.open(path)


__all__ = ["READERS", "Checkpoint", "Reader", "open_checkpoint"]
