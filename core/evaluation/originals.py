"""What an original made of a text, kept on disk, so that every further model that is judged by it costs one walk and
not two. Kept are the hidden states behind every block and the logits of all scored tokens, float32 as they came:
figures from them are the figures of a second walk, to the last bit.

All that is kept together takes no more than LIMIT_BYTES; what was not used for longest goes first, and what alone would
be larger is not kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.calibration.kept import libraries
from core.checkpoints.base import Checkpoint
from core.evaluation.text import Windows

if TYPE_CHECKING:
    import torch

LIMIT_BYTES = 4 << 30
# Changes whenever the same model and text would leave other numbers.
_VERSION = 1
_INDEX, _HIDDEN, _LOGITS = "original.json", "hidden.f32", "logits.f32"
_PARTIAL = ".partial-"


def base_folder() -> Path:
    """Under which all is kept: QUANTBENCH_ORIGINALS, or a part of the user's cache."""
    import platformdirs

    given = os.environ.get("QUANTBENCH_ORIGINALS")
    return Path(given) if given else Path(platformdirs.user_cache_dir("quantbench", appauthor=False)) / "originals"


@dataclass(frozen=True)
class Sizes:
    """What two models that are compared have in common.

    blocks   names of the decoder blocks
    hidden   shape of the hidden states: samples, length, hidden size
    keys     of the config, as _check_same in perplexity.py compares them
    """

    blocks: tuple[str, ...]
    hidden: tuple[int, ...]
    keys: dict[str, Any]

    def nbytes(self, scored: int) -> int:
        """Of an original with so many scored tokens."""
        states = 4 * len(self.blocks)
        for n in self.hidden:
            states *= n
        return states + 4 * scored * int(self.keys["vocab_size"] or 0)


def identity(checkpoint: Checkpoint, windows: Windows, device: str) -> str:
    """Equal for what gives equal numbers. Empty for a checkpoint that is not kept: one that is computed when read."""
    if checkpoint.kind == "simulated":
        return ""
    words = (_VERSION, checkpoint.fingerprint(), windows.samples.identity, windows.first, device, libraries())
    return hashlib.sha256(repr(words).encode()).hexdigest()


class Kept:
    """A finished original, read back. blocks and batches are those of Walk."""

    def __init__(self, folder: Path, sizes: Sizes, firsts: Sequence[int], device: str) -> None:
        import numpy as np

        self.sizes = sizes
        self._device = device
        samples, length, _ = sizes.hidden
        scored = [length - first for first in firsts]
        self._begin = [sum(scored[:n]) for n in range(samples + 1)]
        words = int(sizes.keys["vocab_size"])
        self._hidden = np.memmap(folder / _HIDDEN, np.float32, "r", shape=(len(sizes.blocks), *sizes.hidden))
        self._logits = np.memmap(folder / _LOGITS, np.float32, "r", shape=(self._begin[-1], words))

    def hidden(self, block: int, samples: slice) -> torch.Tensor:
        """float32 [samples, length, hidden size] behind a block."""
        return self._tensor(self._hidden[block, samples])

    def logits(self, sample: int) -> torch.Tensor:
        """float32 [scored tokens, vocabulary]."""
        return self._tensor(self._logits[self._begin[sample] : self._begin[sample + 1]])

    def _tensor(self, array: Any) -> torch.Tensor:
        import torch

        return torch.from_numpy(array.copy()).to(self._device)


def find(name: str, firsts: Sequence[int], device: str) -> Kept | None:
    """The original of this identity, or None when there is none, or none that is whole."""
    folder = base_folder() / name[:24]
    try:
        index = json.loads((folder / _INDEX).read_text("utf-8"))
        if index["identity"] != name:
            return None
        sizes = Sizes(tuple(index["blocks"]), tuple(index["hidden"]), dict(index["keys"]))
        kept = Kept(folder, sizes, firsts, device)
        os.utime(folder / _INDEX)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return kept


@dataclass
class Recorder:
    """Takes what a walk makes of the text. Without room it takes nothing, and the walk goes on all the same."""

    name: str
    sizes: Sizes
    scored: int
    _folder: Path | None = field(default=None, init=False)
    _files: list[Any] = field(default_factory=list, init=False)
    _done: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        need = self.sizes.nbytes(self.scored)
        if not self.name or not self.sizes.keys["vocab_size"] or need > LIMIT_BYTES:
            return
        base = base_folder()
        try:
            base.mkdir(parents=True, exist_ok=True)
            make_room(LIMIT_BYTES - need)
            if shutil.disk_usage(base).free < 2 * need:
                return
            self._folder = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=base))
            # Plain files, not mapped ones: a full disk is an error of these, and the end of the process for those.
            self._files = [(self._folder / name).open("wb") for name in (_HIDDEN, _LOGITS)]
        except OSError:
            self.drop()

    def hidden(self, block: int, samples: slice, states: torch.Tensor) -> None:
        per_sample = 4 * self.sizes.hidden[1] * self.sizes.hidden[2]
        self._write(0, (block * self.sizes.hidden[0] + samples.start) * per_sample, states.float())

    def logits(self, scored: torch.Tensor) -> None:
        """Of one window after the other, float32 [scored tokens, vocabulary]."""
        words = int(self.sizes.keys["vocab_size"] or 0)
        if scored.shape[1] != words:  # a padded head: more words than the config says
            self.drop()
            return
        self._write(1, 4 * words * self._done, scored)
        self._done += len(scored)

    def _write(self, file: int, at: int, values: torch.Tensor) -> None:
        if not self._files:
            return
        try:
            self._files[file].seek(at)
            self._files[file].write(values.contiguous().cpu().numpy().data)
        except OSError:
            self.drop()

    def finish(self) -> None:
        """What was taken appears under its name, or goes when it cannot."""
        if self._folder is None or self._done < self.scored:
            self.drop()
            return
        index = {
            "identity": self.name,
            "blocks": self.sizes.blocks,
            "hidden": self.sizes.hidden,
            "keys": self.sizes.keys,
        }
        try:
            for file in self._files:
                file.close()
            (self._folder / _INDEX).write_text(json.dumps(index), "utf-8")
            place = self._folder.parent / self.name[:24]
            shutil.rmtree(place, ignore_errors=True)  # a damaged one, or the same from another process
            os.replace(self._folder, place)
            self._folder = None
        except OSError:  # the disk is full, or another process reads it
            self.drop()

    def drop(self) -> None:
        """Nothing is kept."""
        for file in self._files:
            with suppress(OSError):
                file.close()
        self._files.clear()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


def make_room(left: int) -> None:
    """Removes what was used longest ago until no more than `left` bytes are kept, and what killed runs left behind."""
    import time

    found = []
    for folder in base_folder().iterdir():
        try:
            if folder.name.startswith(_PARTIAL):
                if time.time() - folder.stat().st_mtime > 86400:
                    shutil.rmtree(folder, ignore_errors=True)
                continue
            nbytes = sum(file.stat().st_size for file in folder.iterdir())
            found.append(((folder / _INDEX).stat().st_mtime, nbytes, folder))
        except OSError:
            continue
    total = sum(nbytes for _, nbytes, _ in found)
    for _, nbytes, folder in sorted(found, key=lambda item: item[0]):
        if total <= left:
            return
        # First the index: what is half removed is no original.
        (folder / _INDEX).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        total -= nbytes
