"""JSON as checkpoints carry it, read so that nothing odd gets past: no key twice, no text that is not Unicode, no
nesting without end. Which keys there must be is the readers' business."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.errors import CorruptFile


def parse_object(data: bytes, where: Path, what: str, *, strict: bool = False, offset: int = 0) -> dict[str, Any]:
    """The JSON object in `data`.

    what    how errors call it ("config.json", "the header")
    strict  also refuse NaN, Infinity and -0, which are no JSON or no index, and which strict parsers refuse
    offset  of `data` in its file, for the error
    raises  CorruptFile
    """

    def corrupt(why: str, at: int = 0) -> CorruptFile:
        return CorruptFile(f"{what} is not valid JSON ({why})", where=where, offset=offset + at)

    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise corrupt(f"not UTF-8 at byte {offset + exc.start}", exc.start) from None
    # Both hooks cost Python calls per number: only where they can find something.
    constant: Callable[[str], Any] | None = _refuse_constant if strict else None
    integer: Callable[[str], Any] | None = _integer if strict and "-0" in text else None
    try:
        parsed = json.loads(text, object_pairs_hook=_unique, parse_constant=constant, parse_int=integer)
    except json.JSONDecodeError as exc:
        raise corrupt(f"{exc.msg} at character {exc.pos}", exc.pos) from None
    except RecursionError:
        raise corrupt("nested too deeply") from None
    except ValueError as exc:  # our own refusals, and Python's of numbers of thousands of digits
        why = "a number of thousands of digits" if "set_int_max_str_digits" in str(exc) else str(exc)
        raise corrupt(why) from None
    if not isinstance(parsed, dict):
        raise corrupt("not an object")
    if "\\u" in text:
        _refuse_surrogates(parsed, corrupt)
    return parsed


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = {key: value for key, value in pairs}  # noqa: C416 - dict() of 50,000 pairs lets no other thread in
    if len(made) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"{short(twice)} appears twice")
    return made


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a JSON number")


def _integer(text: str) -> int:
    if text == "-0":
        raise ValueError("-0 is not a whole number")
    return int(text)


def _refuse_surrogates(value: Any, corrupt: Callable[[str], CorruptFile]) -> None:
    """Escaped halves of a character cannot be printed or written again."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting.extend(value.keys())
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)
        elif isinstance(value, str) and not value.isascii():
            try:
                value.encode("utf-8")
            except UnicodeEncodeError:
                raise corrupt("half of a surrogate pair") from None


def short(name: object, limit: int = 80) -> str:
    """A name from a file, quoted and cut so that it fits a line."""
    text = repr(name)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
