"""Which tensor of one checkpoint is which of another: names as they are, through the GGUF target's own outline between
a Hugging Face folder and a GGUF (renamed, permuted, merged and split tensors meet their counterparts), or without the
prefixes that wrappers put in front. What is done with the pairs is in compare.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from operator import itemgetter
from typing import TYPE_CHECKING

from core.errors import TargetError
from core.ordering import natural_order
from core.targets.base import Plain, RowSource

if TYPE_CHECKING:
    import torch

    from core.checkpoints.base import Checkpoint

# What wrappers of a model put in front of its names.
_PREFIXES = ("module.", "model.", "transformer.", "base_model.", "_orig_mod.", "language_model.")


@dataclass(frozen=True, slots=True)
class View:
    """A tensor of a checkpoint under the name that all sides share.

    names   in its own checkpoint: several where it is merged of them; none where it is computed
    nbytes  stored for it there; of a tensor that is split, its share
    """

    checkpoint: Checkpoint
    source: RowSource
    names: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    nbytes: int

    @property
    def columns(self) -> int:
        return self.shape[-1] if self.shape else 1

    @property
    def rows(self) -> int:
        return prod(self.shape[:-1]) if self.shape else 1

    def read(self, start: int, stop: int) -> torch.Tensor:
        return self.source.read(self.checkpoint, start, stop)


def views_of(checkpoints: Sequence[Checkpoint]) -> list[dict[str, View]]:
    """The tensors of each checkpoint by names that all share, in natural order of these."""
    gguf = any(c.kind == "gguf" for c in checkpoints)
    made = [_as_gguf(c) if gguf and c.kind != "gguf" else _plain(c) for c in checkpoints]
    known = _bare(made[0])
    for i, views in enumerate(made[1:], 1):
        if made[0].keys().isdisjoint(views):
            made[i] = _renamed(views, {bare: name for name, bare in known.items()})
    return [dict(natural_order(views.items(), itemgetter(0))) for views in made]


def _plain(checkpoint: Checkpoint) -> dict[str, View]:
    return {
        t.name: View(checkpoint, Plain(t.name), (t.name,), t.shape, t.dtype, t.nbytes)
        for t in checkpoint.tensors.values()
    }


def _as_gguf(checkpoint: Checkpoint) -> dict[str, View]:
    """As the GGUF target sees the checkpoint; its own names where the architecture is not known."""
    from core.targets import get_target

    try:
        outline = get_target("gguf").outline(checkpoint)
    except TargetError:
        return _plain(checkpoint)
    tensors = checkpoint.tensors
    made = {}
    for t in outline.tensors:
        names = tuple(n for n in t.source.names() if n in tensors)
        stored = sum(tensors[n].numel for n in names)
        # Gate and up that are stored as one count half of it each.
        share = min(1.0, t.numel / stored) if stored else 0.0
        nbytes = round(share * sum(tensors[n].nbytes for n in names))
        made[t.name] = View(checkpoint, t.source, names, t.shape, t.dtype, nbytes)
    return made


def _renamed(views: Mapping[str, View], names: Mapping[str, str]) -> dict[str, View]:
    """Under the names of another checkpoint (bare name → name there) where these differ by prefixes alone."""
    return {names.get(bare, name): views[name] for name, bare in _bare(views).items()}


def _bare(names: Iterable[str]) -> dict[str, str]:
    """Name → name without wrappers' prefixes; as it is where two would be the same."""
    found = {name: _without(name) for name in names}
    count: dict[str, int] = {}
    for bare in found.values():
        count[bare] = count.get(bare, 0) + 1
    return {name: bare if count[bare] == 1 else name for name, bare in found.items()}


def _without(name: str) -> str:
    while True:
        prefix = next((p for p in _PREFIXES if name.startswith(p)), "")
        if not prefix:
            return name
        name = name[len(prefix) :]
