"""A text as windows of tokens, and which tokens of a window are scored. Two conventions are in use:

"all"   every token of a window but its first is scored, as transformers' own loss does it. Windows lie side by side;
        with a stride below the window's length they overlap, and each scores its last `stride` tokens only. Where the
        tokenizer begins texts with a token of its own, so does every window, within its length.
"half"  llama.cpp's: windows lie side by side, and each scores its second half, so that every scored token has seen half
        a window. Where the tokenizer begins texts with a token, it takes the place of a window's first.

What does not fill a window at the end of the text is left out.
"""

from __future__ import annotations

import hashlib
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.calibration.purpose import Purpose
from core.calibration.text import Samples, beginning_of, text_of, tokenizer_of
from core.errors import EvaluationError

EVALUATION = Purpose("evaluation", shorter="give a shorter --window", extra="evaluation")
WINDOW = 512
# Of the standard library, which is much longer than anyone wants to wait for.
DEFAULT_WINDOWS = 64
ALL, HALF = "all", "half"
SCORES = (ALL, HALF)
HELD_OUT = "Python's standard library, its packages"
# Characters that make a token, for the first guess at how much of a long text is needed.
_CHARACTERS_PER_TOKEN = 8
_LEFT_OUT = frozenset({"test", "tests", "idlelib", "site-packages", "lib2to3", "turtledemo", "__pycache__"})


@dataclass(frozen=True)
class WindowSettings:
    """What is asked for.

    path     of a text in UTF-8; None: the packages of the interpreter's standard library. Calibration's default are its
             modules outside of packages: other files
    window   tokens of a window
    stride   tokens from one window's beginning to the next one's; None: a window
    windows  at most so many, from the beginning; None: all of a given text, DEFAULT_WINDOWS of the standard library
    score    ALL or HALF
    """

    path: Path | None = None
    window: int = WINDOW
    stride: int | None = None
    windows: int | None = None
    score: str = ALL

    def check(self) -> None:
        """Raises EvaluationError for numbers that make no sense."""
        if self.window < 4:
            raise EvaluationError(f"a window of {self.window} tokens is no text", "give 4 or more")
        if self.stride is not None and not 1 <= self.stride <= self.window:
            raise EvaluationError(
                f"a stride of {self.stride} is not within the window of {self.window} tokens", "give a smaller --stride"
            )
        if self.windows is not None and self.windows < 1:
            raise EvaluationError(f"{self.windows} windows are none", "give 1 or more")
        if self.score not in SCORES:
            raise EvaluationError(f"no way to score is called {self.score!r}", f"known: {', '.join(SCORES)}")
        if self.score == HALF and self.stride not in (None, self.window):
            raise EvaluationError(
                "windows of which the second half is scored lie side by side", "leave out --stride, or use --score all"
            )


@dataclass(frozen=True, eq=False)
class Windows:
    """samples  ids, int64 [windows, window]
    first    of each window, the position of the first token that is scored; all behind it are too
    """

    samples: Samples
    settings: WindowSettings
    first: tuple[int, ...]

    @property
    def count(self) -> int:
        return len(self.first)

    @property
    def scored(self) -> int:
        """Tokens that are scored."""
        return sum(self.samples.ids.shape[1] - first for first in self.first)

    @property
    def convention(self) -> str:
        """One line for people."""
        s = self.settings
        step = s.stride or s.window
        which = "second half scored" if s.score == HALF else "all but the first token scored"
        if step < s.window:
            which = f"a step of {step}, the last {step} tokens scored"
        return f"{self.count:,} windows of {s.window:,} tokens, {which}"


def read_windows(folder: Path, settings: WindowSettings) -> Windows:
    """The windows that the settings ask for, cut by the tokenizer in a folder.

    raises  EvaluationError: a text too short; CalibrationError: no tokenizer, a text that cannot be read; MissingExtra
    """
    settings.check()
    tokenizer = tokenizer_of(folder, EVALUATION)
    if settings.path is None:
        text, name, limit = _held_out(), HELD_OUT, settings.windows or DEFAULT_WINDOWS
    else:
        text, name = text_of(settings.path)
        limit = settings.windows or 0
    begin = beginning_of(tokenizer)
    length = settings.window
    room = length - len(begin) if settings.score == ALL else length
    step = min(settings.stride or length, room)
    if room < 2:
        raise EvaluationError(f"a window of {length} tokens is no text", "give a longer --window")
    wanted = (limit - 1) * step + room if limit else 0
    tokens = _tokens(tokenizer, text, wanted, begin if settings.score == HALF else [])
    count = (len(tokens) - room) // step + 1 if len(tokens) >= room else 0
    if not count:
        raise EvaluationError(
            f"has {len(tokens):,} tokens, and a window {room:,}",
            "give a longer text, or a smaller --window",
            settings.path or name,
        )
    return _cut(tokens, begin, min(count, limit) if limit else count, room, step, settings, name)


def _cut(
    tokens: list[int], begin: list[int], count: int, room: int, step: int, settings: WindowSettings, name: str
) -> Windows:
    import numpy as np

    stream = np.array(tokens, np.int64)
    ids = np.stack([stream[n * step : n * step + room] for n in range(count)])
    if settings.score == HALF:
        if begin:
            ids[:, 0] = begin[0]
        first = [settings.window // 2 + 1] * count
    else:
        if begin:
            ids = np.concatenate([np.tile(np.array(begin, np.int64), (count, 1)), ids], 1)
        first = [max(1, len(begin)), *[max(1, len(begin), ids.shape[1] - step)] * (count - 1)]
    digest = hashlib.sha256(ids.tobytes() + repr((ids.shape, first[-1])).encode()).hexdigest()
    return Windows(Samples(ids, name, digest), settings, tuple(first))


def _tokens(tokenizer: Any, text: str, wanted: int, begin: list[int]) -> list[int]:
    """The text's tokens; where not all are wanted, those of a beginning that is long enough."""
    part = wanted * _CHARACTERS_PER_TOKEN
    while wanted and part < len(text):
        # Cut far behind what is used, so that the cut changes no token of it.
        found = begin + tokenizer(text[: part + 1024], add_special_tokens=False)["input_ids"]
        if len(found) >= wanted + 64:
            return found[:wanted]
        part *= 2
    found = begin + tokenizer(text, add_special_tokens=False)["input_ids"]
    return found[:wanted] if wanted else found


def _held_out() -> str:
    """Sources of the standard library's packages, in the order of their names, tests left out."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    sources = sorted(path for path in folder.glob("*/*.py") if path.parent.name not in _LEFT_OUT)
    if not sources:
        raise EvaluationError(f"{HELD_OUT} has no sources here", "give a text with --text FILE")
    return "\n".join(source.read_text("utf-8", "replace") for source in sources)
