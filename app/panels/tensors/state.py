"""What the tensor table shows, without Qt: rows of an outline, cells of a plan, and the arrangement of both after
filtering, sorting, grouping and folding. Built in worker threads where it grows with the model; what the GUI thread
does here takes milliseconds for 50,000 tensors.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from app.sizes import Unit, unit_of
from core.errors import RecipeError
from core.ordering import natural_key, order_of

if TYPE_CHECKING:
    import numpy as np

    from core.engine.model import Plan, PlannedTensor
    from core.targets.base import Outline

T = TypeVar("T")

_BLOCK = re.compile(r"^(.*?(?:^|\.)(?:layers|blk|h|blocks|layer|block)\.\d+)\.")
OUTSIDE = "outside the blocks"

# Entries of an arrangement: a tensor's row (≥ 0), the model (−1), or a block (−2, −3, …).
MODEL = -1


def block_entry(block: Any) -> Any:
    """The entry of a block, or an array of them."""
    return -2 - block


def entry_block(entry: Any) -> Any:
    """The block of an entry; the inverse of block_entry."""
    return -2 - entry


@dataclass(frozen=True)
class Rows:
    """The tensors of an outline in columns, index = position in the outline.

    short     the name inside its block
    lower     what the text filter looks at: container and source name in lower case
    blocks    labels, in natural order; block: int64 [rows], index into it
    members   rows of each block, in natural order of their names
    by_name   int64 [rows], rows in natural order of their names
    """

    outline: Outline
    names: list[str]
    short: list[str]
    lower: list[str]
    shapes: list[str]
    dtypes: list[str]
    roles: list[str]
    blocks: list[str]
    block: np.ndarray
    members: list[list[int]]
    by_name: np.ndarray
    numel: list[int]
    index: Mapping[str, int] = field(repr=False, default_factory=dict)

    @cached_property
    def role_names(self) -> tuple[str, ...]:
        """Roles that occur, in the order of ROLES."""
        from core.roles import ROLES

        present = set(self.roles)
        return tuple(r for r in ROLES if r in present)

    @cached_property
    def all_names(self) -> tuple[str, ...]:
        """Always the same tuple: what is compared with it is known to be equal without a look at 50,000 names."""
        return tuple(self.names)

    @cached_property
    def dtype_names(self) -> tuple[str, ...]:
        return tuple(sorted(set(self.dtypes)))

    def __len__(self) -> int:
        return len(self.names)


def make_rows(outline: Outline) -> Rows:
    """Lays an outline out in columns; about 0.3 s for 50,000 tensors, so not for the GUI thread."""
    import numpy as np

    names, short, lower, labels = [], [], [], []
    for t in outline.tensors:
        name = t.name
        found = _BLOCK.match(name)
        label = found.group(1) if found else OUTSIDE
        names.append(name)
        labels.append(label)
        short.append(name[len(label) + 1 :] if found else name)
        sources = [n for n in t.source.names() if n != name]
        lower.append("\t".join((name, *sources)).lower())
    keys = {label: natural_key(label) for label in labels}
    # The tensors outside all blocks first: embedding and head are what one looks for by hand.
    blocks = sorted(keys, key=lambda x: (x != OUTSIDE, keys[x]))
    place = {label: i for i, label in enumerate(blocks)}
    order = order_of([natural_key(name) for name in names])
    members: list[list[int]] = [[] for _ in blocks]
    for row in order:
        members[place[labels[row]]].append(row)
    return Rows(
        outline=outline,
        names=names,
        short=short,
        lower=lower,
        shapes=["×".join(map(str, t.shape)) or "scalar" for t in outline.tensors],
        dtypes=[t.dtype for t in outline.tensors],
        roles=[t.role.kind for t in outline.tensors],
        blocks=blocks,
        block=np.array([place[label] for label in labels], np.int64),
        members=members,
        by_name=np.array(order, np.int64),
        numel=[t.numel for t in outline.tensors],
        index={name: i for i, name in enumerate(names)},
    )


@dataclass(frozen=True)
class Cells:
    """What a plan says per row of Rows. badge: "", "kept" or "fallback".

    nbytes and bpw per row, then per block and for the model, in the same order as Rows.blocks
    """

    plan: Plan
    strategy: list[str]
    stored: list[str]
    rule: list[str]
    reason: list[str]
    badge: list[str]
    nbytes: list[int]
    bpw: list[float]
    block_bytes: list[int]
    block_bpw: list[float]
    block_strategy: list[str]
    model_strategy: str
    model_bytes: int
    model_bpw: float
    largest: int

    @cached_property
    def unit(self) -> Unit:
        """The unit of the size column, the same for all rows: by the largest tensor."""
        return unit_of(self.largest)


def make_cells(rows: Rows, plan: Plan) -> Cells:
    """Lays a plan out beside the rows of its outline. Raises ValueError when it is another outline's plan."""
    from core.engine.model import Planned

    if plan.outline.tensors is not rows.outline.tensors:
        raise ValueError("the plan of another outline")
    tensors = list(plan.tensors)
    if [t.tensor.name for t in tensors] != rows.names:
        by_name = {t.tensor.name: t for t in tensors}
        tensors = [by_name[name] for name in rows.names]
    planned = Planned(tensors)

    def each(word: Callable[[PlannedTensor], T]) -> list[T]:
        return list(planned.kinds.share([word(t) for t in planned.samples]))

    nbytes = each(lambda t: t.nbytes)
    strategy = each(lambda t: str(t.strategy))
    block_bytes = [sum(nbytes[i] for i in rows_in) for rows_in in rows.members]
    weights = [sum(rows.numel[i] for i in rows_in) for rows_in in rows.members]
    return Cells(
        plan=plan,
        strategy=strategy,
        stored=each(lambda t: t.format.name),
        rule=each(lambda t: t.rule_text),
        reason=each(lambda t: t.reason),
        badge=each(lambda t: "fallback" if t.fallback else "" if t.quantized else "kept"),
        nbytes=nbytes,
        bpw=each(lambda t: t.bpw),
        block_bytes=block_bytes,
        block_bpw=[8 * b / w if w else 0.0 for b, w in zip(block_bytes, weights, strict=True)],
        block_strategy=[_mix([strategy[i] for i in rows_in]) for rows_in in rows.members],
        model_strategy=_mix(strategy),
        model_bytes=sum(block_bytes),
        model_bpw=8 * sum(block_bytes) / sum(weights) if sum(weights) else 0.0,
        largest=max(nbytes, default=0),
    )


def _mix(strategies: Sequence[str]) -> str:
    """The strategies of several tensors in a few characters: the most frequent first, kept ones left out."""
    counts: dict[str, int] = {}
    for s in strategies:
        if s != "keep":
            counts[s] = counts.get(s, 0) + 1
    if not counts:
        return "keep" if strategies else ""
    names = sorted(counts, key=lambda s: -counts[s])
    return ", ".join(names[:2]) + (" …" if len(names) > 2 else "")


@dataclass(frozen=True, slots=True)
class Filter:
    """What is shown. text: several words must all occur, "re:…" is a regular expression; empty shows all."""

    text: str = ""
    roles: frozenset[str] = frozenset()
    dtype: str = ""

    def __bool__(self) -> bool:
        return bool(self.text.strip() or self.roles or self.dtype)


@dataclass(frozen=True, slots=True)
class Order:
    """column: "name", "role", "shape", "dtype", "strategy", "bpw", "size", "sqnr" or "rule"."""

    column: str = "name"
    descending: bool = False


def matching(rows: Rows, wanted: Filter) -> np.ndarray | None:
    """bool [rows]: which pass the filter; None for all. Raises RecipeError for a bad regular expression."""
    import numpy as np

    if not wanted:
        return None
    kept = np.ones(len(rows), bool)
    if wanted.dtype:
        kept &= np.array([dtype == wanted.dtype for dtype in rows.dtypes], bool)
    if wanted.roles:
        kept &= np.array([role in wanted.roles for role in rows.roles], bool)
    text = wanted.text.strip()
    if text.startswith("re:"):
        try:
            search = re.compile(text[3:], re.IGNORECASE).search
        except (re.error, OverflowError, RecursionError) as error:
            raise RecipeError(f"not a regular expression: {error}", "plain words need no re:", text) from None
        found = np.zeros(len(rows), bool)
        left = np.flatnonzero(kept).tolist()
        found[left] = [search(rows.lower[i]) is not None for i in left]
        return found
    for word in text.lower().split():
        kept &= np.array([word in name for name in rows.lower], bool)
    return kept


@dataclass(frozen=True, slots=True)
class Look:
    """How tensors are laid out as lines. folded: labels of blocks that are closed; "" is the model."""

    order: Order = field(default_factory=Order)
    grouped: bool = True
    folded: frozenset[str] = frozenset()

    @property
    def backwards(self) -> bool:
        """Whether blocks stand the other way round."""
        return self.order.column == "name" and self.order.descending


@dataclass(frozen=True)
class Arrangement:
    """The visible lines, top to bottom, and how many tensors pass the filter.

    array  int64 [lines], the same as entries: Qt asks for single lines, a selection for many; None without lines
    """

    entries: list[int]
    shown: int
    array: np.ndarray | None = None

    @classmethod
    def of(cls, array: np.ndarray, shown: int) -> Arrangement:
        return cls(array.tolist(), shown, array)


def ordering(rows: Rows, cells: Cells | None, sqnr: np.ndarray | None, order: Order) -> np.ndarray:
    """int64 [rows]: all rows in the wanted order, names deciding between equals. Unknown values stay at the end.

    sqnr  float64 [rows], NaN where unknown
    """
    import numpy as np

    by_name = rows.by_name
    values = _values(rows, cells, sqnr, order.column)
    if values is None:
        return by_name[::-1] if order.descending else by_name
    column = values[by_name]
    if order.descending:
        column = -column
    # NaN sorts last, before and after the change of sign.
    return by_name[np.argsort(column, kind="stable")]


def _values(rows: Rows, cells: Cells | None, sqnr: np.ndarray | None, column: str) -> np.ndarray | None:
    """float64 [rows] to sort by, or None for names."""
    import numpy as np

    if column == "role":
        from core.roles import ROLES

        place = {r: i for i, r in enumerate(ROLES)}
        return np.array([place[r] for r in rows.roles], np.float64)
    if column == "shape":
        return np.array(rows.numel, np.float64)
    if column == "dtype":
        return _codes(rows.dtypes)
    if column == "sqnr" and sqnr is not None:
        return np.asarray(sqnr, np.float64)
    if cells is None:
        return None
    if column in ("strategy", "rule"):
        return _codes(cells.strategy if column == "strategy" else cells.rule)
    if column in ("bpw", "size"):
        return np.array(cells.bpw if column == "bpw" else cells.nbytes, np.float64)
    return None


def _codes(words: Sequence[str]) -> np.ndarray:
    """Words as numbers in their natural order."""
    import numpy as np

    place = {w: i for i, w in enumerate(sorted(set(words), key=natural_key))}
    return np.array([place[w] for w in words], np.float64)


def arrange(
    rows: Rows,
    ordered: np.ndarray,
    passing: np.ndarray | None,
    grouped: bool,
    folded: frozenset[str],
    reverse_blocks: bool = False,
) -> Arrangement:
    """Lines top to bottom.

    ordered  from `ordering`
    passing  from `matching`
    folded   labels of blocks that are closed; "" is the model
    """
    import numpy as np

    chosen = ordered if passing is None else ordered[passing[ordered]]
    count = len(chosen)
    if not grouped:
        return Arrangement.of(chosen, count)
    if "" in folded:
        return Arrangement.of(np.array([MODEL], np.int64), count)
    blocks = rows.block[chosen]
    by_block = np.argsort(-blocks if reverse_blocks else blocks, kind="stable")
    chosen, blocks = chosen[by_block], blocks[by_block]
    first = np.flatnonzero(np.diff(blocks, prepend=-1))
    entries = np.insert(chosen, first, block_entry(0) - blocks[first])
    if folded:
        closed = np.array([label in folded for label in rows.blocks], bool)
        entries = entries[(entries < 0) | ~closed[np.insert(blocks, first, blocks[first])]]
    return Arrangement.of(np.concatenate(([MODEL], entries)), count)


def tensors_of(entries: Sequence[int] | np.ndarray, rows: Rows, passing: np.ndarray | None) -> list[int]:
    """Rows that lines stand for: a block stands for its tensors that pass the filter. In the container's order."""
    import numpy as np

    lines = np.asarray(entries, np.int64)
    chosen = np.zeros(len(rows), bool)
    if (lines == MODEL).any():
        chosen[:] = True
    else:
        blocks = lines[lines < MODEL]
        if blocks.size:
            chosen |= np.isin(rows.block, entry_block(blocks))
    if passing is not None:
        chosen &= passing
    chosen[lines[lines >= 0]] = True
    return np.flatnonzero(chosen).tolist()


def runs(positions: Sequence[int] | np.ndarray) -> list[tuple[int, int]]:
    """Ascending positions as inclusive runs: [1, 2, 3, 7] → [(1, 3), (7, 7)]."""
    import numpy as np

    if isinstance(positions, range) and positions.step == 1 and len(positions):
        return [(positions[0], positions[-1])]
    places = np.asarray(positions, np.int64)
    if not places.size:
        return []
    ends = np.flatnonzero(np.diff(places) != 1)
    first = places[np.concatenate(([0], ends + 1))].tolist()
    last = places[np.concatenate((ends, [places.size - 1]))].tolist()
    return list(zip(first, last, strict=True))
