"""A GGUF as the model it was made from: its tensors under that model's names, in their old order and place, so that
transformers can run it. What converting renamed, permuted, merged and shifted is undone.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.checkpoints.base import Checkpoint
from core.checkpoints.gguf import Gguf
from core.engine.known import numbers
from core.errors import EvaluationError, TargetError
from core.targets.base import OutputTensor
from core.targets.gguf import convert, nvfp4
from core.targets.gguf.rows import PlusOne
from core.tensors import TensorInfo

if TYPE_CHECKING:
    import torch

_WEIGHT = (1 << 40) - 1
# Weights that are put back into their places together.
_PIECE = 1 << 22


class GgufAsModel(Checkpoint):
    """The weights of a GGUF for a model.

    model   says names, shapes, settings and tokenizer: the original folder, or a DescribedModel
    kind    "gguf"
    raises  EvaluationError: the GGUF is not of this model, or of an architecture that is not converted back
    """

    kind = "gguf"

    def __init__(self, gguf: Gguf, model: Checkpoint) -> None:
        self.path, self.files, self.metadata = gguf.path, gguf.files, gguf.metadata
        self.gguf, self._model = gguf, model
        self.config = model.config
        self.tensors = {name: TensorInfo(t.name, t.shape, "F32", 4 * t.numel) for name, t in model.tensors.items()}
        self._outputs: dict[str, list[OutputTensor]] = {}
        try:
            found = convert.places(model)
            given = convert.computed(model)
        except TargetError as error:
            raise EvaluationError(error.message, "evaluate the folder it was made from", gguf.path) from error
        for output in found.tensors:
            self._check(output)
            for name in output.source.names():
                self._outputs.setdefault(name, []).append(output)
        strangers = gguf.tensors.keys() - {output.name for output in found.tensors} - given
        strangers -= {part for name in gguf.tensors for part, _ in nvfp4.beside(name, gguf.tensors)}
        if strangers:
            raise EvaluationError(
                f"holds {min(strangers)}, which this model has no place for",
                "is it a GGUF of this model?",
                gguf.path,
            )
        # A head that is the embedding has no tensor in the GGUF.
        self._tied = {name: self._embedding() for name, why in found.dropped.items() if why.startswith("tied")}

    def _check(self, output: OutputTensor) -> None:
        info = self.gguf.tensors.get(output.name)
        if info is None or info.shape != output.shape:
            what = "no tensor" if info is None else f"shape {list(info.shape)} for"
            raise EvaluationError(
                f"has {what} {output.name}, where the model has {list(output.shape)}",
                "is it a GGUF of this model?",
                self.path,
            )

    def _embedding(self) -> str:
        return next(name for name, made in self._outputs.items() if made[0].name == "token_embd.weight")

    def folder(self) -> Path:
        return self._model.folder()

    @property
    def nbytes(self) -> int:
        return self.gguf.nbytes

    def raw(self, name: str, start: int = 0, stop: int | None = None) -> memoryview:
        raise NotImplementedError("a tensor put together from others has no stored bytes")

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        import torch

        name = self._tied.get(name, name)
        info = self.tensors[name]
        made = self._outputs.get(name)
        if made is None:  # what no GGUF holds, and any runtime computes
            return self._model.read(name, start, stop)
        if len(made) == 1 and made[0].source.verbatim() == name:
            return self.gguf.read(made[0].name, start, stop).float()
        whole = torch.zeros(info.numel, dtype=torch.float32)
        for output in made:
            for places, values in self._pieces(output, name):
                whole[places] = values
        return whole.view(info.rows, info.columns)[start:stop]

    def _pieces(self, output: OutputTensor, name: str) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Numbers of weights of a tensor, and their values, from one tensor of the GGUF."""
        import torch

        source = output.source
        step = max(1, _PIECE // max(1, output.columns))
        for start in range(0, output.rows, step):
            stop = min(output.rows, start + step)
            values = self.gguf.read(output.name, start, stop).float()
            if isinstance(source, PlusOne):
                places = torch.arange(start * output.columns, stop * output.columns)
                yield places, values.flatten() - 1
                continue
            found = numbers(source, self._model, start, stop)
            here = (found >> 40) == source.names().index(name)
            yield found[here] & _WEIGHT, values[here]

    def fingerprint(self) -> str:
        return f"{self.gguf.fingerprint()} as {self._model.fingerprint()}"

    def close(self) -> None:
        self.gguf.close()


class DescribedModel(Checkpoint):
    """A model that is known by its settings alone: names and shapes, no weights.

    folder  with config.json and the tokenizer
    """

    kind = "description"

    def __init__(self, folder: Path, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> None:
        self.path, self.files, self.metadata, self.config = folder, (), {}, config
        self.tensors = {name: TensorInfo(name, shape, "F32", 0) for name, shape in shapes.items()}

    def raw(self, name: str, start: int = 0, stop: int | None = None) -> memoryview:
        raise NotImplementedError("a description holds no weights")

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        raise EvaluationError(
            "is not in the file, and the model needs it", "evaluate the folder it was made from", name
        )

    def fingerprint(self) -> str:
        return f"description {sorted((self.config or {}).items(), key=lambda pair: pair[0])}"
