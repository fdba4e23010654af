"""Files that are no checkpoints, told apart so that the message can say what they are."""

from __future__ import annotations

import codecs
from pathlib import Path

from core.errors import CheckpointError, UnsupportedFormat

_LFS = b"version https://git-lfs.github.com/spec/"
# (first bytes, at offset, what it is)
_KNOWN: tuple[tuple[bytes, int, str], ...] = (
    (b"\x89PNG\r\n\x1a\n", 0, "a PNG image"),
    (b"\xff\xd8\xff", 0, "a JPEG image"),
    (b"GIF8", 0, "a GIF image"),
    (b"%PDF-", 0, "a PDF document"),
    (b"\x1f\x8b", 0, "a gzip archive"),
    (b"BZh", 0, "a bzip2 archive"),
    (b"\xfd7zXZ\x00", 0, "an xz archive"),
    (b"(\xb5/\xfd", 0, "a zstd archive"),
    (b"7z\xbc\xaf\x27\x1c", 0, "a 7-Zip archive"),
    (b"ustar", 257, "a tar archive"),
    (b"\x7fELF", 0, "a program"),
    (b"MZ", 0, "a program"),
    (b"\x89HDF\r\n\x1a\n", 0, "an HDF5 file (Keras weights are not read)"),
    (b"\x93NUMPY", 0, "a NumPy array"),
    (b"SQLite format 3\x00", 0, "an SQLite database"),
    (b"ggjt", 0, "a GGML file from before GGUF"),
    (b"tjgg", 0, "a GGML file from before GGUF"),
    (b"lmgg", 0, "a GGML file from before GGUF"),
    (b"fmgg", 0, "a GGML file from before GGUF"),
)


def refuse_stranger(path: Path, head: bytes) -> None:
    """Raises for a file that is recognisably something else, whatever its name."""
    if head.startswith(_LFS):
        raise CheckpointError("is a git-lfs pointer, not the file itself", "fetch it with git lfs pull", path)
    for magic, at, what in _KNOWN:
        if head[at : at + len(magic)] == magic:
            raise UnsupportedFormat(f"is {what}, not a checkpoint", where=path)
    if head.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
        raise UnsupportedFormat(
            "is a web page, not a checkpoint", "was a login or error page downloaded instead?", path
        )


def unknown(path: Path, head: bytes) -> UnsupportedFormat:
    """The error for a file that no reader knows."""
    if path.name == "config.json" or path.name.endswith(".index.json"):
        return UnsupportedFormat("belongs to a model's folder", "open the folder itself", path)
    what = "is text" if _text(head) else "is no kind of file that is read here"
    return UnsupportedFormat(
        what, "open a folder with config.json, or a .safetensors, .gguf, .pt, .pth or .bin file", path
    )


def _text(head: bytes) -> bool:
    if b"\0" in head:
        return False
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)  # the last character may be cut
    except UnicodeDecodeError:
        return False
    return bool(head)
