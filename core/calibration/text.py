"""What is read to calibrate: a text becomes samples of token ids. The model's own tokenizer is used, from its folder.

No model here (skeleton.py), nothing from the network.
"""

from __future__ import annotations

import hashlib
import random
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.calibration.library import hushed, require_transformers
from core.calibration.purpose import CALIBRATION, Purpose
from core.checkpoints.base import Checkpoint
from core.errors import CalibrationError

if TYPE_CHECKING:
    import numpy as np

SAMPLES, LENGTH, SEED = 128, 512, 0
# Larger texts are read up to here; a calibration looks at some hundred KiB.
_MAX_BYTES = 256 << 20
# The text is cut into pieces, which are read in a seeded order until there are tokens enough.
_PIECE_CHARACTERS = 4096
STANDARD_LIBRARY = "Python's standard library"


@dataclass(frozen=True)
class TextSettings:
    """What is asked for.

    path     of a text in UTF-8; None: the sources of the interpreter's standard library
    samples  how many, of `length` tokens each
    """

    path: Path | None = None
    samples: int = SAMPLES
    length: int = LENGTH
    seed: int = SEED

    def check(self) -> None:
        """Raises CalibrationError for numbers that make no sense."""
        if self.samples < 1:
            raise CalibrationError(f"{self.samples} samples are none", "give 1 or more")
        if self.length < 2:
            raise CalibrationError(f"samples of {self.length} tokens are no text", "give a length of 2 or more")


@dataclass(frozen=True, eq=False)
class Samples:
    """ids: int64 [samples, length]. name: of the text. identity: equal for equal ids and settings."""

    ids: np.ndarray
    name: str
    identity: str


def read_samples(checkpoint: Checkpoint, settings: TextSettings) -> Samples:
    """The samples that the settings ask for, as the checkpoint's tokenizer cuts them.

    Pieces of the text follow each other in an order that the seed decides. Where the tokenizer begins texts with a
    token of its own, so does every sample.
    raises  CalibrationError: no tokenizer, a text that cannot be read or is too short; MissingExtra
    """
    import numpy as np

    settings.check()
    text, name = text_of(settings.path)
    tokenizer = tokenizer_of(checkpoint.folder())
    begin = beginning_of(tokenizer)
    room = settings.length - len(begin)
    if room < 1:
        raise CalibrationError(f"samples of {settings.length} tokens are no text", "give a longer --length")
    pieces = _pieces(text)
    random.Random(settings.seed).shuffle(pieces)
    wanted = settings.samples * room
    tokens: list[int] = []
    for piece in pieces:
        tokens += tokenizer(piece, add_special_tokens=False)["input_ids"]
        if len(tokens) >= wanted:
            break
    else:
        raise CalibrationError(
            f"has {len(tokens):,} tokens, and {settings.samples:,} samples of {settings.length:,} need {wanted:,}",
            "give a longer text, or fewer or shorter samples",
            settings.path or name,
        )
    ids = np.array(tokens[:wanted], np.int64).reshape(settings.samples, room)
    if begin:
        ids = np.concatenate([np.tile(np.array(begin, np.int64), (settings.samples, 1)), ids], 1)
    digest = hashlib.sha256(ids.tobytes() + repr(ids.shape).encode()).hexdigest()
    return Samples(ids, name, digest)


def text_of(path: Path | None) -> tuple[str, str]:
    """A text and its name; without a path, the standard library's. raises CalibrationError"""
    if path is None:
        return _standard_library(), STANDARD_LIBRARY
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES)
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or str(error)
        raise CalibrationError(f"cannot be read: {said}", "give a text file", path) from error
    if b"\0" in data[:65536]:
        raise CalibrationError("is no text", "give a text file in UTF-8", path)
    text = data.decode("utf-8", "replace")
    if not text.strip():
        raise CalibrationError("is empty", "give a text of the kind the model is used for", path)
    return text, path.name


def _standard_library() -> str:
    """Its modules' sources, in the order of their names. Everybody has them, and they are text of several kinds."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    sources = sorted(folder.glob("*.py"))
    if not sources:
        raise CalibrationError(f"{STANDARD_LIBRARY} has no sources here", "give a text with --calibration TEXT")
    return "\n".join(source.read_text("utf-8", "replace") for source in sources)


def _pieces(text: str) -> list[str]:
    """The text in pieces that end with a line where they can."""
    pieces, at = [], 0
    while at < len(text):
        end = min(len(text), at + _PIECE_CHARACTERS)
        line = text.rfind("\n", at, end) + 1
        if end < len(text) and line > at:
            end = line
        pieces.append(text[at:end])
        at = end
    return pieces


def tokenizer_of(folder: Path, purpose: Purpose = CALIBRATION) -> Any:
    """The folder's tokenizer. raises CalibrationError: there is none; MissingExtra"""
    transformers = require_transformers(purpose)
    try:
        with hushed():
            found = transformers.AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # whatever a foreign file makes a foreign library raise
        said = " ".join(str(error).split())[:160]
        raise CalibrationError(
            f"has no tokenizer that transformers reads ({said})",
            f"{purpose.word} needs tokenizer.json and tokenizer_config.json beside the weights",
            folder,
        ) from error
    if not found.is_fast and not len(found):
        raise CalibrationError("its tokenizer has no vocabulary", where=folder)
    return found


def beginning_of(tokenizer: Any) -> list[int]:
    """Tokens that the tokenizer puts before every text."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    given = tokenizer("a")["input_ids"]
    if bare and bare[0] in given:
        return list(given[: given.index(bare[0])])
    return []
