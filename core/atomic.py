"""Small files that appear under their name only when complete. Checkpoints have their own way (engine/writer.py)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from core.errors import OutputError


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Writes a file, text as UTF-8 without touching its line ends, and puts it in the place of what was there.

    raises  OutputError, with nothing left behind
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    make_whole(path, lambda partial: partial.write_bytes(data))


def make_whole(path: str | Path, make: Callable[[Path], object]) -> None:
    """The same for whoever writes a file by its path: make(partial) writes a hidden sibling with the same suffix.

    raises  OutputError for an OSError; what make raises otherwise. Nothing is left behind
    """
    path = Path(path)
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        make(partial)
        os.replace(partial, path)
    except OSError as error:
        _drop(partial)
        raise OutputError(f"cannot be written: {error.strerror or error}", "choose another place", path) from error
    except BaseException:
        _drop(partial)
        raise


def _drop(path: Path) -> None:
    # What could not be written cannot be removed either; the first error is the one to tell.
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
