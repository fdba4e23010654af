"""Which rule wins for which output tensor: names, roles, layers, dtypes and shapes against ordered rules. What the
winning rule then does with the tensor is in resolving.py.

Fast enough to follow typing in the window: the columns of an outline are laid out once, each name pattern is answered
once for all names, and every other condition is a comparison of whole columns.
"""

from __future__ import annotations

import fnmatch
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import repeat
from operator import contains, methodcaller
from typing import TYPE_CHECKING

from core.errors import RecipeError
from core.recipes.model import Match, Recipe
from core.recipes.remembering import PerOutline
from core.roles import ROLES

if TYPE_CHECKING:
    import numpy as np

    from core.targets.base import Outline

# How many patterns one outline remembers; typing in the window makes a new one per key.
_REMEMBERED = 512

# Names longer than this are asked one by one.
_WIDEST = 256
# Names that go into the table at once.
_AT_ONCE = 4096

_ends_in_nul = methodcaller("endswith", "\0")

Answer = Callable[["Spellings"], "np.ndarray"]


@dataclass(frozen=True, slots=True)
class Conflict:
    """An output tensor merged from sources that different rules speak of. rule −1: no rule matches that source."""

    tensor: int
    source: str
    rule: int


def winners(recipe: Recipe, outline: Outline) -> np.ndarray:
    """int64 [tensors]: index of the first rule that matches, −1 where none does.

    A tensor merged from several follows its first source; see `conflicts`.
    raises  RecipeError for a regular expression that does not compile
    """
    table = _table(outline)
    return table.first_rule(recipe)[table.first]


def match_counts(recipe: Recipe, outline: Outline) -> list[tuple[int, int]]:
    """(output tensors matched, output tensors won) per rule."""
    import numpy as np

    table = _table(outline)
    won = np.bincount(table.first_rule(recipe)[table.first] + 1, minlength=len(recipe.rules) + 1)[1:]
    matched = (int(table.mask(rule.match)[table.first].sum()) for rule in recipe.rules)
    return [(m, int(w)) for m, w in zip(matched, won, strict=True)]


def is_shadowed(counts: tuple[int, int]) -> bool:
    """Whether a rule matches tensors and wins none of them, because rules before it do."""
    matched, won = counts
    return matched > 0 and won == 0


def conflicts(recipe: Recipe, outline: Outline) -> list[Conflict]:
    """Sources of merged tensors for which another rule would win than for the first source; one per tensor and rule."""
    import numpy as np

    table = _table(outline)
    if len(table.owner) == table.count:
        return []
    rule = table.first_rule(recipe)
    rows = np.flatnonzero(rule != rule[table.first][table.owner])
    found: dict[tuple[int, int], Conflict] = {}
    for row in rows.tolist():
        key = (int(table.owner[row]), int(rule[row]))
        found.setdefault(key, Conflict(key[0], table.texts[table.source[row]], key[1]))
    return list(found.values())


def describe(match: Match) -> str:
    """A match in a few words, "" when it takes every tensor."""
    words = []
    if match.name:
        words.append(match.name)
    if match.names:
        words.append(match.names[0] if len(match.names) == 1 else f"{len(match.names)} tensors by name")
    words.extend("/".join(group) for group in (match.role, match.dtype) if group)
    if match.layers is not None:
        low, high = match.layers
        words.append(f"layer {low}" if low == high else f"layers {low}–{high}")
    if match.ndim is not None:
        words.append(f"{match.ndim}-D")
    if match.min_columns is not None:
        words.append(f"columns ≥ {match.min_columns}")
    if match.min_numel is not None:
        words.append(f"weights ≥ {match.min_numel}")
    return ", ".join(words)


class Spellings:
    """Names to be asked about, laid out once for many questions.

    table  the same as a fixed-width array, or None where that would be wasteful or wrong
    """

    def __init__(self, names: Sequence[str]) -> None:
        import numpy as np

        self.names = names
        self.table: np.ndarray | None = None
        # One very long name would widen all; NumPy drops NULs at the end.
        widest = max(map(len, names), default=0)
        if names and widest <= _WIDEST and not any(map(_ends_in_nul, names)):
            # All at once, no other thread gets a turn: 50 ms for 50,000 names.
            self.table = np.empty(len(names), f"U{max(1, widest)}")
            for start in range(0, len(names), _AT_ONCE):
                self.table[start : start + _AT_ONCE] = names[start : start + _AT_ONCE]

    def __len__(self) -> int:
        return len(self.names)

    def contain(self, word: str) -> np.ndarray:
        import numpy as np

        return np.fromiter(map(contains, self.names, repeat(word)), bool, len(self.names))

    def in_order(self, pieces: Sequence[str], whole: Callable[[str], object]) -> np.ndarray:
        """Names that begin with the first piece, end with the last, and hold the others in order between; one piece
        alone is the whole name. `whole` is the same question as an expression, for names that have no table."""
        import numpy as np

        if self.table is None or any("\0" in piece for piece in pieces):
            return self.pass_test(whole)
        if len(pieces) == 1:
            return self.table == pieces[0]
        head, *middle, tail = pieces
        hits = np.strings.startswith(self.table, head) & np.strings.endswith(self.table, tail)
        # The leftmost place of each piece leaves the most room for those after it.
        at = np.full(len(self.names), len(head))
        stop = np.strings.str_len(self.table) - len(tail)
        for piece in filter(None, middle):
            found = np.strings.find(self.table, piece, at, stop)
            hits &= found >= 0
            at = found + len(piece)
        return hits & (at <= stop)

    def pass_test(self, test: Callable[[str], object], among: np.ndarray | None = None) -> np.ndarray:
        """Asks `test` of every name, or only of those that are true in `among`."""
        import numpy as np

        if among is None:
            return np.fromiter((test(name) is not None for name in self.names), bool, len(self.names))
        passed = among.copy()
        for index in np.flatnonzero(among).tolist():
            passed[index] = test(self.names[index]) is not None
        return passed


@lru_cache(maxsize=1024)
def compile_pattern(pattern: str) -> Answer:
    """A function from spellings to a bool array: which of them the pattern takes.

    pattern  glob over the whole name, case sensitive, or "re:…" searched anywhere in it
    raises   RecipeError when the regular expression does not compile
    """
    if pattern.startswith("re:"):
        search = _regex(pattern.removeprefix("re:"), pattern).search
        return lambda spellings: spellings.pass_test(search)
    whole = re.compile(fnmatch.translate(pattern)).match
    if "?" in pattern or "[" in pattern:
        # The longest literal piece rules out most names at once.
        piece = max(re.split(r"[*?]|\[.*", pattern), key=len)
        return lambda spellings: spellings.pass_test(whole, spellings.contain(piece))
    # Only stars, which is what most people write: plain string questions are ten times faster than the expression.
    pieces = pattern.split("*")
    return lambda spellings: spellings.in_order(pieces, whole)


def _regex(text: str, pattern: str) -> re.Pattern[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise RecipeError(f"not a regular expression: {error}", "a glob needs no re: before it", pattern) from None


class _Table:
    """The columns of an outline. A row is one (output tensor, source) pair; most tensors have exactly one row.

    texts      every distinct spelling: container names first, then the sources' that differ from them
    owner      int64 [rows], the row's output tensor
    source     int64 [rows], the row's source as an index into texts
    first      int64 [count], each tensor's first row
    """

    def __init__(self, outline: Outline) -> None:
        import numpy as np

        tensors = outline.tensors
        self.count = len(tensors)
        self.texts: list[str] = [t.name for t in tensors]
        self.place = {name: i for i, name in enumerate(self.texts)}
        sources = [t.source.names() or (t.name,) for t in tensors]
        counts = np.fromiter(map(len, sources), np.int64, self.count)
        self.source = np.array(self._places(sources), np.int64)
        self.owner = np.repeat(np.arange(self.count), counts)
        self.first = np.cumsum(counts) - counts
        self.layer = np.array([-1 if t.role.layer is None else t.role.layer for t in tensors], np.float64)
        # Of each kind of tensors.
        self.kind = outline.kinds.of
        kinds = [tensors[i] for i in outline.kinds.first]
        roles = {kind: i for i, kind in enumerate(ROLES)}
        self.role = np.array([roles.get(t.role.kind, -1) for t in kinds], np.int64)
        self.ndim = np.array([len(t.shape) for t in kinds], np.int64)
        # float64: a hostile header may claim sizes beyond 64 bits.
        self.columns = np.array([t.columns for t in kinds], np.float64)
        self.numel = np.array([t.numel for t in kinds], np.float64)
        self.dtype = [t.dtype for t in kinds]
        self.spellings = Spellings(self.texts)
        self._answers: dict[str, np.ndarray] = {}

    def _places(self, sources: Iterable[Sequence[str]]) -> list[int]:
        """Where each name is among the texts; new ones are added."""
        found = []
        for several in sources:
            for name in several:
                at = self.place.get(name)
                if at is None:
                    at = self.place[name] = len(self.texts)
                    self.texts.append(name)
                found.append(at)
        return found

    def mask(self, match: Match) -> np.ndarray:
        """bool [rows]: which pairs the match takes."""
        import numpy as np

        kept = np.ones(len(self.dtype), bool)
        if match.role:
            kept &= np.isin(self.role, [ROLES.index(kind) for kind in match.role if kind in ROLES])
        if match.dtype:
            kept &= np.array([dtype in match.dtype for dtype in self.dtype], bool)
        if match.ndim is not None:
            kept &= self.ndim == match.ndim
        if match.min_columns is not None:
            kept &= self.columns >= match.min_columns
        if match.min_numel is not None:
            kept &= self.numel >= match.min_numel
        kept = kept[self.kind]
        if match.layers is not None:
            kept &= (self.layer >= max(0, match.layers[0])) & (self.layer <= match.layers[1])
        rows = kept[self.owner]
        if match.name:
            rows = rows & self._spelled(self._answer(match.name))
        if match.names:
            exact = np.zeros(len(self.texts), bool)
            exact[[at for at in map(self.place.get, match.names) if at is not None]] = True
            rows = rows & self._spelled(exact)
        return rows

    def first_rule(self, recipe: Recipe) -> np.ndarray:
        """int64 [rows]: the first rule that takes each pair, −1 for none."""
        import numpy as np

        won = np.full(len(self.owner), -1, np.int64)
        for index, rule in enumerate(recipe.rules):
            won[(won < 0) & self.mask(rule.match)] = index
        return won

    def _spelled(self, hits: np.ndarray) -> np.ndarray:
        """From texts to rows: either the container's name or the source's is hit."""
        return hits[self.owner] | hits[self.source]

    def _answer(self, pattern: str) -> np.ndarray:
        known = self._answers.get(pattern)
        if known is None:
            if len(self._answers) >= _REMEMBERED:
                self._answers.clear()
            known = self._answers[pattern] = compile_pattern(pattern)(self.spellings)
        return known


_table = PerOutline(_Table)
