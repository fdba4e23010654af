"""Where codes go: the containers and their registry. Importing it costs no torch."""

from __future__ import annotations

from difflib import get_close_matches

from core.errors import TargetError
from core.targets.awq import Awq
from core.targets.base import Target
from core.targets.bitsandbytes import BitsAndBytes
from core.targets.compressed.target import CompressedTensors
from core.targets.dense import DenseFolder
from core.targets.fp8 import Fp8Folder
from core.targets.gguf.target import GgufFile
from core.targets.gptq import Gptq
from core.targets.mlx import Mlx
from core.targets.torchao import TorchAo

TARGETS: tuple[Target, ...] = (
    GgufFile(),
    CompressedTensors(),
    Gptq(),
    Awq(),
    Fp8Folder(),
    BitsAndBytes(),
    TorchAo(),
    Mlx(),
    DenseFolder(),
)

_BY_NAME = {t.name: t for t in TARGETS}


def get_target(name: str) -> Target:
    """The target by name, upper or lower case. Raises TargetError with the closest known name."""
    wanted = name.strip().lower()
    found = _BY_NAME.get(wanted)
    if found is not None:
        return found
    close = get_close_matches(wanted, _BY_NAME, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(_BY_NAME)}"
    raise TargetError(f"unknown target {name!r}", hint)


__all__ = ["TARGETS", "Target", "get_target"]
