"""A model without its weights, and one part of it at a time with them.

transformers builds the model from config.json with every large parameter on the meta device. `load` fills one part from
the checkpoint, in float32, through the same renaming and merging that transformers does when it loads a model, and
`origin` says from which checkpoint tensors a parameter was made, so that statistics find their way back.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from core.calibration.library import require_transformers
from core.calibration.purpose import CALIBRATION, Purpose
from core.checkpoints.base import Checkpoint
from core.checkpoints.huggingface import CONFIG
from core.errors import CalibrationError, MissingExtra

if TYPE_CHECKING:
    import torch

# name → float32 [rows, columns] to be used instead of the checkpoint's, or None
Replace = Callable[[str], "torch.Tensor | None"]

_COLUMN_BITS = 17


@dataclass(frozen=True)
class Piece:
    """A checkpoint tensor that rows of a parameter come from.

    expert      its matrix, where the tensor is a stack
    transposed  its rows are the parameter's inputs
    """

    name: str
    expert: int | None
    transposed: bool


@dataclass(frozen=True, eq=False)
class _Made:
    """How a parameter came about.

    names         the checkpoint tensors
    sources       matrices of these by number; empty when the parameter is the checkpoint tensor as it is
    first_column, first_row   int32 (number of the source << 17) | column, for the first column and row of every matrix
    """

    names: tuple[str, ...]
    sources: tuple[tuple[str, int | None], ...] = ()
    first_column: Any = None
    first_row: Any = None


class Skeleton:
    """The model of a checkpoint folder.

    model   the transformers model, in evaluation mode, float32
    blocks  names of its decoder blocks, in order
    raises  CalibrationError: no config.json, an architecture that transformers does not know, no decoder blocks
    """

    def __init__(self, checkpoint: Checkpoint, device: str = "cpu", purpose: Purpose = CALIBRATION) -> None:
        self.checkpoint, self.device, self.purpose = checkpoint, device, purpose
        self.model = _build(checkpoint, purpose)
        self.path, self.blocks = _blocks(self.model, checkpoint, purpose)
        self._targets, self._converters = _targets(self.model, checkpoint)
        for module in self.model.modules():
            for leaf, buffer in module._buffers.items():
                module._buffers[leaf] = None if buffer is None else buffer.to(device)
        self._shapes = {name: tuple(p.shape) for name, p in self._state()}
        self._made: dict[str, _Made] = {}
        self._loaded: dict[str, set[str]] = {}

    def _state(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield from self.model.named_parameters(remove_duplicate=False)
        persistent = self.model.state_dict(keep_vars=True)
        yield from ((name, b) for name, b in self.model.named_buffers() if name in persistent)

    def sources(self, part: str) -> tuple[str, ...]:
        """Checkpoint tensors of one part (a block's name, or "" for all outside of the blocks)."""
        return tuple(name for name, (target, _) in self._targets.items() if self._inside(target, part))

    def _inside(self, target: str, part: str) -> bool:
        if part:
            return target.startswith(f"{part}.")
        return not target.startswith(f"{self.path}.")

    def load(self, part: str, replace: Replace = lambda name: None) -> None:
        """Parameters of a part filled in. raises CalibrationError for one that the checkpoint does not hold"""
        import torch

        wanted = {name for name in self._shapes if self._inside(name, part)}
        groups: dict[str, list[tuple[str, str | None]]] = {}
        for name, (target, pattern) in self._targets.items():
            if self._inside(target, part):
                groups.setdefault(target, []).append((name, pattern))
        done: set[str] = set()
        with torch.no_grad():
            for target, members in groups.items():
                if members[0][1] is None:
                    self._made[target] = _Made((members[-1][0],))
                    done.add(self._set(target, self._read(members[-1][0], replace)))
                else:
                    done |= self._convert(target, members, replace)
            done |= self._tie(wanted - done)
        missing = sorted(name for name in wanted - done if _is_meta(self.model, name))
        if missing:
            raise CalibrationError(
                f"the checkpoint holds nothing for {missing[0]} of the model",
                "is a shard missing?",
                self.checkpoint.path,
            )
        self._loaded[part] = done

    def release(self, part: str) -> None:
        """The part's parameters give their memory back."""
        for name in self._loaded.pop(part, ()):
            self._put(name, None)

    def _read(self, name: str, replace: Replace) -> torch.Tensor:
        import torch

        found = replace(name)
        if found is None:
            found = self.checkpoint.read(name)
        # Always memory of its own: what is read may be the file itself.
        fresh = torch.empty(self.checkpoint.tensors[name].shape, dtype=torch.float32, device=self.device)
        return fresh.copy_(found.reshape(fresh.shape))

    def _convert(self, target: str, members: list[tuple[str, str | None]], replace: Replace) -> set[str]:
        """A parameter that is made from several tensors, and where its rows come from."""
        sources: list[tuple[str, int | None]] = []
        tags = []
        for name, _ in members:
            tag, found = _tag(self.checkpoint.tensors[name].shape, name, len(sources))
            sources += found
            tags.append(tag)
        for made, tag in self._converted(target, members, tags).items():
            if tag.dim() >= 2:
                self._made[made] = _Made(
                    tuple(name for name, _ in members), tuple(sources), tag[..., :, 0].clone(), tag[..., 0, :].clone()
                )
        del tags
        values = [self._read(name, replace) for name, _ in members]
        return {self._set(made, value) for made, value in self._converted(target, members, values).items()}

    def _converted(
        self, target: str, members: list[tuple[str, str | None]], values: list[torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        converter = copy.deepcopy(self._converters[members[0][1] or ""])
        for (name, pattern), value in zip(members, values, strict=True):
            converter.add_tensor(target, name, pattern, value)
        try:
            made = converter.convert(target, model=self.model, config=self.model.config)
        except Exception as error:  # a foreign conversion, on whatever the checkpoint holds
            said = " ".join(str(error).split())[:160]
            raise CalibrationError(
                f"transformers cannot make {target} from it ({said})", where=members[0][0]
            ) from error
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}

    def _set(self, name: str, value: torch.Tensor) -> str:
        wanted = self._shapes[name]
        if tuple(value.shape) != wanted:
            raise CalibrationError(
                f"the checkpoint has shape {list(value.shape)} for it, config.json means {list(wanted)}",
                "do config.json and weights belong together?",
                name,
            )
        self._put(name, value)
        return name

    def _put(self, name: str, value: torch.Tensor | None) -> None:
        import torch

        owner, _, leaf = name.rpartition(".")
        module = self.model.get_submodule(owner)
        if leaf in module._parameters:
            if value is None:
                value = torch.empty(self._shapes[name], dtype=torch.float32, device="meta")
            module._parameters[leaf] = torch.nn.Parameter(value, requires_grad=False)
        else:
            old = module._buffers[leaf]
            if value is not None:
                module._buffers[leaf] = value.to(old.dtype if old is not None else value.dtype)

    def _tie(self, missing: set[str]) -> set[str]:
        """Parameters that the config ties to others, such as a head that is the embedding."""
        tied = getattr(self.model, "all_tied_weights_keys", None) or {}
        done = set()
        for name in missing:
            source = tied.get(name)
            if source is None or _is_meta(self.model, source):
                continue
            self._put(name, self.model.get_parameter(source).data)
            if source in self._made:
                self._made[name] = self._made[source]
            done.add(name)
        return done

    def origin(self, parameter: str, expert: int | None, transposed: bool) -> tuple[Piece, ...]:
        """The checkpoint tensors whose rows multiply the inputs of a parameter's matrix.

        expert      index of the matrix in a parameter of three dimensions
        transposed  the inputs run along the parameter's rows rather than its columns
        raises      CalibrationError when the inputs do not come in the order of any stored rows or columns
        """
        import torch

        made = self._made[parameter]
        if made.first_row is None:
            return (Piece(made.names[0], expert, transposed),)
        inputs, outputs = made.first_row, made.first_column
        if expert is not None:
            inputs, outputs = inputs[expert], outputs[expert]
        if transposed:
            inputs, outputs = outputs, inputs
        columns = inputs & ((1 << _COLUMN_BITS) - 1)
        if torch.equal(columns, torch.arange(columns.numel(), dtype=columns.dtype)):
            turned = False
        elif bool((columns == columns[0]).all()) and bool((inputs == inputs[0]).all()):
            turned = True
        else:
            raise CalibrationError("its inputs are in an order that no stored tensor has", where=parameter)
        found = torch.unique(outputs >> _COLUMN_BITS).tolist()
        return tuple(Piece(name, matrix, turned) for name, matrix in (made.sources[index] for index in found))

    def outputs(
        self, parameter: str, expert: int | None, transposed: bool, start: int, stop: int
    ) -> list[tuple[Piece, int, int]]:
        """The checkpoint tensors that outputs start … stop of a parameter's matrix are made from: each with its own
        first output, and how many. Empty where it does not show which outputs of a tensor they are.

        transposed  the inputs run along the parameter's rows
        """
        import torch

        made = self._made[parameter]
        if made.first_row is None:
            return [(Piece(made.names[0], expert, transposed), start, stop - start)]
        outputs = made.first_row if transposed else made.first_column
        if expert is not None:
            outputs = outputs[expert]
        sources = outputs >> _COLUMN_BITS
        numbers, counts = torch.unique_consecutive(sources[start:stop], return_counts=True)
        found = []
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
            name, matrix = made.sources[number]
            shape = self.checkpoint.tensors[name].shape
            # All of a tensor's outputs are here, so their order is known.
            turned = next(p.transposed for p in self.origin(parameter, expert, transposed) if p.name == name)
            if count != shape[-1 if turned else -2] or int((sources == number).sum()) != count:
                return []
            found.append((Piece(name, matrix, turned), 0, count))
        return found

    def vector(self, parameter: str) -> str | None:
        """The checkpoint tensor that a parameter of one dimension is, as it stands."""
        made = self._made.get(parameter)
        return made.names[0] if made is not None and not made.sources else None


def _build(checkpoint: Checkpoint, purpose: Purpose) -> Any:
    import torch
    from torch.overrides import TorchFunctionMode

    if checkpoint.config is None or not (checkpoint.folder() / CONFIG).is_file():
        raise CalibrationError(
            f"{purpose.word} runs the model, and needs its folder with config.json", "open that folder", checkpoint.path
        )
    transformers = require_transformers(purpose)

    class EmptyIsMeta(TorchFunctionMode):
        """Parameters are made by torch.empty; tables that a model computes for itself are not."""

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = dict(kwargs or {})
            if func is torch.empty:
                kwargs["device"] = "meta"
            return func(*args, **kwargs)

    words = ", ".join(str(c) for c in checkpoint.config.get("architectures") or ["none"])[:100]
    try:
        config = transformers.AutoConfig.from_pretrained(
            str(checkpoint.folder()), local_files_only=True, trust_remote_code=False
        )
        for part in (config, config.get_text_config()):
            part.use_cache = False
            if hasattr(part, "quantization_config"):
                del part.quantization_config  # the reader has undone it
        config._experts_implementation = "eager"
        with EmptyIsMeta():
            model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    except Exception as error:  # whatever a foreign config makes a foreign library raise
        said = " ".join(str(error).split())[:160]
        raise CalibrationError(
            f"transformers {transformers.__version__} cannot build a causal language model of architecture {words} "
            f"({said})",
            purpose.otherwise,
            checkpoint.path,
        ) from error
    # Parameters made otherwise hold arbitrary numbers now; on the meta device it shows when one is not loaded.
    for module in model.modules():
        for leaf, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[leaf] = torch.nn.Parameter(parameter.data.to("meta"), requires_grad=False)
    model.tie_weights()
    return model.eval()


def _blocks(model: Any, checkpoint: Checkpoint, purpose: Purpose) -> tuple[str, tuple[str, ...]]:
    """The list of decoder blocks: as many as the config has layers, and of all such lists the one that holds most."""
    import torch

    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    lists = [
        (sum(p.numel() for p in module.parameters()), name, len(module))
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) and len(module) == (count or len(module))
    ]
    if not lists:
        raise CalibrationError(
            f"no list of {count} decoder blocks is found in {type(model).__name__}",
            purpose.otherwise,
            checkpoint.path,
        )
    _, path, length = max(lists)
    return path, tuple(f"{path}.{n}" for n in range(length))


def _targets(model: Any, checkpoint: Checkpoint) -> tuple[dict[str, tuple[str, str | None]], dict[str, Any]]:
    """Checkpoint tensor → the parameter it becomes, and the pattern of the conversion where it is not just renamed;
    and pattern → conversion."""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
    except ImportError as error:
        raise MissingExtra(
            "calibration needs a newer transformers", 'pip install --upgrade "quantbench[calibration]"'
        ) from error
    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    state = model.state_dict()
    found: dict[str, tuple[str, str | None]] = {}
    for name in checkpoint.tensors:
        target, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, state)
        if target not in state and name in state:
            target, pattern = name, None
        if target in state:
            found[name] = (target, pattern)
    return found, {pattern: converter for converter in converters for pattern in converter.source_patterns}


def _tag(shape: tuple[int, ...], name: str, first: int) -> tuple[torch.Tensor, list[tuple[str, int | None]]]:
    """int32 of this shape: for every weight the number of its source and its column. Every matrix of a stack is a
    source."""
    import torch

    columns = shape[-1] if shape else 1
    if columns >= 1 << _COLUMN_BITS:
        raise CalibrationError(f"{columns} columns are more than calibration can follow", where=name)
    stack = shape[0] if len(shape) == 3 else 1
    if first + stack >= 1 << (31 - _COLUMN_BITS):
        raise CalibrationError("is made from more tensors than calibration can follow", where=name)
    numbers = torch.arange(first, first + stack, dtype=torch.int32).view(-1, *[1] * (len(shape) - 1))
    column = torch.arange(columns, dtype=torch.int32)
    tag = ((numbers if stack > 1 else numbers.reshape(-1)[0]) << _COLUMN_BITS) | column
    sources: list[tuple[str, int | None]] = [(name, None)]
    if len(shape) == 3:
        sources = [(name, e) for e in range(stack)]
    return tag.expand(shape).contiguous(), sources


def _is_meta(model: Any, name: str) -> bool:
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    found = module._parameters.get(leaf)
    if found is None:
        found = module._buffers.get(leaf)
    return found is not None and found.device.type == "meta"
