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
    """The hyperparameters of one model, asked for by llama's words. Every reader raises TargetError naming the key.

    aliases   llama's word → this model's
    defaults  llama's word → what the model's own code takes where the config is silent
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        where: Path,
        aliases: Mapping[str, str] | None = None,
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        self.config = config
        self.where = where
        self.aliases = aliases or {}
        self.defaults = defaults or {}

    def error(self, message: str, hint: str = "") -> TargetError:
        return TargetError(f"config.json: {message}", hint, self.where)

    def whole(self, key: str, default: Any = MISSING) -> int:
        """A positive whole number below 2³¹."""
        value = self.get(key)
        if value is None:
            if default is MISSING:
                raise self.error(f"has no {self._word(key)}")
            value = default
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _MAX:
            raise self.error(f"{self._word(key)} is {_shown(value)}, not a positive whole number")
        return value

    def number(self, key: str, default: Any = MISSING, within: Mapping[str, Any] | None = None) -> float:
        """A positive, finite number. within: a table of the config instead of itself"""
        value = self.get(key) if within is None else within.get(key)
        if value is None:
            if default is MISSING:
                raise self.error(f"has no {self._word(key)}")
            value = default
        good = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 3e38
        if not good:
            raise self.error(f"{self._word(key)} is {_shown(value)}, not a positive number")
        return float(value)

    def get(self, key: str, default: Any = None) -> Any:
        """Whatever the config holds, else the model's default, else `default`. null is nothing."""
        for found in (self.config.get(self._word(key)), self.config.get(key), self.defaults.get(key)):
            if found is not None:
                return found
        return default

    def _word(self, key: str) -> str:
        """The key as an error should name it: this model's word, unless the config uses the usual one."""
        word = self.aliases.get(key, key)
        return key if word not in self.config and key in self.config else word

    def flag(self, key: str) -> bool:
        return self.get(key) is True

    @property
    def rope(self) -> Rope:
        """`rope_parameters` as transformers 5 writes them, else `rope_theta` and `rope_scaling`."""
        return self.rope_of(self.config.get("rope_parameters"))

    def rope_of(self, new: Any) -> Rope:
        """The same from one of several tables, where there are some."""
        if isinstance(new, dict):
            theta = self.number("rope_theta", self.get("rope_theta") or 10000.0, new)
            return Rope(theta, str(new.get("rope_type", "default")), new)
        theta = self.number("rope_theta", 10000.0)
        old = self.config.get("rope_scaling")
        if not isinstance(old, dict):
            return Rope(theta, "default", {})
        return Rope(theta, str(old.get("rope_type", old.get("type", "default"))), old)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
