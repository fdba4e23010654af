"""config.json read with suspicion: numbers of the right kind and size, or an error that names the key. Old and new
spellings of the rotary settings meet here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import TargetError

_MAX = (1 << 31) - 1
MISSING = object()


@dataclass(frozen=True)
class Rope:
    """kind is "default", "linear", "llama3", "yarn" or "dynamic"; settings are what the config says beside it."""

    theta: float
    kind: str
    settings: Mapping[str, Any]


class Hyper:
    """The hyperparameters of one model. Every reader raises TargetError naming the key."""

    def __init__(self, config: Mapping[str, Any], where: Path) -> None:
        self.config = config
        self.where = where

    def error(self, message: str, hint: str = "") -> TargetError:
        return TargetError(f"config.json: {message}", hint, self.where)

    def whole(self, key: str, default: Any = MISSING) -> int:
        """A positive whole number below 2³¹."""
        value = self._value(self.config, key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _MAX:
            raise self.error(f"{key} is {_shown(value)}, not a positive whole number")
        return value

    def number(self, key: str, default: Any = MISSING, within: Mapping[str, Any] | None = None) -> float:
        """A positive, finite number."""
        value = self._value(self.config if within is None else within, key, default)
        good = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 3e38
        if not good:
            raise self.error(f"{key} is {_shown(value)}, not a positive number")
        return float(value)

    def _value(self, table: Mapping[str, Any], key: str, default: Any) -> Any:
        value = table.get(key)
        if value is None:
            if default is MISSING:
                raise self.error(f"has no {key}")
            return default
        return value

    def flag(self, key: str) -> bool:
        return self.config.get(key) is True

    @property
    def rope(self) -> Rope:
        """`rope_parameters` as transformers 5 writes them, else `rope_theta` and `rope_scaling`."""
        new = self.config.get("rope_parameters")
        if isinstance(new, dict):
            theta = self.number("rope_theta", self.config.get("rope_theta") or 10000.0, new)
            return Rope(theta, str(new.get("rope_type", "default")), new)
        theta = self.number("rope_theta", 10000.0)
        old = self.config.get("rope_scaling")
        if not isinstance(old, dict):
            return Rope(theta, "default", {})
        return Rope(theta, str(old.get("rope_type", old.get("type", "default"))), old)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
