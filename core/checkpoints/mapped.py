"""One file of a checkpoint, mapped into memory when its data is first asked for: views of its bytes, tensors over them,
and its stamp (size and time). Every reader goes through here; what the bytes mean is the readers' business.

Sizes are looked at before each read. A file that is cut short in the very middle of one still ends the process
(SIGBUS): no Python code can step in there. Reading into memory instead (preadv) would end with an error, and is not
done: it takes 1.3 to 1.9 times the processor's time of reading through the map in pieces of 1 to 4 MiB, and 12 times in
pieces of 64 MiB."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import stat
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from core.errors import CheckpointError, CorruptFile
from core.tensors import DTYPES, TensorInfo

if TYPE_CHECKING:
    import torch


# What to try about a file that ends too early.
CUT_OFF = "was the download or copy cut off?"
# Whether a file was written to is asked this often: beside small reads a question by name takes its time.
LOOK_SECONDS = 0.2


def regular_size(path: Path) -> int:
    """Bytes of a file. Raises CheckpointError for whatever is no readable, non-empty, ordinary file."""
    try:
        status = path.stat()
    except FileNotFoundError:
        raise CheckpointError("does not exist", where=path) from None
    except (OSError, ValueError) as exc:
        raise CheckpointError(f"cannot be opened ({_why(exc)})", where=path) from exc
    if stat.S_ISDIR(status.st_mode):
        raise CheckpointError("is a folder, not a file", where=path)
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError("is a device or a pipe, not a file", where=path)
    if not status.st_size:
        raise CorruptFile("is empty", CUT_OFF, path, offset=0)
    return status.st_size


def read_bytes(path: Path, count: int, start: int = 0) -> bytes:
    """Up to `count` bytes from `start` on. Raises CheckpointError."""
    try:
        with path.open("rb") as file:
            file.seek(start)
            return file.read(count)
    except (OSError, ValueError) as exc:
        raise CheckpointError(f"cannot be read ({_why(exc)})", where=path) from exc


def read_small(path: Path, limit: int, what: str) -> bytes:
    """A whole side file. Raises CheckpointError, CorruptFile when it is empty or larger than `limit` bytes."""
    size = regular_size(path)
    if size > limit:
        raise CorruptFile(f"{size:,} bytes are too many for {what} (at most {limit:,})", where=path)
    return read_bytes(path, limit)


def stamp(path: Path) -> tuple[int, int]:
    """Size and modification time in ns. Raises CheckpointError."""
    try:
        status = path.stat()
    except (OSError, ValueError) as exc:
        raise CheckpointError(f"cannot be read any more ({_why(exc)})", where=path) from exc
    return status.st_size, status.st_mtime_ns


class MappedFile:
    """A read-only mapping of one file, made on first use. Safe from several threads.

    After `close` nothing new can be read. Views and tensors handed out before stay valid: each keeps the mapping it
    looks into, and the last one to go unmaps the file. (Windows does not let a file be replaced or deleted until then.)
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stamp = stamp(path)
        self.size = self.stamp[0]
        self._lock = threading.Lock()
        self._map: mmap.mmap | None = None
        self._window: ctypes.Array[ctypes.c_ubyte] | None = None
        self._closed = False
        self._look_again = 0.0

    def mapping(self) -> mmap.mmap:
        """The whole file. Raises CheckpointError when closed, CorruptFile when the file changed since it was opened."""
        found = self._map
        if found is not None:
            return found
        with self._lock:
            if self._closed:
                raise CheckpointError("is closed", where=self.path)
            if self._map is None:
                self._map = self._open()
            return self._map

    def _open(self) -> mmap.mmap:
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                if (status.st_size, status.st_mtime_ns) != self.stamp:
                    raise CorruptFile("has changed since it was opened", "open it again", self.path)
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as exc:
            raise CheckpointError(f"cannot be mapped into memory ({_why(exc)})", where=self.path) from exc

    def view(self, begin: int, end: int) -> memoryview:
        """Bytes begin … end, read-only. Its `obj` is the mapping itself, so that paging hints can be given."""
        mapping = self.mapping()
        self._look(mapping)
        return memoryview(mapping)[begin:end]

    def tensor(self, begin: int, end: int) -> torch.Tensor:
        """uint8 [end - begin] over the mapping, without a copy. Writing into it is a segmentation fault."""
        import torch

        if begin == end:
            return torch.empty(0, dtype=torch.uint8)
        window = self._writable_window()
        self._look(self.mapping())
        return torch.frombuffer(window, dtype=torch.uint8, count=end - begin, offset=begin)

    def _look(self, mapping: mmap.mmap) -> None:
        """Raises CorruptFile when the file has been cut short or written to: reading beyond its new end would end the
        process, and what lies elsewhere is another checkpoint's. A file that was removed can still be read."""
        try:
            changed = mapping.size() < self.size
            now = time.monotonic()
            if not changed and now >= self._look_again:
                changed = stamp(self.path) != self.stamp
                self._look_again = now + LOOK_SECONDS
        except CheckpointError:
            return
        except (OSError, ValueError) as exc:
            raise CheckpointError(f"cannot be read any more ({_why(exc)})", where=self.path) from exc
        if changed:
            raise CorruptFile("has changed since it was opened", "open it again", self.path)

    def _writable_window(self) -> ctypes.Array[ctypes.c_ubyte]:
        """The mapping under a buffer that does not call itself read-only.

        torch has no read-only tensors and warns, process-wide, about a buffer that is. Mapping the file copy-on-write
        would do without the warning, but reserves memory for all of it (Windows, and Linux without overcommit).
        """
        mapping = self.mapping()
        with self._lock:
            if self._window is None:
                import numpy as np

                memory = np.frombuffer(mapping, np.uint8)
                window = (ctypes.c_ubyte * len(mapping)).from_address(memory.ctypes.data)
                window.keeps = memory  # type: ignore[attr-defined]  # the window alone would not keep the mapping
                self._window = window
            return self._window

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._window = None
            mapping, self._map = self._map, None
        if mapping is not None:
            # Somebody may still look into it; then it goes with the last of them.
            with contextlib.suppress(BufferError):
                mapping.close()


def row_range(info: TensorInfo, start: int, stop: int | None) -> tuple[int, int]:
    """The rows asked for, checked. Raises IndexError outside 0 ≤ start ≤ stop ≤ rows."""
    end = info.rows if stop is None else stop
    if not 0 <= start <= end <= info.rows:
        raise IndexError(f"rows {start} … {end} of {info.name}, which has {info.rows}")
    return start, end


def as_rows(data: torch.Tensor, info: TensorInfo, rows: int) -> torch.Tensor:
    """uint8 [bytes] of `rows` rows of a plain tensor as `[rows, columns]` in its dtype; a copy only when misaligned."""
    import torch

    dtype = DTYPES[info.dtype]
    if not data.numel():
        return torch.empty(rows, info.columns, dtype=dtype.torch)
    if data.data_ptr() % (dtype.bits // 8):
        data = data.clone()
    return data.view(dtype.torch).view(rows, info.columns)


def _why(exc: BaseException) -> str:
    return getattr(exc, "strerror", None) or str(exc)
