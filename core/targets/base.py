"""The contract of a target: the container and dialect on disk, and which formats it can carry.

A target turns a checkpoint into output tensors (renamed, permuted, merged), says for each what will be stored, lays all
of it out to the byte, and turns quantized rows into those bytes. It knows no methods and reads no recipes.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from core.calibration.statistics import Provenance, Statistic
from core.checkpoints.base import Checkpoint
from core.formats.base import Format, Quantized
from core.kinds import Kinds
from core.parameters import PLAIN
from core.roles import Role

if TYPE_CHECKING:
    import torch

    from core.targets.assignments import Assignments

# The number of a layer or an expert in a name. Digits beside letters ("w1") tell what a tensor is.
_NUMBER = re.compile(r"\.[0-9]+(?=\.|$)")


@dataclass(frozen=True)
class RowSource(ABC):
    """Where the rows of an output tensor come from. Small and picklable: it names tensors, it holds none."""

    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """The checkpoint tensors that are read."""

    @abstractmethod
    def read(self, checkpoint: Checkpoint, start: int, stop: int) -> torch.Tensor:
        """Rows start … stop of the output, floating [rows, columns]."""

    def verbatim(self) -> str | None:
        """The checkpoint tensor whose stored bytes are, row by row, those of the output; None if any value moves."""
        return None

    def beside(self) -> tuple[str, ...]:
        """Checkpoint tensors that go over with `verbatim`, byte by byte and under their own names, when it does."""
        return ()

    def kind(self) -> Hashable:
        """What a container may look at beside the names."""
        return type(self)


@dataclass(frozen=True)
class Plain(RowSource):
    """The tensor as it is."""

    name: str

    def names(self) -> tuple[str, ...]:
        return (self.name,)

    def read(self, checkpoint: Checkpoint, start: int, stop: int) -> torch.Tensor:
        return checkpoint.read(self.name, start, stop)

    def verbatim(self) -> str | None:
        return self.name


@dataclass(frozen=True)
class OutputTensor:
    """One tensor of the output before it is known how it will be stored.

    name    in the container ("blk.0.attn_q.weight")
    source  where its rows come from
    shape   torch order, after merging and transposing
    dtype   of the source (the first of several)
    role    by the source's name
    linear  whether it is the weight of a Linear (what safetensors clients can quantize)
    misread formats that clients would compute with wrongly here, in this model
    """

    name: str
    source: RowSource
    shape: tuple[int, ...]
    dtype: str
    role: Role
    linear: bool = True
    misread: frozenset[str] = frozenset()

    @property
    def rows(self) -> int:
        return prod(self.shape[:-1]) if self.shape else 1

    @property
    def columns(self) -> int:
        return self.shape[-1] if self.shape else 1

    @property
    def numel(self) -> int:
        return prod(self.shape)

    def kind(self) -> Hashable:
        """Equal for tensors that differ in nothing but the numbers in their names. Formats, presets and containers
        decide alike for them, unless they count them or look at all."""
        role, stem = self.role, _NUMBER.sub(".0", self.name)
        outside = role.layer is None, role.expert is None
        return stem, self.shape, self.dtype, role.kind, outside, self.linear, self.misread, self.source.kind()


@dataclass(frozen=True)
class Outline:
    """All output tensors in the container's order, and the checkpoint tensors that have no place in it, with reasons.

    layers, heads, kv_heads, experts, arch   what presets ask for; 0 or "" when unknown
    tied                                     the head is the embedding (no tensor of its own)
    notes                                    worth a line before the run ("pre-tokenizer guessed")
    statistics                               what tells how much columns matter, for containers that record it
    """

    tensors: tuple[OutputTensor, ...]
    dropped: Mapping[str, str] = field(default_factory=dict)
    arch: str = ""
    layers: int = 0
    heads: int = 0
    kv_heads: int = 0
    experts: int = 0
    tied: bool = False
    notes: tuple[str, ...] = ()
    statistics: Provenance | None = None

    @cached_property
    def kinds(self) -> Kinds:
        """Which tensors are alike (`OutputTensor.kind`)."""
        return Kinds.by(t.kind() for t in self.tensors)


# Made by the hundred thousand: a named tuple takes half the time of a frozen dataclass.
class StoredTensor(NamedTuple):
    """One entry of the container: a name, the container's own dtype word, its shape there, its exact bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


class Placed(NamedTuple):
    """A stored tensor's place: index into Layout.files, and the offset of its first byte in that file."""

    stored: StoredTensor
    file: int
    offset: int


@dataclass(frozen=True)
class FileLayout:
    """One file of the output. `head` is written at 0; gaps up to `nbytes` are zeros.

    name  relative to the output folder; "" when the output is this single file
    """

    name: str
    head: bytes
    nbytes: int


@dataclass(frozen=True)
class Layout:
    """Every byte of the output before work starts.

    files    those that hold tensors
    sides    small files written whole (config.json, tokenizer.json, …): name → content
    places   output tensor name → its stored tensors, placed
    """

    files: tuple[FileLayout, ...]
    places: Mapping[str, tuple[Placed, ...]]
    sides: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        return sum(f.nbytes for f in self.files) + sum(len(b) for b in self.sides.values())

    @property
    def in_parts(self) -> bool:
        """Whether files with names of their own are written: always into a folder, and into one as well by a target of
        single files, where these are limited in size."""
        return any(f.name for f in self.files)


class Assignment(NamedTuple):
    """An output tensor with the format it will be stored in.

    copy       the stored bytes go over untouched (source.verbatim() is not None and the dtype is the container's own)
    scattered  the method groups columns out of their order: the parts hold "g_idx", int32, the group of each column
    inputs     what clients shall do with the layer's inputs: PLAIN, DYNAMIC or STATIC of core/parameters.py
    """

    tensor: OutputTensor
    format: Format
    copy: bool = False
    scattered: bool = False
    inputs: str = PLAIN


@dataclass(frozen=True, slots=True)
class Objection:
    """What a container has against a whole choice of formats. severity: "error" stops the run, "warning" does not."""

    severity: str
    tensor: str
    message: str
    hint: str = ""


COMPARED, SPECIFIED = "loaded and compared", "by specification"


@dataclass(frozen=True, slots=True)
class Verified:
    """How it is known that a runtime reads what a target writes. The table in docs/interop.md is made of these.

    runtime  whose reader ("llama.cpp")
    formats  patterns of format names for which this was done ("int*", "nf4*")
    how      COMPARED: it loaded our files, and its weights or logits were those of ours; SPECIFIED: only the published
             layout, or another package's decoder, was followed
    where    what shows it: a test file, or a command
    """

    runtime: str
    formats: tuple[str, ...]
    how: str
    where: str


# What is known of a layer's inputs where a target stores something about them.
STATIC_NEEDS = frozenset({Statistic.ABSMAX, Statistic.RANGE})


class Target(ABC):
    """One container and dialect. TARGETS in core/targets/__init__.py lists them; instances hold no state."""

    name: ClassVar[str]  # "gguf", "compressed-tensors", "dense"
    title: ClassVar[str]
    help: ClassVar[str]
    folder: ClassVar[bool]  # the output is a folder (else one file, unless files are limited in size)
    suffix: ClassVar[str] = ""  # of the single file
    verified: ClassVar[tuple[Verified, ...]] = ()
    row_multiple: ClassVar[int] = 1  # slices handed to `store` begin at a multiple of this row

    @abstractmethod
    def outline(self, checkpoint: Checkpoint) -> Outline:
        """Output tensors in order. Raises TargetError when the checkpoint cannot be written so at all, with why."""

    @abstractmethod
    def refuses(self, format: Format, tensor: OutputTensor) -> str | None:
        """Why this container cannot hold this tensor in this format, or None. Shape misfits are the format's word.

        Like all that is asked about one tensor here, it is asked once for tensors that are alike (`OutputTensor.kind`).
        """

    def refuses_inputs(self, format: Format, inputs: str) -> str | None:
        """Why this container cannot tell clients to treat the inputs of a layer in this format so, or None. Plain
        inputs need no telling."""
        return None if inputs == PLAIN else f"{self.name} says nothing of inputs: {inputs} ones have no place here"

    def objections(self, assignments: Assignments) -> Iterable[Objection]:
        """What only shows when all tensors are seen together ("4 and 8 bits in one folder")."""
        return ()

    def together(self, assignments: Assignments) -> Iterable[Sequence[str]]:
        """Names of output tensors that clients compute as one, so that they must have the same scale of the whole
        tensor (`Format.sharing`). A tensor is in one such bundle at most."""
        return ()

    @abstractmethod
    def keeps(self, tensor: OutputTensor) -> Format:
        """The format in which an unquantized tensor is stored here (GGUF norms: f32; else the source's own)."""

    def adapt(self, format: Format, tensor: OutputTensor) -> Format:
        """The format with this container's storage details settled (the scales' dtype). Same name, same codes."""
        return format

    @abstractmethod
    def stored(self, assignment: Assignment) -> tuple[StoredTensor, ...]:
        """The container's entries for one output tensor, exact. Depends on nothing else; of the tensor's name, their
        names keep all numbers and change the end at most."""

    @abstractmethod
    def layout(
        self,
        checkpoint: Checkpoint,
        outline: Outline,
        assignments: Assignments,
        label: str = "",
        shard_bytes: int | None = None,
    ) -> Layout:
        """Headers, offsets and side files.

        label        the preset or recipe's name, for the container's metadata
        shard_bytes  files hold at most this many bytes of tensors; None for the container's custom
        """

    @abstractmethod
    def store(
        self, assignment: Assignment, quantized: Quantized, start: int, stop: int
    ) -> Iterator[tuple[str, int, memoryview | bytes]]:
        """For rows start … stop: (stored name, byte offset inside that stored tensor, bytes). On CPU memory."""

    def store_inputs(
        self, assignment: Assignment, statistics: Mapping[Statistic, torch.Tensor]
    ) -> Iterator[tuple[str, int, memoryview | bytes]]:
        """What is stored of the inputs of a layer whose assignment says STATIC; asked once per tensor.

        statistics  STATIC_NEEDS at least, float32, of the very inputs that the weights as stored will see
        """
        return iter(())
