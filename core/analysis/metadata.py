"""Where the settings of two checkpoints differ: key-values of GGUFs, config.json and `__metadata__` of the others. A
Hugging Face folder beside a GGUF is asked for the key-values that would be written of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from core.errors import TargetError, WorkbenchError

if TYPE_CHECKING:
    from core.checkpoints.base import Checkpoint

# Values are shown up to this many characters.
SHOWN = 200


def differences(a: Checkpoint, b: Checkpoint) -> dict[str, tuple[str, str]]:
    """Key → (a's value, b's value) as text, where they differ; "" where there is none."""
    gguf = "gguf" in (a.kind, b.kind)
    left, right = _facts(a, gguf), _facts(b, gguf)
    if (not left or not right) and a.kind != b.kind:
        return {}  # nothing that could be held against each other
    found = {}
    for key in sorted(left.keys() | right.keys()):
        if key not in left or key not in right or left[key] != right[key]:
            found[key] = (_text(left.get(key)), _text(right.get(key)))
    return found


def _facts(checkpoint: Checkpoint, gguf: bool) -> dict[str, Any]:
    """Values that can be compared with ==, by key."""
    if gguf and checkpoint.kind != "gguf":
        return _as_gguf(checkpoint)
    found = {f"config.{key}": value for key, value in _flat(checkpoint.config or {})}
    for key, value in checkpoint.metadata.items():
        found[str(key)] = _plain(value)
    return found


def _as_gguf(checkpoint: Checkpoint) -> dict[str, Any]:
    from core.targets.gguf.convert import outline, pairs

    try:
        return {key: _plain(value) for key, value in pairs(checkpoint, outline(checkpoint))}
    except (TargetError, WorkbenchError):
        return {}


def _plain(value: Any) -> Any:
    """A key-value's content: arrays as tuples. Types are left out: 4 is 4 as uint32 and as int64."""
    inner = getattr(value, "value", value)
    if hasattr(inner, "tolist"):
        inner = inner.tolist()
    return tuple(inner) if isinstance(inner, list) else inner


def _flat(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in config.items():
        if isinstance(value, dict) and value:
            found += _flat(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", value))
    return found


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, tuple) and len(value) > 16:
        first = ", ".join(str(v) for v in value[:4])
        return f"{len(value):,} values: {first[: SHOWN - 30]}, …"
    text = " ".join(str(list(value) if isinstance(value, tuple) else value).split())
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"
