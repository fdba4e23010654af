"""The output while it grows: a hidden sibling of exactly the planned size that takes its name only when complete.

Knows bytes and places, nothing of tensors. The record of what is already written is in journal.py.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from core.errors import OutputError
from core.targets.base import Layout

# Written by the kernel in one go at most (Linux stops at 2 GiB − 4096).
_WRITE_BYTES = 1 << 30
# A folder that is replaced by force may hold these, besides files of the new layout's own names.
_MODEL_SUFFIXES = {".safetensors", ".json", ".model", ".txt", ".md", ".jinja", ".gguf", ".bin", ".pt", ".pth", ".py"}
_MODEL_NAMES = {"LICENSE", "NOTICE", ".gitattributes"}

_HINTS = {
    errno.ENOSPC: "free some space or choose another disk",
    errno.EDQUOT: "free some of your quota or choose another disk",
    errno.EFBIG: "this file system cannot hold files of this size; choose another disk",
    errno.EACCES: "choose a folder you may write to",
    errno.EPERM: "choose a folder you may write to",
    errno.EROFS: "choose a folder you may write to",
    errno.EIO: "the disk reports an error; choose another one",
}


def output_error(error: OSError, path: Path) -> OutputError:
    """What the system said about a path, as the one line a user reads."""
    said = error.strerror or str(error) or type(error).__name__
    return OutputError(f"cannot write: {said}", _HINTS.get(error.errno or 0, ""), where=path)


def partial_path(out: Path) -> Path:
    return out.with_name(f".{out.name}.partial")


class Files:
    """Existing files opened for writing at any place, from several threads at once. Never creates or resizes one, so a
    late writer cannot bring back a file that was removed."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        self._open: dict[int, int] = {}
        self._dirty: set[int] = set()
        self._lock = threading.Lock()
        self._positional = hasattr(os, "pwrite")

    def _descriptor(self, index: int) -> int:
        with self._lock:
            if index not in self._open:
                self._open[index] = os.open(self.paths[index], os.O_RDWR | getattr(os, "O_BINARY", 0))
            self._dirty.add(index)
            return self._open[index]

    def write(self, index: int, offset: int, data: memoryview | bytes) -> None:
        """All of data at offset of file `index`. Raises OutputError."""
        if not memoryview(data).nbytes:
            return  # an empty view cannot be cast
        view = memoryview(data).cast("B")
        try:
            descriptor = self._descriptor(index)
            while view:
                done = self._write_some(descriptor, view[:_WRITE_BYTES], offset)
                view, offset = view[done:], offset + done
        except OSError as error:
            raise output_error(error, self.paths[index]) from error

    def _write_some(self, descriptor: int, view: memoryview, offset: int) -> int:
        if self._positional:
            return os.pwrite(descriptor, view, offset)
        with self._lock:
            os.lseek(descriptor, offset, os.SEEK_SET)
            return os.write(descriptor, view)

    def sync(self) -> None:
        """What was written so far is on the disk, not only in the system's memory. Raises OutputError."""
        with self._lock:
            dirty, self._dirty = self._dirty, set()
            descriptors = [(index, self._open[index]) for index in sorted(dirty)]
        for index, descriptor in descriptors:
            try:
                getattr(os, "fdatasync", os.fsync)(descriptor)
            except OSError as error:
                raise output_error(error, self.paths[index]) from error

    def close(self) -> None:
        with self._lock:
            for descriptor in self._open.values():
                os.close(descriptor)
            self._open.clear()


class Output:
    """The output of one run, from the hidden partial to its own name.

    inputs  files that are read meanwhile; an output on top of one, or around one, is refused
    """

    def __init__(self, layout: Layout, out: Path, *, folder: bool, inputs: Sequence[Path]) -> None:
        self.layout = layout
        self.out = Path(os.path.abspath(out))
        self.folder = folder
        self.partial = partial_path(self.out)
        self._old = self.out.with_name(f".{self.out.name}.old")
        self.names = [f.name for f in layout.files]
        for name in [*self.names, *layout.sides] if folder else layout.sides:
            pure = PurePosixPath(name)
            if not name or pure.is_absolute() or ".." in pure.parts or "\\" in name or ":" in name:
                raise OutputError(f"{name!r} is no name for a file of the output", where=self.out)
        assert folder or (self.names == [""] and not layout.sides)
        self._refuse_inputs(inputs)
        self.files = Files([self._path(name) for name in self.names])

    def _path(self, name: str) -> Path:
        return self.partial / name if self.folder else self.partial

    def _refuse_inputs(self, inputs: Sequence[Path]) -> None:
        here = self.out.resolve()
        for path in inputs:
            source = path.resolve()
            if source == here or here in source.parents or (self.out.exists() and os.path.samefile(source, here)):
                raise OutputError(f"the output would replace its own input {path}", "choose another name", self.out)

    def check_free(self, force: bool) -> None:
        """Raises OutputError when the name is taken and may not be given to the new output."""
        if self._old.exists() and not os.path.lexists(self.out):
            self._move(self._old, self.out)  # a run was killed between moving the old folder away and the new one in
        if not os.path.lexists(self.out):
            return
        if self.out.is_dir() != self.folder:
            kind, wanted = ("a folder", "file") if self.out.is_dir() else ("a file", "folder")
            raise OutputError(f"exists and is {kind}", f"give a {wanted} name for this target", self.out)
        if self.folder and not any(self.out.iterdir()):
            return
        if not force:
            raise OutputError("exists already", "choose another name, or --force to replace it", self.out)
        if self.folder:
            self._refuse_foreign()

    def _refuse_foreign(self) -> None:
        """Force replaces a model, not a folder in which somebody keeps other things."""
        own = {PurePosixPath(name).parts[0] for name in [*self.names, *self.layout.sides]}
        for entry in sorted(self.out.iterdir()):
            known = entry.suffix.lower() in _MODEL_SUFFIXES or entry.name in _MODEL_NAMES
            if entry.name in own or (known and not entry.is_dir()):
                continue
            raise OutputError(
                f"will not be replaced: it holds {entry.name}, which is no part of a model", "choose another", self.out
            )

    def create(self) -> None:
        """An empty partial of full size, heads and side files written. Raises OutputError; then nothing is left."""
        self.discard()
        try:
            if self.folder:
                self.partial.mkdir()
            for name, file in zip(self.names, self.layout.files, strict=True):
                path = self._path(name)
                path.parent.mkdir(parents=True, exist_ok=True)
                _allocate(path, file.nbytes)
            self._write_heads()
        except OSError as error:
            self.discard()
            raise output_error(error, self.out) from error
        except BaseException:
            self.discard()
            raise

    def reopen(self) -> bool:
        """Whether the partial of an earlier run is there in full size; heads and side files are written anew."""
        for name, file in zip(self.names, self.layout.files, strict=True):
            path = self._path(name)
            if not path.is_file() or path.is_symlink() or path.stat().st_size != file.nbytes:
                return False
        try:
            self._write_heads()
        except OSError as error:
            raise output_error(error, self.out) from error
        return True

    def _write_heads(self) -> None:
        for index, file in enumerate(self.layout.files):
            assert len(file.head) <= file.nbytes
            self.files.write(index, 0, file.head)
        for name, content in self.layout.sides.items():
            path = self._path(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "wb") as side:
                side.write(content)
                side.flush()
                os.fsync(side.fileno())

    def publish(self, force: bool) -> None:
        """Everything on disk, sizes checked, and the output under its own name. Raises OutputError."""
        self.files.sync()
        self.files.close()
        expected = {name: file.nbytes for name, file in zip(self.names, self.layout.files, strict=True)}
        expected |= {name: len(content) for name, content in self.layout.sides.items()}
        try:
            for name, nbytes in expected.items():
                found = self._path(name).stat().st_size
                if found != nbytes:
                    raise OutputError(f"{name or self.out.name} has {found} bytes, not the {nbytes} planned")
            self.check_free(force)
            if self.folder:
                self._publish_folder()
            else:
                self._move(self.partial, self.out)
            _sync_folder(self.out.parent)
        except OSError as error:
            raise output_error(error, self.out) from error

    def _publish_folder(self) -> None:
        for folder in {self._path(name).parent for name in [*self.names, *self.layout.sides]}:
            _sync_folder(folder)
        replaced = os.path.lexists(self.out)
        if replaced:
            self._move(self.out, self._old)
        try:
            self._move(self.partial, self.out)
        except OSError:
            if replaced:
                self._move(self._old, self.out)
            raise
        if replaced:
            shutil.rmtree(self._old, ignore_errors=True)

    @staticmethod
    def _move(a: Path, b: Path) -> None:
        os.replace(a, b)

    def discard(self) -> None:
        """Removes the partial, as far as the system allows."""
        self.files.close()
        with contextlib.suppress(OSError):
            if self.partial.is_dir() and not self.partial.is_symlink():
                shutil.rmtree(self.partial)
            else:
                self.partial.unlink(missing_ok=True)


def _allocate(path: Path, nbytes: int) -> None:
    """A file of this size whose space is reserved where the file system can, so that a full disk shows now."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags, 0o666)
    try:
        if nbytes and hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(descriptor, 0, nbytes)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                    raise
        os.ftruncate(descriptor, nbytes)
    finally:
        os.close(descriptor)


def _sync_folder(path: Path) -> None:
    """The names in a folder survive a power cut. Only POSIX systems open folders."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        # Some network file systems refuse this; the files themselves are synced already.
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
