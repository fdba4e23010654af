"""The hidden states of all samples on their way through a model, and how far they have come.

States before one block lie in one place, those before the next in another, in turn. For a walk that somebody may go on
with, these places are files, and a small one beside them names the first block that is not finished. Where nobody does,
states stay in memory up to SPILL_BYTES.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch

# Of states that nobody goes on with, those before a block and behind it together.
SPILL_BYTES = 1 << 30
_STATE = "walk.json"


class States:
    """Hidden states in a folder: two files of 4 bytes · samples · length · hidden size.

    identity  of the walk, by which a stopped one is known again; "" for one that nobody goes on with
    next      the first block that is not finished: more than 0 after `resume`, if a walk of this identity was stopped
    raises    OSError for the folder
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self.folder, self.identity, self.next = folder, identity, 0
        self._files: list[np.ndarray] = []
        folder.mkdir(parents=True, exist_ok=True)

    def resume(self, count: int) -> None:
        """Looks for the first unfinished of `count` blocks; after the last one, all are finished."""
        try:
            state = json.loads((self.folder / _STATE).read_text())
            found = int(state["next"]) if state["identity"] == self.identity else 0
        except (OSError, ValueError, KeyError, TypeError):
            found = 0
        self.next = found if 0 < found <= count else 0

    def open(self, shape: tuple[int, ...]) -> None:
        """Makes room for states, float32 [samples, length, hidden size]. What a stopped walk left is taken over; where
        that does not fit, it begins again."""
        import numpy as np

        if not self.identity and 8 * int(np.prod(shape)) <= SPILL_BYTES:
            self._files = [np.zeros(shape, np.float32) for _ in range(2)]
            return
        nbytes = 4 * int(np.prod(shape))
        if not all(path.is_file() and path.stat().st_size == nbytes for path in self._paths()):
            self.next = 0
        mode: Any = "r+" if self.next else "w+"
        self._files = [np.memmap(path, np.float32, mode, shape=shape) for path in self._paths()]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._files[0].shape)

    def read(self, block: int, samples: slice) -> torch.Tensor:
        """Of some samples, before a block; a copy, on the CPU."""
        import torch

        array: np.ndarray = self._files[block % 2][samples]
        return torch.from_numpy(array.copy())

    def write(self, block: int, samples: slice, hidden: torch.Tensor) -> None:
        self._files[block % 2][samples] = hidden.float().cpu().numpy()

    def finish(self, block: int) -> None:
        """All samples are through a block: noted where somebody may go on from it."""
        self.next = block + 1
        if not self.identity:
            return
        self.flush(self.next)
        state = self.folder / _STATE
        partial = state.with_suffix(".partial")
        partial.write_text(json.dumps({"identity": self.identity, "next": self.next}))
        os.replace(partial, state)

    def flush(self, block: int) -> None:
        """The states before a block survive us, where somebody may go on with them."""
        import numpy as np

        states = self._files[block % 2]
        if self.identity and isinstance(states, np.memmap):
            states.flush()

    def close(self) -> None:
        """They are of no more use: their files go."""
        self._files.clear()
        for path in (*self._paths(), self.folder / _STATE):
            path.unlink(missing_ok=True)

    def _paths(self) -> list[Path]:
        return [self.folder / f"hidden-{n}.f32" for n in range(2)]
