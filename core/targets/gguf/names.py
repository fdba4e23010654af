"""Which tensors of a checkpoint become which of a GGUF, by the record of an architecture: every part found, of the
shape that config.json means, and nothing left over."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from core.checkpoints.base import Checkpoint
from core.errors import TargetError
from core.roles import Role, role_of
from core.targets.base import OutputTensor
from core.targets.gguf import keys
from core.targets.gguf.hyper import Hyper
from core.targets.gguf.record import MAY, MUST, NO, Architecture, Part, Source
from core.targets.plain import real
from core.tensors import TensorInfo

_NOT_LINEAR = frozenset({"norm", "bias", "embedding", "position"})
_KINDS = (".weight", ".bias")


@dataclass(frozen=True)
class Model:
    """A checkpoint with its architecture and config."""

    checkpoint: Checkpoint
    arch: Architecture
    hyper: Hyper

    @property
    def root(self) -> str:
        """The prefix of the model's names: the first whose embedding is there."""
        stem = self.arch.first[0].sources[0].stem
        tensors = self.checkpoint.tensors
        return next((r for r in self.arch.roots if f"{r}{stem}.weight" in tensors), self.arch.roots[0])

    @property
    def embedding(self) -> str:
        return f"{self.root}{self.arch.first[0].sources[0].stem}.weight"

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding: what llama.cpp takes for the size of the vocabulary."""
        found = self.checkpoint.tensors.get(self.embedding)
        if found is None or len(found.shape) != 2 or not found.shape[0]:
            raise TargetError(f"{self.embedding} is missing or no matrix", "is a shard missing?", self.checkpoint.path)
        return found.shape[0]

    @property
    def head(self) -> TensorInfo | None:
        """The head's own tensor in the checkpoint."""
        stems = [s.stem for part in self.arch.last if part.name == "output" for s in part.sources] or ["lm_head"]
        found = (self.checkpoint.tensors.get(f"{prefix}{s}.weight") for s in stems for prefix in ("", self.root))
        return next((info for info in found if info is not None), None)

    @property
    def tied(self) -> bool:
        """No head of its own in the GGUF: the config ties it, its storage is the embedding's, or there is none."""
        if not self.arch.causal:
            return False
        return self.head is None or bool(self.head.alias) or self.hyper.flag("tie_word_embeddings")


@dataclass
class Found:
    """tensors  in the order of the GGUF
    dropped  the checkpoint's tensors without a place, and why they need none
    """

    tensors: list[OutputTensor] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)


def find(model: Model) -> Found:
    """All parts of the model. Raises TargetError: a tensor is missing, unknown, or of the wrong shape or type."""
    return _Search(model).all()


class _Search:
    def __init__(self, model: Model) -> None:
        self.model = model
        self.tensors = model.checkpoint.tensors
        self.root = model.root
        self.sizes: dict[str, int] = {"vocabulary": model.vocabulary}
        self.shapes: dict[tuple[int, int, str], tuple[tuple[int, ...], tuple[int, ...]]] = {}
        self.found = Found()
        self.used: set[str] = set()
        self.missing: list[str] = []

    def all(self) -> Found:
        head = self.model.head
        for part, prefixes, prefix in self._places():
            if part.name == "output" and part.weight == MAY and self.model.tied:
                continue
            for kind, need in zip(_KINDS, (part.weight, part.bias), strict=True):
                if need != NO:
                    self._one(part, prefixes, prefix, kind, need)
        for name in self.tensors:
            if name in self.used:
                continue
            why = "tied to the embedding" if head and name == head.name and self.model.tied else ""
            why = why or self.model.arch.ignores(name)
            if not why:
                raise TargetError(
                    f"has no place in a GGUF of architecture {self.model.arch.name}",
                    "the model is not what its config.json says, or a newer kind of it",
                    name,
                )
            self.found.dropped[name] = why
        if self.missing:
            rest = len(self.missing) - 1
            more = f" and {rest:,} more tensors are" if rest else " is"
            where = self.model.checkpoint.path
            raise TargetError(f"{self.missing[0]}{more} missing from the weights", "is a shard missing?", where)
        return self.found

    def _places(self) -> Iterator[tuple[Part, tuple[str, ...], str]]:
        """Each part with the prefixes that its name may have in the checkpoint, and the one it gets."""
        arch, hyper = self.model.arch, self.model.hyper
        outer = (self.root, "") if self.root else ("",)
        for part in arch.first:
            yield part, outer, ""
        for layer in range(hyper.whole("num_hidden_layers")):
            if layer > len(self.tensors):
                break  # the first missing one is among those already listed
            inside = (f"{self.root}{arch.layers}.{layer}.",)
            for part in arch.layer:
                if part.when is None or part.when(hyper, layer):
                    yield part, inside, f"blk.{layer}."
        for part in arch.last:
            yield part, outer, ""

    def _one(self, part: Part, prefixes: tuple[str, ...], prefix: str, kind: str, need: str) -> None:
        """The weight or bias of one part."""
        for source in part.sources:
            for stem in prefixes:
                names = self._names(source, stem, kind)
                if names:
                    self.found.tensors.append(self._made(part, source, names, f"{prefix}{part.name}{kind}", kind))
                    self.used.update(names)
                    return
        if need == MUST:
            first = part.sources[0]
            self.missing.append(f"{prefixes[0]}{first.stem.replace('{}', '0')}{kind if first.ending else ''}")

    def _names(self, source: Source, prefix: str, kind: str) -> tuple[str, ...]:
        """The checkpoint's names of one spelling, or () when the checkpoint has others."""
        if not source.ending and kind != ".weight":
            return ()
        pattern = f"{prefix}{source.stem}{kind if source.ending else ''}"
        if "{}" not in source.stem:
            return (pattern,) if pattern in self.tensors else ()
        if pattern.replace("{}", "0") not in self.tensors:
            return ()
        names = []
        for number in range(self._size("experts")):
            name = pattern.replace("{}", str(number))
            if name not in self.tensors:
                raise TargetError(
                    f"{name} is missing from the weights", "is a shard missing?", self.model.checkpoint.path
                )
            names.append(name)
        return tuple(names)

    def _size(self, word: str) -> int:
        found = self.sizes.get(word)
        if found is None:
            found = (self.model.arch.sizes.get(word) or keys.SIZES[word])(self.model.hyper)
            self.sizes[word] = found
        return found

    def _made(self, part: Part, source: Source, names: tuple[str, ...], name: str, kind: str) -> OutputTensor:
        # Once for all layers. Parts and their sources are constants of the architecture.
        key = (id(part), id(source), kind)
        if key not in self.shapes:
            shape = tuple(self._size(word) for word in (part.shape[:1] if kind == ".bias" else part.shape))
            self.shapes[key] = shape, source.way.shape(shape)
        shape, wanted = self.shapes[key]
        for given in names:
            info = self.tensors[given]
            if not real(info.dtype):
                raise TargetError(f"holds {info.dtype}, where {self.model.arch.name} has real numbers", where=given)
            if info.shape != wanted:
                raise TargetError(
                    f"has shape {_by(info.shape)}, where config.json means {_by(wanted)}",
                    "do config.json and weights belong together?",
                    given,
                )
        role = _role(names, name)
        linear = len(shape) >= 2 and role.kind not in _NOT_LINEAR
        rows = source.way.source(self.model.hyper, names, shape)
        return OutputTensor(name, rows, shape, self.tensors[names[0]].dtype, role, linear)


def _role(names: tuple[str, ...], made: str) -> Role:
    """By the checkpoint's name where that says it, as rules do; of merged and split tensors by the GGUF's."""
    role = role_of(names[0])
    return role if role.expert is None and role.kind not in ("other", "gate_up") else role_of(made)


def _by(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "of a scalar"
